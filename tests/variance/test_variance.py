"""What a token of sampling buys: cost, noise, bias and progress against lists of all outcomes, and intervals against
many seeds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.algorithms import (
    GRPO,
    PPO,
    REINFORCE,
    RLOO,
    ReMax,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, EveryNTokens
from llm_mdp.estimators.practices import Tempered, ZeroStdFiltered
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.hidden_rewards import LastTokenReward, NgramReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.variance.benches import NgramBench
from llm_mdp.variance.measurement import (
    AT_BUDGET,
    FIGURES,
    Measurement,
    Spread,
    exact_measurement,
    progress,
    read_measurement,
)
from llm_mdp.variance.sampled import Estimates, kept_estimates, sampled_measurement, tree_estimates
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import edges, token_weights
from tests.exact.test_enumeration import BestOfBranches, Plain, plain_leaves
from tests.strategies import greedy_responses, instances

BUDGET = 200.0


@cache
def problem() -> Problem:
    return Problem(random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3))


@cache
def tiny() -> Problem:
    """Three responses: all pairs of all outcomes can be listed."""
    return Problem(random_instance(2, 2, seed=5))


def outcome_instance(n_prompts: int = 2) -> Instance:
    """Rewards 0 and 1, so that groups without signal are frequent."""
    instance = random_instance(3, 2, n_prompts=n_prompts, seed=2)
    reward = LastTokenReward(lambda prompt, tokens, mask: (tokens == 1).sum(-1) % 2)
    return replace(instance, mdp=replace(instance.mdp, token_reward=reward))


def measured(estimator: Estimator, p: Problem) -> Measurement:
    return exact_measurement(estimator, p.enumeration, p.target("reward"), p.magnitude("reward"))


# --- cost -------------------------------------------------------------------------------------------------------------

Steps = Callable[[tuple[int, ...]], list[int]]
"""From which steps of a response branches are drawn."""


def to_come(leaves: list[Plain], prefix: tuple[int, ...]) -> float:
    """Expected number of tokens after a prefix."""
    below = [leaf for leaf in leaves if leaf.tokens[: len(prefix)] == prefix]
    return sum(leaf.chance * (len(leaf.tokens) - len(prefix)) for leaf in below) / sum(leaf.chance for leaf in below)


def greedy_to_come(instance: Instance, prompt: int, prefix: tuple[int, ...]) -> int:
    given = torch.tensor([prefix], dtype=torch.int64).reshape(1, len(prefix))
    response = greedy_responses(instance.policy, instance.mdp, instance.mdp.prompt_tokens[prompt][None], given)
    return int((response >= 0).sum()) - len(prefix)


def cost_by_hand(instance: Instance, steps: Steps, temperatures: tuple[float, ...]) -> tuple[float, float]:
    """Expected tokens and reward calls of one response with its branches: a loop over responses, places and
    temperatures."""
    tokens = rewards = 0.0
    for prompt, asked in enumerate(instance.mdp.prompts):
        drawn = {
            temperature: plain_leaves(instance, prompt, temperature) for temperature in {1.0, *temperatures} - {0.0}
        }
        for leaf in drawn[1.0]:
            spent, scored = float(len(leaf.tokens)), 1
            for step in steps(leaf.tokens):
                for temperature in temperatures:
                    prefix = leaf.tokens[:step]
                    greedy = temperature == 0
                    spent += greedy_to_come(instance, prompt, prefix) if greedy else to_come(drawn[temperature], prefix)
                    scored += 1
            tokens += asked.probability * leaf.chance * spent
            rewards += asked.probability * leaf.chance * scored
    return tokens, rewards


def every(n: int, first: int = 0) -> Steps:
    return lambda tokens: list(range(first, len(tokens), n))


def after_ones(tokens: tuple[int, ...]) -> list[int]:
    return [t for t in range(len(tokens)) if t == 0 or tokens[t - 1] == 1]


COSTS: dict[str, tuple[Estimator, Steps, tuple[float, ...]]] = {
    "one response": (REINFORCE(), every(1), ()),
    "a group": (RLOO(group_size=3), every(1), ()),
    "greedy response": (ReMax(), every(9), (0.0,)),
    "greedy response of each of two": (ReMax(group_size=2), every(9), (0.0,)),
    "branches at every second token": (
        TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,) * 3),
        every(2),
        (1.0,) * 3,
    ),
    "none at the prompt": (
        TRePO(group_size=2, temperatures=(1.0,) * 2, group_baseline=True),
        every(1, first=1),
        (1.0,) * 2,
    ),
    "none at all": (VinePPO(group_size=2, boundary=AtSteps(()), group_baseline=True), every(1), ()),
    "where the prefix says": (VinePPO(boundary=AfterTokens((1,)), temperatures=(1.0,) * 2), after_ones, (1.0,) * 2),
    "a ramp of temperatures": (TRePO(pooled=True, temperatures=(0.0, 0.5, 1.0)), every(1), (0.0, 0.5, 1.0)),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_of_an_estimate_is_that_of_a_loop_over_all_responses(name):
    estimator, steps, temperatures = COSTS[name]
    p = problem()
    tokens, rewards = cost_by_hand(p.instance, steps, temperatures)
    found = exact_moments(estimator, p.enumeration)
    assert found.tokens == pytest.approx(estimator.group_size * tokens, rel=1e-10)
    assert found.rewards == pytest.approx(estimator.group_size * rewards, rel=1e-10)
    spread = measured(estimator, p).spread
    assert (spread.tokens, spread.rewards) == (found.tokens, found.rewards)


def test_the_cost_of_branches_that_are_enumerated_outcome_by_outcome():
    instance = random_instance(2, 3, seed=4, n_prompts=2)
    tokens, rewards = cost_by_hand(instance, every(3), (1.0, 1.0))
    found = exact_moments(BestOfBranches(boundary=EveryNTokens(3)), Enumeration(instance.mdp, instance.policy))
    assert (found.tokens, found.rewards) == (pytest.approx(tokens, rel=1e-10), pytest.approx(rewards, rel=1e-10))


def test_the_responses_of_another_temperature_have_its_lengths():
    p = problem()
    chances = [asked.probability for asked in p.instance.mdp.prompts]
    leaves = [plain_leaves(p.instance, prompt, 0.6) for prompt in range(2)]
    expected = sum(chance * leaf.chance * len(leaf.tokens) for chance, some in zip(chances, leaves) for leaf in some)
    assert exact_moments(Tempered(), p.enumeration).tokens == pytest.approx(expected, rel=1e-10)


def test_what_is_left_out_is_charged_to_what_is_kept():
    """Pairs of equal rewards cost as much as others; the average over estimates is over the other pairs only."""
    instance = outcome_instance()
    kept = total = 0.0
    for prompt, asked in enumerate(instance.mdp.prompts):
        leaves = plain_leaves(instance, prompt)
        for one in leaves:
            for other in leaves:
                chance = asked.probability * one.chance * other.chance
                total += chance * (len(one.tokens) + len(other.tokens))
                kept += chance * (one.reward != other.reward)
    assert 0.1 < kept < 0.9
    found = exact_moments(ZeroStdFiltered(group_size=2), Enumeration(instance.mdp, instance.policy))
    assert (found.tokens, found.rewards) == (pytest.approx(total / kept, rel=1e-10), pytest.approx(2 / kept, rel=1e-10))


# --- figures ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(instances(max_vocab=3, max_horizon=3), st.sampled_from([1, 2, 3]), st.integers(1, 2))
def test_exact_figures_are_those_of_the_certificate(instance, group_size, n):
    p = Problem(instance)
    assume(p.has_gradient())
    for estimator in (
        REINFORCE(group_size=group_size),
        REINFORCE(group_size=group_size, reduction="sequence_mean"),
        GRPO(group_size=group_size + 1),
        GRPO(group_size=group_size + 1, scale_by_std=False),
        PPO(critic=instance.value, lam=0.5),
        TRePO(boundary=EveryNTokens(n), temperatures=(1.0,) * 2, pooled=True),
    ):
        found, certificate = (
            measured(estimator, p),
            exact_certificate(estimator, p.enumeration, p.target("reward"), p.magnitude("reward")),
        )
        spread = found.spread
        assert (
            found.verdict == certificate.verdict
            and found.branch_noise == certificate.branch_noise
            and found.samples is None
        )
        assert spread.trace == pytest.approx(certificate.trace_covariance, rel=1e-9)
        # |E g|² - 2<E g, ∇J> + |∇J|² is good to 1e-16 of its terms, and its root to 1e-8.
        assert spread.relative_bias == pytest.approx(
            certificate.relative_bias, rel=1e-6, abs=1e-7 * (1 + abs(certificate.scale))
        )
        assert spread.scale == pytest.approx(certificate.scale, rel=1e-9, abs=1e-12)
        assert spread.cosine == pytest.approx(certificate.cosine, rel=1e-9, abs=1e-9)


@dataclass(frozen=True)
class Backwards(PPO):
    """A step that makes everything worse."""

    def advantages(self, evidence):
        return -super().advantages(evidence)


def outcomes(estimator: Estimator, enumeration: Enumeration) -> tuple[Tensor, Tensor]:
    """Probabilities and gradients of every outcome, branches drawn one by one."""
    chances, gradients = [], []
    for groups in all_groups(enumeration, estimator.group_size):
        sampler = ExactSampler(enumeration, groups, enumerate_branches=True)
        evidence = estimator.collect(sampler)
        weights = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
        edge = edges(evidence, enumeration).expand(weights.shape)
        by_edge = torch.zeros(sampler.weight.numel(), enumeration.n_edges, dtype=torch.float64)
        by_edge.scatter_add_(1, edge.flatten(0, -3).flatten(1), weights.flatten(0, -3).flatten(1))
        chances.append(sampler.weight.flatten())
        gradients.append(by_edge @ enumeration.scores)
    return torch.cat(chances), torch.cat(gradients)


def means_of_two(estimator: Estimator, enumeration: Enumeration) -> tuple[Tensor, Tensor]:
    chance, gradient = outcomes(estimator, enumeration)
    return (chance[:, None] * chance).flatten(), ((gradient[:, None] + gradient) / 2).flatten(0, 1)


def best_gain(chance: Tensor, gradient: Tensor, target: Tensor) -> float:
    """The largest expected gain of a step along a random direction, by search over its length; J curves by L = 3 in all
    directions."""
    along, square = float(chance @ (gradient @ target)), float(chance @ gradient.square().sum(-1))
    low, high = 0.0, 10.0
    for _ in range(200):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        gain = [step * along - 1.5 * step**2 * square for step in (one, two)]
        low, high = (one, high) if gain[0] < gain[1] else (low, two)
    return low * along - 1.5 * low**2 * square


AVERAGED = {
    "RLOO": RLOO(group_size=2),
    "GRPO": GRPO(group_size=2),
    "over the length": REINFORCE(reduction="sequence_mean"),
    "ReMax": ReMax(),
    "TRePO": TRePO(temperatures=(1.0,)),
    "wrong critic": PPO(critic=tiny().instance.value, lam=0.5),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_two_estimates_for_the_tokens_of_two(name):
    """The mean of two independent estimates, all pairs listed: its error, its signal to noise, and the best step along
    it."""
    p, estimator = tiny(), AVERAGED[name]
    target = p.target("reward")
    chance, mean = means_of_two(estimator, p.enumeration)
    assert float(chance.sum()) == pytest.approx(1)
    expected, found = chance @ mean, measured(estimator, p)
    noise = float(chance @ (mean - expected).square().sum(-1))
    budget = 2 * found.spread.tokens
    row = found.row(budget)
    assert row["estimates"] == pytest.approx(2)
    error = float(chance @ (mean - target).square().sum(-1)) / float(target @ target)
    assert row["mean_squared_error"] == pytest.approx(error, rel=1e-9)
    assert row["signal_to_noise"] == pytest.approx(float(expected @ expected) / noise, rel=1e-9)
    gain = best_gain(chance, mean, target) / best_gain(torch.ones(1, dtype=torch.float64), target[None], target)
    assert 0 < gain < 1
    assert row["progress"] == pytest.approx(gain, rel=1e-8)


def test_signal_equals_noise_at_the_tokens_to_signal():
    p = tiny()
    spread = measured(GRPO(group_size=2), p).spread
    chance, gradient = outcomes(GRPO(group_size=2), p.enumeration)
    mean = chance @ gradient
    noise = float(chance @ (gradient - mean).square().sum(-1))
    assert noise / (spread.tokens_to_signal / spread.tokens) == pytest.approx(float(mean @ mean), rel=1e-9)


def test_an_estimate_that_points_away_has_negative_progress():
    """As much as the best step against it would gain."""
    p = tiny()
    for critic, lam in ((p.exact_u, 0.0), (p.instance.value, 0.5)):
        with_it, against = (measured(kind(critic=critic, lam=lam), p) for kind in (PPO, Backwards))
        assert against.spread.progress(BUDGET) == pytest.approx(-with_it.spread.progress(BUDGET), rel=1e-12)
        assert against.spread.cosine == pytest.approx(-with_it.spread.cosine)
        assert with_it.spread.progress(BUDGET) * with_it.spread.cosine > 0


def test_no_signal_is_no_progress():
    """Eq. 36 at K = 2 expects nothing at all."""
    p = problem()
    found = measured(RLOO(group_size=2, paper=True), p)
    row = found.row(BUDGET)
    assert (row["progress"], row["cosine"], row["tokens_to_signal"], row["signal_to_noise"]) == (0, 0, None, 0)
    assert row["relative_bias"] == pytest.approx(1) and row["trace_covariance"] > 0
    assert progress(0.9, None, BUDGET) == progress(0.9, float("inf"), BUDGET) == 0


def test_without_noise_all_of_the_progress_is_there():
    """One token of two: the optimal baseline leaves no variance whatever, so nothing more can be bought."""
    spread = Spread(tokens=1.0, rewards=1.0, trace=0.0, signal=4.0, dot=2.0, size=1.0)
    row = Measurement(spread, "proportional").row(BUDGET)
    assert (row["progress"], row["tokens_to_signal"]) == (1, 0)
    assert row["mean_squared_error"] == pytest.approx(1), "twice as long as it should be"
    json.dumps(row, allow_nan=False)


def test_no_gradient_no_measure():
    p = problem()
    estimates = tree_estimates(REINFORCE(), p.enumeration, 10)
    zero = 0 * p.target("reward")
    for measure in (
        lambda: exact_measurement(REINFORCE(), p.enumeration, zero),
        lambda: sampled_measurement(estimates, zero),
    ):
        with pytest.raises(ValueError, match=r"the true gradient is zero here.*take another policy or reward"):
            measure()


@pytest.mark.parametrize("sampled", [False, True])
def test_what_was_measured_can_be_written_and_read(sampled):
    p = problem()
    found = measured(GRPO(group_size=2), p)
    if sampled:
        found = sampled_measurement(tree_estimates(GRPO(group_size=2), p.enumeration, 90), p.target("reward"))
    again = read_measurement(json.loads(json.dumps(found.document(), allow_nan=False)))
    assert again == found and again.row(BUDGET) == found.row(BUDGET)
    row = json.loads(json.dumps(found.row(BUDGET), allow_nan=False))
    assert row["samples"] == (90 if sampled else None)
    names = {"trace_covariance", *FIGURES, *AT_BUDGET} - {"trace"}
    assert (row["intervals"] is None) == (not sampled) and set(row["intervals"] or names) == names


# --- samples ----------------------------------------------------------------------------------------------------------

SAMPLED: dict[str, Estimator] = {
    "REINFORCE": REINFORCE(),
    "GRPO": GRPO(group_size=3),
    "TRePO": TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,) * 2, group_baseline=True, lam=0.5),
    "TRePO as printed": TRePO(boundary=EveryNTokens(2), temperatures=(1.0,) * 2, pooled=True, interpolated=True),
}
SEEDS = 60
ALMOST_ALL = 52
"""Of 60 intervals at 95 %, fewer than this hold in one of 600 trials."""


@cache
def chain() -> NgramBench:
    """A bigram policy with a bigram reward, small enough for a tree too."""
    generator = torch.Generator().manual_seed(7)
    policy = NgramPolicy.random(3, 1, generator)
    return NgramBench(policy, TokenMDP(3, 0, 3, NgramReward.random(3, 1, generator), 0.9))


@cache
def chain_truth(name: str) -> Measurement:
    bench = chain()
    return exact_measurement(SAMPLED[name], Enumeration(bench.mdp, bench.policy), bench.target)


@cache
def tree_samples(name: str, number: int) -> list[Measurement]:
    e, target = problem().enumeration, problem().target("reward")
    return [
        sampled_measurement(tree_estimates(SAMPLED[name], e, number, seed), target, seed=seed) for seed in range(SEEDS)
    ]


@cache
def chain_samples(name: str, known: str | None = None) -> list[Measurement]:
    return [chain().measure(SAMPLED[name], 400, seed, known) for seed in range(SEEDS)]


def held(samples: list[Measurement], truth: Spread, name: str) -> int:
    """How many intervals hold the truth."""
    count = 0
    for sample in samples:
        low, high = sample.interval(name, BUDGET)
        assert low <= high
        count += low - 1e-9 <= truth.figure(name, BUDGET) <= high + 1e-9
    return count


def check_figures(samples: list[Measurement], truth: Measurement) -> None:
    """Intervals hold as often as they say, and means of what is unbiased are right."""
    for name in (*FIGURES, *AT_BUDGET):
        assert held(samples, truth.spread, name) >= ALMOST_ALL, name
    for name in ("tokens", "rewards", "trace", "signal", "dot", "size"):
        drawn = torch.tensor([getattr(sample.spread, name) for sample in samples], dtype=torch.float64)
        error = 4 * float(drawn.std()) / len(drawn) ** 0.5
        assert float(drawn.mean()) == pytest.approx(getattr(truth.spread, name), abs=error + 1e-9), name


ENOUGH = {"REINFORCE": 1_000, "GRPO": 150, "TRePO": 1_000, "TRePO as printed": 150}
"""Rare responses with large gradients make the trace of some estimators a number of long tails, of which few draws know
too little."""


@pytest.mark.parametrize("name", SAMPLED)
def test_intervals_from_drawn_worlds_hold_the_exact_figures(name):
    check_figures(tree_samples(name, ENOUGH[name]), measured(SAMPLED[name], problem()))


@pytest.mark.parametrize("name", SAMPLED)
def test_intervals_from_a_chain_hold_the_figures_of_its_tree(name):
    """Token by token, by the n-gram policy's own tables, against the enumeration of all responses."""
    check_figures(chain_samples(name), chain_truth(name))


