"""`llm-mdp variance`: how noisy every estimator is, and what a token of sampling buys, as a table, a page, JSON and
CSV.

The work is cut into cells, each a JSON document that says all that its result depends on (`llm_mdp.variance.sweep`):
one estimator on one setting, or all estimators on one task, where they share their draws.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm_mdp import __version__
from llm_mdp.cli.options import FLAGS, check_model_choice, check_writable, command_line, one_thread, warm_up
from llm_mdp.cli.options import env_arguments as read_arguments
from llm_mdp.cli.options import policy_and_task as find_policy_and_task
from llm_mdp.files import write_text
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.own import UsageError
from llm_mdp.sampling.policies import Policy
from llm_mdp.variance.benches import NgramBench, TreeBench, make_bench
from llm_mdp.variance.comparison import best_by_budget, on_frontier, recommendation
from llm_mdp.variance.grid import DEFAULT, KINDS, Candidate, Grid, Setup, candidates
from llm_mdp.variance.measurement import Measurement, finite, read_measurement
from llm_mdp.variance.setting import PolicyKind, Rewards, Setting
from llm_mdp.variance.sweep import run_cells
from llm_mdp.verify.check import load_estimator
from llm_mdp_agents.resolve import ModelConfig

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
"""Options that make settings, in the order in which they are multiplied out, and what a `Setting` and the results call
them."""
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
PROMPTS_AT_ONCE = 16
"""Prompts of a task that are drawn together."""


@dataclass(frozen=True)
class VarianceArguments:
    """Which estimator of the policy gradient, with how many responses, positions and branches, for this policy, task
    and budget?

    Every estimator is measured exactly where that is possible, else by sampling with intervals: its bias, its
    covariance and its cost, all compared at equal cost. Without options: three typical settings. Options of a setting
    take several values: `--horizon 2 4 6` is a sweep. With an environment (and a model): on that task.
    """

    estimators: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME | FILE.py:CLASS ...]")
    ] = ()
    """Which estimators (default: ten of them; an unknown name lists them all), or your own."""
    budget: float = 2000.0
    """Generated tokens of a batch."""
    policy: tuple[PolicyKind, ...] = ()
    """Kinds of policy: tabular (default), ngram (any horizon), transformer (tiny)."""
    vocab: tuple[int, ...] = ()
    """V, number of tokens (4)."""
    horizon: tuple[int, ...] = ()
    """T, longest response (4)."""
    rewards: tuple[Rewards, ...] = ()
    """Hidden rewards: dense (default), sparse, early, outcome."""
    success: tuple[float, ...] = ()
    """Probability of the outcome 1, with --rewards outcome."""
    entropy: tuple[float, ...] = ()
    """Mean entropy of the policy, nats a token."""
    length: tuple[float, ...] = ()
    """Expected response length of n-gram policies."""
    prompts: tuple[int, ...] = ()
    """Number of prompts of a token MDP (1); with --env, how many prompts are drawn (256, for language models 32)."""
    gamma: tuple[float, ...] = ()
    """Discount."""
    instance: Path | None = None
    """Measure on this instance file instead."""
    env: str | None = None
    """Measure on this environment instead; `llm-mdp envs` lists them."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    model: ModelConfig = ModelConfig()
    run: Path | None = None
    """Measure the policy that this run trained, on its environment."""
    warm_start: int | None = None
    """Supervised batches on the task's own answers first, for a transformer from scratch (200, where there are
    answers)."""
    grid: Grid = Grid()
    estimates: int = 2000
    """Estimates that are drawn where enumeration is too much."""
    seed: int = 0
    """Of random settings and of draws."""
    out: Path = Path("variance")
    """Folder of the results: report.html, results.json, results.csv, and the finished cells, which are not computed
    again."""
    jobs: int = 2
    """Processes."""
    backend: str = "loky"
    """Where cells run: loky (processes here), ray or dask (a cluster), threading."""


