"""TRePO, Token-Reinforced Policy Optimization (the paper's §4, Algorithm 1, Eq. 31).

    Âₛ = Û(next boundary) - Û(boundary),   Û(prefix) = mean RM of M responses drawn from it,   Û(end) = RM(W)

variant "repaired" (default): every boundary in D has fresh draws of its own and all tokens of a segment share its
advantage; unbiased (claims `trepo`, `trepo-segment`, `trepo-lambda`). variant "paper": Algorithm 1 as printed, with the
draws of later steps pooled into the value of a step (Eq. 31), advantages interpolated outside D, and the branches'
temperature raised from 0; each of the three biases the gradient (claims `trepo-eq31`, `trepo-interpolated`,
`trepo-greedy-values`). Left out: D at fractions of the response's own length (claim `trepo-own-length`, no stopping
rule).

With `budget`, a pilot batch before training decides how that many tokens a batch are split between prompts, responses,
positions and branches (`llm_mdp.variance.allocation`); where branches do not pay, that is RLOO.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

from llm_mdp.estimators import algorithms as estimators
from llm_mdp.sampling.sampler import BatchSampler
from llm_mdp.variance.allocation import Split
from llm_mdp_agents.measuring import pilot_allocation
from llm_mdp_agents.models import is_large
from llm_mdp_agents.segments import BranchConfig, WithSegments


@dataclass(frozen=True)
class TRePOConfig(BranchConfig):
    """Options of TRePO."""

    group_size: int = 1
    clip_low: float | None = 0.2
    lam: float = 0.0
    """λ of GAE over segments; 0: differences of neighbouring values."""
    group_baseline: bool = False
    """The prompt's value is the mean reward of the other responses to it instead of branches."""
    variant: Literal["repaired", "paper"] = "repaired"
    """"paper": Algorithm 1 as printed."""
    pilot_prompts: int | None = None
    """Prompts of the pilot batch of `budget`, more make a surer choice; None: 64, for models of 20 million parameters
    or more 16."""
    budget: float | None = None
    """Generated tokens of a batch. A pilot batch then chooses prompts, responses, positions, branches and λ, whatever
    is said above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget is {self.budget}; a batch has a positive number of tokens.")
        if self.pilot_prompts is not None and self.pilot_prompts < 2:
            raise ValueError(f"pilot_prompts is {self.pilot_prompts}; a pilot batch has at least 2.")
        if self.budget is not None and self.variant == "paper":
            raise ValueError(
                "budget chooses among unbiased ways to draw; leave variant at 'repaired', or leave budget out."
            )


class TRePOAgent(WithSegments[TRePOConfig]):
    """Segment advantages from fresh draws at the boundaries D."""

    name, paper = "trepo", "Algorithm 1, Eq. 31"
    Config = TRePOConfig

    def prepare(self, sampler: BatchSampler) -> None:
        super().prepare(sampler)
        if self.config.budget is None:
            return
        sampler.prompts_per_batch = self.config.pilot_prompts or (16 if is_large(self.policy) else 64)
        found = pilot_allocation(self.config.budget, self.policy, sampler, self.task.horizon, seed=self.seed)
        if found.caution is not None:
            warnings.warn(f"budget chose {found.words}; a larger pilot_prompts makes it surer", stacklevel=2)
        split = found.split
        self.numbers |= {
            "group_size": split.group_size,
            "samples": found.samples,
            "lam": split.lam,
            "prompts": found.prompts,
        }
        self.numbers |= {f"cut {number}": step for number, step in enumerate(split.steps)}
        self.estimator = self.make_estimator()

    @property
    def prompts(self) -> int | None:
        chosen = self.numbers.get("prompts")
        return None if chosen is None else int(chosen)

    def make_estimator(self):
        config = self.config
        if "prompts" in self.numbers:
            steps = tuple(int(step) for name, step in self.numbers.items() if name.startswith("cut "))
            split = Split(int(self.numbers["group_size"]), steps, self.numbers["lam"])
            return replace(
                split.estimator(int(self.numbers["samples"])), clip_low=config.clip_low, clip_high=config.clip_high
            )
        options = {**self.common(), "boundary": self.boundary, "lam": config.lam}
        options |= {"group_baseline": config.group_baseline, "temperatures": (1.0,) * config.samples}
        if config.variant == "paper":
            options |= {"pooled": True, "interpolated": True, "temperatures": estimators.ramp(config.samples)}
        return estimators.TRePO(**options)
