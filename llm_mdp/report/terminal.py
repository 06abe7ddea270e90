"""The ledger in a terminal, at any width from 80 columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llm_mdp.own import visible
from llm_mdp.report.rows import (
    BY,
    PRACTICE,
    SYMBOLS,
    ClaimRow,
    Document,
    bias,
    claim_rows,
    contradiction_text,
    exit_meaning,
    figure_text,
    grouped,
    headline,
    named_instances,
    number,
    ratio,
    setting,
    summary,
    verdict_text,
)
from llm_mdp.report.sizes import HEAD, Point, line, methods, missing, own_size, points, rates, where

WIDE = 180
"""Columns from which statement, reason and repair get columns of their own."""

BRIEF = 40
"""Claims from which a narrow terminal shows of those that are right no more than their statement."""

COLOURS = {
    "unbiased": "green",
    "holds": "green",
    "proportional": "blue",
    "biased": "red",
    "fails": "red",
    "undecided": "yellow",
}

FINDING_COLOURS = {"agrees": "green", "misprint": "yellow", "stronger than stated": "yellow", "differs": "red"}

LEGEND = (
    "to signal: tokens of a batch at which the noise equals the signal E g; said of rows whose direction is right, in "
    "exact checks. In brackets: what was found of the paper's statement, and its source."
)

NARROW_WIDTHS = (21, 18, 8, 11, 8, 9)
"""Claim, verdict and four figures: with one space between them exactly 80 columns."""


def print_report(document: Document, console: Console) -> None:
    """Print every claim in its group, and at the end what it amounts to.

    Figures of several instances: a narrow terminal shows the worst one (of the scale: its range), a wide one every
    range. Sampled figures are shown by their intervals. With `BRIEF` claims or more a narrow terminal leaves out the
    reasons of those that are right and agree with the paper.

    Args:
        document: the output of `llm-mdp verify --json`, for one instance or several.
        console: where to print; its width chooses the layout.

    Raises:
        ValueError: if the document has no claims.
    """
    instances = named_instances(document)
    rows = claim_rows(instances)
    console.print(_heading(instances), highlight=False)
    for title, members in grouped(rows):
        console.print()
        if console.width >= WIDE:
            console.print(_wide_table(title, members), highlight=False)
        else:
            _print_narrow(title, members, console, brief=len(rows) >= BRIEF)
    console.print()
    console.print(_legend(rows, console), style="dim", highlight=False)
    console.print()
    console.print(_instance_table(instances), highlight=False)
    console.print()
    console.print(_closing(rows, len(instances)), highlight=False)


@contextmanager
def progress_bar(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar that disappears at the end: `with progress_bar(console, 54) as done: run_ledger(problem,
    progress=done)`."""
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda claim: bar.update(task, advance=1, description=visible(claim))


def _heading(instances: list[tuple[str, dict]]) -> Text:
    text = Text("Gradient check", style="bold")
    described = " · ".join(f"{name} {values}" for name, values in setting(instances))
    return text.append(f"   {described}", style="not bold dim")


def _legend(rows: list[ClaimRow], console: Console) -> str:
    """What the last column and the brackets mean, and where the words are that were left out."""
    if console.width >= WIDE or not any(map(_is_right, rows)) or len(rows) < BRIEF:
        return LEGEND
    return f"{LEGEND} Rows that are right are shown without reasons: name them, or see the page of --html FILE."


def _is_right(row: ClaimRow) -> bool:
    """Is there nothing to explain: right on every instance, and the paper does not say otherwise?"""
    return row.status == "as expected" and row.gravest in ("unbiased", "holds") and row.finding in ("agrees", PRACTICE)


def _print_narrow(title: str, rows: list[ClaimRow], console: Console, *, brief: bool) -> None:
    """The figures of a claim in one line, its words below them."""
    several, sampled = any(len(row.entries) > 1 for row in rows), any(row.sampled for row in rows)
    names = (
        ("bias ≤", "scale", "cosine ≥", "to signal") if several or sampled else ("bias", "scale", "cosine", "to signal")
    )
    console.print(_line([Text(cell, style="bold underline") for cell in (title, "verdict", *names)]))
    for row in rows:
        write = number if row.sampled else bias
        figures = (
            write(row.span("relative_bias").high),
            _breakable(figure_text(row, "scale"), NARROW_WIDTHS[3]),
            ratio(row.span("cosine").low),
            _breakable(figure_text(row, "tokens_to_signal"), NARROW_WIDTHS[5]),
        )
        console.print(_line([_name(row), _verdict(row), *map(Text, figures)]))
        words = _statement(row) if brief and _is_right(row) else _words(row)
        console.print(Padding(words, (0, 0, 0, 2)), highlight=False)
        for part in _over_sizes(row, brief):
            console.print(Padding(part, (0, 0, 0, 2)), highlight=False)


def _name(row: ClaimRow) -> Text:
    """Its id, and of what group size its figures are."""
    size = own_size(row).replace(" = ", "=")
    return Text(row.id, style="bold").append(f" {size}" if size else "", style="not bold dim")


