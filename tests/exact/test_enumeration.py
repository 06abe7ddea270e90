"""Enumeration, the samplers that live on it, and exact moments, against loops in plain Python over all outcomes."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators import credit, values
from llm_mdp.estimators.algorithms import (
    GRPO,
    PPO,
    REINFORCE,
    RLOO,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, EveryNTokens
from llm_mdp.estimators.practices import SecondEpoch, Tempered, ZeroStdFiltered
from llm_mdp.estimators.returns import gae
from llm_mdp.exact import enumeration, worlds
from llm_mdp.exact import groups as groups_of
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.worlds import ExactSampler, TreeSampler
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence, Finish
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify import moments as verify
from llm_mdp.verify.moments import covariance, exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate
from tests.strategies import greedy_responses, instances, plain_responses

Outcome = tuple[float, Tensor]
"""A probability and a gradient."""


def enumerate_all(instance: Instance) -> Enumeration:
    return Enumeration(instance.mdp, instance.policy)


@dataclass(frozen=True)
class Plain:
    """One response to one prompt: tokens, probability given the prompt, reward, and the score of each token."""

    tokens: tuple[int, ...]
    chance: float
    reward: float
    scores: list[Tensor]


def plain_leaves(instance: Instance, prompt: int = 0, temperature: float = 1.0) -> list[Plain]:
    """Every response, token by token: softmax, product, one backward pass for each token."""
    mdp, policy = instance.mdp, instance.policy
    parameters, asked = list(policy.parameters()), mdp.prompt_tokens[prompt][None]
    found = []
    for tokens in plain_responses(mdp.tree):
        chance, scores = 1.0, []
        row = torch.tensor([tokens])
        for t, token in enumerate(tokens):
            logits = policy.logits(asked, row)[0, t]
            chance *= float((logits.detach() / temperature).softmax(-1)[token])
            gradient = torch.autograd.grad(logits.log_softmax(-1)[token], parameters, allow_unused=True)
            scores.append(verify.flatten_gradients(gradient, parameters))
        reward = mdp.response_reward(asked, row, torch.ones_like(row, dtype=torch.bool)).item()
        found.append(Plain(tokens, chance, reward, scores))
    return found


def moments(outcomes: list[Outcome]) -> tuple[Tensor, float]:
    """Mean and trace of the covariance."""
    assert sum(chance for chance, _ in outcomes) == pytest.approx(1)
    mean = sum(chance * gradient for chance, gradient in outcomes)
    return mean, sum(chance * float((gradient - mean).square().sum()) for chance, gradient in outcomes)


def assert_moments(
    estimator: Estimator, instance: Instance, outcomes: list[Outcome], check_covariance: bool = True
) -> None:
    """exact_moments, and the matrix of `covariance`, are those of the listed outcomes."""
    mean, trace = moments(outcomes)
    every = enumerate_all(instance)
    computed = exact_moments(estimator, every)
    torch.testing.assert_close(computed.mean, mean, rtol=1e-9, atol=1e-12)
    assert computed.trace_covariance == pytest.approx(trace, rel=1e-9)
    if check_covariance:
        matrix = sum(chance * torch.outer(g - mean, g - mean) for chance, g in outcomes)
        torch.testing.assert_close(covariance(estimator, every), matrix, rtol=1e-9, atol=1e-12)


def weighted(leaf: Plain, advantage: list[float]) -> Tensor:
    return sum(a * score for a, score in zip(advantage, leaf.scores))


# --- all responses ---


@settings(deadline=None, max_examples=25)
@given(instances(kinds=("table", "n-gram"), max_horizon=3), st.sampled_from([1.0, 0.5, 2.0]))
def test_probabilities_rewards_and_finish_of_every_response(instance, temperature):
    every = enumerate_all(instance)
    torch.testing.assert_close(every.probability.sum(-1), torch.ones(every.n_prompts).double(), rtol=1e-12, atol=1e-12)
    for prompt in range(every.n_prompts):
        leaves = plain_leaves(instance, prompt, temperature)
        assert every.leaf_logp(temperature)[prompt].sum(-1).exp().tolist() == pytest.approx(
            [leaf.chance for leaf in leaves]
        )
        assert every.response_reward[prompt].tolist() == pytest.approx([leaf.reward for leaf in leaves])
    ends = [leaf.tokens[-1] == instance.mdp.eos for leaf in leaves]
    assert every.finish.tolist() == [Finish.EOS if end else Finish.HORIZON for end in ends]


@settings(deadline=None, max_examples=25)
@given(instances(kinds=("table", "n-gram"), max_horizon=3))
def test_the_score_of_every_token_of_every_response(instance):
    every = enumerate_all(instance)
    for prompt in range(every.n_prompts):
        for number, leaf in enumerate(plain_leaves(instance, prompt)):
            for t, score in enumerate(leaf.scores):
                torch.testing.assert_close(every.scores[every.edge[prompt, number, t]], score, rtol=1e-10, atol=1e-12)


def test_scores_are_finite_differences():
    instance = replace(random_instance(3, 3), policy=NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)))
    before, parameter, h = enumerate_all(instance), next(instance.policy.parameters()), 1e-5
    for number in range(0, parameter.numel(), 5):
        moved = []
        for step in (h, -h):
            with torch.no_grad():
                parameter.view(-1)[number] += step
                moved.append(enumerate_all(instance).edge_logp())
                parameter.view(-1)[number] -= step
        torch.testing.assert_close((moved[0] - moved[1]) / (2 * h), before.scores[:, number], rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(instances(kinds=("table", "n-gram")), st.booleans())
def test_greedy_leaves_are_greedy_responses(instance, ties):
    if ties:
        with torch.no_grad():
            for parameter in instance.policy.parameters():
                parameter.round_()
    mdp, every = instance.mdp, enumerate_all(instance)
    for prompt in range(every.n_prompts):
        for t in range(mdp.horizon):
            alive = every.mask[:, t]
            prefix = every.tokens[alive, :t]
            expected = greedy_responses(instance.policy, mdp, mdp.prompt_tokens[prompt].expand(len(prefix), -1), prefix)
            assert torch.equal(every.tokens[every.greedy_leaf[prompt, alive, t]], expected)


# --- groups ---


@pytest.mark.parametrize(("ordered", "size"), [(True, 1), (True, 3), (False, 2), (False, 3)])
def test_groups_have_the_probabilities_of_their_responses(ordered, size):
    instance = random_instance(2, 2, n_prompts=2)
    every = enumerate_all(instance)
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    for groups in all_groups(every, size, ordered, chunk=3):
        sampler = ExactSampler(every, groups)
        rollouts = sampler.rollouts(size)
        for prompt, leaves, weight in zip(
            rollouts.which_prompt[:, 0].tolist(), rollouts.leaf.tolist(), sampler.weight.tolist()
        ):
            key = prompt, tuple(leaves)
            assert key not in found, "each group once"
            found[key] = weight
    expected: dict[tuple[int, tuple[int, ...]], float] = {}
    for prompt, asked in enumerate(instance.mdp.prompts):
        leaves = plain_leaves(instance, prompt)
        for group in itertools.product(range(len(leaves)), repeat=size):
            key = prompt, group if ordered else tuple(sorted(group))
            expected[key] = expected.get(key, 0) + asked.probability * math.prod(leaves[leaf].chance for leaf in group)
    assert found == {key: pytest.approx(chance) for key, chance in expected.items()}


@pytest.mark.parametrize(
    "estimator", [RLOO(group_size=3), GRPO(group_size=3, reduction="token_mean"), ZeroStdFiltered(group_size=3)]
)
def test_order_does_not_matter_where_it_does_not_matter(estimator, monkeypatch):
    every = enumerate_all(random_instance(3, 2, n_prompts=2))
    assert verify.ignores_order(estimator, every)
    quick = exact_moments(estimator, every)
    monkeypatch.setattr(verify, "ignores_order", lambda *_: False)
    slow = exact_moments(estimator, every)
    torch.testing.assert_close(quick.mean, slow.mean, rtol=1e-10, atol=1e-12)
    assert quick.trace_covariance == pytest.approx(slow.trace_covariance, rel=1e-10)


@dataclass(frozen=True)
class ByPlace(Estimator):
    """A_k = Σⱼ matrix[k][j] r_j: any linear use of the rewards of a group, place by place."""

    group_size: int = 3
    matrix: tuple[tuple[float, ...], ...] = ()

    def advantages(self, evidence):
        return (evidence.response_reward @ torch.tensor(self.matrix, dtype=torch.float64).T)[..., None]


BY_PLACE = {
    "the next one is the baseline": ((1.0, -1.0, 0.0), (0.0, 1.0, -1.0), (-1.0, 0.0, 1.0)),
    "the first one counts twice": ((2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "only the outer ones count": ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "pairs, each other's baseline": (
        (1.0, -1.0, 0.0, 0.0),
        (-1.0, 1.0, 0.0, 0.0),
        (0.0, 0.0, 1.0, -1.0),
        (0.0, 0.0, -1.0, 1.0),
    ),
    "leave-one-out": ((1.0, -0.5, -0.5), (-0.5, 1.0, -0.5), (-0.5, -0.5, 1.0)),
}
"""The third and the fourth are the same backwards: trying that one permutation does not tell them from estimators
without order."""


@pytest.mark.parametrize("name", BY_PLACE)
def test_estimators_that_depend_on_the_order_of_a_group(name):
    """Found out, and verified with all orders: the moments are those of a loop over all groups."""
    estimator = ByPlace(len(BY_PLACE[name]), matrix=BY_PLACE[name])
    instance = random_instance(2, 2)
    assert verify.ignores_order(estimator, enumerate_all(instance)) == (name == "leave-one-out")
    leaves, outcomes = plain_leaves(instance), []
    for group in itertools.product(leaves, repeat=estimator.group_size):
        weights = [sum(m * leaf.reward for m, leaf in zip(row, group)) for row in estimator.matrix]
        gradient = sum(weight * score for weight, leaf in zip(weights, group) for score in leaf.scores) / len(group)
        outcomes.append((math.prod(leaf.chance for leaf in group), gradient))
    assert_moments(estimator, instance, outcomes)


@dataclass(frozen=True)
class NextInCollect(Estimator):
    """The next response's reward as baseline, subtracted in `collect` already."""

    group_size: int = 3

    def collect(self, sampler):
        evidence = super().collect(sampler)
        reward = evidence.response_reward
        return replace(evidence, response_reward=reward - reward.roll(-1, -1) * torch.tensor([1.0, 2.0, 3.0]).double())

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


