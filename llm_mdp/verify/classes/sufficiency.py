"""Does a summary say all that the weights of an estimator depend on? Tried on thousands of groups.

The weights of every own class (or own response) and state of the others are asked for once, of a representative. Then
groups are drawn in many ways, typical ones and odd ones (`representatives.How`), with the own response at any place
among them, and every response of every group must have the weights that are in the table. The cheapest summary that is
not refused is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.partition import Partition
from llm_mdp.verify.classes.representatives import Representatives
from llm_mdp.verify.classes.summaries import SUMMARIES, Summary
from llm_mdp.verify.classes.trials import Placed, Shown, Trial, Trials, trials_of

TRIED = 6_000
"""Groups on which a summary must hold, of each prompt; fewer where groups are very large (`tries`)."""
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


def find_sufficient(subject: Subject, partitions: list[Partition], most: float = MAX_ENTRIES) -> Sufficient:
    """The cheapest summary that is not refused, and all weights by it.

    Args: most: weights that may be asked for, in all.

    Raises:
        Refused: none is left.
        TooLarge: it takes too many values.
    """
    too_large: TooLarge | None = None
    trials = [trials_of(classes, subject.group_size, subject.rows(subject.group_size)) for classes in partitions]
    own_matters = [_own_matters(subject, each) for each in trials]
    states = most / (subject.group_size * subject.enumeration.tree.horizon)
    laws = [_laws(each, states) for each in trials]
    for by_leaf in (True,) if any(own_matters) else (False, True):
        for summary in SUMMARIES:
            try:
                everybody = [each.of(summary, of_prompt(summary), by_leaf) for each, of_prompt in zip(trials, laws)]
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


def _laws(trials: Trials, most: float) -> Callable[[Summary], Laws]:
    """The laws of every summary of one prompt's responses, made when they are first asked for, if whole groups have at
    most so many states."""

    @cache
    def of(summary: Summary) -> Laws:
        try:
            return trials.laws(summary, most)
        except TooLarge as error:
            classes = trials.classes
            raise TooLarge(
                f"its weights may depend on {summary.words} of the other responses, which takes {error} "
                f"({len(classes.reward.unique())} different rewards, {classes.size} classes of reward, length and "
                "finish)"
            ) from error

    return of


def _check_cost(subject: Subject, everybody: list[Trial], summary: Summary, most: float) -> None:
    """Raise TooLarge if more weights would have to be asked for than `most`."""
    entries = sum(each.asked for each in everybody) * subject.group_size * subject.enumeration.tree.horizon
    if entries > most:
        states, units = sum(each.states for each in everybody), sum(each.units for each in everybody)
        raise TooLarge(
            f"its weights may depend on {summary.words} of the other responses, which takes {states:,} values: "
            f"{entries:.0e} weights, with {units:,} {'responses' if everybody[0].by_leaf else 'classes of responses'} "
            f"that may be the own one (at most {most:.0e})"
        )


def _own_matters(subject: Subject, trials: Trials) -> bool:
    """Does another own response of the same class have other weights, in the same company?

    Raises:
        Refused: if it is the company that matters: others of the same classes, in another order.
    """
    for placed in trials.moved(FIRST):
        given, same, other = _own_rows(subject, trials.classes, *placed)
        tolerance = _tolerance(subject, trials.classes, float(given[:, :-3].abs().max()))
        if not _alike(given, same, tolerance).all():
            raise Refused(READS_MORE)
        if not _alike(given, other, tolerance).all():
            return True
    return False


def _looks_sufficient(subject: Subject, trial: Trial) -> bool:
    """Do a few hundred groups and as many other ones with the same units and states agree?"""
    classes = trial.draw.classes
    for pair in trial.pairs(FIRST):
        one, two = _own_rows(subject, classes, *pair)
        if not _alike(one, two, _tolerance(subject, classes, float(one[:, :-3].abs().max()))).all():
            return False
    return True


def _own_rows(subject: Subject, classes: Partition, *placed: Placed) -> tuple[Float[Tensor, "R X"], ...]:
    """What the own response of every group gets, of groups that are asked for together."""
    answers = _ask(subject, classes, torch.cat([each.group for each in placed]))
    own = answers[torch.arange(len(answers)), torch.cat([each.at for each in placed])]
    return own.split([len(each.at) for each in placed])


def _ask(subject: Subject, classes: Partition, group: Int[Tensor, "R K"]) -> Float[Tensor, "R K X"]:
    return subject(torch.full((len(group),), classes.prompt), classes.leaf[group])


def _table(subject: Subject, trial: Trial) -> Table | None:
    """The weights of all units and states; None if groups are found that have others."""
    values = _filled(subject, trial)
    company = trial.company(tries(subject))
    table = Table(trial.draw, values, sum(len(shown.group) for shown in company))
    square = table.chance[..., None] * table.weights.square()
    tolerance = _tolerance(subject, table.classes, float(square.sum().sqrt()))
    return table if all(_agrees(subject, table, shown, tolerance) for shown in company) else None


def _filled(subject: Subject, trial: Trial) -> Float[Tensor, "U S X"]:
    """The weights of all units and states."""
    values: Float[Tensor, "US X"] = torch.zeros(0, 0)
    for asked in trial.filling():
        answers, known = _ask(subject, trial.draw.classes, asked.group), asked.entry >= 0
        if not len(values):
            values = torch.zeros(trial.units * trial.states, answers.shape[-1], dtype=torch.float64)
        values[asked.entry[known]] = answers[known]
        # The own one last, for it was asked for: that of another response could be improbable.
        values[asked.wanted] = answers[torch.arange(len(asked.at)), asked.at]
    return values.unflatten(0, (trial.units, trial.states))


def _agrees(subject: Subject, table: Table, shown: Shown, tolerance: tuple[float, float]) -> bool:
    """Do all responses of these groups get what the table says?"""
    answers = _ask(subject, table.classes, shown.group)
    expected = table.values.flatten(0, 1).index_select(0, shown.entry.clamp(min=0).flatten())
    return bool((_alike(answers.flatten(0, 1), expected, tolerance) | (shown.entry.flatten() < 0)).all())


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
    close = (one - two).abs_() <= two.abs().mul_(share).add_(number)
    return close.all(-1) & (one[..., -1] == two[..., -1])
