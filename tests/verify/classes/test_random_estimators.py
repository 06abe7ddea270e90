"""Estimators that nobody wrote: hypothesis puts them together, some of what classes of responses may know, some that
peek where they must not. By classes each gives what all groups in all orders give, or is refused."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.weights import edges, token_weights

# --- what they are made of: functions of one group, rows last ---------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Of one group: own values (…, K), and those of response j as response k sees them (…, K, K)."""

    evidence: Evidence

    @property
    def reward(self) -> Tensor:
        return self.evidence.response_reward

    @property
    def length(self) -> Tensor:
        return self.evidence.rollouts.length.double()

    @property
    def tokens(self) -> Tensor:
        return self.evidence.rollouts.tokens

    def of_others(self, value: Tensor, fill: float = 0.0) -> Tensor:
        K = value.shape[-1]
        own = torch.eye(K, dtype=torch.bool)
        return torch.where(own, fill, value[..., None, :].expand(*value.shape[:-1], K, K))

    def same(self) -> Tensor:
        """Do responses k and j have the same tokens? (…, K, K)"""
        return (self.tokens[..., :, None, :] == self.tokens[..., None, :, :]).all(-1)


OWN: dict[str, Callable[[Seen], Tensor]] = {
    "reward": lambda s: s.reward,
    "1": lambda s: torch.ones_like(s.reward),
    "reward / length": lambda s: s.reward / s.length,
    "length - 1.5": lambda s: s.length - 1.5,
    "exp(-reward)": lambda s: (-s.reward).exp(),
    "right": lambda s: (s.reward > 0.25).double(),
    "log length": lambda s: s.length.log(),
    "cut off": lambda s: (s.evidence.rollouts.finish == 1).double(),
}
OTHERS: dict[str, Callable[[Seen], Tensor]] = {
    "sum of rewards": lambda s: s.of_others(s.reward).sum(-1),
    "sum of lengths": lambda s: s.of_others(s.length).sum(-1),
    "sum of squares": lambda s: s.of_others(s.reward**2).sum(-1),
    "rewards by length": lambda s: s.of_others(s.reward * s.length).sum(-1) / s.of_others(s.length).sum(-1),
    "best": lambda s: s.of_others(s.reward, -1e9).amax(-1),
    "worst": lambda s: s.of_others(s.reward, 1e9).amin(-1),
    "longest": lambda s: s.of_others(s.length).amax(-1),
    "shortest": lambda s: s.of_others(s.length, 1e9).amin(-1),
    "second best": lambda s: s.of_others(s.reward, -1e9).sort(-1, descending=True).values[..., 1],
    "how many are worse": lambda s: (s.of_others(s.reward, 1e9) < s.reward[..., None]).double().sum(-1),
    "how many are as long": lambda s: (s.of_others(s.length) == s.length[..., None]).double().sum(-1),
    "std of the group": lambda s: s.reward.std(-1, keepdim=True).expand_as(s.reward),
    "std of lengths": lambda s: s.length.std(-1, keepdim=True).expand_as(s.length),
    "mean of the group": lambda s: s.reward.mean(-1, keepdim=True).expand_as(s.reward),
    "how many are right": lambda s: (s.of_others(s.reward) > 0.25).double().sum(-1),
    "product": lambda s: (1 + s.of_others(s.reward) / 4).prod(-1),
    "length of the right": lambda s: (s.of_others(s.length) * (s.of_others(s.reward) > 0.25)).sum(-1),
    "median of rewards": lambda s: s.reward.median(-1, keepdim=True).values.expand_as(s.reward),
}
COMBINED: dict[str, Callable[[Tensor, Tensor, Seen], Tensor]] = {
    "own - f": lambda own, f, s: own - f / s.reward.shape[-1],
    "own f": lambda own, f, s: own * f,
    "tanh": lambda own, f, s: torch.tanh(own - f / 3),
    "own / (1 + f²)": lambda own, f, s: own / (1 + f**2),
    "own where better": lambda own, f, s: torch.where(s.reward > f, own, -f / 4),
    "own where f is large": lambda own, f, s: torch.where(f > 1.2, own, 0.3),
    "min": lambda own, f, s: torch.minimum(own, f),
    "own alone": lambda own, f, s: own + 0 * f,
}
KEPT: dict[str, Callable[[Seen], Tensor] | None] = {
    "all": None,
    "rewards differ": lambda s: s.reward.amax(-1) > s.reward.amin(-1),
    "one is right": lambda s: s.reward.amax(-1) > 0.25,
    "not too long": lambda s: s.length.mean(-1) < 1.75,
    "not all as long": lambda s: s.length.amax(-1) > s.length.amin(-1),
}
OF_OWN_TOKENS: dict[str, Callable[[Seen], Tensor]] = {
    "own log-probability": lambda s: s.evidence.rollouts.logp.sum(-1)[..., None],
    "log-probability so far": lambda s: s.evidence.rollouts.logp.cumsum(-1),
    "own tokens": lambda s: s.tokens.clamp(min=0).double(),
}
"""What a weight may know of the response itself beside its reward and its length."""


