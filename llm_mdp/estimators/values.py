"""What a state is worth, without a critic: from the other responses of a group, from a greedy response, from branches.

A baseline for step t may use anything but wₜ and what came after it (the paper, Lemma 2).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.sampling.evidence import Branches, Rollouts


def groups(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds P K"]:
    """Rows of one prompt, together. Raises ValueError for a group of one or a batch that is no whole number of
    groups."""
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}; a group baseline needs at least 2 responses to a prompt.")
    if reward.shape[-1] % group_size:
        raise ValueError(f"{reward.shape[-1]} rows are not a whole number of groups of {group_size}.")
    return reward.unflatten(-1, (-1, group_size))


def group_mean(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """mean(r) over the responses to the same prompt, the response itself included (GRPO, Eq. 35)."""
    grouped = groups(reward, group_size)
    return grouped.mean(-1, keepdim=True).expand_as(grouped).flatten(-2)


def group_std(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """std(r) over the responses to the same prompt, divided by K - 1 (ddof 1)."""
    grouped = groups(reward, group_size)
    return grouped.std(-1, correction=1, keepdim=True).expand_as(grouped).flatten(-2)


def leave_one_out(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """Mean of the other K - 1 responses to the same prompt (RLOO, Eq. 36-37 with the sum over j ≠ k)."""
    grouped = groups(reward, group_size)
    return ((grouped.sum(-1, keepdim=True) - grouped) / (group_size - 1)).flatten(-2)


def paper_leave_one_out(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """Eq. 36 as printed: the sum over all K, itself included, divided by K - 1. Claim: `rloo-eq36`, shrinks the
    gradient."""
    grouped = groups(reward, group_size)
    return (grouped.sum(-1, keepdim=True) / (group_size - 1)).expand_as(grouped).flatten(-2)


def has_signal(reward: Float[Tensor, "*worlds B"], group_size: int) -> Bool[Tensor, "*worlds P"]:
    """Do the rewards of a group differ, by more than the rounding (1e-12 of the largest) of sums that are equal on
    paper?"""
    grouped = groups(reward, group_size)
    return grouped.amax(-1) - grouped.amin(-1) > 1e-12 * grouped.abs().amax(-1)


def branch_mean(branches: Branches, rollouts: Rollouts) -> Float[Tensor, "*worlds B T1"]:
    """Mean reward of the branches drawn from the prefix before step t; 0 where there are none and from the end on.

    E RM(W^(t)) = U(W₀,ₜ₋₁): an unbiased value of the prefix, independent of wₜ.
    """
    total, count = _branch_sums(branches, rollouts)
    value = torch.where(rollouts.mask, total / count.clamp(min=1), 0.0)
    return torch.cat([value, torch.zeros_like(value[..., :1])], dim=-1)


def pooled_branches(
    branches: Branches,
    response_reward: Float[Tensor, "*worlds B"],
    rollouts: Rollouts,
    boundary: Bool[Tensor, "*worlds B T"],
) -> Float[Tensor, "*worlds B T1"]:
    """Eq. 31 as printed: Ūₜ = average RM of all drawn W^(k), k ≥ t, and of W itself; RM(W) from the end on.

    Claim: `trepo-eq31`, biased: W^(k) with k > t contains wₜ, so the baseline of step t is correlated with wₜ. Use
    `branch_mean`.
    """
    total, count = _branch_sums(branches, rollouts)
    drawn = rollouts.mask & boundary
    later_total = torch.where(drawn, total, 0.0).flip(-1).cumsum(-1).flip(-1)
    later_count = torch.where(drawn, count, 0).flip(-1).cumsum(-1).flip(-1)
    pooled = (later_total + response_reward[..., None]) / (later_count + 1)
    return torch.cat([pooled, response_reward.expand(pooled.shape[:-1])[..., None]], dim=-1)


def _branch_sums(branches: Branches, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Sum of the rewards and number of the branches from before every token: (…, B, T) and (B, T)."""
    rows, steps = rollouts.tokens.shape[-2:]
    place = branches.row * steps + branches.step
    total = torch.zeros((*branches.reward.shape[:-1], rows * steps), dtype=branches.reward.dtype)
    total = total.index_add(-1, place, branches.reward)
    count = torch.bincount(place, minlength=rows * steps)
    return total.unflatten(-1, (rows, steps)), count.reshape(rows, steps)
