"""What a state is worth, without a critic: from the other responses of a group, from a greedy response, from branches.

A baseline for step t may use anything but wₜ and what came after it (the paper, Lemma 2).
"""

import torch
from jaxtyping import Bool, Float, Int
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
    """mean(r) over the responses to the same prompt, the response itself included (GRPO, Eq. 34)."""
    grouped = groups(reward, group_size)
    return grouped.mean(-1, keepdim=True).expand_as(grouped).flatten(-2)


def group_std(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """std(r) over the responses to the same prompt, divided by K - 1 (ddof 1)."""
    grouped = groups(reward, group_size)
    differences = grouped - grouped[..., :1]
    return differences.std(-1, correction=1, keepdim=True).expand_as(grouped).flatten(-2)


def leave_one_out(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """Mean of the other K - 1 responses to the same prompt (RLOO, Eq. 36-37 with the sum over j ≠ k)."""
    grouped = groups(reward, group_size)
    return ((grouped.sum(-1, keepdim=True) - grouped) / (group_size - 1)).flatten(-2)


def paper_leave_one_out(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """Eq. 36 as printed: the sum over all K, itself included, divided by K - 1. Claim: `rloo-eq36`, shrinks the
    gradient."""
    grouped = groups(reward, group_size)
    return (grouped.sum(-1, keepdim=True) / (group_size - 1)).expand_as(grouped).flatten(-2)


def centred(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """rₖ - `group_mean`, exactly 0 where all rewards of the group are equal but for rounding (`has_signal`), so that no
    division by a small number can make a gradient of it."""
    differ = has_signal(reward, group_size)[..., None].expand_as(groups(reward, group_size)).flatten(-2)
    return torch.where(differ, reward - group_mean(reward, group_size), 0.0)


def length_weighted_mean(
    reward: Float[Tensor, "*worlds B"], length: Int[Tensor, "*worlds B"], group_size: int, *, own: bool
) -> Float[Tensor, "*worlds B"]:
    """Σ lenⱼ rⱼ / Σ lenⱼ over the responses to the same prompt (OPO, Hao et al. 2025), lengths in tokens; the response
    itself included or (`own=False`) left out.

    It is the baseline of least variance where |∇log π(W)|² grows with the length alone. Claims: `opo` biased, its
    weights know the response's own length; `opo-left-out` unbiased.
    """
    count = groups(length.to(reward.dtype), group_size)
    total = count * groups(reward, group_size)
    total_sum, count_sum = total.sum(-1, keepdim=True), count.sum(-1, keepdim=True)
    mean = total_sum / count_sum if own else (total_sum - total) / (count_sum - count)
    return mean.expand_as(total).flatten(-2)


def lead_of_best(reward: Float[Tensor, "*worlds B"], group_size: int) -> Float[Tensor, "*worlds B"]:
    """rₖ less the best of the other responses to the same prompt where that is positive, else 0: what the best response
    adds to the maximum of its group. Claim: `pass-at-k`."""
    grouped = groups(reward, group_size)
    first, second = grouped.topk(2, dim=-1).values.unbind(-1)
    lead = torch.where(grouped == first[..., None], (first - second)[..., None], 0.0)
    return lead.flatten(-2)


def group_prefix_value(
    reward: Float[Tensor, "*worlds B"], tokens: Int[Tensor, "*worlds B T"], group_size: int
) -> Float[Tensor, "*worlds B T1"]:
    """v̂(W₀,ₜ), t = 0 … T: mean RM of the responses to the same prompt that begin with these t tokens, the response
    itself among them (TEMPO, Tran et al. 2025). v̂(W₀,₀) is `group_mean`, and v̂(W) = RM(W).

    Claims: `tempo-td`, `tempo`, biased: the value of a prefix holds the response's own reward, and so knows wₜ.
    """
    text, grouped = tokens.unflatten(-2, (-1, group_size)), groups(reward, group_size)[..., None, :]
    # Token by token, so that no table of all pairs and all steps is made.
    alike = torch.ones(*text.shape[:-1], group_size, dtype=torch.bool, device=tokens.device)
    found = [_mean_of(alike, grouped)]
    for token in text.unbind(-1):
        alike = alike & (token[..., :, None] == token[..., None, :])
        found.append(_mean_of(alike, grouped))
    return torch.stack(found, dim=-1).flatten(-3, -2)


def _mean_of(chosen: Bool[Tensor, "*rows K"], value: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows"]:
    """Mean of the chosen ones."""
    return torch.where(chosen, value, 0.0).sum(-1) / chosen.sum(-1)


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
    own: bool = True,
) -> Float[Tensor, "*worlds B T1"]:
    """Eq. 31 as printed: Ūₜ = average RM of all drawn W^(k), k ≥ t, and (`own`) of W itself; RM(W) from the end on.

    Claims: `trepo-eq31`, `own=False` `trepo-eq31-without-w`, biased: W^(k) with k > t contains wₜ, so the baseline of
    step t is correlated with wₜ. Where all responses have T tokens and M draws a step, step t keeps M / ((T - t + 1) M
    + 1) of its signal, without W 1 / (T - t + 1). Use `branch_mean`.
    """
    total, count = _branch_sums(branches, rollouts)
    drawn = rollouts.mask & boundary
    later_total = torch.where(drawn, total, 0.0).flip(-1).cumsum(-1).flip(-1)
    later_count = torch.where(drawn, count, 0).flip(-1).cumsum(-1).flip(-1)
    if own:
        later_total, later_count = later_total + response_reward[..., None], later_count + 1
    pooled = later_total / later_count.clamp(min=1)
    return torch.cat([pooled, response_reward.expand(pooled.shape[:-1])[..., None]], dim=-1)


def _branch_sums(branches: Branches, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Sum of the rewards and number of the branches from before every token: (…, B, T) and (B, T)."""
    rows, steps = rollouts.tokens.shape[-2:]
    place = branches.row * steps + branches.step
    total = torch.zeros((*branches.reward.shape[:-1], rows * steps), dtype=branches.reward.dtype)
    total = total.index_add(-1, place, branches.reward)
    count = torch.bincount(place, minlength=rows * steps)
    return total.unflatten(-1, (rows, steps)), count.reshape(rows, steps)
