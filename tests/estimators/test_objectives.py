"""Losses: reductions by hand, micro-batches, where clipping stops the gradient, the gradients of KL estimates,
preferences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.objectives import (
    clipped_surrogate,
    dpo_loss,
    kl_estimate,
    outcome_cross_entropy,
    policy_gradient,
    reduce,
)
from tests.strategies import normal

NUMBERS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 50.0, 60.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def gradient(loss, logp: Tensor) -> Tensor:
    logp = logp.clone().requires_grad_()
    return torch.autograd.grad(loss(logp).sum(), logp)[0]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", (7 + 8) / 2),
        ("sequence_mean", (7 / 3 + 8 / 1) / 2),
        ("token_mean", (7 + 8) / 4),
        ("constant", (7 + 8) / 2 / 10),
    ],
)
def test_reductions_by_hand(reduction, expected):
    assert reduce(NUMBERS, MASK, reduction, constant=10).item() == pytest.approx(expected)
    worlds = reduce(torch.stack([NUMBERS, 3 * NUMBERS]), MASK.expand(2, 2, 3), reduction, constant=10)
    assert worlds.tolist() == pytest.approx([expected, 3 * expected]), "worlds do not meet"


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean", "token_mean", "constant"])
def test_rows_of_zeros_stay_in_the_denominator(reduction):
    """A second prompt without signal halves the loss; it does not drop out of the average."""
    idle = torch.cat([NUMBERS, torch.zeros_like(NUMBERS)])
    alone, together = reduce(NUMBERS, MASK, reduction, 10), reduce(idle, torch.cat([MASK, MASK]), reduction, 10)
    assert together.item() == pytest.approx(alone.item() / 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["sum", "sequence_mean", "constant"]), st.sampled_from([1, 2, 4]))
def test_micro_batches_never_change_the_gradient(seed, reduction, parts):
    """Losses of equal parts of a batch of 8, averaged. ("token_mean" is the one that cannot: its divisor is the whole
    batch's.)"""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    mask[:, 0] = True
    logp, advantage = normal(generator, 8, 5), normal(generator, 8, 5)

    def in_parts(logp: Tensor) -> Tensor:
        split = zip(logp.chunk(parts), advantage.chunk(parts), mask.chunk(parts))
        return torch.stack([policy_gradient(*part, reduction, 7) for part in split]).mean()

    whole = gradient(lambda logp: policy_gradient(logp, advantage, mask, reduction, 7), logp)
    torch.testing.assert_close(gradient(in_parts, logp), whole, rtol=1e-12, atol=1e-14)


def test_the_gradient_of_policy_gradient_is_minus_the_advantage():
    found = gradient(
        lambda logp: policy_gradient(logp, torch.tensor([[5.0], [7.0]], dtype=torch.float64), MASK), NUMBERS
    )
    assert found.tolist() == [[-2.5, -2.5, -2.5], [-3.5, 0, 0]]


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean", "token_mean", "constant"])
@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_on_the_first_update_clipping_changes_nothing(reduction, clip):
    advantage = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]], dtype=torch.float64)
    logp = -NUMBERS
    clipped = gradient(lambda now: clipped_surrogate(now, logp, advantage, MASK, clip, clip, reduction, 3), logp)
    assert torch.equal(clipped, gradient(lambda now: policy_gradient(now, advantage, MASK, reduction, 3), logp))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.35, +1.0, False), (1.25, +1.0, True), (0.95, +1.0, True), (0.5, +1.0, True),
        (1.35, -1.0, True), (1.25, -1.0, True), (0.95, -1.0, True), (0.85, -1.0, False), (0.5, -1.0, False),
    ],
)  # fmt: skip
def test_clipping_stops_the_gradient_on_the_side_where_the_advantage_pushes_on(ratio, advantage, moves):
    """low = 0.1, high = 0.3: ρ may rise to 1.3 for good tokens and fall to 0.9 for bad ones; mistakes are always
    undone."""
    one = torch.tensor([[True]])
    logp, weight = (
        torch.tensor([[math.log(ratio)]], dtype=torch.float64),
        torch.tensor([[advantage]], dtype=torch.float64),
    )

    def loss(now: Tensor) -> Tensor:
        return clipped_surrogate(now, torch.zeros_like(now), weight, one, clip_low=0.1, clip_high=0.3)

    assert gradient(loss, logp).item() == pytest.approx(-ratio * advantage if moves else 0.0)
    held = {(False, 1.0): 1.3, (False, -1.0): 0.9}.get((moves, advantage), ratio)
    assert loss(logp).item() == pytest.approx(-held * advantage)


