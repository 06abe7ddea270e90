"""`llm-mdp --tyro-print-completion bash` (zsh, fish, tcsh): a script that completes all commands and their options."""

from collections.abc import Sequence
from dataclasses import make_dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from llm_mdp.cli.agents import AgentsArguments
from llm_mdp.cli.audit import AuditArguments
from llm_mdp.cli.envs import EnvsArguments
from llm_mdp.cli.evaluate import EvalArguments
from llm_mdp.cli.inspect import InspectArguments
from llm_mdp.cli.parsing import FLAGS, plainly
from llm_mdp.cli.train import TrainArguments
from llm_mdp.cli.variance import VarianceArguments
from llm_mdp.cli.verify import VerifyArguments
from llm_mdp.cli.version import VersionArguments
from llm_mdp.cli.words import COMMANDS
from llm_mdp_agents.zoo import AGENTS

ARGUMENTS = {
    "verify": VerifyArguments, "audit": AuditArguments, "envs": EnvsArguments, "agents": AgentsArguments,
    "eval": EvalArguments, "variance": VarianceArguments, "inspect": InspectArguments, "version": VersionArguments,
}  # fmt: skip
"""What each command reads; `train` reads the options of its agent, too."""


def complete(argv: Sequence[str]) -> None:
    """Print or write the script that `--tyro-print-completion` or `--tyro-write-completion` asks for."""
    kinds = {name: ARGUMENTS[name] if name in ARGUMENTS else training() for name in COMMANDS}
    tyro.cli(one_of(kinds), args=list(argv), prog="llm-mdp", config=OPTIONS, registry=plainly())


OPTIONS = (*FLAGS, tyro.conf.OmitSubcommandPrefixes)


def training() -> Any:
    """`train AGENT ENV [options]`, one agent beside the other."""
    agents = {name: TrainArguments[agent.Config] for name, agent in AGENTS.items()}  # pyright: ignore
    return make_dataclass("Training", [("agent", one_of(agents))])


def one_of(kinds: dict[str, Any]) -> Any:
    """One of several dataclasses, by its name."""
    words = {name: words for name, (_, words) in COMMANDS.items()}
    return reduce(or_, (
        Annotated[kind, tyro.conf.subcommand(name, description=words.get(name, ""))] for name, kind in kinds.items()
    ))  # fmt: skip
