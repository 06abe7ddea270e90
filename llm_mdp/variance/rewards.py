"""Hidden rewards of settings, drawn at random: for one token in ten, or at the beginning only (right or wrong at the
end: `exact.right_or_wrong`)."""

import torch

from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.hidden_rewards import HiddenReward, PositionReward, TableReward

SPARSE = 0.1
"""Share of the (prefix, token) pairs that have a reward if rewards are sparse."""


def sparse_reward(instance: Instance, generator: torch.Generator) -> HiddenReward:
    """A normal number for one (prefix, token) pair in ten, 0 for the others."""
    tree, prompts = instance.mdp.tree, instance.mdp.prompt_tokens
    shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
    levels = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    chosen = [torch.rand(shape, generator=generator, dtype=torch.float64) < SPARSE for shape in shapes]
    return TableReward(tree, prompts, [torch.where(which, level, 0.0) for which, level in zip(chosen, levels)])


def early_reward(vocab_size: int, horizon: int, generator: torch.Generator) -> PositionReward:
    """A normal number for every token at every step of the first quarter, rounded up; 0 afterwards."""
    weights = torch.randn(horizon, vocab_size, generator=generator, dtype=torch.float64)
    weights[-(-horizon // 4) :] = 0.0
    return PositionReward(weights)
