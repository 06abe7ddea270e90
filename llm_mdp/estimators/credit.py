"""From one reward for the response to rewards for its tokens.

Theorem 1 says that none of this is needed for an unbiased gradient; these are what the surveyed methods do, each with
its certificate.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators.returns import gae
from llm_mdp.mdp.hidden_rewards import last_token


def terminal(
    response_reward: Float[Tensor, "*worlds B"], mask: Bool[Tensor, "*worlds B T"]
) -> Float[Tensor, "*worlds B T"]:
    """rₜ = RM(W) on the last policy token, 0 elsewhere (the zero-reward assumption)."""
    return torch.where(last_token(mask), response_reward[..., None], 0.0)


def prefix_difference(
    score: Float[Tensor, "*worlds B T1"], response_reward: Float[Tensor, "*worlds B"], mask: Bool[Tensor, "*worlds B T"]
) -> Float[Tensor, "*worlds B T"]:
    """rₜ = RM(sₜ₊₁) - RM(sₜ) on partial responses (R3HF, the paper's Eq. 43); the last one uses the final score RM(W).
    After an environment's tokens sₜ₊₁ is the prefix with all of them: GAE(0) over the scores.

    Args: score: the reward model's score of the prefix before step t. Telescopes only because the last term is RM(W)
        itself.
    Claim: `r3hf`, unbiased as return-to-go.
    """
    return gae(terminal(response_reward, mask), score, mask, lam=0.0)


def attention_shares(
    response_reward: Float[Tensor, "*worlds B"],
    attention: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    beta: float = 1.0,
) -> Float[Tensor, "*worlds B T"]:
    """rₜ = β aₜ RM(W), plus (1 - β) RM(W) on the last token (ABC, Eq. 42; Chan et al. 2024); aₜ renormalised to sum to
    1.

    Claim: `abc-full-sum` unbiased, `abc-return-to-go` biased: aₜ depends on the whole response.
    """
    share = torch.where(mask, attention, 0.0)
    share = share / share.sum(-1, keepdim=True)
    return beta * share * response_reward[..., None] + (1 - beta) * terminal(response_reward, mask)


def implicit(
    logp: Float[Tensor, "*worlds B T"],
    reference_logp: Float[Tensor, "*worlds B T"],
    mask: Bool[Tensor, "*worlds B T"],
    beta: float,
) -> Float[Tensor, "*worlds B T"]:
    """rₜ = β log(π_model / π_ref) of a model trained on preferences (RTO) or outcomes (PRIME, Eq. 44). Claim: `rto`."""
    return torch.where(mask, beta * (logp - reference_logp), 0.0)


def probability_ratio(
    logp: Float[Tensor, "*worlds B T"], reference_logp: Float[Tensor, "*worlds B T"], mask: Bool[Tensor, "*worlds B T"]
) -> Float[Tensor, "*worlds B T"]:
    """rₜ = π_DPO / π_ref, RTO as printed in Eq. 41. Claim: `rto-eq41`, biased; use `implicit`."""
    return torch.where(mask, (logp - reference_logp).exp(), 0.0)
