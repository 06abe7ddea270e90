"""docs/figures/growth.svg from what `growth.py` measured: `python benchmarks/performance_figure.py`."""

import json
from pathlib import Path
from typing import Any

from drawing import COLOURS, FOLDER, finish, name_ends, plt

from llm_mdp.report.plots import log_scale

PANELS = {
    "verify": ("V, T or K", "llm-mdp verify, seconds"),
    "a step": ("size", "a GRPO step, seconds"),
    "environments": ("size", "a step of all environments, seconds"),
}
"""Beginnings of names of curves, and what is across and up."""


def draw(results: dict[str, Any]) -> None:
    """Every curve in the panel of its kind, logarithmic both ways; a cross where the product said that it would not, or
    not soon."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.4))
    for axis, (kind, (across, up)) in zip(axes, PANELS.items()):
        curves = [each for each in results["curves"] if each["name"].startswith(kind)]
        ends = []
        for curve, colour in zip(curves, COLOURS):
            known = [(each["size"], each["seconds"]) for each in curve["points"] if "kind" not in each]
            sizes, seconds = zip(*known)
            axis.plot(sizes, seconds, color=colour, marker="o", markersize=3)
            said = [each["size"] for each in curve["points"] if each.get("said") and each["size"] > sizes[-1]]
            if said and said[0] < 64 * sizes[-1]:
                axis.plot([said[0]], [seconds[-1]], "x", color=colour, markersize=7, markeredgewidth=2)
            ends.append((seconds[-1], curve["name"].removeprefix(kind).strip(), colour))
        axis.set(xlabel=across, ylabel=up)
        log_scale(axis, "x")
        log_scale(axis, "y")
        if kind == "verify":
            axis.set_xticks(range(2, 9), [str(size) for size in range(2, 9)])
        name_ends(axis, ends)
    title = (
        "How work grows with one size\nCPU time of one thread; ×: the product says that it would take long, or refuses"
    )
    finish(figure, title, FOLDER / "growth.svg")


if __name__ == "__main__":
    draw(json.loads((Path(__file__).parent / "results" / "growth.json").read_text(encoding="utf-8")))
