"""The audit of a library in a terminal, at any width from 80 columns."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llm_mdp.own import visible
from llm_mdp.report.audit_rows import (
    CAVEAT,
    HEADS,
    Row,
    batch_words,
    common_setting,
    figures,
    finding,
    parts,
    repair,
    setting,
    since,
    summary,
    titles,
    verdict_words,
    where,
    worst,
)
from llm_mdp.report.rows import SYMBOLS
from llm_mdp.report.terminal import COLOURS

WIDE = 150
"""Columns from which what it is called, what it is and since when stand side by side."""

A_LINE_EACH = 60.0
"""Seconds between lines on how far it is, where there is no terminal for a bar."""


def print_audit(rows: Sequence[Row], console: Console) -> None:
    """Print every option in its library, and at the end what it amounts to.

    Args:
        rows: the output of `llm-mdp audit --json`.
        console: where to print; its width chooses the layout.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("there are no rows; give the JSON that `llm-mdp audit … --json FILE` writes.")
    for title, members in titles(rows):
        one = common_setting(members)
        console.print(Text(f"Audit of {title}", style="bold").append(f"   {one}", style="not bold dim"))
        console.print()
        if console.width >= WIDE:
            console.print(_wide(members, own_setting=not one))
        else:
            for row in members:
                console.print(_heading(row))
                console.print(_narrow(row, own_setting=not one))
                console.print()
    console.print(Text(CAVEAT, style="dim"))
    console.print()
    console.print(Text(summary(rows), style="bold"))


def _heading(row: Row) -> Table:
    """The option, and at the right since when."""
    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(overflow="fold", ratio=1)
    line.add_column(justify="right", no_wrap=True)
    known = since(row)
    line.add_row(Text(row["option"], style="bold"), Text(f"since {known}" if known else "", style="dim"))
    return line


def _narrow(row: Row, own_setting: bool) -> Table:
    """What it is called, what it is, and what repairs it, each beside its name."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=7, style="dim")
    table.add_column(overflow="fold")
    for name, words in (("called", _called(row)), ("is", _found(row, own_setting))):
        if words:
            table.add_row(name, words)
    return table


def _called(row: Row) -> Text:
    text = Text(row["claim"])
    return text.append(f" [{row['place']}]", style="dim") if row.get("place") else text


def _found(row: Row, own_setting: bool) -> Text:
    """The verdict and the finding, both certificates, the batch, caveats, the repair: a line each."""
    found = finding(row)
    lines = [_verdict(row["verdict"], verdict_words(row)).append(f": {found}" if found else "", style="default")]
    for words, problems in parts(row):
        lines.append(_certificate(words, problems))
    if said := batch_words(row):
        lines.append(Text(f"with the batch: {said}"))
    if row.get("note"):
        lines.append(Text(row["note"], style="dim"))
    if own_setting:
        lines.append(Text(setting(row), style="dim"))
    if diagnosis := row.get("diagnosis"):
        lines.append(Text(f"why, by showing it other rewards and lengths on {diagnosis['instance']}:"))
        lines += [Text(f"• {line}") for line in diagnosis["lines"]]
    if said := repair(row):
        lines.append(Text(f"→ repair: {said}", style="cyan"))
    return Text("\n").join(lines)


def _certificate(words: str, problems: Mapping[str, Any]) -> Text:
    text = Text(f"{words} ").append_text(_verdict(worst(problems)))
    if place := where(problems):
        text.append(f" {place}")
    said = ", ".join(f"{name} {written}" for name, written in figures(problems))
    return text.append(f": {said}" if said else "", style="dim")


def _verdict(verdict: str, words: str = "") -> Text:
    return Text(f"{SYMBOLS.get(verdict, '–')} {words or verdict}", style=COLOURS.get(verdict, "dim"))


def _wide(rows: Sequence[Row], own_setting: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, leading=1, pad_edge=False)
    table.add_column("option", ratio=2, overflow="fold", style="bold")
    table.add_column(HEADS[0], ratio=3, overflow="fold")
    table.add_column(HEADS[1], ratio=5, overflow="fold")
    table.add_column(HEADS[2], overflow="fold", style="dim")
    for row in rows:
        table.add_row(Text(row["option"]), _called(row), _found(row, own_setting), Text(since(row)))
    return table


def print_libraries(libraries: Sequence[dict], console: Console) -> None:
    """Print which libraries can be audited: installed or not, the versions known, and how to install them.

    Args: libraries: {"name", "installed": version or None, "versions", "install"} each.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("library", style="bold", no_wrap=True)
    table.add_column("installed", no_wrap=True)
    table.add_column("versions known", no_wrap=True)
    table.add_column("to install", overflow="fold")
    for each in libraries:
        here = Text(each["installed"], style="green") if each["installed"] else Text("–", style="dim")
        install = "" if each["installed"] else f"pip install {each['install']}"
        table.add_row(Text(each["name"]), here, Text(each["versions"]), Text(install))
    console.print(table)


@contextmanager
def audit_progress(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """How far it is: a bar that disappears at the end, or without a terminal a line a minute.

    with audit_progress(console) as tell:
        audit("trl", progress=tell)  # tell(number from 1, how many there are, name), before each
    """
    begun = time.monotonic()
    if not console.is_terminal:
        last = begun

        def line(number: int, total: int, name: str) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= A_LINE_EACH:
                last = now
                passed = timedelta(seconds=round(now - begun))
                console.print(f"{number - 1} of {total} done, now {name}  {passed} so far", soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda number, total, name: bar.update(
            task, total=total, completed=number - 1, description=visible(name)[:40]
        )
