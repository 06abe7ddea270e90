"""Does it matter? What a row costs against how far its direction is off, one dot a row."""

import numpy as np

from llm_mdp.report.plots import COLOUR, label_points, log_scale, name_x, new_axes, to_svg
from llm_mdp.verify.typical_price import HARMLESS, KINDS, Typical, rows_with_price, typical_prices

TONES = {"token": "--biased", "outcome": "--tone-1"}
"""Colour variable of each kind of rewards."""
SIZE = (8.0, 4.2)
"""Inches."""
TITLE = "Typical price of each biased row against 1 - cosine of its expected gradient, both logarithmic"
ALIGNED = 1e-5
"""1 - cosine below this is drawn here."""


def price_svg() -> str:
    """The drawing for the top of the ledger's page, from stored prices; empty if there are none.

    Upwards the price (mean over random tables, its 95 % interval as a line; below `HARMLESS` it is not told from 0 and
    drawn there), to the right 1 - cosine at the start. Squares: real rewards; circles: right or wrong. Names where they
    fit, the dearest first. Rows without a price are not drawn; `without_price` lists them.
    """
    dots = _dots()
    if not dots:
        return ""
    axes = new_axes(*SIZE)
    x = np.array([max(each.one_minus_cosine, ALIGNED) for _, _, each in dots])
    y = np.array([max(each.mean or 0.0, HARMLESS) for _, _, each in dots])
    axes.set_xlim(ALIGNED / 1.5, max(2.0, 1.5 * float(x.max())))
    axes.set_ylim(HARMLESS / 1.5, max(2.0, 1.5 * float(y.max())))
    log_scale(axes, "x")
    log_scale(axes, "y")
    name_x(axes, "1 − cosine of E g and ∇J")
    axes.set_ylabel("price at equal KL", color=COLOUR["--faint"], fontsize=10, loc="top")
    axes.axhline(1.0, color=COLOUR["--faint"], linewidth=0.9)
    axes.text(ALIGNED, 1.05, "1: nothing gained", color=COLOUR["--faint"], fontsize=9, va="bottom")
    axes.text(ALIGNED, HARMLESS, "not told from 0", color=COLOUR["--faint"], fontsize=9, va="bottom")
    for (_, kind, each), across, up in zip(dots, x, y):
        colour = COLOUR[TONES[kind]]
        if each.interval is not None:
            axes.vlines(
                across, max(each.interval[0], HARMLESS), max(each.interval[1], HARMLESS), color=colour, alpha=0.5
            )
        axes.plot(across, up, "s" if kind == "token" else "o", markersize=5, color=colour, markeredgewidth=0)
    dearest = sorted(range(len(dots)), key=lambda place: -y[place])
    named: dict[str, tuple[float, float, str, str]] = {}
    for place in dearest:
        name, kind, _ = dots[place]
        named.setdefault(name, (float(x[place]), float(y[place]), name, TONES[kind]))
    label_points(axes, list(named.values()), np.stack([x, y], axis=1), SIZE)
    return to_svg(axes, TITLE, "price")


def without_price() -> list[tuple[str, str]]:
    """The biased rows that have none on either kind of rewards, and why."""
    found = [(row, list(typical_prices(row).values())) for row in rows_with_price()]
    return [(row, each[0].text) for row, each in found if each and all(one.mean is None for one in each)]


def _dots() -> list[tuple[str, str, Typical]]:
    found = [(row, kind, typical_prices(row).get(kind)) for row in rows_with_price() for kind in KINDS]
    return [(row, kind, each) for row, kind, each in found if each is not None and each.mean is not None]
