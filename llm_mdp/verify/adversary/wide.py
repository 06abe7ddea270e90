"""One large token MDP whose prompts are instances that know nothing of each other."""

from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import stream
from llm_mdp.exact.tree_gradient import tree_values
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.token_mdp import Prompt
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.problem import STALENESS, GivenByProblem, Problem


@cache
def distinct(number: int) -> tuple[Prompt, ...]:
    """So many prompts, equally likely; none looks like that of the instance in its place, so that it shows if an
    estimator reads them."""
    width = number.bit_length()
    return tuple(Prompt(tuple(map(int, f"{k + 1:0{width}b}")), 1 / number) for k in range(number))


class GivenAlone(GivenByProblem):
    """What estimators are made of, where the prompts are instances that know nothing of each other."""

    centred = False

    @property
    def expected_reward(self) -> float | None:
        """None, as every instance has its own: the sampler takes it off the rewards instead."""
        self.centred = True
        return None

    @property
    def behaviour(self) -> TabularPolicy:
        """The same noise for all of them as for each alone."""
        problem = self.problem
        assert isinstance(problem, SideBySide)
        e, each = problem.enumeration, problem.prompts_each
        noise = TabularPolicy.random(e.tree, e.prompt[:each], stream(0, "behaviour"), STALENESS)
        wide = [level.detach().repeat(e.n_prompts // each, 1, 1) for level in noise.levels]
        return TabularPolicy(e.tree, e.prompt, [own + other for own, other in zip(e.logits, wide)])


@dataclass(frozen=True, eq=False)
class SideBySide(Problem):
    """A problem whose prompts are instances."""

    prompts_each: int = 1

    @cached_property
    def enumeration(self) -> Enumeration:
        return AllAtOnce(self.instance.mdp, self.instance.policy)

    @cached_property
    def given(self) -> GivenAlone:
        return GivenAlone(self)


class AllAtOnce(Enumeration):
    """Looks up all prompts in one call, and checks them once."""

    @cached_property
    def remaining(self) -> list[Tensor]:
        counting = copy(self.mdp)
        for name, value in {"gamma": 1.0, "discount": torch.ones_like(self.mdp.discount)}.items():
            object.__setattr__(counting, name, value)
        ones = [torch.full_like(level, float(own)) for level, own in zip(self.logits, self.mdp.policy_steps)]
        return tree_values(counting, self.logits, ones).V

    def _per_leaf(self, function) -> Tensor:
        shape = (self.n_prompts, *self.tokens.shape)
        prompt = self.prompt[:, None].expand(*shape[:2], -1)
        with torch.no_grad():
            return function(prompt, self.tokens.expand(shape), self.mask.expand(shape)).to(torch.float64)


class Centred(ExactSampler):
    """Rewards less the expected one of their own instance, where an estimator would have taken it off."""

    less: Float[Tensor, " W"] | None = None

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, "W B"]:
        reward = super().response_reward(rollouts)
        return reward if self.less is None else reward - self.less[:, None]
