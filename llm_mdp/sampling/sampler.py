"""The sampler: the only source of randomness that an estimator has.

The same `collect` runs in training and in verification; only the sampler differs. `PolicySampler` (here) draws with a
generator; `enumeration.ExactSampler` returns every outcome as a world with its probability.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.conversation import converse
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, take_rows
from llm_mdp.sampling.policies import Critic, Policy, branch_of, logp_of, prefixes_of


class NothingKept(ValueError):
    """An estimator that leaves groups out left out all of them."""


class Sampler(Protocol):
    """What `collect` may ask for."""

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        """Draw group_size responses to every prompt of the batch. Ask once; a larger group serves every other need.

        Args: behaviour: another policy that draws them in place of the one that is differentiated.
        """
        ...

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, "*worlds B"]:
        """RM(W)."""
        ...

    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "*worlds B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        """Draw fresh responses from the prefix before every boundary, one at each of these temperatures.

        Args: temperatures: (1.0,) * M are M draws of the policy's own, (0.0,) is the greedy response.
        """
        ...

    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "*worlds B T"]:
        """log-probability of the drawn tokens under another policy, without gradient."""
        ...

    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "*worlds B T1"]:
        """A critic's value of the prefix before step t, t = 0 … T, without gradient."""
        ...

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "*worlds B T"]:
        """The hidden token rewards, for statements about them and for comparison runs; agents have no business here."""
        ...

    def keep(self, evidence: Evidence, groups: Bool[Tensor, "*worlds P"]) -> Evidence:
        """Leave the other groups out: of the batch when training, of the expectation when verifying."""
        ...


class SamplerAround:
    """Base of samplers around another one: everything is the other's, but for what a subclass changes."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        return self.sampler.rollouts(group_size, temperature, behaviour)

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, "*worlds B"]:
        return self.sampler.response_reward(rollouts)

    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "*worlds B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        return self.sampler.branches(rollouts, boundary, temperatures)

    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "*worlds B T"]:
        return self.sampler.logp(policy, rollouts)

    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "*worlds B T1"]:
        return self.sampler.value(critic, rollouts)

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "*worlds B T"]:
        return self.sampler.hidden_reward(rollouts)

    def keep(self, evidence: Evidence, groups: Bool[Tensor, "*worlds P"]) -> Evidence:
        return self.sampler.keep(evidence, groups)


class BatchSampler(ABC):
    """Base of samplers that draw batches, one world: what they share is scored and chosen row by row."""

    prompts_per_batch: int

    @abstractmethod
    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts: ...

    @abstractmethod
    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]: ...

    @abstractmethod
    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]: ...

    @abstractmethod
    def draw(
        self, rollouts: Rollouts, row: Int[Tensor, " F"], step: Int[Tensor, " F"], number: int, temperature: float
    ) -> tuple[Float[Tensor, " FN"], Int[Tensor, " FN"]]:
        """`number` responses from before step[f] of response row[f], for every f: their rewards, and how many tokens
        were drawn for each."""

    @torch.no_grad()
    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        row, step = (boundary & rollouts.mask).nonzero(as_tuple=True)
        counts = check_temperatures(temperatures)
        drawn = [(self.draw(rollouts, row, step, number, each), number) for each, number in counts.items()]
        reward, tokens = (torch.cat([pair[k].reshape(len(row), number) for pair, number in drawn], 1) for k in (0, 1))
        each = reward.shape[1]
        return Branches(
            row.repeat_interleave(each), step.repeat_interleave(each), reward.flatten(), tokens.flatten().double()
        )

    @torch.no_grad()
    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask)

    @torch.no_grad()
    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "B T1"]:
        return critic(rollouts.prompt, rollouts.tokens, rollouts.mask)

    def keep(self, evidence: Evidence, groups: Bool[Tensor, " P"]) -> Evidence:
        return take_rows(evidence, kept_rows(evidence, groups))


class PolicySampler(BatchSampler):
    """Draws from a policy on a TokenMDP with an explicit generator: `prompts_per_batch` prompts by their
    probabilities."""

    def __init__(self, policy: Policy, mdp: TokenMDP, generator: torch.Generator, prompts_per_batch: int = 1):
        self.policy, self.mdp, self.generator, self.prompts_per_batch = policy, mdp, generator, prompts_per_batch

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        mdp, generator = self.mdp, self.generator
        probability = mdp.prompt_probability
        which = torch.multinomial(probability, self.prompts_per_batch, replacement=True, generator=generator)
        drawn_by = self.policy if behaviour is None else behaviour
        if mdp.environment is not None:
            prompt = mdp.prompt_tokens[which].repeat_interleave(group_size, dim=0)
            nothing = torch.full((len(prompt), mdp.horizon), PAD)
            return converse(drawn_by, mdp, prompt, nothing, generator=generator, temperature=temperature)
        shape = {"eos": mdp.eos, "horizon": mdp.horizon, "generator": generator, "temperature": temperature}
        return drawn_by.sample(mdp.prompt_tokens[which], group_size, **shape)

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        return self.mdp.response_reward(rollouts.prompt, rollouts.tokens, rollouts.mask)

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return self.mdp.hidden_reward(rollouts.prompt, rollouts.tokens, rollouts.mask)

    def draw(self, rollouts, row, step, number, temperature):
        if self.mdp.environment is not None:
            prefix = prefixes_of(rollouts.tokens, row, step).repeat_interleave(number, dim=0)
            drawn = converse(
                self.policy, self.mdp, rollouts.prompt[row].repeat_interleave(number, dim=0), prefix,
                generator=self.generator, temperature=temperature or 1.0, greedy=temperature == 0,
            )  # fmt: skip
            given = ((prefix != PAD) & self.mdp.policy_steps).sum(-1)
            return self.response_reward(drawn), drawn.length - given
        drawn = branch_of(
            self.policy, rollouts.prompt, rollouts.tokens, row, step, number,
            eos=self.mdp.eos, horizon=self.mdp.horizon, generator=self.generator,
            temperature=temperature or 1.0, greedy=temperature == 0,
        )  # fmt: skip
        return self.response_reward(drawn), drawn.length - step.repeat_interleave(number)


def kept_rows(evidence: Evidence, groups: Bool[Tensor, " P"]) -> Int[Tensor, " N"]:
    """The numbers of the rows whose group stays.

    Raises:
        NothingKept: if none does.
    """
    if not groups.any():
        raise NothingKept(
            f"none of {len(groups)} groups is kept; draw more prompts a batch, or keep groups without signal."
        )
    return groups.repeat_interleave(len(evidence.response_reward) // len(groups)).nonzero()[:, 0]


def check_temperatures(temperatures: Sequence[float]) -> dict[float, int]:
    """How many branches to draw at each temperature, 0 for argmax.

    Raises:
        ValueError: without a temperature, or for one that is no number of at least 0.
    """
    if not temperatures or not all(0 <= temperature < math.inf for temperature in temperatures):
        raise ValueError(
            f"temperatures are {tuple(temperatures)!r}; give each branch one of at least 0: (1.0,) * M for M draws of "
            "the policy's own, (0.0,) for the greedy response."
        )
    return dict(Counter(float(temperature) for temperature in temperatures))
