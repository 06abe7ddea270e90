"""Noise and cost as one self-contained HTML page, to send to a colleague: no network, no fonts, works without
JavaScript too."""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mdp.report.drawings import class_name
from llm_mdp.report.page import check_finite, embedded_json, filled
from llm_mdp.report.plots import (
    COLOUR,
    TONES,
    label_ends,
    label_points,
    log_scale,
    name_x,
    new_axes,
    short,
    tick,
    to_svg,
)
from llm_mdp.report.rows import SYMBOLS, bias, number, ratio
from llm_mdp.report.variance_rows import (
    Document,
    Point,
    along_axis,
    amount,
    budgets,
    by_progress,
    facts,
    interval,
    is_numeric_axis,
    leaders,
    margin,
    prominent,
    settings_of,
    tokens_to_signal,
    verdict_symbol,
)
from llm_mdp.variance.measurement import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 14
"""Most curves of a figure."""
Size = tuple[float, float]
"""Width and height in inches."""
BROAD, NARROW = (6.7, 4.5), (4.2, 3.9)
"""Sizes of a figure on a desk and on a phone."""

COLUMNS: tuple[tuple[str, str, Callable[[dict], str], str], ...] = (
    ("tokens each", "tokens", lambda row: number(row["tokens"]), "ascending"),
    ("reward calls", "rewards", lambda row: number(row["rewards"]), "ascending"),
    ("seconds", "seconds", lambda row: number(row["seconds"]), "ascending"),
    ("tr Cov", "trace_covariance", lambda row: number(row["trace_covariance"]), "ascending"),
    ("of the draws", "trace_covariance_of_draws", lambda row: number(row["trace_covariance_of_draws"]), "ascending"),
    ("relative bias", "relative_bias", lambda row: bias(row["relative_bias"]), "ascending"),
    ("scale", "scale", lambda row: ratio(row["scale"]), "descending"),
    ("cosine", "cosine", lambda row: ratio(row["cosine"]), "descending"),
    ("tokens to signal", "tokens_to_signal", tokens_to_signal, "ascending"),
    ("over the base's", "tokens_over_base", lambda row: number(row["tokens_over_base"]), "ascending"),
    ("squared error", "mean_squared_error", lambda row: number(row["mean_squared_error"]), "ascending"),
    ("signal to noise", "signal_to_noise", lambda row: number(row["signal_to_noise"]), "descending"),
    ("progress", "progress", lambda row: number(row["progress"]), "descending"),
)
"""Name, figure, how it is written, and the direction in which it is first sorted."""

AXES = {"vocab_size": "vocabulary", "success": "success rate"}
"""Axes that are called something else in words."""


def render_variance_page(document: Document) -> str:
    """The page of a comparison of estimators at equal cost.

    Everything is rendered here; the page's script only sorts and filters.

    Args:
        document: the output of `llm-mdp variance --json`; embedded in the page as it is.

    Raises:
        ValueError: if the document has no settings or a setting has no rows, or it holds a number that JSON cannot,
        naming its place.
    """
    check_finite(document)
    settings = settings_of(document)
    alone, is_open = len(settings) == 1, document["sweep"] is None
    tones = dict(zip(prominent(document), [*TONES, *["--faint"] * len(prominent(document))]))
    slots = {
        "title": escape(settings[0]["name"] if len(settings) == 1 else f"{len(settings)} settings"),
        "facts": _facts(document),
        "command": escape(str(document["command"])),
        "advice": _advice(settings),
        "sweep": _sweep(document, tones),
        "chips": _chips(settings),
        "settings": "".join(_setting(place, setting, tones, alone, is_open) for place, setting in enumerate(settings)),
        "json": embedded_json(document),
    }
    return filled("llm_mdp.report", "variance_template.html", slots)


def _facts(document: Document) -> str:
    known = {
        "estimators": str(len(prominent(document))),
        "settings": str(len(document["settings"])),
        "along": _axis_name(document) if document["sweep"] else "",
        "budget": f"{amount(document['budget'])} tokens",
        "seed": str(document["seed"]),
        "llm-mdp": str(document["version"]),
    }
    return _list({name: value for name, value in known.items() if value})


def _list(known: dict[str, str]) -> str:
    return f"<dl class=facts>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in known.items())}</dl>"


def _axis_name(document: Document) -> str:
    name = str(document["sweep"])
    return AXES.get(name, name.replace("_", " "))


