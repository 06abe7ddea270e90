"""VinePPO (Kazemnejad et al. 2024; the paper's related work): values by fresh responses from the beginning of each
segment, no critic.

    Âₛ = v̂(next start) - v̂(start),   v̂ = mean RM of M branches,   v̂(end) = RM(W)

Unbiased while segments begin by a stopping rule (claim `vineppo`). Left out: top-p sampling, which the original scores
as if it were none.
"""

from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.segments import BranchConfig, WithSegments


@dataclass(frozen=True)
class VinePPOConfig(BranchConfig):
    """Options of VinePPO."""

    shortest: ClassVar[int] = 2

    group_size: int = 1
    clip_low: float | None = 0.2
    samples: int = 9


class VinePPOAgent(WithSegments[VinePPOConfig]):
    """Segment advantages from Monte-Carlo values."""

    name, paper = "vineppo", "Kazemnejad et al. 2024"
    Config = VinePPOConfig

    def make_estimator(self):
        return estimators.VinePPO(**self.common(), boundary=self.boundary, temperatures=(1.0,) * self.config.samples)
