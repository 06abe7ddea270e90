"""GRPO (Shao et al. 2024; the paper's Eq. 34-35), Dr. GRPO (Liu et al. 2025) and DAPO (Yu et al. 2025).

    Aₖ = (RMₖ - mean RM) / (std RM + eps),   clipped surrogate, 1/length or one of the other reductions

| variant | std | reduction | clip | groups of equal rewards | responses cut by the horizon |
|---|---|---|---|---|---|
| grpo | yes | sequence_mean | 0.2 | kept | kept |
| dr-grpo | no | constant (horizon) | 0.2 | kept | kept |
| dapo | yes | token_mean | 0.2 / 0.28 | left out | punished |

Any other option that is given overrides the variant's. Claims: `grpo` biased by the std, `grpo-length` and `token-mean`
by the reduction, `dr-grpo` proportional, `zero-std-filtered` reported, `masked-truncated` biased.

Groups that leave the batch (`dynamic_sampling`) are made up for by further prompts, in at most `refill` more rounds;
every process of a group fills its own part. The batch is then the first groups with signal of a stream of independent
ones, and how many are drawn hangs on which have signal and on nothing else. So, whether a batch gets full or not, the
mean over its groups estimates what one round does,

    E[g | signal] = E[g] / P(signal),   for a group whose rewards are all equal has g = 0

which is the direction without filtering (`token_mean` aside, whose denominator is the batch's): more rounds change the
noise alone.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from llm_mdp.estimators import algorithms as estimators
from llm_mdp.estimators.objectives import Reduction
from llm_mdp.estimators.values import has_signal
from llm_mdp.sampling.evidence import Evidence, Finish, join, take_rows
from llm_mdp.sampling.sampler import BatchSampler, NothingKept
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.sampler import TaskSampler

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
    """Leave out groups whose rewards are all equal, and draw further prompts in their place."""
    refill: int = 4
    """Most further rounds of drawing for a batch; 0: what leaves is not made up for."""
    overlong: Overlong | None = None
    """Responses that the horizon cuts: keep, mask (no advantage) or punish (-1 at the horizon, less over the last
    tokens before it)."""
    overlong_tokens: int = 4
    """How many tokens before the horizon the punishment begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("refill", "overlong_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")

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

    def collect(self, sampler):
        """A batch of as many groups with signal as prompts were asked, where `dynamic_sampling` and the rounds allow
        it; `told` says what that took."""
        if not (self.config.dynamic_sampling and isinstance(sampler, BatchSampler)):
            return super().collect(sampler)
        wanted, size = sampler.prompts_per_batch, self.group_size
        parts: list[Evidence] = []
        questions, asked, found, refills = (), 0, 0, 0
        try:
            while True:
                asked += sampler.prompts_per_batch
                try:
                    parts.append(super().collect(sampler))
                    questions += sampler.questions if isinstance(sampler, TaskSampler) else ()
                except NothingKept:
                    pass
                found = sum(len(part.response_reward) for part in parts) // size
                if found >= wanted or refills == self.config.refill:
                    break
                refills += 1
                # As many as are likely to hold what is missing.
                likely = math.ceil((wanted - found) * asked / found) if found else wanted
                sampler.prompts_per_batch = min(wanted, likely)
        finally:
            sampler.prompts_per_batch = wanted
        self.told = {
            "refills": float(refills),
            "groups_with_signal": found / asked,
            "groups_missing": float(max(wanted - found, 0)),
            "groups_left_over": float(max(found - wanted, 0)),
        }
        if not parts:
            raise NothingKept(
                f"none of {asked} groups, in {refills + 1} rounds, has two different rewards; take an easier task or a "
                f"larger group, or keep groups without signal (--dynamic-sampling False)."
            )
        rows = min(found, wanted) * size
        if isinstance(sampler, TaskSampler):
            sampler.questions = questions[:rows]
        return take_rows(join(parts), torch.arange(rows))

    def common(self):
        config = self.config
        constant = self.task.horizon if config.reduction == "constant" else None
        return super().common() | {"reduction": config.reduction, "reduction_constant": constant}

    def make_estimator(self):
        names = ("scale_by_std", "dynamic_sampling", "overlong", "overlong_tokens")
        return GroupRelative(
            **self.common(), **{name: getattr(self.config, name) for name in names}, horizon=self.task.horizon
        )
