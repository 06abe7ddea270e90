"""The command line, typed in a folder of its own."""

import re
import sys

import pytest

from llm_mdp.cli import __main__ as cli


@pytest.fixture
def llm_mdp(here, monkeypatch, capsys):
    """Type a command; gives its exit status, what it printed and what it complained about."""

    def typed(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llm-mdp", *words.split()])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        complaints = re.sub(r"(?m)^.*  \d+:\d\d:\d\d (left|so far).*\n", "", printed.err)  # but for its progress
        return left.value.code or 0, printed.out, complaints

    return typed
