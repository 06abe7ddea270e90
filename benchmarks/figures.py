"""Figures for the README from benchmarks/results: `python benchmarks/figures.py`.

Interquartile means over seeds and their 95 % bootstrap intervals are rliable's.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from learning import cells
from rliable import library, metrics

matplotlib.use("Agg")
matplotlib.rcParams |= {
    "svg.hashsalt": "llm-mdp",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.dpi": 120,
}

from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806", "#01665e")
NAMES = {
    ("token rewards", "sum"): "every token's reward",
    ("rloo", "sum"): "their sum, once a response",
    ("rloo", "outcome"): "right or wrong",
}


HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "figures"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    learning_figures(json.loads((HERE / "results" / "learning.json").read_text())["runs"], cells(), FOLDER)
    smollm2_figure(
        {agent: json.loads((HERE / "results" / f"smollm2-{agent}.json").read_text()) for agent in ("rloo", "trepo")},
        FOLDER,
    )
    print(f"Written to {FOLDER}")


def smollm2_figure(results: dict[str, dict[str, Any]], folder: Path) -> None:
    """smollm2.svg: the share of right sums in each batch, and its running mean, against CPU time."""
    figure, axis = plt.subplots(figsize=(8, 2.6))
    for (agent, result), colour in zip(results.items(), COLOURS):
        minutes, reward = (np.array([step[key] for step in result["steps"]]) for key in ("cpu_minutes", "reward"))
        window = min(9, len(reward))
        mean = np.convolve(reward, np.ones(window) / window, mode="valid")
        axis.plot(minutes, reward, color=colour, alpha=0.25, linewidth=1)
        axis.plot(
            minutes[window // 2 : window // 2 + len(mean)],
            mean,
            color=colour,
            label=f"{agent}, mean of {window} batches",
        )
    axis.set(xlabel="CPU-minutes", ylabel="share of right sums", ylim=(0, 1))
    axis.legend(frameon=False, loc="lower right")
    _finish(figure, "SmolLM2-135M-Instruct, two-digit sums, 0/1 rewards", folder / "smollm2.svg")


def learning_figures(runs: list[dict[str, Any]], cells: dict[str, list[tuple[str, str]]], folder: Path) -> None:
    """rewards.svg, agents.svg, preferences.svg."""
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        by_cell.setdefault((run["agent"], run["reward"]), []).append(run)

    def present(what: str) -> list[tuple[str, str]]:
        return [cell for cell in cells[what] if cell in by_cell]

    rewards = {NAMES[cell]: by_cell[cell] for cell in present("rewards")}
    curves(rewards, "One reward a response or one a token (RLOO, one-digit sums)", folder / "rewards.svg")
    preferences = {cell[0]: by_cell[cell] for cell in present("preferences")}
    curves(preferences, "Rewards or preferences (one-digit sums, right or wrong)", folder / "preferences.svg")
    intervals(
        {cell[0]: by_cell[cell] for cell in present("agents")},
        "All agents at equal generated tokens",
        folder / "agents.svg",
    )


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of (seeds, figures), and its 95 % interval."""
    point, bounds = estimates({"": values}, lambda scores: np.array([metrics.aggregate_iqm(scores)]))
    return float(point[""][0]), float(bounds[""][0, 0]), float(bounds[""][1, 0])


def estimates(scores: dict[str, np.ndarray], function: Callable) -> tuple[dict, dict]:
    return library.get_interval_estimates(scores, function, reps=2000)


def curves(named: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Share of right digits and of right sums against generated tokens."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True)
    for axis, key, words in zip(axes, ("sum", "outcome"), ("share of right digits", "share of right sums")):
        for (name, runs), colour in zip(named.items(), COLOURS):
            points = min(len(run["curve"]) for run in runs)
            tokens = np.mean([[point["tokens"] for point in run["curve"][:points]] for run in runs], axis=0)
            values = np.array([[point[key] for point in run["curve"][:points]] for run in runs])
            middle, low, high = np.array([interval(values[:, k : k + 1]) for k in range(points)]).T
            axis.plot(tokens, middle, color=colour, label=name)
            axis.fill_between(tokens, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="generated tokens", ylabel=words)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes[0].legend(frameon=False)
    _finish(figure, title, path)


def intervals(named: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Where each agent ended, over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.28 * len(named) + 1), sharey=True)
    ends = {name: [run["curve"][-1] for run in runs] for name, runs in named.items()}
    order = sorted(ends, key=lambda name: np.mean([end["sum"] for end in ends[name]]))
    for axis, key, words in zip(axes, ("sum", "outcome"), ("share of right digits", "share of right sums")):
        start = np.mean([run["curve"][0][key] for runs in named.values() for run in runs])
        axis.axvline(start, color="grey", linewidth=1, linestyle=":")
        for place, name in enumerate(order):
            middle, low, high = interval(np.array([[end[key]] for end in ends[name]]))
            axis.plot([low, high], [place, place], color=COLOURS[0], linewidth=5, alpha=0.3, solid_capstyle="butt")
            axis.plot([middle], [place], "|", color=COLOURS[0], markersize=10, markeredgewidth=2)
        axis.set(yticks=range(len(order)), yticklabels=order, xlabel=f"{words} (dotted: before)")
    _finish(figure, title, path)


def _finish(figure: Any, title: str, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main()