@pytest.mark.parametrize(
    ("kind", "number", "slope"),
    [("k1", math.log(2), 1.0), ("k2", math.log(2) ** 2 / 2, math.log(2)), ("k3", 0.5 - 1 + math.log(2), 1 - 0.5)],
)
def test_kl_estimates_and_their_gradients_at_a_ratio_of_two(kind, number, slope):
    """π = 0.5, ref = 0.25; by log π the gradients are 1, log π/ref and 1 - ref/π."""
    logp, reference = (torch.tensor([math.log(p)], dtype=torch.float64) for p in (0.5, 0.25))
    assert kl_estimate(logp, reference, kind).item() == pytest.approx(number)
    assert gradient(lambda now: kl_estimate(now, reference, kind), logp).item() == pytest.approx(slope)


@pytest.mark.parametrize(("kind", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_which_kl_estimates_average_to_the_divergence(kind, unbiased):
    pi, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.7, 0.2, 0.1], [0.2, 0.3, 0.5]))
    divergence = sum(p * math.log(p / q) for p, q in zip(pi.tolist(), reference.tolist()))
    mean = float(pi @ kl_estimate(pi.log(), reference.log(), kind))
    assert (mean == pytest.approx(divergence)) == unbiased
    assert kind == "k1" or (kl_estimate(pi.log(), reference.log(), kind) >= 0).all()


def test_dpo_loss():
    chosen, rejected = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.0, 2.0], [0.5, 1.0, -1.0]))
    loss = dpo_loss(chosen, rejected, beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(0.1)), math.log(1 + math.exp(-0.3))])
    # σ(x) + σ(-x) = 1: the two orders of a pair are the two outcomes of one comparison.
    assert ((-loss).exp() + (-dpo_loss(rejected, chosen, beta=0.1)).exp()).tolist() == pytest.approx([1, 1, 1])
    up = gradient(lambda chosen: dpo_loss(chosen, rejected, beta=0.1), chosen)
    down = gradient(lambda rejected: dpo_loss(chosen, rejected, beta=0.1), rejected)
    assert torch.equal(up, -down) and (up < 0).all()


def test_outcome_cross_entropy():
    log_ratio = torch.tensor([0.0, 3.0, 3.0, 3.0], dtype=torch.float64)
    outcome = torch.tensor([1.0, 1.0, 0.0, 0.25], dtype=torch.float64)
    good, bad = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    found = outcome_cross_entropy(log_ratio, outcome, beta=0.5).tolist()
    assert found == pytest.approx([math.log(2), good, bad, 0.25 * good + 0.75 * bad])


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match='reduction is \'mean\'; choose "sum", "sequence_mean", "token_mean" or "constant"'
    ):
        reduce(NUMBERS, MASK, "mean")
    with pytest.raises(ValueError, match='kind is \'k4\'; choose "k1", "k2" or "k3"'):
        kl_estimate(NUMBERS, NUMBERS, "k4")


@pytest.mark.parametrize("constant", [None, 0, -3])
def test_a_constant_reduction_needs_a_positive_constant(constant):
    with pytest.raises(ValueError, match=rf'reduction "constant" divides by a positive constant.*it is {constant}'):
        reduce(NUMBERS, MASK, "constant", constant)
