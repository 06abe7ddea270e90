"""Updates of several prompts: by classes, batch by batch, and by training's own path."""

import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from llm_mdp.cli.verify import with_policy
from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.group_credit import REINFORCEPlusPlus
from llm_mdp.estimators.practices import KLLoss, ZeroStdFiltered
from llm_mdp.estimators.theorems import Whitened
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import all_batches
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler, TreeSampler
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import logp_of
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.verify.batches import batch_moments
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.classes.batch_draws import BatchDraws
from llm_mdp.verify.classes.batches import batch_class_moments
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.partition import partition
from llm_mdp.verify.classes.pools import OWN, POOLS
from llm_mdp.verify.moments import Moments, exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import edges, token_weights

CLAIM = {claim.id: claim for claim in CLAIMS}
SMALL = random_instance(2, 2, n_prompts=2, seed=3)
"""Three responses to each of two prompts, of different lengths, all rewards different."""
WHOLE_BATCH = ("token-mean", "token-mean-loo", "remark-4-batch", "remark-4-batch-responses", "reinforce++")
APART = ("rloo", "grpo", "length-normalised-loo", "opo", "tempo", "trepo", "remax", "pass-at-k", "kl-k3-loss")


def agree(one: Moments, two: Moments, tolerance: float = 1e-12) -> None:
    """Everything that both know."""
    torch.testing.assert_close(one.mean, two.mean, rtol=tolerance, atol=tolerance)
    for name in ("trace_covariance", "root_mean_square", "weights", "with_signal"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=tolerance), name


def build(id: str, instance=SMALL, group_size: int = 2) -> tuple[Estimator, Problem]:
    problem = Problem(instance, group_size=group_size)
    return CLAIM[id].build(problem), problem


# --- training's own path ----------------------------------------------------------------------------------------------


class Recorded(PolicySampler):
    """Training's sampler, whose draw is given."""

    def __init__(self, problem: Problem, prompt: list[int], leaf: list[int], size: int):
        mdp, e = problem.instance.mdp, problem.enumeration
        super().__init__(problem.instance.policy, mdp, torch.Generator().manual_seed(0), len(prompt))
        which = torch.tensor(prompt).repeat_interleave(size)
        tokens = e.tokens[torch.tensor(leaf)]
        mask = tokens >= 0
        with torch.no_grad():
            logp = logp_of(self.policy, mdp.prompt_tokens[which], tokens, mask)
        self.given = Rollouts(mdp.prompt_tokens[which], tokens, mask, logp, e.finish[torch.tensor(leaf)])

    def rollouts(self, group_size, temperature=1.0, behaviour=None):
        return self.given


def by_hand(estimator: Estimator, problem: Problem, prompts: int) -> tuple[torch.Tensor, float, float]:
    """E g and tr Cov of the gradient that training would take, and P(some group is kept), over all batches in order."""
    policy, size = problem.instance.policy, estimator.group_size
    assert isinstance(policy, torch.nn.Module)
    mdp, e, parameters = problem.instance.mdp, problem.enumeration, list(policy.parameters())
    mean, second, some = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64), 0.0, 0.0
    for prompt in product(range(e.n_prompts), repeat=prompts):
        for leaf in product(range(e.tree.n_leaves), repeat=prompts * size):
            chance = math.prod(mdp.prompts[x].probability for x in prompt)
            chance *= math.prod(float(e.probability[prompt[row // size], i]) for row, i in enumerate(leaf))
            try:
                evidence = estimator.collect(Recorded(problem, list(prompt), list(leaf), size))
            except NothingKept:
                continue
            rollouts = evidence.rollouts
            logp = logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask)
            found = torch.autograd.grad(-estimator.loss(logp, evidence), parameters, allow_unused=True)
            g = torch.cat([torch.zeros(p.numel()) if f is None else f.flatten() for f, p in zip(found, parameters)])
            mean, second, some = mean + chance * g, second + chance * float(g @ g), some + chance
    mean, second = mean / some, second / some
    return mean, second - float(mean @ mean), some


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(RLOO(group_size=2, reduction="token_mean"), marks=pytest.mark.slow),
        REINFORCEPlusPlus(group_size=2),
        pytest.param(Whitened(group_size=2, over="responses"), marks=pytest.mark.slow),
        pytest.param(ZeroStdFiltered(group_size=2), marks=pytest.mark.slow),
        ZeroStdFiltered(group_size=2, reduction="token_mean"),
    ],
    ids=lambda estimator: f"{type(estimator).__name__}-{estimator.reduction}",
)
@pytest.mark.parametrize("method", ["groups", "classes"])
def test_the_moments_are_those_of_all_batches_that_training_could_draw(estimator, method):
    instance = random_instance(2, 2, n_prompts=2, seed=3, success=0.4)
    problem = Problem(instance, group_size=2)
    mean, trace, some = by_hand(estimator, problem, 2)
    found = moments_by(estimator, problem.enumeration, method, prompts=2)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-14)
    assert found.trace_covariance == pytest.approx(trace, rel=1e-11)
    assert found.tokens == pytest.approx(4 * problem.enumeration.expected_length / some, rel=1e-12)
    assert found.kept is not None and 1 - (1 - found.kept) ** 2 == pytest.approx(some, rel=1e-12)


