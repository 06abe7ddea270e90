"""Other readings of what Algorithm 1 says of TRePO, each with its certificate. Nobody trains with them: `TRePO` is the
one that is unbiased."""

from dataclasses import dataclass

import torch

from llm_mdp.estimators.algorithms import TRePO, segment_advantages
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.estimators.returns import gae
from llm_mdp.estimators.theorems import WithValue


@dataclass(frozen=True)
class PooledDraws(TRePO):
    """Eq. 31 over drawn responses alone: W itself is in no average. Claim: `trepo-eq31-without-w`, biased."""

    pooled: bool = True

    def _pooled(self, evidence, own=False):
        return super()._pooled(evidence, own)


@dataclass(frozen=True)
class InterpolatedValues(TRePO):
    """Line 7 with *values* interpolated between boundaries instead of advantages: every token of a segment gets the
    segment's advantage divided by its number of tokens.

    Claim: `trepo-interpolated-values`, biased, for how long the last segment is depends on what comes; where all
    segments have n tokens, 1/n of the gradient.
    """

    def advantages(self, evidence):
        mask = evidence.rollouts.mask
        none = torch.zeros((*mask.shape[:-1], mask.shape[-1] + 1), dtype=torch.float64)
        tokens = gae(mask.to(none.dtype), none, mask, lam=0.0, boundary=self.boundary(evidence.rollouts))
        return super().advantages(evidence) / tokens.clamp(min=1)


@dataclass(frozen=True)
class RandomStep(WithValue):
    """D = {1, d}, d drawn uniformly, `critic` = U, one advantage for a segment; the mean over the draws of d.

    d comes from 1 … T before the response is seen (`trepo-random-step`, unbiased), or, `of_response=True`, from its own
    1 … len (`trepo-random-step-of-response`, biased: where the segment begins then tells how long the response is).
    """

    horizon: int = 1
    """T, the longest response in tokens."""
    of_response: bool = False

    def advantages(self, evidence):
        assert evidence.value is not None
        length = evidence.rollouts.length[..., None].to(evidence.value.dtype)
        choices = length if self.of_response else torch.full_like(length, self.horizon)
        advantage = torch.zeros(evidence.rollouts.mask.shape, dtype=evidence.value.dtype)
        for step in range(self.horizon):
            chance = torch.where(step < choices, 1 / choices, 0.0)
            advantage = advantage + chance * segment_advantages(evidence, evidence.value, AtSteps((step,)), 0.0)
        return advantage
