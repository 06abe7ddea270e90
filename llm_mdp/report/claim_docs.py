"""The ledger as pages, a section a claim: `python -m llm_mdp.report.claim_docs RESULTS FOLDER [--check]`.

Verdicts and figures come from a run of the ledger, everything else from the claims, the stored prices and the files of
counter-examples that stand in the folders beside FOLDER.
"""

import argparse
import json
import sys
from pathlib import Path

from llm_mdp.report.readme import code, escape
from llm_mdp.report.rows import (
    FINDINGS,
    SYMBOLS,
    TITLES,
    ClaimRow,
    Document,
    claim_rows,
    figure_text,
    named_instances,
    verdict_text,
)
from llm_mdp.verify.typical_price import HARMLESS, KINDS, price_text, typical_prices

EXAMPLES = {"counterexamples": "the smallest that was found", "adversarial": "where following it is worst"}
"""Folders beside that of the pages with an instance file for some claims, and what such a file is."""
INTRO = """Each section is one claim: what is computed, what came out on the instances of the [ledger](../ledger.md) and
why, with the paper's own words where it speaks of it. *Why* is the idea of the proof. A range goes over the instances,
`{count}` means on all of them; `<1e-9` is the rounding of the arithmetic. Symbols and figures:
[glossary](../concepts.md#glossary). Papers: [references](../references.md)."""
FIGURES = {
    "relative_bias": "relative bias",
    "scale": "scale",
    "cosine": "cosine",
    "tokens_to_signal": "tokens to signal",
}
TARGETS = {"kl": "KL(π‖ref)", "kl at visited states": "KL(π‖ref) at the visited prefixes", "entropy": "the entropy"}


def claim_pages(document: Document, folder: Path) -> dict[str, str]:
    """The text of each page by its name.

    Args:
        document: the output of `llm-mdp verify --json`.
        folder: where the pages are; instance files are looked for beside it.
    """
    rows = claim_rows(named_instances(document))
    count = f"{len(document['instances'])}/{len(document['instances'])}"
    pages = {}
    for group, title in TITLES.items():
        sections = [_section(row, folder) for row in rows if row.lead["group"] == group]
        head = "<!-- Written by `python -m llm_mdp.report.claim_docs`. -->"
        pages[f"{group}.md"] = "\n\n".join([f"# {title}", head, INTRO.format(count=count), *sections]) + "\n"
    return pages


def _section(row: ClaimRow, folder: Path) -> str:
    lead, target = row.lead, str(row.lead["target"])
    against = "" if target == "reward" else f" Compared with the gradient of {escape(TARGETS.get(target, target))}."
    figures = [
        f"{name} {escape(figure_text(row, key))}" for key, name in FIGURES.items() if row.span(key).low is not None
    ]
    found = {
        "Verdict": f"{SYMBOLS[row.verdict]} **{escape(verdict_text(row))}**{_finding(row)}",
        "Figures": ", ".join(figures),
        "Certificate": escape(row.certificate or ""),
        "Why": escape("; ".join(row.reasons)),
        "Repair": escape("; ".join(row.repairs)),
        "Price": _price(row),
        "Instance file": _files(row.id, folder),
    }
    said = [f"{escape(lead['statement'])}.{against}", f"*{escape(lead['source'])}*"]
    said += [f"> The paper: {escape(row.paper)}"] if row.paper else []
    return "\n\n".join([f"## {row.id}", *said, "\n".join(f"- {name}: {text}." for name, text in found.items() if text)])


def _finding(row: ClaimRow) -> str:
    return f"; the paper's statement {FINDINGS[row.finding][0]}" if row.finding in FINDINGS else ""


def _price(row: ClaimRow) -> str:
    if not (text := escape(price_text(row.id, row.gravest))):
        return ""
    text = f"[{text}](../price.md)"
    priced = {KINDS[kind]: each.worst for kind, each in typical_prices(row.id).items()}
    worst = [f"{value:.2g} ({kind})" for kind, value in priced.items() if value is not None and value > HARMLESS]
    return text + (f"; the worst of these tables {', '.join(worst)}" if worst else "")


def _files(claim: str, folder: Path) -> str:
    """Links to the claim's instance files, each with the command that computes what it shows."""
    found = []
    for name, what in EXAMPLES.items():
        file = f"{name}/{claim}.json"
        if (folder.parent / file).exists():
            found.append(f"[{file}](../{file}), {what}: {code(f'llm-mdp verify {claim} --instance docs/{file}')}")
    return "; ".join(found)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 if `--check` finds a page out of date."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_mdp.report.claim_docs", description="Write the pages of the ledger, a section a claim."
    )
    parser.add_argument("results", type=Path, help="what `llm-mdp verify --json FILE` wrote")
    parser.add_argument("folder", type=Path, help="where the pages are written")
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a page is out of date")
    options = parser.parse_args(arguments)
    try:
        pages = claim_pages(json.loads(options.results.read_text(encoding="utf-8")), options.folder)
    except (OSError, ValueError) as error:
        parser.error(f"{options.results}: {error}")
    paths = {options.folder / name: text for name, text in pages.items()}
    if options.check:
        old = [path for path, text in paths.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        print(f"{', '.join(map(str, old)) or 'nothing'} out of date.")
        return int(bool(old))
    options.folder.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(paths)} pages written to {options.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
