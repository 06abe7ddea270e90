"""ReMax (Li et al. 2023; the paper's Eq. 38-39): the reward less that of the greedy response to the same prompt.

    Aₖ = RM(Wₖ) - RM(greedy)

Unbiased (claim `remax`): the greedy response depends on the prompt alone. The greedy response is drawn once for each
response of a group.
"""

from dataclasses import dataclass

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.base import Agent, AgentConfig


@dataclass(frozen=True)
class ReMaxConfig(AgentConfig):
    """Options of ReMax."""

    group_size: int = 1
    """K, responses drawn to each prompt; the original has one."""


class ReMaxAgent(Agent[ReMaxConfig]):
    """Reward minus the reward of the greedy response."""

    name, paper = "remax", "Li et al. 2023; Eq. 38-39"
    Config = ReMaxConfig

    def make_estimator(self):
        return estimators.ReMax(**self.common())
