"""PPO (Schulman et al. 2017; the paper's Eq. 32-33): a learned critic, GAE(λ), a clipped surrogate.

    Âₜ = Σₗ λˡ δₜ₊ₗ,   δₜ = rₜ + v(W₀,ₜ) - v(W₀,ₜ₋₁),   r = RM(W) on the last token,   γ = 1

The critic is regressed on RM(W) after each batch, and on some batches before the first update. Unbiased for the exact
critic at every λ (`gae-exact-*`), for a learned one at λ = 1 only (`gae-wrong-*`). Left out: value clipping, whitening
of advantages (claim `remark-4-whitening`: it biases), γ < 1 (claim `gae-discounted`).
"""

from dataclasses import dataclass

from llm_mdp.estimators import algorithms as estimators
from llm_mdp_agents.auxiliary import CriticConfig, WithCritic


@dataclass(frozen=True)
class PPOConfig(CriticConfig):
    """Options of PPO."""

    group_size: int = 1
    clip_low: float | None = 0.2


class PPOAgent(WithCritic[PPOConfig]):
    """Generalised advantages over a learned critic."""

    name, paper = "ppo", "Schulman et al. 2017; Eq. 32-33"
    why_the_default = (
        "lam 0.95 with a learned critic takes bias for less noise; lam 1 is unbiased whatever the critic says"
    )
    Config = PPOConfig

    def make_estimator(self):
        return estimators.PPO(**self.common(), critic=self.models["critic"], lam=self.config.lam)
