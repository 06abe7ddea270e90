"""A run from beginning to end: `train` with progress, evaluations, checkpoints, a report; `resume` goes on as if nothing had happened."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llm_mdp.estimators import Estimator
from llm_mdp.policies import Policy
from llm_mdp_agents import checkpoint
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.choices import ModelConfig, build_agent, build_policy, find_agent, find_task, plain
from llm_mdp_agents.evaluation import samples
from llm_mdp_agents.parallel import parallel_from_environment
from llm_mdp_agents.records import Records, load_config, load_metrics
from llm_mdp_agents.run_report import write_report
from llm_mdp_agents.trainer import TrainConfig, Trainer
from llm_mdp_agents.warm_start import has_answers, warm_start
from llm_mdp_envs.task import Task
from llm_mdp_envs.token_env import close_task

SHOWN = ("reward", "eval/reward", "kl", "entropy", "length", "gradient_norm", "groups_with_signal", "signal_to_noise")
"""What the progress line says of the latest batch."""
WARM_START = 200
"""Supervised batches for a small transformer from scratch, if nothing else is said."""


@dataclass(frozen=True)
class Setup:
    """All choices of a run, as they stand in its config.json."""

    agent: Any
    """A name, an agent's Config, or an estimator."""
    env: Any
    """An id, or a task."""
    env_arguments: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    warm_start: int | None = None
    """Supervised batches on the task's own answers before training; None: 200 for a small transformer from scratch, if it can."""
    loggers: tuple[str, ...] = ("tensorboard",)
    shard: bool = False
    """Under torchrun: shard the weights (FSDP2) instead of replicating them."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        found = find_agent(self.agent)
        options = plain(self.agent if not isinstance(self.agent, str) else found.Config()) if isinstance(found, type) else plain(found)
        return {
            "agent": {"name": found.name if isinstance(found, type) else type(found).__name__, **options},
            "env": {"id": self.env if isinstance(self.env, str) else type(self.env).__name__, "arguments": self.env_arguments},
            "model": asdict(self.model),
            "train": asdict(self.train),
            "run": {"warm_start": self.warm_start, "loggers": list(self.loggers), "shard": self.shard},
        }


def read_setup(document: dict[str, Any]) -> Setup:
    """The choices of a config.json.

    Raises:
        ValueError: naming what this version does not know.
    """
    try:
        agent = dict(document["agent"])
        kind = find_agent(agent.pop("name"))
        assert isinstance(kind, type)
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in agent.items()}
        run = document["run"]
        return Setup(
            kind.Config(**options), document["env"]["id"], document["env"]["arguments"], ModelConfig(**document["model"]),
            TrainConfig(**document["train"]), run["warm_start"], tuple(run["loggers"]), run["shard"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"the config does not fit this version ({error}); write it anew with `llm-mdp train`.") from error


def setup_of(folder: Path) -> Setup:
    """The choices of the run in a folder.

    Raises:
        ValueError: if there is no run.
    """
    document = load_config(folder)
    if not document:
        there = sorted(path.parent.name for path in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
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
        """The latest value of a metric."""
        return next(each[name] for each in reversed(self.metrics) if name in each)


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
        agent: a name ("rloo"), options (`RLOO.Config(group_size=4)`), or any estimator of your own.
        env: an id, or a task.
        policy: a policy (trained in place), or which one to make, see `ModelConfig`.
        folder: where config, metrics, samples, checkpoints and the report go, or what makes that folder once all choices are found
            to be possible; None: nothing is written.
        warm_start: see `Setup`.
        progress: show a line of figures on the terminal.
        config, options: see `TrainConfig`; options are its fields.

    Raises:
        ValueError: in words, before any work starts.
        trainer.NonFinite: see there.
    """
    model = policy if isinstance(policy, ModelConfig) else ModelConfig(policy if isinstance(policy, str) else "given")
    setup = Setup(
        agent, env, env_arguments or {}, model, replace(config or TrainConfig(), **_known(options)), warm_start, loggers, shard
    )  # fmt: skip
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
    if steps is not None:
        setup = replace(setup, train=replace(setup.train, steps=steps))
    return _run(setup, None, home, progress, resumed=checkpoint.load(place))


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
        raise ValueError(f"{trained} is not there: the run has not finished; `llm-mdp train --resume {run}` goes on with it.")
    table = trained / "table.safetensors"
    task = find_task(env or setup.env, env_arguments or setup.env_arguments, setup.model)
    if not table.exists():
        return build_policy(replace(setup.model, model=str(trained), lora_rank=0), task, seed), task
    from safetensors.torch import load_file

    policy = build_policy(setup.model, task, seed)
    policy.load_state_dict(load_file(table))
    return policy, task


