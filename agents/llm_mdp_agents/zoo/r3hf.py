"""R3HF, reward redistribution (Li et al. 2024; the paper's Eq. 43): what a token adds to the reward model's score of
the response so far.

    rₜ = RM(sₜ₊₁) - RM(sₜ),   summed from t on: RM(W) - RM(sₜ)

The score of the prefix is a baseline that knows nothing of wₜ, so the gradient is unbiased whatever the model says
(claim `r3hf`); the last score must be RM(W) itself. The reward model is fitted to the environment's rewards of whole
responses as they come, unless one is given. Left out: the original's PPO underneath.
"""

from dataclasses import dataclass

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp_agents.auxiliary import RewardModelConfig, WithRewardModel


@dataclass(frozen=True)
class R3HFConfig(RewardModelConfig):
    """Options of R3HF."""

    group_size: int = 1


class R3HFAgent(WithRewardModel[R3HFConfig]):
    """Differences of a reward model's scores of partial responses."""

    name, paper = "r3hf", "Li et al. 2024; Eq. 43"
    Config = R3HFConfig

    def make_estimator(self):
        return estimators.R3HF(
            **self.common(), prefix_score=self.models["reward_model"], group_baseline=self.config.group_size > 1
        )
