"""Noise and cost in a terminal, at any width from 60 columns: no figure is cut, and what finds no room is named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm_mdp.report.rows import number
from llm_mdp.report.terminal import COLOURS
from llm_mdp.report.variance_rows import (
    BY_THEOREM,
    Document,
    budgets,
    facts,
    figure,
    margin,
    settings_of,
    too_few,
    verdict_symbol,
    worth_showing,
)

HEADS = {
    "tokens": "tokens each",
    "tokens_over_base": "over base",
    "trace_covariance": "tr Cov",
    "relative_bias": "bias",
    "cosine": "cosine",
    "tokens_to_signal": "tokens to signal",
    "progress": "progress",
    "scale": "scale",
    "mean_squared_error": "MSE",
    "signal_to_noise": "SNR",
    "rewards": "reward calls",
}
"""Columns in their order, and what they are called."""
LEAST_FIRST = (
    "signal_to_noise", "mean_squared_error", "scale", "rewards", "trace_covariance", "relative_bias", "cosine",
    "tokens", "tokens_over_base",
)  # fmt: skip
"""What is left out where there is not room for all."""
LEAST_NAME, NAME = 14, 21
"""Columns that names of estimators get at least before figures are left out, and before intervals go below them."""


def print_variance(document: Document, console: Console) -> None:
    """Print for every setting its best rows, which of them is best for which budgets, and what to take.

    Args:
        document: the `results.json` of `llm-mdp variance --out FOLDER`.
        console: where to print; its width chooses the layout.

    Raises:
        ValueError: if the document has no settings, or a setting has no rows.
    """
    settings = settings_of(document)
    about = f"   llm-mdp {document['version']} · seed {document['seed']}"
    console.print(Text("Noise and cost", style="bold").append(about, style="not bold dim"), highlight=False)
    for setting in settings:
        console.print()
        console.print(_heading(setting), highlight=False)
        console.print()
        layout = _layout(worth_showing(setting["rows"]), console.width)
        for line in _table(setting, layout, console.width):
            console.print(line, highlight=False, no_wrap=True, overflow="ignore", crop=False)
        console.print(Text(_notes(setting, layout), style="dim italic"), highlight=False)
        console.print()
        if setting["best"]:
            console.print(_best(setting), highlight=False)
        if setting["recommendation"]:
            console.print(Text(setting["recommendation"], style="bold"), highlight=False)


def _heading(setting: dict) -> Text:
    text = Text(setting["name"], style="bold").append(
        f"   {setting['words']}" if setting["words"] not in ("", setting["name"]) else "", style="not bold"
    )
    return text.append("\n" + " · ".join(f"{name} {value}" for name, value in facts(setting)), style="not bold dim")


@dataclass(frozen=True)
class Layout:
    """Which columns there are, how wide, and where intervals stand."""

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    name: int
    """Columns for the estimator."""
    verdict: int
    """For the verdict: its symbol alone, or its word too."""
    beside: bool
    """Do intervals stand beside their figures?"""

    @property
    def width(self) -> int:
        return self.name + 1 + self.verdict + sum(self.gap + width for width in self.widths)

    @property
    def gap(self) -> int:
        return 2 if self.beside else 1


def _notes(setting: dict, layout: Layout) -> str:
    rows = setting["rows"]
    shown = worth_showing(rows)
    left = len(rows) - len(shown)
    notes = ["★ on the frontier"] * any(row["frontier"] for row in shown)
    notes += ["° was given values of states"] * any(row.get("given_values") for row in shown)
    notes += ["± 95 %"] * any(row["intervals"] for row in shown)
    notes += [f"base: {setting['base']}"] * bool(setting.get("base"))
    notes += [f"… {left} more, see the page"] * bool(left)
    hidden = [HEADS[key] for key in _told(shown) if key not in layout.columns]
    notes += [f"no room for {', '.join(hidden)}: see the page, or a wider window"] * bool(hidden)
    return " · ".join(notes)


def _told(rows: Sequence[dict]) -> list[str]:
    """Columns that have something to say."""
    return [key for key in HEADS if any(_cells(row, key)[0] not in ("", "–") for row in rows)]


def _layout(rows: Sequence[dict], width: int) -> Layout:
    """The first that fits: intervals beside the figures and all columns; intervals below them; fewer columns."""
    columns = _told(rows)
    names = max(cell_len(_name(row)) for row in rows) + 2
    verdict = 2 + max(cell_len(row["verdict"]) for row in rows)
    for beside in (True, False):
        found = _arranged(rows, columns, names, verdict if beside else 1, beside)
        if found.width <= width:
            return found
    for name in (NAME, LEAST_NAME):
        if (found := _arranged(rows, columns, min(names, name), 1, False)).width <= width:
            return found
    for least in LEAST_FIRST:
        columns = [key for key in columns if key != least]
        found = _arranged(rows, columns, min(names, NAME), 1, False)
        if found.width <= width:
            break
    spare = max(0, width - found.width)
    return _arranged(rows, columns, min(names, max(LEAST_NAME, found.name + spare)), 1, False)


def _arranged(rows: Sequence[dict], columns: Sequence[str], name: int, verdict: int, beside: bool) -> Layout:
    widths = [
        max(
            *(cell_len(word) for word in HEADS[key].split()),
            *(_width(*_cells(row, key), beside) for row in rows),
        )
        for key in columns
    ]
    return Layout(tuple(columns), tuple(widths), name, verdict, beside)


def _cells(row: dict, key: str) -> tuple[str, str]:
    """(figure, its interval)."""
    if key in ("tokens", "rewards"):
        return number(row[key]), ""
    if key not in row:
        return "–", ""
    return figure(row, key), margin(row, key)


def _width(figure: str, more: str, beside: bool) -> int:
    if beside:
        return cell_len(figure) + (1 + cell_len(more) if more else 0)
    return max(map(cell_len, _stacked(figure, more)))


def _stacked(figure: str, more: str) -> tuple[str, ...]:
    """In lines, so that a narrow column holds it."""
    if figure == BY_THEOREM:
        return tuple(figure.split())
    return tuple(f"{figure} {more}".replace("…", "… ").split())


def _table(setting: dict, layout: Layout, width: int) -> Iterator[Text]:
    rows = worth_showing(setting["rows"])
    heads = [HEADS[key].split() for key in layout.columns]
    depth = max(map(len, heads), default=1)
    for place in range(depth):
        name = "estimator" if place == depth - 1 else ""
        line = f"{name:<{layout.name}} {'':<{layout.verdict}}"
        for head, size in zip(heads, layout.widths):
            words = [""] * (depth - len(head)) + head
            line += " " * layout.gap + " " * (size - cell_len(words[place])) + words[place]
        yield Text(line.rstrip(), style="bold")
    for row in rows:
        yield from _row(row, layout)
        for line in wrap(too_few(row), width - 4):
            yield Text(f"    {line}", style="yellow")


def _row(row: dict, layout: Layout) -> Iterator[Text]:
    """The lines of a row: its name, and below it what is left of the name and the intervals."""
    names = wrap(_name(row), layout.name - 2) or [""]
    cells = [_cells(row, key) for key in layout.columns]
    stacks = [((each,) if layout.beside else _stacked(*each)) for each in cells]
    words = f"{verdict_symbol(row)} {row['verdict']}" if layout.verdict > 1 else verdict_symbol(row)
    for place in range(max(len(names), *map(len, stacks), 1)):
        line = Text(("★ " if row["frontier"] else "  ") if place == 0 else "  ", style="yellow")
        name = names[place] if place < len(names) else ""
        line.append(name + " " * (layout.name - 2 - cell_len(name)), style="bold" if row["frontier"] else "default")
        verdict = words if place == 0 else ""
        line.append(
            f" {verdict}" + " " * (layout.verdict - cell_len(verdict)), style=COLOURS.get(row["verdict"], "dim")
        )
        for stack, size in zip(stacks, layout.widths):
            part = stack[place] if place < len(stack) else ""
            first, more = part if isinstance(part, tuple) else (part, "")
            if place > 0 and BY_THEOREM.split()[-1] != first:
                first, more = "", first
            text = f"{first} {more}" if first and more else first or more
            line.append(" " * (layout.gap + size - cell_len(text)) + first, style="default")
            line.append(f" {more}" if first and more else more, style="dim")
        line.rstrip()
        yield line


def _name(row: dict) -> str:
    return row["label"] + ("°" if row.get("given_values") else "")


def _best(setting: dict) -> Padding:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("best for", style="bold"), "")
    for best in setting["best"]:
        table.add_row(Text(budgets(best)), Text(best["label"]))
    if any(row["samples"] for row in setting["rows"]):
        table.add_row("", Text("by the figures; within their intervals others may be", style="dim"))
    return Padding(table, (0, 0, 1, 0))