def test_the_noise_is_taken_out_of_squares():
    """From ten estimates |ḡ|² is mostly noise, v / 10; what is reported is |E g|² on average."""
    p = problem()
    truth = measured(REINFORCE(), p).spread
    assert truth.trace / 10 > truth.signal / 4
    found = [
        sampled_measurement(tree_estimates(REINFORCE(), p.enumeration, 10, seed), p.target("reward")).spread
        for seed in range(400)
    ]
    for name, most in (("signal", truth.trace / 10), ("trace", truth.trace / 2)):
        drawn = torch.tensor([getattr(spread, name) for spread in found], dtype=torch.float64)
        error = 4 * float(drawn.std()) / len(found) ** 0.5
        assert abs(float(drawn.mean()) - getattr(truth, name)) < error < most


MANY = {"GRPO": 150, "TRePO as printed": 600}
"""The second has rare estimates that are large: more draws before theirs are not all that is seen."""


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("what", ["trace", "cosine", "tokens_to_signal"])
def test_intervals_are_as_wide_as_estimates_scatter(name, what):
    samples = tree_samples(name, MANY[name])
    widths = [high - low for low, high in (sample.interval(what) for sample in samples)]
    scatter = np.std([sample.spread.figure(what, BUDGET) for sample in samples], ddof=1)
    # 2 × 1.96 standard deviations, of which 60 draws know the size to a tenth; and what was not drawn on top.
    assert 0.8 < float(np.mean(widths)) / (3.92 * scatter) < 2.8


