"""Figures of the README and docs/ from benchmarks/results: `python benchmarks/figures.py`.

Interquartile means over seeds and their 95 % bootstrap intervals are rliable's.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, FAINT, FOLDER, INK, finish, name_ends, plt, seeds
from learning import TABULAR, cells, exact_end
from rliable import library, metrics
from smollm2_report import figure as smollm2_figure
from turns import draw as turns_figure
from zoo_report import figure as zoo_figure
from zoo_report import is_whole

NAMES = {
    ("token rewards", "sum"): "every token's reward",
    ("rloo", "sum"): "their sum, once a response",
    ("rloo", "outcome"): "right or wrong",
}


HERE = Path(__file__).parent


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    learned = json.loads((HERE / "results" / "learning.json").read_text())["runs"]
    learning_figures(learned, cells(), FOLDER)
    bias_figure([run for run in learned if run["reward"] == TABULAR], FOLDER / "bias.svg")
    if (smollm2 := HERE / "results" / "smollm2.json").exists():
        smollm2_figure(json.loads(smollm2.read_text()), FOLDER / "smollm2.svg")
    ledger = json.loads((HERE / "results" / "ledger.json").read_text())
    certificates_figure(ledger["instances"][0], FOLDER / "certificates.svg")
    turns_figure(json.loads((HERE / "results" / "turns.json").read_text()), FOLDER / "turns.svg")
    zoo = HERE / "results" / "zoo.json"
    if zoo.exists() and is_whole(found := json.loads(zoo.read_text())):
        zoo_figure(found, FOLDER / "zoo.svg")
    print(f"Written to {FOLDER}")


NAMED = {
    "rloo": ("rloo, remax, trepo, vineppo, …", (6, -12)),
    "dr-grpo": ("dr-grpo", (0, -13)),
    "rloo-eq36": ("rloo-eq36", (0, -13)),
    "grpo-mean": ("grpo-mean", (0, -23)),
    "grpo": ("grpo", (6, 4)),
    "grpo-length": ("grpo-length", (-5, 5)),
    "remark-4-whitening": ("whitening", (-5, 5)),
    "trepo-own-length": ("trepo-own-length", (-4, 9)),
    "token-mean": ("token-mean", (-5, 5)),
    "length-normalised": ("length-normalised", (-6, -4)),
    "temperature-mismatch": ("temperature-mismatch", (6, 4)),
    "ppo-second-epoch": ("ppo-second-epoch", (-6, 5)),
    "gae-wrong-0": ("gae-wrong-0", (0, 8)),
}
"""Claims with a name in the plane, and how far from the dot it stands, in points."""
ACROSS = (-1.75, 1.7)


def certificates_figure(instance: dict[str, Any], path: Path) -> None:
    """Where the expected gradient of each estimator of the reward's gradient ends: its part along ∇J (the scale)
    across, its part beside ∇J up, both over |∇J|. Those outside are left out (prime, rto-eq41, zero-std-filtered)."""
    kinds = {
        "unbiased": (COLOURS[2], "unbiased: ends where the true one does"),
        "proportional": (COLOURS[0], "proportional: another length"),
        "biased": (COLOURS[1], "biased: another direction"),
    }
    figure, axis = plt.subplots(figsize=(8.6, 3.9))
    axis.grid(False)
    axis.axhline(0, color="#c9c6bd", linewidth=1, zorder=0)
    axis.axvline(0, color="#c9c6bd", linewidth=1, zorder=0)
    for claim, row in instance["claims"].items():
        along = row["scale"]
        if claim.startswith("kl-") or along is None or not ACROSS[0] < along < ACROSS[1]:
            continue
        beside = max(row["relative_bias"] ** 2 - (along - 1) ** 2, 0.0) ** 0.5
        colour, _ = kinds[row["verdict"]]
        axis.plot([0, along], [0, beside], color=colour, alpha=0.25, linewidth=1, zorder=1)
        axis.scatter(along, beside, s=26, color=colour, linewidths=0, zorder=3)
        if claim in NAMED:
            name, (right, up) = NAMED[claim]
            side = "center" if right == 0 else "left" if right > 0 else "right"
            place = {"xytext": (right, up), "textcoords": "offset points", "ha": side}
            axis.annotate(name, (along, beside), fontsize=8, color=colour, **place)
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 3}
    axis.annotate("", (1, 0), (0, 0), arrowprops=arrow, zorder=2)
    for line, (colour, words) in enumerate(kinds.values()):
        place = {"transform": axis.transAxes, "ha": "right", "va": "top", "fontsize": 9, "fontweight": "bold"}
        axis.text(1, 1 - 0.07 * line, f"● {words}", color=colour, **place)
    axis.set(xlim=ACROSS, ylim=(-0.19, 0.92), xlabel="along the true gradient (scale)", ylabel="beside it")
    finish(figure, "Where expected gradients end; the arrow is the true one (V = 3, T = 4, γ = 0.9)", path)


def learning_figures(runs: list[dict[str, Any]], cells: dict[str, list[tuple[str, str]]], folder: Path) -> None:
    """rewards.svg, agents.svg, preferences.svg."""
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        by_cell.setdefault((run["agent"], run["reward"]), []).append(run)

    def present(what: str) -> list[tuple[str, str]]:
        return [cell for cell in cells[what] if cell in by_cell]

    rewards = {NAMES[cell]: by_cell[cell] for cell in present("rewards")}
    curves(rewards, "One reward a response or one a token: RLOO on one-digit sums", folder / "rewards.svg")
    preferences = {cell[0]: by_cell[cell] for cell in present("preferences")}
    curves(preferences, "Rewards or preferences: one-digit sums, right or wrong", folder / "preferences.svg")
    intervals(
        {cell[0]: by_cell[cell] for cell in present("agents")},
        "All agents at equal generated tokens",
        folder / "agents.svg",
    )


def bias_figure(runs: list[dict[str, Any]], path: Path) -> None:
    """J against updates of biased estimators and their repair, and where each ends when it is followed exactly."""
    figure, axis = plt.subplots(figsize=(8, 3.2))
    by_agent: dict[str, list[dict[str, Any]]] = {}
    ends: list[tuple[float, str, str]] = []
    for run in runs:
        by_agent.setdefault(run["agent"], []).append(run)
    for number, ((name, its), colour) in enumerate(zip(by_agent.items(), COLOURS)):
        width = 1.5 * (len(by_agent) - number)  # those that end alike lie on each other
        updates = [point["updates"] for point in its[0]["curve"]]
        values = np.array([[point["J"] for point in run["curve"]] for run in its])
        middle, low, high = zip(*(interval(column[:, None]) for column in values.T))
        axis.plot(updates, middle, color=colour, linewidth=width)
        axis.fill_between(updates, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.axhline(exact_end(name), color=colour, linewidth=0.9, linestyle=(0, (5, 4)))
        ends.append((float(middle[-1]), name if number else f"{name} (the repair)", colour))
    axis.set(xlabel="updates of 128 responses", ylabel="expected reward J")
    axis.margins(x=0)
    name_ends(axis, ends)
    finish(figure, f"Where three biased estimators lead (dashed: followed exactly)\n{said_of(by_agent.values())}", path)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of (seeds, figures), and its 95 % interval."""
    point, bounds = estimates({"": values}, lambda scores: np.array([metrics.aggregate_iqm(scores)]))
    return float(point[""][0]), float(bounds[""][0, 0]), float(bounds[""][1, 0])