# --- by classes, as batch by batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [2, 3])
@pytest.mark.parametrize("id", WHOLE_BATCH)
def test_batches_by_classes_are_those_one_by_one(id, prompts):
    estimator, problem = build(id)
    agree(
        batch_class_moments(estimator, problem.enumeration, prompts),
        exact_moments(estimator, problem.enumeration, prompts),
    )


@pytest.mark.parametrize("id", ["token-mean-loo", "remark-4-batch", "reinforce++"])
@pytest.mark.parametrize("kind", ["ngram", "one prompt", "no end", "equal lengths of reward", "K = 3"])
def test_on_other_instances(id, kind):
    instance, size = {
        "ngram": (with_policy(SMALL, "ngram", 0), 2),
        "one prompt": (random_instance(2, 3, seed=1, gamma=0.9), 2),
        "no end": (random_instance(2, 2, eos=None, n_prompts=2, seed=2), 2),
        "equal lengths of reward": (random_instance(3, 2, n_prompts=2, seed=4, success=0.3), 2),
        "K = 3": (random_instance(2, 2, n_prompts=2, seed=5, success=0.5), 3),
    }[kind]
    estimator, problem = build(id, instance, size)
    agree(batch_class_moments(estimator, problem.enumeration, 2), exact_moments(estimator, problem.enumeration, 2))


def test_weights_that_depend_on_the_own_response_itself():
    estimator, problem = build("kl-k3-loss", random_instance(3, 2, n_prompts=2, seed=4))
    assert isinstance(estimator, KLLoss)
    estimator = replace(estimator, reduction="token_mean")
    by_class = batch_class_moments(estimator, problem.enumeration, 2)
    agree(by_class, exact_moments(estimator, problem.enumeration, 2))


@pytest.mark.slow
@pytest.mark.parametrize("id", WHOLE_BATCH)
def test_all_32768_batches_in_order(id):
    """Two prompts with 16 groups of two each, three to an update."""
    estimator, problem = build(id, random_instance(2, 2, eos=None, n_prompts=2, seed=6))
    e, count, second = problem.enumeration, 0, 0.0
    mean = torch.zeros(e.n_edges, dtype=torch.float64)
    for batch in all_batches(e, 2, 3, ordered_groups=True, ordered=True):
        sampler = ExactSampler(e, batch)
        evidence = estimator.collect(sampler)
        weights, edge = token_weights(estimator, evidence, e, sampler.weight.shape), edges(evidence, e)
        mean.index_add_(0, edge.flatten(), (sampler.weight[:, None, None] * weights).flatten())
        by_edge = torch.zeros(len(weights), e.n_edges, dtype=torch.float64)
        gradient = by_edge.scatter_add_(1, edge.flatten(1), weights.flatten(1)) @ e.scores
        second, count = second + float(sampler.weight @ gradient.square().sum(-1)), count + len(weights)
    assert count == 32_768
    found = batch_class_moments(estimator, e, 3)
    expected = e.scores.T @ mean
    torch.testing.assert_close(found.mean, expected, rtol=1e-12, atol=1e-13)
    assert found.trace_covariance == pytest.approx(second - float(expected @ expected), rel=1e-12)


