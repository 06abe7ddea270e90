"""Where segments begin: the set D of TRePO, the steps of VinePPO, the macro actions of MA-RLHF.

A boundary is a *stopping rule* when whether step t begins a segment is decided by the prefix before t alone. Only then
are segment advantages unbiased (`trepo-segment`); rules that look at the finished response are kept as named
counter-examples. `words` says for people where segments begin.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from llm_mdp.sampling.evidence import Rollouts


class Boundary(Protocol):
    """boundary[…, b, t]: does a segment of response b begin with token t? Always True at the first policy token."""

    stopping_rule: ClassVar[bool]

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "*worlds B T"]: ...


@dataclass(frozen=True)
class EveryNTokens:
    """D = {1, 1 + n, 1 + 2n, …}, counted in policy tokens."""

    n: int = 1
    stopping_rule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}; a segment has at least 1 token.")

    @property
    def words(self) -> str:
        return "every token" if self.n == 1 else f"every {self.n} tokens"

    def __call__(self, rollouts):
        return rollouts.mask & (_position(rollouts.mask) % self.n == 0)


@dataclass(frozen=True)
class AfterTokens:
    """A segment begins after each of these tokens (full stop, line break, "Step") by which the one before has `least`
    policy tokens or more, and at the first token."""

    separators: tuple[int, ...]
    least: int = 1
    """Fewest policy tokens of a segment, the last one aside, so that they are at most ⌈length / least⌉."""
    stopping_rule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least is {self.least}; a segment has at least 1 token.")

    @property
    def words(self) -> str:
        number = len(self.separators)
        after = f"after token {self.separators[0]}" if number == 1 else f"after any of {number:,} tokens"
        return after if self.least == 1 else f"{after}, {self.least} tokens apart or more"

    def __call__(self, rollouts):
        mask = rollouts.mask
        separator = torch.isin(rollouts.tokens, torch.tensor(self.separators, dtype=torch.int64))
        after = torch.cat([torch.zeros_like(separator[..., :1]), separator[..., :-1]], dim=-1)
        begins = mask & (after | (_position(mask) == 0))
        if self.least == 1:
            return begins
        length = torch.full(mask.shape[:-1], self.least)
        for step in range(mask.shape[-1]):
            begins[..., step] &= length >= self.least
            length = torch.where(begins[..., step], 0, length) + mask[..., step]
        return begins


@dataclass(frozen=True)
class EveryTurn:
    """A segment is a turn: it begins where the policy goes on after somebody else, and at the first token. What the
    environment replies belongs to the segment before it. Claim: `turn-credit-values`, unbiased."""

    stopping_rule: ClassVar[bool] = True

    @property
    def words(self) -> str:
        return "every turn"

    def __call__(self, rollouts):
        mask = rollouts.mask
        return mask & ~torch.cat([torch.zeros_like(mask[..., :1]), mask[..., :-1]], dim=-1)


@dataclass(frozen=True)
class AtSteps:
    """Steps drawn or chosen before the response was seen (0-based policy tokens); the first is always among them."""

    steps: tuple[int, ...]
    stopping_rule: ClassVar[bool] = True

    @property
    def words(self) -> str:
        return f"before token {', '.join(str(step + 1) for step in sorted({0, *self.steps}))}"

    def __call__(self, rollouts):
        return rollouts.mask & torch.isin(_position(rollouts.mask), torch.tensor((0, *self.steps), dtype=torch.int64))


@dataclass(frozen=True)
class FractionsOfLength:
    """D = {floor(i len / parts) + 1}: parts of equal length. Not a stopping rule (`trepo-own-length`): it looks at the
    future."""

    parts: int = 2
    stopping_rule: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"parts is {self.parts}; a response has at least 1 part.")

    @property
    def words(self) -> str:
        return f"{self.parts} parts of the response's own length"

    def __call__(self, rollouts):
        length, position = rollouts.length[..., None], _position(rollouts.mask)
        starts = torch.stack([i * length // self.parts for i in range(self.parts)])
        return rollouts.mask & (position == starts).any(0)


def _position(mask: Bool[Tensor, "*worlds B T"]) -> Tensor:
    """0, 1, 2, … along the policy tokens."""
    return mask.cumsum(-1) - 1
