"""DPO (Rafailov et al. 2023; the paper's Eq. 40): a loss on preference pairs, no rewards, no advantages.

    ℓ = -log σ(β log π(y_w)/ref(y_w) - β log π(y_l)/ref(y_l))

Pairs are responses of the reference, the policy as it was before training, labelled by Bradley-Terry from RM, fresh for
each batch: a data set without end. At the minimum π ∝ ref exp(RM / (β temperature)) (claim `dpo-optimum`). Labels are
averaged over instead of drawn. Left out: label smoothing, a finite data set, and pairs from anybody else than the
reference.
"""

from dataclasses import dataclass
from typing import TypeVar

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import frozen


@dataclass(frozen=True)
class DPOConfig(AgentConfig):
    """Options of DPO."""

    group_size: int = 2
    """Responses to a prompt, in pairs."""
    beta: float = 0.1
    """β, how strongly the optimum is held to the reference."""
    preference_temperature: float = 1.0
    """Of the preferences: P(W ≻ W') = σ((RM(W) - RM(W')) / temperature), above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "preference_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.kl:
            raise ValueError(f"kl is {self.kl}, but DPO is held to its reference by beta; leave kl at 0.")
        if self.clip_low is not None or self.clip_high is not None:
            raise ValueError(
                "clip_low or clip_high is given, but the loss of DPO has no ratio to clip; leave them out."
            )


Options = TypeVar("Options", bound=DPOConfig)


class DPOAgent(Agent[Options]):
    """Preference pairs of the reference policy."""

    name, paper = "dpo", "Rafailov et al. 2023; Eq. 40"
    why_the_default = "it fits preferences and stays close to its reference, another aim than the largest reward"
    Config = DPOConfig

    def build(self):
        self.models["reference"] = frozen(self.policy)

    @property
    def behaviour(self):
        return self.models["reference"]

    def make_estimator(self):
        return estimators.DPO(
            group_size=self.config.group_size,
            beta=self.config.beta,
            preference_temperature=self.config.preference_temperature,
        )
