"""`llm-mdp`: one name, one file a command. Here the file is found, and what cannot be done is said in one line."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from llm_mdp.own import place_in_own_code, visible

COMMANDS = {
    "verify": (
        "verify",
        "Check which estimators of the policy gradient are unbiased, proportional or biased, and why.",
    ),
    "audit": ("audit", "Certify the real functions of TRL, verl, OpenRLHF and others, or those of a file of yours."),
    "envs": ("envs", "List the Gymnasium environments: turns, vocabulary, graded parts, and what each separates."),
    "agents": ("agents", "List the agents: algorithm, paper, file, claims and their verdicts."),
    "train": ("train", "Train a policy: llm-mdp train AGENT ENV [options]. `llm-mdp train --help` says more."),
    "eval": ("evaluate", "Rewards of a policy: llm-mdp eval ENV [--model …] or llm-mdp eval --run runs/NAME."),
    "variance": ("variance", "How noisy each estimator is, and what a token of sampling buys."),
    "inspect": ("inspect", "A page of responses, every token shaded by the advantage that each estimator gave it."),
    "version": ("version", "Print the versions in use."),
}
"""Each command, the file here that runs it, and what it does."""


def main() -> None:
    """Entry point of the `llm-mdp` command."""
    name, argv = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("", [])
    name = {"--version": "version", "-V": "version"}.get(name, name)
    if name in COMMANDS:
        sys.exit(guarded(lambda: run(name, argv)))
    tyro.cli(listing(), prog="llm-mdp", description="The gradient check for reinforcement learning on language models.")


def run(name: str, argv: list[str]) -> int:
    """Run a command; each reads its own options."""
    file = COMMANDS[name][0]
    try:
        module = importlib.import_module(f"llm_mdp.cli.{file}")
    except ImportError as error:
        raise ImportError(f'{error}; this command needs more packages: pip install "llm-mdp[train]"') from error
    return getattr(module, file)(argv)


def listing() -> Any:
    """All commands as `tyro` wants them: for help, completion and mistyped names."""
    return reduce(or_, (
        Annotated[make_dataclass(name, [], namespace={"__doc__": words}), tyro.conf.subcommand(name)]
        for name, (_, words) in COMMANDS.items()
    ))  # fmt: skip


def guarded(job: Callable[[], int]) -> int:
    """The exit status; what cannot be done is said in one line, and an error in a user's file with its place there."""
    try:
        return job()
    except (Exception, SystemExit) as error:
        place = place_in_own_code(error)
        if place is not None:
            print(f"llm-mdp: {visible(f'{place}: {type(error).__name__}: {error}')}", file=sys.stderr)
        elif isinstance(error, BrokenPipeError):  # whoever read on has gone, as `head` does; nothing more is said
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        elif isinstance(error, ValueError | OSError | ImportError):
            print(f"llm-mdp: {visible(str(error))}", file=sys.stderr)
        else:
            raise
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    main()
