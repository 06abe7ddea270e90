"""Does a summary say all that the weights of an estimator depend on? Tried on thousands of groups.

The weights of every own class (or own response) and state of the others are asked for once, of a representative. Then
groups are drawn in many ways, typical ones and odd ones (`representatives.How`), with the own response at any place
among them, and every response of every group must have the weights that are in the table. The cheapest summary that is
not refused is taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import multisets
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import CHUNK, Laws
from llm_mdp.verify.classes.partition import Partition
from llm_mdp.verify.classes.representatives import HOWS, Representatives
from llm_mdp.verify.classes.summaries import SUMMARIES, Summary, nothing

TRIED = 6_000
"""Groups on which a summary must hold, of each prompt; fewer where groups are very large (`tries`)."""
EVERY = 2
"""All groups are tried where they are at most so many times more than those that are tried anyway."""
FIRST = 256
"""Groups of each kind that are tried before the weights of all states are asked for."""
MAX_ENTRIES = 400_000_000
"""Token weights that are asked of an estimator, in all groups together: a minute or two of one core."""
AGREE = 1e-11
"""What two weights may differ by and be the same, as a share of their size and of the root mean square of all."""
READS_MORE = "its weights depend on more of the other responses than their rewards, lengths and finishes"
UNITS = 64
"""The same in units of the last place, of what was computed in coarser floating point or of rewards that nearly
agree."""


@dataclass(frozen=True, eq=False)
class Table:
    """All weights of one prompt's groups."""

    representatives: Representatives
    values: Float[Tensor, "U S X"]
    """Of every unit and every state of the others: T weights, the cost of branches in tokens and rewards, 1 if the
    group is kept."""
    tries: int
    """Groups that it was compared with."""

    @property
    def classes(self) -> Partition:
        return self.representatives.classes

    @property
    def laws(self) -> Laws:
        return self.representatives.laws

    @property
    def by_leaf(self) -> bool:
        """Is a unit one response, or a class?"""
        return self.representatives.by_leaf

    @property
    def weights(self) -> Float[Tensor, "U S T"]:
        return self.values[..., :-3]

    @property
    def kept(self) -> Float[Tensor, "U S"]:
        """1 where the group is kept."""
        return self.values[..., -1]

    @property
    def chance(self) -> Float[Tensor, "U S"]:
        """Probability that the first response of a group is this unit and the others are in this state."""
        classes = self.classes
        own = classes.chance if self.by_leaf else classes.probability
        return own[:, None] * self.laws.chances[self.representatives.others]


@dataclass(frozen=True, eq=False)
class Sufficient:
    """A summary that was not refused, and the weights by it."""

    summary: Summary
    tables: tuple[Table, ...]
    """One a prompt."""