def _one_in(number: int) -> Callable[[Seen], Tensor]:
    """1 for about one set of others in so many, without a pattern."""

    def peek(s: Seen) -> Tensor:
        places = torch.tensor([7.1, 3.3, 1.7, 0.9, 0.4]).double()[: s.tokens.shape[-1]]
        mixed = s.of_others(((s.tokens + 2).double() @ places).sin()).sum(-1)
        return ((mixed * 1e4).round() % number == 3).double()

    return peek


PEEKS: dict[str, Callable[[Seen], Tensor]] = {
    "tokens of the others": lambda s: s.of_others(s.tokens[..., 0].double()).sum(-1),
    "log-probabilities of the others": lambda s: s.of_others(s.evidence.rollouts.logp.sum(-1)).sum(-1),
    "hidden rewards of the others": lambda s: s.of_others(_hidden(s)).sum(-1),
    "number of the row": lambda s: torch.arange(s.reward.shape[-1]).double().expand_as(s.reward),
    "the first row": lambda s: (torch.arange(s.reward.shape[-1]) == 0).double().expand_as(s.reward),
    "another is the same": lambda s: (s.same().sum(-1) > 1).double(),
    "first token of the next": lambda s: s.tokens[..., 0].double().roll(1, -1),
    "reward of the first": lambda s: s.reward[..., :1].expand_as(s.reward),
    "all others are the same": lambda s: _all_others_same(s),
    "all are the same": lambda s: s.same().all(-1).all(-1)[..., None].double().expand_as(s.reward),
    "all others have large tokens": lambda s: (
        s.of_others(s.tokens.clamp(min=0).sum(-1).double(), 99.0).amin(-1) >= 3
    ).double(),
    "one group in 50": _one_in(50),
    "one group in 500": _one_in(500),
    "exact sum of log-probabilities": lambda s: (
        (s.evidence.rollouts.logp.sum((-2, -1)) < -8)[..., None].double() + 0 * s.reward
    ),
}
"""What no certificate by classes may be given for, unless it makes no difference on the instance."""


def _hidden(s: Seen) -> Tensor:
    assert s.evidence.token_reward is not None
    return s.evidence.token_reward[..., 0]


def _all_others_same(s: Seen) -> Tensor:
    K = s.reward.shape[-1]
    other = ~torch.eye(K, dtype=torch.bool)
    relevant = other[:, :, None] & other[:, None, :]  # k sees the pair i, j
    return (s.same()[..., None, :, :] | ~relevant).all(-1).all(-1).double()


@dataclass(frozen=True)
class Plan:
    terms: tuple[tuple[str, str, str, float], ...]
    """own, others, combined, factor"""
    kept: str
    reduction: str
    clip: bool
    of_own_tokens: str | None = None
    peek: str | None = None


@dataclass(frozen=True)
class PutTogether(Estimator):
    group_size: int = 3
    plan: Plan | None = None

    def collect(self, sampler):
        assert self.plan is not None
        rollouts = sampler.rollouts(self.group_size)
        evidence = Evidence(rollouts, sampler.response_reward(rollouts), token_reward=sampler.hidden_reward(rollouts))
        kept = KEPT[self.plan.kept]
        return evidence if kept is None else sampler.keep(evidence, kept(Seen(evidence))[..., None])

    def advantages(self, evidence):
        assert self.plan is not None
        seen = Seen(evidence)
        advantage = torch.zeros_like(seen.reward)
        for own, others, combined, factor in self.plan.terms:
            advantage = advantage + factor * COMBINED[combined](OWN[own](seen), OTHERS[others](seen), seen)
        if self.plan.peek is not None:
            advantage = advantage + 0.5 * PEEKS[self.plan.peek](seen)
        if self.plan.of_own_tokens is None:
            return advantage[..., None]
        return advantage[..., None] * (1 + OF_OWN_TOKENS[self.plan.of_own_tokens](seen))


def plans(**more: st.SearchStrategy) -> st.SearchStrategy[Plan]:
    term = st.tuples(
        st.sampled_from(sorted(OWN)), st.sampled_from(sorted(OTHERS)), st.sampled_from(sorted(COMBINED)),
        st.sampled_from([1.0, -0.4]),
    )  # fmt: skip
    return st.builds(
        Plan,
        terms=st.lists(term, min_size=1, max_size=2).map(tuple),
        kept=st.sampled_from(["all", "all", *KEPT]),
        reduction=st.sampled_from(["sum", "sequence_mean", "token_mean", "constant"]),
        clip=st.booleans(),
        **more,
    )


# --- where they are tried ---------------------------------------------------------------------------------------------


def _enumeration(vocab_size: int, horizon: int, eos: int | None, rewards: tuple[float, ...], seed: int) -> Enumeration:
    """A response has one of a few rewards, whatever its tokens earned on the way, all of them exact in binary."""
    content = instance_to_dict(random_instance(vocab_size, horizon, eos=eos, seed=seed))
    earned: dict[tuple[int, ...], float] = {(): 0.0}
    for number, node in enumerate(content["nodes"]):  # shorter prefixes come first
        prefix = tuple(node["prefix"])
        for token in range(vocab_size):
            W = (*prefix, token)
            if token == eos or len(W) == horizon:
                node["token_reward"][token] = rewards[(sum(W) + number) % len(rewards)] - earned[prefix]
            else:
                node["token_reward"][token] = (3 * number + token) % 5 / 4
                earned[W] = earned[prefix] + node["token_reward"][token]
    instance = instance_from_dict(content)
    return Enumeration(instance.mdp, instance.policy)