def test_an_order_that_collect_has_looked_at():
    instance = random_instance(2, 2)
    outcomes = []
    for a, b, c in itertools.product(plain_leaves(instance), repeat=3):
        weights = [a.reward - b.reward, b.reward - 2 * c.reward, c.reward - 3 * a.reward]
        gradient = sum(weight * sum(leaf.scores) for weight, leaf in zip(weights, (a, b, c))) / 3
        outcomes.append((a.chance * b.chance * c.chance, gradient))
    assert_moments(NextInCollect(), instance, outcomes)


def test_groups_left_out_are_conditioned_on():
    """Leave-one-out pairs of unequal rewards: expectation and covariance given that the pair is kept."""
    instance = random_instance(2, 2)
    leaves = plain_leaves(instance)
    pairs = [(one, other) for one, other in itertools.product(leaves, repeat=2) if one.reward != other.reward]
    kept = sum(one.chance * other.chance for one, other in pairs)
    outcomes = [
        (a.chance * b.chance / kept, (a.reward - b.reward) * (sum(a.scores) - sum(b.scores)) / 2) for a, b in pairs
    ]
    assert_moments(ZeroStdFiltered(group_size=2), instance, outcomes)


def test_several_prompts_by_their_probabilities():
    instance = random_instance(3, 2, n_prompts=2)
    outcomes = [
        (asked.probability * leaf.chance, leaf.reward * sum(leaf.scores))
        for prompt, asked in enumerate(instance.mdp.prompts)
        for leaf in plain_leaves(instance, prompt)
    ]
    assert_moments(REINFORCE(), instance, outcomes)


