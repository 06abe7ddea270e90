"""`llm-mdp train`: what a person types, made into a call of `training.run`."""

import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from llm_mdp.cli.options import FLAGS, env_arguments, one_thread
from llm_mdp.estimators.catalogue import CATALOGUE, describe
from llm_mdp.estimators.entry import Given
from llm_mdp.own import UsageError
from llm_mdp_agents.resolve import ModelConfig, agent_class, is_plain
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import NonFinite
from llm_mdp_agents.zoo import AGENTS

C = TypeVar("C")


@dataclass(frozen=True)
class NoOptions:
    """An estimator of your own has the options that it was made with."""


@dataclass(frozen=True)
class TrainArguments(Generic[C]):
    """Train a policy on an environment.

    Everything has a default: `llm-mdp train trepo llm_mdp/Arithmetic-v0` trains a small transformer from scratch. What
    a run writes goes to its folder: config, metrics, samples of responses, checkpoints, the model, and report.html.
    """

    env: Annotated[str, tyro.conf.Positional]
    """Id of the environment; `llm-mdp envs` lists them."""
    agent: C
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    warm_start: int | None = None
    """Supervised batches on the task's own answers first; by default 200 for a small transformer from scratch, where
    there are answers."""
    loggers: tuple[str, ...] = field(default_factory=lambda: default_loggers())
    """tensorboard (the default where it is installed), wandb, trackio, or none."""
    shard: bool = False
    """Under torchrun: shard the weights (FSDP2) instead of replicating them."""
    runs: Path = Path("runs")
    """Where run folders are made."""
    name: str | None = None
    """Of the run's folder; by default agent, environment and a number."""


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run exactly where its newest checkpoint left it."""

    resume: Path
    """A run's folder, or one of its checkpoints."""
    steps: int | None = None
    """A new number of steps in all."""


def train(argv: Sequence[str]) -> int:
    """Run `llm-mdp train`."""
    from llm_mdp_agents.training.records import new_run_folder
    from llm_mdp_agents.training.run import resume
    from llm_mdp_agents.training.run import train as run_training

    one_thread()
    if any(each.startswith("--resume") for each in argv):
        arguments = tyro.cli(ResumeArguments, args=argv, prog="llm-mdp train", config=FLAGS)
        return _finished(lambda: resume(arguments.resume, steps=arguments.steps))
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(agents=", ".join(AGENTS)), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, agent, arguments = read_train(argv)
    return _finished(
        lambda: run_training(
            agent, arguments.env, arguments.model, env_arguments=env_arguments(arguments.env_args),
            warm_start=arguments.warm_start, loggers=arguments.loggers, shard=arguments.shard, config=arguments.train,
            folder=lambda: new_run_folder(arguments.runs, arguments.name, name.rpartition(":")[2], arguments.env),
        )
    )  # fmt: skip


def read_train(argv: Sequence[str]) -> tuple[str, Any, TrainArguments]:
    """The agent's name, the agent (its options, or FILE.py:CLASS again) and everything else that a command line
    chooses.

    Raises:
        ValueError: if there is no such agent, or the config cannot be read.
    """
    from llm_mdp_agents.training.run_config import read_run_config

    default: Any = None
    argv = list(argv)
    if argv[0] == "--config":
        if len(argv) < 2:
            raise UsageError("--config needs a file: the config.json of a run.")
        config, argv = read_run_config(_read_json(Path(argv[1]))), argv[2:]
        own = isinstance(config.agent, str)
        name, agent = (config.agent, NoOptions()) if own else (agent_class(config.agent).name, config.agent)
        words = tuple(f"{key}={value!r}" for key, value in config.env_arguments.items())
        default = TrainArguments(
            config.env, agent, config.model, config.train, words, config.warm_start, config.loggers, config.shard
        )
        if not argv or argv[0].startswith("-"):
            argv = [config.env, *argv]
    else:
        name, argv = argv[0], argv[1:]
        agent = NoOptions() if is_plain(name) else agent_class(name).Config()
    arguments = tyro.cli(
        TrainArguments[type(agent)], args=argv, prog=f"llm-mdp train {name}", config=FLAGS, default=default,
        description=inspect.getdoc(TrainArguments),
    )  # fmt: skip
    return name, name if isinstance(agent, NoOptions) else arguments.agent, arguments


def default_loggers() -> tuple[str, ...]:
    """TensorBoard, where it is installed."""
    return ("tensorboard",) if find_spec("tensorboard") else ()


USAGE = """usage: llm-mdp train AGENT ENV [options]
       llm-mdp train --config runs/NAME/config.json [options]
       llm-mdp train --resume runs/NAME [--steps N]

AGENT is one of: {agents};
or an estimator of your own, FILE.py:CLASS. `llm-mdp train AGENT --help` shows all options, `llm-mdp agents` the papers,
`llm-mdp envs` the environments. Example: llm-mdp train trepo llm_mdp/Arithmetic-v0"""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); give the config.json of a run.") from error


def _finished(job: Any) -> int:
    """Run a training and say what came out of it."""
    from rich.console import Console

    try:
        run = job()
    except NonFinite as error:
        print(f"llm-mdp: {error}", file=sys.stderr)
        return 1
    if run.folder is None:  # another process of the group writes and speaks
        return 0
    evaluated = [each for each in run.metrics if "eval/reward" in each]
    first, last = evaluated[0], evaluated[-1]
    console = Console(highlight=False)
    console.print(
        f"reward {first['eval/reward']:.3f} → [bold]{last['eval/reward']:.3f}[/], greedy "
        f"{first['eval/greedy_reward']:.3f} → "
        f"{last['eval/greedy_reward']:.3f}, in {last['step']} steps and "
        f"{sum(each.get('tokens', 0) for each in run.metrics):,.0f} tokens"
    )
    name = run.agent.named or run.agent.name
    if name in CATALOGUE and (differs := describe(run.agent.estimator, name, Given(run.task.horizon))):
        console.print(f"options that are not those of the catalogue's {name}: {differs}", style="dim")
    console.print(f"report: {run.folder}/report.html", soft_wrap=True)
    console.print(f"go on:  llm-mdp train --resume {run.folder} --steps {2 * last['step']}", soft_wrap=True)
    return 0
