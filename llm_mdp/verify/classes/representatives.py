"""Groups that stand for others: with a given own response, and a given summary of the rest."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.partition import Partition

How = Literal["typical", "odd", "coinciding", "quick"]
"""typical: as a group is drawn, given the summary; odd: rare responses as often as frequent ones, and the sum made up
in any way that is possible; coinciding: odd, and as many as possible of the group the same response; quick: typical
responses, but the sum always made up of the same kinds of them."""
HOWS: tuple[How, ...] = ("typical", "odd", "coinciding")
"""Those that a summary is tried with."""


class Representatives:
    """Draws groups of K responses to one prompt. Responses are numbered by their places in the partition.

    Args:
        classes: the responses.
        laws: of a summary over their classes.
        by_leaf: is the own response given, or its class alone? Whichever it is, is called a *unit*.
        generator: of all draws.
    """

    def __init__(self, classes: Partition, laws: Laws, by_leaf: bool, generator: torch.Generator):
        self.classes, self.laws, self.by_leaf, self.generator = classes, laws, by_leaf, generator
        self.others = len(laws.codes) - 2
        """K - 1."""
        self.unit = torch.arange(len(classes.leaf)) if by_leaf else classes.kind
        """Of every response."""
        self.code = laws.code[laws.feature][classes.kind]
        """Of every response."""
        feature = laws.feature[classes.kind]
        self._order = feature.argsort(stable=True)
        self._count = torch.bincount(feature, minlength=len(laws.code))
        self._first = self._count.cumsum(0) - self._count
        chance = classes.chance[self._order].cumsum(0)
        self._cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), chance])

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.classes.leaf) if self.by_leaf else self.classes.size

    @property
    def states(self) -> int:
        """How many values the summary of the others takes."""
        return len(self.laws.codes[self.others])

    def groups(
        self, unit: Int[Tensor, " R"], state: Int[Tensor, " R"], how: How
    ) -> tuple[Int[Tensor, "R K"], Int[Tensor, " R"]]:
        """One group for every unit and state, and where in it the own response stands."""
        own = self._own(unit)
        if how == "quick":
            feature = self.laws.some(self.others, state)
        else:
            feature = self.laws.draw(self.others, state, self.generator, evenly=how != "typical")
        others = self._pick(feature, how)
        if how == "coinciding":
            same = self.laws.feature[self.classes.kind[own]]
            others = torch.where(feature == same[:, None], own[:, None], others)
        at = torch.randint(self.others + 1, own.shape, generator=self.generator)
        place = torch.arange(self.others + 1).expand(len(own), -1)
        shifted = torch.cat([own[:, None], others], dim=1)
        # The others in their order, the own one at its place.
        source = torch.where(place == at[:, None], 0, place + (place < at[:, None]).long())
        return shifted.gather(1, source), at

    def adding_up(self, state: Int[Tensor, " R"], how: How) -> Int[Tensor, "R K"]:
        """Whole groups that add up to each state of K."""
        if how == "quick":
            return self._pick(self.laws.some(self.others + 1, state), how)
        return self._pick(self.laws.draw(self.others + 1, state, self.generator, evenly=how != "typical"), how)

    def state_of_others(self, group: Int[Tensor, "R K"]) -> Int[Tensor, "R K"]:
        """What the others of every response of these groups add up to; -1: too improbable for float64."""
        code = self.code[group]
        return self.laws.find(self.others, code.sum(-1, keepdim=True) - code)

    def total_code(self, unit: Int[Tensor, " R"], state: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """What the whole group adds up to, as a code."""
        own = unit if self.by_leaf else self.classes.first[unit]
        return self.laws.codes[self.others][state] + self.code[own]

    def independent(self, number: int, evenly: bool) -> Int[Tensor, "number K"]:
        """Groups of responses that are drawn by themselves, each as likely as it is, or all equally likely."""
        shape = (number, self.others + 1)
        if evenly:
            return torch.randint(len(self.classes.leaf), shape, generator=self.generator)
        place = self._uniform(shape) * self._cumulative[-1]
        found = torch.searchsorted(self._cumulative, place, right=True) - 1
        return self._order[found.clamp(0, len(self._order) - 1)]

    def everybody(self) -> Int[Tensor, "G K"]:
        """Groups in which every response occurs, in the company of any others."""
        number = len(self.classes.leaf)
        missing = -number % (self.others + 1)
        order = torch.randperm(number, generator=self.generator)
        filled = torch.cat([order, torch.randint(number, (missing,), generator=self.generator)])
        return filled.unflatten(0, (-1, self.others + 1))

    def meetings(self, most: int) -> Int[Tensor, "G K"]:
        """Groups in which every two responses meet, or of every two classes some; none if they are more than `most`."""
        for number in (len(self.classes.leaf), self.classes.size):
            if self.others and number * (number + 1) // 2 <= most:
                break
        else:
            return torch.zeros(0, self.others + 1, dtype=torch.int64)
        one, two = torch.triu_indices(number, number)
        if number < len(self.classes.leaf):
            one, two = self._in_class(one), self._in_class(two)
        group = self.independent(len(one), True)
        group[:, 0], group[:, 1] = one, two
        return group.gather(1, self._uniform(group.shape).argsort(dim=1))

    def twins(self, number: int) -> Int[Tensor, "number K"]:
        """Groups of which all responses are the same, all but one, or as many as may be; in any places."""
        size = self.others + 1
        group = torch.cat([self.independent(number // 2, False), self.independent(number - number // 2, True)])
        same = torch.randint(2, size + 1, (number,), generator=self.generator) if size > 1 else torch.ones(number)
        kind = torch.randint(3, (number,), generator=self.generator)
        same = torch.where(kind == 0, size, torch.where(kind == 1, size - 1, same.long()))
        rank = self._uniform((number, size)).argsort(dim=1)
        return torch.where(rank < same[:, None], group[:, :1], group)

    def sibling(self, position: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        """Another response of the same class (the same, where there is one only), all equally likely."""
        return self._in_class(self.classes.kind[position])

    def _own(self, unit: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        return unit if self.by_leaf else self._in_class(unit)

    def _in_class(self, kind: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
        first, end = self.classes.first[kind], self.classes.first[kind + 1]
        return first + (self._uniform(kind.shape) * (end - first)).long().clamp(max=end - first - 1)

    def _pick(self, feature: Int[Tensor, "R M"], how: How) -> Int[Tensor, "R M"]:
        first, count = self._first[feature], self._count[feature]
        if how in ("typical", "quick"):
            low, high = self._cumulative[first], self._cumulative[first + count]
            place = low + self._uniform(feature.shape) * (high - low)
            at = torch.searchsorted(self._cumulative, place, right=True) - 1
            at = torch.minimum(torch.maximum(at, first), first + count - 1)
        else:
            chosen = self._uniform(feature.shape if how == "odd" else (len(feature), 1))
            at = first + torch.minimum((chosen * count).long(), count - 1)
        return self._order[at]

    def _uniform(self, shape) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)