ENUMERATIONS = [
    _enumeration(3, 2, 0, (0.0, 1.0), 1),
    _enumeration(3, 2, 1, (0.0, 0.5, 1.0), 2),
    _enumeration(2, 3, None, (-1.0, 2.0), 3),
    _enumeration(5, 1, 0, (0.0, 1.0), 4),
]


def outright(estimator: Estimator, enumeration: Enumeration) -> tuple[Tensor, float, float] | None:
    """E g, E |g|² and the chance of being kept over all groups in all orders, straight from their definitions; None:
    no group is kept."""
    mean, square, total = torch.zeros(enumeration.scores.shape[1]).double(), 0.0, 0.0
    for groups in all_groups(enumeration, estimator.group_size, ordered=True):
        sampler = ExactSampler(enumeration, groups)
        evidence = estimator.collect(sampler)
        chance = sampler.weight if sampler.kept is None else sampler.weight * sampler.kept
        weights = token_weights(estimator, evidence, enumeration, chance.shape)
        by_edge = torch.zeros(len(chance), enumeration.n_edges).double()
        by_edge.scatter_add_(1, edges(evidence, enumeration).flatten(1), weights.flatten(1))
        g = by_edge @ enumeration.scores
        mean, square, total = mean + chance @ g, square + float(chance @ g.square().sum(1)), total + float(chance.sum())
    return (mean / total, square / total, total) if total else None


def made(plan: Plan, group_size: int) -> PutTogether:
    constant = 2 if plan.reduction == "constant" else None
    return PutTogether(group_size, plan.reduction, constant, 0.2 if plan.clip else None, plan=plan)  # pyright: ignore


def outcome(plan: Plan, enumeration: Enumeration, group_size: int) -> str:
    """certified, refused, nothing kept; fails if it is certified wrongly."""
    estimator = made(plan, group_size)
    true = outright(estimator, enumeration)
    try:
        found = moments_by(estimator, enumeration, "classes")
    except TooLarge:
        return "refused"
    except NothingKept:
        assert true is None
        return "nothing kept"
    assert true is not None
    mean, square, kept = true
    size = max(square**0.5, 1e-9)
    assert float((found.mean - mean).norm()) <= 1e-11 * size, (plan, found.method)
    assert abs(found.trace_covariance - (square - float(mean @ mean))) <= 1e-11 * size**2, (plan, found.method)
    assert abs((found.kept or 0.0) - kept) <= 1e-11, (plan, found.method)
    assert found.method is not None and found.method.name == "classes"
    return "certified"


def tried(strategy: st.SearchStrategy[Plan], examples: int, group_sizes: tuple[int, ...]) -> Counter:
    """How often each outcome was had."""
    outcomes = Counter()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(strategy, st.sampled_from(ENUMERATIONS))
    def try_one(plan: Plan, enumeration: Enumeration) -> None:
        for group_size in group_sizes:
            outcomes[outcome(plan, enumeration, group_size)] += 1

    try_one()
    return outcomes


def fast_and_slow(fast: int, slow: int):
    """A few in groups of three; many, in groups of five too."""
    return pytest.mark.parametrize(
        "examples, group_sizes", [(fast, (3,)), pytest.param(slow, (3, 5), marks=pytest.mark.slow)]
    )


HONEST = plans()
OWN_TOKENS = plans(of_own_tokens=st.sampled_from(sorted(OF_OWN_TOKENS)))
PEEKING = plans(peek=st.sampled_from(sorted(PEEKS)), of_own_tokens=st.none() | st.sampled_from(sorted(OF_OWN_TOKENS)))


def mostly_certified(outcomes: Counter) -> bool:
    return outcomes["certified"] >= 0.9 * (outcomes["certified"] + outcomes["refused"])


@fast_and_slow(10, 100)
def test_what_reads_rewards_and_lengths_is_certified_rightly(examples, group_sizes):
    assert mostly_certified(tried(HONEST, examples, group_sizes))


@fast_and_slow(4, 30)
def test_what_reads_its_own_tokens_too_is_certified_rightly(examples, group_sizes):
    assert mostly_certified(tried(OWN_TOKENS, examples, group_sizes))


@fast_and_slow(6, 70)
def test_what_peeks_is_never_certified_wrongly(examples, group_sizes):
    assert tried(PEEKING, examples, group_sizes)["refused"]


@pytest.mark.parametrize("peek", sorted(PEEKS))
@pytest.mark.slow
def test_every_peek_is_refused_or_makes_no_difference(peek):
    plan = Plan((("reward", "sum of rewards", "own - f", 1.0),), "all", "sum", False, peek=peek)
    for enumeration in ENUMERATIONS:
        for group_size in (3, 5):
            outcome(plan, enumeration, group_size)