@pytest.mark.parametrize("id", ["token-mean-loo", pytest.param("remark-4-batch", marks=pytest.mark.slow)])
def test_eight_prompts_of_four_responses_are_those_of_drawn_batches(id):
    """|error|² n / tr Cov is 1 on average, with a standard deviation below √2."""
    estimator, problem = build(id, random_instance(3, 3, n_prompts=2, seed=7, success=0.3), 4)
    e, n = problem.enumeration, 20_000
    found = batch_class_moments(estimator, e, 8)
    sampler = TreeSampler(e, n, torch.Generator().manual_seed(1), prompts=8)
    evidence = estimator.collect(sampler)
    weights, edge = token_weights(estimator, evidence, e, (n,)), edges(evidence, e)
    by_edge = torch.zeros(n, e.n_edges, dtype=torch.float64).scatter_add_(1, edge.flatten(1), weights.flatten(1))
    gradient = by_edge @ e.scores
    error = float((gradient.mean(0) - found.mean).square().sum()) * n / found.trace_covariance
    assert error < 1 + 5 * math.sqrt(2)
    deviation = (gradient - found.mean).square().sum(-1)
    wrong = float(deviation.mean()) - found.trace_covariance
    assert abs(wrong) < 5 * float(deviation.std()) / math.sqrt(n)


# --- each prompt by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", APART)
def test_where_prompts_are_apart_the_spread_is_divided_by_their_number(id):
    estimator, problem = build(id)
    one, three = (moments_by(estimator, problem.enumeration, prompts=prompts) for prompts in (1, 3))
    assert three.method is not None and three.method.apart
    torch.testing.assert_close(one.mean, three.mean, rtol=1e-12, atol=1e-15)
    assert 3 * three.trace_covariance == pytest.approx(one.trace_covariance, rel=1e-12)
    assert three.tokens == pytest.approx(3 * one.tokens, rel=1e-12)


@pytest.mark.parametrize("id", ["rloo", "trepo", "remax"])
def test_that_is_what_all_batches_say(id):
    estimator, problem = build(id)
    quick, slow = (
        moments_by(estimator, problem.enumeration, prompts=2),
        exact_moments(estimator, problem.enumeration, 2),
    )
    torch.testing.assert_close(quick.mean, slow.mean, rtol=1e-12, atol=1e-14)
    for name in ("trace_covariance", "root_mean_square", "tokens", "rewards", "weights", "with_signal"):
        assert getattr(quick, name) == pytest.approx(getattr(slow, name), rel=1e-12), name


@pytest.mark.parametrize("id", WHOLE_BATCH)
def test_what_looks_at_the_batch_is_not_taken_apart(id):
    estimator, problem = build(id)
    found = moments_by(estimator, problem.enumeration, prompts=2)
    assert found.method is not None and not found.method.apart


@dataclass(frozen=True)
class RarelyTogether(RLOO):
    """RLOO, doubled in batches in which all responses to all prompts are the same."""

    group_size: int = 2

    def advantages(self, evidence):
        tokens = evidence.rollouts.tokens
        same = (tokens == tokens[..., :1, :]).all(-1).all(-1)
        return super().advantages(evidence) + torch.where(same, 1.0, 0.0)[..., None, None]


@dataclass(frozen=True)
class FirstPrompt(RLOO):
    """RLOO, of the first prompt of a batch alone."""

    group_size: int = 2

    def advantages(self, evidence):
        advantage = super().advantages(evidence)
        return torch.where(torch.arange(advantage.shape[-2]) < self.group_size, 1.0, 0.0)[:, None] * advantage


@dataclass(frozen=True)
class Neighbour(RLOO):
    """RLOO, less the first token of the batch's other prompts."""

    group_size: int = 2

    def advantages(self, evidence):
        first = evidence.rollouts.tokens[..., 0].double()
        return super().advantages(evidence) - (first.sum(-1, keepdim=True) - first)[..., None]


@pytest.mark.parametrize("kind", [RarelyTogether, FirstPrompt, Neighbour])
def test_what_peeks_is_not_certified_by_classes(kind):
    problem = Problem(random_instance(3, 2, seed=8, success=0.4), group_size=2)
    with pytest.raises(TooLarge, match=r"depends? on"):
        moments_by(kind(), problem.enumeration, "classes", prompts=2)
    found = moments_by(kind(), problem.enumeration, prompts=2)
    assert found.method is not None and found.method.name == "groups" and not found.method.apart
    torch.testing.assert_close(found.mean, exact_moments(kind(), problem.enumeration, 2).mean)


@dataclass(frozen=True)
class Choosy(RLOO):
    """RLOO, which leaves out the groups below the batch's mean."""

    group_size: int = 2

    def collect(self, sampler):
        evidence = super().collect(sampler)
        mean = evidence.response_reward.unflatten(-1, (-1, 2)).mean(-1)
        return sampler.keep(evidence, mean >= mean.mean(-1, keepdim=True))


