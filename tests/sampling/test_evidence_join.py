"""`join`: the batches of several processes as one, row by row what they were. `as_worlds`: the groups of one batch,
each by itself."""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from llm_mdp.estimators.algorithms import (
    GRPO,
    MARLHF,
    PPO,
    REINFORCE,
    RLOO,
    ReMax,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, EveryNTokens, FractionsOfLength
from llm_mdp.estimators.learned_credit import (
    ABC,
    DPO,
    PRIME,
    R3HF,
    RTO,
)
from llm_mdp.estimators.practices import KLLoss, MaskedTruncated
from llm_mdp.estimators.theorems import ReturnToGo, Theorem2, Whitened, WithBaseline, WithGreedyBaseline
from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, as_worlds, join, occurrence, take_rows, take_world
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy, logp_of
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.variance.chains import chain_estimates
from llm_mdp.verify.weights import loss_weights
from tests.strategies import instances

T = 3


def batch(rows: int, width: int, n_branches: int, seed: int, optional: bool) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    prompt, tokens = (torch.randint(5, (rows, columns), generator=generator) for columns in (width, T))
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mask = torch.rand(rows, T, generator=generator) < 0.7
    rollouts = Rollouts(prompt, tokens, mask, normal(rows, T), torch.randint(3, (rows,), generator=generator))
    if not optional:
        return Evidence(rollouts, normal(rows))
    row, step = (
        torch.randint(rows, (n_branches,), generator=generator),
        torch.randint(T, (n_branches,), generator=generator),
    )
    spent = torch.randint(1, T + 1, (n_branches,), generator=generator).double()
    branches = Branches(row, step, normal(n_branches), tokens=spent)
    return Evidence(rollouts, normal(rows), normal(rows, T), normal(rows, T + 1), branches, normal(rows, T))


def assert_same(actual: Evidence, expected: Evidence) -> None:
    """Equal but for the width of the prompts."""
    for name in [f.name for f in fields(Rollouts)]:
        mine, theirs = getattr(actual.rollouts, name), getattr(expected.rollouts, name)
        if name == "prompt":
            extra = mine.shape[1] - theirs.shape[1]
            assert (mine[:, :extra] == PAD).all()
            mine = mine[:, extra:]
        assert_close(mine, theirs, rtol=0, atol=0)
    for owner, other in ((actual, expected), (actual.branches, expected.branches)):
        for f in fields(other) if other is not None else []:
            mine, theirs = getattr(owner, f.name), getattr(other, f.name)
            if isinstance(theirs, Tensor):
                assert_close(mine, theirs, rtol=0, atol=0)
            elif isinstance(theirs, bool) or theirs is None:
                assert mine == theirs


shape = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.integers(0, 100))


@settings(deadline=None)
@given(shapes=st.lists(shape, min_size=1, max_size=4), optional=st.booleans())
def test_every_part_can_be_taken_out_again(shapes, optional):
    parts = [batch(*each, optional) for each in shapes]
    whole, first = join(parts), 0
    assert len(whole.response_reward) == sum(rows for rows, *_ in shapes)
    for part in parts:
        rows = torch.arange(first, first + len(part.response_reward))
        assert_same(take_rows(whole, rows), part)
        first += len(part.response_reward)


def test_what_cannot_be_joined_is_said():
    part = batch(2, 1, 3, 0, optional=True)
    with pytest.raises(ValueError, match="no batch to join"):
        join([])
    with pytest.raises(
        ValueError, match="batch 1 has response_reward, token_reward, value, reference_logp, and batch 0"
    ):
        join([part, replace(part, branches=None)])
    worlds = batch(2, 1, 0, 0, optional=False)
    with pytest.raises(ValueError, match="dimension of worlds"):
        join([replace(worlds, response_reward=worlds.response_reward.expand(4, -1))])


def test_branches_of_which_some_are_not_counted_are_not_counted():
    part = batch(2, 1, 3, 0, optional=True)
    assert join([part, part]).branches.tokens.tolist() == 2 * part.branches.tokens.tolist()
    assert join([part, replace(part, branches=replace(part.branches, tokens=None))]).branches.tokens is None


# --- groups as worlds -------------------------------------------------------------------------------------------------

RAMP = (0.0, 0.5, 1.0)
Maker = Callable[[Instance, int], Estimator]
"""An instance and a group size of at least 2 -> an estimator with groups of that size."""