def estimates(scores: dict[str, np.ndarray], function: Callable) -> tuple[dict, dict]:
    """Of the bootstrap with one seed, so that the same results give the same figures."""
    generator = np.random.RandomState(0)
    return library.get_interval_estimates(scores, function, reps=2000, random_state=generator)


def curves(named: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Share of right digits and of right sums against generated tokens."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), sharex=True)
    ends: list[tuple[float, str, str]] = []
    for axis, key, words in zip(axes, ("sum", "outcome"), ("share of right digits", "share of right sums")):
        ends = []
        for (name, runs), colour in zip(named.items(), COLOURS):
            points = min(len(run["curve"]) for run in runs)
            tokens = np.mean([[point["tokens"] for point in run["curve"][:points]] for run in runs], axis=0)
            values = np.array([[point[key] for point in run["curve"][:points]] for run in runs])
            middle, low, high = np.array([interval(values[:, k : k + 1]) for k in range(points)]).T
            axis.plot(tokens, middle, color=colour)
            ends.append((float(middle[-1]), name, colour))
            axis.fill_between(tokens, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="generated tokens", ylabel=words, ylim=(0, 1))
        axis.margins(x=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    name_ends(axes[1], ends)
    finish(figure, f"{title}\n{said_of(named.values())}", path)


def intervals(named: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Where each agent ended, over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.28 * len(named) + 1.4), sharey=True)
    ends = {name: [run["curve"][-1] for run in runs] for name, runs in named.items()}
    order = sorted(ends, key=lambda name: np.mean([end["sum"] for end in ends[name]]))
    for axis, key, words in zip(axes, ("sum", "outcome"), ("share of right digits", "share of right sums")):
        start = np.mean([run["curve"][0][key] for runs in named.values() for run in runs])
        axis.axvline(start, color=FAINT, linewidth=1, linestyle=":")
        for place, name in enumerate(order):
            middle, low, high = interval(np.array([[end[key]] for end in ends[name]]))
            axis.plot([low, high], [place, place], color=COLOURS[0], linewidth=5, alpha=0.3, solid_capstyle="butt")
            axis.plot([middle], [place], "|", color=COLOURS[0], markersize=10, markeredgewidth=2)
        axis.set(yticks=range(len(order)), yticklabels=order, xlabel=f"{words} (dotted: before)")
        axis.grid(axis="y", visible=False)
    finish(figure, f"{title}\n{said_of(named.values())}", path)


def said_of(groups: Any) -> str:
    """What the figure says of its intervals."""
    return f"{seeds(groups)}; interquartile mean with its 95 % bootstrap interval"


if __name__ == "__main__":
    main()
