"""Hidden rewards of settings, drawn at random: for one token in ten, at the beginning only, right or wrong at the
end."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
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


def outcome_reward(instance: Instance, success: float, generator: torch.Generator) -> HiddenReward:
    """1 / γᵗ⁻¹ for the last token of randomly chosen responses; RM is then 1 or 0. The policy is right with about this
    probability over all prompts, the first of which is the easiest and the last the hardest."""
    mdp, tree = instance.mdp, instance.mdp.tree
    e = Enumeration(mdp, instance.policy)
    levels = [torch.zeros(e.n_prompts, tree.vocab_size, size, dtype=torch.float64) for size in tree.level_sizes]
    last = e.length - 1
    every = torch.arange(tree.n_leaves)
    token, prefix = e.tokens[every, last], tree.prefix_index(e.tokens)[every, last]
    for prompt, (probability, wanted) in enumerate(zip(e.probability, successes(success, mdp.prompt_probability))):
        right = _subset(probability, wanted, generator)
        for level in range(tree.horizon):
            here = right[last[right] == level]
            levels[level][prompt, token[here], prefix[here]] = mdp.gamma**-level
    return TableReward(tree, e.prompt, levels)


def successes(success: float, prompt_probability: Float[Tensor, " P"]) -> list[float]:
    """Probabilities of being right whose mean over prompts is `success`; the odds of the easiest are e³ = 20 times
    those of the hardest."""
    ease = (
        torch.linspace(1.5, -1.5, len(prompt_probability), dtype=torch.float64)
        if len(prompt_probability) > 1
        else torch.zeros(1)
    )
    low, high = -50.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if float(prompt_probability @ (middle + ease).sigmoid().double()) < success
            else (low, middle)
        )
    return (high + ease).sigmoid().tolist()


def _subset(probability: Float[Tensor, " N"], wanted: float, generator: torch.Generator) -> Int[Tensor, " R"]:
    """Randomly chosen responses whose probabilities sum to about `wanted`: in random order, all that fit; from the
    smaller side."""
    order = torch.randperm(len(probability), generator=generator)
    missing, chosen, others = min(wanted, 1 - wanted), [], []
    for leaf, chance in zip(order.tolist(), probability[order].tolist()):
        fits = chance <= missing
        missing -= chance * fits
        (chosen if fits else others).append(leaf)
    return torch.tensor(chosen if wanted <= 0.5 else others, dtype=torch.int64)


def early_reward(vocab_size: int, horizon: int, generator: torch.Generator) -> PositionReward:
    """A normal number for every token at every step of the first quarter, rounded up; 0 afterwards."""
    weights = torch.randn(horizon, vocab_size, generator=generator, dtype=torch.float64)
    weights[-(-horizon // 4) :] = 0.0
    return PositionReward(weights)