def _over_sizes(row: ClaimRow, brief: bool) -> list[Text | Table]:
    """What the row is at other group sizes and numbers of prompts: in the whole ledger one line, else a table of
    each."""
    if brief:
        return [Text(words, style="dim")] if (words := line(row)) else []
    found: list[Text | Table] = []
    for by, letter in BY.items():
        if not (listed := points(row, by)):
            continue
        found += [
            _table_of(letter, listed),
            *(Text(said, style="dim") for said in (where(row, by), rates(row, by), missing(row, by)) if said),
        ]
    return [*found, Text(methods(row), style="dim")] if found else []


def _table_of(letter: str, listed: list[Point]) -> Table:
    """One line a size; a column that says nothing is left out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate((letter, *HEAD)):
        table.add_column(
            Text(name, style="underline"),
            justify="left" if name in ("verdict", "method") else "right",
            overflow="fold",
            no_wrap=place == 0,
        )
    for point in listed:
        verdict = Text(f"{SYMBOLS[point.row.verdict]} {point.cells[1]}", style=COLOURS.get(point.row.verdict, "dim"))
        table.add_row(point.cells[0], verdict, *point.cells[2:])
    return table


def _line(cells: list[Text]) -> Table:
    line = Table.grid(padding=(0, 1, 0, 0))
    for position, width in enumerate(NARROW_WIDTHS):
        line.add_column(width=width, overflow="fold", justify="right" if position > 1 else "left")
    line.add_row(*cells)
    return line


def _breakable(span: str, width: int) -> str:
    """A range too wide for its column in two lines, so that no figure is broken."""
    return span if len(span) <= width else span.replace("…", "…\n")


def _words(row: ClaimRow) -> Text:
    """Contradiction, statement, source, reason, certificate and repair as one paragraph a kind."""
    lines = [Text(f"⚠ CONTRADICTION: {contradiction_text(row)}", style="bold red")] if row.contradictions else []
    lines.append(_statement(row))
    return Text("\n").join([*lines, *_explanation(row)])


def _statement(row: ClaimRow) -> Text:
    known = row.finding if row.lead["group"] != "practices" else row.finding.removeprefix(PRACTICE)
    finding = [Text(known, style=FINDING_COLOURS.get(known, "dim"))] if known else []
    said = Text(" · ", style="dim").join([*finding, Text(row.lead["source"], style="dim")])
    return Text(row.lead["statement"]).append("  [", style="dim").append_text(said).append("]", style="dim")


def _explanation(row: ClaimRow) -> list[Text]:
    paper = [Text(f"paper: {row.paper}", style="italic")] if row.paper else []
    further = [line for line in (row.certificate, row.needed) if line]
    lines = [Text(line, style="dim") for line in (*row.reasons, *further)]
    found = [Text(f"• {line}") for line in row.diagnosis["lines"]] if row.diagnosis else []
    if row.diagnosis and row.diagnosis.get("instance"):
        shown = "showing it other rewards, lengths and continuations"
        found = [Text(f"diagnosis, by {shown} on {row.diagnosis['instance']}:"), *found]
    return [*paper, *lines, *found, *(Text(f"→ repair: {repair}", style="cyan") for repair in row.repairs)]


def _sizes_in_words(row: ClaimRow) -> list[Text]:
    return [Text(words, style="dim")] if (words := line(row)) else []


def _verdict(row: ClaimRow) -> Text:
    text = Text(f"{SYMBOLS[row.verdict]} {verdict_text(row)}", style=COLOURS.get(row.verdict, "dim"))
    return text.append(" ⚠", style="bold red") if row.contradictions else text


def _wide_table(title: str, rows: list[ClaimRow]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True, leading=1, pad_edge=False
    )
    table.add_column("claim", width=22, overflow="fold", style="bold")
    table.add_column("verdict", width=18, overflow="fold")
    for name in ("relative bias", "scale", "cosine", "tokens to signal"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("statement [finding · source]", ratio=2, overflow="fold")
    table.add_column("why, and what repairs it", ratio=3, overflow="fold")
    for row in rows:
        verdict = _verdict(row)
        if row.contradictions:
            verdict.append(f"\nCONTRADICTION: {contradiction_text(row)}", style="bold red")
        table.add_row(
            _name(row),
            verdict,
            *(figure_text(row, key) for key in ("relative_bias", "scale", "cosine", "tokens_to_signal")),
            _statement(row),
            Text("\n").join([*_explanation(row), *_sizes_in_words(row)]),
        )
    return table


def _instance_table(instances: list[tuple[str, dict]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("instance", overflow="fold")
    table.add_column("policy", overflow="fold")
    table.add_column("J", justify="right")
    table.add_column("|∇J|", justify="right")
    for name, instance in instances:
        figures = (number(instance.get(key)) for key in ("J", "grad_norm"))
        table.add_row(Text(name), Text(str(instance.get("policy", "–"))), *figures)
    return table


def _closing(rows: list[ClaimRow], instances: int) -> Text:
    wrong = [Text(f"⚠ {row.id}: {contradiction_text(row)}", style="bold red") for row in rows if row.contradictions]
    found = [Text(sentence, style="bold") for sentence in headline(rows)]
    meaning = Text(exit_meaning(rows), style="bold red" if wrong else "dim")
    return Text("\n").join([*found, Text(summary(rows, instances)), *wrong, meaning])