def _advice(settings: list[dict]) -> str:
    """What to take, setting by setting."""
    if len(settings) == 1:
        return f"<div class=banner><p><strong>{escape(settings[0]['recommendation'])}</strong></p></div>"
    cards = "".join(
        f'<a class=card href="#setting-{place}"><strong>{escape(setting["name"])}</strong>'
        f"<span>{escape(setting['words'])}</span><b>{escape(setting['recommendation'])}</b></a>"
        for place, setting in enumerate(settings)
    )
    return f"<div class=cards>{cards}</div>"


def _chips(settings: list[dict]) -> str:
    rows = [row for setting in settings for row in setting["rows"]]
    present = {row["verdict"] for row in rows}
    chips = [
        (verdict, f"{SYMBOLS[verdict]} {verdict}", class_name(verdict)) for verdict in SYMBOLS if verdict in present
    ]
    if any(row["frontier"] for row in rows):
        chips.append(("frontier", "★ frontier", "is-frontier"))
    return "".join(
        f'<button type=button class="chip {kind}" data-kind="{value}" aria-pressed=false>{label}</button>'
        for value, label, kind in chips
    )


def _setting(place: int, setting: dict, tones: dict[str, str], alone: bool, is_open: bool) -> str:
    name = setting["name"]
    figures = _figure(
        f"{name}: progress against budget",
        "Progress against budget",
        "Improvement of the best step, relative to the exact gradient. Bold: best of all at that budget. Dashed: "
        "biased.",
        lambda size: _progress_plot(setting, tones, size),
    ) + _figure(
        f"{name}: what a token buys",
        "What a token buys",
        "Noise to signal of one estimate against its tokens. Diagonals: tokens to signal, lower left is better. "
        "Hollow: biased.",
        lambda size: _cost_plot(setting, tones, size),
    )
    advice = "" if alone else f"<p class=take>{escape(setting['recommendation'])}</p>"
    return (
        f"<details class=setting "
        f'id="setting-{place}"{" open" if is_open else ""}><summary><h2>{escape(name)}</h2></summary>'
        f"<p class=lede>{escape(setting['words'])}</p>{_list(dict(facts(setting)))}"
        f"{advice}<div class=figures>{figures}</div>{_best(setting, tones)}{_table(setting, tones)}</details>"
    )


def _best(setting: dict, tones: dict[str, str]) -> str:
    estimator_of = {row["label"]: row["estimator"] for row in setting["rows"]}
    items = "".join(
        f'<li style="--tone: '
        f'var({tones.get(estimator_of.get(best["label"], ""), "--faint")})"><b>{escape(best["label"])}</b>'
        f"<span>{escape(budgets(best))}</span></li>"
        for best in setting["best"]
    )
    return f"<h3>Best for which budgets</h3><ol class=best>{items}</ol>" if items else ""


