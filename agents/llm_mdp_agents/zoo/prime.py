"""PRIME (Cui et al. 2025; the paper's Eq. 44-45): process rewards implicit in a model that is trained on outcomes,
online.

    q = β log(φ / π_ref) of a token,   φ by cross-entropy of σ(Σ q) and the outcome o = 1[RM > threshold]
    Aₖₜ = Σₛ≥ₜ (q_ks - mean over the other responses of their mean q) + w (oₖ - mean of the other o)

φ starts as a copy of the policy and learns from each batch after its advantages were taken, so that no token's reward
knows its own outcome (the original updates first). Claim `prime`: reported, for q is what φ makes of it. Left out: the
original's filter for prompts of middling accuracy.
"""

from dataclasses import dataclass
from typing import ClassVar

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp.estimators.objectives import outcome_cross_entropy
from llm_mdp_agents.auxiliary import check_rate
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import frozen, trainable_copy


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
    process_learning_rate: float | None = None
    """Of AdamW; None: as for a policy of its kind and size (0.05 for tables, 2e-4 for small models, 1e-4 for LoRA, 1e-5
    for other large models)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0.")
        check_rate("process_learning_rate", self.process_learning_rate)


class PRIMEAgent(Agent[PRIMEConfig]):
    """Implicit process rewards, learned online, and the outcome.

    Metrics, of a batch before φ learned from it: `process_model/loss`, the cross-entropy of a response in nats, and
    `process_model/accuracy`, the share of outcomes that the sign of Σ q says.
    """

    name, paper = "prime", "Cui et al. 2025; Eq. 44-45"
    why_the_default = "it follows successes and a model of them, as published, not the reward itself"
    Config = PRIMEConfig

    def build(self):
        self.models["reference"] = frozen(self.policy)
        self.add_model("process_model", trainable_copy(self.policy), self.config.process_learning_rate)

    def fit(self, evidence):
        config, implicit = self.config, evidence.token_reward
        assert implicit is not None
        outcome = (evidence.response_reward > config.threshold).double()

        def loss(logp):
            # The implicit reward is β log(φ_before/ref): its reference part is what the loss needs.
            reference_logp = logp.detach() - implicit / config.beta
            return outcome_cross_entropy((logp - reference_logp).sum(-1), outcome, config.beta).mean()

        right = ((implicit.sum(-1) > 0) == (outcome > 0)).double().mean()
        return {
            "process_model/loss": self.optimize_policy("process_model", evidence.rollouts, loss),
            "process_model/accuracy": float(right),
        }

    def make_estimator(self):
        models, config = self.models, self.config
        return estimators.PRIME(
            **self.common(), process_model=models["process_model"], reference=models["reference"],
            beta=config.beta, threshold=config.threshold, outcome_weight=config.outcome_weight,
        )  # fmt: skip
