"""What benchmarks/results/smollm2.json says: tables, replies, and the curves."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from llm_mdp_agents.training.mean_intervals import student

COLOURS = {"rloo": "#2166ac", "grpo": "#1b7837", "ppo": "#b35806", "trepo": "#762a83"}
NAMES = ("eval/reward", "eval/greedy_reward")


def grouped(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs by (task, agent), one a seed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in result["runs"]:
        found.setdefault((run["task"], run["agent"]), []).append(run)
    return found


def figure_of(runs: list[dict[str, Any]], place: int, name: str) -> tuple[float, tuple[float, float] | None]:
    """A figure of an evaluation with its 95 % interval: over seeds (Student's t) where there are several, else over the
    questions of the one run; None: undecided."""
    points = [run["curve"][place] for run in runs]
    mean = float(np.mean([point[name] for point in points]))
    if len(points) > 1:
        return mean, student(np.array([point[name] for point in points]))
    low, high = points[0].get(f"{name}_low"), points[0].get(f"{name}_high")
    return mean, None if low is None else (low, high)


def learned(runs: list[dict[str, Any]]) -> str:
    """Whether the greedy score after training is above the one before: its interval lies above it."""
    before, (_, interval) = figure_of(runs, 0, NAMES[1])[0], figure_of(runs, -1, NAMES[1])
    if interval is None:
        return "undecided"
    return "yes" if interval[0] > before else "less than before" if interval[1] < before else "undecided"


def table(result: dict[str, Any]) -> str:
    """Before and after, then some replies."""
    lines = ["| task | agent | seeds | drawn before | drawn after | greedy before | greedy after | learned | tokens |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---|---:|"]
    for (task, agent), runs in grouped(result).items():
        shown = [_with(*figure_of(runs, place, name)) for name in NAMES for place in (0, -1)]
        tokens = np.mean([run["curve"][-1]["tokens"] for run in runs])
        held_out = "" if runs[0]["curve"][0]["eval/held_out"] else " (asks what training asked)"
        row = [task + held_out, agent.upper(), str(len(runs)), *shown, learned(runs), f"{tokens:,.0f}"]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "| asked | before | after |", "|---|---|---|"]
    for runs in (runs for (_, agent), runs in grouped(result).items() if agent == "rloo"):
        for before, after in list(zip(runs[0]["samples_before"], runs[0]["samples_after"]))[:2]:
            lines.append(f"| {' | '.join(_line(each) for each in _asked(before, after))} |")
    return "\n".join(lines)


def _with(mean: float, interval: tuple[float, float] | None) -> str:
    return f"{mean:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _asked(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str, str]:
    """The last message of the user, and both replies, without the template's control tokens."""
    question = before["prompt"].rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    return question, before["response"], after["response"]


def _line(text: str) -> str:
    text = text.replace("<|im_end|>", "").strip().replace("\n", "⏎").replace("|", "/").replace("`", "'")
    return f"`{text[:80]}{'…' if len(text) > 80 else ''}`" if text else " "


def figure(result: dict[str, Any], path: Path) -> None:
    """smollm2.svg: greedy and drawn rewards against generated tokens, a panel a task, intervals shaded."""
    tasks = list(dict.fromkeys(run["task"] for run in result["runs"]))
    canvas, axes = plt.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 2.8), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for (of, agent), runs in grouped(result).items():
            if of != task:
                continue
            places = range(min(len(run["curve"]) for run in runs))
            tokens = [np.mean([run["curve"][place]["tokens"] for run in runs]) for place in places]
            for name, style in zip(NAMES, (":", "-")):
                points = [figure_of(runs, place, name) for place in places]
                label = agent if style == "-" else None
                axis.plot(tokens, [mean for mean, _ in points], style, color=COLOURS[agent], label=label)
                if style == "-":
                    edges = np.array([interval or (mean, mean) for mean, interval in points])
                    axis.fill_between(tokens, *edges.T, color=COLOURS[agent], alpha=0.15, linewidth=0)
        axis.set(title=task, xlabel="generated tokens", ylabel="reward (dotted: drawn)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    canvas.tight_layout()
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)
