"""Noise and cost in a terminal, at any width from 80 columns."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm_mdp.report.rows import bias, number, ratio
from llm_mdp.report.terminal import COLOURS
from llm_mdp.report.variance_rows import (
    Document,
    budgets,
    facts,
    margin,
    settings_of,
    tokens_to_signal,
    verdict_symbol,
    worth_showing,
)

WIDE = 150
"""Columns from which intervals stand beside their figures."""
WIDER = 172
"""Columns from which there are more figures."""

OVER = "over\nbase"
"""Head of the column with tokens to signal over the base's."""

NARROW = (
    ("estimator", 21),
    ("", 1),
    ("tokens\neach", 6),
    ("reward\ncalls", 7),
    ("tr Cov", 7),
    ("bias", 7),
    ("cosine", 8),
    ("tokens\nto\nsignal", 7),
    ("pro-\ngress", 8),
)
"""Columns and their widths: with one space between them exactly 80."""


def print_variance(document: Document, console: Console) -> None:
    """Print for every setting its best rows, which of them is best for which budgets, and what to take.

    Args:
        document: the output of `llm-mdp variance --json`.
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
        console.print(_rows(setting, console.width), highlight=False)
        if setting["best"]:
            console.print(_best(setting), highlight=False)
        if setting["recommendation"]:
            console.print(Text(setting["recommendation"], style="bold"), highlight=False)


def _heading(setting: dict) -> Text:
    text = Text(setting["name"], style="bold").append(
        f"   {setting['words']}" if setting["words"] else "", style="not bold"
    )
    return text.append("\n" + " · ".join(f"{name} {value}" for name, value in facts(setting)), style="not bold dim")


def _rows(setting: dict, width: int) -> Padding:
    shown = worth_showing(setting["rows"])
    table = _narrow_table(shown, setting["target"] != "exact") if width < WIDE else _wide_table(shown, width >= WIDER)
    left = len(setting["rows"]) - len(shown)
    notes = ["★ on the frontier"] * any(row["frontier"] for row in shown)
    notes += ["° was given values of states"] * any(row.get("given_values") for row in shown)
    notes += ["± 95 %"] * any(row["intervals"] for row in shown)
    notes += [f"base: {setting['base']}"] * bool(setting.get("base"))
    notes += [f"… {left} more, see the page"] * bool(left)
    table.caption = " · ".join(notes)
    table.caption_justify = "left"
    return Padding(table, (1, 0))


def _narrow_table(rows: list[dict], base: bool) -> Table:
    """Intervals below their figures. Where the true gradient is not known, tokens over the base's, which are, in place
    of reward calls."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for name, width in NARROW:
        table.add_column(width=width, overflow="fold", justify="left" if name in ("estimator", "") else "right")
    names = [OVER if base and name == "reward\ncalls" else name for name, _ in NARROW]
    table.add_row(*(Text(name, style="bold") for name in names))
    for row in rows:
        figures = [
            (number(row["tokens"]), ""),
            _over_base(row) if base else (number(row["rewards"]), ""),
            *_figures(row),
        ]
        table.add_row(_name(row), _symbol(row), *(_joined(figure, more, "\n") for figure, more in figures))
    return table


def _wide_table(rows: list[dict], more_figures: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nestimator", overflow="fold")
    table.add_column("\nverdict", no_wrap=True)
    names = ["tokens\neach", OVER, "\ntr Cov", "\nbias", "\ncosine", "tokens to\nsignal", "\nprogress"]
    for name in names + ["\nscale", "\nMSE", "\nSNR", "reward\ncalls"] * more_figures:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        figures = [(number(row["tokens"]), ""), _over_base(row), *_figures(row)]
        if more_figures:
            more = ("mean_squared_error", "signal_to_noise", "rewards")
            figures += [(ratio(row["scale"]), ""), *((number(row[key]), "") for key in more)]
        verdict = _symbol(row).append(f" {row['verdict']}")
        table.add_row(_name(row), verdict, *(_joined(figure, more, " ") for figure, more in figures))
    return table


def _figures(row: dict) -> list[tuple[str, str]]:
    """(figure, its interval) from the covariance's trace to the progress."""
    return [
        (number(row["trace_covariance"]), margin(row, "trace_covariance")),
        (bias(row["relative_bias"]), margin(row, "relative_bias")),
        (ratio(row["cosine"]), margin(row, "cosine")),
        (tokens_to_signal(row), margin(row, "tokens_to_signal")),
        (number(row["progress"]), margin(row, "progress")),
    ]


def _over_base(row: dict) -> tuple[str, str]:
    return number(row["tokens_over_base"]), margin(row, "tokens_over_base")


def _joined(figure: str, more: str, between: str) -> Text:
    return Text(figure).append(f"{between}{more}" if more else "", style="dim")


def _name(row: dict) -> Text:
    star, style = ("★ ", "bold") if row["frontier"] else ("  ", "default")
    return Text(star, style="yellow").append(row["label"] + ("°" if row.get("given_values") else ""), style=style)


def _symbol(row: dict) -> Text:
    return Text(verdict_symbol(row), style=COLOURS.get(row["verdict"], "dim"))


def _best(setting: dict) -> Padding:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("best for", style="bold"), "")
    for best in setting["best"]:
        table.add_row(Text(budgets(best)), Text(best["label"]))
    return Padding(table, (0, 0, 1, 0))
