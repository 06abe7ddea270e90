"""The curves of a run: metrics as series, and their drawings."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mdp.report.pages import Drawing
from llm_mdp.report.plots import COLOUR, name_x, new_axes, to_svg
from llm_mdp_agents.training.records import RESERVED

POINTS = 300
"""Most points of a curve; of a longer run a point is the mean of several steps, with their range behind it."""
SMOOTH_FROM = 40
"""A curve of training with more points gets a running mean."""


@dataclass(frozen=True)
class Curve:
    """One figure: which metrics, and what they say."""

    title: str
    words: str
    series: dict[str, str]
    """Metric -> how it is called in the legend."""
    wide: bool = False


REWARD = {
    "reward": "training",
    "eval/reward": "evaluation, 95 % interval",
    "eval/greedy_reward": "greedy",
    "eval/exact_reward": "exact",
}
SECTIONS = {
    "Reward": [
        Curve("Reward", "Mean of the responses.", REWARD, wide=True),
        Curve(
            "Spread of the reward",
            "Standard deviation in a batch. At zero nothing is left to learn from.",
            {"reward_std": ""},
        ),
        Curve(
            "Groups with signal", "Fraction of prompts whose responses differ in reward.", {"groups_with_signal": ""}
        ),
        Curve("Signal to noise", "Squared length of the expected gradient over its variance.", {"signal_to_noise": ""}),
        Curve(
            "Cosine to RLOO",
            "Of the agent's expected gradient to RLOO's, which is the true one; 95 % intervals.",
            {"cosine_to_rloo": ""},
        ),
        Curve(
            "Tokens to signal",
            "At which the noise of the agent's estimate equals its signal.",
            {"tokens_to_signal": ""},
        ),
    ],
    "Policy": [
        Curve("Entropy", "Estimated from the sampled tokens, in nats a token.", {"entropy": ""}),
        Curve("Response length", "Tokens, the end token included.", {"length": ""}),
        Curve("Cut by the horizon", "Fraction of responses that did not end by themselves.", {"truncated": ""}),
    ],
    "What the reward is made of": [],
    "Update": [
        Curve("KL", "From the reference, for a whole response.", {"kl": ""}),
        Curve("Gradient norm", "Before clipping.", {"gradient_norm": ""}),
        Curve("Loss", "Its gradient is what counts; its value need not fall.", {"loss": ""}),
    ],
    "Cost": [
        Curve("Tokens per second", "Sampling and learning together.", {"tokens_per_second": ""}),
        Curve("Seconds", "Of one step.", {"seconds": ""}),
        Curve("Tokens", "Sampled in one step.", {"tokens": ""}),
    ],
}
BANDED = ("eval/reward", "eval/greedy_reward", "cosine_to_rloo", "tokens_to_signal")
BAND = {name: (f"{name}_low", f"{name}_high") for name in BANDED}
MEASURED = ("groups_measured", "groups_measured_with_signal")
UNSEEN = ("eval/prompts", "eval/held_out")
"""Said in words."""
GRADED = re.compile(r"(eval/)?(part|detail)/.*")
VERDICT = re.compile(r"(eval/)?detail/.*/.*")

STYLES = [("--unbiased", "solid"), ("--proportional", "solid"), ("--biased", "dashed"), ("--ink", "dotted")]

Series = dict[str, tuple[np.ndarray, np.ndarray]]
"""Metric -> (steps, values); a value that was not finite is NaN."""


def to_series(metrics: list[dict[str, Any]]) -> Series:
    """The lines of `metrics.jsonl` as one series a metric."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics:
        for name, value in line.items():
            if name not in RESERVED and (value is None or isinstance(value, (int, float))):
                found[name].append((line["step"], math.nan if value is None else float(value)))
    found |= _with_zeros({name: points for name, points in found.items() if VERDICT.fullmatch(name)})
    return {
        name: (np.array([step for step, _ in points]), np.array([value for _, value in points]))
        for name, points in found.items()
    }


def _with_zeros(shares: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Shares of verdicts, 0 where a batch had others of the same kind only."""
    steps: dict[str, set[int]] = defaultdict(set)
    for name, points in shares.items():
        steps[name.rpartition("/")[0]] |= {step for step, _ in points}
    return {
        name: sorted((dict.fromkeys(steps[name.rpartition("/")[0]], 0.0) | dict(points)).items())
        for name, points in shares.items()
    }


def thin(
    step: np.ndarray, value: np.ndarray, most: int = POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most `most` points: steps, means, smallest and largest values of neighbours."""
    parts = [slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(len(step)), min(most, len(step)))]

    def each(function: Callable[[np.ndarray], Any], of: np.ndarray) -> np.ndarray:
        return np.array([function(of[part]) for part in parts])

    return each(np.mean, step), each(np.mean, value), each(np.min, value), each(np.max, value)