def test_a_number_lies_in_its_own_interval():
    for sample in tree_samples("GRPO", 150):
        for name in (*FIGURES, *AT_BUDGET):
            low, high = sample.interval(name, BUDGET)
            assert low <= sample.spread.figure(name, BUDGET) <= high
        assert sample.interval("trace") == pytest.approx(sorted(sample.interval("trace")))
    assert measured(GRPO(group_size=3), problem()).interval("trace") is None


def test_what_is_known_is_not_measured_again():
    samples, plain = chain_samples("TRePO", "unbiased"), chain_samples("TRePO")
    truth = chain_truth("TRePO").spread
    for name in ("trace", "tokens_to_signal", "progress"):
        assert held(samples, truth, name) >= ALMOST_ALL
    for sample, other in zip(samples, plain):
        assert (sample.verdict, sample.spread.relative_bias, sample.spread.cosine, sample.spread.scale) == (
            "unbiased",
            0,
            1,
            1,
        )
        row = sample.row(BUDGET)
        assert row["by_theorem"] == ["relative_bias", "scale", "cosine", "ceiling"]
        assert not set(row["by_theorem"]) & set(row["intervals"]), "nobody measured them"
        assert sample.spread.trace == other.spread.trace and sample.spread.tokens == other.spread.tokens
    scatter, without = (np.std([each.spread.tokens_to_signal for each in some]) for some in (samples, plain))
    assert scatter < 0.8 * without


