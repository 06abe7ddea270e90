"""Which evaluation was the best, and whether a run stops because none has been better for long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mdp_agents.training.train_config import TrainConfig


@dataclass(frozen=True)
class Best:
    """The first of the best evaluations of a run so far."""

    step: int
    value: float
    since: int
    """Evaluations after it."""


def best_of(metrics: Sequence[dict[str, Any]], name: str) -> Best | None:
    """The largest value of a metric of the evaluations; None: there is none that is finite.

    Args:
        metrics: lines of `metrics.jsonl`, in their order.
        name: of the metric, such as "eval/reward".
    """
    values = [(each["step"], each.get(name)) for each in metrics if "eval/reward" in each]
    values = [(step, -math.inf if value is None or not math.isfinite(value) else value) for step, value in values]
    place = max(range(len(values)), key=lambda number: values[number][1], default=None)
    if place is None or values[place][1] == -math.inf:
        return None
    return Best(*values[place], len(values) - 1 - place)


def why_stopped(metrics: Sequence[dict[str, Any]], config: TrainConfig) -> str:
    """Why a run that stands behind these metrics has stopped early, in a sentence; "": it has not."""
    best = best_of(metrics, config.best_by)
    if config.stop_after is None or best is None or best.since < config.stop_after:
        return ""
    return (
        f"Stopped at step {metrics[-1]['step']} of {config.n_steps}: {best.since} evaluation"
        f"{'s' if best.since > 1 else ''} in a row had no better {config.best_by} than {best.value:.4g} at step "
        f"{best.step}."
    )


def check_measured(name: str, figures: dict[str, float]) -> None:
    """Raise ValueError unless the evaluations have the metric by which the best one is chosen; the share of a verdict
    may be missing where it is 0."""
    if name not in figures and not name.startswith("eval/detail/"):
        raise ValueError(
            f"best_by is {name!r}, which the evaluations do not measure; they measure {', '.join(figures)}."
        )
