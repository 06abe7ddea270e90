"""Prices that were computed before: of every biased row of the ledger, on 60 random tables of each of two kinds
(`benchmarks/prices.py`, docs/price.md)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("typical_prices.json")
"""What `benchmarks/prices.py` wrote."""
KINDS = {"token": "real rewards", "outcome": "right or wrong"}
"""Kinds of rewards: a normal number a token; 1 for some responses, of probability 0.3 together, and 0 for the rest."""
HARMLESS = 4e-4
"""Prices below this are not told from 0."""


@dataclass(frozen=True)
class Typical:
    """What a row costs on random tables with one kind of rewards."""

    instances: int
    priced: int
    """On how many of them it has a price."""
    missed: dict[str, int]
    """Why not on the others, and on how many."""
    mean: float | None
    interval: tuple[float, float] | None
    """95 % interval of the mean over instances; None, as the mean: too few have a price."""
    worst: float | None
    """The largest of them; a search finds worse ones."""
    one_minus_cosine: float
    """Mean over the instances, at the policies that they start with."""
    relative_bias: float

    @property
    def text(self) -> str:
        """`0.046 [0.039, 0.053]`, or the reason why there is none."""
        if self.mean is None or self.interval is None:
            return max(self.missed, key=lambda why: self.missed[why])
        if self.interval[1] < HARMLESS:
            return f"below {HARMLESS:g}"
        low, high = (f"{max(end, 0.0):.2g}" for end in self.interval)
        some = "" if self.priced == self.instances else f" on {self.priced} of {self.instances}"
        return f"{self.mean:.2g} [{low}, {high}]{some}"


def typical_prices(row: str) -> dict[str, Typical]:
    """What a row of the ledger costs, by the kind of rewards (`KINDS`); empty if it was never computed."""
    found = _stored().get(row, {})
    return {kind: typical_of(found[kind]) for kind in KINDS if kind in found}


def price_text(row: str, verdict: str) -> str:
    """A row's price in a cell of a table: `real rewards 0.046 [0.039, 0.053]; right or wrong below 0.0004`; 0 where the
    direction is exact, as a constant in front of the gradient is absorbed by the penalty."""
    if verdict in ("unbiased", "proportional"):
        return "0"
    if (reason := _stored().get(row, {}).get("reason")) is not None:
        return f"none: {reason}"
    found = typical_prices(row)
    texts = {KINDS[kind]: typical.text for kind, typical in found.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{kind} {text}" for kind, text in texts.items())


def rows_with_price() -> tuple[str, ...]:
    """The rows of the ledger whose price was computed, in the ledger's order."""
    return tuple(name for name, row in _stored().items() if row.get("setting"))


@cache
def _stored() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))["rows"] if FILE.exists() else {}


def typical_of(row: dict[str, Any]) -> Typical:
    """What the file has of a row and one kind of rewards."""
    interval = row.get("interval")
    return Typical(
        row["instances"],
        row["priced"],
        row["missed"],
        row.get("typical"),
        None if interval is None else (interval[0], interval[1]),
        row.get("worst"),
        row["one_minus_cosine"],
        row["relative_bias"],
    )
