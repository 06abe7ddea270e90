"""TRePO, Token-Reinforced Policy Optimization (the paper's §4, Algorithm 1, Eq. 31).

    Âₛ = Û(next boundary) - Û(boundary),   Û(prefix) = mean RM of M responses drawn from it,   Û(end) = RM(W)

variant "repaired" (default): every boundary in D has fresh draws of its own and all tokens of a segment share its
advantage; unbiased (claims `trepo`, `trepo-segment`, `trepo-lambda`). variant "paper": Algorithm 1 as printed, with the
draws of later steps pooled into the value of a step (Eq. 31), advantages interpolated outside D, and the branches'
temperature raised from 0; each of the three biases the gradient (claims `trepo-eq31`, `trepo-interpolated`,
`trepo-greedy-values`). Left out: D at fractions of the response's own length (claim `trepo-own-length`, no stopping
rule).

With `budget`, a pilot before training decides how that many tokens a batch are split between prompts, responses,
positions and branches (`llm_mdp.variance.allocation`); where branches do not pay, that is RLOO. The pilot costs at most
`pilot_share` of the run, and its draws are the first batch where the choice allows it (`llm_mdp_agents.pilot`).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from llm_mdp.estimators import algorithms as estimators
from llm_mdp.sampling.evidence import Evidence, join, take_rows
from llm_mdp.sampling.sampler import BatchSampler
from llm_mdp.variance.allocation import Split
from llm_mdp_agents.models import is_large
from llm_mdp_agents.pilot import Waiting, run_pilot, unpacked
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
    """Most prompts of the pilot of `budget`, more make a surer choice; None: 64, for models of 20 million parameters or
    more 16."""
    pilot_share: float = 0.05
    """Most of the run's tokens (steps x budget) that the pilot may cost, where a token that is read backward for a
    gradient counts as half of one that is drawn."""
    budget: float | None = None
    """Generated tokens of a batch. A pilot then chooses prompts, responses, positions, branches and λ, whatever
    is said above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget is {self.budget}; a batch has a positive number of tokens.")
        if self.pilot_prompts is not None and self.pilot_prompts < 2:
            raise ValueError(f"pilot_prompts is {self.pilot_prompts}; a pilot batch has at least 2.")
        if not self.pilot_share > 0:
            raise ValueError(f"pilot_share is {self.pilot_share}; it must be above 0.")
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
        config, large = self.config, is_large(self.policy)
        run = math.inf if self.steps is None else self.steps * self.config.budget
        found = run_pilot(
            self.config.budget, self.policy, sampler, self.task.horizon,
            most_prompts=config.pilot_prompts or (16 if large else 64), most_tokens=config.pilot_share * run,
            prompts_at_once=2 if large else None, seed=self.seed,
            report=lambda done, total: self.report("pilot", done, total),
        )  # fmt: skip
        # What is said of segments is said of those without a budget.
        self.notes[:] = [f"budget chose {found.words}"]
        split, self.waiting = found.split, found.waiting
        self.numbers |= {
            "group_size": split.group_size,
            "samples": found.samples,
            "lam": split.lam,
            "prompts": found.prompts,
            "pilot_prompts": found.tried,
            "pilot_tokens": found.tokens,
        }
        self.numbers |= {f"cut {number}": step for number, step in enumerate(split.steps)}
        self.estimator = self.make_estimator()

    def collect(self, sampler):
        """The first batch is the pilot's, as far as it goes; `told` says then what the pilot chose and cost."""
        self.told = {}
        if "prompts" not in self.numbers or self.steps_done or not isinstance(sampler, BatchSampler):
            return super().collect(sampler)
        chosen = {name: value for name, value in self.numbers.items() if not name.startswith("cut ")}
        cuts = len(self.numbers) - len(chosen)
        self.told = {f"budget/{name}": float(value) for name, value in chosen.items() if name != "kl"}
        self.told["budget/cuts"] = float(cuts)
        return self._first_batch(sampler) if self.waiting else super().collect(sampler)

    def _first_batch(self, sampler: BatchSampler) -> Evidence:
        """This process's part of the pilot's batch, and what is missing drawn."""
        drawn, wanted, size = unpacked(self.waiting), sampler.prompts_per_batch, self.group_size
        self.waiting = {}
        rows = torch.arange(len(drawn.response_reward))[self.rank * wanted * size : (self.rank + 1) * wanted * size]
        missing = wanted - len(rows) // size
        parts = [super().collect(Waiting(sampler, take_rows(drawn, rows)))] if len(rows) else []
        if not missing:
            return parts[0]
        try:
            sampler.prompts_per_batch = missing
            return join([*parts, super().collect(sampler)])
        finally:
            sampler.prompts_per_batch = wanted

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
