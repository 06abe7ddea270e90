"""PRIME (Cui et al. 2025; the paper's Eq. 44-45): process rewards implicit in a model that is trained on outcomes,
online.

    q = β log(φ / π_ref) of a token,   φ by cross-entropy of σ(Σ q) and the outcome o = 1[RM > threshold]
    Aₖₜ = Σₛ≥ₜ (q_ks - mean over the other responses of their mean q) + w (oₖ - mean of the other o)

φ starts as a copy of the policy and learns from each batch after its advantages were taken, so that no token's reward
knows its own outcome (the original updates first). Claim `prime`: reported, for q is what φ makes of it. Left out: the
original's filter for prompts of middling accuracy.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp.estimators.objectives import outcome_cross_entropy
from llm_mdp.sampling.policies import logp_of
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import frozen


@dataclass(frozen=True)
class PRIMEConfig(AgentConfig):
    """Options of PRIME."""

    least_group: ClassVar[int] = 2

    beta: float = 0.05
    """β of the process rewards."""
    threshold: float = 0.5
    """A response succeeds if its reward is above."""
    outcome_weight: float = 1.0
    """w of the outcome."""
    process_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0.")


class PRIMEAgent(Agent[PRIMEConfig]):
    """Implicit process rewards, learned online, and the outcome."""

    name, paper = "prime", "Cui et al. 2025; Eq. 44-45"
    why_the_default = "it follows successes and a model of them, as published, not the reward itself"
    Config = PRIMEConfig

    def build(self):
        self.models["reference"] = frozen(self.policy)
        self.add_model("process_model", copy.deepcopy(self.policy), self.config.process_learning_rate)

    def fit(self, evidence):
        config, rollouts, model = self.config, evidence.rollouts, self.models["process_model"]
        outcome = (evidence.response_reward > config.threshold).double()
        assert evidence.token_reward is not None
        logp = logp_of(model, rollouts.prompt, rollouts.tokens, rollouts.mask).double()
        # token_reward is β log(φ_before/ref): its reference part is what the loss needs.
        reference_logp = logp.detach() - evidence.token_reward / config.beta
        loss = outcome_cross_entropy((logp - reference_logp).sum(-1), outcome, config.beta).mean()
        return {"process_model/loss": self.optimize("process_model", loss)}

    def make_estimator(self):
        models, config = self.models, self.config
        return estimators.PRIME(
            **self.common(), process_model=models["process_model"], reference=models["reference"],
            beta=config.beta, threshold=config.threshold, outcome_weight=config.outcome_weight,
        )  # fmt: skip
