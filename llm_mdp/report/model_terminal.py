"""Certificates on a language model, in a terminal of 80 columns."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm_mdp.report.rows import bias, number, ratio, unclaimed

COLOURS = {"unbiased": "green", "proportional": "yellow", "biased": "red"}
ROUNDING = 1e-24
"""1 - cosine below this is the rounding of float64 at the logits."""
LEGEND = (
    "The verdict is decided at the logits, in float64: what is unbiased or proportional there is so in every "
    "parametrisation, unless a line above says otherwise. The figures are in all parameters of the model. scale: the "
    "part of the true gradient that E g has, which a learning rate can undo; 1 - cosine: what none can undo; to "
    "signal: the tokens of a batch at which noise equals signal, ± half of an interval of 95 % confidence."
)


def print_model_report(document: dict[str, Any], console: Console) -> None:
    """The model, what it was asked, how much of it the tokens cover, and a line for every row and group size."""
    console.print(_heading(document))
    console.print()
    console.print(_table(document))
    for name, row in document["claims"].items():
        for words in _remarks(row):
            console.print(Padding(Text.assemble((f"{name}: ", "bold"), words), (0, 0, 0, 0)))
    console.print(Text(LEGEND, style="dim"))


def _heading(document: dict[str, Any]) -> Text:
    d = document
    said = Text.assemble(("Gradient check on a language model", "bold"), f"   {d['name']}\n")
    said.append(f"{d['parameters']:,} parameters in {d['dtype']} on {d['device']}\n", style="dim")
    for question in d["questions"]:
        said.append(f"asked: {' '.join(question.split())}\n")
    words = " ".join("eos" if each["id"] == d["eos"] else repr(each["text"])[1:-1] for each in d["tokens"])
    said.append(f"tokens: {words}; at most {d['horizon']} of them, {d['responses']:,} responses\n")
    shares = ", ".join(f"{100 * share:.3g} %" for share in d["covered"])
    said.append(f"of the model's own probability these tokens hold, step by step: {shares}\n")
    rounding = f"(in {d['dtype']} known to {d['resolution']:.0e} of it)"
    return said.append(f"J = {d['J']:.4g}, |∇J| = {number(d['grad_norm'])} {rounding}")


def _table(document: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=False)
    table.add_column("row", overflow="fold", style="bold", max_width=22)
    table.add_column("K", justify="right")
    table.add_column("verdict")
    for name in ("bias", "scale", "1 - cosine", "to signal"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in document["claims"].items():
        sizes = row.get("by_group_size") or {str(row["group_size"] or ""): row}
        for size, figures in sizes.items():
            verdict = Text(figures["verdict"], style=COLOURS.get(figures["verdict"], "dim"))
            if row["holds"] is False and figures is row:
                verdict.append(" ⚠", style="bold red")
            cosine = figures["one_minus_cosine"]
            table.add_row(
                Text(name),
                size,
                verdict,
                bias(figures["relative_bias"]),
                ratio(figures["scale"]),
                "–" if cosine is None else "0" if cosine < ROUNDING else f"{cosine:.1e}",
                _signal(figures),
            )
    return table


def _signal(figures: dict[str, Any]) -> str:
    """Tokens to signal ± half of their interval."""
    if figures["verdict"] == "biased" or figures["tokens_to_signal"] is None:
        return "biased" if figures["verdict"] == "biased" else "–"
    low, high = figures["tokens_to_signal_interval"]
    return f"{number(figures['tokens_to_signal'])} ± {(high - low) / 2:.1g}"


def _remarks(row: dict[str, Any]) -> list[str]:
    """What a row says beside its figures: why there are none, what repairs it, where it contradicts a claim."""
    said = []
    if row["holds"] is False:
        said.append(f"⚠ expected {row['expected']}, found {row['verdict']}")
        said += [unclaimed(row["verdict"])] if row.get("claims_nothing") else []
    if row["verdict"] == "not computed":
        said.append(row["reason"])
    if row["only_here"] is not None:
        said.append(
            f"proportional to within {row['only_here']:.0e} at the logits, not exactly: it may show in other parameters"
        )
    if "undecided" in row:
        said.append(row["undecided"])
    if row["verdict"] == "biased" and row["repair"]:
        said.append(f"→ repair: {row['repair']}")
    return said