def variance(argv: Sequence[str]) -> int:
    """Run `llm-mdp variance`."""
    from rich.console import Console

    from llm_mdp.report.terminal import progress_bar
    from llm_mdp.report.variance_page import render_variance_page
    from llm_mdp.report.variance_rows import write_csv
    from llm_mdp.report.variance_terminal import print_variance

    one_thread()
    arguments = tyro.cli(VarianceArguments, args=argv, prog="llm-mdp variance", config=FLAGS)
    check(arguments)
    plans = list(plan(arguments))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("report.html", "results.json", "results.csv"):
        check_writable(arguments.out / name)
    cells = [cell for each in plans for cell in each.cells]
    folder, workers = arguments.out / "cells", {"jobs": arguments.jobs, "backend": arguments.backend}
    if "task" in cells[0]:
        # One cell, in this process, so that it can say how far it is.
        with progress_bar(Console(stderr=True), -(-cells[0]["prompts"] // PROMPTS_AT_ONCE)) as done:
            measure_task_cell.progress = lambda prompts: done(f"{prompts} prompts")  # pyright: ignore[reportFunctionMemberAccess]
            results = run_cells(measure_cell, cells, folder=folder)
    else:
        with progress_bar(Console(stderr=True), len(cells)) as done:
            results = run_cells(measure_cell, cells, folder=folder, **workers, tell=done)
    document = make_document(arguments, plans, results) | {"command": command_line()}
    write_text(arguments.out / "results.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_csv(document, arguments.out / "results.csv")
    write_text(arguments.out / "report.html", render_variance_page(document))
    console = Console()
    print_variance(document, console)
    console.print(
        f"page: {arguments.out / 'report.html'}   figures: results.json, results.csv", highlight=False, soft_wrap=True
    )
    return 0


def check(arguments: VarianceArguments) -> None:
    """Raise UsageError for what cannot be done, before anything is."""
    if not 0 < arguments.budget < math.inf:
        raise UsageError(f"--budget is {arguments.budget:g}; a batch has a positive number of tokens.")
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}; it must be at least 0.")
    if arguments.estimates < 100:
        raise UsageError(f"--estimates is {arguments.estimates}; intervals need at least 100.")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UsageError(f"--out is {arguments.out}, which is a file; name a folder.")
    axes = [name for name in AXES if getattr(arguments, name) and name != "prompts"]
    task = arguments.env is not None or arguments.run is not None
    if arguments.instance is not None and (axes or arguments.prompts):
        raise UsageError(f"--instance says everything about the setting; leave --{(axes or ['prompts'])[0]} out.")
    if task and (axes or arguments.instance is not None):
        raise UsageError(
            f"--{(axes or ['instance'])[0]} is for token MDPs that are made here; leave it out, or leave out --env and "
            f"--run."
        )
    if arguments.env is not None and arguments.run is not None:
        raise UsageError("--run brings its own environment; leave --env out.")
    check_model_choice(arguments.run, arguments.model, arguments.warm_start)
    if task and arguments.model.engine != "hf":
        raise UsageError(
            f"--engine is {arguments.model.engine}, but the model itself draws what is measured; leave it out."
        )
    if not task:
        for name, given, default in (
            ("env-args", arguments.env_args, ()), ("model", arguments.model, ModelConfig()), ("warm-start", arguments.warm_start, None),
        ):  # fmt: skip
            if given != default:
                raise UsageError(
                    f"--{name} and other options of a model say something about a task; name one with --env."
                )
    if task and len(arguments.prompts) > 1:
        raise UsageError("--prompts is one number with --env: how many prompts are drawn.")
    if task and arguments.prompts and arguments.prompts[0] < 2:
        raise UsageError(f"--prompts is {arguments.prompts[0]}; a spread over prompts needs at least 2.")


@dataclass(frozen=True)
class Plan:
    """One setting, and the cells that its rows are made of."""

    name: str
    words: str
    axes: dict[str, Any]
    listed: tuple[Candidate, ...]
    cells: tuple[dict[str, Any], ...]


def plan(arguments: VarianceArguments) -> Iterator[Plan]:
    """What is to be measured, setting by setting."""
    if arguments.env is not None or arguments.run is not None:
        yield task_plan(arguments)
        return
    for setting in settings(arguments):
        listed = chosen(arguments, setting.horizon)
        document = setting.document()
        if setting.instance is not None:
            document["content"] = hashlib.sha256(Path(setting.instance).read_bytes()).hexdigest()
        common = {"setting": document, "estimates": arguments.estimates, "seed": arguments.seed}
        cells = [{**common, "name": f"{setting.name or setting.words}"[:24], "facts": True}]
        cells += [{**common, "name": candidate.label[:24], "candidate": identity(candidate)} for candidate in listed]
        axes = {name: getattr(setting, name) for name in AXES.values()}
        yield Plan(setting.name or setting.words, setting.words, axes, tuple(listed), tuple(cells))


def settings(arguments: VarianceArguments) -> list[Setting]:
    """The settings of a command line: the typical ones, an instance, or all combinations of what is given."""
    if arguments.instance is not None:
        from llm_mdp.exact.instance_files import read_instance

        horizon = read_instance(arguments.instance).mdp.horizon
        return [Setting(horizon=horizon, instance=str(arguments.instance), name=arguments.instance.stem)]
    given = {name: getattr(arguments, name) for name in AXES if getattr(arguments, name)}
    if not given:
        return [replace(setting, seed=setting.seed + arguments.seed) for setting in TYPICAL]
    several = [name for name, values in given.items() if len(values) > 1]
    made = []
    for values in product(*given.values()):
        options = dict(zip(given, values))
        name = ", ".join(f"{axis} {options[axis]}" for axis in several)
        made.append(Setting(**{AXES[axis]: value for axis, value in options.items()}, seed=arguments.seed, name=name))
    return made


def chosen(arguments: VarianceArguments, horizon: int, known_values: bool = True) -> list[Candidate]:
    """The candidates; without a list, those that can be had here."""
    names = arguments.estimators or tuple(name for name in DEFAULT if known_values or not KINDS[name].given_values)
    listed = candidates(names, arguments.grid, horizon)
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


def written(folder: Path) -> int:
    """When a model was last written: one that was trained on makes another cell. 0 if there is no such folder."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*")), default=0)


def task_plan(arguments: VarianceArguments) -> Plan:
    """One cell for a whole task: its estimators share their draws."""
    from llm_mdp_agents.resolve import find_task
    from llm_mdp_agents.training.run_config import run_config_of
    from llm_mdp_agents.training.warm_start import check_answers

    env, env_arguments, model = arguments.env, read_arguments(arguments.env_args), arguments.model
    if arguments.run is not None:
        config = run_config_of(arguments.run)
        env, env_arguments, model = config.env, config.env_arguments | env_arguments, config.model
    task = find_task(env, env_arguments, model)
    if arguments.warm_start:
        check_answers(task)
    listed = chosen(arguments, task.horizon, known_values=False)
    folders = (
        [Path(each) for each in (model.model, model.scored_by) if each]
        if arguments.run is None
        else [arguments.run / "model"]
    )
    document = {
        "env": env,
        "env_arguments": env_arguments,
        "model": asdict(arguments.model),
        "run": arguments.run and str(arguments.run),
        "warm_start": arguments.warm_start,
        **source_of(str(env)),
        "written": max(map(written, folders)),
    }
    cell = {
        "name": str(env),
        "task": document,
        "candidates": [identity(candidate) for candidate in listed],
        "prompts": (*arguments.prompts, 256 if arguments.model.model in ("auto", "small", "tabular", "ngram") else 32)[
            0
        ],
        "seed": arguments.seed,
    }
    name = str(env).rpartition(":")[2]
    words = f"{(arguments.run or Path(arguments.model.model)).name} on {name}, {cell['prompts']} prompts"
    known_axes = {"policy": Path(arguments.model.model).name, "vocab_size": task.vocab_size, "horizon": task.horizon}
    axes = dict.fromkeys(AXES.values()) | known_axes
    return Plan(name, words, axes, tuple(listed), (cell,))


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """What a cell asks for: facts of a setting, one candidate's measurement, or everything about a task."""
    if "task" in cell:
        return measure_task_cell(cell)
    bench = _bench(json.dumps(cell["setting"]))
    if cell.get("facts"):
        return bench.facts()
    candidate = Candidate(cell["candidate"]["name"], cell["candidate"]["options"])
    estimator = candidate.build(bench.setup, load_estimator)
    return bench.measure(estimator, cell["estimates"], cell["seed"], candidate.known).document()


measure_cell.version = 2  # pyright: ignore[reportFunctionMemberAccess]


@lru_cache(maxsize=4)
def _bench(document: str) -> TreeBench | NgramBench:
    """What a setting is measured on; the latest ones are kept, for a worker gets many candidates of one setting."""
    content = json.loads(document)
    content.pop("content", None)
    return make_bench(Setting(**content), _transformer)


def _transformer(mdp: TokenMDP, seed: int) -> Policy:
    from llm_mdp_agents.lm.policy import tiny_transformer

    return tiny_transformer(mdp.vocab_size, mdp.prompt_tokens.shape[1] + mdp.horizon, seed)


def measure_task_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Every candidate on one task, on shared draws."""
    from llm_mdp_agents.measuring import measure_task

    policy, task = policy_and_task(cell["task"], cell["seed"])
    listed = [Candidate(each["name"], each["options"]) for each in cell["candidates"]]
    setup = Setup(task.horizon)
    estimators = {candidate.label: candidate.build(setup, load_estimator) for candidate in listed}
    known = {candidate.label: candidate.known for candidate in listed}
    options = {"known": known, "prompts_at_once": PROMPTS_AT_ONCE, "tell": measure_task_cell.progress}
    measured, facts = measure_task(estimators, policy, task, cell["prompts"], cell["seed"], **options)
    base = facts.pop("base")
    rows = {label: measurement.document() for label, measurement in measured.items()}
    return {"facts": facts, "rows": rows, "base": base.document()}


measure_task_cell.progress = lambda prompts: None  # pyright: ignore[reportFunctionMemberAccess]


def base_of(listed: Sequence[Candidate]) -> str | None:
    """What others are compared with where ∇J is known: RLOO with the largest group, if it is among them."""
    groups = [candidate for candidate in listed if candidate.name == "rloo"]
    return max(groups, key=lambda candidate: candidate.options["group_size"]).label if groups else None


def with_ratio(row: dict[str, Any], measured: Measurement, base: Measurement | None) -> dict[str, Any]:
    """The row with its tokens to signal over those of the estimator that others are compared with."""
    if base is None:
        return row | {"tokens_over_base": None}
    value, ends = measured.over(base)
    intervals = (
        row["intervals"]
        if ends is None
        else {**(row["intervals"] or {}), "tokens_over_base": [finite(end) for end in ends]}
    )
    return row | {"tokens_over_base": finite(value), "intervals": intervals}


def policy_and_task(document: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """The policy and the task of a cell."""
    model, run = ModelConfig(**document["model"]), document["run"] and Path(document["run"])
    policy, task = find_policy_and_task(run, document["env"], document["env_arguments"], model, seed)
    warm_up(policy, task, run, model, document["warm_start"], seed)
    return policy, task


def make_document(
    arguments: VarianceArguments, plans: Sequence[Plan], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """All that the terminal, the page and the CSV are made of."""
    remaining, made = list(results), []
    for each in plans:
        own, remaining = remaining[: len(each.cells)], remaining[len(each.cells) :]
        if "rows" in own[0]:
            facts, documents = own[0]["facts"], [own[0]["rows"][candidate.label] for candidate in each.listed]
        else:
            facts, documents = own[0], own[1:]
        measured = {candidate.label: read_measurement(document) for candidate, document in zip(each.listed, documents)}
        label = facts["target"] if facts["target"] != "exact" else base_of(each.listed)
        base = read_measurement(own[0]["base"]) if "rows" in own[0] else measured.get(label or "")
        rows = [
            {
                "label": candidate.label,
                "estimator": candidate.name.rpartition(":")[2] or candidate.name,
                "options": candidate.options,
                "given_values": candidate.given_values,
                **with_ratio(measured[candidate.label].row(arguments.budget), measured[candidate.label], base),
            }
            for candidate in each.listed
        ]
        frontier = on_frontier(rows)
        made.append(
            {
                "name": each.name,
                "words": each.words,
                "axes": {name: facts.get(name) if value is None else value for name, value in each.axes.items()},
                "target": facts["target"],
                "base": label,
                **{name: facts[name] for name in ("J", "grad_norm", "expected_length")},
                "budget": arguments.budget,
                "rows": [row | {"frontier": row["label"] in frontier} for row in rows],
                "best": best_by_budget(rows, arguments.budget),
                "recommendation": recommendation(rows, arguments.budget),
            }
        )
    several = [name for name in AXES if len(getattr(arguments, name)) > 1]
    sweep = AXES[several[0]] if len(several) == 1 else None
    return {
        "version": __version__,
        "seed": arguments.seed,
        "budget": arguments.budget,
        "sweep": sweep,
        "settings": made,
    }
