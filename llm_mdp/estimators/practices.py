"""Common practices of the field as estimators, so that each can have its certificate."""

from dataclasses import dataclass

import torch

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import KL, kl_estimate, log_ratio, reduce
from llm_mdp.estimators.returns import return_to_go
from llm_mdp.estimators.values import has_signal, leave_one_out
from llm_mdp.sampling.evidence import Evidence, Finish
from llm_mdp.sampling.policies import Critic, Policy
from llm_mdp.sampling.sampler import Sampler


@dataclass(frozen=True)
class MaskedTruncated(Estimator):
    """Responses that hit the length cap are left out of the loss: A = RM(W) if W ended with the end token, else 0."""

    def advantages(self, evidence):
        capped = evidence.rollouts.finish == Finish.HORIZON
        return torch.where(capped, 0.0, evidence.response_reward)[..., None]


@dataclass(frozen=True)
class ZeroStdFiltered(RLOO):
    """RLOO with the groups whose rewards are all equal left out of the average ("dynamic sampling")."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, has_signal(evidence.response_reward, self.group_size))


@dataclass(frozen=True)
class Tempered(Estimator):
    """Responses drawn at one temperature, scored at 1: A = RM(W) - v(w₀).

    Claims: `temperature-mismatch`, v = 0; `temperature-mismatch-centred`, `critic` = the value of the policy at that
    temperature. Both biased.
    """

    temperature: float = 0.6
    critic: Critic | None = None
    """The value of the prompt is subtracted; None: nothing is."""

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size, self.temperature)
        value = None if self.critic is None else sampler.value(self.critic, rollouts)
        return Evidence(rollouts, sampler.response_reward(rollouts), value=value)

    def advantages(self, evidence):
        reward = evidence.response_reward[..., None]
        return reward if evidence.value is None else reward - evidence.value[..., :1]


@dataclass(frozen=True)
class OverlongShaping(Estimator):
    """The reward less a penalty that grows from 0 to 1 over the last two tokens before the cap (DAPO, Yu et al. 2025,
    Eq. 13): A = RM(W) - clip((len - (T - 2)) / 2, 0, 1).

    Claims: `overlong-shaping`, biased for ∇J; `overlong-shaping-shaped`, unbiased for what it changes J into.
    """

    horizon: int = 1
    """T, the cap in tokens."""

    def advantages(self, evidence):
        reward = evidence.response_reward
        excess = (evidence.rollouts.length.to(reward.dtype) - (self.horizon - 2)) / 2
        return (reward - excess.clamp(0, 1))[..., None]


@dataclass(frozen=True)
class LengthPenalty(Estimator):
    """The reward less a price for every token: A = RM(W) - price · len.

    Claims: `length-penalty`, biased for ∇J; `length-penalty-shaped`, unbiased for what it changes J into.
    """

    price: float = 0.1

    def advantages(self, evidence):
        reward = evidence.response_reward
        return (reward - self.price * evidence.rollouts.length.to(reward.dtype))[..., None]


@dataclass(frozen=True)
class KLEstimator(Estimator):
    """Base of the KL penalties; their target is ∇KL(π ‖ ref), descended."""

    reference: Policy | None = None
    kind: KL = "k1"

    def collect(self, sampler):
        if self.reference is None:
            raise ValueError(f"{type(self).__name__} needs the policy to stay close to; give `reference=`.")
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(
            rollouts, sampler.response_reward(rollouts), reference_logp=sampler.logp(self.reference, rollouts)
        )


@dataclass(frozen=True)
class KLReward(KLEstimator):
    """The penalty is a token reward, -kl(wₜ), and the policy gradient does the rest: Aₜ = -Σₖ≥ₜ klₖ. Claims:
    `kl-*-reward`; `whole=True`, the sum over the whole response on each of its tokens, `kl-whole-reward`."""

    whole: bool = False

    def advantages(self, evidence):
        rollouts = evidence.rollouts
        assert evidence.reference_logp is not None
        penalty = -kl_estimate(rollouts.logp, evidence.reference_logp, self.kind)
        penalty = torch.where(rollouts.mask, penalty, 0.0)
        return penalty.sum(-1, keepdim=True) if self.whole else return_to_go(penalty, rollouts.mask)


@dataclass(frozen=True)
class KLLoss(KLEstimator):
    """The penalty is added to the loss and differentiated token by token. Claims: `kl-*-loss`; `weighted=True`, times
    ρₜ = π(wₜ)/π_old(wₜ) and differentiated with it, `kl-rho-k3-loss`."""

    weighted: bool = False

    def loss(self, logp, evidence):
        assert evidence.reference_logp is not None
        rollouts = evidence.rollouts
        penalty = kl_estimate(logp, evidence.reference_logp, self.kind)
        if self.weighted:
            penalty = log_ratio(logp, rollouts.logp, rollouts.mask).exp() * penalty
        return reduce(penalty, rollouts.mask, self.reduction, self.reduction_constant)


def _without_reference(estimator: Estimator, sampler: Sampler) -> Evidence:
    """log π/ref is log π where log ref is 0: what is a KL penalty elsewhere is an entropy bonus here."""
    rollouts = sampler.rollouts(estimator.group_size)
    return Evidence(rollouts, sampler.response_reward(rollouts), reference_logp=torch.zeros_like(rollouts.logp))


@dataclass(frozen=True)
class EntropyReward(KLReward):
    """-log π(wₜ) as a token reward: Aₜ = -Σₖ≥ₜ log π(wₖ), the gradient of the entropy of the response. Claim:
    `entropy-reward`.

    With `group_baseline`, less the mean of the same sums of the other K - 1 responses to the prompt, 0 from their ends
    on. They know nothing of this response, so nothing changes but the noise, most of which is what all responses have
    in common.
    """

    group_baseline: bool = False

    def collect(self, sampler):
        return _without_reference(self, sampler)

    def advantages(self, evidence):
        to_go = super().advantages(evidence)
        if not self.group_baseline:
            return to_go
        others = leave_one_out(to_go.transpose(-1, -2), self.group_size).transpose(-1, -2)
        return torch.where(evidence.rollouts.mask, to_go - others, 0.0)


@dataclass(frozen=True)
class EntropyLoss(KLLoss):
    """The entropy of every token's distribution, added to the loss: Aₜ = -log π(wₜ). Claim: `entropy-token-loss`.

    Trainers differentiate the entropy of the whole distribution, H = -Σ_w π(w) log π(w). A loss sees the sampled token
    alone here, and its expected gradient is the same: E[-log π(wₜ) ∇log π(wₜ) | W₀,ₜ₋₁] = ∇H, for E ∇log π = 0. The
    spread is not the same.
    """

    kind: KL = "k2"

    def collect(self, sampler):
        return _without_reference(self, sampler)


@dataclass(frozen=True)
class SecondEpoch(Estimator):
    """The second update on the same responses: clipped surrogate at θ + step_size · g(W), g the first update. A =
    RM(W)."""

    clip_low: float | None = 0.2
    step_size: float = 0.5

    def advantages(self, evidence):
        return evidence.response_reward[..., None]

    def displacement(self, first_update):
        return self.step_size * first_update
