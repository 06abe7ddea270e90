"""Do sums over a batch say all that the weights of an estimator depend on? Tried on thousands of batches.

As `sufficiency` does with groups: the weights of every response of every kind, in every kind of batch, are asked for
once; then batches are drawn in many ways, typical ones and odd ones, and every response must have the weights that are
in the table. The cheapest sums that are not refused are taken.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.classes.batch_draws import BatchDraws
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import CHUNK
from llm_mdp.verify.classes.partition import Partition
from llm_mdp.verify.classes.pools import OWN, POOLS, Own, Pool
from llm_mdp.verify.classes.representatives import HOWS
from llm_mdp.verify.classes.sufficiency import AGREE, FIRST, MAX_ENTRIES, UNITS
from llm_mdp.verify.weights import QUIET

FURTHER = 10_000_000
"""Token weights that are asked for again to tell which groups have a signal."""
TRIED = 6_000
"""Batches on which sums must hold, fewer where they are large."""


@dataclass(frozen=True, eq=False)
class Table:
    """All weights of a batch's responses."""

    draws: BatchDraws
    words: str
    weights: Float[Tensor, "who omega T"]
    loud: Float[Tensor, "who omega"] | None
    """1 where a group that holds this response has a weight other than 0; None: that depends on more."""
    tries: int


def find_sums(subject: Subject, partitions: list[Partition], number: int, generator: torch.Generator) -> Table:
    """The cheapest sums that are not refused, and all weights by them.

    Raises:
        Refused: none is left.
        TooLarge: those that are left take too many values.
    """
    reasons: list[Exception] = []
    by_leaf = _own_matters(subject, partitions, number, generator)
    for deciding in (("rewards",), ("classes",)) if _drops(subject, partitions, generator) else (None,):
        too_large: list[Pool] = []
        for pool in POOLS:
            if any(pool.refines(coarser) for coarser in too_large):
                continue
            given = {"deciding": deciding, "by_leaf": by_leaf, "generator": generator}
            first: BatchDraws | None = None
            found: Table | None = None
            try:
                first = BatchDraws(subject, partitions, OWN[0], pool, number, **given)
                if not _pool_holds(first):
                    continue
                for own in OWN:
                    again = own is not OWN[0]
                    draws = BatchDraws(subject, partitions, own, pool, number, **given, like=first) if again else first
                    table = _table(draws, own, pool) if found or _looks_sufficient(draws) else None
                    # The weights may depend on less than which groups have a signal does.
                    if table is not None and (table.loud is not None or draws.entries > FURTHER):
                        return table
                    found = found or table
            except (Refused, TooLarge) as error:
                reasons.append(error)
                too_large += [pool] if first is None and isinstance(error, TooLarge) else []
            if found is not None:
                return found
    large = [error for error in reasons if isinstance(error, TooLarge)]
    if large:
        raise TooLarge(
            f"its weights depend on much of the batch, and {large[0]}, are too many to go through"
        ) from large[0]
    if reasons:
        raise reasons[-1]
    raise Refused("its weights depend on more of the batch than rewards, lengths and finishes of its groups")


def _drops(subject: Subject, partitions: list[Partition], generator: torch.Generator) -> bool:
    """Does it leave out groups? Tried on a thousand of each prompt."""
    shape = (500, subject.group_size)
    for number, classes in enumerate(partitions):
        even = torch.randint(len(classes.leaf), shape, generator=generator)
        typical = torch.multinomial(classes.chance, math.prod(shape), replacement=True, generator=generator).view(shape)
        for group in (even, typical, even[:, :1].expand(shape)):
            if not (subject(torch.full((500,), number), classes.leaf[group])[..., -1] > 0).all():
                return True
    return False


