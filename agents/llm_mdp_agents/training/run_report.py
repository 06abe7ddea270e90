"""A run as one self-contained HTML page: no network, no script, light and dark, on a phone and on paper."""

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mdp.report.pages import Drawing, rendered
from llm_mdp.report.plots import COLOUR, name_x, new_axes, to_svg
from llm_mdp.report.rows import number
from llm_mdp_agents.training.records import RESERVED, load_config, load_metrics, load_samples

POINTS = 300
"""Most points of a curve; of a longer run a point is the mean of several steps, with their range behind it."""
SMOOTH_FROM = 40
"""A curve of training with more points gets a running mean."""
SAMPLES = 4
"""Most prompts shown."""
CHARACTERS = 4000
"""Of a prompt or a response that are shown."""


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
    ],
    "Policy": [
        Curve("Entropy", "Estimated from the sampled tokens, in nats a token.", {"entropy": ""}),
        Curve("Response length", "Tokens, the end token included.", {"length": ""}),
        Curve("Cut by the horizon", "Fraction of responses that did not end by themselves.", {"truncated": ""}),
    ],
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
BAND = {"eval/reward": ("eval/reward_low", "eval/reward_high")}

STYLES = [("--unbiased", "solid"), ("--proportional", "solid"), ("--biased", "dashed"), ("--ink", "dotted")]

Series = dict[str, tuple[np.ndarray, np.ndarray]]
"""Metric -> (steps, values); a value that was not finite is NaN."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, from `config.json`, `metrics.jsonl` and `samples.jsonl`; any of
    them may be missing.

    `seconds` and `tokens` are those of one step.

    Raises: ValueError: if there is no such folder, or a record in the middle of a file is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a run, such as runs/grpo-arithmetic-1.")
    config, series = load_config(folder), to_series(load_metrics(folder))
    command = config.get("command", "")
    page = rendered(
        "run.html",
        package="llm_mdp_agents.training",
        name=folder.resolve().name,
        facts=_facts(config, series),
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        summary=summary(series),
        note=_note(series),
        cards=_cards(series),
        sections=_sections(series),
        how_drawn=_how_drawn(series),
        samples=_samples(load_samples(folder)),
        characters=CHARACTERS,
        settings=_settings(config),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def to_series(metrics: list[dict[str, Any]]) -> Series:
    """The lines of `metrics.jsonl` as one series a metric."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in metrics:
        for name, value in line.items():
            if name not in RESERVED and (value is None or isinstance(value, (int, float))):
                found[name].append((line["step"], math.nan if value is None else float(value)))
    return {
        name: (np.array([step for step, _ in points]), np.array([value for _, value in points]))
        for name, points in found.items()
    }