def test_responses_drawn_at_a_temperature_are_scored_at_one():
    instance = random_instance(3, 2)
    tempered, plain = plain_leaves(instance, temperature=0.6), plain_leaves(instance)
    assert_moments(
        Tempered(), instance, [(t.chance, leaf.reward * sum(leaf.scores)) for t, leaf in zip(tempered, plain)]
    )


# --- branches: V = 2, T = 3, all outcomes listed ---


SMALL = random_instance(2, 3, seed=4)


def branch_outcomes(
    leaves: list[Plain], leaf: Plain, steps: list[int], samples: int
) -> Iterator[tuple[float, dict[int, list[float]]]]:
    """Every joint outcome of `samples` branches from before each of the steps: its probability and their rewards by
    step."""
    slots = [step for step in steps for _ in range(samples)]
    below = {step: [other for other in leaves if other.tokens[:step] == leaf.tokens[:step]] for step in steps}
    total = {step: sum(other.chance for other in below[step]) for step in steps}
    for drawn in itertools.product(*[below[step] for step in slots]):
        rewards: dict[int, list[float]] = {step: [] for step in steps}
        for step, other in zip(slots, drawn):
            rewards[step].append(other.reward)
        yield math.prod(other.chance / total[step] for step, other in zip(slots, drawn)), rewards


