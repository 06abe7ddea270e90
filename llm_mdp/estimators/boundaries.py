"""Where segments begin: the set D of TRePO, the steps of VinePPO, the macro actions of MA-RLHF.

A boundary is a *stopping rule* when whether step t begins a segment is decided by the prefix before t alone. Only then
are segment advantages unbiased (`trepo-segment`); rules that look at the finished response are kept as named
counter-examples.
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

    def __call__(self, rollouts):
        return rollouts.mask & (_position(rollouts.mask) % self.n == 0)


@dataclass(frozen=True)
class AfterTokens:
    """A segment begins after each of these tokens (full stop, line break, "Step"), and at the first token."""

    separators: tuple[int, ...]
    stopping_rule: ClassVar[bool] = True

    def __call__(self, rollouts):
        separator = torch.isin(rollouts.tokens, torch.tensor(self.separators, dtype=torch.int64))
        after = torch.cat([torch.zeros_like(separator[..., :1]), separator[..., :-1]], dim=-1)
        return rollouts.mask & (after | (_position(rollouts.mask) == 0))


@dataclass(frozen=True)
class EveryTurn:
    """A segment is a turn: it begins where the policy goes on after somebody else, and at the first token. What the
    environment replies belongs to the segment before it. Claim: `turn-credit-values`, unbiased."""

    stopping_rule: ClassVar[bool] = True

    def __call__(self, rollouts):
        mask = rollouts.mask
        return mask & ~torch.cat([torch.zeros_like(mask[..., :1]), mask[..., :-1]], dim=-1)


@dataclass(frozen=True)
class AtSteps:
    """Steps drawn or chosen before the response was seen (0-based policy tokens); the first is always among them."""

    steps: tuple[int, ...]
    stopping_rule: ClassVar[bool] = True

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

    def __call__(self, rollouts):
        length, position = rollouts.length[..., None], _position(rollouts.mask)
        starts = torch.stack([i * length // self.parts for i in range(self.parts)])
        return rollouts.mask & (position == starts).any(0)


def _position(mask: Bool[Tensor, "*worlds B T"]) -> Tensor:
    """0, 1, 2, … along the policy tokens."""
    return mask.cumsum(-1) - 1
