"""RLOO (Ahmadian et al. 2024; the paper's Eq. 36-37): the reward less the mean of the other responses to the same
prompt.

    Aₖ = RMₖ - (1/(K-1)) Σⱼ≠ₖ RMⱼ

Unbiased (claim `rloo`). `paper=True` is Eq. 36 as printed, whose sum contains the response itself: (K-2)/(K-1) of the
gradient is left (claim `rloo-eq36`). Left out: the original's KL penalty inside the reward is here the option `kl`.
"""

from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.base import Agent, AgentConfig


@dataclass(frozen=True)
class RLOOConfig(AgentConfig):
    """Options of RLOO."""

    least_group: ClassVar[int] = 2

    paper: bool = False
    """Eq. 36 as printed."""


class RLOOAgent(Agent[RLOOConfig]):
    """Reward minus the mean of the others."""

    name, paper = "rloo", "Ahmadian et al. 2024; Eq. 36-37"
    Config = RLOOConfig

    def make_estimator(self):
        return estimators.RLOO(**self.common(), paper=self.config.paper)
