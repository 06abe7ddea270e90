"""What several commands share: flags, arguments of an environment, a policy and its task, files that can be written,
the command as typed."""

import ast
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mdp.files import write_text
from llm_mdp.own import UsageError
from llm_mdp.report.console import terminal

if TYPE_CHECKING:  # commands that need no agents do not wait for them
    from rich.console import Console

    from llm_mdp_agents.resolve import ModelConfig

JSON_WORDS = {"true": True, "false": False, "null": None}


def env_arguments(words: Sequence[str]) -> dict[str, Any]:
    """`digits=1 reward=outcome text=true` as arguments: values as in Python, or true, false and null as in JSON; any
    other is a text.

    Raises:
        UsageError: naming what is no NAME=VALUE.
    """
    arguments = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--env-args has {word!r}; write NAME=VALUE, such as digits=1.")
        try:
            arguments[name] = JSON_WORDS[value] if value in JSON_WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def check_model_choice(run: Path | None, model: "ModelConfig", warm_start: int | None = None) -> None:
    """Raise UsageError if a run is named beside what it brings itself, or the supervised batches are no number."""
    if run is not None and model != type(model)():
        raise UsageError("--run brings its own model; leave the options of a model out.")
    if run is not None and warm_start is not None:
        raise UsageError("--run brings a trained policy; leave --warm-start out.")
    if warm_start is not None and warm_start < 0:
        raise UsageError(f"--warm-start is {warm_start}; it must be at least 0.")


def check_no_run(word: str | None, place: str, option: str = "--run") -> None:
    """Raise UsageError if the folder of a run stands in the place of something else, an environment, say: behind which
    option it belongs."""
    from llm_mdp_agents.training.records import is_run_folder

    if word and is_run_folder(Path(word)):
        raise UsageError(f"there is no {place} {word!r}; did you mean {option} {word}?")


def check_seed(seed: int) -> None:
    """Raise UsageError for a seed that is no 63-bit number of at least 0."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed is {seed}; it must be {'at least 0' if seed < 0 else 'below 2^63'}.")


STDOUT = Path("-")
"""As the name of a file: the standard output."""


def for_people(json: Path | None) -> "Console":
    """Where a command speaks to people: the standard output, and the standard error where that carries the JSON."""
    return terminal(stderr=json == STDOUT)


def write_json(path: Path | None, document: Any) -> None:
    """Write a document to a file, or with the name - to the standard output."""
    if path is None:
        return
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_text(path, text)


def say_written(console: "Console", *paths: Path | None) -> None:
    """A line for each file that was written."""
    for path in paths:
        if path is not None and path != STDOUT:
            console.print(f"written: {path}", soft_wrap=True)


def check_writable(path: Path | None) -> None:
    """Raise UsageError before any work starts if a result could not be written."""
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}; make it first.")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"{path} cannot be written; choose another place.")


def check_numbers(option: str, values: Sequence[int], least: int) -> None:
    """Raise UsageError for a number below the least, or one that is given twice."""
    for value in values:
        if value < least:
            raise UsageError(f"{option} has {value}; each must be at least {least}.")
    if len(set(values)) < len(values):
        raise UsageError(f"{option} has the same number twice; give each once.")


def names_model(argv: Sequence[str]) -> bool:
    """Is `--model` among the words, where that makes a command one about a language model?"""
    return any(word.partition("=")[0] == "--model" for word in argv)


def one_thread() -> None:
    """One thread of torch unless the user says otherwise: small models only wait for one another."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def command_line() -> str:
    """The command as typed."""
    return shlex.join(["llm-mdp", *sys.argv[1:]])
