"""A run as one self-contained HTML page: no network, no script, light and dark, on a phone and on paper."""

import json
import shlex
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from llm_mdp.files import write_text
from llm_mdp.report.pages import rendered
from llm_mdp.report.rows import number
from llm_mdp_agents.training.curves import BAND, UNSEEN, Series, finite, how_drawn, sections_of, to_series
from llm_mdp_agents.training.hints import without_signal
from llm_mdp_agents.training.own_gradient import gradient_words
from llm_mdp_agents.training.records import RESERVED, load_config, load_metrics, load_samples
from llm_mdp_agents.training.stopping import best_of, why_stopped
from llm_mdp_agents.training.train_config import TrainConfig

SAMPLES = 4
"""Most prompts shown."""
CHARACTERS = 4000
"""Of a prompt or a response that are shown."""
IN_TABLE = 500
"""Characters of one that are shown in the table."""


def write_report(folder: Path, running: bool = False) -> Path:
    """Write `report.html` into the folder of a run, from `config.json`, `metrics.jsonl` and `samples.jsonl`; any of
    them may be missing. Whoever looks at it meanwhile sees the old page or the new one.

    `seconds` and `tokens` are those of one step.

    Args:
        running: the run goes on, and the page says so.

    Raises: ValueError: if there is no such folder, or a record in the middle of a file is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a run, such as runs/grpo-arithmetic-1.")
    config, metrics, samples = load_config(folder), load_metrics(folder), load_samples(folder)
    series, steps = to_series(metrics), _part(config, "train", "steps")
    command = config.get("command", "")
    # RLOO's cosine to itself says nothing.
    gradient = "" if _part(config, "agent", "name") == "rloo" else gradient_words(metrics)
    notes = (_evaluated_on(series), _how_it_ended(metrics, config), without_signal(metrics), gradient, _note(series))
    page = rendered(
        "run.html",
        package="llm_mdp_agents.training",
        name=folder.resolve().name,
        facts=_facts(config, series),
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        summary=summary(series, steps if isinstance(steps, int) else None, running),
        note=" ".join(filter(None, notes)),
        cards=_cards(series),
        sections=sections_of(series),
        how_drawn=how_drawn(series),
        samples=_samples(samples),
        table=_table(samples),
        characters=CHARACTERS,
        settings=_settings(config),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def summary(series: Series, total: int | None = None, running: bool = False) -> str:
    """The run in one line: `reward 0.310 → 0.920 in 200 steps, 12 min`.

    Args:
        total: steps that the run is to have; where it has fewer, both are said.
        running: it goes on: `… in 40 of 200 steps so far, 12 min`.
    """
    steps = max((step[-1] for step, _ in series.values()), default=0)
    if not steps:
        return "No step has been recorded yet."
    of = f" of {total:,}" if total is not None and steps < total else ""
    parts = [f"in {steps:,}{of} step{'s' if max(steps, total or 0) > 1 else ''}{' so far' if running else ''}"]
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


def _ends(series: Series, name: str) -> tuple[float | None, float | None]:
    """How it began and how it ended: means over `_end_length` values."""
    value = finite(series, name)[1]
    n = _end_length(series, name)
    return (float(value[:n].mean()), float(value[-n:].mean())) if len(value) else (None, None)


def _end_length(series: Series, name: str) -> int:
    """A twentieth of the training's steps, as one step is mostly noise; one evaluation."""
    return 1 if name.startswith("eval/") else max(1, len(finite(series, name)[1]) // 20)


def _change(first: float | None, last: float | None) -> str:
    return number(last) if first == last else f"{number(first)} → {number(last)}"


def _evaluated_on(series: Series) -> str:
    """Which questions the evaluations asked."""
    if any(name not in series for name in UNSEEN):
        return ""
    number, held_out = (int(series[name][1][-1]) for name in UNSEEN)
    questions = f"Evaluated on {number:,} question{'s' if number > 1 else ''}"
    return f"{questions} that training never asks." if held_out else f"{questions} of the training itself."


def _how_it_ended(metrics: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """Why the run stopped early, and whose weights it left."""
    chosen = config.get("train")
    known = {each.name for each in fields(TrainConfig)}
    if not isinstance(chosen, dict) or not metrics:
        return ""
    train = TrainConfig(**{name: value for name, value in chosen.items() if name in known})
    best = best_of(metrics, train.best_by) if train.save == "best" else None
    kept = f"The model is that of step {best.step}, the best by {train.best_by}." if best else ""
    return " ".join(filter(None, (why_stopped(metrics, train), kept)))


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
    facts += [("fast matmul", each) for each in ("on", "off") if _part(config, "model", "fast_matmul") == each]
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
        if name in series and len(finite(series, name)[1]):
            first, last = _ends(series, name)
            more = f"from {number(first)}"
            if name in BAND and all(edge in series for edge in BAND[name]):
                more += " · 95 %: " + " to ".join(number(_ends(series, edge)[1]) for edge in BAND[name])
            cards.append((word, number(last), more))
    return cards


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


def _table(samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The responses of the latest evaluation, all that is known of them."""
    if not samples:
        return None
    step = samples[-1]["step"]
    rows = [
        {name: value for name, value in each.items() if name not in RESERVED}
        for each in samples
        if each["step"] == step
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    words = [[_short(_figure_text(row[name])) if name in row else "" for name in names] for row in rows]
    return {"step": step, "names": names, "rows": words}


def _short(text: str) -> str:
    return text if len(text) <= IN_TABLE else f"{text[:IN_TABLE]} …"


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