def summary(series: Series) -> str:
    """The run in one line: `reward 0.310 → 0.920 in 200 steps, 12 min`."""
    steps = max((step[-1] for step, _ in series.values()), default=0)
    if not steps:
        return "No step has been recorded yet."
    parts = [f"in {steps:,} step{'s' if steps > 1 else ''}"]
    for name, word in (("reward", "reward"), ("eval/reward", "evaluation")):
        if name in series:
            parts.insert(-1, f"{word} {_change(*_ends(series, name))}")
    time = f", {duration(np.nansum(series['seconds'][1]))}" if "seconds" in series else ""
    return ", ".join(parts[:-1]) + (" " if parts[:-1] else "") + parts[-1] + time


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{number(seconds) if seconds < 10 else round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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


def _finite(series: Series, name: str) -> tuple[np.ndarray, np.ndarray]:
    step, value = series[name]
    return step[np.isfinite(value)], value[np.isfinite(value)]


def _ends(series: Series, name: str) -> tuple[float | None, float | None]:
    """How it began and how it ended: means over `_end_length` values."""
    value = _finite(series, name)[1]
    n = _end_length(series, name)
    return (float(value[:n].mean()), float(value[-n:].mean())) if len(value) else (None, None)


def _end_length(series: Series, name: str) -> int:
    """A twentieth of the training's steps, as one step is mostly noise; one evaluation."""
    return 1 if name.startswith("eval/") else max(1, len(_finite(series, name)[1]) // 20)


def _change(first: float | None, last: float | None) -> str:
    return number(last) if first == last else f"{number(first)} → {number(last)}"


def _note(series: Series) -> str:
    notes = []
    if "reward" in series and (n := _end_length(series, "reward")) > 1:
        notes.append(f"Beginning and end are means over {n:,} steps.")
    odd = {name: int(np.isnan(value).sum()) for name, (_, value) in series.items() if np.isnan(value).any()}
    if odd:
        notes.append(
            "Not finite: " + ", ".join(f"{name} in {n} step{'s' if n > 1 else ''}" for name, n in odd.items()) + "."
        )
    return " ".join(notes)


def _facts(config: dict[str, Any], series: Series) -> list[tuple[str, str]]:
    known = {
        "agent": _part(config, "agent", "name"),
        "env": _part(config, "env", "id"),
        "policy": config.get("policy"),
        "model": _part(config, "model", "model"),
        "seed": _part(config, "train", "seed"),
    }
    facts = [(name, str(value)) for name, value in known.items() if isinstance(value, (str, int))]
    if "seconds" in series:
        facts.append(("time", duration(np.nansum(series["seconds"][1]))))
    if "tokens" in series:
        facts.append(("tokens", f"{np.nansum(series['tokens'][1]):,.0f}"))
    if "tokens_per_second" in series and (speed := _ends(series, "tokens_per_second")[1]) is not None:
        facts.append(("tokens per second", number(speed)))
    return facts


def _part(config: dict[str, Any], name: str, key: str) -> Any:
    """A value of a part of the configuration; the part itself where it has no parts."""
    part = config.get(name)
    return part.get(key) if isinstance(part, dict) else part


CARDS = {
    "reward": "reward",
    "eval/reward": "evaluation reward",
    "eval/greedy_reward": "greedy reward",
    "kl": "KL",
    "entropy": "entropy",
    "length": "response length",
}


def _cards(series: Series) -> list[tuple[str, str, str]]:
    """(name, last figure, what it was at first and how sure it is)."""
    cards = []
    for name, word in CARDS.items():
        if name in series and len(_finite(series, name)[1]):
            first, last = _ends(series, name)
            more = f"from {number(first)}"
            if name in BAND and all(edge in series for edge in BAND[name]):
                more += " · 95 %: " + " to ".join(number(_ends(series, edge)[1]) for edge in BAND[name])
            cards.append((word, number(last), more))
    return cards


def _sections(series: Series) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, figures) of the curves that there are."""
    known = {name for curves in SECTIONS.values() for curve in curves for name in curve.series}
    known |= {edge for band in BAND.values() for edge in band}
    others = [Curve(name, "", {name: ""}) for name in sorted(set(series) - known)]
    sections = []
    for title, curves in (SECTIONS | {"Everything else": others}).items():
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


def _how_drawn(series: Series) -> str:
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
    step, value = _finite(series, name)
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


def _samples(samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The same prompts at the beginning, in the middle and at the end, as far as they are the same."""
    steps = sorted({sample["step"] for sample in samples})
    if not steps:
        return None
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for step in shown:
        for sample in [sample for sample in samples if sample["step"] == step][:SAMPLES]:
            by_prompt[_text(sample.get("prompt", ""))].append(sample)
    same = "The same prompts" if len(by_prompt) <= SAMPLES and len(shown) > 1 else "Prompts"
    words = f"{same}, and what the policy answered at {', '.join(f'step {step}' for step in shown)}."
    return {"words": words, "blocks": [(prompt, list(map(_response, each))) for prompt, each in by_prompt.items()]}


def _response(sample: dict[str, Any]) -> dict[str, Any]:
    known = (*RESERVED, "prompt", "response", "reward")
    return {
        "step": sample["step"],
        "facts": [(name, _figure_text(value)) for name, value in sample.items() if name not in known],
        "reward": _figure_text(sample["reward"]) if "reward" in sample else None,
        "text": _text(sample.get("response", "")),
    }


def _figure_text(value: Any) -> str:
    return number(value) if isinstance(value, float) else "not finite" if value is None else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(config: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, lines of a table) of each part of the configuration, first of what is in no part."""
    config = {name: value for name, value in config.items() if name != "command"}
    parts = {"": {name: value for name, value in config.items() if not isinstance(value, dict)}}
    parts |= {name: value for name, value in config.items() if isinstance(value, dict)}
    return [(name, [(key, _text(each)) for key, each in _flat(part)]) for name, part in parts.items() if part]


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as one list, with dots in their names."""
    flat = []
    for name, each in value.items():
        flat += _flat(each, f"{prefix}{name}.") if isinstance(each, dict) and each else [(f"{prefix}{name}", each)]
    return flat
