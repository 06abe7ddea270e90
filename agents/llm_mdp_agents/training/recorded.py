"""The metrics of a run, with the face that a notebook shows, and a run's folder read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_mdp.notebook import GREY, Shown
from llm_mdp_agents.training.records import CONFIG, load_config, load_metrics, load_samples
from llm_mdp_agents.training.run_config import run_config_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = {"eval/reward": "evaluation", "eval/greedy_reward": "greedy", "eval/exact_reward": "exact"}
"""Metrics that a plot of a run has beside the reward of training, and how they are called there."""
TRAINING = "reward"
IN_TABLE = ("step", "reward", "eval/reward", "eval/reward_low", "eval/reward_high", "eval/greedy_reward",
            "eval/exact_reward", "tokens", "seconds")  # fmt: skip
LINES = 12
"""Steps in the table of a page."""


class Measured(Shown):
    """Something with the metrics of a run. `run["eval/reward"]` is the latest value of one; `to_dataframe` has a row a
    step and a column a metric, `plot` draws the rewards over the steps, as they are, with the intervals of the
    evaluations.
    """

    metrics: list[dict[str, Any]]
    seed: int | None

    def _called(self) -> str:
        """What was trained on what."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        """The latest value of a metric.

        Raises:
            KeyError: naming the metrics that there are.
        """
        for each in reversed(self.metrics):
            if name in each:
                return each[name]
        raise KeyError(f"the run has no metric {name!r}; it has {', '.join(self._names())}.")

    def _names(self) -> list[str]:
        return list(dict.fromkeys(key for each in self.metrics for key in each))

    def _series(self, name: str) -> list[tuple[int, float]]:
        return [(each["step"], each[name]) for each in self.metrics if each.get(name) is not None]

    def _finding(self) -> tuple[str, str]:
        if not self.metrics:
            return self._called(), "no step has been recorded yet"
        rewards = self._series("eval/reward") or self._series(TRAINING)
        figures = [f"{self.metrics[-1]['step']:,} steps"]
        figures += [f"{tokens:,.0f} tokens"] if (tokens := sum(value for _, value in self._series("tokens"))) else []
        figures += [] if self.seed is None else [f"seed {self.seed}"]
        if not rewards:
            return self._called(), ", ".join(figures)
        (_, first), (_, last) = rewards[0], rewards[-1]
        edges = [self.metrics[-1].get(f"eval/reward_{edge}") for edge in ("low", "high")]
        if self._series("eval/reward") and None not in edges:
            figures.insert(0, f"95 %: {edges[0]:.3f} to {edges[1]:.3f}")
        return f"{self._called()}: reward {first:.3f} → {last:.3f}", ", ".join(figures)

    def _rows(self) -> list[dict[str, Any]]:
        names = self._names()
        return [{name: each.get(name) for name in names} for each in self.metrics]

    def _in_table(self) -> list[dict[str, Any]]:
        """As many steps as a page has room for, evenly from the first to the last."""
        shown = sorted({round(place) for place in np.linspace(0, len(self.metrics) - 1, LINES)})
        return [{name: self.metrics[place].get(name) for name in IN_TABLE} for place in shown if place >= 0]

    def _draw(self, axes: "Axes") -> None:
        drawn = {TRAINING: "training"} | DRAWN
        known = {name: points for name in drawn if (points := self._series(name))}
        if not known:
            raise ValueError("the run has recorded no reward yet, so there is nothing to draw.")
        for name, points in known.items():
            step, value = zip(*points)
            style: dict[str, Any] = {"color": GREY, "linewidth": 0.8} if name == TRAINING else {"marker": "."}
            (line,) = axes.plot(step, value, label=drawn[name], **style)
            bands = [self._series(f"{name}_{edge}") for edge in ("low", "high")]
            if all(len(band) == len(points) for band in bands):
                low, high = ([end for _, end in band] for band in bands)
                axes.fill_between(step, low, high, color=line.get_color(), alpha=0.18)
        axes.set_xlabel("step; bands: 95 % intervals" if "eval/reward" in known else "step")
        axes.set_ylabel("reward")
        axes.legend()
        axes.set_title(", ".join(filter(None, (self._finding()[0], self._seed()))), parse_math=False, fontsize=10)

    def _seed(self) -> str:
        return "" if self.seed is None else f"seed {self.seed}"


@dataclass(frozen=True, repr=False)
class RecordedRun(Measured):
    """A run as its folder has it; see `Measured` for what it shows."""

    folder: Path
    config: dict[str, Any]
    """config.json."""
    metrics: list[dict[str, Any]]
    """One dictionary a step, evaluations included: metrics.jsonl."""
    samples: list[dict[str, Any]]
    """Responses of the evaluations: samples.jsonl."""
    seed: int | None

    def _called(self) -> str:
        agent, env = (self.config.get(part) or {} for part in ("agent", "env"))
        return f"{str(agent.get('name', 'an agent')).rpartition(':')[2]} on {env.get('id', 'an environment')}"


def read_run(folder: Path | str) -> RecordedRun:
    """The run in a folder, which may still be going on.

        run = read_run("runs/rloo-tabular-1")
        run["eval/reward"]
        run.plot()

    Raises:
        ValueError: if there is no run, or a record cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        run_config_of(folder)  # says what there is
    config = load_config(folder)
    return RecordedRun(folder, config, load_metrics(folder), load_samples(folder), config.get("train", {}).get("seed"))
