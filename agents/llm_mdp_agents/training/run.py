"""A run from beginning to end: `train` with progress, evaluations, checkpoints, a report; `resume` goes on as if
nothing had happened."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llm_mdp.estimators.algorithms import Estimator
from llm_mdp.files import write_text
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.lm.engines import make_engine
from llm_mdp_agents.models import scored
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy, device_of, find_agent, find_task, plain
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.evaluation import samples
from llm_mdp_agents.training.parallel import parallel_from_environment
from llm_mdp_agents.training.records import CONFIG, Records, check_loggers, load_config, load_metrics
from llm_mdp_agents.training.run_report import write_report
from llm_mdp_agents.training.trainer import TrainConfig, Trainer
from llm_mdp_agents.training.warm_start import batches_of, warm_start
from llm_mdp_envs.task import Task
from llm_mdp_envs.text import require
from llm_mdp_envs.token_env import close_task

SHOWN = {
    "reward": "reward",
    "eval/reward": "eval",
    "kl": "kl",
    "entropy": "entropy",
    "length": "length",
    "gradient_norm": "gradient",
    "groups_with_signal": "signal",
    "signal_to_noise": "snr",
    "loss": "loss",
}
"""What the progress line says of the latest batch, the most important first, and its words for it."""
BAR = 20
"""Its width in the progress line."""
GIVEN = " (given)"
"""Ends the name of an object that a Python program gave; a config cannot hold it."""


@dataclass(frozen=True)
class Setup:
    """All choices of a run, as they stand in its config.json."""

    agent: Any
    """A name, FILE.py:CLASS, an agent's Config, or an estimator."""
    env: Any
    """An id, or a task."""
    env_arguments: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    warm_start: int | None = None
    """Supervised batches on the task's own answers before training; None: 200 for a small transformer from scratch, if
    it can."""
    loggers: tuple[str, ...] = ("tensorboard",)
    shard: bool = False
    """Under torchrun: shard the weights (FSDP2) instead of replicating them."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "agent": self._agent(),
            "env": {"id": self.env if isinstance(self.env, str) else _given(self.env), "arguments": self.env_arguments},
            "model": asdict(self.model),
            "train": asdict(self.train),
            "run": {"warm_start": self.warm_start, "loggers": list(self.loggers), "shard": self.shard},
        }

    def _agent(self) -> dict[str, Any]:
        if isinstance(self.agent, str) and ":" in self.agent:
            place, _, attribute = self.agent.rpartition(":")
            return {"name": f"{Path(place).resolve() if place.endswith('.py') else place}:{attribute}"}
        found = find_agent(self.agent)
        if not isinstance(found, type):
            return {"name": _given(found), **plain(found)}
        return {"name": found.name, **plain(found.Config() if isinstance(self.agent, str) else self.agent)}


def _given(thing: Any) -> str:
    return type(thing).__name__ + GIVEN


def read_setup(document: dict[str, Any]) -> Setup:
    """The choices of a config.json.

    Raises:
        ValueError: naming what this version does not know, or what a config cannot hold.
    """
    try:
        options = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document["agent"].items()
        }
        name, env, run = options.pop("name"), document["env"], document["run"]
        for what, said in (("agent", name), ("env", env["id"]), ("model", document["model"]["model"])):
            if said.endswith(GIVEN):
                raise ValueError(
                    f"the {what} of the run is {said}, an object of a Python program, which a config cannot hold; only "
                    f"runs that are "
                    "started with names (or FILE.py:CLASS) can be read back."
                )
        return Setup(
            name if ":" in name else find_agent(name).Config(**options),
            env["id"],
            env["arguments"],
            ModelConfig(**document["model"]),
            TrainConfig(**document["train"]),
            run["warm_start"],
            tuple(run["loggers"]),
            run["shard"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the config does not fit this version ({error}); write it anew with `llm-mdp train`."
        ) from error


def setup_of(folder: Path) -> Setup:
    """The choices of the run in a folder.

    Raises:
        ValueError: if there is no run.
    """
    document = load_config(folder)
    if not document:
        there = (
            sorted(path.parent.name for path in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
        )
        hint = f"{folder.parent} has {', '.join(there)}" if there else "start one with `llm-mdp train`"
        raise ValueError(f"{folder} holds no run; {hint}.")
    return read_setup(document)


@dataclass(frozen=True)
class Run:
    """What `train` gives back."""

    agent: Agent
    policy: Policy
    task: Task
    metrics: list[dict[str, Any]]
    """One dictionary a step, evaluations included."""
    folder: Path | None

    def __getitem__(self, name: str) -> float:
        """The latest value of a metric.

        Raises:
            KeyError: naming the metrics that there are.
        """
        for each in reversed(self.metrics):
            if name in each:
                return each[name]
        raise KeyError(
            f"the run has no metric {name!r}; it has "
            f"{', '.join(dict.fromkeys(key for each in self.metrics for key in each))}."
        )


def train(
    agent: str | AgentConfig | Estimator,
    env: str | Task,
    policy: Policy | ModelConfig | str = "auto",
    *,
    folder: Path | str | Callable[[], Path] | None = None,
    env_arguments: dict[str, Any] | None = None,
    warm_start: int | None = None,
    loggers: tuple[str, ...] = (),
    shard: bool = False,
    progress: bool = True,
    config: TrainConfig | None = None,
    **options: Any,
) -> Run:
    """Train a policy with an agent on an environment.

        run = train("rloo", "llm_mdp/Tabular-v0", steps=100)
        run["eval/reward"]

    Args:
        agent: a name ("rloo"), options (`RLOO.Config(group_size=4)`), or any estimator of your own (an object, or
            "FILE.py:CLASS").
        env: an id, or a task.
        policy: a policy (trained in place), or which one to make, see `ModelConfig`.
        folder: where config, metrics, samples, checkpoints and the report go (no other run's), or what makes that
            folder once all choices are found to be possible; None: nothing is written.
        warm_start: see `Setup`.
        progress: show a line of figures on the terminal.
        config, options: see `TrainConfig`; options are its fields.

    Raises:
        ValueError: in words, before any work starts.
        trainer.NonFinite: see there.
    """
    model = (
        policy
        if isinstance(policy, ModelConfig)
        else ModelConfig(policy if isinstance(policy, str) else _given(policy))
    )
    setup = Setup(
        agent,
        env,
        env_arguments or {},
        model,
        replace(config or TrainConfig(), **_known(options)),
        warm_start,
        loggers,
        shard,
    )
    given = None if isinstance(policy, str | ModelConfig) else policy
    return _run(setup, given, folder, progress, resumed=None)


def resume(folder: Path | str, *, progress: bool = True, steps: int | None = None) -> Run:
    """Go on with a run from its newest checkpoint, or from the checkpoint that is named, as if nothing had happened.

    Args:
        folder: a run's folder, or one of its checkpoints.
        steps: a new number of steps in all.

    Raises:
        ValueError: if there is nothing to go on from; the sentence says what there is.
    """
    folder = Path(folder)
    place = folder if folder.name.startswith("step-") else folder / "checkpoints"
    home = folder.parent.parent if folder.name.startswith("step-") else folder
    setup = setup_of(home)
    if not (home / "checkpoints").is_dir():
        raise ValueError(
            f"{home} has no checkpoint, for the run ended before its first step; start it anew: "
            f"llm-mdp train --config {home / CONFIG}"
        )
    resumed = checkpoint.load(place)
    if steps is not None:
        setup = replace(setup, train=replace(setup.train, steps=steps))
    if setup.train.steps < resumed.step:
        raise ValueError(
            f"steps is {setup.train.steps}, but {resumed.path} is of step {resumed.step}; give more steps, or an "
            f"earlier checkpoint."
        )
    return _run(setup, None, home, progress, resumed)


def load_policy_of_run(
    run: Path | None, env: str | None, env_arguments: dict[str, Any], model: ModelConfig, seed: int
) -> tuple[Policy, Task]:
    """What a run trained and its environment, or a policy as it is made and an environment by its id.

    Raises:
        ValueError: if there is no such run, model or environment.
    """
    if run is None:
        assert env is not None
        task = find_task(env, env_arguments, model)
        return build_policy(model, task, seed), task
    setup = setup_of(run)
    trained = run / "model"
    if not trained.is_dir():
        raise ValueError(
            f"{trained} is not there: the run has not finished; `llm-mdp train --resume {run}` goes on with it."
        )
    table = trained / "table.safetensors"
    task = find_task(env or setup.env, env_arguments if env else setup.env_arguments | env_arguments, setup.model)
    if not table.exists():
        model = ModelConfig(
            str(trained), dtype=setup.model.dtype, device=setup.model.device, temperature=setup.model.temperature
        )
        return build_policy(model, task, seed), task
    from safetensors.torch import load_file

    policy, tensors = build_policy(setup.model, task, seed), load_file(table)
    if {name: each.shape for name, each in policy.state_dict().items()} != {
        name: each.shape for name, each in tensors.items()
    }:
        raise ValueError(
            f"{table} does not fit {type(task).__name__}; evaluate it on {setup.env}, or on one with the same tokens."
        )
    policy.load_state_dict(tensors)
    return policy, task


def _run(setup: Setup, given: Policy | None, place: Any, progress: bool, resumed: checkpoint.Checkpoint | None) -> Run:
    parallel = parallel_from_environment(setup.shard, device_of(setup.model.device) if given is None else "cpu")
    config, begun = setup.train, time.time()
    task: Any = find_task(setup.env, setup.env_arguments, setup.model)
    policy = given if given is not None else build_policy(setup.model, task, config.seed)
    task = scored(task, policy, config.seed, setup.model.scored_by)
    batches = batches_of(setup.warm_start, task, setup.model.model if given is None else None)
    found = find_agent(setup.agent)
    chosen = setup.agent if isinstance(found, type) else found
    agent = build_agent(chosen, policy, task, config.seed)
    check_loggers(setup.loggers)
    if place is not None:
        require("matplotlib", "train", "the report of a run")
    options = {"max_length": task.prompt_length + task.horizon + 1} if setup.model.engine == "vllm" else {}
    engine = make_engine(setup.model.engine, policy, **options)
    document = setup.document()
    folder = None if place is None or not parallel.main else Path(place() if callable(place) else place)
    metrics: list[dict[str, Any]] = (
        [] if resumed is None or folder is None else load_metrics(folder)[: resumed.step + 1]
    )
    if folder is not None and resumed is None and (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a run already; go on with it by resume, or choose another folder.")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        start = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "begun": begun}
        write_text(folder / CONFIG, json.dumps(document | start | load_config(folder) | document, indent=1) + "\n")
    records = Records(folder, loggers=setup.loggers) if folder else None
    with (
        records or nullcontext(),
        _line(progress and parallel.main, config.steps, batches if resumed is None else 0) as line,
    ):
        if resumed is None and batches:
            warm_start(policy, task, batches, config.seed, progress=lambda loss: line("warm start", {"loss": loss}))
            agent = build_agent(
                chosen, policy, task, config.seed
            )  # anew: reference and critic begin as copies of the policy
        trainer = Trainer(agent, task, policy, config, parallel, folder, engine)

        def keep_figures(figures: dict[str, float]) -> None:
            metrics.append({"step": trainer.number, **figures})
            if records:
                records.metrics(trainer.number, figures)

        def look() -> dict[str, float]:
            shown = parallel.on_whole_model(policy, lambda: samples(policy, task, 8, config.seed)) if place else []
            if records:
                records.samples(trainer.number, shown)
            return trainer.evaluate()

        def save() -> None:
            tensors, state = trainer.state() if place else ({}, {})  # every process has a part of it
            if folder:
                checkpoint.save(folder / "checkpoints", trainer.number, tensors, state, keep=config.keep)

        if resumed is None:
            line("preparing", {})
            trainer.prepare()
            keep_figures(look())
            save()
        else:
            trainer.restore(resumed.tensors, resumed.state)
            metrics[:] = [each for each in metrics if each["step"] <= trainer.number]
            if records and folder:
                records.resume(trainer.number)
                checkpoint.discard_after(folder / "checkpoints", trainer.number)
        while trainer.number < config.steps:
            figures = trainer.step()
            last = trainer.number == config.steps
            if last or trainer.number % config.eval_every == 0:
                figures |= look()
            keep_figures(figures)
            line("training", figures, step=trainer.number)
            if last or trainer.number % config.checkpoint_every == 0:
                save()
    if place:
        whole = parallel.whole_policy(policy)
        if folder:
            _save_model(whole, folder)
    if folder:
        write_report(folder)
    engine.close()
    close_task(task)
    return Run(agent, policy, task, metrics, folder)


def _save_model(policy: Policy, folder: Path) -> None:
    """Language models in Hugging Face's format, tables as tensors."""
    if hasattr(policy, "model"):
        from transformers.utils import logging

        from llm_mdp_agents.lm.loading import save_model

        logging.disable_progress_bar()
        save_model(policy, folder / "model")
    else:
        from safetensors.torch import save_file

        (folder / "model").mkdir(exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in policy.state_dict().items()},
            folder / "model" / "table.safetensors",
        )


