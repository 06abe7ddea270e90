"""The audit of a library as one self-contained HTML page: no network, no fonts, works without JavaScript too."""

from collections.abc import Sequence
from typing import Any

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
from llm_mdp.report.pages import check_finite, rendered
from llm_mdp.report.rows import SYMBOLS


def render_audit(rows: Sequence[Row], command: str = "") -> str:
    """The page of an audit.

    Everything is rendered here; the page's script only filters.

    Args:
        rows: the output of `llm-mdp audit --json`; embedded in the page as it is.
        command: as typed.

    Raises:
        ValueError: if there are no rows, or one holds a number that JSON cannot, naming its place.
    """
    if not rows:
        raise ValueError("there are no rows; give the JSON that `llm-mdp audit … --json FILE` writes.")
    check_finite(list(rows))
    present = {row["verdict"] for row in rows}
    libraries = titles(rows)
    facts = [("libraries", ", ".join(title for title, _ in libraries)), ("options", str(len(rows)))]
    if one := common_setting(rows):
        facts.append(("setting", one))
    return rendered(
        "audit.html",
        document=list(rows),
        facts=facts,
        command=command,
        summary=summary(rows),
        caveat=CAVEAT,
        heads=HEADS,
        verdicts=[verdict for verdict in SYMBOLS if verdict in present],
        libraries=[(title, [_shown(row, own_setting=not one) for row in members]) for title, members in libraries],
    )


def _shown(row: Row, own_setting: bool) -> dict[str, Any]:
    """A row as the template writes it."""
    certificates = [
        {"of": words, "verdict": worst(found), "where": where(found), "figures": figures(found)}
        for words, found in parts(row)
    ]
    return {
        "option": row["option"],
        "verdict": row["verdict"],
        "words": verdict_words(row),
        "claim": row["claim"],
        "place": row.get("place") or "",
        "finding": finding(row),
        "certificates": certificates,
        "batch": batch_words(row),
        "note": row.get("note") or "",
        "setting": setting(row) if own_setting else "",
        "diagnosis": (row.get("diagnosis") or {}).get("lines", []),
        "repair": repair(row),
        "since": since(row),
        "example": row.get("example"),
    }
