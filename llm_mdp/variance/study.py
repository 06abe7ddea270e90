"""A study of noise: settings, the candidates that are measured on each, and the document that table, page and CSV are
made of.

The work is cut into cells, each a JSON document that says all that its result depends on (`llm_mdp.variance.sweep`):
the facts of a setting, or one candidate on it; or all candidates on one task, where they share their draws, which is
for those who have tasks (`llm_mdp_agents.study`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from llm_mdp import __version__
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.exact.instance_files import read_instance
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.own import UsageError
from llm_mdp.sampling.policies import Policy
from llm_mdp.variance.benches import NgramBench, TreeBench, make_bench
from llm_mdp.variance.comparison import best_by_budget, leading, on_frontier, recommendation
from llm_mdp.variance.forecast import Forecast, setting_forecast
from llm_mdp.variance.grid import DEFAULT, Candidate, Grid, candidates
from llm_mdp.variance.measurement import Measurement, finite, read_measurement
from llm_mdp.variance.setting import Setting
from llm_mdp.verify.check import load_estimator

AXES = {
    "policy": "policy",
    "vocab": "vocab_size",
    "horizon": "horizon",
    "rewards": "rewards",
    "success": "success",
    "entropy": "entropy",
    "length": "length",
    "prompts": "prompts",
    "gamma": "gamma",
}
"""What settings differ in, in the order in which it is multiplied out: as people call it, and as a `Setting` and the
results do."""
TYPICAL = (
    Setting(name="every token counts", prompts=4, seed=1),
    Setting(
        name="right or wrong, easy and hard prompts",
        policy="transformer",
        rewards="outcome",
        success=0.3,
        prompts=4,
        seed=1,
    ),
    Setting(
        name="long, the beginning decides",
        policy="ngram",
        vocab_size=8,
        horizon=32,
        rewards="early",
        length=24.0,
        seed=1,
    ),
)
"""What is measured if nobody says what."""


# --- what is to be measured -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One setting or task, and the cells that its rows are made of."""

    name: str
    words: str
    axes: dict[str, Any]
    listed: tuple[Candidate, ...]
    cells: tuple[dict[str, Any], ...]


def plan_of(setting: Setting, listed: Sequence[Candidate], estimates: int, seed: int) -> Plan:
    """The facts of a setting, and every candidate on it.

    Args:
        estimates: how many are drawn where enumeration is too much.
        seed: of draws.
    """
    document = setting.document()
    if setting.instance is not None:
        document["content"] = hashlib.sha256(Path(setting.instance).read_bytes()).hexdigest()
    common = {"setting": document, "estimates": estimates, "seed": seed}
    cells = [{**common, "name": f"{setting.name or setting.words}"[:24], "facts": True}]
    cells += [{**common, "name": candidate.label[:24], "candidate": identity(candidate)} for candidate in listed]
    axes = {name: getattr(setting, name) for name in AXES.values()}
    return Plan(setting.name or setting.words, setting.words, axes, tuple(listed), tuple(cells))


def settings_of(given: Mapping[str, Sequence[Any]], seed: int) -> list[Setting]:
    """All combinations of the values of axes (names of `AXES`); without any, the typical settings."""
    if not given:
        return [replace(setting, seed=setting.seed + seed) for setting in TYPICAL]
    several = [name for name, values in given.items() if len(values) > 1]
    made = []
    for values in product(*given.values()):
        options = dict(zip(given, values))
        name = ", ".join(f"{axis} {options[axis]}" for axis in several)
        made.append(Setting(**{AXES[axis]: value for axis, value in options.items()}, seed=seed, name=name))
    return made


def setting_of_file(instance: Path) -> Setting:
    """An instance file as a setting.

    Raises:
        ValueError: if it cannot be read.
    """
    horizon = read_instance(instance).mdp.horizon
    return Setting(horizon=horizon, instance=str(instance), name=instance.stem)


def swept(given: Mapping[str, Sequence[Any]]) -> str | None:
    """The one axis with several values, as a `Setting` calls it; None if there are none or more."""
    several = [name for name, values in given.items() if len(values) > 1]
    return AXES[several[0]] if len(several) == 1 else None


def chosen(names: Sequence[str], grid: Grid, horizon: int, known_values: bool = True) -> list[Candidate]:
    """The candidates; without names, those that can be had here.

    Args: known_values: are values of states known, as on token MDPs?

    Raises:
        UsageError: for a name that nobody knows, or one that needs values which are not known.
    """
    listed = candidates(
        names or tuple(name for name in DEFAULT if known_values or not CATALOGUE[name].given_values), grid, horizon
    )
    for candidate in listed:
        if ":" in candidate.name:
            load_estimator(candidate.name)
        elif candidate.given_values and not known_values:
            raise UsageError(
                f"{candidate.name} needs values of states, which are known on token MDPs only; leave it out with --env."
            )
    return listed