def test_a_known_direction_keeps_the_scale_that_was_measured():
    p, estimator = problem(), GRPO(group_size=3, scale_by_std=False)
    estimates = tree_estimates(estimator, p.enumeration, 4_000)
    found = sampled_measurement(estimates, p.target("reward"), known="proportional")
    assert found.verdict == "proportional" and found.spread.cosine == 1
    assert found.spread.scale == pytest.approx(2 / 3, abs=0.1), "(K - 1) / K"
    assert found.spread.tokens_to_signal == pytest.approx(measured(estimator, p).spread.tokens_to_signal, rel=0.25)
    against = replace(estimates, gradient=-estimates.gradient)
    assert sampled_measurement(against, p.target("reward"), known="proportional").spread.cosine == -1


def test_a_verdict_needs_enough_estimates():
    p = tiny()
    right, wrong = PPO(critic=p.exact_u, lam=0.0), PPO(critic=p.exact_u, lam=0.0, reduction="sequence_mean")
    for estimator, number, verdict in (
        (right, 50, "undecided"),
        (right, 40_000, "unbiased"),
        (wrong, 40_000, "biased"),
    ):
        assert (
            sampled_measurement(tree_estimates(estimator, p.enumeration, number), p.target("reward")).verdict == verdict
        )


# --- where the true gradient is not known -----------------------------------------------------------------------------