@contextmanager
def _line(shown: bool, steps: int, batches: int) -> Iterator[Any]:
    """A progress bar with the latest figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    words, totals = TextColumn("{task.fields[figures]}"), {"warm start": batches, "training": steps}
    columns = (TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TimeRemainingColumn(), words)
    with Progress(*columns, console=console, transient=True, disable=not shown or not console.is_terminal) as bar:
        jobs, latest = {}, {}

        def update(stage: str, figures: dict[str, float], step: int | None = None) -> None:
            if stage not in jobs:  # a job of its own, whose remaining time is not guessed from another's speed
                for earlier in jobs.values():
                    bar.update(earlier, visible=False)
                latest.clear()
                jobs[stage] = bar.add_task(
                    stage, total=totals.get(stage), completed=max((step or 0) - 1, 0), figures=""
                )
            latest.update(figures)
            # The line's other columns: stage, bar, "10/200", "0:00:00", and a space after each.
            room = console.width - len(stage) - BAR - 2 * len(str(totals.get(stage))) - 1 - 8 - 4
            bar.update(jobs[stage], advance=1, figures=figures_within(room, latest))

        yield update


def figures_within(room: int, figures: dict[str, float]) -> str:
    """The figures of SHOWN in words, as many of them as fit into so many columns, from the first on."""
    said = ""
    for name, word in SHOWN.items():
        longer = f"{said}  {word} {figures[name]:.3g}".lstrip() if name in figures else said
        if len(longer) > room:
            break
        said = longer
    return said


def _known(options: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in options if name not in TrainConfig.__dataclass_fields__]
    if unknown:
        raise ValueError(f"train has no option {unknown[0]!r}; it has {', '.join(TrainConfig.__dataclass_fields__)}.")
    return options


def threads() -> None:
    """One thread unless the user says otherwise: small models only wait for one another."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
