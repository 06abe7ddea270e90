"""`llm-mdp variance`: how noisy every estimator is, and what a token of sampling buys, as a table, a page, JSON and
CSV. What is measured, and how it is cut into cells, is `llm_mdp.variance.study`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from llm_mdp.cli.options import (
    check_model_choice,
    check_no_run,
    check_writable,
    command_line,
    one_thread,
    say_written,
    write_json,
)
from llm_mdp.cli.options import env_arguments as read_arguments
from llm_mdp.cli.parsing import parse
from llm_mdp.files import write_text
from llm_mdp.own import UsageError
from llm_mdp.sampling.policies import PolicyKind
from llm_mdp.variance.forecast import forecast
from llm_mdp.variance.grid import Grid
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.setting import Rewards
from llm_mdp.variance.study import AXES, Plan, chosen, make_document, plan_of, setting_of_file, settings_of, swept
from llm_mdp.variance.sweep import run_cells
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.study import PROMPTS_AT_ONCE, Subject, measure_cell, setting_forecast, task_plan, telling

WRITTEN = ("report.html", "results.json", "results.csv")
"""Files of a measurement."""


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
    from llm_mdp.report.console import terminal
    from llm_mdp.report.terminal import progress_bar
    from llm_mdp.report.variance_page import render_variance_page
    from llm_mdp.report.variance_rows import write_csv
    from llm_mdp.report.variance_terminal import print_variance

    one_thread()
    arguments = parse(VarianceArguments, argv, "variance")
    check(arguments)
    plans = plan(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        check_writable(arguments.out / name)
    cells = [cell for each in plans for cell in each.cells]
    folder, aside = arguments.out / "cells", terminal(stderr=True)

    def say(words: str) -> None:
        aside.print(words, soft_wrap=True)

    if "task" in cells[0]:
        # One cell, in this process, so that it can say how far it is.
        prompts = cells[0]["prompts"]

        def foretell(pilot: Measurement, seconds: float) -> None:
            say(f"{pilot.samples} prompts in: {forecast(pilot, arguments.budget, seconds).words(prompts, '--prompts')}")

        with (
            progress_bar(aside, -(-prompts // PROMPTS_AT_ONCE)) as done,
            telling(lambda number: done(f"{number} prompts"), foretell),
        ):
            results = run_cells(measure_cell, cells, folder=folder)
    else:
        for each in plans:
            if (found := setting_forecast(each, arguments.budget)) is not None:
                say(f"{each.name}: {found.words(arguments.estimates, '--estimates')}")
        with progress_bar(aside, len(cells)) as done:
            workers = {"jobs": arguments.jobs, "backend": arguments.backend}
            results = run_cells(measure_cell, cells, folder=folder, **workers, tell=done)
    sweep = swept(_axes(arguments))
    document = make_document(plans, results, arguments.budget, arguments.seed, sweep) | {"command": command_line()}
    write_json(arguments.out / "results.json", document)
    write_csv(document, arguments.out / "results.csv")
    write_text(arguments.out / "report.html", render_variance_page(document))
    console = terminal()
    print_variance(document, console)
    say_written(console, *(arguments.out / name for name in WRITTEN))
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
    check_no_run(arguments.env, "environment")
    for name in arguments.estimators:
        check_no_run(name, "estimator")
    if task and arguments.model.engine != "hf":
        raise UsageError(
            f"--engine is {arguments.model.engine}, but the model itself draws what is measured; leave it out."
        )
    if not task:
        for name, given, default in (
            ("env-args", arguments.env_args, ()),
            ("model", arguments.model, ModelConfig()),
            ("warm-start", arguments.warm_start, None),
        ):
            if given != default:
                raise UsageError(
                    f"--{name} and other options of a model say something about a task; name one with --env."
                )
    if task and len(arguments.prompts) > 1:
        raise UsageError("--prompts is one number with --env: how many prompts are drawn.")
    if task and arguments.prompts and arguments.prompts[0] < 2:
        raise UsageError(f"--prompts is {arguments.prompts[0]}; a spread over prompts needs at least 2.")


def plan(arguments: VarianceArguments) -> list[Plan]:
    """What is to be measured: a task; or setting by setting."""
    names, grid, seed = arguments.estimators, arguments.grid, arguments.seed
    if arguments.env is not None or arguments.run is not None:
        given = read_arguments(arguments.env_args)
        subject = Subject(arguments.env, given, arguments.model, arguments.run, arguments.warm_start)
        return [task_plan(subject, names, grid, arguments.prompts[0] if arguments.prompts else None, seed)]
    if arguments.instance is not None:
        settings = [setting_of_file(arguments.instance)]
    else:
        settings = settings_of(_axes(arguments), seed)
    return [plan_of(each, chosen(names, grid, each.horizon), arguments.estimates, seed) for each in settings]


def _axes(arguments: VarianceArguments) -> dict[str, tuple[Any, ...]]:
    """The axes that are given, with their values."""
    return {name: getattr(arguments, name) for name in AXES if getattr(arguments, name)}