def paired(number: int, seed: int) -> tuple[Estimates, Estimates]:
    """GRPO and RLOO on the same responses."""
    one, other = (
        tree_estimates(estimator, problem().enumeration, number, seed)
        for estimator in (GRPO(group_size=3), RLOO(group_size=3))
    )
    assert torch.equal(one.tokens, other.tokens)
    return one, other


def test_an_unbiased_estimator_stands_in_for_the_true_gradient():
    samples = []
    for seed in range(SEEDS):
        estimates, reference = paired(400, seed)
        samples.append(sampled_measurement(estimates, reference=reference, seed=seed))
    check_figures(samples, measured(GRPO(group_size=3), problem()))
    assert {sample.verdict for sample in samples} == {"undecided"}


def test_an_estimator_measured_by_itself_has_no_bias():
    _, reference = paired(200, 0)
    found = sampled_measurement(reference, reference=reference)
    assert found.spread.relative_bias == pytest.approx(0, abs=1e-6) and found.spread.cosine == pytest.approx(1)
    assert found.interval("cosine") == pytest.approx((1, 1))


@pytest.mark.parametrize("number", [2, 5, 20])
def test_a_reference_that_is_all_noise_is_no_accident(number):
    """Few estimates can leave less than nothing of |∇J|²: nothing is said of them but what they cost."""
    instance = outcome_instance()
    e = Enumeration(instance.mdp, instance.policy)
    for seed in range(30):
        estimates, reference = (tree_estimates(kind(group_size=2), e, number, seed) for kind in (GRPO, RLOO))
        for known in (None, "unbiased", "proportional"):
            row = sampled_measurement(estimates, reference=reference, seed=seed, known=known).row(BUDGET)
            json.dumps(row, allow_nan=False)
            assert row["too_few"] and row["progress"] is None and row["intervals"] is None


