"""What the figures of the benchmarks share: their style, names beside curves, how they are titled and written."""

from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from llm_mdp.report.plots import spread

matplotlib.use("Agg")

from matplotlib import pyplot as plt

plt.style.use("llm_mdp.report.figures")
COLOURS = tuple(plt.rcParams["axes.prop_cycle"].by_key()["color"])
FAINT, INK = "#8b939e", "#1b1f24"
FOLDER = Path(__file__).parents[1] / "docs" / "figures"


def seeds(groups: Iterable[Sized]) -> str:
    """How many runs each curve is made of."""
    counts = sorted({len(runs) for runs in groups})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{many} seed" + "s" * (many != "1")


def name_ends(axis: Any, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right edge beside where their curves end, in their colours; the limits of the axes must be set."""
    to_fraction = axis.transData + axis.transAxes.inverted()
    right = axis.get_xlim()[1]
    wanted = np.array([to_fraction.transform((right, value))[1] for value, _, _ in ends])
    for (_, name, colour), place in zip(ends, spread(wanted, 0.08, 0.0, 1.0)):
        axis.text(1.02, place, name, color=colour, fontsize=9, va="center", transform=axis.transAxes)


def finish(figure: Any, title: str, path: Path) -> None:
    """The first line of the title in bold, what it says of seeds and intervals below it."""
    first, _, rest = title.partition("\n")
    figure.suptitle(first, x=0.01, ha="left", fontsize=11)
    if rest:
        figure.axes[0].set_title(rest, fontsize=9, fontweight="normal", color=FAINT, loc="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
