"""`llm-mdp`: one name, one file a command. Here the file is found, and what cannot be done is said in one line."""

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from llm_mdp.cli.words import COMMANDS, unknown, usage
from llm_mdp.own import error_in_own_code, places_of_ours, visible


def main() -> None:
    """Entry point of the `llm-mdp` command."""
    warnings.showwarning = partial(warned, warnings.showwarning)
    name, argv = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("", [])
    name = {"--version": "version", "-V": "version"}.get(name, name)
    if name in COMMANDS:
        sys.exit(guarded(lambda: run(name, argv), STOPPED.get(name, "stopped before the end")))
    if name in ("-h", "--help"):
        print(usage())
    elif name.startswith("--tyro-"):
        from llm_mdp.cli.completion import complete

        complete(sys.argv[1:])
    else:
        print(f"llm-mdp: {visible(unknown(name))}" if name else usage(), file=sys.stderr)
        sys.exit(2)


def run(name: str, argv: list[str]) -> int:
    """Run a command; each reads its own options."""
    file = COMMANDS[name][0]
    try:
        module = importlib.import_module(f"llm_mdp.cli.{file}")
    except ImportError as error:
        raise ImportError(f'{error}; this command needs more packages: pip install "llm-mdp[train]"') from error
    return getattr(module, file)(argv)


STOPPED = {"train": "stopped before the run began"}
"""What a command says when Ctrl-C ends it, where that is known: a run that has begun says itself how to go on."""


def guarded(job: Callable[[], int], stopped: str = "stopped") -> int:
    """The exit status; what cannot be done is said in one line, and an error in a user's file with its place there.

    Args: stopped: what is said when Ctrl-C ends the job.
    """
    try:
        return job()
    except (Exception, SystemExit) as error:
        if (theirs := error_in_own_code(error)) is not None:
            print(f"llm-mdp: {visible(theirs)}", file=sys.stderr)
        elif isinstance(error, BrokenPipeError):  # whoever read on has gone, as `head` does; nothing more is said
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        elif isinstance(error, ValueError | OSError | ImportError):
            said = of_a_file(error) if isinstance(error, OSError) else str(error)
            print(f"llm-mdp: {visible(said)}", file=sys.stderr)
        else:
            raise
        return 2
    except KeyboardInterrupt:
        print(f"\nllm-mdp: {stopped}", file=sys.stderr)  # the terminal has written ^C
        return 128 + signal.SIGINT


FILES = {
    FileNotFoundError: "there is no file or folder {}.",
    IsADirectoryError: "{} is a folder; name a file.",
    NotADirectoryError: "{} lies in a file; name a folder.",
    FileExistsError: "{} is there already, and is no folder; choose another place.",
    PermissionError: "{} may not be read or written here; change its permissions, or choose another place.",
}


def of_a_file(error: OSError) -> str:
    """What the system says of a file, without its number."""
    if error.filename is None:
        return error.strerror or str(error)
    return FILES.get(type(error), f"{{}} cannot be used: {error.strerror}.").format(error.filename)


def warned(otherwise: Callable[..., None], message: Warning, category: type, filename: str, *place: Any) -> None:
    """A warning of ours as one line, without the line of our source that it came from; others as they are."""
    if category is UserWarning and any(filename.startswith(ours) for ours in places_of_ours()):
        print(f"llm-mdp: {visible(str(message))}", file=sys.stderr)
    else:
        otherwise(message, category, filename, *place)


if __name__ == "__main__":
    main()
