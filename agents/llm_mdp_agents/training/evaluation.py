"""How good a policy is: rewards on fixed prompts, drawn and greedy; on small token MDPs the expectation itself."""

from typing import Any

import numpy as np
import torch

from llm_mdp.exact.tree_gradient import node_logits, tree_values
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.task import Task

EXACT_UP_TO = 20_000
"""Responses to all prompts together up to which the expected reward is computed rather than estimated."""


@torch.no_grad()
def evaluate(policy: Policy, task: Task, prompts: int = 256, seed: int = 0) -> dict[str, float]:
    """Mean reward at temperature 1 with a 95 % interval (normal, over prompts), mean greedy reward, and E RM where it
    can be computed.

    Args:
        seed: of the prompts and the draws; the same seed asks the same questions.

    Raises:
        ValueError: if there are no prompts, or the seed is no seed.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}; an evaluation asks at least 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    sampler, greedy = _sampler(policy, task, prompts, seed), _sampler(policy, task, prompts, seed)
    rollouts = sampler.rollouts(1)
    reward = sampler.response_reward(rollouts)
    error = 1.96 * float(reward.std(correction=1)) / prompts**0.5 if prompts > 1 else 0.0
    mean = float(reward.mean())
    first = greedy.rollouts(1)
    best = greedy.branches(first, first.mask & (first.mask.cumsum(-1) == 1), (0.0,)).reward
    figures = {"eval/reward": mean, "eval/reward_low": mean - error, "eval/reward_high": mean + error}
    figures["eval/greedy_reward"] = float(best.mean())
    mdp = task.mdp
    if mdp is not None and mdp.tree.n_leaves * len(mdp.prompts) <= EXACT_UP_TO:
        figures["eval/exact_reward"] = expected_reward(policy, mdp)
    return figures


@torch.no_grad()
def expected_reward(policy: Policy, mdp: Any) -> float:
    """E RM(W), exactly."""
    values = tree_values(mdp, node_logits(policy, mdp), mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens))
    return float(mdp.prompt_probability @ values.U[0][:, 0])


def samples(policy: Policy, task: Task, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Some prompts, responses and rewards in words."""
    sampler = _sampler(policy, task, number, seed)
    rollouts = sampler.rollouts(1)
    reward = sampler.response_reward(rollouts)
    return [
        {
            "prompt": task.decode(prompt[prompt >= 0].tolist()),
            "response": task.decode(tokens[tokens >= 0].tolist()),
            "reward": float(each),
        }
        for prompt, tokens, each in zip(rollouts.prompt, rollouts.tokens, reward)
    ]


def _sampler(policy: Policy, task: Task, prompts: int, seed: int) -> TaskSampler:
    generator = torch.Generator().manual_seed(seed)
    return TaskSampler(policy, task, generator, np.random.default_rng([seed, 1]), prompts)