def means_of(estimates: Estimates, each: int) -> Estimates:
    gradient, square, tokens, rewards = (
        part.unflatten(0, (-1, each)).mean(1)
        for part in (estimates.gradient, estimates.square, estimates.tokens, estimates.rewards)
    )
    return Estimates(gradient, square, tokens, rewards)


def test_means_of_several_estimates_say_what_the_estimates_say():
    """Four groups at a time: the trace is that of one, and intervals still hold."""
    samples = []
    for seed in range(SEEDS):
        estimates, reference = (means_of(each, 4) for each in paired(600, seed))
        samples.append(sampled_measurement(estimates, reference=reference, seed=seed))
    check_figures(samples, measured(GRPO(group_size=3), problem()))


def test_what_cannot_be_measured_is_said():
    estimates, reference = paired(10, 0)
    target = problem().target("reward")
    for both in ((None, None), (target, reference)):
        with pytest.raises(ValueError, match="give either the true gradient or estimates by an unbiased estimator"):
            sampled_measurement(estimates, *both)
    with pytest.raises(ValueError, match="1 estimate has no spread; draw at least 2"):
        sampled_measurement(tree_estimates(REINFORCE(), problem().enumeration, 1), target)
    with pytest.raises(ValueError, match="the reference has 11 estimates and not 10; draw both from the same prompts"):
        sampled_measurement(estimates, reference=paired(11, 0)[1])


