"""Rewards that say right or wrong: RM(W) is 1 for some responses of a tree, chosen at random, and 0 for the others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Policy


def is_right_or_wrong(response_reward: Float[Tensor, "*shape"]) -> bool:
    """Is every RM(W) 0 or 1, but for rounding?"""
    return bool(torch.minimum(response_reward.abs(), (response_reward - 1).abs()).max() < 1e-9)


def outcome_reward(mdp: TokenMDP, policy: Policy, success: float, generator: torch.Generator) -> TableReward:
    """1 / γᵗ⁻¹ for the last token of randomly chosen responses; RM is then 1 or 0. The policy is right with about this
    probability over all prompts, the first of which is the easiest and the last the hardest.

    Raises:
        TooLarge: if the responses cannot be enumerated.
        ValueError: for a probability that is not between 0 and 1.
    """
    if not 0 < success < 1:
        raise ValueError(f"success is {success}; the probability of a right response must be above 0 and below 1.")
    tree = mdp.tree
    e = Enumeration(mdp, policy)
    levels = [torch.zeros(e.n_prompts, tree.vocab_size, size, dtype=torch.float64) for size in tree.level_sizes]
    last = (e.tokens >= 0).sum(-1) - 1
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
