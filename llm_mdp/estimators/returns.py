"""From token rewards and values of prefixes to advantages."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    token_reward: Float[Tensor, "*worlds B T"],
    value: Float[Tensor, "*worlds B T1"],
    mask: Bool[Tensor, "*worlds B T"],
    *,
    lam: float,
    gamma: float = 1.0,
    boundary: Bool[Tensor, "*worlds B T"] | None = None,
) -> Float[Tensor, "*worlds B T"]:
    """Generalised advantage estimation, over tokens or over segments.

    Âₛ = Σₗ (γλ)ˡ δₛ₊ₗ,   δₛ = (rewards of segment s) + γ vₛ₊₁ - vₛ          (Schulman et al. 2016, Eq. 16)

    A segment begins at every True of `boundary` and each of its tokens gets Âₛ; without `boundary` every token is a
    segment. Tokens that the policy did not choose (mask False) are passed over; the value after the last policy token
    is 0.

    Args: lam, gamma: in [0, 1]. gamma discounts from segment to segment.
    Raises: ValueError when lam or gamma is out of range, or when the first policy token is no boundary.
    Claim: unbiased at the exact value for every lam, and for any prefix-only value at lam = 1, gamma = 1
        (`gae-exact-*`, `gae-wrong-1`); `trepo-segment`, `vineppo`, `ma-rlhf` over segments that a stopping rule marks.
    """
    for name, number in (("lam", lam), ("gamma", gamma)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; it must be in [0, 1].")
    boundary = mask if boundary is None else boundary & mask
    if not torch.equal(boundary.any(-1), mask.any(-1)) or bool((mask & ~(boundary.cumsum(-1) > 0)).any()):
        raise ValueError("The first policy token of a response must begin a segment; add it to the boundary.")
    every_token = boundary is mask
    reward = following_value = following = torch.zeros((), dtype=token_reward.dtype)
    advantages = []
    for t in reversed(range(mask.shape[-1])):
        begins = boundary[..., t]
        reward = reward + torch.where(mask[..., t], token_reward[..., t], 0.0)
        advantage = reward + gamma * following_value - value[..., t] + gamma * lam * following
        advantages.append(advantage)
        following = torch.where(begins, advantage, following)
        following_value = torch.where(begins, value[..., t], following_value)
        reward = torch.where(begins, 0.0, reward)
    advantage = torch.stack(advantages[::-1], dim=-1)
    return torch.where(mask, advantage if every_token else _spread(advantage, boundary), 0.0)


def return_to_go(
    token_reward: Float[Tensor, "*worlds B T"], mask: Bool[Tensor, "*worlds B T"], gamma: float = 1.0
) -> Float[Tensor, "*worlds B T"]:
    """Gₜ = Σₖ≥ₜ γᵏ⁻ᵗ rₖ (the paper, Remark 2): `gae` with no value and lam = 1."""
    value = torch.zeros((*token_reward.shape[:-1], token_reward.shape[-1] + 1), dtype=token_reward.dtype)
    return gae(token_reward, value, mask, lam=1.0, gamma=gamma)


def discounted_to_go(
    token_reward: Float[Tensor, "*worlds B T"], mask: Bool[Tensor, "*worlds B T"], gamma: float
) -> Float[Tensor, "*worlds B T"]:
    """γᵗ⁻¹ Gₜ = Σₖ≥ₜ γᵏ⁻¹ rₖ: what reaches J of the rewards from token t on (the paper, Lemma 1). Claim:
    `remark-2-return-to-go`, unbiased."""
    return return_to_go(gamma ** torch.arange(mask.shape[-1], dtype=token_reward.dtype) * token_reward, mask)


def interpolate(
    advantage: Float[Tensor, "*worlds B T"], boundary: Bool[Tensor, "*worlds B T"], mask: Bool[Tensor, "*worlds B T"]
) -> Float[Tensor, "*worlds B T"]:
    """Algorithm 1, line 7: tokens outside D get the linear interpolation of the advantages at the boundaries on either
    side; after the last boundary, its advantage.

    Claim: `trepo-interpolated`, biased: what comes from the next segment is a martingale difference, which wₜ cannot
    move.
    """
    boundary = boundary & mask
    step = torch.arange(mask.shape[-1]).expand(boundary.shape)
    before = torch.where(boundary, step, -1).cummax(-1).values.clamp(min=0)
    no_more = mask.shape[-1]
    after = torch.where(boundary, step, no_more).flip(-1).cummin(-1).values.flip(-1)
    after = torch.where(after == no_more, before, after)
    position = mask.cumsum(-1).to(advantage.dtype).expand(boundary.shape)
    start = position.gather(-1, before)
    weight = (position - start) / (position.gather(-1, after) - start).clamp(min=1)
    advantage, _ = torch.broadcast_tensors(advantage, boundary)
    left = advantage.gather(-1, before.expand(advantage.shape))
    right = advantage.gather(-1, after.expand(advantage.shape))
    return torch.where(mask, left + weight * (right - left), 0.0)


def whiten(
    advantage: Float[Tensor, "*worlds B T"], mask: Bool[Tensor, "*worlds B T"], eps: float = 1e-8
) -> Float[Tensor, "*worlds B T"]:
    """(A - mean) / (std + eps) over all policy tokens of the batch, ddof 1. Claim: `remark-4-whitening`, biased."""
    count = mask.sum((-2, -1), keepdim=True)
    if bool((count < 2).any()):
        raise ValueError("whitening needs at least 2 tokens in a batch; a single one has no standard deviation.")
    mean = torch.where(mask, advantage, 0.0).sum((-2, -1), keepdim=True) / count
    # What equal advantages differ from their mean by is rounding, of which division by eps would make a gradient.
    rounding = 1e-12 * torch.where(mask, advantage, 0.0).abs().amax((-2, -1), keepdim=True)
    centred = torch.where(mask & ((advantage - mean).abs() > rounding), advantage - mean, 0.0)
    std = ((centred**2).sum((-2, -1), keepdim=True) / (count - 1)).sqrt()
    return centred / (std + eps)


def _spread(advantage: Tensor, boundary: Tensor) -> Tensor:
    """Every token takes the entry of the boundary at or before it."""
    step = torch.arange(boundary.shape[-1]).expand(boundary.shape)
    start = torch.where(boundary, step, 0).cummax(-1).values
    return advantage.gather(-1, start.expand(advantage.shape))
