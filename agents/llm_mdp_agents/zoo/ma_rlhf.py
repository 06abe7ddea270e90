"""MA-RLHF (Chai et al. 2024; the paper's related work): PPO over macro actions of several tokens, one value a macro.

    Âₛ = GAE(λ) over macros,   δₛ = (rewards of macro s) + v(next macro) - v(macro)

Unbiased for the exact critic (claim `ma-rlhf`), for a learned one at λ = 1. Left out: macros by parsing or by
perplexity, which look ahead and are no stopping rules.
"""

from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.auxiliary import CriticConfig, WithCritic
from llm_mdp_agents.segments import SegmentConfig, WithSegments


@dataclass(frozen=True)
class MARLHFConfig(CriticConfig, SegmentConfig):
    """Options of MA-RLHF."""

    shortest: ClassVar[int] = 2

    group_size: int = 1
    clip_low: float | None = 0.2


class MARLHFAgent(WithSegments[MARLHFConfig], WithCritic[MARLHFConfig]):
    """Generalised advantages over macro actions."""

    name, paper = "ma-rlhf", "Chai et al. 2024"
    why_the_default = (
        "lam 0.95 with a learned critic takes bias for less noise; lam 1 is unbiased whatever the critic says"
    )
    Config = MARLHFConfig

    def make_estimator(self):
        critic = self.models["critic"]
        return estimators.MARLHF(**self.common(), critic=critic, lam=self.config.lam, boundary=self.boundary)
