"""RTO, Reinforced Token Optimization (Zhong et al. 2024; the paper's Eq. 41): a DPO model's log-ratios as token
rewards.

    rₜ = β log(π_DPO / π_ref),   summed from t on

First a copy of the policy is trained by DPO on pairs of the reference (`dpo_batches`), then the policy on its rewards.
At the DPO optimum they sum to RM(W) less a constant of the prompt and the gradient is unbiased (claim `rto`); a model
short of it has other rewards. `paper=True` is the ratio as printed (claim `rto-eq41`, biased). Left out: the original's
extra reward on the last token and its clipping of rₜ to ±0.05, which also biases.
"""

import copy
from dataclasses import dataclass

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp.sampling.policies import logp_of
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import frozen


@dataclass(frozen=True)
class RTOConfig(AgentConfig):
    """Options of RTO."""

    beta: float = 1.0
    """β of DPO and of the rewards; with the preferences' temperature 1 the rewards then have the size of RM."""
    dpo_batches: int = 300
    """Batches of pairs that the DPO model is trained on."""
    dpo_learning_rate: float = 1e-2
    paper: bool = False
    """Eq. 41 as printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0.")


class RTOAgent(Agent[RTOConfig]):
    """Implicit rewards of a model trained by DPO."""

    name, paper = "rto", "Zhong et al. 2024; Eq. 41"
    why_the_default = "its rewards come from a DPO model that is fitted, not solved for; dpo_batches lessen the bias"
    Config = RTOConfig

    def build(self):
        self.models["reference"] = frozen(self.policy)
        self.add_model("dpo", copy.deepcopy(self.policy), self.config.dpo_learning_rate)

    def prepare(self, sampler):
        dpo = estimators.DPO(group_size=2, beta=self.config.beta)
        for _ in range(self.config.dpo_batches):
            evidence = dpo.collect(sampler)
            rollouts = evidence.rollouts
            logp = logp_of(self.models["dpo"], rollouts.prompt, rollouts.tokens, rollouts.mask)
            self.optimize("dpo", dpo.loss(logp.double(), evidence))

    def make_estimator(self):
        models, config = self.models, self.config
        return estimators.RTO(
            **self.common(),
            dpo_policy=models["dpo"],
            reference=models["reference"],
            beta=config.beta,
            paper=config.paper,
            group_baseline=config.group_size > 1,
        )
