"""Losses: what is minimised. Each returns one number a world; its gradient by `logp` is all that verification needs."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Reduction = Literal["sum", "sequence_mean", "token_mean", "constant"]
KL = Literal["k1", "k2", "k3"]
Level = Literal["token", "sequence", "geometric"]


def reduce(
    per_token: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    reduction: Reduction = "sum",
    constant: int | None = None,
) -> Float[Tensor, "*worlds"]:
    """From tokens to one number. Rows whose advantage is zero count in every denominator.

    - `sum`: Σₜ, then the mean over responses: the policy gradient itself.
    - `sequence_mean`: mean over the tokens of each response, then over responses (GRPO). Claim: `length-normalised`,
      biased.
    - `token_mean`: Σ over the whole batch divided by its number of tokens (DAPO). Claim: `token-mean`, biased.
    - `constant`: Σₜ / constant, then the mean over responses (Dr. GRPO). Proportional.
    """
    per_token = torch.where(mask, per_token, 0.0)
    if reduction == "sum":
        return per_token.sum(-1).mean(-1)
    if reduction == "sequence_mean":
        return (per_token.sum(-1) / mask.sum(-1)).mean(-1)
    if reduction == "token_mean":
        return per_token.sum((-2, -1)) / mask.sum((-2, -1))
    if reduction == "constant":
        if constant is None or constant <= 0:
            raise ValueError(
                f'reduction "constant" divides by a positive constant, usually the horizon; it is {constant!r}.'
            )
        return per_token.sum(-1).mean(-1) / constant
    raise ValueError(f'reduction is {reduction!r}; choose "sum", "sequence_mean", "token_mean" or "constant".')


def policy_gradient(
    logp: Float[Tensor, "*worlds B T"],
    advantage: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    reduction: Reduction = "sum",
    constant: int | None = None,
) -> Float[Tensor, "*worlds"]:
    """-Σₜ Aₜ log π(wₜ | W₀,ₜ₋₁): minus its gradient is the policy gradient estimate Σₜ Aₜ ∇log π."""
    return -reduce(advantage * logp, mask, reduction, constant)


def clipped_surrogate(
    logp: Float[Tensor, "*worlds B T"],
    old_logp: Float[Tensor, "*worlds B T"],
    advantage: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: Reduction = "sum",
    constant: int | None = None,
) -> Float[Tensor, "*worlds"]:
    """-Σₜ min(ρₜ Aₜ, clip(ρₜ, 1 - low, 1 + high) Aₜ),  ρₜ = π(wₜ)/π_old(wₜ)          (PPO, the paper's Eq. 33)

    On the first update ρ = 1 and the gradient is that of `policy_gradient` (the loss itself need not be 0). Claim:
    `ppo-second-epoch`, biased from the second update on.
    """
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -reduce(torch.minimum(ratio * advantage, clipped * advantage), mask, reduction, constant)


def log_ratio(
    logp: Float[Tensor, "*worlds B T"],
    old_logp: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    level: Level = "token",
) -> Float[Tensor, "*worlds B T"]:
    """log of how much more probable the tokens are now than where they were drawn, xₜ = log π(wₜ)/μ(wₜ):

    - `token`: xₜ. Claim: `mismatch-token`, biased beyond one token.
    - `sequence`: Σₖ xₖ over the response, on each of its tokens. Claim: `mismatch-sequence`, unbiased.
    - `geometric`: its mean over the response's tokens, so that the ratio is (Π ρ)^(1/len) (GSPO). Claim: `gspo-stale`,
      biased.

    0 where mask is False.
    """
    each = torch.where(mask, logp - old_logp, 0.0)
    if level == "token":
        return each
    whole = each.sum(-1, keepdim=True)
    if level == "geometric":
        whole = whole / mask.sum(-1, keepdim=True)
    return torch.where(mask, whole, 0.0)


def soft_gate(
    ratio: Float[Tensor, "*worlds B T"],
    advantage: Float[Tensor, "*worlds B T"],
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Tensor, "*worlds B T"]:
    """σ(τ (ρ - 1)) 4/τ in place of the ratio ρ, τ by the sign of the advantage (SAPO, Gao et al. 2025).

    Its slope is 1 at ρ = 1 and falls on both sides. Claims: `sapo` unbiased, `sapo-stale` biased.
    """
    tau = torch.where(advantage > 0, torch.full_like(advantage, tau_positive), tau_negative)
    return torch.sigmoid(tau * (ratio - 1)) * 4 / tau


def kl_estimate(
    logp: Float[Tensor, "*worlds B T"], reference_logp: Float[Tensor, "*worlds B T"], kind: KL
) -> Float[Tensor, "*worlds B T"]:
    """Estimates of KL(π ‖ ref) from a sampled token (Schulman, "Approximating KL divergence"), x = log π/ref:

    k1 = x,   k2 = x² / 2,   k3 = e⁻ˣ - 1 + x.

    Claim: unbiased as *numbers*, but their gradients are not: `kl-k1-loss` zero, `kl-k2-loss`, `kl-k3-loss`,
    `kl-k3-reward` biased; only k1 in the reward is exact (`kl-k1-reward`).
    """
    x = logp - reference_logp
    if kind == "k1":
        return x
    if kind == "k2":
        return x**2 / 2
    if kind == "k3":
        return torch.expm1(-x) + x
    raise ValueError(f'kind is {kind!r}; choose "k1", "k2" or "k3".')


def preference_probability(
    reward: Float[Tensor, "*pairs"], other_reward: Float[Tensor, "*pairs"], temperature: float = 1.0
) -> Float[Tensor, "*pairs"]:
    """P(W ≻ W') = σ((RM(W) - RM(W')) / temperature)          (Bradley and Terry 1952; the paper's Eq. 40 has
    temperature 1)

    Raises:
        ValueError: if the temperature is not a positive number, or a reward is not finite.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature!r}; it must be above 0 (close to 0, the larger reward nearly always wins)."
        )
    for rewards in (reward, other_reward):
        if not torch.isfinite(rewards).all():
            row = int((~torch.isfinite(rewards)).flatten().nonzero()[0])
            raise ValueError(
                f"the reward of response {row} is {float(rewards.flatten()[row])}; preferences need finite rewards."
            )
    return torch.sigmoid((reward - other_reward) / temperature)


def dpo_loss(
    chosen_log_ratio: Float[Tensor, "*pairs"], rejected_log_ratio: Float[Tensor, "*pairs"], beta: float
) -> Float[Tensor, "*pairs"]:
    """-log σ(β log π(y_w)/ref(y_w) - β log π(y_l)/ref(y_l)), one number a pair (DPO, the paper's Eq. 40). Claim:
    `dpo-optimum`."""
    return -logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def outcome_cross_entropy(
    log_ratio: Float[Tensor, "*batch"], outcome: Float[Tensor, "*batch"], beta: float
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of σ(β log φ(W)/ref(W)) and the outcome (PRIME, the paper's Eq. 45). Outcomes in [0, 1]."""
    return -(outcome * logsigmoid(beta * log_ratio) + (1 - outcome) * logsigmoid(-beta * log_ratio))
