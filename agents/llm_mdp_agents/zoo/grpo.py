"""GRPO (Shao et al. 2024; the paper's Eq. 34-35), Dr. GRPO (Liu et al. 2025) and DAPO (Yu et al. 2025).

    Aₖ = (RMₖ - mean RM) / (std RM + eps),   clipped surrogate, 1/length or one of the other reductions

| variant | std | reduction | clip | groups of equal rewards | responses cut by the horizon |
|---|---|---|---|---|---|
| grpo | yes | sequence_mean | 0.2 | kept | kept |
| dr-grpo | no | constant (horizon) | 0.2 | kept | kept |
| dapo | yes | token_mean | 0.2 / 0.28 | left out | punished |

Any other option that is given overrides the variant's. Claims: `grpo` biased by the std, `grpo-length` and `token-mean`
by the reduction, `dr-grpo` proportional, `zero-std-filtered` reported, `masked-truncated` biased. Left out: DAPO draws
again until a batch is full of groups with signal; here such groups just leave the batch.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from llm_mdp.estimators import algorithms as estimators
from llm_mdp.estimators.objectives import Reduction
from llm_mdp.estimators.values import has_signal
from llm_mdp.sampling.evidence import Finish
from llm_mdp_agents.base import Agent, AgentConfig

Overlong = Literal["keep", "mask", "punish"]


@dataclass(frozen=True)
class GRPOConfig(AgentConfig):
    """Options of GRPO."""

    least_group: ClassVar[int] = 2

    variant: Literal["grpo", "dr-grpo", "dapo"] = "grpo"
    """Which of the three; fills in the options below that are not given."""
    scale_by_std: bool | None = None
    """Divide by the group's standard deviation."""
    reduction: Reduction | None = None
    """How tokens become one loss, see `llm_mdp.estimators.objectives.reduce`; "constant" divides by the horizon."""
    dynamic_sampling: bool | None = None
    """Leave out groups whose rewards are all equal."""
    overlong: Overlong | None = None
    """Responses that the horizon cuts: keep, mask (no advantage) or punish (-1 at the horizon, less over the last
    tokens before it)."""
    overlong_tokens: int = 4
    """How many tokens before the horizon the punishment begins."""

    @property
    def filled(self) -> "GRPOConfig":
        """With the variant's options wherever none was given."""
        given = {name: value for name in GRPO_OPTIONS if (value := getattr(self, name)) is not None}
        return replace(self, **(VARIANTS[self.variant] | given))


GRPO_OPTIONS = {
    "scale_by_std": True,
    "reduction": "sequence_mean",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dynamic_sampling": False,
    "overlong": "keep",
}
VARIANTS = {
    "grpo": GRPO_OPTIONS,
    "dr-grpo": GRPO_OPTIONS | {"scale_by_std": False, "reduction": "constant"},
    "dapo": GRPO_OPTIONS
    | {"reduction": "token_mean", "clip_high": 0.28, "dynamic_sampling": True, "overlong": "punish"},
}


@dataclass(frozen=True)
class GroupRelative(estimators.GRPO):
    """`llm_mdp.estimators.algorithms.GRPO` with what DAPO does before (groups left out, long responses punished) and
    after (long ones masked)."""

    dynamic_sampling: bool = False
    overlong: Overlong = "keep"
    overlong_tokens: int = 4
    horizon: int = 1

    def collect(self, sampler):
        evidence = super().collect(sampler)
        if self.overlong == "punish":
            beyond = evidence.rollouts.length - (self.horizon - self.overlong_tokens)
            penalty = (beyond / max(self.overlong_tokens, 1)).clamp(0, 1).to(evidence.response_reward)
            evidence = replace(evidence, response_reward=evidence.response_reward - penalty)
        if self.dynamic_sampling:
            evidence = sampler.keep(evidence, has_signal(evidence.response_reward, self.group_size))
        return evidence

    def advantages(self, evidence):
        advantage = super().advantages(evidence)
        if self.overlong != "mask":
            return advantage
        return torch.where((evidence.rollouts.finish == Finish.HORIZON)[..., None], 0.0, advantage)


class GRPOAgent(Agent[GRPOConfig]):
    """Reward relative to the group's mean and standard deviation."""

    name, paper = "grpo", "Shao et al. 2024; Liu et al. 2025; Yu et al. 2025; Eq. 34-35"
    why_the_default = "as published and as most people run it; variant dr-grpo is proportional, rloo unbiased"
    Config = GRPOConfig

    def __init__(self, config, policy, task, seed=0):
        super().__init__(config.filled, policy, task, seed)

    def common(self):
        config = self.config
        constant = self.task.horizon if config.reduction == "constant" else None
        return super().common() | {"reduction": config.reduction, "reduction_constant": constant}

    def make_estimator(self):
        names = ("scale_by_std", "dynamic_sampling", "overlong", "overlong_tokens")
        return GroupRelative(
            **self.common(), **{name: getattr(self.config, name) for name in names}, horizon=self.task.horizon
        )
