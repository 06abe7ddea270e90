"""One instance with the choices that claims depend on, and the exact quantities that they share."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.entry import Entry, Given
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import check_group_size
from llm_mdp.exact.instances import Instance, stream
from llm_mdp.exact.optima import process_model, regularised_optimum
from llm_mdp.exact.tree_gradient import exact_gradient, optimal_baseline
from llm_mdp.mdp.hidden_rewards import HiddenReward
from llm_mdp.sampling.policies import Critic, Policy, TabularPolicy, TabularValue
from llm_mdp.verify.certificate import unresolved
from llm_mdp.verify.geometry import geometry_of
from llm_mdp.verify.targets import Targets, parse_target
from llm_mdp.verify.weights import flatten_gradients

STALENESS = 0.5
"""How far the logits of a policy that draws in place of the policy are from its own: a standard deviation, in nats."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a claim is checked on.

    Args:
        instance: MDP, policy, reference policy, wrong critic.
        group_size: K ≥ 2 of the group estimators.
        beta: β > 0 of DPO, RTO and PRIME.
        prompts: P ≥ 1, prompts whose groups are in one update.
    """

    instance: Instance
    group_size: int = 3
    beta: float = 0.7
    prompts: int = 1

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"--group-size is {self.group_size}; group baselines need at least 2 responses to a prompt."
            )
        check_group_size(self.group_size)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"--beta is {self.beta}; it must be above 0 and finite.")
        if self.prompts < 1:
            raise ValueError(f"--prompts is {self.prompts}; an update has the groups of at least 1 prompt.")

    @cached_property
    def enumeration(self) -> Enumeration:
        return Enumeration(self.instance.mdp, self.instance.policy)

    @cached_property
    def gradient(self) -> tuple[float, list[Tensor]]:
        """J and ∇J, one tensor a parameter."""
        return exact_gradient(self.instance.policy, self.instance.mdp)

    def target(self, expression: str = "reward") -> Float[Tensor, " parameters"]:
        """∇ of an expression of `targets.TERMS`: `reward` for ∇J, `reward - 0.3 kl`; a penalty alone is descended.

        Raises:
            ValueError: if it is no such expression.
        """
        if expression not in self._targets:
            terms = parse_target(expression).items()
            gradient = torch.stack([factor * self._term(term) for term, factor in terms]).sum(0)
            size = sum(abs(factor) * self._targets_of.magnitude(term) for term, factor in terms)
            # Implicit rewards are differences of log-probabilities, times β.
            implicit = self.beta * self._targets_of.magnitude("kl") if "reward" in expression else 0.0
            self._targets[expression] = gradient, math.hypot(size, implicit)
        return self._targets[expression][0]

    def magnitude(self, expression: str = "reward") -> float:
        """Size of the terms that the target is a sum of, and of those that estimators of it add up."""
        self.target(expression)
        return self._targets[expression][1]

    def has_gradient(self, expression: str = "reward") -> bool:
        """Is the target more than rounding?"""
        return unresolved(float(self.target(expression).norm()), self.magnitude(expression)) is None

    def _term(self, term: str) -> Float[Tensor, " parameters"]:
        if term == "reward":
            return flatten_gradients(self.gradient[1], self.gradient[1])
        return self._targets_of.gradient(term)

    @cached_property
    def _targets(self) -> dict[str, tuple[Float[Tensor, " parameters"], float]]:
        return {}

    @cached_property
    def _targets_of(self) -> Targets:
        reference = Enumeration(self.instance.mdp, self.instance.reference)
        return Targets(self.enumeration, reference.leaf_logp(), self.group_size)

    @cached_property
    def given(self) -> "GivenByProblem":
        """What named estimators are made from here."""
        return GivenByProblem(self)

    def make(self, entry: Entry, **options: Any) -> Estimator:
        """The estimator of an entry of the catalogue, in groups of this problem's size if it compares responses."""
        groups = {"group_size": self.group_size} if entry.compares else {}
        return entry.make(self.given, **(groups | options))

    @property
    def exact_u(self) -> TabularValue:
        """U(p) = E[RM(W) | W starts with p] as a critic."""
        return self.enumeration.exact_u

    @cached_property
    def exact_v(self) -> TabularValue:
        """V(p), the expected discounted future reward, as a critic."""
        return TabularValue(self.enumeration.tree, self.enumeration.prompt, self.enumeration.values.V)

    @cached_property
    def dpo_policy(self) -> TabularPolicy:
        """π* ∝ ref exp(RM/β)."""
        return regularised_optimum(self.instance.mdp, self.instance.reference, self.beta)

    @cached_property
    def median(self) -> float:
        """Median of RM(W) under the policy."""
        e = self.enumeration
        reward, order = e.response_reward.flatten().sort()
        chance = (e.mdp.prompt_probability[:, None] * e.probability).flatten()[order].cumsum(0)
        return float(reward[int((chance < 0.5).sum().clamp(max=len(reward) - 1))])

    @cached_property
    def process_model(self) -> TabularPolicy:
        return process_model(self.enumeration, self.instance.reference, self.beta, self.median)

    @cached_property
    def generic(self) -> bool:
        """Could a bias of direction show at all? Not with a gradient of one dimension, or rewards of two values."""
        e = self.enumeration
        values = min(len(reward.unique()) for reward in e.response_reward)
        return values > 2 and geometry_of(e).rank() > 1


