"""Scale and cosine of a row over group sizes, and over the prompts of an update, as inline SVG."""

import math
from html import escape

from llm_mdp.report.rows import BY, EXACT, ClaimRow, ratio

FIGURES = ("scale", "cosine")
WIDE, HIGH, LEFT, TOP, RIGHT, BELOW = 190, 84, 52, 30, 60, 44
"""Of a drawing, and around it, in pixels."""
AXIS = {"K": "K, responses to a prompt", "P": "P, prompts of an update"}

Line = list[tuple[int, float]]
"""(size, value), smallest size first."""


def size_curves(row: ClaimRow) -> list[str]:
    """Two drawings over K and two over P, each pair one string; empty where the row has no figures for two sizes."""
    return ["".join(_drawing(_lines(row, by, key), key, letter) for key in FIGURES) for by, letter in BY.items()]


def _drawing(lines: dict[str, Line], name: str, letter: str) -> str:
    if not any(len(line) > 1 for line in lines.values()):
        return ""
    said = "; ".join(
        f"{name} {', '.join(f'{ratio(value)} at {letter} = {size}' for size, value in line)} on {instance}"
        for instance, line in lines.items()
    )
    width, height = LEFT + WIDE + RIGHT, TOP + HIGH + BELOW
    picture = _picture(lines, name, letter)
    return f'<svg class="sizes" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{picture}</svg>'


def _lines(row: ClaimRow, by: str, key: str) -> dict[str, Line]:
    """Of every instance, the sizes at which the figure is known."""
    known = {
        name: sorted((int(size), one[key]) for size, one in claim.get(by, {}).items() if one.get(key) is not None)
        for name, claim in row.entries
    }
    return {name: line for name, line in known.items() if line}


def _picture(lines: dict[str, Line], title: str, letter: str) -> str:
    sizes = sorted({size for line in lines.values() for size, _ in line})
    values = [value for line in lines.values() for _, value in line]
    # 1, which is right, is always in the picture; rounding is no curve.
    low, high = min(*values, 1.0), max(*values, 1.0)
    flat = high - low < EXACT
    low, high = (0.5, 1.5) if flat else (low, high)
    first, last = math.log(sizes[0]), math.log(sizes[-1])

    def x(size: int) -> float:
        return round(LEFT + WIDE * (math.log(size) - first) / (last - first or 1), 1)

    def y(value: float) -> float:
        return round(TOP + HIGH * (high - value) / (high - low), 1)

    parts = [
        f'<text class="title" x="{LEFT}" y="{TOP - 14}">{title}</text>',
        f'<text x="{LEFT}" y="{TOP + HIGH + 36}">{AXIS[letter]}</text>',
        f'<path class="right" d="M{LEFT} {y(1.0)}h{WIDE}"/>',
    ]
    for value in (1.0,) if flat else dict.fromkeys((low, 1.0, high)):
        if value == 1.0 or abs(y(value) - y(1.0)) > 12:
            parts.append(f'<text x="{LEFT - 7}" y="{y(value) + 4}" text-anchor="end">{ratio(value)}</text>')
    shown: list[float] = []
    for size in sizes:
        if all(abs(x(size) - other) > 16 for other in shown):
            shown.append(x(size))
            parts.append(f'<text x="{x(size)}" y="{TOP + HIGH + 18}" text-anchor="middle">{size}</text>')
    for name, line in lines.items():
        tip = ", ".join(f"{letter} = {size}: {ratio(value)}" for size, value in line)
        places = " ".join(f"{x(size)},{y(value)}" for size, value in line)
        dots = "".join(f'<circle cx="{x(size)}" cy="{y(value)}" r="3"/>' for size, value in line)
        end = f'<text class="end" x="{x(line[-1][0]) + 8}" y="{y(line[-1][1]) + 4}">{ratio(line[-1][1])}</text>'
        drawn = f'<polyline points="{places}"/>{dots}{end if len(lines) == 1 else ""}'
        parts.append(f'<g class="line"><title>{escape(f"{name}: {tip}")}</title>{drawn}</g>')
    return "".join(parts)
