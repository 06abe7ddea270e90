"""The ledger in a terminal, at any width from 80 columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llm_mdp.report.rows import (
    SYMBOLS,
    ClaimRow,
    Document,
    bias,
    claim_rows,
    contradiction_text,
    exit_meaning,
    grouped,
    named_instances,
    number,
    ratio,
    setting,
    span_text,
    summary,
    verdict_text,
)

WIDE = 180
"""Columns from which statement, reason and repair get columns of their own."""

COLOURS = {
    "unbiased": "green",
    "holds": "green",
    "proportional": "blue",
    "biased": "red",
    "fails": "red",
    "undecided": "yellow",
}

NARROW_WIDTHS = (21, 18, 8, 11, 8, 9)
"""Claim, verdict and four figures: with one space between them exactly 80 columns."""


def print_report(document: Document, console: Console) -> None:
    """Print every claim in its group, and at the end what it amounts to.

    Figures of several instances: a narrow terminal shows the worst one (of the scale: its range), a wide one every
    range.

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
            _print_narrow(title, members, console)
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
        yield lambda claim: bar.update(task, advance=1, description=claim)


def _heading(instances: list[tuple[str, dict]]) -> Text:
    text = Text("Gradient check", style="bold")
    described = " · ".join(f"{name} {values}" for name, values in setting(instances))
    return text.append(f"   {described}", style="not bold dim")


def _print_narrow(title: str, rows: list[ClaimRow], console: Console) -> None:
    """The figures of a claim in one line, its words below them."""
    several = any(len(row.entries) > 1 for row in rows)
    names = ("bias ≤", "scale", "cosine ≥", "tr Cov ≤") if several else ("bias", "scale", "cosine", "tr Cov")
    console.print(_line([Text(cell, style="bold underline") for cell in (title, "verdict", *names)]))
    for row in rows:
        figures = (
            bias(row.span("relative_bias").high),
            _breakable(span_text(row.span("scale"), ratio), NARROW_WIDTHS[3]),
            ratio(row.span("cosine").low),
            number(row.span("trace_covariance").high),
        )
        console.print(_line([Text(row.id, style="bold"), _verdict(row), *map(Text, figures)]))
        console.print(Padding(_words(row), (0, 0, 0, 2)), highlight=False)


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
    return Text(row.lead["statement"]).append(f"  [{row.lead['source']}]", style="dim")


def _explanation(row: ClaimRow) -> list[Text]:
    certificates = [row.certificate] if row.certificate else []
    lines = [Text(line, style="dim") for line in (*row.reasons, *certificates)]
    return [*lines, *(Text(f"→ repair: {repair}", style="cyan") for repair in row.repairs)]


def _verdict(row: ClaimRow) -> Text:
    text = Text(f"{SYMBOLS[row.verdict]} {verdict_text(row)}", style=COLOURS.get(row.verdict, "dim"))
    return text.append(" ⚠", style="bold red") if row.contradictions else text


def _wide_table(title: str, rows: list[ClaimRow]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True, leading=1, pad_edge=False
    )
    table.add_column("claim", width=22, overflow="fold", style="bold")
    table.add_column("verdict", width=18, overflow="fold")
    for name in ("relative bias", "scale", "cosine", "tr Cov"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("statement [source]", ratio=2, overflow="fold")
    table.add_column("why, and what repairs it", ratio=3, overflow="fold")
    for row in rows:
        verdict = _verdict(row)
        if row.contradictions:
            verdict.append(f"\nCONTRADICTION: {contradiction_text(row)}", style="bold red")
        table.add_row(
            Text(row.id),
            verdict,
            span_text(row.span("relative_bias"), bias),
            span_text(row.span("scale"), ratio),
            span_text(row.span("cosine"), ratio),
            span_text(row.span("trace_covariance")),
            _statement(row),
            Text("\n").join(_explanation(row)),
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
    style = "bold red" if any(row.contradictions for row in rows) else "bold green"
    lines = [Text(summary(rows, instances))]
    lines += [Text(f"⚠ {row.id}: {contradiction_text(row)}", style="bold red") for row in rows if row.contradictions]
    return Text("\n").join([*lines, Text(exit_meaning(rows), style=style)])
