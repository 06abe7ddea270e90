"""RTO, Reinforced Token Optimization (Zhong et al. 2024; the paper's Eq. 41): a DPO model's log-ratios as token
rewards.

    rₜ = β log(π_DPO / π_ref),   summed from t on

First a copy of the policy is trained by DPO on pairs of the reference (`dpo_batches`), then the policy on its rewards.
At the DPO optimum they sum to RM(W) less a constant of the prompt and the gradient is unbiased (claim `rto`); a model
short of it has other rewards. `paper=True` is the ratio as printed (claim `rto-eq41`, biased). Left out: the original's
extra reward on the last token and its clipping of rₜ to ±0.05, which also biases.
"""

from dataclasses import dataclass
from functools import partial

from llm_mdp.estimators import learned_credit as estimators
from llm_mdp_agents.auxiliary import check_counts, check_rate, ranked_alike
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import default_learning_rate, frozen, is_large, trainable_copy


@dataclass(frozen=True)
class RTOConfig(AgentConfig):
    """Options of RTO."""

    beta: float = 1.0
    """β of DPO and of the rewards; with the preferences' temperature 1 the rewards then have the size of RM."""
    dpo_batches: int = 300
    """Batches of pairs that the DPO model is trained on."""
    dpo_learning_rate: float | None = None
    """Of AdamW; None: 0.05 for tables, 2e-4 for small models; 1e-5 for LoRA and 1e-6 for other large models, a tenth of
    a policy's, for β = 1 makes every nat of a response count."""
    paper: bool = False
    """Eq. 41 as printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0.")
        check_rate("dpo_learning_rate", self.dpo_learning_rate)
        check_counts(dpo_batches=self.dpo_batches)


class RTOAgent(Agent[RTOConfig]):
    """Implicit rewards of a model trained by DPO.

    Metrics: `dpo/nats_per_token`, the mean of log(π_DPO / π_ref) over the policy's tokens, and `dpo/accuracy`, the
    share of pairs of responses to one prompt that Σ r ranks as RM does, where the batch has such pairs.
    """

    name, paper = "rto", "Zhong et al. 2024; Eq. 41"
    why_the_default = "its rewards come from a DPO model that is fitted, not solved for; dpo_batches lessen the bias"
    Config = RTOConfig

    def build(self):
        self.models["reference"] = frozen(self.policy)
        rate = self.config.dpo_learning_rate
        if rate is None and is_large(self.policy):
            rate = default_learning_rate(self.policy) / 10
        self.add_model("dpo", trainable_copy(self.policy), rate)

    def prepare(self, sampler):
        dpo = estimators.DPO(group_size=2, beta=self.config.beta)
        for number in range(self.config.dpo_batches):
            evidence = dpo.collect(sampler)
            self.optimize_policy("dpo", evidence.rollouts, partial(dpo.loss, evidence=evidence))
            self.report("DPO model", number + 1, self.config.dpo_batches)

    def fit(self, evidence):
        reward = evidence.token_reward
        assert reward is not None
        metrics = {}
        if not self.config.paper:
            metrics["dpo/nats_per_token"] = float(reward.sum() / evidence.rollouts.mask.sum()) / self.config.beta
        right = ranked_alike(reward.sum(-1), evidence.response_reward, self.group_size)
        return metrics if right is None else metrics | {"dpo/accuracy": right}

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
