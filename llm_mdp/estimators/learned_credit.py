"""The estimators whose credit comes from a model beside the policy: R3HF, ABC, RTO, DPO, PRIME."""

from dataclasses import dataclass

import torch

from llm_mdp.estimators import credit, values
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import dpo_loss, preference_probability
from llm_mdp.estimators.returns import return_to_go
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic, Policy


@dataclass(frozen=True)
class TokenCredit(Estimator):
    """Base of the estimators that spread the reward over tokens: Aₜ = Σₖ≥ₜ rₖ, less a baseline if there is one."""

    group_baseline: bool = False
    """Subtract the mean of the other responses' Σₜ rₜ: less variance, no bias, as in `RLOO`."""

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        return self._less_baseline(return_to_go(evidence.token_reward, evidence.rollouts.mask), evidence)

    def _less_baseline(self, advantage, evidence):
        if not self.group_baseline:
            return advantage
        return advantage - values.leave_one_out(evidence.token_reward.sum(-1), self.group_size)[..., None]


@dataclass(frozen=True)
class R3HF(TokenCredit):
    """rₜ = RM(sₜ₊₁) - RM(sₜ) on partial responses, summed from t on (Eq. 43). Claim: `r3hf`, unbiased.

    `prefix_score` scores the prefix before each step; the final score is RM(W) itself.
    """

    prefix_score: Critic | None = None

    def collect(self, sampler):
        if self.prefix_score is None:
            raise ValueError(
                "R3HF needs a score of partial responses; give `prefix_score=`, a function of (prompt, tokens, mask)."
            )
        rollouts = sampler.rollouts(self.group_size)
        reward = sampler.response_reward(rollouts)
        score = sampler.value(self.prefix_score, rollouts)
        return Evidence(rollouts, reward, token_reward=credit.prefix_difference(score, reward, rollouts.mask))


@dataclass(frozen=True)
class ABC(TokenCredit):
    """rₜ = aₜ RM(W), aₜ the reward model's attention over the response (Eq. 42).

    `attention` gives aₜ (None: uniform). Claims: summed over the whole response `abc-full-sum`, unbiased;
    `to_go=True`, summed from t on as in the original, `abc-return-to-go`, biased.
    """

    attention: Critic | None = None
    beta: float = 1.0
    to_go: bool = False

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        reward, mask = sampler.response_reward(rollouts), rollouts.mask
        weights = (
            mask.to(torch.float64) if self.attention is None else sampler.value(self.attention, rollouts)[..., :-1]
        )
        return Evidence(rollouts, reward, token_reward=credit.attention_shares(reward, weights, mask, self.beta))

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        if self.to_go:
            return super().advantages(evidence)
        return self._less_baseline(evidence.token_reward.sum(-1, keepdim=True), evidence)


@dataclass(frozen=True)
class RTO(TokenCredit):
    """rₜ = β log(π_DPO / π_ref) of a model trained by DPO, summed from t on (Eq. 41 as the original has it).

    Claims: `rto` unbiased at the DPO optimum, where the rewards sum to RM(W) minus a constant of the prompt;
    `paper=True`, rₜ = π_DPO / π_ref as printed, `rto-eq41`, biased.
    """

    dpo_policy: Policy | None = None
    reference: Policy | None = None
    beta: float = 0.05
    paper: bool = False

    def collect(self, sampler):
        if self.dpo_policy is None or self.reference is None:
            raise ValueError(
                "RTO needs the model trained by DPO and its reference; give `dpo_policy=` and `reference=`."
            )
        rollouts = sampler.rollouts(self.group_size)
        logp, reference_logp = sampler.logp(self.dpo_policy, rollouts), sampler.logp(self.reference, rollouts)
        if self.paper:
            token_reward = credit.probability_ratio(logp, reference_logp, rollouts.mask)
        else:
            token_reward = credit.implicit(logp, reference_logp, rollouts.mask, self.beta)
        return Evidence(rollouts, sampler.response_reward(rollouts), token_reward=token_reward)


@dataclass(frozen=True)
class DPO(Estimator):
    """The loss of preference pairs, two responses to a prompt drawn from the policy that is also the reference (Eq.
    40).

        ℓ = Σ over both orders of P(W ≻ W') [-log σ(β log π(W)/ref(W) - β log π(W')/ref(W'))]

    P(W ≻ W') is `objectives.preference_probability` (Bradley-Terry). Labels are not drawn but averaged over, which is
    the expected loss of drawn ones. Claim: `dpo-optimum`.
    """

    group_size: int = 2
    beta: float = 0.1
    preference_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size % 2:
            raise ValueError(f"group_size is {self.group_size}; preferences come in pairs, so it must be even.")

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts), reference_logp=rollouts.logp)

    def advantages(self, evidence):
        """What the loss weighs log π of a response with, where policy and reference are the same: β (P(it wins) - P(it
        loses))."""
        wins = self._wins(evidence)
        return (self.beta * torch.stack([2 * wins - 1, 1 - 2 * wins], dim=-1)).flatten(-2)[..., None]

    def loss(self, logp, evidence):
        assert evidence.reference_logp is not None
        log_ratio = (logp - evidence.reference_logp).sum(-1).unflatten(-1, (-1, 2))
        first, second, wins = log_ratio[..., 0], log_ratio[..., 1], self._wins(evidence)
        return (wins * dpo_loss(first, second, self.beta) + (1 - wins) * dpo_loss(second, first, self.beta)).mean(-1)

    def _wins(self, evidence):
        """P(the first of each pair wins)."""
        reward = evidence.response_reward.unflatten(-1, (-1, 2))
        return preference_probability(reward[..., 0], reward[..., 1], self.preference_temperature)


@dataclass(frozen=True)
class PRIME(Estimator):
    """Process rewards implicit in a model φ trained online on outcomes, plus a leave-one-out outcome (Eq. 44-45; Cui et
    al. 2025).

        Aₖₜ = Σₛ≥ₜ (q_ks - mean over the other responses of their mean q) + (oₖ - mean of the other o),   q = β
        log(φ/ref)

    The outcome is `response_reward > threshold`. Claim: `prime`, reported.
    """

    group_size: int = 4
    process_model: Policy | None = None
    reference: Policy | None = None
    beta: float = 0.05
    threshold: float = 0.5
    outcome_weight: float = 1.0

    def collect(self, sampler):
        if self.process_model is None or self.reference is None:
            raise ValueError(
                "PRIME needs its process reward model and its reference; give `process_model=` and `reference=`."
            )
        rollouts = sampler.rollouts(self.group_size)
        q = credit.implicit(
            sampler.logp(self.process_model, rollouts), sampler.logp(self.reference, rollouts), rollouts.mask, self.beta
        )
        return Evidence(rollouts, sampler.response_reward(rollouts), token_reward=q)

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        q, mask = evidence.token_reward, evidence.rollouts.mask
        mean_q = q.sum(-1) / mask.sum(-1)
        centred = torch.where(mask, q - values.leave_one_out(mean_q, self.group_size)[..., None], 0.0)
        outcome = (evidence.response_reward > self.threshold).to(q.dtype)
        outcome = outcome - values.leave_one_out(outcome, self.group_size)
        return return_to_go(centred, mask) + self.outcome_weight * outcome[..., None]