def _run(setup: Setup, given: Policy | None, place: Any, progress: bool, resumed: checkpoint.Checkpoint | None) -> Run:
    parallel = parallel_from_environment(setup.shard)
    config, begun = setup.train, time.time()
    task = find_task(setup.env, setup.env_arguments, setup.model)
    policy = given if given is not None else build_policy(setup.model, task, config.seed)
    batches = _warm_start_batches(setup, task, given)
    find_agent(setup.agent)
    folder = None if place is None or not parallel.main else Path(place() if callable(place) else place)
    metrics: list[dict[str, Any]] = [] if resumed is None or folder is None else load_metrics(folder)[: resumed.step + 1]
    if folder is not None and resumed is None:
        folder.mkdir(parents=True, exist_ok=True)
        document = setup.document() | {"command": " ".join(sys.argv), "begun": begun}
        (folder / "config.json").write_text(json.dumps(document, indent=1) + "\n")
    records = Records(folder, loggers=setup.loggers) if folder else None
    with records or nullcontext(), _line(progress and parallel.main, config.steps, batches if resumed is None else 0) as line:
        if resumed is None and batches:
            warm_start(policy, task, batches, config.seed, progress=lambda loss: line("warm start", {"loss": loss}))
        agent = build_agent(setup.agent, policy, task, config.seed)
        trainer = Trainer(agent, task, policy, config, parallel, folder if parallel.main else None)

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
        parallel.on_whole_model(policy, lambda: _save_model(policy, folder) if folder else None)
    if folder:
        write_report(folder)
    close_task(task)
    return Run(agent, policy, task, metrics, folder)


def _warm_start_batches(setup: Setup, task: Task, given: Policy | None) -> int:
    from_scratch = given is None and not hasattr(task, "mdp") and setup.model.model in ("auto", "small")
    if setup.warm_start is None:
        return WARM_START if from_scratch and has_answers(task) else 0
    if setup.warm_start < 0:
        raise ValueError(f"warm_start is {setup.warm_start}; it is a number of batches, at least 0.")
    if setup.warm_start and not has_answers(task):
        raise ValueError(f"{type(task).__name__} has no answers to learn from; leave --warm-start out, or begin with a trained --model.")
    return setup.warm_start


def _save_model(policy: Policy, folder: Path) -> None:
    """Language models in Hugging Face's format, tables as tensors."""
    if hasattr(policy, "model"):
        from transformers.utils import logging

        from llm_mdp_agents.loading import save_model

        logging.disable_progress_bar()
        save_model(policy, folder / "model")
    else:
        from safetensors.torch import save_file

        (folder / "model").mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in policy.state_dict().items()}, folder / "model" / "table.safetensors")


@contextmanager
def _line(shown: bool, steps: int, batches: int) -> Iterator[Any]:
    """A progress bar with the latest figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    words = TextColumn("{task.fields[figures]}")
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), words)
    with Progress(*columns, console=console, transient=True, disable=not shown or not console.is_terminal) as bar:
        job, done, latest = bar.add_task("", total=batches or None, figures=""), 0, {}

        def update(stage: str, figures: dict[str, float], step: int = 0) -> None:
            nonlocal done
            done += 1
            latest.update({name: value for name, value in figures.items() if name in (*SHOWN, "loss")})
            chosen = SHOWN if stage == "training" else ("loss",)
            total = {"warm start": batches, "training": steps}.get(stage)
            said = "  ".join(f"{name} {latest[name]:.3g}" for name in chosen if name in latest)
            bar.update(job, description=stage, total=total, completed=step or done, figures=said)

        yield update


def _known(options: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in options if name not in TrainConfig.__dataclass_fields__]
    if unknown:
        raise ValueError(f"train has no option {unknown[0]!r}; it has {', '.join(TrainConfig.__dataclass_fields__)}.")
    return options


def threads() -> None:
    """One thread unless the user says otherwise: small models only wait for one another."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
