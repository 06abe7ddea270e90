"""What a model, a path or a task says is shown on the terminal, and never obeyed."""

import io

import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm_mdp.own import visible
from llm_mdp.report.console import terminal

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e[bold]x[/] :smile: \ud800"


def printed(thing, monkeypatch, **options) -> str:
    console = terminal()
    monkeypatch.setattr(console, "file", io.StringIO())
    console.print(thing, soft_wrap=True, **options)
    return console.file.getvalue()


def in_a_table(text: str) -> Table:
    table = Table(width=200)
    table.add_column(text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("shown", [str, Text, lambda text: Padding(text, (0, 0, 0, 4)), in_a_table])
def test_what_is_printed_cannot_control_the_terminal(shown, monkeypatch):
    said = printed(shown(HOSTILE), monkeypatch)
    assert not any(each in said for each in "\x1b\x07\x9b\u202e\ud800")
    assert r"\x1b[31mred\x1b]0;title" in said and r"\u202e[bold]x[/] :smile: \ud800" in said


def test_styles_still_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = printed(Text.assemble(("bold", "bold"), "\x1b[31m"), monkeypatch)
    assert said.startswith("\x1b[1mbold\x1b[0m") and said.rstrip("\n").endswith(r"\x1b[31m")


def test_words_of_all_languages_stay():
    for words in ("naïve Größe 日本語 עברית ελληνικά", "👩‍👩‍👧 e\u0301", "one\n\ttwo"):
        assert visible(words) == words
    assert visible("a\rb\x00\x7f\u2028") == r"a\rb\x00\x7f\u2028"