class GivenByProblem(Given):
    """Everything is known of an instance that was enumerated."""

    def __init__(self, problem: Problem):
        mdp = problem.instance.mdp
        super().__init__(mdp.longest, mdp.gamma, problem.beta)
        self.problem = problem

    @property
    def expected_reward(self) -> float | None:
        return self.problem.gradient[0]

    def critic(self, error: float = 0.0) -> Critic:
        if not error:
            return self.problem.exact_u
        e = self.problem.enumeration
        deviation = math.sqrt(float(e.mdp.prompt_probability @ e.values.variance[0][:, 0]))
        noise = TabularValue.random(e.tree, e.prompt, stream(0, "critic"), error * deviation)
        return TabularValue(e.tree, e.prompt, [level + wrong for level, wrong in zip(e.values.U, noise.levels)])

    def drawn_value(self, temperature: float) -> Critic:
        return self.problem.enumeration.at_temperature(temperature).exact_u

    @property
    def future_value(self) -> Critic:
        return self.problem.exact_v

    @property
    def wrong_critic(self) -> Critic:
        return self.problem.instance.value

    @property
    def optimal_baseline(self) -> Critic:
        """By the policy's own scores, state by state."""
        e = self.problem.enumeration
        norms = e.scores.square().sum(-1).view(e.n_prompts, e.tree.n_nodes, e.tree.vocab_size)
        levels = [level.transpose(1, 2) for level in norms.split(e.tree.level_sizes, dim=1)]
        return TabularValue(e.tree, e.prompt, optimal_baseline(e.mdp, e.values, levels))

    @property
    def reference(self) -> Policy:
        return self.problem.instance.reference

    @property
    def behaviour(self) -> Policy:
        """The policy's logits and independent normal ones of standard deviation `STALENESS`."""
        e = self.problem.enumeration
        noise = TabularPolicy.random(e.tree, e.prompt, stream(0, "behaviour"), STALENESS)
        return TabularPolicy(e.tree, e.prompt, [own + other.detach() for own, other in zip(e.logits, noise.levels)])

    @property
    def dpo_policy(self) -> Policy:
        return self.problem.dpo_policy

    @property
    def process_model(self) -> Policy:
        return self.problem.process_model

    @property
    def median(self) -> float:
        return self.problem.median

    @property
    def token_reward(self) -> HiddenReward:
        return self.problem.instance.mdp.token_reward
