"""ABC, Attention Based Credit (Chan et al. 2024; the paper's Eq. 42): the reward spread over tokens by the reward
model's attention.

    rₜ = β aₜ RM(W) + (1 - β) RM(W) on the last token
    aₜ: last layer, mean over heads, from the last token, renormalised

Summed over the whole response it is RM(W), unbiased (claim `abc-full-sum`); summed from t on, as in the original, it is
biased (claim `abc-return-to-go`), for aₜ depends on what comes later. The reward model is fitted to the environment's
rewards as they come, unless one is given. Left out: the original's PPO underneath; here the baseline is the mean of the
other responses.
"""

from dataclasses import dataclass

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp_agents.auxiliary import RewardModelConfig, WithRewardModel


@dataclass(frozen=True)
class ABCConfig(RewardModelConfig):
    """Options of ABC."""

    beta: float = 1.0
    """β, the share of the reward that is spread by attention, in [0, 1]."""
    to_go: bool = False
    """Sum from t on, as in the original."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; it must be in [0, 1].")


class ABCAgent(WithRewardModel[ABCConfig]):
    """The reward model's attention as credit."""

    name, paper = "abc", "Chan et al. 2024; Eq. 42"
    Config = ABCConfig

    def make_estimator(self):
        config = self.config
        return estimators.ABC(
            **self.common(), attention=self.models["reward_model"].attention, beta=config.beta, to_go=config.to_go,
            group_baseline=config.group_size > 1,
        )  # fmt: skip
