"""All choices of a run, as they stand in its config.json; a checkpoint holds them, too, so that none is taken for
another run's."""

import hashlib
import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_mdp.estimators.entry import Entry
from llm_mdp.files import write_text
from llm_mdp.own import UsageError, absolute, is_own, name_of
from llm_mdp_agents.base import AgentConfig
from llm_mdp_agents.resolve import ModelConfig, agent_class, find_agent, is_named, is_plain, plain
from llm_mdp_agents.training.checkpoint import Checkpoint, instead
from llm_mdp_agents.training.loggers import default_loggers
from llm_mdp_agents.training.records import CONFIG, load_config
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.zoo import AGENTS

GIVEN = " (given)"
"""Ends the name of an object that a Python program gave; a config cannot hold it."""
CHOICES = ("agent", "env", "model", "train", "run")
"""The parts of a config.json that decide what a run does; beside them stand the command, its time and a checksum."""


@dataclass(frozen=True)
class RunConfig:
    """What was chosen, by a command line, a program or a config.json."""

    agent: Any
    """A name, FILE.py:CLASS, an agent's class or Config, or an estimator."""
    env: Any
    """An id, or a task."""
    env_arguments: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    warm_start: int | None = None
    """Supervised batches on the task's own answers before training; None: 200 for a small transformer from scratch, if
    it can."""
    loggers: tuple[str, ...] = field(default_factory=default_loggers)
    shard: bool = False
    """Under torchrun: shard the weights (FSDP2) instead of replicating them."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        env, model, train = self.env, asdict(self.model), asdict(self.train)
        if not isinstance(env, str):
            env = given(env)
        elif is_own(env):
            env = absolute(env)
        if is_named(self.model.model):
            model["model"] = absolute(self.model.model)
        for part, name in ((model, "scored_by"), (train, "eval_problems")):
            if part[name] is not None:
                part[name] = absolute(part[name])
        return {
            "agent": self._agent(),
            "env": {"id": env, "arguments": self.env_arguments},
            "model": model,
            "train": train,
            "run": {"warm_start": self.warm_start, "loggers": list(self.loggers), "shard": self.shard},
        }

    def _agent(self) -> dict[str, Any]:
        found = find_agent(self.agent)
        if isinstance(found, Entry):
            return {"name": found.name}
        if not isinstance(found, type):
            own = isinstance(self.agent, str)
            return {"name": absolute(self.agent)} if own else {"name": given(found), **plain(found)}
        zoo = AGENTS.get(found.name) is found
        name = found.name if zoo else name_of(found) or found.__name__ + GIVEN
        return {"name": name, **plain(self.agent if isinstance(self.agent, AgentConfig) else found.Config())}


def given(thing: Any) -> str:
    """The name in a config of an object that a Python program gave."""
    return type(thing).__name__ + GIVEN


def read_run_config(document: dict[str, Any]) -> RunConfig:
    """The choices of a config.json.

    Raises:
        ValueError: naming what this version does not know, or what a config cannot hold.
    """
    try:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document["agent"].items()
        }
        name, env, run = options.pop("name"), document["env"], document["run"]
        for what, said in (("agent", name), ("env", env["id"]), ("model", document["model"]["model"])):
            if said.endswith(GIVEN):
                raise ValueError(
                    f"the {what} of the run is {said}, an object of a Python program, which a config cannot hold; only "
                    f"runs that are started with names (or FILE.py:CLASS) can be read back."
                )
        return RunConfig(
            _agent_read(name, options),
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


def _agent_read(name: str, options: dict[str, Any]) -> str | AgentConfig:
    """An agent as a config has it; estimators of one's own have no options there, agents have."""
    if is_own(name):
        with suppress(UsageError):  # whoever needs a file that is gone will be told, and evaluations do not
            return agent_class(name).Config(**options) if options else name
        return name
    return name if is_plain(name) else agent_class(name).Config(**options)