# --- groups that are left out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [None, "unbiased"])
def test_estimates_of_kept_groups_have_the_conditional_figures(known):
    p = Problem(outcome_instance())
    estimator = ZeroStdFiltered(group_size=3)
    truth = exact_moments(estimator, p.enumeration)
    estimates = tree_estimates(estimator, p.enumeration, 20_000)
    found = sampled_measurement(estimates, p.target("reward"), known=known).spread
    assert found.tokens == pytest.approx(truth.tokens, rel=0.03) and found.rewards == pytest.approx(
        truth.rewards, rel=0.03
    )
    assert found.trace == pytest.approx(truth.trace_covariance, rel=0.05)
    assert float((estimates.gradient.mean(0) - truth.mean).norm()) < 5 * (truth.trace_covariance / 20_000) ** 0.5
    assert truth.tokens > 1.1 * exact_moments(RLOO(group_size=3), p.enumeration).tokens


@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_out_of_any_part_is_charged_to_the_rest(seed, monkeypatch):
    """Though parts are so small that some may be left out whole."""
    p = Problem(outcome_instance())
    monkeypatch.setattr("llm_mdp.variance.sampled.NUMBERS", 2 * p.enumeration.n_edges)
    estimates = tree_estimates(ZeroStdFiltered(group_size=2), p.enumeration, 50, seed)
    assert 0 < len(estimates.gradient) == len(estimates.square) == len(estimates.tokens) == len(estimates.rewards) < 50
    assert float(estimates.rewards.sum()) == pytest.approx(100)


