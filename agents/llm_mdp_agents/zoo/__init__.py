"""The zoo: every agent by its name, one file an algorithm.

A file in this folder is found by itself: whatever class in it is an `Agent` with a `name` of its own is an agent of the
zoo. Files whose names begin with _ are helpers. `python -m llm_mdp_agents.zoo` writes agents/README.md from what the
files say.
"""

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module

from llm_mdp.own import UsageError
from llm_mdp_agents.base import Agent

PAPER = (
    "reinforce", "rloo", "remax", "grpo", "ppo", "vineppo", "trepo", "ma-rlhf", "dpo", "iterative-dpo", "rto", "abc",
    "r3hf", "prime",
)  # fmt: skip
"""The paper's order; agents that it does not have come after these, by name."""


def find_agents(folders: Iterable[str]) -> dict[str, type[Agent]]:
    """The agents in the files of these folders, which are parts of this package (its `__path__`), in order.

    Raises:
        UsageError: naming a file without an agent, or two files with the same one.
    """
    found: dict[str, type[Agent]] = {}
    for file in pkgutil.iter_modules(folders):
        if file.name.startswith("_"):
            continue
        agents = _agents_in(f"{__name__}.{file.name}")
        if not agents:
            raise UsageError(
                f"zoo/{file.name}.py has no agent; write a class of llm_mdp_agents.base.Agent with a `name` of its own "
                f"into it, or begin the file's name with _."
            )
        for agent in agents:
            if agent.name in found:
                raise UsageError(
                    f"two agents have the name {agent.name!r}, {_place(found[agent.name])} and {_place(agent)}; give "
                    f"one of them another."
                )
            found[agent.name] = agent
    names = sorted(found, key=lambda name: (PAPER.index(name) if name in PAPER else len(PAPER), name))
    return {name: found[name] for name in names}


def _agents_in(module: str) -> list[type[Agent]]:
    """The agents that a module defines, not those that it imports or the bases without a name."""
    classes = inspect.getmembers(import_module(module), inspect.isclass)
    return [
        kind for _, kind in classes if issubclass(kind, Agent) and kind.__module__ == module and "name" in vars(kind)
    ]


def _place(agent: type[Agent]) -> str:
    return f"{agent.__name__} in zoo/{agent.__module__.rpartition('.')[2]}.py"


AGENTS = find_agents(__path__)
"""Every agent by its name, in the paper's order."""
