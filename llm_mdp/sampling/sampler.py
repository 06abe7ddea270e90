"""The sampler: the only source of randomness that an estimator has.

The same `collect` runs in training and in verification; only the sampler differs. `PolicySampler` (here) draws with a
generator; `enumeration.ExactSampler` returns every outcome as a world with its probability.
"""

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, take_rows
from llm_mdp.sampling.policies import Critic, Policy, branch_of, logp_of


class NothingKept(ValueError):
    """An estimator that leaves groups out left out all of them."""


class Sampler(Protocol):
    """What `collect` may ask for."""

    def rollouts(self, group_size: int, temperature: float = 1.0) -> Rollouts:
        """Draw group_size responses to every prompt of the batch. Ask once; a larger group serves every other need."""
        ...

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, "*worlds B"]:
        """RM(W)."""
        ...

    def branches(
        self,
        rollouts: Rollouts,
        boundary: Bool[Tensor, "*worlds B T"],
        samples: int = 1,
        greedy: bool = False,
        temperatures: tuple[float, ...] | None = None,
    ) -> Branches:
        """Draw `samples` fresh responses from the prefix before every boundary (greedy: one, by argmax).

        Args: temperatures: one for each of the samples, 0 for argmax; None: all 1.
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


class PolicySampler:
    """Draws from a policy on a TokenMDP with an explicit generator: `prompts_per_batch` prompts by their
    probabilities."""

    def __init__(self, policy: Policy, mdp: TokenMDP, generator: torch.Generator, prompts_per_batch: int = 1):
        self.policy, self.mdp, self.generator, self.prompts_per_batch = policy, mdp, generator, prompts_per_batch

    def rollouts(self, group_size: int, temperature: float = 1.0) -> Rollouts:
        mdp = self.mdp
        which = torch.multinomial(
            mdp.prompt_probability, self.prompts_per_batch, replacement=True, generator=self.generator
        )
        return self.policy.sample(
            mdp.prompt_tokens[which],
            group_size,
            eos=mdp.eos,
            horizon=mdp.horizon,
            generator=self.generator,
            temperature=temperature,
        )

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        return self.mdp.response_reward(rollouts.prompt, rollouts.tokens, rollouts.mask)

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return self.mdp.hidden_reward(rollouts.prompt, rollouts.tokens, rollouts.mask)

    @torch.no_grad()
    def branches(
        self,
        rollouts: Rollouts,
        boundary: Bool[Tensor, "B T"],
        samples: int = 1,
        greedy: bool = False,
        temperatures: tuple[float, ...] | None = None,
    ) -> Branches:
        def draw(row: Tensor, step: Tensor, number: int, temperature: float) -> tuple[Tensor, Tensor]:
            drawn = branch_of(
                self.policy, rollouts.prompt, rollouts.tokens, row, step, number,
                eos=self.mdp.eos, horizon=self.mdp.horizon, generator=self.generator,
                temperature=temperature or 1.0, greedy=temperature == 0,
            )  # fmt: skip
            return self.response_reward(drawn), drawn.length - step.repeat_interleave(number)

        return draw_branches(rollouts, boundary, check_temperatures(samples, greedy, temperatures), draw)

    @torch.no_grad()
    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask)

    @torch.no_grad()
    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "B T1"]:
        return critic(rollouts.prompt, rollouts.tokens, rollouts.mask)

    def keep(self, evidence: Evidence, groups: Bool[Tensor, " P"]) -> Evidence:
        return take_rows(evidence, kept_rows(evidence, groups))


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


def draw_branches(
    rollouts: Rollouts,
    boundary: Bool[Tensor, "B T"],
    temperatures: dict[float, int],
    draw: Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]],
) -> Branches:
    """Branches from every boundary: draw(row, step, number, temperature) gives rewards and numbers of tokens of
    `number` from each."""
    row, step = (boundary & rollouts.mask).nonzero(as_tuple=True)
    drawn = [(draw(row, step, number, temperature), number) for temperature, number in temperatures.items()]
    reward, tokens = (torch.cat([pair[k].reshape(len(row), number) for pair, number in drawn], dim=1) for k in (0, 1))
    each = reward.shape[1]
    return Branches(
        row.repeat_interleave(each),
        step.repeat_interleave(each),
        reward.flatten(),
        set(temperatures) == {0.0},
        tokens.flatten().double(),
    )


def check_temperatures(samples: int, greedy: bool, temperatures: tuple[float, ...] | None) -> dict[float, int]:
    """How many branches to draw at each temperature, 0 for argmax.

    Raises:
        ValueError: if there is not one temperature of at least 0 for each sample.
    """
    if greedy:
        return {0.0: 1}
    if temperatures is None:
        return {1.0: samples}
    if len(temperatures) != samples or not all(temperature >= 0 for temperature in temperatures):
        raise ValueError(f"temperatures are {temperatures!r} for {samples} branches; give one of at least 0 to each.")
    return dict(Counter(float(temperature) for temperature in temperatures))
