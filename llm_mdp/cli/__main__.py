"""`llm-mdp`: one name, one file a command. Here the file is found, and what cannot be done is said in one line."""

import importlib
import os
import signal
import sys
from collections.abc import Callable

from llm_mdp.cli.words import COMMANDS, unknown, usage
from llm_mdp.own import error_in_own_code, visible


def main() -> None:
    """Entry point of the `llm-mdp` command."""
    name, argv = (sys.argv[1], sys.argv[2:]) if sys.argv[1:] else ("", [])
    name = {"--version": "version", "-V": "version"}.get(name, name)
    if name in COMMANDS:
        sys.exit(guarded(lambda: run(name, argv)))
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


def guarded(job: Callable[[], int]) -> int:
    """The exit status; what cannot be done is said in one line, and an error in a user's file with its place there."""
    try:
        return job()
    except (Exception, SystemExit) as error:
        if (theirs := error_in_own_code(error)) is not None:
            print(f"llm-mdp: {visible(theirs)}", file=sys.stderr)
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
