"""Samplers around samplers: one that counts what an estimator's draws cost, and one that lets many estimators see the
same draws."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, occurrence, take_rows
from llm_mdp.sampling.policies import Policy
from llm_mdp.sampling.sampler import Sampler, SamplerAround, check_temperatures, kept_rows

ANOTHER_POLICY = "and this estimator asks for those of another policy (`behaviour`)"


class Meter(SamplerAround):
    """Another sampler, with a record of what was drawn from it."""

    def __init__(self, sampler: Sampler):
        super().__init__(sampler)
        self.responses: Rollouts | None = None
        self.branched: list[Branches] = []
        self.groups: Bool[Tensor, "*worlds P"] | None = None
        """Which groups the estimator kept; None: it was not choosy."""

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        self.responses = super().rollouts(group_size, temperature, behaviour)
        self.branched, self.groups = [], None
        return self.responses

    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "*worlds B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        self.branched.append(super().branches(rollouts, boundary, temperatures))
        return self.branched[-1]

    def keep(self, evidence: Evidence, groups: Bool[Tensor, "*worlds P"]) -> Evidence:
        self.groups = groups
        return super().keep(evidence, groups)

    def __getattr__(self, name: str) -> Any:
        """What only this kind of sampler has: probabilities of worlds and the like."""
        return getattr(self.sampler, name)

    def cost(self, group_size: int) -> tuple[Float[Tensor, "*worlds"], Float[Tensor, "*worlds"]]:
        """Generated tokens (or their expectation, where branches were summed up by theirs) and reward calls.

        Returns:
            One number a world, of all its groups; without worlds one for every group of `group_size` rows.
        """
        assert self.responses is not None
        length = self.responses.length.double()
        worlds = length.dim() > 1
        tokens = length.sum(-1) if worlds else length.unflatten(0, (-1, group_size)).sum(-1)
        rewards = torch.full_like(tokens, length.shape[-1] if worlds else group_size)
        for branches in self.branched:
            assert branches.tokens is not None
            drawn = (branches.tokens > 0).double()
            if worlds:
                tokens, rewards = tokens + branches.tokens.sum(-1), rewards + drawn.sum(-1)
            else:
                group = branches.row // group_size
                tokens, rewards = tokens.index_add(0, group, branches.tokens), rewards.index_add(0, group, drawn)
        return tokens, rewards


class SharedDraws(SamplerAround):
    """One batch, drawn once, for many estimators: each sees `group_size` of the responses to every prompt, the first
    ones or, with `part` k, the k-th ones after them.

    Branches from a place are drawn when somebody first asks for them and kept, so estimators that branch from the same
    places share their draws (draw m is the same for all). Differences between estimators then are differences of the
    estimators. Every estimator's own cost is still what a `Meter` around this sampler counts.

    Args:
        sampler: a sampler of batches (no worlds); its latest rollouts must stay this batch's.
        group_size: responses to a prompt that are drawn, at least as many as any estimator asks for.
    """

    def __init__(self, sampler: Sampler, group_size: int):
        super().__init__(sampler)
        self.largest = group_size
        self.batch = sampler.rollouts(group_size)
        self.reward = sampler.response_reward(self.batch)
        self.part = 0
        """Which disjoint group of responses estimators see."""
        self._seen = torch.arange(0)
        self._branches: dict[float, Branches] = {}

    @property
    def drawn_tokens(self) -> float:
        """Tokens that were generated in all."""
        branches = (each.tokens for each in self._branches.values())
        return float(self.batch.length.sum()) + sum(float(tokens.sum()) for tokens in branches if tokens is not None)

    def rows(self, group_size: int) -> Int[Tensor, " B"]:
        """The numbers, in the batch, of the responses to every prompt that an estimator sees.

        Raises:
            ValueError: if the batch has not so many.
        """
        first = self.part * group_size
        if first + group_size > self.largest:
            raise ValueError(
                f"group {self.part + 1} of {group_size} responses was asked for, but {self.largest} a prompt were "
                f"drawn; draw more."
            )
        return torch.arange(len(self.reward)).unflatten(0, (-1, self.largest))[:, first : first + group_size].flatten()

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        if temperature != 1:
            raise ValueError(
                f"the batch was drawn at temperature 1, and this estimator asks for {temperature}; measure it on its "
                f"own."
            )
        if behaviour is not None:
            raise ValueError(f"the batch was drawn by the policy itself, {ANOTHER_POLICY}; measure it on its own.")
        self._seen = self.rows(group_size)
        return take_rows(Evidence(self.batch, self.reward), self._seen).rollouts

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        return self.reward[self._rows_of(rollouts)]

    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        rows = self._rows_of(rollouts)
        wanted = torch.zeros(self.batch.mask.shape, dtype=torch.bool)
        wanted[rows] = boundary & rollouts.mask
        place_of = torch.full((len(self.reward),), -1).index_copy(0, rows, torch.arange(len(rows)))
        parts = []
        for temperature, number in check_temperatures(temperatures).items():
            known = self._drawn(wanted, number, temperature)
            chosen = wanted[known.row, known.step] & (occurrence(known) < number)
            assert known.tokens is not None
            parts.append((place_of[known.row[chosen]], known.step[chosen], known.reward[chosen], known.tokens[chosen]))
        row, step, reward, tokens = (torch.cat(part) for part in zip(*parts))
        order = (row * boundary.shape[-1] + step).argsort(stable=True)
        return Branches(row[order], step[order], reward[order], tokens[order])

    def _drawn(self, wanted: Bool[Tensor, "R T"], number: int, temperature: float) -> Branches:
        """All that has been drawn at this temperature, at least `number` from every wanted place."""
        known = self._branches.get(temperature)
        have = torch.zeros(wanted.shape, dtype=torch.int64)
        if known is not None:
            have.index_put_((known.row, known.step), torch.ones_like(known.row), accumulate=True)
        lacking = torch.where(wanted, number - have, 0).clamp(min=0)
        for missing in lacking[lacking > 0].unique().tolist():
            new = self.sampler.branches(self.batch, lacking == missing, (temperature,) * missing)
            known = new if known is None else _together(known, new)
        if known is None:
            nothing, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
            return Branches(nothing, nothing, none, tokens=none)
        self._branches[temperature] = known
        return known

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return self.sampler.hidden_reward(self.batch)[self._rows_of(rollouts)]

    def keep(self, evidence: Evidence, groups: Bool[Tensor, " P"]) -> Evidence:
        kept = kept_rows(evidence, groups)
        self._seen = self._seen[kept]
        return take_rows(evidence, kept)

    def _rows_of(self, rollouts: Rollouts) -> Int[Tensor, " B"]:
        """The numbers, in the batch, of the latest rollouts that were handed out or kept."""
        if len(rollouts.tokens) != len(self._seen):
            raise ValueError(
                f"{len(rollouts.tokens)} responses are not the {len(self._seen)} that were handed out last; pass those "
                f"on."
            )
        return self._seen


def _together(one: Branches, two: Branches) -> Branches:
    row, step, reward, tokens = (
        torch.cat([getattr(one, name), getattr(two, name)]) for name in ("row", "step", "reward", "tokens")
    )
    return replace(one, row=row, step=step, reward=reward, tokens=tokens)


class SameRollouts(SamplerAround):
    """A sampler (`llm_mdp.sampling.sampler.Sampler`) that answers with responses drawn before; branches and values are
    drawn afresh.

    Args:
        sampler: the one that drew them; it is asked for everything else.
        rollouts, reward: its responses, group_size to a prompt, and what they are worth.
    """

    def __init__(self, sampler: Sampler, rollouts: Rollouts, reward: Float[Tensor, " B"], group_size: int):
        super().__init__(sampler)
        self.recorded, self.reward, self.group_size = rollouts, reward, group_size
        self.rows = torch.arange(len(reward))
        """Which responses are still there, after `keep`."""

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        if behaviour is not None:
            raise ValueError(
                f"all estimators look at the same responses of the policy itself, {ANOTHER_POLICY}; leave it out."
            )
        if (group_size, temperature) != (self.group_size, 1.0):
            raise ValueError(
                f"an estimator asks for {group_size} responses to a prompt at temperature {temperature:g}; all "
                f"estimators look at the same "
                f"{self.group_size}, drawn at temperature 1, so this one cannot be among them."
            )
        return self.recorded

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        if torch.equal(rollouts.tokens, self.recorded.tokens[self.rows]):
            return self.reward[self.rows]
        return self.sampler.response_reward(rollouts)

    def branches(self, rollouts, boundary, temperatures=(1.0,)) -> Branches:
        # The sampler knows the questions of all responses; those that were left out have no boundary.
        everywhere = torch.zeros_like(self.recorded.mask).index_copy(0, self.rows, boundary & rollouts.mask)
        branches = self.sampler.branches(self.recorded, everywhere, temperatures)
        place = torch.zeros(len(self.reward), dtype=torch.int64).index_copy(0, self.rows, torch.arange(len(self.rows)))
        return replace(branches, row=place[branches.row])

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return self.sampler.hidden_reward(self.recorded)[self.rows]

    def keep(self, evidence: Evidence, groups) -> Evidence:
        rows = kept_rows(evidence, groups)
        self.rows = self.rows[rows]
        return take_rows(evidence, rows)
