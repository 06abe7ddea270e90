"""All choices of a run, as they stand in its config.json."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_mdp.estimators.entry import Entry
from llm_mdp.own import is_own
from llm_mdp_agents.resolve import ModelConfig, agent_class, find_agent, is_plain, plain
from llm_mdp_agents.training.records import load_config
from llm_mdp_agents.training.train_config import TrainConfig

GIVEN = " (given)"
"""Ends the name of an object that a Python program gave; a config cannot hold it."""


@dataclass(frozen=True)
class RunConfig:
    """What was chosen, by a command line, a program or a config.json."""

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
            "env": {"id": self.env if isinstance(self.env, str) else given(self.env), "arguments": self.env_arguments},
            "model": asdict(self.model),
            "train": asdict(self.train),
            "run": {"warm_start": self.warm_start, "loggers": list(self.loggers), "shard": self.shard},
        }

    def _agent(self) -> dict[str, Any]:
        if isinstance(self.agent, str) and is_own(self.agent):
            place, _, attribute = self.agent.rpartition(":")
            return {"name": f"{Path(place).resolve() if place.endswith('.py') else place}:{attribute}"}
        found = find_agent(self.agent)
        if isinstance(found, Entry):
            return {"name": found.name}
        if not isinstance(found, type):
            return {"name": given(found), **plain(found)}
        return {"name": found.name, **plain(found.Config() if isinstance(self.agent, str) else self.agent)}


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
            name if is_plain(name) else agent_class(name).Config(**options),
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


def run_config_of(folder: Path) -> RunConfig:
    """The choices of the run in a folder.

    Raises:
        ValueError: if there is no run.
    """
    if document := load_config(folder):
        return read_run_config(document)
    there = sorted(path.parent.name for path in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
    hint = f"{folder.parent} has {', '.join(there)}" if there else "start one with `llm-mdp train`"
    raise ValueError(f"{folder} holds no run; {hint}.")
