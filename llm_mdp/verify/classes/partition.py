"""The responses to one prompt in classes: those of the same reward, length and finish are one class."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration

LAWS = 4
"""Of so many laws of the same responses the classes are remembered."""


@dataclass(frozen=True)
class Partition:
    """Responses that can be drawn, class by class, N of them in C classes.

    Class c = (reward, length, finish) has probability q_c; rewards are the same if they are the same float64.
    """

    prompt: int
    leaf: Int[Tensor, " N"]
    """Numbers of the responses in the enumeration, those of one class together."""
    kind: Int[Tensor, " N"]
    """The class of each, ascending."""
    chance: Float[Tensor, " N"]
    """Its probability, given the prompt, of being drawn."""
    reward: Float[Tensor, " C"]
    length: Int[Tensor, " C"]
    """In tokens of the policy."""
    finish: Int[Tensor, " C"]
    """A `Finish`."""
    trials: dict[int, Any] = field(default_factory=dict, repr=False)
    """By K, the groups of them on which estimators are tried (`trials.Trials`)."""

    @property
    def size(self) -> int:
        """C, number of classes."""
        return len(self.reward)

    @cached_property
    def probability(self) -> Float[Tensor, " C"]:
        """q_c of every class."""
        return torch.zeros(self.size, dtype=torch.float64).index_add(0, self.kind, self.chance)

    @cached_property
    def first(self) -> Int[Tensor, " C1"]:
        """Where every class begins among the responses, and their number."""
        return torch.searchsorted(self.kind, torch.arange(self.size + 1))

    def merged(self, into: Int[Tensor, " C"]) -> tuple["Partition", Int[Tensor, " N"]]:
        """Classes put together, class c into class into[c], and where each response stood before. What a class no
        longer has in common is that of one of its members."""
        kind = into[self.kind]
        order = kind.argsort(stable=True)
        some = torch.zeros(int(into.max()) + 1, dtype=torch.int64).index_copy(0, into, torch.arange(self.size))
        return Partition(
            self.prompt,
            self.leaf[order],
            kind[order],
            self.chance[order],
            self.reward[some],
            self.length[some],
            self.finish[some],
        ), order


def partition(enumeration: Enumeration, prompt: int, chance: Float[Tensor, " leaves"]) -> Partition:
    """The classes of one prompt's responses, those of chance 0 left out. The enumeration remembers the last few.

    Args: chance: probability of every response, of whoever draws: the policy, or another one in its place.
    """
    known: list[tuple[Tensor, Partition]] = enumeration.shared.setdefault(("partitions", prompt), [])
    for law, classes in known:
        if torch.equal(law, chance):
            return classes
    classes = _partition(enumeration, prompt, chance)
    known.append((chance, classes))
    del known[:-LAWS]
    return classes


def _partition(enumeration: Enumeration, prompt: int, chance: Float[Tensor, " leaves"]) -> Partition:
    leaf = chance.nonzero()[:, 0]
    reward = enumeration.response_reward[prompt, leaf]
    values, rank = reward.unique(return_inverse=True)
    key = torch.stack([rank, enumeration.length[leaf], enumeration.finish[leaf].long()], dim=1)
    classes, kind = key.unique(dim=0, return_inverse=True)
    order = kind.argsort(stable=True)
    leaf = leaf[order]
    return Partition(
        prompt, leaf, kind[order], chance[leaf], values[classes[:, 0]], length=classes[:, 1], finish=classes[:, 2]
    )
