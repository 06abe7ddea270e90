"""Drawings by matplotlib as elements of a page: sized by the page, coloured by its CSS variables, so that they follow
its theme."""

import re
import warnings
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from llm_mdp.notebook import house_style
from llm_mdp.report.labels import place_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TONES = tuple(f"--tone-{k}" for k in range(1, 11))
"""Colours of ten things that are only different."""
VARIABLES = ("--unbiased", "--proportional", "--biased", "--ink", "--faint", "--line", "--wrong", "--card", *TONES)
# matplotlib writes colours as hexadecimal numbers; these stand for the page's own, which change with the reader's
# theme.
COLOUR = {name: f"#0a0b{k:02x}" for k, name in enumerate(VARIABLES)}

LINE = 12.5
"""Height of a line of text in a drawing, in points (72 an inch)."""
NAME = 26
"""Most characters of a name in a drawing."""


def new_axes(width: float, height: float) -> "Axes":
    """Axes of a drawing of width x height inches in the style of all figures, but for what the page gives: its colours
    and its ground. There is nothing on them but a ground line and the values' grid."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with house_style():
        figure = Figure((width, height))
        axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(COLOUR["--line"])
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=COLOUR["--line"])
    axes.tick_params(which="both", pad=5, labelsize=10, labelcolor=COLOUR["--faint"])
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    return axes


def name_x(axes: "Axes", name: str) -> None:
    """Say below the right end of the ground line what is counted there."""
    axes.set_xlabel(name, color=COLOUR["--faint"], fontsize=10, loc="right", labelpad=1)


def log_scale(axes: "Axes", which: Literal["x", "y"]) -> None:
    """A logarithmic axis, its limits set, with a tick at every power of ten, and at 2 and 5 times that where there are
    few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, (1.0,) if high / low > 100 else (1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_formatter(NullFormatter())


def tick(value: float, _: int) -> str:
    """`0.25`, `12k`, `3.5M`, `2e-5`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].replace("+", ""), f"{value:.4g}").replace("-", "−")


def short(name: str) -> str:
    """A name as one line that leaves room for the drawing."""
    name = " ".join(name.split())
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places at least `gap` apart and inside [low, high] if they fit, in the same order, as near to `wanted` as can be
    (least squares).

    Less k gap for the k-th, places that are apart are places that rise, and the nearest rising numbers are means of
    neighbours (pool adjacent violators; Ayer et al. 1955).

    Args:
        wanted: (n,), in any order.
    """
    order = np.argsort(wanted, kind="stable")
    pools: list[tuple[float, int]] = []
    for place in np.asarray(wanted, dtype=float)[order] - gap * np.arange(len(wanted)):
        mean, count = float(place), 1
        while pools and pools[-1][0] >= mean:
            before, many = pools.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        pools.append((mean, count))
    rising = np.array([mean for mean, count in pools for _ in range(count)])
    placed = np.empty(len(wanted))
    placed[order] = np.clip(rising, low, max(low, high - gap * (len(wanted) - 1))) + gap * np.arange(len(wanted))
    return placed


def label_ends(axes: "Axes", ends: list[tuple[float, str, str]], height: float) -> None:
    """Names at the right edge, one a line, joined to where their curves end.

    Args:
        ends: (value at the right edge, name, colour variable) of each curve; the limits of the axes must be set.
        height: of the drawing, in inches.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    wanted = np.array([to_fraction.transform((right, value))[1] for value, _, _ in ends])
    places = spread(wanted, LINE / (72 * height - 50), 0.0, 1.0)
    for (_, name, colour), start, place in zip(ends, wanted, places):
        leader = {
            "color": COLOUR[colour],
            "linewidth": 0.7,
            "alpha": 0.7,
            "clip_on": False,
            "transform": axes.transAxes,
        }
        axes.plot([1.005, 1.02, 1.045, 1.055], [start, start, place, place], **leader)
        axes.text(
            1.065,
            place,
            short(name),
            color=COLOUR[colour],
            fontsize=10,
            va="center",
            transform=axes.transAxes,
            parse_math=False,
        )


def label_points(
    axes: "Axes", points: list[tuple[float, float, str, str]], others: np.ndarray, size: tuple[float, float]
) -> None:
    """Names beside points, or further off at the end of a line; one that would cover something is left out.

    Args:
        points: (x, y, name, colour variable), the most important first; the limits of the axes must be set.
        others: (n, 2), points without names.
        size: of the drawing, in inches.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    # About what the layout leaves of the drawing, in points: enough to tell what overlaps.
    extent = np.array([72 * size[0] - 50, 72 * size[1] - 50])
    dots = to_fraction.transform(np.concatenate([np.array([point[:2] for point in points]), others])) * extent
    names, style = [short(name) for _, _, name, _ in points], {"transform": axes.transAxes, "clip_on": False}
    room = (0.0, 0.0, float(extent[0]), float(extent[1]))
    places = place_names([tuple(dot) for dot in dots], [5.9 * len(name) for name in names], 11, room)
    for name, (_, _, _, colour), place in zip(names, points, places):
        if place is None:
            continue
        if place.line:
            ends = np.reshape(place.line, (2, 2)) / extent
            axes.plot(*ends.T, color=COLOUR[colour], linewidth=0.7, alpha=0.6, zorder=0.8, **style)
        at = place.left / extent[0], place.middle / extent[1]
        axes.text(*at, name, color=COLOUR[colour], fontsize=10, va="center", parse_math=False, **style)


def to_svg(axes: "Axes", title: str, salt: str) -> str:
    """The drawing as an element of a page, named for those who cannot see it.

    Args:
        title: what it shows.
        salt: different for every drawing of a page, as it makes the names inside each its own.
    """
    import matplotlib

    text, figure = StringIO(), cast("Figure", axes.figure)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": ascii(salt)}), warnings.catch_warnings():
        # The reader's own fonts draw the text: what is missing in the one that measures it does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    head = f'" role="img" aria-label="{escape(title)}">'
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', lambda match: f'<svg viewBox="{match[1]}{head}', svg)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for name, placeholder in COLOUR.items():
        svg = svg.replace(placeholder, f"var({name})")
    return svg
