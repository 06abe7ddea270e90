"""From measurements to an answer: which estimator for which budget, and in one sentence why.

Only what a trainer can buy with tokens competes. Estimators that were given values of states (an exact critic) are
shown, for they say what such values would be worth, but their price is not in the tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_mdp.variance.measurement import progress

Row = dict[str, Any]
"""`Measurement.row` of a candidate, with its `label`, `estimator`, `options` and `given_values`."""

EVEN = 0.02
"""Progress that two estimators differ by at most where nobody should care which one is taken."""
UNSURE = 0.2
"""Width of an interval of progress from which a recommendation says that it is a guess."""


def competing(rows: Sequence[Row]) -> list[Row]:
    """Those that a budget of tokens pays for in full."""
    return [row for row in rows if not row["given_values"]]


def on_frontier(rows: Sequence[Row]) -> set[str]:
    """Labels of the competing rows than which no other has both at least the cosine and at most the tokens to
    signal."""

    def key(row: Row) -> tuple[float, float]:
        # Cosines that are equal but for rounding are equal.
        return round(row["cosine"], 9), -_infinite(row["tokens_to_signal"])

    listed = competing(rows)
    return {
        row["label"]
        for row in listed
        if not any(
            other is not row and key(other) != key(row) and all(a >= b for a, b in zip(key(other), key(row)))
            for other in listed
        )
    }


def best_by_budget(rows: Sequence[Row], budget: float) -> list[dict[str, Any]]:
    """Ranges of budgets in tokens, from a single estimate to 1,000 times `budget`, with the label that makes most
    progress in each."""
    listed = competing(rows)
    if not listed:
        return []
    start = min(row["tokens"] for row in listed)
    grid = np.geomspace(start, max(1000 * budget, 10 * start), 600)
    ranges: list[dict[str, Any]] = []
    for at in grid:
        affordable = [row for row in listed if row["tokens"] <= at]
        label = max(affordable, key=lambda row: (progress_of(row, at), -row["tokens"]))["label"]
        if not ranges or ranges[-1]["label"] != label:
            if ranges:
                ranges[-1]["to"] = float(at)
            ranges.append({"label": label, "from": float(at), "to": None})
    return ranges


def recommendation(rows: Sequence[Row], budget: float) -> str:
    """One sentence: what to take with this budget, what the next best would cost, and what values of states would be
    worth."""
    listed = sorted(
        (row for row in competing(rows) if row["tokens"] <= budget),
        key=lambda row: progress_of(row, budget),
        reverse=True,
    )
    if not competing(rows):
        return (
            "All of these were given values of states, whose price is not in the tokens; name one that draws what it "
            "needs."
        )
    if not listed:
        least = min(row["tokens"] for row in competing(rows))
        return f"{budget:,.0f} tokens do not pay for a single estimate; the cheapest takes {least:,.0f}."
    if not progress_of(listed[0], budget) > 0:
        return (
            f"With {budget:,.0f} tokens a batch no estimator shows a signal here; draw more tokens, or measure longer."
        )
    best, best_progress = listed[0], progress_of(listed[0], budget)
    biased = " (biased: its ceiling is below 1)" if best["verdict"] == "biased" else ""
    number = int(budget // best["tokens"])
    what = "response" if round(best["rewards"], 3) <= 1 else "prompt"
    take, drawn = f"{best['label']}{biased}", f"{number:,} {what}s give" if number != 1 else f"1 {what} gives"
    gain = f"{drawn} {best_progress:.2f} of the exact gradient's progress"
    parts = [f"With {budget:,.0f} tokens a batch take {take}: {gain}"]
    rivals = [row for row in listed[1:] if row["estimator"] != best["estimator"]]
    if rivals:
        rival = rivals[0]
        if best_progress - progress_of(rival, budget) < EVEN:
            parts.append(f"{rival['label']} does as well ({progress_of(rival, budget):.2f})")
        else:
            needed = budget_for(rival, best_progress)
            price = (
                f"needs {needed / budget:.2g} times the tokens for that"
                if math.isfinite(needed)
                else "never gets there"
            )
            parts.append(f"the next best, {rival['label']}, {price}")
    given = max((row for row in rows if row["given_values"]), key=lambda row: progress_of(row, budget), default=None)
    if given is not None and progress_of(given, budget) > best_progress + EVEN:
        worth = progress_of(given, budget)
        parts.append(f"exact values of states, if a critic could learn them, would give {worth:.2f} ({given['label']})")
    low, high = (best["intervals"] or {}).get("progress") or (best_progress, best_progress)
    if high - low > UNSURE:
        parts.append(
            f"{best['samples']} draws leave it between {low:.2f} and {high:.2f}, so draw more before you rely on it"
        )
    return "; ".join(parts) + "."


def progress_of(row: Row, budget: float) -> float:
    """Progress of a row at any budget."""
    return progress(row["cosine"], row["tokens_to_signal"], budget)


def budget_for(row: Row, wanted: float) -> float:
    """Tokens with which a row makes this much progress; infinite if its cosine does not let it."""
    ceiling = progress_of(row, math.inf)
    return row["tokens_to_signal"] * wanted / (ceiling - wanted) if ceiling > wanted else math.inf


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
