"""What settings are measured on: `make_bench` makes a tree that is enumerated, or an n-gram chain of any length."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.entry import Given, Proved
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.instance_files import read_instance
from llm_mdp.exact.instances import Instance, random_instance, stream
from llm_mdp.exact.ngram_gradient import expected_length, ngram_critic, reward_moments
from llm_mdp.exact.right_or_wrong import is_right_or_wrong, outcome_reward
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.hidden_rewards import HiddenReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Critic, NgramPolicy, Policy, TabularPolicy, TabularValue
from llm_mdp.variance.chains import chain_estimates, chain_of
from llm_mdp.variance.entropy import chain_entropy, mean_entropy, with_entropy
from llm_mdp.variance.measurement import Measurement, exact_measurement
from llm_mdp.variance.rewards import early_reward, sparse_reward
from llm_mdp.variance.sampled import sampled_measurement, tree_estimates
from llm_mdp.variance.setting import Setting
from llm_mdp.verify.problem import Problem

EXACT_GROUPS = 300_000
"""Groups of responses up to which a measurement takes them one by one: a second or two."""
CLASS_WEIGHTS = 20_000_000
"""Token weights up to which it asks for those of classes of responses, where groups are more: some seconds."""


class TreeBench:
    """A small token MDP: everything is known."""

    def __init__(self, instance: Instance):
        self.instance = instance
        self.problem = Problem(instance)
        self.target = self.problem.target("reward")
        self.given = self.problem.given

    @property
    def enumeration(self) -> Enumeration:
        return self.problem.enumeration

    def facts(self) -> dict[str, Any]:
        """J, |∇J|, expected length: what there is to know, JSON-able."""
        e = self.enumeration
        outcomes = is_right_or_wrong(e.response_reward)
        return {
            "J": self.problem.gradient[0], "grad_norm": float(self.target.norm()), "expected_length": e.expected_length,
            "entropy": mean_entropy(e), "success": self.problem.gradient[0] if outcomes else None, "target": "exact",
        }  # fmt: skip

    def has_few_groups(self, estimator: Estimator) -> bool:
        """Are its groups few enough to enumerate one by one?"""
        return self.enumeration.tree.n_leaves**estimator.group_size * self.enumeration.n_prompts <= EXACT_GROUPS

    def measure(self, estimator: Estimator, number: int, seed: int, known: Proved | None = None) -> Measurement:
        """Exactly where it can be, group by group or by classes of responses, else from `number` estimates.

        Args: known: see `variance.sampled_measurement`.
        """
        few, why = self.has_few_groups(estimator), ""
        if few or estimator.group_size > 1:
            most = None if few else CLASS_WEIGHTS
            magnitude = self.problem.magnitude("reward")
            try:
                return exact_measurement(estimator, self.enumeration, self.target, magnitude, classes=most)
            except TooLarge as error:
                why = str(error)
        estimates = tree_estimates(estimator, self.enumeration, number, seed)
        return replace(sampled_measurement(estimates, self.target, seed=seed, known=known), not_exact=why)


class NgramBench:
    """An n-gram policy with an n-gram reward, at any horizon: the gradient is exact, covariances are sampled."""

    def __init__(self, policy: NgramPolicy, mdp: TokenMDP):
        self.policy, self.mdp = policy, mdp
        J, (gradient,) = exact_gradient(policy, mdp)
        self.target = gradient.flatten().detach()
        self.moments = reward_moments(policy, mdp)
        self.given = GivenByChain(policy, mdp, J, math.sqrt(self.moments[1]))

    def facts(self) -> dict[str, Any]:
        length = expected_length(self.policy, self.mdp)
        return {
            "J": self.given.expected_reward, "grad_norm": float(self.target.norm()), "expected_length": length,
            "entropy": chain_entropy(self.policy, self.mdp), "success": None, "target": "exact",
        }  # fmt: skip

    def measure(self, estimator: Estimator, number: int, seed: int, known: Proved | None = None) -> Measurement:
        """From `number` estimates, see `TreeBench.measure`."""
        estimates = chain_estimates(estimator, self.policy, self.mdp, number, torch.Generator().manual_seed(seed))
        return sampled_measurement(estimates, self.target, seed=seed, known=known)


class GivenByChain(Given):
    """What is known of a chain: its values, but nothing that is a table over all prefixes."""

    def __init__(self, policy: NgramPolicy, mdp: TokenMDP, expected_reward: float, deviation: float):
        super().__init__(mdp.horizon, mdp.gamma)
        self.policy, self.mdp, self._expected_reward, self.deviation = policy, mdp, expected_reward, deviation

    @property
    def expected_reward(self) -> float | None:
        return self._expected_reward

    def critic(self, error: float = 0.0) -> Critic:
        seed = stream(0, "critic").initial_seed()
        return ngram_critic(self.policy, self.mdp, error * self.deviation, seed=seed)

    @property
    def token_reward(self) -> HiddenReward:
        return self.mdp.token_reward


def make_bench(
    setting: Setting, transformer: Callable[[TokenMDP, int], Policy] | None = None
) -> TreeBench | NgramBench:
    """Make the token MDP and the policy.

    Args: transformer: makes the policy of that name from a token MDP and a seed.

    Raises:
        ValueError: if nobody makes transformers here.
    """
    if setting.instance is not None:
        return TreeBench(read_instance(setting.instance))
    if setting.policy == "ngram":
        policy, mdp = chain_of(setting)
        return NgramBench(policy, mdp) if setting.is_long else TreeBench(_plain_instance(mdp, policy))
    generator = stream(setting.seed, "rewards")
    shape = {"gamma": setting.gamma, "n_prompts": setting.prompts, "seed": setting.seed}
    instance = random_instance(setting.vocab_size, setting.horizon, **shape)
    mdp = instance.mdp
    if setting.policy == "transformer":
        if transformer is None:
            raise ValueError("a transformer comes from llm_mdp_agents; give make_bench a function that makes it.")
        instance = replace(instance, policy=transformer(mdp, setting.seed))
    elif setting.entropy is not None:
        instance = replace(instance, policy=with_entropy(instance, setting.entropy))
    if setting.rewards == "sparse":
        instance = replace(instance, mdp=replace(mdp, token_reward=sparse_reward(instance, generator)))
    elif setting.rewards == "early":
        instance = replace(
            instance, mdp=replace(mdp, token_reward=early_reward(mdp.vocab_size, mdp.horizon, generator))
        )
    elif setting.rewards == "outcome":
        success = 0.5 if setting.success is None else setting.success
        reward = outcome_reward(mdp, instance.policy, success, generator)
        instance = replace(instance, mdp=replace(mdp, token_reward=reward))
    return TreeBench(instance)


def _plain_instance(mdp: TokenMDP, policy: NgramPolicy) -> Instance:
    """Everything is known of a chain that is short; reference and critic are not asked for."""
    flat, zero = torch.Generator(), 0.0
    reference = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, flat, zero)
    return Instance(mdp, policy, reference, TabularValue.random(mdp.tree, mdp.prompt_tokens, flat, zero))