def mean_of(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def with_branches(instance: Instance, every: int, samples: int, advantage) -> list[Outcome]:
    """All outcomes of an estimator with branches every so many tokens; advantage(leaf, steps, rewards) is a number a
    token."""
    leaves, outcomes = plain_leaves(instance), []
    for leaf in leaves:
        steps = list(range(0, len(leaf.tokens), every))
        for chance, rewards in branch_outcomes(leaves, leaf, steps, samples):
            outcomes.append((leaf.chance * chance, weighted(leaf, advantage(leaf, steps, rewards))))
    return outcomes


def differences(leaf: Plain, steps: list[int], worth: list[float]) -> list[float]:
    """Every token of a segment gets the value at its end minus the value at its start."""
    rise = dict(zip(steps, [after - before for before, after in itertools.pairwise([*worth, leaf.reward])]))
    return [rise[max(step for step in steps if step <= t)] for t in range(len(leaf.tokens))]


def segment(leaf: Plain, steps: list[int], rewards: dict[int, list[float]]) -> list[float]:
    return differences(leaf, steps, [mean_of(rewards[step]) for step in steps])


def pooled(leaf: Plain, steps: list[int], rewards: dict[int, list[float]]) -> list[float]:
    later = [[*itertools.chain(*(rewards[s] for s in steps if s >= step)), leaf.reward] for step in steps]
    return differences(leaf, steps, [mean_of(numbers) for numbers in later])


def best_first(leaf: Plain, steps: list[int], rewards: dict[int, list[float]]) -> list[float]:
    return [(leaf.reward - max(rewards[0])) ** 2] * len(leaf.tokens)


def cubed(leaf: Plain, steps: list[int], rewards: dict[int, list[float]]) -> list[float]:
    return differences(leaf, steps, [mean_of(rewards[step]) ** 3 for step in steps])


@dataclass(frozen=True)
class BestOfBranches(VinePPO):
    """(RM - largest branch reward from the first step)² on every token: anything but affine in the branches."""

    temperatures: tuple[float, ...] = (1.0,) * 2

    def advantages(self, evidence):
        first = evidence.branches.reward[..., evidence.branches.step == 0]
        return (evidence.response_reward - first.amax(-1, keepdim=True)).square()[..., None]


@dataclass(frozen=True)
class Cubed(VinePPO):
    """Values are cubes of branch means."""

    def advantages(self, evidence):
        return self._advantages(evidence, values.branch_mean(evidence.branches, evidence.rollouts) ** 3)

    def _advantages(self, evidence, value):
        mask = evidence.rollouts.mask
        reward = credit.terminal(evidence.response_reward, mask)
        return gae(reward, value, mask, lam=0.0, boundary=self.boundary(evidence.rollouts))


ALL = EveryNTokens(1)

BRANCHING: dict[str, tuple[Estimator, int, int, object]] = {
    "every token, one draw": (TRePO(temperatures=(1.0,)), 1, 1, segment),
    "every token, two draws": (TRePO(temperatures=(1.0,) * 2), 1, 2, segment),
    "every second token, two draws": (VinePPO(boundary=EveryNTokens(2), temperatures=(1.0,) * 2), 2, 2, segment),
    "pooled, one draw": (TRePO(temperatures=(1.0,), pooled=True), 1, 1, pooled),
    "pooled, two draws": (TRePO(temperatures=(1.0,) * 2, pooled=True), 1, 2, pooled),
    "not affine: best of two, squared": (BestOfBranches(boundary=EveryNTokens(3)), 3, 2, best_first),
    "not affine: cubed means": (Cubed(boundary=ALL, temperatures=(1.0,)), 1, 1, cubed),
}


@pytest.mark.parametrize("name", BRANCHING)
def test_moments_with_branches_are_those_of_all_their_outcomes(name):
    """Conditional means and variances where they suffice, worlds of their own where they do not: the same as the
    loop."""
    estimator, every, samples, advantage = BRANCHING[name]
    assert verify.affine_in_branches(estimator, enumerate_all(SMALL)) == ("not affine" not in name)
    assert_moments(estimator, SMALL, with_branches(SMALL, every, samples, advantage))


def test_greedy_branches_have_one_outcome():
    """Û(next) - Û of greedy completions: one gradient a response."""
    every = enumerate_all(SMALL)
    leaves = plain_leaves(SMALL)
    outcomes = []
    for number, leaf in enumerate(leaves):
        steps = list(range(len(leaf.tokens)))
        worth = [leaves[every.greedy_leaf[0, number, step]].reward for step in steps]
        outcomes.append((leaf.chance, weighted(leaf, differences(leaf, steps, worth))))
    assert_moments(TRePO(temperatures=(0.0,)), SMALL, outcomes)


@dataclass(frozen=True)
class CubedInCollect(Cubed):
    """The same as `Cubed`, but `collect` already turns branches into values."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return replace(evidence, value=values.branch_mean(evidence.branches, evidence.rollouts) ** 3, branches=None)

    def advantages(self, evidence):
        return self._advantages(evidence, evidence.value)


@dataclass(frozen=True)
class MeansInCollect(CubedInCollect):
    """Affine, with the values made in `collect`."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return replace(evidence, value=evidence.value.sign() * evidence.value.abs() ** (1 / 3))


def test_branches_that_collect_turns_into_values_count_as_drawn():
    outcomes = with_branches(SMALL, 1, 1, cubed)
    assert_moments(CubedInCollect(boundary=ALL, temperatures=(1.0,)), SMALL, outcomes)


def test_the_noise_of_branches_that_collect_turns_into_values_is_in_the_covariance():
    outcomes = with_branches(SMALL, 1, 1, segment)
    assert_moments(MeansInCollect(boundary=ALL, temperatures=(1.0,)), SMALL, outcomes)


@dataclass(frozen=True)
class TwoSets(Estimator):
    """The product of two branches from the first step, asked for one after the other, minus RM: on every token."""

    def collect(self, sampler):
        rollouts = sampler.rollouts(1)
        first = rollouts.mask & (rollouts.mask.cumsum(-1) == 1)
        one, other = (values.branch_mean(sampler.branches(rollouts, first), rollouts)[..., 0] for _ in range(2))
        return Evidence(rollouts, sampler.response_reward(rollouts) * one * other)

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


def test_two_sets_of_branches_are_independent_or_refused():
    leaves = plain_leaves(SMALL)
    outcomes = [
        (w.chance * a.chance * b.chance, w.reward * a.reward * b.reward * sum(w.scores))
        for w, a, b in itertools.product(leaves, repeat=3)
    ]
    try:
        assert_moments(TwoSets(), SMALL, outcomes)
    except ValueError as error:
        assert "branches" in str(error)


# --- covariance ---


@pytest.mark.parametrize(
    "estimator",
    [REINFORCE(), RLOO(group_size=3), VinePPO(temperatures=(1.0,)), SecondEpoch()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_trace_of_the_covariance_is_that_of_the_certificate(estimator):
    every = enumerate_all(SMALL)
    assert float(covariance(estimator, every).trace()) == pytest.approx(
        exact_moments(estimator, every).trace_covariance
    )


@pytest.mark.parametrize(
    "estimator",
    [RLOO(group_size=2), TRePO(temperatures=(1.0,) * 2), TRePO(temperatures=(1.0,), boundary=AfterTokens((1,)))],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_covariance_is_that_of_many_drawn_worlds(estimator):
    """Each entry of the empirical matrix within 5 standard errors."""
    every, n = enumerate_all(random_instance(2, 3, seed=4, n_prompts=2)), 40_000
    sampler = TreeSampler(every, n, torch.Generator().manual_seed(0))
    evidence = estimator.collect(sampler)
    weights, edge = verify.token_weights(estimator, evidence, every, (n,)), verify.edges(evidence, every)
    by_edge = torch.zeros(n, every.n_edges, dtype=torch.float64).scatter_add_(1, edge.flatten(1), weights.flatten(1))
    gradient = by_edge @ every.scores
    centred = gradient - exact_moments(estimator, every).mean
    assert float(centred.mean(0).square().sum()) < 5 * float(centred.square().sum(-1).mean()) / n
    exact = covariance(estimator, every)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - exact).abs() < 5 * error + 1e-12).all()


# --- drawing from the enumeration ---


def chi_square(counts: Tensor, chance: Tensor) -> float:
    """Standardised: 0 ± 1 if the counts come from these chances."""
    expected = chance / chance.sum() * counts.sum()
    statistic, freedom = float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_drawn_responses_have_their_probabilities(temperature):
    instance, n = random_instance(3, 3, n_prompts=2, seed=1), 40_000
    every = enumerate_all(instance)
    drawn = TreeSampler(every, n, torch.Generator().manual_seed(2)).rollouts(2, temperature)
    for prompt, asked in enumerate(instance.mdp.prompts):
        here = drawn.which_prompt[:, 0] == prompt
        assert abs(float(here.double().mean()) - asked.probability) < 4 * math.sqrt(
            asked.probability * (1 - asked.probability) / n
        )
        chance = torch.tensor([leaf.chance for leaf in plain_leaves(instance, prompt, temperature)])
        joint = drawn.leaf[here] @ torch.tensor([len(chance), 1])
        counts = torch.bincount(joint, minlength=len(chance) ** 2)
        assert abs(chi_square(counts, torch.outer(chance, chance).flatten())) < 4, (
            "independent, each with its probability"
        )
        torch.testing.assert_close(
            drawn.logp[here].sum(-1), chance.double().log()[drawn.leaf[here]], rtol=1e-6, atol=1e-6
        )


def test_drawn_branches_have_the_probabilities_of_the_responses_below_their_prefix():
    instance, n = random_instance(3, 3, n_prompts=2, seed=1), 60_000
    every = enumerate_all(instance)
    sampler = TreeSampler(every, n, torch.Generator().manual_seed(3))
    rollouts = sampler.rollouts(1)
    branches = sampler.branches(rollouts, rollouts.mask)
    step = branches.step.tolist()
    assert sorted(step) == [0, 1, 2]
    for prompt, leaf in ((0, len(every.tokens) - 1), (1, len(every.tokens) // 2)):
        leaves = plain_leaves(instance, prompt)
        for f, t in enumerate(step):
            same = (rollouts.tokens[:, 0, :t] == every.tokens[leaf, :t]).all(-1)
            same &= (rollouts.which_prompt[:, 0] == prompt) & rollouts.mask[:, 0, t]
            below = [other for other in leaves if other.tokens[:t] == leaves[leaf].tokens[:t]]
            reward = branches.reward[same, f]
            counts = torch.tensor([int((reward - other.reward).abs().lt(1e-9).sum()) for other in below])
            assert counts.sum() == same.sum() > 500, "the prefix was kept"
            assert abs(chi_square(counts, torch.tensor([other.chance for other in below]))) < 4


# --- tokens of branches ---


def tokens_below(leaves: list[Plain], prefix: tuple[int, ...]) -> list[tuple[float, int]]:
    """Chance and number of the tokens that follow a prefix, for every response that begins with it."""
    below = [leaf for leaf in leaves if leaf.tokens[: len(prefix)] == prefix]
    total = sum(leaf.chance for leaf in below)
    return [(leaf.chance / total, len(leaf.tokens) - len(prefix)) for leaf in below]


@settings(deadline=None, max_examples=25)
@given(instances(kinds=("table", "n-gram"), max_horizon=3, gammas=(0.5,)), st.sampled_from([1.0, 0.5]))
def test_expected_tokens_after_every_prefix(instance, temperature):
    """Undiscounted, whatever γ is."""
    every, mdp = enumerate_all(instance), instance.mdp
    remaining = every.at_temperature(temperature).remaining
    for prompt in range(every.n_prompts):
        leaves = plain_leaves(instance, prompt, temperature)
        for level in range(mdp.horizon):
            for place, prefix in enumerate(mdp.tree.level_prefixes(level).tolist()):
                expected = sum(chance * number for chance, number in tokens_below(leaves, tuple(prefix)))
                assert float(remaining[level][prompt, place]) == pytest.approx(expected, rel=1e-10)


def test_tokens_of_exact_branches_are_expected_or_counted():
    """Means, outcomes and greedy branches alike; none where the response has ended before."""
    instance = random_instance(2, 3, seed=4, n_prompts=2)
    every = enumerate_all(instance)
    for which, enumerated, greedy in (("means", False, False), ("outcomes", True, False), ("greedy", False, True)):
        checked = 0
        for groups in all_groups(every, 1):
            sampler = ExactSampler(every, groups, enumerated)
            rollouts = sampler.rollouts(1)
            before = sampler.weight
            branches = sampler.branches(rollouts, rollouts.mask, (0.0,) if greedy else (1.0,))
            spent = (
                branches.tokens
                if not enumerated
                else (sampler.weight[..., None] * branches.tokens).sum(0) / before[..., None]
            )
            for world, prompt in enumerate(rollouts.which_prompt[:, 0].tolist()):
                leaves, response = plain_leaves(instance, prompt), rollouts.tokens[world, 0]
                for f, step in enumerate(branches.step.tolist()):
                    if not rollouts.mask[world, 0, step]:
                        assert float(spent[world, f]) == 0
                        continue
                    expected = sum(
                        chance * number for chance, number in tokens_below(leaves, tuple(response[:step].tolist()))
                    )
                    if greedy:
                        reached = greedy_responses(
                            instance.policy, instance.mdp, rollouts.prompt[world], response[None, :step]
                        )
                        expected = int((reached != PAD).sum()) - step
                    assert float(spent[world, f]) == pytest.approx(expected, rel=1e-10), which
                    checked += 1
        assert checked >= 10


def test_tokens_of_drawn_branches_are_those_of_the_responses_drawn():
    """Rewards are all different here, so a branch's reward tells which response it is."""
    instance = random_instance(3, 3, n_prompts=2, seed=1)
    every = enumerate_all(instance)
    sampler = TreeSampler(every, 500, torch.Generator().manual_seed(3))
    rollouts = sampler.rollouts(2)
    branches = sampler.branches(rollouts, rollouts.mask, (0.0, 0.7))
    lengths = [
        {round(leaf.reward, 9): len(leaf.tokens) for leaf in plain_leaves(instance, prompt)} for prompt in range(2)
    ]
    assert all(len(each) == every.tree.n_leaves for each in lengths)
    for world, prompt in enumerate(rollouts.which_prompt[:, 0].tolist()):
        for row, step, reward, tokens in zip(
            branches.row, branches.step, branches.reward[world].tolist(), branches.tokens[world].tolist()
        ):
            drawn = bool(rollouts.mask[world, row, step])
            assert tokens == (lengths[prompt][round(reward, 9)] - int(step) if drawn else 0)


def test_the_same_seed_draws_the_same_worlds():
    every = enumerate_all(random_instance(3, 3))
    one, again, other = (
        TreeSampler(every, 50, torch.Generator().manual_seed(seed)).rollouts(1).leaf for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


@dataclass(frozen=True)
class EndedOnly(Estimator):
    """Responses that hit the horizon are left out of the average, not only of the loss."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, evidence.rollouts.finish == Finish.EOS)

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


def test_a_sampled_certificate_conditions_on_what_is_kept_too():
    problem = Problem(SMALL)
    target = exact_moments(EndedOnly(), problem.enumeration).mean
    certificate = sampled_certificate(EndedOnly(), problem.enumeration, target, 2_000_000)
    assert certificate.relative_bias < 0.02


# --- what is refused ---


def test_too_many_responses(monkeypatch):
    monkeypatch.setattr(enumeration, "MAX_LEAVES", 10)
    with pytest.raises(
        TooLarge, match=r"15 responses \(vocab_size 3, horizon 3\).*at most 10.*smaller vocabulary or horizon"
    ):
        enumerate_all(random_instance(3, 3))


def test_too_many_edges(monkeypatch):
    monkeypatch.setattr(enumeration, "MAX_EDGES", 20)
    with pytest.raises(TooLarge, match=r"21 \(prefix, token\) pairs.*at most 20.*smaller instance"):
        _ = enumerate_all(random_instance(3, 3)).scores


def test_too_many_groups(monkeypatch):
    monkeypatch.setattr(groups_of, "MAX_WORLDS", 100)
    every = enumerate_all(random_instance(3, 2))
    assert len(list(all_groups(every, 2))) == 1
    with pytest.raises(TooLarge, match=r"343 groups of 3 out of 7 responses.*at most 100.*--group-size"):
        next(all_groups(every, 3))
    assert sum(len(groups.leaf) for groups in all_groups(every, 3, ordered=False)) == 84


def test_too_many_outcomes_of_branches(monkeypatch):
    """4 responses, each with branches of 4 · 3 · 2 outcomes."""
    monkeypatch.setattr(worlds, "MAX_WORLDS", 95)
    with pytest.raises(TooLarge, match=r"96 joint outcomes of 3 branches are too many \(at most 95\)"):
        covariance(TRePO(temperatures=(1.0,)), enumerate_all(SMALL))


@dataclass(frozen=True)
class Greedy(Estimator):
    """Asks for other rollouts than its group, or twice."""

    sizes: tuple[int, ...] = (1, 1)

    def collect(self, sampler):
        rollouts = [sampler.rollouts(size) for size in self.sizes]
        return Evidence(rollouts[0], sampler.response_reward(rollouts[0]))

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1), "collect asked for rollouts twice; ask once, for a group that is large enough for every use"),
        ((2,), "collect asked for groups of 2, but the estimator's group_size is 1"),
    ],
)
def test_rollouts_are_asked_for_once_and_for_the_whole_group(sizes, message):
    every = enumerate_all(SMALL)
    with pytest.raises(ValueError, match=message):
        Greedy(sizes=sizes).collect(ExactSampler(every, next(all_groups(every, 1))))


def test_critics_and_policies_are_looked_up_for_every_response():
    """The certificate of PPO with a wrong critic is that of the loop, which asks the critic response by response."""
    leaves, outcomes = plain_leaves(SMALL), []
    for leaf in leaves:
        row = torch.tensor([[*leaf.tokens, *[PAD] * (3 - len(leaf.tokens))]])
        worth = SMALL.value(SMALL.mdp.prompt_tokens, row, row != PAD)[0].tolist()[: len(leaf.tokens)]
        outcomes.append((leaf.chance, weighted(leaf, differences(leaf, list(range(len(leaf.tokens))), worth))))
    assert_moments(PPO(critic=SMALL.value, lam=0.0), SMALL, outcomes)
