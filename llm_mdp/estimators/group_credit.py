"""Weights that a response gets from the others of its group, as the field makes them beside GRPO and RLOO."""

from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import values
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.returns import whiten


@dataclass(frozen=True)
class OPO(Estimator):
    """Aₖ = rₖ - Σ lenⱼ rⱼ / Σ lenⱼ (On-Policy RL with Optimal reward baseline, Hao et al. 2025).

    Claims: `opo`, with the response's own reward in the baseline, biased; `own=False`, without, `opo-left-out`,
    unbiased.
    """

    group_size: int = 4
    own: bool = True

    def advantages(self, evidence):
        reward, length = evidence.response_reward, evidence.rollouts.length
        return (reward - values.length_weighted_mean(reward, length, self.group_size, own=self.own))[..., None]


@dataclass(frozen=True)
class PassAtK(Estimator):
    """Aₖ = (best of the group - second best) for the best response, 0 for the others (Walder and Karkhanis 2025, at n =
    k).

    The best of the others is a baseline that knows nothing of W, so E of the *sum* over the group is ∇E max of K.
    Claim: `pass-at-k`, 1/K of it, for the loss is a mean over the group.
    """

    group_size: int = 4

    def advantages(self, evidence):
        return values.lead_of_best(evidence.response_reward, self.group_size)[..., None]


@dataclass(frozen=True)
class TEMPO(Estimator):
    """Aₖₜ = rₖ - mean r + v̂(W₀,ₜ) - v̂(W₀,ₜ₋₁), v̂ from the group itself (Tran et al. 2025, without its division by std).

    `td_only=True` leaves rₖ - mean r out. Claims: `tempo`, `tempo-td`, biased.
    """

    group_size: int = 4
    td_only: bool = False

    def advantages(self, evidence):
        reward = evidence.response_reward
        value = values.group_prefix_value(reward, evidence.rollouts.tokens, self.group_size)
        difference = value[..., 1:] - value[..., :-1]
        return difference if self.td_only else difference + values.centred(reward, self.group_size)[..., None]


@dataclass(frozen=True)
class REINFORCEPlusPlus(Estimator):
    """Aₖₜ = rₖ - mean r of its group, then normalised over all tokens of the batch (REINFORCE++-baseline, Hu et al.
    2025).

    The more prompts a batch holds, the smaller the error of the direction (`verify --prompts`). Claim: `reinforce++`,
    biased.
    """

    group_size: int = 4

    whole_batch: ClassVar[bool] = True

    def advantages(self, evidence):
        mask = evidence.rollouts.mask
        return whiten(values.centred(evidence.response_reward, self.group_size)[..., None].expand(mask.shape), mask)