def run_config_of(folder: Path) -> RunConfig:
    """The choices of the run in a folder.

    Raises:
        ValueError: if there is no run.
    """
    if (folder / CONFIG).exists():
        return read_run_config(load_config(folder))
    there = sorted(path.parent.name for path in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
    hint = f"{folder.parent} has {', '.join(there)}" if there else "start one with `llm-mdp train`"
    raise ValueError(f"{folder} holds no run; {hint}.")


def write_run_config(folder: Path, config: RunConfig, begun: float) -> None:
    """config.json of a run: its choices and their checksum. Command, time, folder and files of its first beginning
    stay.

    Raises:
        ValueError: if a choice cannot be written as JSON, or the file cannot be written.
    """
    choices = choices_of(config)
    start = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "begun": begun, "folder": str(Path.cwd()),
        "files": own_files(choices),
    }  # fmt: skip
    document = choices | start | load_config(folder) | choices | {"checksum": _checksum(choices)}
    write_text(folder / CONFIG, json.dumps(document, indent=1) + "\n")


def choices_of(config: RunConfig) -> dict[str, Any]:
    """The choices as they are read back from JSON.

    Raises:
        ValueError: if one cannot be written as JSON.
    """
    document = config.document()
    for part, content in document.items():
        try:
            document[part] = json.loads(json.dumps(content))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the choices of {part} cannot be written to {CONFIG} ({error}); give numbers, strings, lists and "
                f"dicts of these, or train without a folder."
            ) from error
    return document


def own_files(choices: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that a run is made of, by their paths: tasks, agents, rewards and problems. Those of models
    are checked where they are loaded."""
    parts = {"agent": choices["agent"], "env": choices["env"], "train": choices["train"]["eval_problems"]}
    found = {}
    for _, said in _leaves(parts, ""):
        for name in said if isinstance(said, list) else [said]:
            if isinstance(name, str):
                path = Path(name.rpartition(":")[0] if is_own(name) else name).resolve()
                found[str(path)] = _digest(path)
    return {path: digest for path, digest in found.items() if digest}


def _digest(path: Path) -> str | None:
    """None: there is no such file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def config_to_resume(folder: Path, resumed: Checkpoint) -> RunConfig:
    """The choices to go on with from a checkpoint: of config.json, which must be as it was written; where it is
    missing, of the checkpoint.

    Raises:
        ValueError: if config.json was changed, or the checkpoint is of another run.
    """
    kept, path = resumed.state.get("config"), folder / CONFIG
    if not path.exists() and kept is not None:
        warnings.warn(f"{path} was missing; it is written anew from {resumed.path}", stacklevel=2)
        return read_run_config(kept)
    try:
        config, document = run_config_of(folder), load_config(folder)
    except ValueError as error:
        if kept is None or not path.exists() or "--resume" in str(error) or GIVEN in str(error):
            raise
        raise ValueError(f"{path}: {error} Or remove it, and --resume writes it anew from {resumed.path}.") from error
    choices = {part: document[part] for part in CHOICES}
    if "checksum" in document and document["checksum"] != _checksum(choices):
        raise ValueError(
            f"{path} is not as the run wrote it{_said(kept, choices)}; remove it to go on with what the checkpoint "
            f"holds, or start another run with it: llm-mdp train --config {shlex.quote(str(path))}"
        )
    find_agent(config.agent)  # one that has moved is said to have, rather than to be another
    for file, digest in document.get("files", {}).items():
        if _digest(Path(file)) != digest:
            warnings.warn(
                f"{file} is not as it was when the run began; from here on the run may differ from what it would have "
                f"been",
                stacklevel=2,
            )
    if kept is not None and (said := _said(kept, choices)):
        raise ValueError(f"{resumed.path} is of another run than {path}{said}; {instead(resumed.path)}.")
    return config


def _said(kept: dict[str, Any] | None, choices: dict[str, Any]) -> str:
    """The first choice that the checkpoint has otherwise, in brackets. A run may get more steps, and a later version
    may know more choices; arguments of the environment are what somebody gave."""
    if kept is None:
        return ""
    here, there = dict(_leaves(choices, "")), dict(_leaves(kept, ""))
    for name in dict.fromkeys([*here, *there]):
        if name == "train.steps":
            continue
        both = name in here and name in there
        if (both or name.startswith("env.arguments.")) and not _same(here.get(name), there.get(name)):
            return f" ({name} is {here.get(name)!r}, and {there.get(name)!r} in the checkpoint)"
    return ""


def _same(one: Any, other: Any) -> bool:
    """Paths are the same however they are written."""
    return one == other or (isinstance(one, str) and isinstance(other, str) and absolute(one) == absolute(other))


def _leaves(document: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for name, each in document.items():
            yield from _leaves(each, f"{place}.{name}" if place else name)
    else:
        yield place, document


def _checksum(choices: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()
