"""Responses that another policy drew than the one that is differentiated: an older one (stale), or the same weights in
another engine (mismatch). And the objectives that are meant for them: CISPO, GSPO, SAPO.

μ draws, π is differentiated, ρₜ = π(wₜ)/μ(wₜ) = exp(logp - rollouts.logp). Where nobody else draws, ρ = 1 at the first
update.
"""

import math
from dataclasses import dataclass

import torch

from llm_mdp.estimators.algorithms import GRPO, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import Level, clipped_surrogate, log_ratio, policy_gradient, reduce, soft_gate
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Policy


@dataclass(frozen=True)
class OffPolicy(Estimator):
    """Responses of another policy, taken as if they were one's own: g = Σₜ A ∇log π(wₜ). Claim: `mismatch-ignored`,
    biased.

    A = RM(W) - baseline with one response a prompt; with more, less the mean of the others (RLOO).
    """

    behaviour: Policy | None = None
    """μ, which draws; None: the policy itself."""
    baseline: float = 0.0
    """A constant such as J, of groups of one."""
    scale_by_std: bool = False
    """Less the mean of the group and divided by its standard deviation (GRPO), in groups of two or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_by_std and self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}, but scale_by_std=True needs other responses; make it 2 or more."
            )

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size, behaviour=self.behaviour)
        return Evidence(rollouts, sampler.response_reward(rollouts))

    def advantages(self, evidence):
        if self.group_size == 1:
            return (evidence.response_reward - self.baseline)[..., None]
        return (GRPO if self.scale_by_std else RLOO)(self.group_size).advantages(evidence)


@dataclass(frozen=True)
class Reweighted(OffPolicy):
    """Advantages times ratios: g = Σₜ min(rₜ, cap) A ∇log π(wₜ), r constant; with clip_low, r as in the clipped
    surrogate.

    r is the ratio of the token, of the sequence, or its geometric mean over the tokens (`objectives.log_ratio`).

    - level "token", with a cap: truncated importance weights (Yao et al. 2025), and CISPO (MiniMax 2025) with
      cap = 1 + ε_high. Claims: `mismatch-token`, `mismatch-token-capped`, `cispo`, `cispo-stale`.
    - level "sequence": importance sampling. Claims: `mismatch-sequence` unbiased, `mismatch-sequence-capped` biased.
    - level "geometric", reduction "sequence_mean", clip_low, clip_high: GSPO (Zheng et al. 2025). Claims: `gspo`,
      `gspo-stale`.
    """

    level: Level = "token"
    cap: float | None = None
    """The largest ratio, at least 1; None: any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in ("token", "sequence", "geometric"):
            raise ValueError(f'level is {self.level!r}; choose "token", "sequence" or "geometric".')
        if self.cap is not None and not 1 <= self.cap < math.inf:
            raise ValueError(
                f"cap is {self.cap!r}; it must be at least 1, for below it shrinks what the policy drew itself, "
                "or None for no cap."
            )
        if self.cap is not None and self.clip_low is not None:
            raise ValueError(
                f"cap is {self.cap} and clip_low {self.clip_low}; give one of the two: a cap bounds the weight, "
                "a clip leaves the token out."
            )

    def loss(self, logp, evidence):
        rollouts, advantage = evidence.rollouts, self.advantages(evidence)
        log_r = log_ratio(logp, rollouts.logp, rollouts.mask, self.level).detach()
        if self.clip_low is None:
            weight = log_r.exp() if self.cap is None else log_r.exp().clamp(max=self.cap)
            return policy_gradient(logp, weight * advantage, rollouts.mask, self.reduction, self.reduction_constant)
        # The value of r with the slope of logp, so that all tokens of a response weigh the same.
        return clipped_surrogate(
            log_r + logp - logp.detach(),
            torch.zeros_like(log_r),
            advantage,
            rollouts.mask,
            self.clip_low,
            self.clip_low if self.clip_high is None else self.clip_high,
            self.reduction,
            self.reduction_constant,
        )


@dataclass(frozen=True)
class SAPO(OffPolicy):
    """A soft gate in place of clipping: loss -Σₜ σ(τ (ρₜ - 1)) 4/τ A (Gao et al. 2025). Claims: `sapo` unbiased,
    `sapo-stale` biased."""

    tau_positive: float = 1.0
    """τ > 0 where A > 0."""
    tau_negative: float = 1.05
    """τ > 0 elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau_positive", "tau_negative"):
            if not 0 < (tau := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {tau!r}; it must be above 0.")
        if self.clip_low is not None:
            raise ValueError(f"clip_low is {self.clip_low}, but the gate of SAPO stands in its place; leave it out.")

    def loss(self, logp, evidence):
        rollouts, advantage = evidence.rollouts, self.advantages(evidence)
        ratio = log_ratio(logp, rollouts.logp, rollouts.mask).exp()
        gate = soft_gate(ratio, advantage, self.tau_positive, self.tau_negative)
        return -reduce(gate * advantage, rollouts.mask, self.reduction, self.reduction_constant)
