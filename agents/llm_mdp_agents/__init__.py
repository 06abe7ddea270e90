"""The agent zoo of LLM-MDP: every algorithm of the paper, trained with the code that was verified.

from llm_mdp_agents import train

run = train("rloo", "llm_mdp/Tabular-v0", steps=100)
print(run["eval/reward"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mdp_agents.base import Agent as Agent
    from llm_mdp_agents.base import AgentConfig as AgentConfig
    from llm_mdp_agents.check import check_agent as check_agent
    from llm_mdp_agents.resolve import ModelConfig as ModelConfig
    from llm_mdp_agents.resolve import build_policy as build_policy
    from llm_mdp_agents.training.recorded import RecordedRun as RecordedRun
    from llm_mdp_agents.training.recorded import read_run as read_run
    from llm_mdp_agents.training.run import Run as Run
    from llm_mdp_agents.training.run import resume as resume
    from llm_mdp_agents.training.run import train as train
    from llm_mdp_agents.training.train_config import TrainConfig as TrainConfig
    from llm_mdp_agents.training.trainer import Trainer as Trainer

HOMES = {
    "base": "Agent AgentConfig",
    "check": "check_agent",
    "resolve": "ModelConfig build_policy",
    "training.recorded": "RecordedRun read_run",
    "training.run": "Run resume train",
    "training.train_config": "TrainConfig",
    "training.trainer": "Trainer",
}
"""Which module each public name is in; it is imported when it is asked for, for training needs more than the command
line's other subcommands."""
_HOME_OF = {name: home for home, names in HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
