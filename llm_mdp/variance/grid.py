"""The grid of options that `llm-mdp variance` tries for each estimator of the catalogue.

A candidate is a name with options, plain enough for JSON; `build` makes the estimator of it. Options: `group_size` K;
`positions` |D|, boundaries in a response of full length, evenly spaced; `branches` M from each; `lam` λ;
`critic_error` σ, what a critic is off by.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.estimators.catalogue import CATALOGUE, find_entry
from llm_mdp.estimators.entry import OPTIONS, Entry, Given, Option, Proved
from llm_mdp.own import is_own

DEFAULT = ("reinforce", "reinforce-mean", "rloo", "remax", "grpo", "dr-grpo", "ppo", "vineppo", "trepo", "trepo-paper")
"""What `llm-mdp variance` compares when nobody says what."""
POSITIONS = Option("D", "boundaries in a response of full length", 1)
"""What a candidate has in place of a boundary."""
SHORT = {name: option.short for name, option in OPTIONS.items()} | {"positions": POSITIONS.short}

AXES = {
    "group_sizes": OPTIONS["group_size"],
    "positions": POSITIONS,
    "branches": OPTIONS["branches"],
    "lams": OPTIONS["lam"],
    "critic_errors": OPTIONS["critic_error"],
}
"""The option that each axis of the grid is about."""
LAMS = {"ppo": (0.0, 0.95, 1.0), "trepo": (0.0, 0.5)}
"""λ to try, if nobody says what; elsewhere the entry's own."""


@dataclass(frozen=True)
class Grid:
    """Values of the options; a name that has an option is tried with each."""

    group_sizes: tuple[int, ...] = (2, 4, 8)
    """K, responses to a prompt."""
    positions: tuple[int, ...] = (2, 4)
    """|D|, boundaries in a response of full length."""
    branches: tuple[int, ...] = (1, 4)
    """M, from each boundary."""
    lams: tuple[float, ...] | None = None
    """λ; None: 0, 0.95 and 1 for PPO, 0 and 0.5 for TRePO."""
    critic_errors: tuple[float, ...] = (0.0, 0.5)
    """What a critic is off by, in standard deviations of the reward."""

    def __post_init__(self) -> None:
        for name, option in AXES.items():
            values = getattr(self, name)
            for value in values or ():
                if not option.allows(value):
                    raise ValueError(f"--{name.replace('_', '-')} has {value}; each must be {option.limits}.")
            if values == ():
                raise ValueError(f"--{name.replace('_', '-')} is empty; give at least one value.")

    def values(self, entry: Entry, option: str) -> Sequence[Any]:
        """What to try of an option of an entry, by its name in a candidate."""
        if option == "lam":
            return self.lams or LAMS.get(entry.name, (entry.options["lam"],))
        given = {
            "group_size": self.group_sizes, "positions": self.positions, "branches": self.branches,
            "critic_error": self.critic_errors,
        }  # fmt: skip
        return given[option]


@dataclass(frozen=True)
class Candidate:
    """A name with options."""

    name: str
    """One of the catalogue, or FILE.py:CLASS."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`trepo K=4 D=2 M=1 λ=0.5`."""
        name = self.name.rpartition(":")[2] or self.name
        return " ".join([name, *(f"{SHORT[option]}={value:g}" for option, value in self.options.items())])

    @property
    def given_values(self) -> bool:
        """Does it use exact values (or values with an error) that somebody gave it for nothing?"""
        return self.name in CATALOGUE and CATALOGUE[self.name].given_values

    @property
    def proved(self) -> Proved | None:
        """What is true of it on every instance; None: that depends on the instance, or nobody knows."""
        return CATALOGUE[self.name].proved(**self.options) if self.name in CATALOGUE else None

    def build(self, given: Given, load: Callable[[str], Estimator] | None = None) -> Estimator:
        """The estimator.

        Args: load: makes an estimator of FILE.py:CLASS.

        Raises:
            NeedsExactValues: for an estimator that is made from what is not known here.
            ValueError: options that the estimator refuses.
        """
        if is_own(self.name) and load is not None:
            return load(self.name)
        options = dict(self.options)
        if "positions" in options:
            options["boundary"] = evenly(options.pop("positions"), given.horizon)
        return find_entry(self.name).make(given, **options)


def evenly(positions: int, horizon: int) -> AtSteps:
    """|D| boundaries, evenly spaced over a response of full length."""
    return AtSteps(tuple(part * horizon // positions for part in range(positions)))


def candidates(names: Iterable[str], grid: Grid, horizon: int) -> list[Candidate]:
    """Every name with every combination of its options; positions beyond the horizon are left out, for they are all the
    same.

    Raises:
        ValueError: for a name that nobody knows, or an option out of range for one of the names.
    """
    found: list[Candidate] = []
    for name in dict.fromkeys(names):
        if is_own(name):
            found.append(Candidate(name))
            continue
        entry, before = find_entry(name), len(found)
        tried = ["positions" if option == "boundary" else option for option in entry.options]
        for values in product(*(grid.values(entry, option) for option in tried)):
            options = dict(zip(tried, values))
            if entry.compares and options["group_size"] < 2:
                continue
            if "positions" in options:
                options["positions"] = min(options["positions"], horizon)
            found.append(Candidate(name, options))
        if len(found) == before:
            raise ValueError(
                f"{name} compares responses to a prompt, and --group-sizes are {grid.group_sizes}; give one of at "
                "least 2."
            )
    distinct = [candidate for place, candidate in enumerate(found) if candidate not in found[:place]]
    by_label: dict[str, Candidate] = {}
    for candidate in distinct:
        if (other := by_label.setdefault(candidate.label, candidate)) is not candidate:
            raise ValueError(
                f"{other.name} and {candidate.name} are both called {candidate.label}; rename one of the classes."
            )
    return distinct