def test_a_chain_leaves_groups_out_too():
    """The same conditional figures, token by token."""
    generator = torch.Generator().manual_seed(3)
    policy, table = NgramPolicy.random(3, 1, generator), NgramReward.random(3, 1, generator).table
    instance_reward = NgramReward((table > 0.8).double())
    bench = NgramBench(policy, TokenMDP(3, 0, 2, instance_reward))
    estimator = ZeroStdFiltered(group_size=2)
    truth = exact_moments(estimator, Enumeration(bench.mdp, policy))
    assert truth.rewards > 2.2
    found = bench.measure(estimator, 4_000, 0)
    assert found.samples is not None and 400 < found.samples < 4_000
    assert found.spread.tokens == pytest.approx(truth.tokens, rel=0.05)
    assert found.spread.rewards == pytest.approx(truth.rewards, rel=0.05)
    assert found.spread.trace == pytest.approx(truth.trace_covariance, rel=0.1)


def test_the_charge_of_what_is_left_out():
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    tokens, rewards = (
        torch.tensor([2.0, 4.0, 9.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    )

    def kept(*which: bool):
        """In two batches, for what is left out of one is charged to all."""
        keep = torch.tensor(which)
        parts = [(gradient[each], tokens[each], rewards[each]) for each in (slice(2), slice(2, 3))]
        return kept_estimates(parts, [keep[:2], keep[2:]])

    some = kept(True, False, True)
    assert some.gradient.tolist() == [[1, 2], [5, 6]] and some.square.tolist() == [5, 61]
    assert some.tokens.tolist() == [7.5, 7.5] and some.rewards.tolist() == [3, 3]
    assert kept(True, True, True).tokens.tolist() == [2, 4, 9]
    assert kept(False, False, True).tokens.tolist() == [15]
    with pytest.raises(
        ValueError, match="the estimator left out every one of 3 groups; draw more, or take another setting"
    ):
        kept(False, False, False)


# --- reproducible, in parts -------------------------------------------------------------------------------------------


def test_same_seed_same_figures():
    p = problem()
    one, again, other = (tree_estimates(SAMPLED["TRePO"], p.enumeration, 30, seed) for seed in (1, 1, 2))
    target = p.target("reward")
    assert sampled_measurement(one, target, seed=5) == sampled_measurement(again, target, seed=5)
    assert sampled_measurement(one, target, seed=5).worse != sampled_measurement(one, target, seed=6).worse
    assert not torch.equal(one.gradient, other.gradient)
    assert (
        chain().measure(REINFORCE(), 30, 1)
        == chain().measure(REINFORCE(), 30, 1)
        != chain().measure(REINFORCE(), 30, 2)
    )


@pytest.mark.parametrize("kind", ["tree", "chain"])
def test_many_estimates_come_in_parts(kind, monkeypatch):
    """Parts are further draws: they are as many as asked for, no two the same, and estimate the same figures."""
    p, estimator = problem(), GRPO(group_size=3)
    if kind == "tree":
        monkeypatch.setattr("llm_mdp.variance.sampled.NUMBERS", 70 * p.enumeration.n_edges)
        estimates = tree_estimates(estimator, p.enumeration, 1_000)
        firsts = estimates.gradient[[0, 70, 140]]
        assert len(estimates.square) == 1_000 and len(firsts.unique(dim=0)) > 1
        found, truth = sampled_measurement(estimates, p.target("reward")), measured(estimator, p)
    else:
        monkeypatch.setattr("llm_mdp.variance.chains.TOKENS", 70 * 3 * 3)
        found, truth = chain().measure(estimator, 1_000, 0), chain_truth("GRPO")
    assert found.samples == 1_000
    low, high = found.interval("trace")
    assert low - (high - low) < truth.spread.trace < high + (high - low)
    assert found.spread.tokens == pytest.approx(truth.spread.tokens, rel=0.1)