def process_model(instance: Instance) -> TabularPolicy:
    return TabularPolicy.random(instance.mdp.tree, instance.mdp.prompt_tokens, torch.Generator().manual_seed(1))


ESTIMATORS: dict[str, Maker] = {
    "REINFORCE": lambda i, k: REINFORCE(group_size=k, baseline=0.3),
    "RLOO": lambda i, k: RLOO(group_size=k),
    "RLOO as printed": lambda i, k: RLOO(group_size=k, paper=True),
    "ReMax": lambda i, k: ReMax(group_size=k),
    "GRPO": lambda i, k: GRPO(group_size=k),
    "GRPO, clipped, over lengths": lambda i, k: GRPO(group_size=k, reduction="sequence_mean", clip_low=0.2),
    "DAPO": lambda i, k: GRPO(group_size=k, reduction="token_mean", clip_low=0.2, clip_high=0.3),
    "Dr. GRPO": lambda i, k: GRPO(group_size=k, scale_by_std=False, reduction="constant", reduction_constant=4),
    "PPO": lambda i, k: PPO(group_size=k, critic=i.value, lam=0.5),
    "MA-RLHF": lambda i, k: MARLHF(group_size=k, critic=i.value, boundary=AfterTokens((1,))),
    "VinePPO": lambda i, k: VinePPO(group_size=k, temperatures=(1.0,) * 2),
    "VinePPO, where the prefix says": lambda i, k: VinePPO(
        group_size=k, boundary=AfterTokens((1,)), temperatures=(1.0,) * 2, lam=0.5
    ),
    "VinePPO, none at the prompt": lambda i, k: VinePPO(
        group_size=k, boundary=AtSteps((1, 2)), temperatures=(1.0,) * 3, group_baseline=True
    ),
    "VinePPO, nowhere": lambda i, k: VinePPO(group_size=k, boundary=AtSteps(()), group_baseline=True),
    "TRePO": lambda i, k: TRePO(group_size=k, temperatures=(1.0,) * 2, lam=0.5, reduction="token_mean"),
    "TRePO, own length": lambda i, k: TRePO(group_size=k, boundary=FractionsOfLength(2), temperatures=(1.0,)),
    "TRePO as printed": lambda i, k: TRePO(
        group_size=k, boundary=EveryNTokens(2), pooled=True, interpolated=True, temperatures=RAMP
    ),
    "TRePO, greedy": lambda i, k: TRePO(group_size=k, temperatures=(0.0,)),
    "TRePO, a critic": lambda i, k: TRePO(group_size=k, critic=i.value, boundary=EveryNTokens(2)),
    "R3HF": lambda i, k: R3HF(group_size=k, prefix_score=i.value, group_baseline=True),
    "ABC": lambda i, k: ABC(group_size=k, to_go=True),
    "RTO": lambda i, k: RTO(group_size=k, dpo_policy=process_model(i), reference=i.reference),
    "PRIME": lambda i, k: PRIME(group_size=k, process_model=process_model(i), reference=i.reference),
    "DPO": lambda i, k: DPO(group_size=2 * (k // 2)),
    "Theorem 2": lambda i, k: Theorem2(group_size=k, critic=i.value),
    "any baseline": lambda i, k: WithBaseline(group_size=k, critic=i.value, baseline=i.value),
    "greedy baseline": lambda i, k: WithGreedyBaseline(group_size=k, critic=i.value),
    "return to go": lambda i, k: ReturnToGo(group_size=k),
    "whitened": lambda i, k: Whitened(group_size=k),
    "masked": lambda i, k: MaskedTruncated(group_size=k, reduction="token_mean"),
    "KL": lambda i, k: KLLoss(group_size=k, reference=i.reference, kind="k3"),
}
"""What mixes the rows of a batch, and what does not."""


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(deadline=None, max_examples=12)
@given(
    instance=instances(max_vocab=3), prompts=st.integers(1, 4), group_size=st.integers(2, 3), seed=st.integers(0, 1000)
)
def test_a_group_among_others_is_weighed_as_it_is_alone(name, instance, prompts, group_size, seed):
    estimator = ESTIMATORS[name](instance, group_size)
    size = estimator.group_size
    whole = estimator.collect(
        PolicySampler(instance.policy, instance.mdp, torch.Generator().manual_seed(seed), prompts)
    )
    worlds = as_worlds(whole, size)
    mask = worlds.rollouts.mask
    assert mask.shape == (prompts, size, instance.mdp.horizon)
    logp = worlds.rollouts.logp
    weights = loss_weights(estimator, worlds, logp)
    no_advantages = isinstance(estimator, KLLoss)
    advantages = None if no_advantages else estimator.advantages(worlds).expand(mask.shape)
    for group in range(prompts):
        alone = take_rows(whole, torch.arange(group * size, (group + 1) * size))
        assert_close(weights[group], loss_weights(estimator, alone, alone.rollouts.logp), rtol=1e-12, atol=1e-12)
        if advantages is not None:
            expected = estimator.advantages(alone).expand(mask[group].shape)
            assert_close(advantages[group][mask[group]], expected[mask[group]], rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(rows=st.integers(1, 3), groups=st.integers(1, 3), n_branches=st.integers(0, 8), seed=st.integers(0, 100))
def test_a_world_has_what_its_group_had(rows, groups, n_branches, seed):
    """Every tensor, and from every place the same branches in the same order, 0 where only other groups have any."""
    whole = batch(rows * groups, 2, n_branches, seed, optional=True)
    drawn = Counter(
        zip((whole.branches.row // rows).tolist(), (whole.branches.row % rows).tolist(), whole.branches.step.tolist())
    )
    numbers = {place[1:]: {number for other, number in drawn.items() if other[1:] == place[1:]} for place in drawn}
    if any(len(each) > 1 for each in numbers.values()):
        with pytest.raises(
            ValueError, match="some groups have more branches from a place than others; draw the same number"
        ):
            as_worlds(whole, rows)
        return
    worlds = as_worlds(whole, rows)
    total = torch.zeros(2, dtype=torch.float64)
    for group in range(groups):
        alone, world = take_rows(whole, torch.arange(group * rows, (group + 1) * rows)), take_world(worlds, group)
        assert_same(replace(world, branches=None), replace(alone, branches=None))
        for row in range(rows):
            for step in range(T):
                mine, theirs = ((each.branches.row == row) & (each.branches.step == step) for each in (world, alone))
                number = int(theirs.sum())
                for name in ("reward", "tokens"):
                    has, had = (
                        getattr(world.branches, name)[mine].tolist(),
                        getattr(alone.branches, name)[theirs].tolist(),
                    )
                    assert has[:number] == had and set(has[number:]) <= {0.0}
        total += torch.stack([world.branches.reward.sum(), world.branches.tokens.sum()])
    assert_close(total, torch.stack([whole.branches.reward.sum(), whole.branches.tokens.sum()]))


@settings(deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12))
def test_occurrences_are_counted_place_by_place(places):
    row, step = (torch.tensor([place[k] for place in places], dtype=torch.int64) for k in (0, 1))
    expected = [places[:f].count(place) for f, place in enumerate(places)]
    assert occurrence(Branches(row, step, torch.zeros(len(places)))).tolist() == expected


@pytest.mark.parametrize("reduction", ["sum", "sequence_mean", "token_mean"])
@pytest.mark.parametrize("number", [1, 7])
def test_a_chain_weighs_every_group_by_itself(reduction, number):
    """One backward pass for every group, as if it had been the whole batch; lengths differ, so `token_mean` over all
    would differ."""
    generator = torch.Generator().manual_seed(1)
    policy = NgramPolicy.random(3, 1, generator)
    mdp = TokenMDP(3, 0, 6, NgramReward.random(3, 1, generator), 0.9, (Prompt((1,), 0.5), Prompt((2, 2), 0.5)))
    estimator = GRPO(group_size=3, reduction=reduction)
    found = chain_estimates(estimator, policy, mdp, number, torch.Generator().manual_seed(4))
    whole = estimator.collect(PolicySampler(policy, mdp, torch.Generator().manual_seed(4), number))
    assert number == 1 or len(whole.rollouts.length.unflatten(0, (-1, 3)).sum(-1).unique()) > 1
    for group in range(number):
        alone = take_rows(whole, torch.arange(3 * group, 3 * group + 3))
        rollouts = alone.rollouts
        loss = estimator.loss(logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask), alone)
        (expected,) = torch.autograd.grad(-loss, [policy.table])
        assert_close(found.gradient[group], expected.flatten(), rtol=1e-10, atol=1e-12)
        assert float(found.tokens[group]) == int(rollouts.mask.sum())
        assert float(found.square[group]) == pytest.approx(float(expected.square().sum()))
