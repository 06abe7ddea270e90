"""`llm-mdp train`: what a person types, made into a call of `training.run`."""

import json
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from llm_mdp.cli.options import check_no_run, env_arguments, one_thread
from llm_mdp.cli.parsing import TRUTHS, parse
from llm_mdp.cli.words import examples, width
from llm_mdp.estimators.catalogue import CATALOGUE, describe
from llm_mdp.estimators.entry import Given
from llm_mdp.own import UsageError, absolute, visible
from llm_mdp.report.console import terminal
from llm_mdp_agents.resolve import ModelConfig, agent_class, is_plain, registered
from llm_mdp_agents.training.hints import without_signal
from llm_mdp_agents.training.loggers import default_loggers
from llm_mdp_agents.training.signals import Stopped
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import NonFinite
from llm_mdp_agents.zoo import AGENTS

C = TypeVar("C")
REWARDED = "llm_mdp_envs.adapters.named:RewardFunctions"
"""The environment of --reward."""


@dataclass(frozen=True)
class NoOptions:
    """An estimator of your own has the options that it was made with."""


@dataclass(frozen=True)
class TrainArguments(Generic[C]):
    """Train a policy on an environment.

    Everything has a default: `llm-mdp train trepo llm_mdp/Arithmetic-v0` trains a small transformer from scratch. What
    a run writes goes to its folder: config, metrics, samples of responses, checkpoints, the model, and report.html.
    """

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Id of the environment; `llm-mdp envs` lists them."""
    agent: C
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as digits=1 reward=outcome."""
    warm_start: int | None = None
    """Supervised batches on the task's own answers first; by default 200 for a small transformer from scratch, where
    there are answers."""
    loggers: tuple[str, ...] = field(default_factory=default_loggers)
    """tensorboard (the default where it is installed), wandb, trackio, or none."""
    shard: bool = False
    """Under torchrun: shard the weights (FSDP2) instead of replicating them."""
    runs: Path = Path("runs")
    """Where run folders are made."""
    name: str | None = None
    """Of the run's folder; by default agent, environment and a number."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress, only what came out of it."""


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run exactly where its newest checkpoint left it."""

    resume: Path
    """A run's folder, or one of its checkpoints."""
    steps: int | None = None
    """A new number of steps in all."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress, only what came out of it."""


def train(argv: Sequence[str]) -> int:
    """Run `llm-mdp train`."""
    from llm_mdp_agents.training.records import new_run_folder
    from llm_mdp_agents.training.run import resume
    from llm_mdp_agents.training.run import train as run_training

    one_thread()
    if any(each.startswith("--resume") for each in argv):
        words = in_our_words(argv, ResumeArguments)
        check_resume(words)
        arguments = parse(ResumeArguments, words, "train")
        return _finished(lambda: resume(arguments.resume, steps=arguments.steps, progress=not arguments.quiet))
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, agent, arguments = read_train(argv)
    return _finished(
        lambda: run_training(
            agent, arguments.env, arguments.model, env_arguments=env_arguments(arguments.env_args),
            warm_start=arguments.warm_start, loggers=arguments.loggers, shard=arguments.shard, config=arguments.train,
            progress=not arguments.quiet,
            folder=lambda: new_run_folder(arguments.runs, arguments.name, name.rpartition(":")[2], _short(arguments)),
        )
    )  # fmt: skip


def check_resume(words: Sequence[str]) -> None:
    """Raise UsageError for what `train` knows and a run that goes on cannot be given; what nobody knows is left to the
    parser, which offers what is near."""
    kinds = (TrainArguments, ModelConfig, TrainConfig, *(agent.Config for agent in AGENTS.values()))
    own, others = flags_of(ResumeArguments), flags_of(*kinds)
    value = ""
    """The option before, which may have this word as its value."""
    for word in words:
        name = word.partition("=")[0].lstrip("-").replace("_", "-")
        if value and not word.startswith("--") and (value not in ("quiet", "q") or word in TRUTHS):
            value = ""
            continue
        value = name if word.startswith("-") and "=" not in word else ""
        if (ALIASES.get(name, name) in others and name not in own) or not word.startswith("-"):
            raise UsageError(
                f"{word} cannot be given with --resume: a run that goes on keeps its choices, all but --steps and "
                f"--quiet; with other choices it is another run: llm-mdp train --config runs/NAME/config.json [options]"
            )


