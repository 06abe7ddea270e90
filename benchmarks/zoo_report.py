"""What benchmarks/results/zoo.json says: cell by cell, beside what was predicted; as a table and as a figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from drawing import finish, plt
from matplotlib.patches import Rectangle

from llm_mdp_agents.training.mean_intervals import student

FAILS_BELOW = 0.75
"""Of the mean of the column's best agent."""
PREDICTED, DIFFERS = "▼", "!"
"""Beside a share: predicted to fail; prediction and result differ."""
VERDICTS = {"unbiased": "#1b7837", "proportional": "#2166ac", "biased": "#b2182b", "undecided": "#666666"}
"""Colours of certificates."""


@dataclass(frozen=True)
class Cell:
    """An agent on an environment, over seeds."""

    mean: float
    """Share of the way from the reward before to the best."""
    interval: tuple[float, float] | None
    """95 %, Student's t; None: of a single seed, or of equal shares."""
    predicted: str
    """Why it was predicted to fail; empty: it was not."""
    failed: bool | None
    """None: undecided."""
    stopped: str = ""
    """Why a run ended before its tokens were spent, if one did."""

    @property
    def differs(self) -> bool:
        return self.failed is not None and self.failed is not bool(self.predicted)

    @property
    def words(self) -> str:
        half = "" if self.interval is None else f" ± {(self.interval[1] - self.interval[0]) / 2:.2f}"
        marks = "".join([PREDICTED * bool(self.predicted), DIFFERS * self.differs])
        return f"{self.mean:z.2f}{half}{' ' + marks if marks else ''}"


def is_whole(result: dict[str, Any]) -> bool:
    """Has every cell two seeds, so that it has an interval? Before, nothing is shown."""
    counts = {key: len(values) for key, values in shares(result).items()}
    return all(counts.get((agent, env), 0) >= 2 for agent in result["agents"] for env in result["environments"])


def share_of(cell: dict[str, Any]) -> float:
    """Of the way from the reward before to the best one."""
    return (cell["after"] - cell["before"]) / (cell["best"] - cell["before"])


def shares(result: dict[str, Any]) -> dict[tuple[str, str], np.ndarray]:
    """By (agent, environment), one a seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell in result["cells"]:
        found.setdefault((cell["agent"], cell["env"]), []).append(share_of(cell))
    return {key: np.array(values) for key, values in found.items()}


def cells(result: dict[str, Any]) -> dict[tuple[str, str], Cell]:
    """Every cell that was run, with what became of its prediction.

    A cell failed if all of its interval is below `FAILS_BELOW` times the mean share of its column's best agent, and did
    not if all of it is above; where all seeds have the same share, that share decides, and a single seed decides
    nothing. Where even the best agent's interval holds 0, nothing was learned by anybody and nothing is decided.
    """
    by_cell, made = shares(result), {}
    stopped = {(cell["agent"], cell["env"]): cell["stopped"] for cell in result["cells"] if cell["stopped"]}
    for env in result["environments"]:
        column = {agent: by_cell[agent, env] for agent in result["agents"] if (agent, env) in by_cell}
        best = max(column.values(), key=lambda values: float(values.mean()), default=None)
        for agent, values in column.items():
            assert best is not None
            reason = result["predicted_to_fail"].get(env, {}).get(agent, "")
            failed = _failed(values, best) if len(values) > 1 else None
            made[agent, env] = Cell(
                float(values.mean()), student(values), reason, failed, stopped.get((agent, env), "")
            )
    return made


def _failed(values: np.ndarray, best: np.ndarray) -> bool | None:
    bar, reached = FAILS_BELOW * float(best.mean()), student(best)
    if (reached[0] if reached else float(best.mean())) <= 0:
        return None
    low, high = student(values) or (float(values.mean()),) * 2
    return True if high < bar else False if low > bar else None


def table(result: dict[str, Any]) -> str:
    """Rows agents, columns environments, and below it the cells where prediction and result differ, with the reason of
    the prediction."""
    found, envs = cells(result), result["environments"]
    lines = ["| agent | certificate | " + " | ".join(envs) + " |", "|---|---|" + "---:|" * len(envs)]
    for agent in result["agents"]:
        row = [found[agent, env].words if (agent, env) in found else "–" for env in envs]
        lines.append(f"| `{agent}` | {certificate(result, agent)} | {' | '.join(row)} |")
    return "\n".join([*lines, "", *_judged(result, found)])


def certificate(result: dict[str, Any], agent: str) -> str:
    """The verdict on the agent's defaults in two words."""
    row = result["certificates"].get(agent, {})
    cosine = row.get("cosine")
    return f"{row['verdict']}, cosine {cosine:.2f}" if row.get("verdict") == "biased" else row.get("verdict", "–")


def _judged(result: dict[str, Any], found: dict[tuple[str, str], Cell]) -> list[str]:
    marked = [cell for cell in found.values() if cell.predicted]
    came, unsure = sum(cell.failed is True for cell in marked), sum(cell.failed is None for cell in found.values())
    differ = {key: cell for key, cell in found.items() if cell.differs}
    others = sum(not cell.predicted for cell in differ.values())
    lines = [
        f"Of {len(marked)} cells that were predicted to fail ({PREDICTED}), {came} did, and so did {others} of the "
        f"others; {unsure} of {len(found)} cells are undecided."
    ]
    if differ:
        lines += ["", f"Prediction and result differ ({DIFFERS}):", ""]
    for (agent, env), cell in differ.items():
        said = f"predicted to fail ({cell.predicted})" if cell.predicted else "not predicted to fail"
        ended = f"; a run stopped: {cell.stopped}" if cell.stopped else ""
        lines.append(f"- `{agent}` on {env}: {cell.words}, {said}{ended}")
    return lines


def figure(result: dict[str, Any], path: Path) -> None:
    """zoo.svg: the table, shaded from nothing (white) to all of the way (dark)."""
    agents, envs, found = result["agents"], result["environments"], cells(result)
    values = np.full((len(agents), len(envs)), np.nan)
    for (agent, env), cell in found.items():
        values[agents.index(agent), envs.index(env)] = cell.mean
    canvas, axis = plt.subplots(figsize=(1.02 * len(envs) + 2.4, 0.36 * len(agents) + 1.3))
    axis.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for (agent, env), cell in found.items():
        place = envs.index(env), agents.index(agent)
        axis.text(
            *place, cell.words, ha="center", va="center", fontsize=8.5, color="white" if cell.mean > 0.8 else "black"
        )
        if cell.differs:
            edge = {"fill": False, "edgecolor": "#b2182b", "linewidth": 1.5}
            axis.add_patch(Rectangle((place[0] - 0.48, place[1] - 0.46), 0.96, 0.92, **edge))
    axis.set_xticks(range(len(envs)), envs, fontsize=9)
    axis.set_yticks(range(len(agents)), [f"{agent}\n{certificate(result, agent)}" for agent in agents], fontsize=8)
    for label, agent in zip(axis.get_yticklabels(), agents):
        label.set_color(VERDICTS.get(result["certificates"].get(agent, {}).get("verdict"), "black"))
    axis.tick_params(length=0)
    axis.grid(False)
    axis.xaxis.tick_top()
    axis.spines[:].set_visible(False)
    seeds = max(len(each) for each in shares(result).values())
    finish(
        canvas,
        f"Every agent on every small environment: share of the way from the first reward to the best, equal tokens\n"
        f"mean of {seeds} seeds ± 95 % (Student's t); {PREDICTED} predicted to fail; framed: it came otherwise",
        path,
    )