def _table(setting: dict, tones: dict[str, str]) -> str:
    columns = [column for column in COLUMNS if any(row[column[1]] is not None for row in setting["rows"])]
    names = [("estimator", "ascending"), ("verdict", "ascending"), *((name, first) for name, _, _, first in columns)]
    head = "".join(
        f'<th scope=col aria-sort="{"descending" if name == "progress" else "none"}">'
        f'<button type=button data-first="{first}">{name}</button></th>'
        for name, first in names
    )
    rows = "".join(_row(place, row, columns, tones) for place, row in enumerate(by_progress(setting["rows"])))
    return (
        f"<h3>Every estimator at {escape(amount(setting['budget']))} tokens</h3><div class=scroll><table class=ledger>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(place: int, row: dict, columns: list, tones: dict[str, str]) -> str:
    rank = {verdict: rank for rank, verdict in enumerate(SYMBOLS)}.get(row["verdict"], len(SYMBOLS))
    badge = f'<span class="badge {class_name(row["verdict"])}">{verdict_symbol(row)} {escape(row["verdict"])}</span>'
    kinds = f"{row['verdict']}{' frontier' if row['frontier'] else ''}"
    star = "<i class=star title='on the frontier'>★</i>" if row["frontier"] else ""
    given = "<small>was given values of states</small>" if row.get("given_values") else ""
    samples = f"<small>{amount(row['samples'])} samples</small>" if row["samples"] else ""
    return (
        f'<tr data-order="{place}" data-kinds="{escape(kinds)}"><th scope=row data-sort="{escape(row["label"])}">'
        f'<span class=name style="--tone: '
        f'var({tones[row["estimator"]]})">{escape(row["label"])}</span>{star}{given}{samples}</th>'
        f'<td class=verdict data-label="verdict" data-sort="{rank}">{badge}</td>'
        f"{''.join(_cell(row, column) for column in columns)}</tr>"
    )


def _cell(row: dict, column: tuple) -> str:
    name, key, write, _ = column
    value = row[key]
    exact = "" if value is None else repr(value)
    more = f"<small>{margin(row, key)}</small>" if margin(row, key) else ""
    long = 100 * min(max(value or 0.0, 0.0), 1.0)
    bar = f'<span class=track aria-hidden=true style="--high:{long:.1f}"><i></i></span>' if key == "progress" else ""
    return f'<td data-label="{name}" data-sort="{exact}" title="{exact}">{bar}{write(row)}{more}</td>'


def _figure(
    alt: str, title: str, words: str, draw: Callable[[Size], "Axes"], sizes: tuple[Size, Size] = (BROAD, NARROW)
) -> str:
    """A drawing twice, for a desk and for a phone; the page shows one."""
    kinds = zip(("broad", "narrow"), sizes)
    drawings = "".join(f"<div class={kind}>{to_svg(draw(size), alt, f'{alt} {kind}')}</div>" for kind, size in kinds)
    caption = f"<figcaption><h3>{escape(title)}</h3><p>{escape(words)}</p></figcaption>"
    return f'<figure class="{"wide" if sizes[0][0] > BROAD[0] else ""}">{caption}{drawings}</figure>'


def _is_right(row: dict) -> bool:
    """Whether it points where the true gradient does."""
    return row["verdict"] in ("unbiased", "proportional")


def _line(row: dict) -> Any:
    return "-" if _is_right(row) else (0, (4, 2))


def _mark(axes: "Axes", x: float, y: float, row: dict, colour: str, size: float) -> None:
    """A point of a row: hollow if it is biased."""
    face = colour if _is_right(row) else COLOUR["--card"]
    axes.plot(x, y, "o", markersize=size, color=colour, markerfacecolor=face, markeredgewidth=1.6, clip_on=False)


def _progress_plot(setting: dict, tones: dict[str, str], size: Size) -> "Axes":
    """Curves of the frontier and of the best of each estimator, each bold where it is the best of all."""
    known = [row for row in setting["rows"] if row["cosine"] is not None and row["tokens_to_signal"] is not None]
    first = [row for row in by_progress(known) if row["frontier"]]
    rows = (first + [row for row in leaders(known) if not row["frontier"]])[:CURVES]
    axes = new_axes(*size)
    noise = [row["tokens_to_signal"] for row in rows if row["tokens_to_signal"] > 0] or [setting["budget"]]
    low, high = max(1.0, min(*noise, setting["budget"]) / 10), 3 * max(setting["budget"], float(np.median(noise)))
    tokens = np.geomspace(low, high, 160)
    curves = [np.array([progress(row["cosine"], row["tokens_to_signal"], each) for each in tokens]) for row in rows]
    axes.set_xlim(low, high)
    axes.set_ylim(min([-0.02, *(1.05 * curve.min() for curve in curves)]), 1.02)
    log_scale(axes, "x")
    name_x(axes, "tokens of the budget")
    axes.axvline(setting["budget"], color=COLOUR["--faint"], linewidth=0.9)
    above = {"transform": axes.get_xaxis_transform(), "ha": "center", "fontsize": 9, "color": COLOUR["--faint"]}
    axes.text(setting["budget"], 1.01, amount(setting["budget"]), **above)
    ranges = {best["label"]: best for best in setting["best"]}
    for row, curve in zip(rows, curves):
        style: dict[str, Any] = {"color": COLOUR[tones[row["estimator"]]], "solid_capstyle": "round"}
        axes.plot(tokens, curve, linewidth=1.5, linestyle=_line(row), **style)
        if row["label"] in ranges:
            best = ranges[row["label"]]
            inside = (tokens >= (best["from"] or 0)) & (tokens <= (best["to"] or np.inf))
            axes.plot(tokens[inside], curve[inside], linewidth=4, **style)
        axes.plot(setting["budget"], row["progress"], "o", markersize=4, color=style["color"], markeredgewidth=0)
    label_ends(axes, [(curve[-1], row["label"], tones[row["estimator"]]) for row, curve in zip(rows, curves)], size[1])
    return axes


def _cost_plot(setting: dict, tones: dict[str, str], size: Size) -> "Axes":
    """Noise to signal of one estimate against its tokens; the diagonals have equal tokens to signal."""
    rows = [row for row in setting["rows"] if (row["tokens_to_signal"] or 0) > 0 and row["tokens"] > 0]
    axes = new_axes(*size)
    if not rows:
        middle = {"transform": axes.transAxes, "ha": "center", "fontsize": 10, "color": COLOUR["--faint"]}
        axes.text(0.5, 0.5, "no estimator has both noise and signal", **middle)
        return axes
    x = np.array([row["tokens"] for row in rows])
    y = np.array([row["tokens_to_signal"] / row["tokens"] for row in rows])
    axes.set_xlim(x.min() / 1.6, x.max() * 1.8)
    axes.set_ylim(y.min() / 2, y.max() * 2)
    log_scale(axes, "x")
    log_scale(axes, "y")
    name_x(axes, "tokens of one estimate")
    axes.grid(False)
    _diagonals(axes, setting["budget"])
    for name in dict.fromkeys(row["estimator"] for row in rows):
        mine = sorted((row for row in rows if row["estimator"] == name), key=lambda row: row["tokens"])
        colour = COLOUR[tones[name]]
        cost, noise = [row["tokens"] for row in mine], [row["tokens_to_signal"] / row["tokens"] for row in mine]
        axes.plot(cost, noise, color=colour, linewidth=1, alpha=0.45)
        for row in mine:
            at, (low, high) = row["tokens"], interval(row, "tokens_to_signal")
            if low is not None and high is not None:
                axes.vlines(at, low / at, high / at, color=colour, alpha=0.4, linewidth=2)
            _mark(axes, at, row["tokens_to_signal"] / at, row, colour, 6)
    best = [row for row in by_progress(rows) if row["frontier"]]
    named = best + [row for row in leaders(rows) if not row["frontier"]]
    labels = [
        (row["tokens"], row["tokens_to_signal"] / row["tokens"], row["label"], tones[row["estimator"]]) for row in named
    ]
    label_points(axes, labels, np.stack([x, y], axis=1), size)
    return axes


def _diagonals(axes: "Axes", budget: float) -> None:
    """Lines of equal tokens to signal at powers of ten, and at the budget, below which the signal of a batch exceeds
    its noise."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends, powers = np.array([left, right]), [10.0**k for k in range(-6, 16)]
    for each in [*powers, budget]:
        if left * bottom < each < right * top:
            tone, width = ("--faint", 1.2) if each == budget else ("--line", 0.9)
            axes.plot(ends, each / ends, color=COLOUR[tone], linewidth=width, zorder=0.5)
            words = f"budget {amount(budget)}" if each == budget else tick(each, 0)
            text = {"color": COLOUR["--faint"], "fontsize": 8.5, "textcoords": "offset points"}
            if left < each / top:
                axes.annotate(words, (each / top, top), (0, 3), ha="center", va="bottom", **text)
            elif each / right > bottom:
                axes.annotate(words, (right, each / right), (3, 0), ha="left", va="center", **text)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _sweep(document: Document, tones: dict[str, str]) -> str:
    """What changes along the axis of a sweep: curves over a number, groups of dots over a word."""
    if document["sweep"] is None:
        return ""
    lines = along_axis(document)
    if not lines:
        return ""
    name = _axis_name(document)
    if is_numeric_axis(document):
        chosen = dict(list(lines.items())[:CURVES])
        figures = "".join(
            _figure(
                f"{title} against {name}",
                title,
                words,
                lambda size, key=key, log=log: _axis_plot(chosen, name, key, log, tones, size),
            )
            for title, words, key, log in (
                ("Tokens to signal", "Tokens at which signal equals noise. Lower is better.", "tokens_to_signal", True),
                (
                    "Progress at the budget",
                    "Improvement of the best step, relative to the exact gradient.",
                    "progress",
                    False,
                ),
                (
                    "Relative bias",
                    "A learning rate repairs scale (see the cosine), no budget the rest.",
                    "relative_bias",
                    False,
                ),
                ("Tokens of one estimate", "What one estimate costs.", "tokens", True),
            )
        )
        lede = f"One line an estimator, with the best of its options at each value of {name}. Dashed: biased."
    else:
        figures = _dots(lines, name, tones)
        lede = f"Each estimator with the best of its options, by {name}. Hollow: biased."
    return f"<section><h2>Along the axis: {escape(name)}</h2><p class=lede>{escape(lede)}</p><div class=figures>{figures}</div></section>"


def _axis_plot(
    lines: dict[str, list[Point]], name: str, key: str, log: bool, tones: dict[str, str], size: Size
) -> "Axes":
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    axes = new_axes(*size)
    known = {name: [point for point in points if point.row[key] is not None] for name, points in lines.items()}
    shown = {
        name: kept
        for name, points in known.items()
        if (kept := [point for point in points if point.row[key] > 0 or not log])
    }
    at = np.array(sorted({point.at for points in lines.values() for point in points}), dtype=float)
    values = np.array([point.row[key] for points in shown.values() for point in points] or [1.0])
    if at[0] < at[-1]:
        axes.set_xlim(at[0], at[-1])
    if at[0] > 0 and at[-1] / at[0] >= 8:
        log_scale(axes, "x")
    if len(at) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(at.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
    if log:
        axes.set_ylim(values.min() / 1.4, values.max() * 1.4)
        log_scale(axes, "y")
    else:
        room = 0.04 * (max(values.max(), 0.0) - min(values.min(), 0.0)) or 1.0
        axes.set_ylim(min(values.min(), 0.0) - room, max(values.max(), 0.0) + room)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    name_x(axes, name)
    for estimator, points in shown.items():
        colour, heights = COLOUR[tones[estimator]], [point.row[key] for point in points]
        dashed = next((point.row for point in points if not _is_right(point.row)), points[0].row)
        axes.plot(
            [point.at for point in points], heights, linewidth=1.8, linestyle=_line(dashed), color=colour, clip_on=False
        )
        for point, height in zip(points, heights):
            _mark(axes, float(point.at), height, point.row, colour, 5)
            low, high = interval(point.row, key)
            if low is not None and high is not None:
                axes.vlines(
                    point.at, max(low, axes.get_ylim()[0]), high, color=colour, alpha=0.4, linewidth=2, clip_on=False
                )
    label_ends(
        axes, [(points[-1].row[key], estimator, tones[estimator]) for estimator, points in shown.items()], size[1]
    )
    return axes


def _dots(lines: dict[str, list[Point]], name: str, tones: dict[str, str]) -> str:
    """Tokens to signal of every estimator, a group of lines for each word."""
    words = list(dict.fromkeys(str(point.at) for points in lines.values() for point in points))
    known = [point for points in lines.values() for point in points if point.row["tokens_to_signal"]]
    groups = {word: by_progress([point.row for point in known if str(point.at) == word]) for word in words}
    height = 0.6 + sum(0.19 * len(rows) + 0.42 for rows in groups.values())
    return _figure(
        f"tokens to signal by {name}",
        "Tokens to signal",
        "Tokens at which signal equals noise; further left is better. Sorted by progress at the budget.",
        lambda size: _dots_plot(groups, tones, size),
        ((13.6, height), (NARROW[0], height)),
    )


def _dots_plot(groups: dict[str, list[dict]], tones: dict[str, str], size: Size) -> "Axes":
    axes = new_axes(*size)
    values = [row["tokens_to_signal"] for rows in groups.values() for row in rows] or [1.0]
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    log_scale(axes, "x")
    axes.grid(axis="x", color=COLOUR["--line"], linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.yaxis.set_visible(False)
    name_x(axes, "tokens to signal")
    place, side = 0.0, {"transform": axes.get_yaxis_transform(), "va": "center", "parse_math": False}
    for word, rows in groups.items():
        place += 0.6
        axes.text(-0.01, place, short(word), color=COLOUR["--ink"], fontsize=11, fontweight="bold", ha="right", **side)
        place += 1
        for row in rows:
            colour, at = COLOUR[tones[row["estimator"]]], row["tokens_to_signal"]
            axes.axhline(place, color=COLOUR["--line"], linewidth=0.6, zorder=0.4)
            low, high = interval(row, "tokens_to_signal")
            if low is not None and high is not None:
                axes.hlines(place, low, high, color=colour, alpha=0.4, linewidth=3)
            _mark(axes, at, place, row, colour, 7)
            axes.text(-0.01, place, short(row["label"]), color=colour, fontsize=10, ha="right", **side)
            place += 1
        place += 0.6
    axes.set_ylim(place, 0)
    return axes