def read_train(argv: Sequence[str]) -> tuple[str, Any, TrainArguments]:
    """The agent's name, the agent (its options, or FILE.py:CLASS again) and everything else that a command line
    chooses.

    Raises:
        ValueError: if there is no such agent, or the config cannot be read.
    """
    from llm_mdp_agents.training.run_config import read_run_config

    default: Any = None
    argv, rewards = taken(list(argv), "--reward")
    if not argv:
        raise UsageError(
            "--reward stands behind agent and data set: llm-mdp train AGENT ROWS --reward FILE.py:FUNCTION"
        )
    if argv[0].startswith("--config="):
        argv = ["--config", argv[0].partition("=")[2], *argv[1:]]
    if argv[0] != "--config" and any(word.partition("=")[0] == "--config" for word in argv):
        raise UsageError("--config stands first: llm-mdp train --config runs/NAME/config.json [options]")
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
    elif argv[0].startswith("-"):
        raise UsageError(
            f"the agent is missing before {argv[0]}: llm-mdp train AGENT ENV [options]; `llm-mdp train --help` lists "
            f"the agents."
        )
    else:
        name, argv = argv[0], argv[1:]
        for place, word in (("agent", name), ("environment", argv[0] if argv else "")):
            check_no_run(word, place, "--resume")
        agent = NoOptions() if is_plain(name) else agent_class(name).Config()
    argv = in_our_words(argv, TrainArguments, type(agent), ModelConfig, TrainConfig)
    arguments = parse(
        TrainArguments[type(agent)], argv, "train", default=default, called=f"train {name}",
        more=names_of_others(type(agent)),
    )  # fmt: skip
    if rewards:
        arguments = with_rewards(arguments, rewards)
    return name, name if isinstance(agent, NoOptions) else arguments.agent, arguments


ALIASES = {
    "num-generations": "group-size", "beta": "kl", "epsilon": "clip-low", "epsilon-high": "clip-high",
    "num-iterations": "epochs", "max-steps": "steps", "eval-steps": "eval-every", "save-steps": "checkpoint-every",
    "save-total-limit": "keep", "lr-scheduler-type": "schedule", "lora-r": "lora-rank",
    "attn-implementation": "attention", "model-name-or-path": "model", "report-to": "loggers",
    "lr": "learning-rate",
}  # fmt: skip
"""Names that TRL, transformers and others have for what means exactly the same here. Where an agent has an option of
such a name itself (β of DPO), it is that."""


def flags_of(*kinds: type) -> set[str]:
    """The flags of these dataclasses."""
    return {each.name.replace("_", "-") for kind in kinds for each in fields(kind)}


def in_our_words(argv: Sequence[str], *kinds: type) -> list[str]:
    """A command line with the names of others replaced by ours, where these dataclasses have them."""
    known, words = flags_of(*kinds), []
    for word in argv:
        name, equals, value = word.partition("=")
        name = name[2:].replace("_", "-") if name.startswith("--") else ""
        if name not in known and ALIASES.get(name) in known:
            word = f"--{ALIASES[name]}{equals}{value}"
        words.append(word)
    return words


def names_of_others(agent: type) -> str:
    """What the help says about `ALIASES`."""
    known = flags_of(TrainArguments, agent, ModelConfig, TrainConfig)
    pairs = [f"--{alias} is --{own}" for alias, own in ALIASES.items() if own in known and alias not in known]
    return f"Names of TRL are understood: {', '.join(pairs)}."


