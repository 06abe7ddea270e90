"""REINFORCE (Williams 1992; the paper's Corollary 1, Eq. 27): the response's reward on every token, less a running
mean.

    g = Σₜ (RM(W) - b) ∇log π(wₜ | W₀,ₜ₋₁),   b ← d b + (1 - d) mean RM of the batch, after the update

b comes from earlier batches only, so it is a constant for this one and the gradient is unbiased (claim `reinforce`).
Left out: a learned baseline (that is `ppo` at λ = 1).
"""

from dataclasses import dataclass
from typing import Literal

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.base import Agent, AgentConfig


@dataclass(frozen=True)
class REINFORCEConfig(AgentConfig):
    """Options of REINFORCE."""

    baseline: Literal["running_mean", "none"] = "running_mean"
    """What is subtracted from the reward."""
    decay: float = 0.9
    """d of the running mean, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be in [0, 1).")


class REINFORCEAgent(Agent[REINFORCEConfig]):
    """Reward minus a running mean of earlier batches."""

    name, paper = "reinforce", "Williams 1992; Corollary 1, Eq. 27"
    Config = REINFORCEConfig

    def make_estimator(self):
        return estimators.REINFORCE(**self.common(), baseline=self.numbers.get("baseline", 0.0))

    def prepare(self, sampler):
        self.fit(self.collect(sampler))

    def fit(self, evidence):
        if self.config.baseline == "none":
            return {}
        mean = float(evidence.response_reward.mean())
        before = self.numbers.get("baseline", mean)
        self.numbers["baseline"] = self.config.decay * before + (1 - self.config.decay) * mean
        self.estimator = self.make_estimator()
        return {"baseline": before}
