"""What noise and cost amount to: the document of `llm-mdp variance` read for people, and as CSV. Shared by the terminal
and the page."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_mdp.report.rows import SYMBOLS, bias, number, ratio

MOST = 12
"""Rows of a setting shown in a terminal, unless more are worth it."""

Document = dict
"""The `results.json` that `llm-mdp variance --out FOLDER` writes."""

FIGURES = (
    "tokens",
    "rewards",
    "seconds",
    "samples",
    "trace_covariance",
    "trace_covariance_of_draws",
    "relative_bias",
    "scale",
    "cosine",
    "ceiling",
    "tokens_to_signal",
    "tokens_over_base",
    "estimates",
    "mean_squared_error",
    "signal_to_noise",
    "progress",
)
"""The figures of a row, in the order of the CSV file."""
INTERVALS = (
    "trace_covariance",
    "relative_bias",
    "scale",
    "cosine",
    "ceiling",
    "tokens_to_signal",
    "tokens_over_base",
    "mean_squared_error",
    "signal_to_noise",
    "progress",
)
"""Those that have a confidence interval where they are sampled."""
BOUNDS = {"cosine": (-1.0, 1.0), "ceiling": (-1.0, 1.0), "scale": (None, None), "progress": (-1.0, 1.0)}
"""Between what these are whatever is drawn; the others are 0 or more."""
LOPSIDED = 2.5
"""From which ratio of its sides an interval is told by its ends."""
BY_THEOREM = "by theorem"
UNKNOWN = "?"
"""In place of an interval that is all that a figure can be."""


@dataclass(frozen=True)
class AxisPoint:
    """The best row of one estimator in one setting, where settings are compared along an axis."""

    at: float | str
    """Value of the axis."""
    row: dict


def settings_of(document: Document) -> list[dict]:
    """The settings. Raises ValueError if the document does not come from `llm-mdp variance`, or a setting has no
    rows."""
    settings = document.get("settings")
    if not settings:
        raise ValueError(
            "the document has no settings; give the results.json that `llm-mdp variance --out FOLDER` writes."
        )
    for setting in settings:
        if not setting.get("rows"):
            raise ValueError(
                f"the setting {setting.get('name')!r} has no rows; give the results.json that `llm-mdp variance --out "
                f"FOLDER` writes."
            )
    return settings


def by_progress(rows: list[dict]) -> list[dict]:
    """Most progress at the budget first; unknown progress last."""
    return sorted(rows, key=lambda row: -math.inf if row["progress"] is None else row["progress"], reverse=True)


def leaders(rows: list[dict]) -> list[dict]:
    """The best row of each estimator, best first."""
    best: dict[str, dict] = {}
    for row in by_progress(rows):
        best.setdefault(row["estimator"], row)
    return list(best.values())


def worth_showing(rows: list[dict], most: int = MOST) -> list[dict]:
    """Best first: the frontier, the best of each estimator, and as many of the others as make `most`."""
    ranked, chosen = by_progress(rows), [id(row) for row in leaders(rows)]
    kept = {id(row) for row in ranked if row["frontier"]} | set(chosen)
    others = [id(row) for row in ranked if id(row) not in kept]
    kept |= set(others[: max(0, most - len(kept))])
    return [row for row in ranked if id(row) in kept]


def prominent(document: Document) -> list[str]:
    """The estimators, those first that are best somewhere (most often first), then by their progress where it is
    largest."""
    wins: Counter[str] = Counter()
    largest: dict[str, float] = {}
    for setting in settings_of(document):
        estimator_of = {row["label"]: row["estimator"] for row in setting["rows"]}
        wins.update({estimator_of[best["label"]] for best in setting["best"] if best["label"] in estimator_of})
        for row in setting["rows"]:
            progress = -math.inf if row["progress"] is None else row["progress"]
            largest[row["estimator"]] = max(largest.get(row["estimator"], -math.inf), progress)
    return sorted(largest, key=lambda name: (-wins[name], -largest[name]))


def along_axis(document: Document) -> dict[str, list[AxisPoint]]:
    """For each estimator its best row in every setting that has a value on the axis of the sweep, in the order of a
    numeric axis."""
    found: dict[str, list[AxisPoint]] = {name: [] for name in prominent(document)}
    for setting in settings_of(document):
        at = setting["axes"].get(document["sweep"])
        if at is not None:
            for row in leaders(setting["rows"]):
                found[row["estimator"]].append(AxisPoint(at, row))
    if is_numeric_axis(document):
        found = {name: sorted(points, key=lambda point: point.at) for name, points in found.items()}
    return {name: points for name, points in found.items() if points}


def is_numeric_axis(document: Document) -> bool:
    """Whether the axis of the sweep counts something, and does not name it."""
    values = [setting["axes"].get(document["sweep"]) for setting in settings_of(document)]
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)


def verdict_symbol(row: dict) -> str:
    """What stands for the verdict where there is no room for the word."""
    return SYMBOLS.get(row["verdict"], "–")


def tokens_to_signal(row: dict) -> str:
    """The tokens at which signal equals noise; `∞` where the noise is known and there is no signal."""
    if row["tokens_to_signal"] is None and row["trace_covariance"] is not None:
        return "∞"
    return number(row["tokens_to_signal"])


WRITERS: dict[str, Callable[[float | None], str]] = {"relative_bias": bias, "scale": ratio, "cosine": ratio}
"""How a figure is written, where not as a plain number."""


def figure(row: dict, key: str) -> str:
    """A figure in words: as it was measured; `by theorem`; or where the draws left no number but an interval, that:
    `≤0.35`, `≥120`, `0.2…0.4`, or `?` where it is all that the figure can be."""
    write = WRITERS.get(key, number)
    if key in row.get("by_theorem", ()):
        return BY_THEOREM
    if row[key] is None and (row["intervals"] or {}).get(key):
        return _between(key, *interval(row, key), write)
    return tokens_to_signal(row) if key == "tokens_to_signal" else write(row[key])


def _between(key: str, low: float | None, high: float | None, write: Callable[[float | None], str]) -> str:
    least, most = BOUNDS.get(key, (0.0, None))
    low = None if low is not None and least is not None and low <= least else low
    high = None if high is not None and most is not None and high >= most else high
    if low is None:
        return UNKNOWN if high is None else f"≤{write(high)}"
    return f"≥{write(low)}" if high is None else f"{write(low)}…{write(high)}"


def interval(row: dict, key: str) -> tuple[float | None, float | None]:
    """The ends of a figure's 95 % interval; None where it has none, or none on that side."""
    low, high = (row["intervals"] or {}).get(key) or (None, None)
    return low, high


