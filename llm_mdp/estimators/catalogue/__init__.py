"""The catalogue: every estimator that has a name, once. `verify`, `variance`, `inspect` and `train` read it.

A name means one estimator, with the options that stand here; where a command chooses others (a group size, a clip, a
reduction), its output says so. A new estimator is its class, an entry in one of these files, and its claim in
`verify/claims/`.
"""

from collections.abc import Iterable
from dataclasses import fields

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue.algorithms import ALGORITHMS
from llm_mdp.estimators.catalogue.off_policy import OFF_POLICY
from llm_mdp.estimators.catalogue.practices import PRACTICES
from llm_mdp.estimators.catalogue.theorems import THEOREMS
from llm_mdp.estimators.catalogue.turns import TURNS
from llm_mdp.estimators.entry import Entry, Given, NeedsExactValues
from llm_mdp.own import UsageError, did_you_mean, whole_file

ENTRIES: tuple[Entry, ...] = (*ALGORITHMS, *THEOREMS, *PRACTICES, *OFF_POLICY, *TURNS)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name."""


def find_entry(name: str, among: Iterable[str] = CATALOGUE) -> Entry:
    """The entry of this name.

    Raises:
        UsageError: with the nearest name, if there is none.
    """
    if name not in CATALOGUE:
        hint = whole_file(name, Estimator) or did_you_mean(
            name, CATALOGUE, f"choose among {', '.join(among)}, or write FILE.py:CLASS."
        )
        raise UsageError(f"there is no estimator {name!r}; {hint}")
    return CATALOGUE[name]


def describe(estimator: Estimator, name: str, given: Given) -> str:
    """The options of an estimator that are not those of its name: `reduction sequence_mean, clip_low 0.2`; empty if
    there are none. Models and critics are no options, nor is the horizon.

    Raises:
        UsageError: if there is no such name.
    """
    try:
        named = find_entry(name).make(given)
    except NeedsExactValues:  # made from values that agents learn; what else it has are the defaults of its class
        named = None
    differs = []
    for each in fields(estimator):
        value = getattr(estimator, each.name)
        usual = getattr(named, each.name, each.default)
        value, usual = (getattr(one, "words", one) for one in (value, usual))
        plain = isinstance(value, bool | int | float | str | tuple) and each.name not in (
            "horizon",
            "reduction_constant",
        )
        if plain and value != usual:
            differs.append(f"{each.name} {value}")
    return ", ".join(differs)
