"""The audit of a library as all its reports write it: what an option is called, what it is, and since when."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llm_mdp.audit.library import YOURS
from llm_mdp.report.rows import Span, bias, number, ratio, span_text
from llm_mdp.verify.certificate import worst as of_all

Row = Mapping[str, Any]
"""One row of `llm-mdp audit --json`."""

HEADS = ("what it is called or says", "what it is", "since when")
"""The columns that every report has."""

PARTS = {"problems": "whole loss", "advantages": "advantages alone"}
"""The certificates of a row, and what they are of: the loss with its reduction, and weights summed over tokens."""

ORDER = ("unbiased", "proportional", "biased", "undecided")
"""Verdicts as they are counted."""


def parts(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    """The certificates of a row by what they are of: problem by problem. One alone is of what there is."""
    found: list[tuple[str, Mapping[str, Any]]] = [(words, row[key]) for key, words in PARTS.items() if row.get(key)]
    return found if len(found) > 1 else [("certificate", problems) for _, problems in found]


def worst(problems: Mapping[str, Any]) -> str:
    """Of several problems: biased if it is so on one, else undecided, else proportional, else unbiased."""
    return of_all(each["verdict"] for each in problems.values())


def figures(problems: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Bias, scale and cosine with their range over the problems; none where nothing was computed."""
    written = []
    for name, key, write in (("bias", "relative_bias", bias), ("scale", "scale", ratio), ("cosine", "cosine", ratio)):
        values = [each[key] for each in problems.values() if each.get(key) is not None]
        if values:
            written.append((name, span_text(Span(min(values), max(values)), write)))
    return written


def where(problems: Mapping[str, Any]) -> str:
    """On which problems it is as bad as the row says, where not on all."""
    verdict = worst(problems)
    found = [name for name, each in problems.items() if each["verdict"] == verdict]
    return "" if len(found) == len(problems) else f"on {', '.join(found)} only"


def batch_words(row: Row) -> str:
    """What becomes of the error of direction with more prompts an update, with the figures; empty: nothing is said, or
    only again why nothing could be certified."""
    batch = row.get("with_batch")
    if not batch or len(row["prompts"]) < 2:
        return ""
    pairs = list(zip(batch.get("prompts") or [], batch.get("one_minus_cosine") or []))
    if row["verdict"] == "undecided" and not pairs:
        return ""
    listed = ", ".join(f"{number(value)} at P = {prompts}" for prompts, value in pairs if value is not None)
    rate = batch.get("rate")
    said = batch["says"] if rate is None else f"{batch['says']} (like P^-{rate:.2g})"
    place = f" ({batch['instance']})" if batch.get("instance") else ""
    return f"{said}: 1 - cosine {listed}{place}" if listed else f"{said}{place}"


def since(row: Row) -> str:
    """The version from which on it is so, as far as is known, and whether it is the default."""
    known = row.get("since") or row.get("version") or ""
    return " · ".join(word for word in (known, "default" if row.get("default") else "") if word)


def verdict_words(row: Row) -> str:
    """The verdict, and of which target it is where that is not ∇J."""
    of = "" if row["target"] == "reward" else f" for ∇({row['target']})"
    return f"{row['verdict']}{of}"


def finding(row: Row) -> str:
    """What was found, in a sentence that does not begin with the verdict again."""
    return (row.get("finding") or "").removeprefix(f"{row['verdict']}: ")


def repair(row: Row) -> str:
    """What the library itself offers instead; nothing where it is what it is called."""
    return (row.get("repair") or "") if row["verdict"] != "unbiased" else ""


def setting(row: Row) -> str:
    """K and P that a row is about."""
    return f"K = {row['group_size']}, P = {row['prompts'][0]}"


def common_setting(rows: Sequence[Row]) -> str:
    """K and P of all rows; empty where they differ."""
    found = {setting(row) for row in rows}
    return found.pop() if len(found) == 1 else ""


def titles(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each library, with its name and version, in the order in which they come."""
    names = list(dict.fromkeys(_title(row) for row in rows))
    return [(name, [row for row in rows if _title(row) == name]) for name in names]


def _title(row: Row) -> str:
    if row["library"] == YOURS:
        return "your functions"
    return " ".join(word for word in (row["library"], row.get("version")) if word)


def summary(rows: Sequence[Row]) -> str:
    """How many options are what they are called, and of how many that are not a repair is known."""
    counts = Counter(row["verdict"] for row in rows)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    repaired = sum(row["verdict"] == "biased" and bool(row.get("repair")) for row in rows)
    known = f"; a repair in the library's own options is known of {repaired} of the biased" if repaired else ""
    return f"{len(rows)} {'option' if len(rows) == 1 else 'options'}: {said}{known}."


CAVEAT = (
    "Exact, for one update on fresh responses (the first update, every ratio 1), at the K and P given. unbiased: the "
    "expected gradient is that of the target. proportional: up to a factor that a learning rate undoes. biased: it "
    "points elsewhere; of defaults that never claimed otherwise this is a fact about them, not a fault."
)
"""What stands under every audit."""
