"""Noise and cost as one self-contained HTML page, to send to a colleague: no network, no fonts, works without
JavaScript too."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_mdp.report.pages import Drawing, check_finite, rendered
from llm_mdp.report.plots import TONES, to_svg
from llm_mdp.report.rows import SYMBOLS
from llm_mdp.report.variance_plots import CURVES, Size, Tones, axis_plot, cost_plot, dots_plot, progress_plot
from llm_mdp.report.variance_rows import (
    AxisPoint,
    Document,
    along_axis,
    amount,
    budgets,
    by_progress,
    facts,
    figure,
    is_numeric_axis,
    margin,
    prominent,
    settings_of,
    too_few,
)
from llm_mdp.variance.comparison import leading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BROAD, NARROW = (6.7, 4.5), (4.2, 3.9)
"""Sizes of a figure on a desk and on a phone."""

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("progress", "progress", "descending"),
    ("tokens each", "tokens", "ascending"),
    ("reward calls", "rewards", "ascending"),
    ("seconds", "seconds", "ascending"),
    ("tr Cov", "trace_covariance", "ascending"),
    ("of the draws", "trace_covariance_of_draws", "ascending"),
    ("relative bias", "relative_bias", "ascending"),
    ("scale", "scale", "descending"),
    ("cosine", "cosine", "descending"),
    ("tokens to signal", "tokens_to_signal", "ascending"),
    ("over the base's", "tokens_over_base", "ascending"),
    ("squared error", "mean_squared_error", "ascending"),
    ("signal to noise", "signal_to_noise", "descending"),
)
"""Name, figure, and the direction in which it is first sorted; the table comes sorted by the first."""

AXES = {"vocab_size": "vocabulary", "success": "success rate"}
"""Axes that are called something else in words."""

CURVES_ALONG = (
    ("Tokens to signal", "Tokens at which signal equals noise. Lower is better.", "tokens_to_signal", True),
    ("Progress at the budget", "Improvement of the best step, relative to the exact gradient.", "progress", False),
    ("Relative bias", "A learning rate repairs scale (see the cosine), no budget the rest.", "relative_bias", False),
    ("Tokens of one estimate", "What one estimate costs.", "tokens", True),
)
"""Title, words, figure, and whether its axis is logarithmic: what is drawn along a numeric axis."""


def render_variance_page(document: Document) -> str:
    """The page of a comparison of estimators at equal cost.

    Everything is rendered here; the page's script only sorts and filters.

    Args:
        document: the `results.json` of `llm-mdp variance --out FOLDER`; embedded in the page as it is.

    Raises:
        ValueError: if the document has no settings or a setting has no rows, or it holds a number that JSON cannot,
        naming its place.
    """
    check_finite(document)
    settings = settings_of(document)
    tones = dict(zip(prominent(document), [*TONES, *["--faint"] * len(prominent(document))]))
    rows = [row for setting in settings for row in setting["rows"]]
    present = {row["verdict"] for row in rows}
    return rendered(
        "variance.html",
        document=document,
        facts=_facts(document),
        command=document["command"],
        headline=_headline(document, settings),
        settings=[_setting(setting, tones) for setting in settings],
        sweep=_sweep(document, tones),
        is_open=document["sweep"] is None,
        tones=tones,
        verdicts=[verdict for verdict in SYMBOLS if verdict in present],
        any_frontier=any(row["frontier"] for row in rows),
        ranks={verdict: rank for rank, verdict in enumerate(SYMBOLS)},
        amount=amount,
        budgets=budgets,
        margin=margin,
        figure_of=figure,
        too_few=too_few,
    )


def _headline(document: Document, settings: list[dict]) -> str:
    """What to take; of several settings, in how many of them."""
    if len(settings) == 1:
        return settings[0]["recommendation"].partition("; ")[0].rstrip(".") + "."
    best = [row["estimator"] for each in settings if (row := leading(each["rows"], document["budget"])) is not None]
    if not best:
        return "Too few successes to recommend anything."
    wins = ", ".join(f"{name} in {count}" for name, count in Counter(best).most_common())
    return f"With {amount(document['budget'])} tokens a batch take {wins} of {len(settings)} settings."


def _facts(document: Document) -> list[tuple[str, str]]:
    known = {
        "estimators": str(len(prominent(document))),
        "settings": str(len(document["settings"])),
        "along": _axis_name(document) if document["sweep"] else "",
        "budget": f"{amount(document['budget'])} tokens",
        "seed": str(document["seed"]),
        "llm-mdp": str(document["version"]),
    }
    return [(name, value) for name, value in known.items() if value]


def _axis_name(document: Document) -> str:
    name = str(document["sweep"])
    return AXES.get(name, name.replace("_", " "))


def _setting(setting: dict, tones: Tones) -> dict[str, Any]:
    """A setting with its figures, the columns of its table, and the colours of what is best."""
    name, estimator_of = setting["name"], {row["label"]: row["estimator"] for row in setting["rows"]}
    figures = [
        _drawing(
            f"{name}: progress against budget",
            "Progress against budget",
            "Improvement of the best step, relative to the exact gradient. Bold: best of all at that budget. Dashed: "
            "biased, or undecided.",
            partial(progress_plot, setting, tones),
        ),
        _drawing(
            f"{name}: what a token buys",
            "What a token buys",
            "Noise to signal of one estimate against its tokens. Diagonals: tokens to signal, lower left is better. "
            "Hollow: biased, or undecided.",
            partial(cost_plot, setting, tones),
        ),
    ]
    return {
        **{key: setting[key] for key in ("name", "words", "recommendation", "budget")},
        "facts": facts(setting),
        "figures": figures,
        "best": [(best, tones.get(estimator_of.get(best["label"], ""), "--faint")) for best in setting["best"]],
        "is_sampled": any(row["samples"] for row in setting["rows"]),
        "columns": [column for column in COLUMNS if any(_is_told(row, column[1]) for row in setting["rows"])],
        "rows": by_progress(setting["rows"]),
    }


def _is_told(row: dict, key: str) -> bool:
    return row[key] is not None or key in row.get("by_theorem", ()) or key in (row["intervals"] or ())


def _drawing(
    alt: str, title: str, words: str, draw: Callable[[Size], "Axes"], sizes: tuple[Size, Size] = (BROAD, NARROW)
) -> Drawing:
    """A drawing twice, for a desk and for a phone."""
    shapes = [(shape, to_svg(draw(size), alt, f"{alt} {shape}")) for shape, size in zip(("broad", "narrow"), sizes)]
    return Drawing(title, words, shapes, wide=sizes[0][0] > BROAD[0])


def _sweep(document: Document, tones: Tones) -> dict[str, Any] | None:
    """What changes along the axis of a sweep: curves over a number, groups of dots over a word."""
    lines = along_axis(document) if document["sweep"] is not None else {}
    if not lines:
        return None
    name = _axis_name(document)
    if not is_numeric_axis(document):
        words = f"Each estimator with the best of its options, by {name}. Hollow: biased, or undecided."
        return {"name": name, "words": words, "figures": [_dots(lines, name, tones)]}
    chosen = dict(list(lines.items())[:CURVES])
    figures = [
        _drawing(f"{title} against {name}", title, words, partial(axis_plot, chosen, name, key, log, tones))
        for title, words, key, log in CURVES_ALONG
    ]
    words = (
        f"One line an estimator, with the best of its options at each value of {name}. Dashed: biased, or undecided."
    )
    return {"name": name, "words": words, "figures": figures}


def _dots(lines: dict[str, list[AxisPoint]], name: str, tones: Tones) -> Drawing:
    """Tokens to signal of every estimator, a group of lines for each word."""
    words = list(dict.fromkeys(str(point.at) for points in lines.values() for point in points))
    known = [point for points in lines.values() for point in points if point.row["tokens_to_signal"]]
    groups = {word: by_progress([point.row for point in known if str(point.at) == word]) for word in words}
    height = 0.6 + sum(0.19 * len(rows) + 0.42 for rows in groups.values())
    return _drawing(
        f"tokens to signal by {name}",
        "Tokens to signal",
        "Tokens at which signal equals noise; further left is better. Sorted by progress at the budget.",
        partial(dots_plot, groups, tones),
        ((13.6, height), (NARROW[0], height)),
    )
