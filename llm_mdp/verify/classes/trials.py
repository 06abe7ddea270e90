"""The groups that a summary is tried on. No estimator has a say in them, so they are drawn once for all estimators that
are asked about the same responses in groups of the same size."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import multisets
from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.partition import Partition
from llm_mdp.verify.classes.representatives import HOWS, Representatives
from llm_mdp.verify.classes.summaries import Summary, nothing

KEEP = 1_000_000
"""Numbers that are kept of one kind of groups for the next estimator: 8 MB. What has more is drawn again."""
EVERY = 2
"""All groups are tried where they are at most so many times more than those that are tried anyway."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Groups, and where in each the own response stands."""

    group: Int[Tensor, "R K"]
    at: Int[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Shown:
    """Groups, and which entry of a table every response has: unit · states + state of the others."""

    group: Int[Tensor, "R K"]
    entry: Int[Tensor, "R K"]
    """-1: the state is too improbable for float64."""


@dataclass(frozen=True, eq=False)
class Asked(Shown):
    """Groups that were asked for because of one entry each, that of the response that stands at `at`."""

    wanted: Int[Tensor, " R"]
    at: Int[Tensor, " R"]


class Memory:
    """Keeps what was made, if it is small."""

    def __init__(self):
        self._kept: dict[Any, Any] = {}

    def once(self, key: Any, numbers: int, make: Callable[[], Any]) -> Any:
        """What `make` makes, kept if it holds few numbers."""
        if key in self._kept:
            return self._kept[key]
        made = make()
        if numbers <= KEEP:
            self._kept[key] = made
        return made


class Trials(Memory):
    """Groups of K of one prompt's responses, for all summaries.

    Args:
        classes: the responses.
        group_size: K ≥ 1.
        at_once: groups that are looked at at once.
    """

    def __init__(self, classes: Partition, group_size: int, at_once: int):
        super().__init__()
        self.classes, self.group_size, self.at_once = classes, group_size, at_once

    def laws(self, summary: Summary, most: float) -> Laws:
        """Those of a summary.

        Args: most: states of K responses that are wanted, at most.

        Raises:
            TooLarge: as `Laws`.
        """
        found = self._kept.get((summary.words, most))
        if found is None:
            try:
                found = Laws(summary.of_class(self.classes), self.classes.probability, self.group_size, most)
            except TooLarge as error:
                found = error
            if isinstance(found, TooLarge) or found.numbers <= KEEP:
                self._kept[summary.words, most] = found
        if isinstance(found, TooLarge):
            raise TooLarge(str(found))
        return found

    def of(self, summary: Summary, laws: Laws, by_leaf: bool) -> "Trial":
        """Groups to try a summary with."""
        found = self._kept.get((summary.words, by_leaf))
        if found is None or found.draw.laws is not laws:
            found = Trial(laws, by_leaf, self)
            if laws.numbers <= KEEP:
                self._kept[summary.words, by_leaf] = found
        return found

    def moved(self, number: int) -> list[tuple[Placed, Placed, Placed]]:
        """So many groups of three kinds; the same with other responses of the same classes in place of the others, in
        another order; and with another response of the same class in place of the own one."""
        return self.once(("moved", number), 9 * number * self.group_size, lambda: self._moved(number))

    def _moved(self, number: int) -> list[tuple[Placed, Placed, Placed]]:
        generator = torch.Generator().manual_seed(0)
        laws = Laws(nothing(self.classes), self.classes.probability, self.group_size)
        draw = Representatives(self.classes, laws, False, generator)
        found = []
        for group in (draw.independent(number, False), draw.independent(number, True), draw.twins(number)):
            at = torch.randint(group.shape[1], (number,), generator=generator)
            order = torch.rand(group.shape, generator=generator).argsort(dim=1)
            there, company = (order == at[:, None]).long().argmax(1), draw.sibling(group.flatten()).view(group.shape)
            own = group.gather(1, at[:, None])
            company = company.scatter(1, at[:, None], own).gather(1, order)
            changed = group.scatter(1, at[:, None], draw.sibling(own[:, 0])[:, None])
            found.append((Placed(group, at), Placed(company, there), Placed(changed, at)))
        return found


class Trial(Memory):
    """Groups of given units and states of one summary.

    Args:
        laws: of the summary.
        by_leaf: is a unit one response, or a class?
        trials: all of this prompt and group size.
    """

    def __init__(self, laws: Laws, by_leaf: bool, trials: Trials):
        super().__init__()
        self.trials, self.by_leaf = trials, by_leaf
        self.draw = Representatives(trials.classes, laws, by_leaf, torch.Generator().manual_seed(0))

    @property
    def units(self) -> int:
        return self.draw.units

    @property
    def states(self) -> int:
        return self.draw.states

    @cached_property
    def asked(self) -> int:
        """About how many groups have all weights: of classes one for every sum over a whole group, but for classes that
        cannot all be in it; of responses one each, for most are rare."""
        if self.by_leaf:
            return self.units * self.states
        return max(len(self.draw.laws.codes[-1]), self.units * self.states // (self.draw.others + 1))

    def pairs(self, number: int) -> list[tuple[Placed, Placed]]:
        """So many groups of every kind, and as many other ones with the same units and states."""
        return self.once(
            ("pairs", number), 2 * len(HOWS) * number * self.trials.group_size, lambda: self._pairs(number)
        )

    def _pairs(self, number: int) -> list[tuple[Placed, Placed]]:
        draw, found = self._again(1), []
        for how in HOWS:
            unit = torch.randint(draw.units, (number,), generator=draw.generator)
            state = torch.randint(draw.states, (number,), generator=draw.generator)
            if how == "typical":
                chances = draw.laws.chances[draw.others]
                place = torch.rand(number, generator=draw.generator, dtype=torch.float64) * chances.sum()
                state = torch.searchsorted(chances.cumsum(0), place, right=True).clamp(max=draw.states - 1)
            found.append((Placed(*draw.groups(unit, state, "typical")), Placed(*draw.groups(unit, state, how))))
        return found

    def company(self, number: int) -> list[Shown]:
        """Groups to compare a table with: a sixth of the number drawn in each of six ways, some in which every response
        occurs, and every two of them together (or two of every two classes; unless these are more than the number);
        where there are not many more groups in all, every one of them."""
        return self.once(("company", number), 2 * number * self.trials.group_size, lambda: self._company(number))

    def _company(self, number: int) -> list[Shown]:
        draw, sixth = self._again(2), number // (len(HOWS) + 3) + 1
        given = []
        for how in HOWS:
            unit = torch.randint(draw.units, (sixth,), generator=draw.generator)
            state = torch.randint(draw.states, (sixth,), generator=draw.generator)
            given.append(draw.groups(unit, state, how)[0])
        given += [draw.independent(sixth, False), draw.independent(sixth, True), draw.twins(sixth)]
        given += [draw.everybody(), draw.meetings(number)]
        responses, size = len(draw.classes.leaf), draw.others + 1
        if math.comb(responses + size - 1, size) <= EVERY * number:
            given.append(multisets(responses, size))
        groups = torch.cat(given)
        return [Shown(group, self._entries(group)) for group in groups.split(self.trials.at_once)]

    def filling(self) -> Iterable[Asked]:
        """Groups that have the weights of all units and states among them. Every group has those of all its responses,
        so few groups have them all."""
        numbers = 2 * self.asked * self.trials.group_size
        if numbers > KEEP:
            return self._filling()
        return self.once("filling", numbers, lambda: list(self._filling()))

    def _filling(self) -> Iterator[Asked]:
        draw = self._again(3)
        missing = torch.arange(self.units * self.states)
        there = torch.zeros(len(missing), dtype=torch.bool)
        while len(missing):
            wanted = missing[_some_of_every_total(draw, missing)]
            for part in wanted.split(self.trials.at_once):
                group, at = draw.groups(part // self.states, part % self.states, "quick")
                entry = self._entries(group)
                there[part] = True
                there[entry[entry >= 0]] = True
                yield Asked(group, entry, part, at)
            missing = missing[~there[missing]]

    def _entries(self, group: Int[Tensor, "R K"]) -> Int[Tensor, "R K"]:
        state = self.draw.state_of_others(group)
        return torch.where(state >= 0, self.draw.unit[group] * self.states + state, -1)

    def _again(self, seed: int) -> Representatives:
        """The same, with a generator of its own: what is drawn does not depend on what was drawn before."""
        draw = self.draw
        return Representatives(draw.classes, draw.laws, self.by_leaf, torch.Generator().manual_seed(seed))


def trials_of(classes: Partition, group_size: int, at_once: int) -> Trials:
    """Those of these responses, which remember them."""
    if group_size not in classes.trials:
        classes.trials[group_size] = Trials(classes, group_size, at_once)
    return classes.trials[group_size]


def _some_of_every_total(draw: Representatives, missing: Int[Tensor, " M"]) -> Int[Tensor, " A"]:
    """Which of the missing units and states to ask for next: of those in which whole groups add up to the same, an
    eighth or a quarter, for the others will come with them."""
    if draw.others == 0:
        return torch.arange(len(missing))
    total = draw.total_code(missing // draw.states, missing % draw.states)
    order = torch.randperm(len(missing), generator=draw.generator)
    order = order[total[order].argsort(stable=True)]
    ordered = total[order]
    first = torch.searchsorted(ordered, ordered)
    number = torch.searchsorted(ordered, ordered, right=True) - first
    rank = torch.arange(len(order)) - first
    return order[rank < (number / (4 if draw.by_leaf else 8)).ceil()]