def find_sufficient(
    subject: Subject, partitions: list[Partition], most: float = MAX_ENTRIES, generator: torch.Generator | None = None
) -> Sufficient:
    """The cheapest summary that is not refused, and all weights by it.

    Args: most: weights that may be asked for, in all.

    Raises:
        Refused: none is left.
        TooLarge: it takes too many values.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    too_large: TooLarge | None = None
    own_matters = [_own_matters(subject, classes, generator) for classes in partitions]
    states = most / (subject.group_size * subject.enumeration.tree.horizon)
    laws = [_laws(subject, classes, states) for classes in partitions]
    for by_leaf in (True,) if any(own_matters) else (False, True):
        for summary in SUMMARIES:
            try:
                everybody = [
                    Representatives(classes, of_prompt(summary), by_leaf, generator)
                    for classes, of_prompt in zip(partitions, laws)
                ]
                if all(_looks_sufficient(subject, each) for each in everybody):
                    _check_cost(subject, everybody, summary, most)
                    tables = [table for each in everybody if (table := _table(subject, each)) is not None]
                    if len(tables) == len(everybody):
                        return Sufficient(summary, tuple(tables))
            except TooLarge as error:
                too_large = too_large or error
    if too_large is not None:
        raise too_large
    raise Refused(READS_MORE)


def tries(subject: Subject) -> int:
    """How many groups are tried: thousands, hundreds where a group has thousands of responses."""
    return max(500, min(TRIED, 50_000_000 // (subject.group_size * subject.enumeration.tree.horizon)))


def _laws(subject: Subject, classes: Partition, most: float) -> Callable[[Summary], Laws]:
    """The laws of every summary of one prompt's responses, made when they are first asked for, if whole groups have at
    most so many states."""

    @cache
    def of(summary: Summary) -> Laws:
        try:
            return Laws(summary.of_class(classes), classes.probability, subject.group_size, most)
        except TooLarge as error:
            raise TooLarge(
                f"its weights may depend on {summary.words} of the other responses, which takes {error} "
                f"({len(classes.reward.unique())} different rewards, {classes.size} classes of reward, length and "
                "finish)"
            ) from error

    return of


def _check_cost(subject: Subject, everybody: list[Representatives], summary: Summary, most: float) -> None:
    """Raise TooLarge if more weights would have to be asked for than `most`."""
    entries = sum(map(_groups_asked, everybody)) * subject.group_size * subject.enumeration.tree.horizon
    if entries > most:
        states, units = sum(each.states for each in everybody), sum(each.units for each in everybody)
        raise TooLarge(
            f"its weights may depend on {summary.words} of the other responses, which takes {states:,} values: "
            f"{entries:.0e} weights, with {units:,} {'responses' if everybody[0].by_leaf else 'classes of responses'} "
            f"that may be the own one (at most {most:.0e})"
        )


def _groups_asked(draw: Representatives) -> int:
    """About how many groups have all weights: of classes one for every sum over a whole group, but for classes that
    cannot all be in it; of responses one each, for most are rare."""
    if draw.by_leaf:
        return draw.units * draw.states
    return max(len(draw.laws.codes[-1]), draw.units * draw.states // (draw.others + 1))


def _own_matters(subject: Subject, classes: Partition, generator: torch.Generator) -> bool:
    """Does another own response of the same class have other weights, in the same company?

    Raises:
        Refused: if it is the company that matters: others of the same classes, in another order.
    """
    draw = Representatives(classes, Laws(nothing(classes), classes.probability, subject.group_size), False, generator)
    for group in (draw.independent(FIRST, False), draw.independent(FIRST, True), draw.twins(FIRST)):
        at = torch.randint(group.shape[1], (FIRST,), generator=generator)
        order = torch.rand(group.shape, generator=generator).argsort(dim=1)
        moved, company = (order == at[:, None]).long().argmax(1), draw.sibling(group.flatten()).view(group.shape)
        own = group.gather(1, at[:, None])
        company = company.scatter(1, at[:, None], own).gather(1, order)
        changed = group.scatter(1, at[:, None], draw.sibling(own[:, 0])[:, None])
        given, same, other = (
            _own_rows(subject, classes, *each) for each in ((group, at), (company, moved), (changed, at))
        )
        tolerance = _tolerance(subject, classes, float(given[:, :-3].abs().max()))
        if not _alike(given, same, tolerance).all():
            raise Refused(READS_MORE)
        if not _alike(given, other, tolerance).all():
            return True
    return False


def _looks_sufficient(subject: Subject, draw: Representatives) -> bool:
    """Do a few hundred groups and as many other ones with the same units and states agree?"""
    for number, how in enumerate(HOWS):
        unit = torch.randint(draw.units, (FIRST,), generator=draw.generator)
        state = torch.randint(draw.states, (FIRST,), generator=draw.generator)
        if how == "typical":
            chances = draw.laws.chances[draw.others]
            place = torch.rand(FIRST, generator=draw.generator, dtype=torch.float64) * chances.sum()
            state = torch.searchsorted(chances.cumsum(0), place, right=True).clamp(max=draw.states - 1)
        one, two = (_own_rows(subject, draw.classes, *draw.groups(unit, state, HOWS[kind])) for kind in (0, number))
        if not _alike(one, two, _tolerance(subject, draw.classes, float(one[:, :-3].abs().max()))).all():
            return False
    return True


def _own_rows(
    subject: Subject, classes: Partition, group: Int[Tensor, "R K"], at: Int[Tensor, " R"]
) -> Float[Tensor, "R X"]:
    """What the own response of every group gets."""
    answers = _ask(subject, classes, group)
    return answers[torch.arange(len(at)), at]


def _ask(subject: Subject, classes: Partition, group: Int[Tensor, "R K"]) -> Float[Tensor, "R K X"]:
    return subject(torch.full((len(group),), classes.prompt), classes.leaf[group])


def _table(subject: Subject, draw: Representatives) -> Table | None:
    """The weights of all units and states; None if groups are found that have others."""
    company = _company(draw, tries(subject))
    table = Table(draw, _filled(subject, draw), len(company))
    square = table.chance[..., None] * table.weights.square()
    tolerance = _tolerance(subject, draw.classes, float(square.sum().sqrt()))
    for group in company.split(_at_once(subject)):
        if not _agrees(subject, table, group, tolerance):
            return None
    return table


def _filled(subject: Subject, draw: Representatives) -> Float[Tensor, "U S X"]:
    """The weights of all units and states. Every group has those of all its responses, so few groups have them all."""
    values: Float[Tensor, "US X"] = torch.zeros(0, 0)
    missing = torch.arange(draw.units * draw.states)
    there = torch.zeros(len(missing), dtype=torch.bool)
    while len(missing):
        asked = missing[_some_of_every_total(draw, missing)]
        for part in asked.split(_at_once(subject)):
            group, at = draw.groups(part // draw.states, part % draw.states, "quick")
            answers, state = _ask(subject, draw.classes, group), draw.state_of_others(group)
            if not len(values):
                values = torch.zeros(len(there), answers.shape[-1], dtype=torch.float64)
            place = draw.unit[group] * draw.states + state
            values[place[state >= 0]] = answers[state >= 0]
            # The own one last, for it was asked for: that of another response could be improbable.
            values[part], there[part] = answers[torch.arange(len(at)), at], True
            there[place[state >= 0]] = True
        missing = missing[~there[missing]]
    return values.unflatten(0, (draw.units, draw.states))


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


def _at_once(subject: Subject) -> int:
    """Groups that are looked at at once."""
    return max(1, CHUNK // (subject.group_size * subject.enumeration.tree.horizon))


def _company(draw: Representatives, number: int) -> Int[Tensor, "R K"]:
    """Groups to compare a table with: a sixth drawn in each of six ways, and some in which every response occurs; where
    there are not many more groups in all, every one of them."""
    sixth = number // (len(HOWS) + 3) + 1
    given = []
    for how in HOWS:
        unit, state = (torch.randint(most, (sixth,), generator=draw.generator) for most in (draw.units, draw.states))
        given.append(draw.groups(unit, state, how)[0])
    given += [draw.independent(sixth, False), draw.independent(sixth, True), draw.twins(sixth), draw.everybody()]
    responses, size = len(draw.classes.leaf), draw.others + 1
    if math.comb(responses + size - 1, size) <= EVERY * number:
        given.append(multisets(responses, size))
    return torch.cat(given)


def _agrees(subject: Subject, table: Table, group: Int[Tensor, "R K"], tolerance: tuple[float, float]) -> bool:
    """Do all responses of these groups get what the table says?"""
    draw = table.representatives
    answers, state = _ask(subject, table.classes, group), draw.state_of_others(group)
    expected = table.values[draw.unit[group], state.clamp(min=0)]
    return bool((_alike(answers, expected, tolerance) | (state < 0)).all())


def _tolerance(subject: Subject, classes: Partition, size: float) -> tuple[float, float]:
    """What weights of the same group may differ by: a share of their size, and a number.

    Differences of rewards that nearly agree are known to fewer digits.
    """
    unit = torch.finfo(getattr(torch, subject.precision)).eps
    if unit > 1e-6:
        raise Refused(f"it computes in {subject.precision}, too coarse to tell what its weights depend on")
    share = max(AGREE, UNITS * unit)
    largest, spread = float(classes.reward.abs().max()), float(classes.reward.max() - classes.reward.min())
    if spread == 0:
        return share, share * size + 1e-12 * largest
    return share, (share + UNITS * torch.finfo(torch.float64).eps * min(largest / spread, 1e9)) * size


def _alike(
    one: Float[Tensor, "*shape X"], two: Float[Tensor, "*shape X"], tolerance: tuple[float, float]
) -> Bool[Tensor, "*shape"]:
    share, number = tolerance
    return ((one - two).abs() <= share * two.abs() + number).all(-1) & (one[..., -1] == two[..., -1])
