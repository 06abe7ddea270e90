"""An estimator as a function of what it is shown: any responses, with any rewards, give the weight of every token."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.groups import Groups, all_groups
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.verify.certificate import Certificate, judge
from llm_mdp.verify.check import check_prompts
from llm_mdp.verify.moments import Moments, updates_first
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import Precision, check_worlds, token_weights

TOLERANCE = 1e-5
"""Weights are the same when they differ by less than this part of the largest: looser than float32 is exact."""


@dataclass(frozen=True)
class Shown:
    """What an estimator is shown, world by world: responses by their number in the enumeration, and their rewards,
    which need not be the true ones."""

    prompt: Int[Tensor, " W"]
    leaf: Int[Tensor, "W K"]
    reward: Float[Tensor, "W K"]

    def with_response(self, k: int, leaf: Int[Tensor, " W"], reward: Float[Tensor, " W"]) -> "Shown":
        """The same, but for response k."""
        leaves, rewards = self.leaf.clone(), self.reward.clone()
        leaves[:, k], rewards[:, k] = leaf, reward
        return Shown(self.prompt, leaves, rewards)


Weights = Callable[[Shown], Float[Tensor, "W K T"]]
"""K times the weight that every token's score gets: the advantage, where the loss is a mean over K responses of sums
over tokens."""


class BlackBox:
    """The weights that an estimator gives, asked again for whatever is shown.

    Responses are drawn from the policy itself, all groups are kept and the first update is taken, whatever the
    estimator asks its sampler for; what it asked for is remembered.

    Args:
        estimator: whose weights.
        problem: on which instance.
        exact_values: a critic's values are the exact ones, whichever critic is asked.
        own_branches: branches are drawn from the policy itself, whatever temperature is asked for.
    """

    def __init__(
        self, estimator: Estimator, problem: Problem, *, exact_values: bool = False, own_branches: bool = False
    ):
        self.estimator, self.problem, self.enumeration = estimator, problem, problem.enumeration
        self.exact_values, self.own_branches = exact_values, own_branches
        self.asked: set[str] = {"a second update"} if updates_first(estimator) else set()
        """Of: another temperature, another policy, groups left out, values, tempered branches, a second update."""

    @property
    def group_size(self) -> int:
        return self.estimator.group_size

    def __call__(self, shown: Shown) -> Float[Tensor, "W K T"]:
        parts = zip(shown.prompt.split(50_000), shown.leaf.split(50_000), shown.reward.split(50_000))
        return torch.cat([self._weights(Shown(*part)) for part in parts])

    def _weights(self, shown: Shown) -> Float[Tensor, "W K T"]:
        sampler = _Shower(self, shown)
        evidence = self.estimator.collect(sampler)
        weights = token_weights(self.estimator, evidence, self.enumeration, tuple(shown.prompt.shape))
        if not torch.isfinite(weights).all():
            raise ValueError("its weights are not finite for some rewards; look for a division by zero.")
        return self.group_size * weights

    def check_meeting(self, check: Literal["worlds", "prompts"]) -> None:
        """Raise EstimatorError if worlds meet, or prompts of a batch."""
        shown = self.random(32, seed=9)
        evidence = self.estimator.collect(_Shower(self, shown))
        if check == "prompts":
            check_prompts(self.estimator, evidence)
        else:
            weights = token_weights(self.estimator, evidence, self.enumeration, tuple(shown.prompt.shape))
            check_worlds(self.estimator, evidence, weights, self.enumeration)

    def changed(self, **options: bool) -> "BlackBox":
        """The same estimator, differently served."""
        served = {"exact_values": self.exact_values, "own_branches": self.own_branches}
        return BlackBox(self.estimator, self.problem, **(served | options))

    def random(self, worlds: int, seed: int) -> Shown:
        """Responses and rewards at random, independent of each other."""
        generator, e = torch.Generator().manual_seed(seed), self.enumeration
        shape = (worlds, self.group_size)
        return Shown(
            torch.randint(e.n_prompts, (worlds,), generator=generator),
            torch.randint(e.tree.n_leaves, shape, generator=generator),
            torch.randn(shape, generator=generator, dtype=torch.float64),
        )

    @cached_property
    def _unordered(self) -> bool:
        """Does the order of the responses in a group only order their weights?"""
        shown = self.random(64, seed=5)
        weights, every = self(shown), torch.arange(self.group_size)
        return all(
            same(self(Shown(shown.prompt, shown.leaf[:, order], shown.reward[:, order])), weights[:, order])
            for order in (every.roll(1), torch.cat([every[:2].flip(0), every[2:]]))
        )

    def certificate(self, weights: Weights) -> Certificate:
        """The exact certificate of any weights for responses with their true rewards; of its spread nothing is said."""
        e, problem = self.enumeration, self.problem
        mean, square = torch.zeros(e.n_edges, dtype=torch.float64), 0.0
        for groups in all_groups(e, self.group_size, ordered=not self._unordered):
            prompt, leaf = groups.which_prompt, groups.leaf
            place = (prompt[:, None], leaf)
            chance = groups.weight * e.probability[place].prod(-1)
            given = weights(Shown(prompt, leaf, e.response_reward[place])) / self.group_size * e.mask[leaf]
            edge = e.edge[place]
            mean.index_add_(0, edge.flatten(), (chance[:, None, None] * given).flatten())
            square += float((chance[:, None, None] * given.square() * e.gram.diagonal()[edge]).sum())
        moments = Moments(e.scores.T @ mean, 0.0, math.sqrt(square), precision=self._precision)
        return judge(moments, problem.target("reward"), problem.magnitude("reward"))

    @cached_property
    def _precision(self) -> str:
        with Precision() as precision:
            self(self.random(4, seed=6))
        return precision.coarsest


def same(one: Tensor, other: Tensor, size: float | None = None) -> bool:
    """Do they differ by rounding only (of the largest, or of `size`)?"""
    size = max(float(one.abs().max()), float(other.abs().max())) if size is None else size
    return float((one - other).abs().max()) <= TOLERANCE * size


class _Shower(ExactSampler):
    """Hands an estimator what it is to be shown."""

    def __init__(self, box: BlackBox, shown: Shown):
        worlds = torch.ones(len(shown.prompt), dtype=torch.float64)
        super().__init__(box.enumeration, Groups(shown.prompt, shown.leaf, worlds))
        self.box, self.shown = box, shown

    def rollouts(self, group_size, temperature=1.0, behaviour=None):
        if temperature != 1:
            self.box.asked.add("another temperature")
        if behaviour is not None:
            self.box.asked.add("another policy")
        return super().rollouts(group_size)

    def response_reward(self, rollouts):
        return self.shown.reward

    def value(self, critic, rollouts):
        self.box.asked.add("values")
        return super().value(self.enumeration.exact_u if self.box.exact_values else critic, rollouts)

    def branches(self, rollouts, boundary, temperatures=(1.0,)):
        if set(temperatures) != {1.0}:
            self.box.asked.add("tempered branches")
        own = (1.0,) * len(temperatures)
        return super().branches(rollouts, boundary, own if self.box.own_branches else temperatures)

    def keep(self, evidence, groups):
        if not bool(groups.all()):
            self.box.asked.add("groups left out")
        return evidence
