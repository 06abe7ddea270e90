"""Iterative DPO (Xiong et al. 2024; the paper's §5.1): DPO whose pairs come from the policy of the latest iteration.

    every n = refresh batches: drawing policy ← π;   reference ← π, or stays the policy before training

With the first reference kept, the optimum stays π ∝ ref exp(RM / β) but the pairs come from where the policy is; with
the reference moved along, each iteration takes one more step of that size from where it begins (claim `dpo-optimum` for
each). Left out: best-of-n pairs.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from llm_mdp_agents.models import frozen
from llm_mdp_agents.zoo.dpo import DPOAgent, DPOConfig


@dataclass(frozen=True)
class IterativeDPOConfig(DPOConfig):
    """Options of iterative DPO."""

    refresh: int = 10
    """Batches of an iteration."""
    reference: Literal["moves", "stays"] = "moves"
    """Whether the reference becomes the policy at the start of each iteration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh < 1:
            raise ValueError(f"refresh is {self.refresh}; an iteration has at least 1 batch.")


class IterativeDPOAgent(DPOAgent[IterativeDPOConfig]):
    """Preference pairs of the policy at the start of each iteration."""

    name, paper = "iterative-dpo", "Xiong et al. 2024; Eq. 40, §5.1"
    named = "dpo"
    Config = IterativeDPOConfig

    def build(self):
        super().build()
        self.models["drawing"] = frozen(self.policy)

    @property
    def behaviour(self):
        return self.models["drawing"]

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return replace(evidence, reference_logp=sampler.logp(self.models["reference"], evidence.rollouts))

    @torch.no_grad()
    def fit(self, evidence):
        assert isinstance(self.policy, nn.Module)
        self.numbers["batches"] = self.numbers.get("batches", 0) + 1
        if self.numbers["batches"] % self.config.refresh == 0:
            for name in ("drawing", "reference") if self.config.reference == "moves" else ("drawing",):
                for mine, theirs in zip(self.models[name].parameters(), self.policy.parameters()):
                    # What is frozen in the policy is the same tensor in both.
                    if mine is not theirs:
                        mine.copy_(theirs)
        return {}
