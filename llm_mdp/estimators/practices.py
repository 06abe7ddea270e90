"""Common practices of the field as estimators, so that each can have its certificate."""

from dataclasses import dataclass

import torch

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import KL, kl_estimate, reduce
from llm_mdp.estimators.returns import return_to_go
from llm_mdp.estimators.values import has_signal
from llm_mdp.sampling.evidence import Evidence, Finish
from llm_mdp.sampling.policies import Policy


@dataclass(frozen=True)
class MaskedTruncated(Estimator):
    """Responses that hit the length cap are left out of the loss: A = RM(W) if W ended with the end token, else 0."""

    def advantages(self, evidence):
        ended = evidence.rollouts.finish == Finish.EOS
        return torch.where(ended, evidence.response_reward, 0.0)[..., None]


@dataclass(frozen=True)
class ZeroStdFiltered(RLOO):
    """RLOO with the groups whose rewards are all equal left out of the average ("dynamic sampling")."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, has_signal(evidence.response_reward, self.group_size))


@dataclass(frozen=True)
class Tempered(Estimator):
    """Responses drawn at one temperature, scored at 1: A = RM(W)."""

    temperature: float = 0.6

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size, self.temperature)
        return Evidence(rollouts, sampler.response_reward(rollouts))

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


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
    `kl-*-reward`."""

    def advantages(self, evidence):
        rollouts = evidence.rollouts
        assert evidence.reference_logp is not None
        penalty = -kl_estimate(rollouts.logp, evidence.reference_logp, self.kind)
        return return_to_go(torch.where(rollouts.mask, penalty, 0.0), rollouts.mask)


@dataclass(frozen=True)
class KLLoss(KLEstimator):
    """The penalty is added to the loss and differentiated token by token. Claims: `kl-*-loss`."""

    def loss(self, logp, evidence):
        assert evidence.reference_logp is not None
        penalty = kl_estimate(logp, evidence.reference_logp, self.kind)
        return reduce(penalty, evidence.rollouts.mask, self.reduction, self.reduction_constant)


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
