"""What benchmarks/results/smollm2.json says: tables, replies, and the curves."""

from pathlib import Path
from typing import Any

import numpy as np
from drawing import COLOURS, finish, name_ends, plt, seeds

from llm_mdp_agents.training.mean_intervals import student

NAMES = {"eval/reward": "drawn", "eval/greedy_reward": "greedy"}


def grouped(result: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs by (task, agent), one a seed."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in result["runs"]:
        found.setdefault((run["task"], run["agent"]), []).append(run)
    return found


def named(task: str, runs: list[dict[str, Any]]) -> str:
    """A task, and whether its evaluations ask what training asked."""
    return task + ("" if runs[0]["curve"][0]["eval/held_out"] else " (asks what training asked)")


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
    """Whether the greedy score is higher after training than before: of several seeds by the interval of their
    differences (Student's t), of one by its two intervals, which must not touch."""
    name = "eval/greedy_reward"
    if len(runs) > 1:
        interval = student(np.array([run["curve"][-1][name] - run["curve"][0][name] for run in runs]))
        low, high = interval or (-np.inf, np.inf)
    else:
        before, after = (figure_of(runs, place, name)[1] or (-np.inf, np.inf) for place in (0, -1))
        low, high = after[0] - before[1], after[1] - before[0]
    return "yes" if low > 0 else "less than before" if high < 0 else "undecided"


def table(result: dict[str, Any]) -> str:
    """Before and after, then some replies."""
    lines = ["| task | agent | seeds | drawn before | drawn after | greedy before | greedy after | learned | tokens |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---|---:|"]
    for (task, agent), runs in grouped(result).items():
        shown = [_with(*figure_of(runs, place, name)) for name in NAMES for place in (0, -1)]
        tokens = np.mean([run["curve"][-1]["tokens"] for run in runs])
        row = [named(task, runs), f"`{agent}`", str(len(runs)), *shown, learned(runs), f"{tokens:,.0f}"]
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
    """smollm2.svg: rewards on held-out questions against generated tokens. The task that several agents learn has a
    panel for drawn and one for greedy responses, with its agents' names; every other one a panel with both."""
    kept = grouped(result)
    agents_of = {task: [agent for of, agent in kept if of == task] for task, _ in kept}
    panels = [
        (task, name, words, [(agent, COLOURS[place], kept[task, agent], name) for place, agent in enumerate(agents)])
        for task, agents in agents_of.items()
        if len(agents) > 1
        for name, words in NAMES.items()
    ]
    panels += [
        (task, "", "reward", [(f"{agents[0]}, {words}", COLOURS[place], kept[task, agents[0]], name)
                              for place, (name, words) in enumerate(NAMES.items())])
        for task, agents in agents_of.items()
        if len(agents) == 1
    ]  # fmt: skip
    rows = -(-len(panels) // 2)
    canvas, axes = plt.subplots(rows, 2, figsize=(9, 3 * rows), squeeze=False)
    for axis, (task, _, up, lines) in zip(axes.flat, panels):
        ends = [(_curve(axis, runs, name, colour), label, colour) for label, colour, runs, name in lines]
        lowest = min(line.get_ydata().min() for line in axis.lines)
        axis.set(xlabel=f"{named(task, lines[0][2])}: generated tokens", ylabel=up, ylim=(min(0, 1.25 * lowest), 1))
        axis.margins(x=0)
        name_ends(axis, ends)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    said = f"{seeds(kept.values())}; 95 % intervals over seeds (Student's t), over questions where there is one"
    finish(canvas, f"SmolLM2-135M-Instruct on registered tasks\n{said}", path)


def _curve(axis: Any, runs: list[dict[str, Any]], name: str, colour: str) -> float:
    """A figure of the evaluations, its interval shaded; where it ends."""
    places = range(min(len(run["curve"]) for run in runs))
    tokens = [np.mean([run["curve"][place]["tokens"] for run in runs]) for place in places]
    points = [figure_of(runs, place, name) for place in places]
    axis.plot(tokens, [mean for mean, _ in points], color=colour)
    edges = np.array([interval or (mean, mean) for mean, interval in points])
    axis.fill_between(tokens, *edges.T, color=colour, alpha=0.15, linewidth=0)
    return points[-1][0]
