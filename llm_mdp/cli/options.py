"""What several commands share: flags, arguments of an environment, files that can be written, the command as typed."""

import ast
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from llm_mdp.own import UsageError

FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)


def env_arguments(words: Sequence[str]) -> dict[str, Any]:
    """`digits=1 reward=outcome` as arguments.

    Raises:
        UsageError: naming what is no NAME=VALUE.
    """
    arguments = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--env-args has {word!r}; write NAME=VALUE, such as digits=1.")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def check_writable(path: Path | None) -> None:
    """Raise UsageError before any work starts if a result could not be written."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}; make it first.")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose another place.")


def command_line() -> str:
    """The command as typed."""
    return shlex.join(["llm-mdp", *sys.argv[1:]])