def taken(argv: list[str], flag: str) -> tuple[list[str], list[str]]:
    """A command line without a flag that may stand there several times, and the flag's values.

    Raises:
        UsageError: if a flag has no value.
    """
    rest, values = [], []
    words = iter(argv)
    for word in words:
        if word == flag or word.startswith(f"{flag}="):
            value = next(words, "") if word == flag else word.removeprefix(f"{flag}=")
            if not value or value.startswith("-"):
                raise UsageError(f"{flag} needs a function: FILE.py:FUNCTION, or FILE.py:FUNCTION=WEIGHT.")
            values.append(value)
        else:
            rest.append(word)
    return rest, values


def with_rewards(arguments: TrainArguments, rewards: list[str]) -> TrainArguments:
    """The same on the rows of a data set, which stands where the environment would, with these functions as rewards.

    Raises:
        UsageError: if that is an environment.
    """
    rows, given = arguments.env, env_arguments(arguments.env_args)
    if rows == REWARDED:  # of a config, which gets other rewards
        rows = given.pop("rows", "")
    elif ".py:" in rows or rows in registered():
        raise UsageError(
            f"--reward belongs to a data set, but {rows} is an environment, which has a reward; give a file of rows "
            f"with a column `prompt` in its place: llm-mdp train grpo rows.jsonl --reward FILE.py:FUNCTION"
        )
    chosen = given | {"rows": absolute(rows), "rewards": [absolute(each) for each in rewards]}
    return replace(arguments, env=REWARDED, env_args=tuple(f"{name}={value!r}" for name, value in chosen.items()))


def _short(arguments: TrainArguments) -> str:
    """What a run's folder is called after its environment."""
    if arguments.env != REWARDED:
        return arguments.env
    return Path(str(env_arguments(arguments.env_args)["rows"])).stem


USAGE = """usage: llm-mdp train AGENT ENV [options]
       llm-mdp train AGENT ROWS --reward FILE.py:FUNCTION[=WEIGHT] … [options]
       llm-mdp train --config runs/NAME/config.json [options]
       llm-mdp train --resume runs/NAME [--steps N]

{agents}

`llm-mdp train AGENT --help` shows all options, `llm-mdp agents` the papers,
`llm-mdp envs` the environments.

{examples}"""


def usage() -> str:
    """What `llm-mdp train --help` says, on 80 columns."""
    agents = f"AGENT is one of {', '.join(AGENTS)}; or an agent or estimator of your own, FILE.py:CLASS."
    return USAGE.format(agents=textwrap.fill(agents, width(), break_on_hyphens=False), examples=examples("train"))


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(
            f"{path} is a folder; give the config.json of a run." if path.is_dir()
            else f"there is no file {path}; give the config.json of a run."
        )  # fmt: skip
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); give the config.json of a run.") from error


def _finished(job: Any) -> int:
    """Run a training and say what came out of it."""
    from rich.text import Text

    try:
        run = job()
    except NonFinite as error:
        print(f"llm-mdp: {visible(str(error))}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        if words := visible(str(stopped)):
            print(f"llm-mdp: {words}", file=sys.stderr)
        return stopped.status
    if run.folder is None:  # another process of the group writes and speaks
        return 0
    evaluated = [each for each in run.metrics if "eval/reward" in each]
    first, last = evaluated[0], evaluated[-1]
    console = terminal()
    console.print(
        Text.assemble(
            f"reward {first['eval/reward']:.3f} → ",
            (f"{last['eval/reward']:.3f}", "bold"),
            f", greedy {first['eval/greedy_reward']:.3f} → {last['eval/greedy_reward']:.3f}, in {last['step']} steps "
            f"and {sum(each.get('tokens', 0) for each in run.metrics):,.0f} tokens",
        )
    )
    if hint := without_signal(run.metrics):
        console.print(hint)
    name = run.agent.named or run.agent.name
    if name in CATALOGUE and (differs := describe(run.agent.estimator, name, Given(run.task.horizon))):
        console.print(f'options other than those of certify("{name}"): {differs}', style="dim")
    console.print(f"report: {run.folder}/report.html", soft_wrap=True)
    way_on = f"llm-mdp train --resume {shlex.quote(str(run.folder))} --steps {2 * last['step']}"
    console.print(f"go on:  {way_on}", soft_wrap=True)
    return 0
