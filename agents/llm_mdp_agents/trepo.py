"""TRePO, Token-Reinforced Policy Optimization (the paper's §4, Algorithm 1, Eq. 31).

    Âₛ = Û(next boundary) - Û(boundary),   Û(prefix) = mean RM of M responses drawn from it,   Û(end) = RM(W)

variant "repaired" (default): every boundary in D has fresh draws of its own and all tokens of a segment share its advantage; unbiased
(claims `trepo`, `trepo-segment`, `trepo-lambda`). variant "paper": Algorithm 1 as printed, with the draws of later steps pooled into
the value of a step (Eq. 31), advantages interpolated outside D, and the branches' temperature raised from 0; each of the three biases
the gradient (claims `trepo-eq31`, `trepo-interpolated`, `trepo-greedy-values`). Left out: D at fractions of the response's own length
(claim `trepo-own-length`, no stopping rule).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from llm_mdp import estimators
from llm_mdp_agents.base import SegmentConfig, WithSegments


@dataclass(frozen=True)
class TRePOConfig(SegmentConfig):
    """Options of TRePO."""

    group_size: int = 1
    clip_low: float | None = 0.2
    samples: int = 2
    """M, branches from each boundary."""
    lam: float = 0.0
    """λ of GAE over segments; 0: differences of neighbouring values."""
    variant: Literal["repaired", "paper"] = "repaired"
    """"paper": Algorithm 1 as printed."""


class TRePO(WithSegments):
    """Segment advantages from fresh draws at the boundaries D."""

    name, paper = "trepo", "Algorithm 1, Eq. 31"
    claims = ("trepo", "trepo-segment", "trepo-lambda", "trepo-eq31", "trepo-interpolated", "trepo-greedy-values", "trepo-own-length")
    Config = TRePOConfig
    config: TRePOConfig

    def make_estimator(self):
        config = self.config
        options = {**self.common(), "boundary": self.boundary, "samples": config.samples, "lam": config.lam}
        if config.variant == "paper":
            ramp = tuple(torch.linspace(0, 1, config.samples).tolist())
            options |= {"pooled": True, "interpolated": True, "temperatures": ramp}
        return estimators.TRePO(**options)
