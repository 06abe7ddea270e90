"""Two paths as inline SVG: where the exact gradient leads from one start, and where an estimator does."""

import json
import math
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

PATHS = Path(__file__).with_name("paths.json")
"""Of every biased row of the ledger, on the instance in docs/adversarial/: `python benchmarks/adversary.py` writes
them."""
PANELS = (("J", "expected reward J"), ("kl", "KL to the start, in nats"), ("length", "expected length, in tokens"))
WIDE, HIGH, GAP, LEFT, TOP = 232, 150, 70, 54, 58
"""Of one panel, and around it, in pixels."""

COLOURS = "--ink:#1b1f24;--soft:#5a626d;--faint:#5a626d;--line:#e3e1da;--unbiased:#0b7a5b;--biased:#c2410c"
"""Of a file of its own, which brings its ground as all figures do; in a page the page's colours hold."""
LINES = {"exact": "--unbiased", "row": "--biased"}


@cache
def stored_paths() -> dict[str, Any]:
    """What is known of every row: its two paths, and what they end at; empty where nothing was computed."""
    return json.loads(PATHS.read_text()) if PATHS.exists() else {}


def paths_figure(row: str) -> str | None:
    """The two paths of a row of the ledger; None: none are stored."""
    said = stored_paths().get(row)
    return None if said is None else paths_svg(row, said)


def paths_svg(row: str, said: dict[str, Any]) -> str:
    """J, KL and length along both paths.

    Args: said: {"exact": {"time": […], "J": […], "kl": […], "length": […]}, "row": {…}}, times from 0 on; one step of
        gradient ascent with learning rate η is about η of them.
    """
    time = _time_axis(said)
    panels = "".join(_panel(said, key, title, number, time) for number, (key, title) in enumerate(PANELS))
    width, height = LEFT + 3 * WIDE + 2 * GAP + 24, TOP + HIGH + 44
    names = (("exact", "the exact gradient"), ("row", row))
    legend, x = [], LEFT
    for key, name in names:
        legend.append(
            f'<path d="M{x} 16h22" stroke="var({LINES[key]})" stroke-width="2.5"{_dash(key)}/>'
            f'<text x="{x + 29}" y="20" fill="var(--ink)" font-size="13">{escape(name)}</text>'
        )
        x += 60 + round(7.2 * len(name))
    ends = "; ".join(f"{name}: J ends at {said[key]['J'][-1]:.3g}" for key, name in names)
    return (
        f'<svg class="paths" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, sans-serif" '
        f'fill="none" aria-label="{escape(ends)}">{"".join(legend)}{panels}</svg>'
    )


def standalone(svg: str) -> str:
    """The same as a file of its own, on a light ground: readable on a page of any theme."""
    ground = '<rect width="100%" height="100%" fill="#fbfaf7"/>'
    head, _, body = svg.partition(">")
    return f'{head} style="{COLOURS}" xmlns="http://www.w3.org/2000/svg">{ground}{body}\n'


def _time_axis(said: dict[str, Any]) -> tuple[float, float]:
    """First and last power of ten; what comes before the first stands at the left edge."""
    last = max(said[key]["time"][-1] for key in LINES)
    top = math.ceil(math.log10(last)) if last > 0 else 0
    return top - 6.0, float(top)


def _panel(said: dict[str, Any], key: str, title: str, number: int, time: tuple[float, float]) -> str:
    left, values = LEFT + number * (WIDE + GAP), [each for line in LINES for each in said[line][key]]
    low, high = min(values), max(values)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5

    def x(at: float) -> float:
        place = (math.log10(at) - time[0]) / (time[1] - time[0]) if at > 0 else 0.0
        return round(left + WIDE * max(place, 0.0), 1)

    def y(value: float) -> float:
        return round(TOP + HIGH * (high - value) / (high - low), 1)

    floor = TOP + HIGH
    parts = [f'<text x="{left}" y="{TOP - 14}" fill="var(--soft)" font-size="13">{title}</text>']
    for value in (low, (low + high) / 2, high):
        parts.append(f'<path d="M{left} {y(value)}h{WIDE}" stroke="var(--line)"/>')
        parts.append(_text(left - 6, y(value) + 4, f"{value:.3g}".replace("-", "−"), "end"))
    for power in (time[0] + 2, time[0] + 4, time[1]):
        parts.append(_text(x(10**power), floor + 18, f"10{_raised(int(power))}", "middle"))
    if number == 0:
        parts.append(_text(left, floor + 36, "time: learning rate times steps", "start"))
    parts += [_line(said[line], key, line, x, y) for line in LINES]
    return "".join(parts)


def _line(path: dict[str, list[float]], key: str, line: str, x: Callable, y: Callable) -> str:
    places = " ".join(f"{x(time)},{y(value)}" for time, value in zip(path["time"], path[key]))
    end = f'<circle cx="{x(path["time"][-1])}" cy="{y(path[key][-1])}" r="4" fill="var({LINES[line]})"/>'
    return f'<polyline points="{places}" stroke="var({LINES[line]})" stroke-width="2.5"{_dash(line)}/>{end}'


def _dash(line: str) -> str:
    """The estimator's line is broken, so that the two are told apart without colours."""
    return "" if line == "exact" else ' stroke-dasharray="7 4"'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="var(--faint)" font-size="12" text-anchor="{anchor}">{text}</text>'


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