def test_groups_that_are_left_out_because_of_others_are_refused():
    problem = Problem(SMALL, group_size=2)
    with pytest.raises(TooLarge, match="by what the other groups of the batch are"):
        moments_by(Choosy(), problem.enumeration, prompts=2)


# --- in words ---------------------------------------------------------------------------------------------------------


def test_a_certificate_says_how_many_prompts_an_update_has():
    estimator, problem = build("token-mean-loo", random_instance(3, 3, seed=5, success=0.3), 4)
    target = problem.target()
    one, eight = (exact_certificate(estimator, problem.enumeration, target, prompts=p) for p in (1, 8))
    assert eight.method is not None and eight.method.prompts == 8
    assert "8 prompts" in eight.method.words and "tokens" in eight.method.words
    assert one.cosine is not None and eight.cosine is not None and eight.cosine > one.cosine
    assert one.tokens is not None and eight.tokens == pytest.approx(8 * one.tokens, rel=1e-12)
    mean = exact_certificate(RLOO(group_size=4), problem.enumeration, target, prompts=8)
    assert mean.method is not None and "mean of 8" in mean.method.words


def test_what_is_too_large_says_so_with_the_remedy_before_work_starts(monkeypatch):
    """No law of many states is made for it."""
    together = Laws._one_more

    def of_few(laws):
        assert len(laws.codes[-1]) * len(laws.code) < 100_000
        together(laws)

    monkeypatch.setattr(Laws, "_one_more", of_few)
    for instance in (random_instance(3, 3, seed=1), random_instance(3, 2, seed=1)):
        estimator, problem = build("reinforce++", instance, 4)
        with pytest.raises(TooLarge, match=r"8 prompts and 4 responses .* at least [\d,]+ values.* fewer prompts"):
            moments_by(estimator, problem.enumeration, prompts=8)


@pytest.mark.parametrize("instance", [SMALL, random_instance(3, 2, seed=4, success=0.4)])
def test_a_pool_that_refines_another_takes_at_least_as_many_values(instance):
    estimator, problem = build("token-mean-loo", instance, 2)
    subject = Subject(estimator, problem.enumeration)
    parts = [partition(problem.enumeration, prompt, law) for prompt, law in enumerate(subject.law)]

    def omegas(pool) -> int | None:
        given = {"deciding": None, "by_leaf": False, "generator": torch.Generator().manual_seed(0)}
        try:
            return BatchDraws(subject, parts, OWN[0], pool, 3, **given).omegas
        except (Refused, TooLarge):
            return None

    found = {pool: omegas(pool) for pool in POOLS}
    pairs = [(fine, coarse) for fine in POOLS for coarse in POOLS if fine is not coarse and fine.refines(coarse)]
    assert len(pairs) == 32
    known = [(one, two) for fine, coarse in pairs if (one := found[fine]) and (two := found[coarse])]
    assert len(known) > 10 and all(one >= two for one, two in known)


def test_more_prompts_than_can_be_told_apart_are_refused():
    estimator, problem = build("token-mean-loo")
    for number, words in ((501, "at most 500 prompts"), (10_001, "at most 10,000")):
        with pytest.raises(TooLarge, match=words):
            moments_by(estimator, problem.enumeration, prompts=number)
    assert moments_by(RLOO(group_size=2), problem.enumeration, prompts=10_000).trace_covariance > 0


@pytest.mark.parametrize("prompts", [0, -1, 1.5, True])
def test_the_number_of_prompts_is_a_whole_number(prompts):
    problem = Problem(SMALL, group_size=2)
    with pytest.raises(ValueError, match=r"prompts is .* whole number"):
        moments_by(RLOO(group_size=2), problem.enumeration, prompts=prompts)


def test_one_group_among_two_prompts_is_the_mixture_of_what_is_kept():
    """Exactly: E g of filtering does not depend on how many are kept, and its spread is E[1/N] of one group's."""
    problem = Problem(random_instance(2, 2, n_prompts=2, seed=3, success=0.4), group_size=2)
    estimator = ZeroStdFiltered(group_size=2)
    one = exact_moments(estimator, problem.enumeration)
    assert one.kept is not None
    p, P = one.kept, 5
    found = batch_moments(estimator, problem.enumeration, P, "auto", lambda: one)
    law = [math.comb(P, n) * p**n * (1 - p) ** (P - n) for n in range(1, P + 1)]
    inverse = sum(chance / n for n, chance in enumerate(law, 1)) / sum(law)
    assert found.trace_covariance == pytest.approx(one.trace_covariance * inverse, rel=1e-12)
    torch.testing.assert_close(found.mean, one.mean)