def _own_matters(subject: Subject, partitions: list[Partition], number: int, generator: torch.Generator) -> bool:
    """Does another response of the same class have other weights, in the same company?"""
    which = torch.randint(len(partitions), (FIRST, number), generator=generator)
    leaf, changed = torch.zeros(2, FIRST, number, subject.group_size, dtype=torch.int64)
    for prompt, classes in enumerate(partitions):
        here = which == prompt
        place = torch.randint(len(classes.leaf), (int(here.sum()), subject.group_size), generator=generator)
        first, end = classes.first[classes.kind[place]], classes.first[classes.kind[place] + 1]
        other = first + (torch.rand(place.shape, generator=generator) * (end - first)).long()
        leaf[here], changed[here] = classes.leaf[place], classes.leaf[torch.minimum(other, end - 1)]
    group, at = (torch.randint(most, (FIRST,), generator=generator) for most in leaf.shape[1:])
    rows = torch.arange(FIRST)
    another = leaf.clone()
    another[rows, group, at] = changed[rows, group, at]
    own = group * subject.group_size + at
    one, two = (subject(which, each.flatten(1))[rows, own] for each in (leaf, another))
    both = (one[:, -1] > 0) & (two[:, -1] > 0)
    tolerance = _tolerance(subject, partitions, float(one.abs().max()))
    return not bool(_alike(one[both, :-3], two[both, :-3], tolerance).all())


def _pool_holds(draws: BatchDraws) -> bool:
    """Do the weights of a group stay the same when the other groups are drawn anew, with the same sum?"""
    for how in HOWS:
        prompt, position = draws.independent(FIRST, evenly=how != "typical")
        code, kind = draws.codes(prompt, position)
        rest = draws.laws.find(draws.number - 1, code[:, 1:].sum(-1))
        known = (rest >= 0) & (kind >= 0).all(-1)
        prompt, position, kind, rest = prompt[known], position[known], kind[known], rest[known]
        types = draws.others(rest, how)
        others, new = draws.of_types(types, how)
        if how == "coinciding":
            new = torch.where((types == kind[:, :1])[..., None], position[:, :1], new)
        # The own group comes last in the other batch.
        one = draws.ask(prompt, position)[:, 0]
        two = draws.ask(torch.cat([others, prompt[:, :1]], 1), torch.cat([new, position[:, :1]], 1))[:, -1]
        if not _alike(one, two, _tolerance(draws.subject, draws.partitions, float(one.abs().max()))).all():
            return False
    return True


def _looks_sufficient(draws: BatchDraws) -> bool:
    """Do a few hundred batches and as many other ones with the same who and Ω agree?"""
    who, omega = draws.possible().nonzero(as_tuple=True)
    for how in HOWS:
        chosen = torch.randint(len(who), (FIRST,), generator=draws.generator)
        one, two = (_own_rows(draws, who[chosen], omega[chosen], kind) for kind in ("typical", how))
        if not _alike(one, two, _tolerance(draws.subject, draws.partitions, float(one.abs().max()))).all():
            return False
    return True


def _own_rows(draws: BatchDraws, who: Int[Tensor, " R"], omega: Int[Tensor, " R"], how) -> Float[Tensor, "R T"]:
    prompt, position, group, at = draws.draw(who, omega, how)
    return draws.ask(prompt, position)[torch.arange(len(who)), group, at]


