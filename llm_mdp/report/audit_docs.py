"""docs/audit.md and its page from an audit's rows: `python -m llm_mdp.report.audit_docs RESULTS audit.md audit.html`.

RESULTS is what `make audit` wrote, benchmarks/results/audit.json: what made it, and the rows of `llm-mdp audit --json`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_mdp.files import write_text
from llm_mdp.report.audit_page import render_audit
from llm_mdp.report.audit_rows import (
    CAVEAT,
    HEADS,
    ORDER,
    Row,
    batch_words,
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
from llm_mdp.report.readme import code, escape, lines_of
from llm_mdp.report.rows import SYMBOLS

INTRO = """# The audit: what the code is that people train with

Nobody trains with our re-implementation of GRPO; they train with a library. Here the certificate is of **the
libraries' own functions**, as pip installs them, option by option: their advantages, their losses, their
reductions, called on every group of responses of three small token MDPs (dense rewards; two prompts; right-or-wrong
rewards). Nothing of theirs was typed again. What they say about an option is told in our words, with the place
where they say it.

Read it as a map, not as a verdict on people's work: most of these options never claimed to be unbiased, some trade
a bias for less noise, and all were written to train large models, which they do. Where a name or a document
promises more than the code keeps, the row says so, with the smallest example and a repair in the library's own
options."""

CAVEATS = """\
- *First update.* Fresh responses, every ratio 1: what clipping, staleness and second epochs do is in none of these
  figures.
- *K and P* stand above each table. Errors that come from statistics over the batch shrink with it; the column *with
  the batch* says which.
- *whole loss* is what the trainer minimises with that option, its reduction included; *advantages alone* are the
  weights it gives to tokens, under the sum.
- *since when* is the version that was audited, not the first that has it. Libraries move; `make audit` computes all
  of it anew, in the environments that `benchmarks/audit/requirements-*.txt` pin."""


def audit_markdown(document: Mapping[str, Any]) -> str:
    """The page: how it was made, how to read it, all libraries in one table, and each of them.

    Raises:
        ValueError: if the document has no rows.
    """
    rows = document.get("rows")
    if not rows:
        raise ValueError("the document has no rows; give what benchmarks/audit/run.py wrote.")
    made = ", ".join(f"{name} {document[key]}" for name, key in MADE if document.get(key))
    intro = f"Made by {code(document['command'])} ({made}). {escape(summary(rows))}"
    libraries, commits = titles(rows), document.get("commits", {})
    return (
        "\n\n".join(
            [
                INTRO,
                intro,
                f"## How to read it\n\n{CAVEAT}\n\n{CAVEATS}",
                f"## All libraries\n\n{_overview(libraries)}",
                *(_library(title, members, commits.get(members[0]["library"])) for title, members in libraries),
            ]
        )
        + "\n"
    )


MADE = (("llm-mdp", "llm_mdp"), ("Python", "python"), ("torch", "torch"))


def _overview(libraries: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """How many options of each library have which verdict, and what its defaults are."""
    lines = [["library", *ORDER, "defaults"], ["---", *["---:"] * len(ORDER), "---"]]
    for title, rows in libraries:
        counts = Counter(row["verdict"] for row in rows)
        defaults = [f"{code(row['option'])} {_badge(row['verdict'])}" for row in rows if row.get("default")]
        anchor = title.lower().replace(".", "").replace(" ", "-")
        lines.append([f"[{escape(title)}](#{anchor})", *(str(counts[each]) for each in ORDER), "<br>".join(defaults)])
    return lines_of(lines)


def _library(title: str, rows: Sequence[Row], commit: str | None) -> str:
    """The matrix of a library, and below it the rows that are not what they are called."""
    settings = "; ".join([*dict.fromkeys(map(setting, rows)), *([f"commit {commit}"] if commit else [])])
    sections = [f"## {escape(title)}", f"{escape(summary(rows))} {settings}."]
    head = ["option", *HEADS[:2], "with the batch", HEADS[2]]
    sections.append(lines_of([head, ["---"] * len(head), *map(_cells, rows)]))
    if surprising := [row for row in rows if row["verdict"] == "biased" and (row.get("example") or repair(row))]:
        sections.append(f"### {escape(title)}: examples and repairs")
        sections += map(_example, surprising)
    return "\n\n".join(sections)


def _cells(row: Row) -> list[str]:
    """One line of a matrix."""
    said = [_badge(verdict_words(row), row["verdict"]), *([escape(finding(row))] if finding(row) else [])]
    for words, problems in parts(row):
        shown = ", ".join(f"{name} {written}" for name, written in figures(problems))
        found = " ".join(
            filter(None, (_badge(worst(problems)), escape(where(problems)), escape(f"({shown})" if shown else "")))
        )
        said.append(f"{words}: {found}")
    if row.get("note"):
        said.append(f"*{escape(row['note'])}*")
    claim = "<br>".join([escape(row["claim"]), *([_code(row["place"])] if row.get("place") else [])])
    return [_option(row["option"]), claim, "<br>".join(said), escape(batch_words(row)) or "–", escape(since(row))]


def _option(text: str) -> str:
    """An option in a narrow column: one that is made of several breaks behind their commas."""
    *first, last = text.split(",")
    return "<wbr>".join([*(_code(f"{part},") for part in first), _code(last)])


def _code(text: str) -> str:
    """A code span in a cell of a table."""
    return code(text).replace("|", "\\|")


def _badge(words: str, verdict: str = "") -> str:
    return escape(f"{SYMBOLS.get(verdict or words, '–')} {words}")


def _example(row: Row) -> str:
    """A row that is not what it is called: what it promises, what comes out, on the smallest example; the repair."""
    lines = [f"#### {code(row['option'])}"]
    said = finding(row)[:1].upper() + finding(row)[1:]
    lines.append(escape(said) + (f" **Repair:** {escape(repair(row).rstrip('.'))}." if repair(row) else ""))
    if example := row.get("example"):
        lines.append(f"Smallest example, {escape(example['words'])}.")
        lines += [_table(example["responses"]), _table(example["gradients"])]
    return "\n\n".join(lines)


def _table(table: Mapping[str, Any]) -> str:
    rule = ["---", *["---:"] * (len(table["head"]) - 1)]
    cells = [[escape(cell) for cell in line] for line in (table["head"], *table["lines"])]
    return lines_of([cells[0], rule, *cells[1:]])


def main(arguments: list[str] | None = None) -> int:
    """Write docs/audit.md and the page."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_mdp.report.audit_docs", description="Write what an audit found into Markdown and a page."
    )
    parser.add_argument("results", type=Path, help="what benchmarks/audit/run.py wrote")
    parser.add_argument("markdown", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args(arguments)
    try:
        document = json.loads(options.results.read_text(encoding="utf-8"))
        write_text(options.markdown, audit_markdown(document))
        write_text(options.page, render_audit(document["rows"], document["command"]))
    except (OSError, ValueError) as error:
        parser.error(f"{options.results}: {error}")
    print(f"{options.markdown} and {options.page} written, {len(document['rows'])} rows.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
