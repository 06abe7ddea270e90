"""How often a group is kept, and how often a kept one has a weight other than 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.verify.classes.convolution import CHUNK, Laws
from llm_mdp.verify.classes.sufficiency import Table
from llm_mdp.verify.weights import QUIET

MAX_PATTERNS = 200
"""Kinds of states in which some responses have weights of 0 and others not, beyond which nothing is counted."""


@dataclass(frozen=True)
class Signal:
    """Chances of one group."""

    kept: float
    """That it is kept."""
    with_signal: float | None
    """That a kept one has a token whose weight is not 0 (`weights.QUIET`); None: too many cases to count."""


def signal_of(tables: Sequence[tuple[float, Table]]) -> Signal:
    """Over all prompts, each with its probability."""
    every = all(bool((table.kept > 0).all()) for _, table in tables)
    kept = 1.0 if every else sum(rho * float((table.chance * table.kept).sum()) for rho, table in tables)
    largest = max(float(table.weights.abs().amax()) for _, table in tables)
    if kept == 0 or largest == 0:
        return Signal(kept, 0.0 if kept else None)
    loud = [_loud(table, largest * 2.0**-QUIET) for _, table in tables]
    if any(chance is None for chance in loud):
        return Signal(kept, None)
    chance = sum(rho * each for (rho, _), each in zip(tables, loud) if each is not None)
    return Signal(kept, min(chance / kept, 1.0))


def _loud(table: Table, least: float) -> float | None:
    """Chance that a group is kept and has a weight above `least`: of every total state, the chance of it less that of
    reaching it through responses without a weight alone."""
    draw, laws = table.representatives, table.laws
    size = draw.others + 1
    totals, law = laws.codes[size], laws.chances[size]
    own = table.classes.chance if table.by_leaf else table.classes.probability
    feature = laws.feature[table.classes.kind] if table.by_leaf else laws.feature
    loud = table.weights.abs().amax(-1) > least
    features = len(laws.code)
    mass, kept = torch.empty(len(totals), features, dtype=torch.float64), torch.zeros(len(totals), dtype=torch.bool)
    some = torch.zeros(len(totals), dtype=torch.bool)
    for number, code in enumerate(laws.code):
        units = (feature == number).nonzero()[:, 0]
        others = laws.find(draw.others, totals - code)
        there = others >= 0
        places = others.clamp(min=0).split(max(1, CHUNK // max(len(units), 1)))
        quiet = [_quiet(~loud[units][:, place].T, own[units], laws.chance[number]) for place in places]
        here = torch.cat(quiet)
        some |= there & (here < laws.chance[number])
        # A state that has no such response does not matter: it joins the others if these are of one kind.
        always = here[there][:1] if bool((here[there] == here[there][:1]).all()) else torch.zeros(1)
        mass[:, number] = torch.where(there, here, always.double())
        kept |= there & (table.kept[units[0]][others.clamp(min=0)] > 0)
    total = float(law[kept & some].sum())
    mixed = (kept & some & (mass > 0).any(-1)).nonzero()[:, 0]
    patterns, which = mass[mixed].unique(dim=0, return_inverse=True)
    if len(patterns) > MAX_PATTERNS:
        return None
    for number, pattern in enumerate(patterns):
        total -= _through(laws, pattern, size, totals[mixed[which == number]])
    return max(total, 0.0)


def _quiet(
    quiet: Bool[Tensor, "S U"], chance: Float[Tensor, " U"], everybody: Float[Tensor, ""]
) -> Float[Tensor, " S"]:
    """Probability of a quiet response among those of one feature."""
    return torch.where(quiet.all(-1), everybody, quiet.double() @ chance)


def _through(laws: Laws, mass: Float[Tensor, " F"], size: int, wanted: Int[Tensor, " S"]) -> float:
    """Probability that `size` responses, all of them among those of these masses, make one of the wanted states."""
    code, chance = laws.code[mass > 0], mass[mass > 0]
    states, law = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    for _ in range(size):
        states, place = (states[:, None] + code).unique(return_inverse=True)
        added = (law[:, None] * chance).flatten()
        law = torch.zeros(len(states), dtype=torch.float64).index_add_(0, place.flatten(), added)
    return float(law[torch.isin(states, wanted)].sum())