def identity(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON; an estimator of the user's with what its file says, so that an edited one is measured
    anew."""
    return {**asdict(candidate), **source_of(candidate.name)}


def source_of(name: str) -> dict[str, str]:
    """What the file of FILE.py:CLASS says, so that an edited one makes another cell; nothing for other names."""
    place = name.rpartition(":")[0]
    return {"source": hashlib.sha256(Path(place).read_bytes()).hexdigest()} if place.endswith(".py") else {}


# --- what a cell measures ---------------------------------------------------------------------------------------------

MakeTransformer = Callable[[TokenMDP, int], Policy]
"""Makes a tiny transformer for a token MDP from a seed; a function at the top of a module."""


def measure_setting(cell: dict[str, Any], transformer: MakeTransformer | None = None) -> dict[str, Any]:
    """What a cell of `plan_of` asks for: the facts of a setting, or one candidate's measurement.

    Raises:
        ValueError: if it wants a transformer and nobody makes them here.
    """
    bench = _bench(json.dumps(cell["setting"]), transformer)
    if cell.get("facts"):
        return bench.facts()
    candidate = Candidate(cell["candidate"]["name"], cell["candidate"]["options"])
    estimator = candidate.build(bench.given, load_estimator)
    return bench.measure(estimator, cell["estimates"], cell["seed"], candidate.proved).document()


def forecast_of(plan: Plan, budget: float, transformer: MakeTransformer | None = None) -> Forecast | None:
    """How many estimates an answer on a setting is likely to need; None if nothing is drawn there."""
    facts = plan.cells[0]
    return setting_forecast(_bench(json.dumps(facts["setting"]), transformer), plan.listed, budget, facts["seed"])


@lru_cache(maxsize=4)
def _bench(document: str, transformer: MakeTransformer | None) -> TreeBench | NgramBench:
    """What a setting is measured on; the latest ones are kept, for a worker gets many candidates of one setting."""
    content = json.loads(document)
    content.pop("content", None)
    return make_bench(Setting(**content), transformer)


# --- what comes of it -------------------------------------------------------------------------------------------------


def make_document(
    plans: Sequence[Plan], results: Sequence[dict[str, Any]], budget: float, seed: int, sweep: str | None = None
) -> dict[str, Any]:
    """All that the terminal, the page and the CSV are made of.

    Args:
        results: of the cells of the plans, in their order.
        budget: generated tokens of a batch.
        sweep: see `swept`.
    """
    remaining, made = list(results), []
    for plan in plans:
        own, remaining = remaining[: len(plan.cells)], remaining[len(plan.cells) :]
        made.append(_compared(plan, own, budget))
    return {"version": __version__, "seed": seed, "budget": budget, "sweep": sweep, "settings": made}


def _compared(plan: Plan, results: Sequence[dict[str, Any]], budget: float) -> dict[str, Any]:
    """What was measured in one place, its candidates compared."""
    first = results[0]
    if "rows" in first:
        facts, documents = first["facts"], [first["rows"][candidate.label] for candidate in plan.listed]
    else:
        facts, documents = first, results[1:]
    measured = {candidate.label: read_measurement(document) for candidate, document in zip(plan.listed, documents)}
    label = facts["target"] if facts["target"] != "exact" else base_of(plan.listed)
    base = measured.get(label or "")
    if base is None and "rows" in first:
        base = read_measurement(first["base"])
    # On a task all estimators see the same draws.
    shared = "rows" in first
    rows = [
        {
            "label": candidate.label,
            "estimator": candidate.name.rpartition(":")[2] or candidate.name,
            "options": candidate.options,
            "given_values": candidate.given_values,
            **with_ratio(measured[candidate.label].row(budget), measured[candidate.label], base, shared),
        }
        for candidate in plan.listed
    ]
    best = leading(rows, budget)
    rows = [row | {"behind": best and _behind(row, best, measured, budget, shared)} for row in rows]
    frontier = on_frontier(rows)
    return {
        "name": plan.name,
        "words": plan.words,
        "axes": {name: facts.get(name) if value is None else value for name, value in plan.axes.items()},
        "target": facts["target"],
        "base": label,
        **{name: facts[name] for name in ("J", "grad_norm", "expected_length")},
        "grad_norm_interval": base and base.norm_interval() if "rows" in first else None,
        "budget": budget,
        "rows": [row | {"frontier": row["label"] in frontier} for row in rows],
        "best": best_by_budget(rows, budget),
        "recommendation": recommendation(rows, budget),
    }


def _behind(
    row: dict[str, Any], best: dict[str, Any], measured: Mapping[str, Measurement], budget: float, shared: bool
) -> list[float] | None:
    """By how much the leading row makes more progress, as an interval that holds for all rows together."""
    if row["too_few"]:
        return None
    this, other = measured[row["label"]], measured[best["label"]]
    return list(this.behind(other, budget, shared or this is other, comparisons=max(1, len(measured) - 1)))


def base_of(listed: Sequence[Candidate]) -> str | None:
    """What others are compared with where ∇J is known: RLOO with the largest group, if it is among them."""
    groups = [candidate for candidate in listed if candidate.name == "rloo"]
    return max(groups, key=lambda candidate: candidate.options["group_size"]).label if groups else None


def with_ratio(
    row: dict[str, Any], measured: Measurement, base: Measurement | None, shared: bool = False
) -> dict[str, Any]:
    """The row with its tokens to signal over those of the estimator that others are compared with; with nothing where
    too little was seen of one of them.

    Args: shared: see `Measurement.over`.
    """
    if base is None or measured.too_few or base.too_few:
        return row | {"tokens_over_base": None}
    if measured is base:
        return row | {"tokens_over_base": 1.0}
    value, ends = measured.over(base, shared)
    intervals = (
        row["intervals"]
        if ends is None
        else {**(row["intervals"] or {}), "tokens_over_base": [finite(end) for end in ends]}
    )
    return row | {"tokens_over_base": finite(value), "intervals": intervals}