def margin(row: dict, key: str) -> str:
    """`±0.12`, the wider side of the 95 % interval of a figure in two digits; `0.25…0.95` where its sides differ much,
    `≥0.3` or `≤0.3` where it has one end only; empty where the figure is exact, or says its interval itself."""
    low, high = interval(row, key)
    if row[key] is None or (low is None and high is None) or key in row.get("by_theorem", ()):
        return ""
    if low is None or high is None:
        return _between(key, low, high, WRITERS.get(key, number))
    sides = high - row[key], row[key] - low
    wide = max(*sides, 0.0)
    if min(sides) * LOPSIDED < wide:
        return _between(key, low, high, WRITERS.get(key, number))
    if 10 <= wide < 1e5:
        return f"±{wide:.0f}"
    return "±" + (f"{wide:#.2g}".rstrip(".") if 1e-3 <= wide < 10 else number(float(f"{wide:.1e}")).replace("0e", "e"))


def too_few(row: dict) -> str:
    """Why a row has no figures; empty if it has."""
    return row["too_few"]["words"] if row.get("too_few") else ""


def amount(tokens: float) -> str:
    """Tokens of a budget: `2,000`, with three digits below a hundred."""
    return f"{tokens:,.0f}" if tokens >= 99.95 else number(tokens)


