"""What noise costs, drawn: progress against budget, noise against cost, and what changes along the axis of a sweep."""

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mdp.report.plots import COLOUR, label_ends, label_points, log_scale, name_x, new_axes, short, tick
from llm_mdp.report.variance_rows import AxisPoint, amount, by_progress, interval, leaders
from llm_mdp.variance.measurement import progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 14
"""Most curves of a figure."""
TOO_FEW = "too few successes to draw anything"
"""In place of a figure."""
Size = tuple[float, float]
"""Width and height in inches."""
Tones = dict[str, str]
"""Estimator -> colour variable."""


def progress_plot(setting: dict, tones: Tones, size: Size) -> "Axes":
    """Curves of the frontier and of the best of each estimator, each bold where it is the best of all."""
    known = [row for row in setting["rows"] if row["ceiling"] is not None and row["tokens_to_signal"] is not None]
    first = [row for row in by_progress(known) if row["frontier"]]
    rows = (first + [row for row in leaders(known) if not row["frontier"]])[:CURVES]
    axes = new_axes(*size)
    if not rows and _too_few(setting):
        _say(axes, TOO_FEW)
        return axes
    noise = [row["tokens_to_signal"] for row in rows if row["tokens_to_signal"] > 0] or [setting["budget"]]
    low, high = max(1.0, min(*noise, setting["budget"]) / 10), 3 * max(setting["budget"], float(np.median(noise)))
    tokens = np.geomspace(low, high, 160)
    curves = [np.array([progress(row["ceiling"], row["tokens_to_signal"], each) for each in tokens]) for row in rows]
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


def cost_plot(setting: dict, tones: Tones, size: Size) -> "Axes":
    """Noise to signal of one estimate against its tokens; the diagonals have equal tokens to signal."""
    rows = [row for row in setting["rows"] if (row["tokens_to_signal"] or 0) > 0 and row["tokens"] > 0]
    axes = new_axes(*size)
    if not rows:
        _say(axes, TOO_FEW if _too_few(setting) else "no estimator has both noise and signal")
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


def axis_plot(lines: dict[str, list[AxisPoint]], name: str, key: str, log: bool, tones: Tones, size: Size) -> "Axes":
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


def dots_plot(groups: dict[str, list[dict]], tones: Tones, size: Size) -> "Axes":
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


def _too_few(setting: dict) -> bool:
    return any(row.get("too_few") for row in setting["rows"])


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", fontsize=10, color=COLOUR["--faint"])


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


def _is_right(row: dict) -> bool:
    """Whether it points where the true gradient does."""
    return row["verdict"] in ("unbiased", "proportional")


def _line(row: dict) -> Any:
    return "-" if _is_right(row) else (0, (4, 2))


def _mark(axes: "Axes", x: float, y: float, row: dict, colour: str, size: float) -> None:
    """A point of a row: hollow if it is biased, or undecided."""
    face = colour if _is_right(row) else COLOUR["--card"]
    axes.plot(x, y, "o", markersize=size, color=colour, markerfacecolor=face, markeredgewidth=1.6, clip_on=False)
