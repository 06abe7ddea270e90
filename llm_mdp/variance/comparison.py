"""From measurements to an answer: which estimator for which budget, and in one sentence why.

Only what a trainer can buy with tokens, and of which enough was seen to have figures, competes. Estimators that were
given values of states (an exact critic) are shown, for they say what such values would be worth, but their price is not
in the tokens.

Of sampled rows the answer says no more than their intervals do: one that may be as good as the best, for all that was
drawn, is named beside it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_mdp.variance.measurement import progress
from llm_mdp.variance.unseen import two_digits

Row = dict[str, Any]
"""`Measurement.row` of a candidate, with its `label`, `estimator`, `options` and `given_values`."""

UNSURE = 0.2
"""Width of an interval of progress that still is an answer."""
EVEN = 0.02
"""Progress that two estimators differ by at most where nobody should care which one is taken."""
NAMED = 3
"""Most estimators that a sentence names in a row."""


def competing(rows: Sequence[Row]) -> list[Row]:
    """Those that a budget of tokens pays for in full, and that have figures."""
    return [row for row in rows if not row.get("given_values") and not row.get("too_few")]


def leading(rows: Sequence[Row], budget: float) -> Row | None:
    """What makes most progress with this budget, of what it pays for; None if there is nothing."""
    paid = [row for row in competing(rows) if row["tokens"] <= budget]
    return max(paid, key=lambda row: progress_of(row, budget), default=None)


def on_frontier(rows: Sequence[Row]) -> set[str]:
    """Labels of the competing rows than which no other has both at least the ceiling and at most the tokens to
    signal."""

    def key(row: Row) -> tuple[float, float]:
        # Ceilings that are equal but for rounding are equal.
        return round(row["ceiling"], 9), -_infinite(row["tokens_to_signal"])

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
    """What to take with this budget in one sentence, what the next best would cost, and what values of states would be
    worth; or why nobody knows.

    Args: rows: sampled ones with `behind`, by how much the leading one makes more progress, as an interval.
    """
    missing = _missing(rows, budget)
    if missing is not None:
        return missing
    listed = sorted(
        (row for row in competing(rows) if row["tokens"] <= budget),
        key=lambda row: progress_of(row, budget),
        reverse=True,
    )
    best, best_progress = listed[0], progress_of(listed[0], budget)
    low, high = _ends(best, "progress", best_progress)
    if low <= 0:
        return (
            f"With {budget:,.0f} tokens a batch nobody can say what to take: {best['samples']:,} draws do not tell a "
            f"signal from none; about {_enough(best, budget):,} may."
        )
    rivals = _rivals(listed)
    open_ones = [row for row in rivals if not _is_settled(row)]
    number = int(budget // best["tokens"])
    what = "response" if round(best["rewards"], 3) <= 1 else "prompt"
    drawn = f"{number:,} {what}s give" if number != 1 else f"1 {what} gives"
    sure = f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{best_progress:.2f}"
    gain = f"{drawn} {sure} of the exact gradient's progress"
    parts = [f"With {budget:,.0f} tokens a batch take {best['label']}{_ceiling(best)}: {gain}"]
    if open_ones:
        parts.append(f"{_several(open_ones)} may do as well, for all that was drawn")
    elif rivals:
        parts.append(_next_best(rivals[0], best_progress, budget))
    given = max((row for row in rows if _is_given(row)), key=lambda row: progress_of(row, budget), default=None)
    if given is not None and _ends(given, "progress", progress_of(given, budget))[0] > high + EVEN:
        worth = progress_of(given, budget)
        parts.append(f"exact values of states, if a critic could learn them, would give {worth:.2f} ({given['label']})")
    if high - low > UNSURE:
        parts.append(f"about {_enough(best, budget):,} draws would leave less room than {best['samples']:,} did")
    if unknown := [row for row in rows if row["too_few"] and not row["given_values"]]:
        parts.append(f"of {_several(unknown)} too little was seen")
    return "; ".join(parts) + "."


def _missing(rows: Sequence[Row], budget: float) -> str | None:
    """Why there is nothing to recommend, if there is not."""
    paid = [row for row in rows if not row["given_values"]]
    if not paid:
        return (
            "All of these were given values of states, whose price is not in the tokens; name one that draws what it "
            "needs."
        )
    least = min(row["tokens"] for row in paid)
    if least > budget:
        return f"{budget:,.0f} tokens do not pay for a single estimate; the cheapest takes {least:,.0f}."
    known = [row for row in competing(rows) if row["tokens"] <= budget]
    if not known:
        few = max((row["too_few"] for row in paid if row["too_few"]), key=lambda each: each["needed"])
        return f"With {budget:,.0f} tokens a batch nobody can say what to take: {few['words']}."
    if not max(progress_of(row, budget) for row in known) > 0:
        return (
            f"With {budget:,.0f} tokens a batch no estimator shows a signal here; draw more tokens, or measure longer."
        )
    return None


def _rivals(listed: Sequence[Row]) -> list[Row]:
    """Of every other estimator than the best one's, first those that may be as good, then the best of the rest."""
    others = sorted(listed[1:], key=_is_settled)
    found: dict[str, Row] = {}
    for row in others:
        if row["estimator"] != listed[0]["estimator"]:
            found.setdefault(row["estimator"], row)
    return list(found.values())


def _is_settled(row: Row) -> bool:
    """Does the interval say that it is behind, or that nobody should care?"""
    low, high = row["behind"] or (0.0, 0.0)
    return low > 0 or max(-low, high) <= EVEN or low == high


def _next_best(rival: Row, best_progress: float, budget: float) -> str:
    low, high = rival["behind"] or (best_progress - progress_of(rival, budget),) * 2
    if high < EVEN:
        return f"{rival['label']} does as well ({progress_of(rival, budget):.2f})"
    needed = budget_for(rival, best_progress)
    if math.isinf(needed):
        return f"the next best, {rival['label']}, never gets there"
    about = "about " if low < high else ""
    return f"the next best, {rival['label']}, needs {about}{needed / budget:.2g} times the tokens for that"


def _ceiling(row: Row) -> str:
    """What the bias of a row costs however many tokens there are, if that is known to be something."""
    most = _ends(row, "ceiling", row["ceiling"])[1]
    if row["verdict"] != "biased" or not most < 1 - 1e-9:
        return ""
    return f" (biased: at most {min(most, 0.9999):.2g} however many tokens)"


def _is_given(row: Row) -> bool:
    return row["given_values"] and not row["too_few"]


def _ends(row: Row, figure: str, exact: float) -> tuple[float, float]:
    low, high = (row["intervals"] or {}).get(figure) or (exact, exact)
    return low, high


def _enough(row: Row, budget: float) -> int:
    """About how many draws leave an interval of progress `UNSURE` wide: its width falls with their root."""
    low, high = _ends(row, "progress", progress_of(row, budget))
    return two_digits(row["samples"] * ((high - low) / UNSURE) ** 2)


def _several(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    if len(labels) > NAMED:
        return f"{', '.join(labels[:NAMED])} and {len(labels) - NAMED} more"
    return " and ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else labels[0]


def progress_of(row: Row, budget: float) -> float:
    """Progress of a row at any budget."""
    return progress(row["ceiling"], row["tokens_to_signal"], budget)


def budget_for(row: Row, wanted: float) -> float:
    """Tokens with which a row makes this much progress; infinite if its cosine does not let it."""
    ceiling = progress_of(row, math.inf)
    return row["tokens_to_signal"] * wanted / (ceiling - wanted) if ceiling > wanted else math.inf


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value