def budgets(best: dict) -> str:
    """The budgets at which something is best: `340 to 2,100 tokens`, `from 340 tokens`."""
    start, end = best["from"], best["to"]
    if start is None:
        return "every budget" if end is None else f"up to {amount(end)} tokens"
    return f"from {amount(start)} tokens" if end is None else f"{amount(start)} to {amount(end)} tokens"


def facts(setting: dict) -> list[tuple[str, str]]:
    """(name, value) of what a setting is."""
    exact = setting["target"] == "exact"
    known = {
        "J" if exact else "mean reward drawn": number(setting["J"]),
        "|∇J|": number(setting["grad_norm"]) if exact else _drawn_norm(setting),
        "expected length" if exact else "mean length drawn": number(setting["expected_length"]),
        "budget": f"{amount(setting['budget'])} tokens",
        "true gradient": "exact" if exact else f"unknown; {setting['target']} stands in",
        "figures": _methods(setting["rows"]),
    }
    return [(name, value) for name, value in known.items() if value != "–"]


def _methods(rows: list[dict]) -> str:
    """How the figures of a setting's rows came about; nothing of results that do not say."""
    if not any("method" in row for row in rows):
        return "–"
    words = {"groups": "group by group", "classes": "by classes of responses", None: "outcome by outcome"}
    found = Counter("sampled" if row["samples"] else words[row.get("method")] for row in rows)
    exact = ", ".join(f"{number} {how}" for how, number in found.items() if how != "sampled")
    reason = next((row["not_exact"] for row in rows if row["samples"] and row.get("not_exact")), "")
    sampled = f"sampled: {found['sampled']}" + (f" ({reason})" if reason else "")
    return "; ".join([f"exact: {exact}"] * bool(exact) + [sampled] * bool(found["sampled"]))


def _drawn_norm(setting: dict) -> str:
    """The interval of |∇J|; nothing where too little was seen."""
    low, high = setting.get("grad_norm_interval") or (None, None)
    return "–" if low is None or high is None else _between("grad_norm", low, high, number)


def write_csv(document: Document, path: Path) -> None:
    """One line a row of every setting, with every digit; an empty cell is what is not known or infinite.

    Columns: the setting and its axes (`axis_…`), the estimator and its options (`option_…`), the figures of `FIGURES`,
    the ends of the confidence intervals (`…_low`, `…_high`), which figures a theorem says (`by_theorem`), why there are
    none (`too_few`), and whether the row is on the frontier.
    """
    settings = settings_of(document)
    about = ("name", "budget", "target", "J", "grad_norm", "expected_length")
    axes = list(dict.fromkeys(axis for setting in settings for axis in setting["axes"]))
    options = list(
        dict.fromkeys(option for setting in settings for row in setting["rows"] for option in row["options"])
    )
    header = [
        "setting",
        *about[1:],
        *(f"axis_{axis}" for axis in axes),
        "label",
        "estimator",
        *(f"option_{option}" for option in options),
    ]
    ends = [f"{key}_{end}" for key in INTERVALS for end in ("low", "high")]
    header += ["verdict", *FIGURES, *ends, "by_theorem", "too_few", "frontier"]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(header)
        for setting in settings:
            shared = [setting[key] for key in about] + [setting["axes"].get(axis) for axis in axes]
            for row in setting["rows"]:
                chosen = [_cell(row["options"].get(option)) for option in options]
                ends = [end for key in INTERVALS for end in interval(row, key)]
                figures = [row.get(key) for key in FIGURES]
                about_them = [" ".join(row.get("by_theorem", ())), too_few(row), row["frontier"]]
                lines.writerow(
                    [*shared, row["label"], row["estimator"], *chosen, row["verdict"], *figures, *ends, *about_them]
                )


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, (list, dict)) else value