def _table(draws: BatchDraws, own: Own, pool: Pool) -> Table | None:
    """The weights of every who in every Ω; None if batches are found that have others."""
    subject = draws.subject
    size = max(1, CHUNK // (draws.number * subject.group_size * subject.enumeration.tree.horizon))
    weights, largest = _filled(draws, size, pool)
    most = float(weights.abs().max())
    tolerance, least = _tolerance(subject, draws.partitions, most), most * 2.0**-QUIET
    loud, count = largest > least, max(500, min(TRIED, 50 * size))
    determined = True
    for prompt, position in _company(draws, count):
        for some, rows in zip(prompt.split(size), position.split(size)):
            answers, (who, omega) = draws.ask(some, rows), draws.find(some, rows)
            known = (who >= 0) & (omega >= 0)[:, None, None]
            place = (who.clamp(min=0), omega.clamp(min=0)[:, None, None].expand_as(who))
            if not (_alike(answers, weights[place], tolerance) | ~known).all():
                return None
            heard = answers.abs().amax((-2, -1)) > least
            determined &= bool(((heard[..., None] == loud[place]) | ~known).all())
    words = f"{own.words} in its group, and of the whole batch {pool.words}"
    return Table(draws, words, weights, loud.double() if determined else None, count)


def _filled(
    draws: BatchDraws, size: int, pool: Pool
) -> tuple[Float[Tensor, "who omega T"], Float[Tensor, "who omega"]]:
    """The weights of every who in every Ω, and the largest of its group. Every batch has those of all its responses, so
    few batches have them all."""
    possible, horizon = draws.possible(), draws.subject.enumeration.tree.horizon
    if draws.entries > MAX_ENTRIES:
        raise TooLarge(
            f"{pool.words} take {draws.omegas:,} values: {draws.entries:.0e} weights to ask for (at most "
            f"{MAX_ENTRIES:.0e})"
        )
    weights = torch.zeros(*possible.shape, horizon, dtype=torch.float64)
    largest = torch.zeros(possible.shape, dtype=torch.float64)
    missing = possible.clone()
    while missing.any():
        omega, who = missing.T.nonzero(as_tuple=True)
        order = torch.randperm(len(who), generator=draws.generator)
        order = order[omega[order].argsort(stable=True)]
        first = torch.searchsorted(omega, omega)
        number = torch.searchsorted(omega, omega, right=True) - first
        # One of eight of every Ω, for the others will come with them.
        asked = order[torch.arange(len(order)) - first < (number / 8).ceil()]
        for part in asked.split(size):
            prompt, position, group, at = draws.draw(who[part], omega[part], "quick")
            answers, (here, batch) = draws.ask(prompt, position), draws.find(prompt, position)
            heard = answers.abs().amax((-2, -1))
            known = (here >= 0) & (batch >= 0)[:, None, None]
            place = (here[known], batch[:, None, None].expand_as(here)[known])
            weights[place], largest[place] = answers[known], heard[..., None].expand_as(here)[known]
            missing[place] = False
            # The own one last, for it was asked for: that of another response could be improbable.
            own, row = (who[part], omega[part]), torch.arange(len(part))
            weights[own], largest[own] = answers[row, group, at], heard[row, group]
            missing[own] = False
    return weights, largest


def _company(draws: BatchDraws, count: int):
    """Batches to compare a table with: in every way of drawing, a fifth each."""
    fifth = count // 5 + 1
    who, omega = draws.possible().nonzero(as_tuple=True)
    for how in HOWS:
        chosen = torch.randint(len(who), (fifth,), generator=draws.generator)
        yield draws.draw(who[chosen], omega[chosen], how)[:2]
    for evenly in (False, True):
        yield draws.independent(fifth, evenly)


def _tolerance(subject: Subject, partitions: list[Partition], size: float) -> tuple[float, float]:
    """What weights of the same batch may differ by: a share of their size, and a number."""
    unit = torch.finfo(getattr(torch, subject.precision)).eps
    if unit > 1e-6:
        raise Refused(f"it computes in {subject.precision}, too coarse to tell what its weights depend on")
    share, reward = max(AGREE, UNITS * unit), torch.cat([classes.reward for classes in partitions])
    largest, spread = float(reward.abs().max()), float(reward.max() - reward.min())
    if spread == 0:
        return share, share * size + 1e-12 * largest
    return share, (share + UNITS * torch.finfo(torch.float64).eps * min(largest / spread, 1e9)) * size


def _alike(one: Float[Tensor, "*shape T"], two: Float[Tensor, "*shape T"], tolerance: tuple[float, float]) -> Tensor:
    share, number = tolerance
    return ((one - two).abs() <= share * two.abs() + number).all(-1)