def running_mean(value: np.ndarray, window: int) -> np.ndarray:
    """Mean of the `window` values around each (window odd); near an end of those that there are."""
    inside = slice(window // 2, window // 2 + len(value))
    total, count = (np.convolve(each, np.ones(window))[inside] for each in (value, np.ones(len(value))))
    return total / count


def finite(series: Series, name: str) -> tuple[np.ndarray, np.ndarray]:
    step, value = series[name]
    return step[np.isfinite(value)], value[np.isfinite(value)]


def sections_of(series: Series) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, figures) of the curves that there are."""
    known = {name for curves in SECTIONS.values() for curve in curves for name in curve.series}
    known |= {edge for band in BAND.values() for edge in band} | {*UNSEEN, *MEASURED}
    names = sorted(set(series) - known)
    # An evaluation's curve stands in the drawing of the training's.
    pairs = {name: f"eval/{name}" for name in names if not name.startswith("eval/")}
    alone = [name for name in names if name not in pairs and name not in pairs.values()]
    others = [
        Curve(name, "", {name: "training", other: "evaluation"} if other in series else {name: ""})
        for name, other in (pairs | dict.fromkeys(alone, "")).items()
    ]
    graded = [curve for curve in others if GRADED.fullmatch(curve.title)]
    sections = []
    made = {"What the reward is made of": graded, "Everything else": [each for each in others if each not in graded]}
    for title, curves in (SECTIONS | made).items():
        figures = [_figure(curve, series) for curve in curves if any(name in series for name in curve.series)]
        if figures:
            sections.append((title, figures))
    return sections


def _figure(curve: Curve, series: Series) -> dict[str, Any]:
    """A drawing, (name, colour variable, kind of line) of its lines, and in how many steps a value is not finite."""
    sizes = [("broad", 13.6, 3.6), ("narrow", 4.2, 2.4)] if curve.wide else [("", 4.2, 2.3)]
    shapes = [(shape, _svg(curve, series, width, height)) for shape, width, height in sizes]
    legend = [(word, *style) for (name, word), style in zip(curve.series.items(), STYLES) if word and name in series]
    odd = sum(int(np.isnan(series[name][1]).sum()) for name in curve.series if name in series)
    return {"drawing": Drawing(curve.title, curve.words, shapes, curve.wide), "legend": legend, "odd": odd}


def how_drawn(series: Series) -> str:
    """What a reader must know of the curves."""
    n = max((len(step) for step, _ in series.values()), default=0)
    if n <= SMOOTH_FROM:
        return ""
    each = math.ceil(n / POINTS)
    thin_line = "each step" if each == 1 else f"means of {each:,} steps, with their range behind them"
    return f"Thin: {thin_line}. Bold: running mean of about {_window(min(n, POINTS)) * each:,} steps."


def _window(points: int) -> int:
    return 2 * (points // 20) + 1


def _svg(curve: Curve, series: Series, width: float, height: float) -> str:
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(width, height)
    axes.xaxis.set_major_locator(MaxNLocator(8 if width > 6 else 4, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    name_x(axes, "step")
    for name, style in zip(curve.series, STYLES):
        if name in series:
            _draw(axes, series, name, *style)
    return to_svg(axes, curve.title, f"{curve.title} {width}")


def _draw(axes: Any, series: Series, name: str, colour_name: str, line: str) -> None:
    colour = COLOUR[colour_name]
    step, value = finite(series, name)
    if name in BAND and all(edge in series for edge in BAND[name]):
        (low_step, low), (high_step, high) = (series[edge] for edge in BAND[name])
        if len(low_step) == 1:
            axes.vlines(low_step, low, high, color=colour, alpha=0.3, linewidth=3, clip_on=False)
        elif np.array_equal(low_step, high_step):
            axes.fill_between(low_step, low, high, color=colour, alpha=0.16, linewidth=0, clip_on=False)
    if len(value):
        x, mean, smallest, largest = thin(step, value)
        style = {
            "color": colour,
            "linestyle": line,
            "clip_on": False,
            "solid_capstyle": "round",
            "solid_joinstyle": "round",
        }
        if len(x) <= SMOOTH_FROM:
            axes.plot(
                x, mean, linewidth=2, marker="o", markersize=3 if len(x) > 12 else 4.5, markeredgewidth=0, **style
            )
        elif name.startswith("eval/"):  # an evaluation is a mean of many responses already
            axes.plot(x, mean, linewidth=2, **style)
        else:
            if len(step) > len(x):
                axes.fill_between(x, smallest, largest, color=colour, alpha=0.12, linewidth=0, clip_on=False)
            axes.plot(x, mean, linewidth=0.8, alpha=0.45, **style)
            axes.plot(x, running_mean(mean, _window(len(x))), linewidth=2.2, **style)
    where, raw = series[name]
    lost = where[np.isnan(raw)]
    if len(lost):
        lost = thin(lost, lost)[0]
        axes.plot(
            lost,
            [0] * len(lost),
            "|",
            color=COLOUR["--wrong"],
            transform=axes.get_xaxis_transform(),
            markersize=9,
            clip_on=False,
        )
