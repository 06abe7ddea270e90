"""Names beside the dots of a drawing: near its dot where there is room, else further off with a line to it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

Box = tuple[float, float, float, float]
"""Left, low, right, high."""
NEAR = 9.0
"""From the middle of a dot to its name, in pixels; further off there is a line."""
RINGS = (NEAR, 20.0, 34.0, 50.0, 70.0, 95.0, 125.0, 160.0, 200.0, 250.0, 320.0, 400.0)
TURN = 32
ANGLES = sorted(range(TURN), key=lambda k: k & -k or TURN, reverse=True)
"""Directions in which a name is tried, in parts of a turn: right, left, above and below, between, and between those."""
SHORT = 60.0
"""Longest line of a drawing that may leave names out."""


@dataclass(frozen=True)
class Placed:
    """Where a name stands."""

    left: float
    middle: float
    """Half-way up the name."""
    line: tuple[float, float, float, float] | None
    """From the dot to the name; None: it stands beside it."""


def place_names(
    dots: Sequence[tuple[float, float]], widths: Sequence[float], height: float, room: Box, taken: Iterable[Box] = (),
    *, every: bool = False,
) -> list[Placed | None]:  # fmt: skip
    """A place for each name, the first named first; None where all cover something.

    No name covers a dot, another name, or what is taken; lines run through no name and no other dot.

    Args:
        dots: (x, y) of each name's dot, all in pixels; those that have no name come last.
        widths: of the names, at most one a dot.
        height: of a line of text.
        room: that names must keep to.
        every: rather long lines, and lines through others, than a dot without a name.
    """
    boxes = [*((x - 5, y - 5, x + 5, y + 5) for x, y in dots), *taken]
    lines: list[tuple[float, float, float, float]] = []
    placed: list[Placed | None] = []
    for (x, y), width in zip(dots, widths):
        known, names = (x, y, width, height, room, boxes), boxes[len(dots) :]
        found = _free(*known, lines, boxes, RINGS[-1] if every else SHORT)
        if every and found is None:
            found = _free(*known, lines, names, RINGS[-1]) or _free(*known, (), (), RINGS[-1])
        if found is not None:
            middle = found.middle
            boxes.append((found.left, middle - height / 2, found.left + width, middle + height / 2))
            lines += [found.line] if found.line else []
        placed.append(found)
    return placed


def _free(
    x: float, y: float, width: float, height: float, room: Box, boxes: Sequence[Box],
    lines: Sequence[Box], walls: Sequence[Box], furthest: float,
) -> Placed | None:  # fmt: skip
    for ring in takewhile(lambda ring: ring <= furthest, RINGS):
        for angle in ANGLES:
            across, up = math.cos(math.tau * angle / TURN), math.sin(math.tau * angle / TURN)
            end_x, end_y = x + ring * across, y + ring * up
            left = end_x if across > 0.3 else end_x - width if across < -0.3 else end_x - width / 2
            middle = end_y + (0.0 if abs(across) > 0.3 else math.copysign(height / 2 - 3, up))
            box = (left, middle - height / 2, left + width, middle + height / 2)
            line = (x, y, end_x, end_y) if ring > NEAR else None
            inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
            if not inside or any(overlap(box, other) for other in boxes) or any(_crosses(each, box) for each in lines):
                continue
            if line is None or not any(_crosses(line, other) for other in walls if not _holds(other, x, y)):
                return Placed(left, middle, line)
    return None


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _holds(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    """Whether a line meets a box (Liang and Barsky 1984: the part of it between the box's sides, one pair after the
    other)."""
    x, y, end_x, end_y = line
    first, last = 0.0, 1.0
    for start, step, low, high in ((x, end_x - x, box[0], box[2]), (y, end_y - y, box[1], box[3])):
        if abs(step) < 1e-9:
            if not low <= start <= high:
                return False
            continue
        enter, leave = sorted(((low - start) / step, (high - start) / step))
        first, last = max(first, enter), min(last, leave)
        if first > last:
            return False
    return True
