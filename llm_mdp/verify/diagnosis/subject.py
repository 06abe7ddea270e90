"""What is examined: the weights so far, and what is known of them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.verify.diagnosis import repairs
from llm_mdp.verify.diagnosis.black_box import TOLERANCE, BlackBox, Shown, Weights, same
from llm_mdp.verify.diagnosis.repairs import Repair

LARGE = 1e6
"""Rewards so large that small constants beside them do not count."""
CLOSE = 1e-3
"""Weights that are the same but for a constant beside a std are closer than this part of the largest."""
PROBES = 400
"""Worlds that are looked at."""


@dataclass(frozen=True)
class Found:
    """What one intervention showed."""

    kind: str
    words: str
    """What the weights did, with the figures measured."""
    remedy: str
    """What repairs it, in words; empty: nothing that is known here does."""
    repair: Repair | None
    """None: none is known, or what is wrong lies in the drawing, and asking the estimator anew has repaired it."""
    last: bool = False
    """Would the repair hide every fault that was found before it? Then it is tried with all of theirs only."""


class Subject:
    """An estimator under examination; `weights` are its own, with what was found so far repaired."""

    def __init__(self, box: BlackBox):
        self.box, self.e = box, box.enumeration
        self.weights: Weights = box
        self.shown = box.random(PROBES, seed=0)
        self.plain = int(self.e.length.argmax())
        """A response of full length."""
        given = self.weights(self.shown)
        self.largest = float(given.abs().max())
        self.empty = self._empty_places(given)
        """Places of responses that have no weight, whatever the rewards."""
        self.scaling = self._scaling()
        """What weights do when all rewards are doubled: proportional, the same, other."""

    @property
    def group_size(self) -> int:
        return self.box.group_size

    @property
    def reached(self) -> tuple[int, int]:
        """At how many places of responses does the own reward count, and at how many is there a weight at all?"""
        without = self._empty_places(self.part(self.shown), TOLERANCE) | ~self.e.mask
        return int((~without).sum()), int((self.e.mask & ~self.empty).sum())

    def _empty_places(self, given: Float[Tensor, "W K T"], tolerance: float = 1e-12) -> Bool[Tensor, "N T"]:
        size = torch.zeros(self.e.mask.shape, dtype=torch.float64)
        index = self.shown.leaf.flatten()[:, None].expand(-1, self.e.tree.horizon)
        size = size.scatter_reduce(0, index, given.abs().flatten(0, 1), "amax")
        return self.e.mask & (size <= tolerance * self.largest)

    def _scaling(self) -> str:
        """Two sizes are compared: beside large rewards no constant counts, beside small ones a limit does."""
        small, double, triple, large, twice = (self._scaled(by) for by in (1, 2, 3, LARGE, 2 * LARGE))
        size = CLOSE / TOLERANCE * float(large.abs().max())
        if same(twice, 2 * large, size):
            return "proportional" if same(small + triple, 2 * double) else "other"
        return "the same" if same(twice, large, size) else "other"

    def _scaled(self, by: float) -> Float[Tensor, "W K T"]:
        return self.weights(replace(self.shown, reward=by * self.shown.reward))

    def part(self, shown: Shown) -> Float[Tensor, "W K T"]:
        """What of the weights depends on the rewards."""
        given = self.weights(shown)
        return given - repairs.offset(self.weights, shown) if self.scaling == "proportional" else given

    def fixed(self, seed: int) -> Shown:
        """Random responses to one prompt, the same rewards in every world."""
        shown = self.box.random(PROBES, seed)
        reward = self.box.random(1, seed + 100).reward.expand(PROBES, -1)
        return Shown(torch.zeros_like(shown.prompt), shown.leaf, reward)

    def seen(self, shown: Shown) -> Bool[Tensor, "W K T"]:
        """The tokens that have a weight."""
        return (self.e.mask & ~self.empty)[shown.leaf]

    def level(self, reward: Float[Tensor, "W K"]) -> Float[Tensor, "W K"]:
        """The weight of the first token when every response is the same full one, less what no reward changes."""
        shown = Shown(torch.zeros(len(reward), dtype=torch.int64), torch.full(reward.shape, self.plain), reward)
        given = self.weights(shown)
        kept = repairs.offset(self.weights, shown) if self.scaling == "proportional" else 0.0
        return (given - kept)[..., 0]

    def slope(self, k: int, other: int | None = None, step: float = 1.0) -> Float[Tensor, " W"]:
        """What the weight of response k rises by for 1 more of its own reward, or of another's."""
        reward = self.shown.reward
        raised = reward.clone()
        raised[:, k if other is None else other] += step
        return (self.level(raised) - self.level(reward))[:, k] / step
