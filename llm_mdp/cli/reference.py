"""The page of the command line, from the commands' own help: `python -m llm_mdp.cli.reference [PAGE]`."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from llm_mdp.cli.__main__ import COMMANDS, run

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"
FURTHER = {"train": (("rloo", "Tabular"), ("--resume", "runs/NAME")), "agents": (("--model", "FOLDER"),)}
"""Words of a command after which its help says more."""
HEAD = """# The command line

<!-- Written by `python -m llm_mdp.cli.reference` from the commands' own help. -->

Each command as `llm-mdp COMMAND --help` prints it on 80 columns. What a command cannot do is said in one line and ends
with exit status 2; `verify` and `audit` end with 1 where a verdict is not the one that is asked for.

| command | what it does |
|---|---|
"""


def page() -> str:
    """The text of docs/command_line.md."""
    rows = [f"| [`{name}`](#{name}) | {words} |" for name, (_, words) in COMMANDS.items()]
    sections = [_section(name) for name in COMMANDS]
    return HEAD + "\n".join([*rows, "", *sections])


def _section(name: str) -> str:
    blocks = [f"```text\n{help_of(name, words)}\n```\n" for words in ((), *FURTHER.get(name, ()))]
    return f"## {name}\n\n" + "\n".join(blocks)


def help_of(name: str, words: Sequence[str] = ()) -> str:
    """What `llm-mdp NAME WORDS --help` prints, 80 columns wide and without colours."""
    out = io.StringIO()
    plain = patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"})
    with plain, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run(name, [*words, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def main(words: Sequence[str] = ()) -> None:
    path = Path(words[0]) if words else PAGE
    path.write_text(page(), encoding="utf-8")
    print(f"Written to {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
