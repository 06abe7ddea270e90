"""The ledger as one self-contained HTML page, to send to a colleague: no network, no fonts, works without JavaScript
too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mdp.report.drawings import MAX_EDGES, edge_count, plane_svg, prompt_count, tree_svg
from llm_mdp.report.pages import check_finite, rendered
from llm_mdp.report.paths import paths_figure
from llm_mdp.report.price_plot import price_svg, without_price
from llm_mdp.report.rows import (
    BY,
    EXACT,
    FINDINGS,
    PRACTICE,
    SYMBOLS,
    ClaimRow,
    Document,
    claim_rows,
    contradiction_text,
    exit_meaning,
    figure_text,
    grouped,
    headline,
    named_instances,
    setting,
    summary,
    tone,
)
from llm_mdp.report.size_curves import size_curves
from llm_mdp.report.sizes import HEAD, methods, missing, own_size, points, rates, where
from llm_mdp.verify.typical_price import rows_with_price

Instances = list[tuple[str, dict]]


@dataclass(frozen=True)
class Track:
    """A line below a figure on which its range lies."""

    kind: str
    left: float
    right: float


@dataclass(frozen=True)
class Column:
    """One figure of every claim."""

    name: str
    key: str
    worst: str
    """The end of its range by which it is sorted: low or high."""
    track: Track | None = None
    brief: str = ""
    """Its name where room is scarce."""


COLUMNS = (
    Column("relative bias", "relative_bias", "high", Track("from-zero", 0.0, 1.0), "bias"),
    Column("scale", "scale", "high", Track("scale", -1.0, 2.0)),
    Column("cosine", "cosine", "low", Track("cosine", -1.0, 1.0)),
    Column("tokens to signal", "tokens_to_signal", "high", brief="to signal"),
)


@dataclass(frozen=True)
class Figure:
    """One figure of a claim in one view, as the page writes it."""

    text: str
    tone: str
    sort: str
    exact: str
    """Every digit, as a tooltip."""
    track: str = ""
    """Classes of the track, if there is one."""
    ends: tuple[float, float] = (0.0, 0.0)
    """Where on the track its range begins and ends, in percent."""


@dataclass(frozen=True)
class Verdict:
    """The verdicts of a claim in one view, as the page writes them."""

    counts: tuple[tuple[str, int], ...]
    instances: int
    expected: str
    """What was expected where that is not what was found."""
    sort: float | str


def render_ledger(document: Document) -> str:
    """The page of a ledger.

    With several instances every figure is there once for all of them together and once for each ("views"); the page
    shows one view at a time. Everything is rendered here; the page's script only sorts, filters and chooses the view.

    Args:
        document: the output of `llm-mdp verify --json`, for one instance or several; embedded in the page as it is.

    Raises:
        ValueError: if the document has no claims, or holds a number that JSON cannot (NaN, infinity), naming its place.
    """
    check_finite(document)
    instances = named_instances(document)
    rows = claim_rows(instances)
    places = {row.id: place for place, row in enumerate(rows)}
    views = [instances] if len(instances) == 1 else [instances, *([instance] for instance in instances)]
    by_view = [{row.id: row for row in claim_rows(view)} for view in views]
    planes = [plane_svg([(row, f"claim-{places[row.id]}") for row in view.values()]) for view in by_view]
    present = {verdict for row in rows for verdict, _ in row.verdicts}
    return rendered(
        "ledger.html",
        document=document,
        instances=instances,
        facts=setting(instances),
        command=instances[0][1].get("command", ""),
        meaning=exit_meaning(rows),
        headline=headline(rows, name=False),
        summary=summary(rows, len(instances)),
        wrong=[(places[row.id], row) for row in rows if row.contradictions],
        planes=_by_view(planes),
        verdicts=[verdict for verdict in SYMBOLS if verdict in present],
        findings=[found for found in (*FINDINGS, PRACTICE) if any(row.finding == found for row in rows)],
        columns=COLUMNS,
        groups=[(title, [_claim(places[row.id], row, by_view) for row in members]) for title, members in grouped(rows)],
        trees=[_trees(instance.get("instance") or {}) for _, instance in instances],
        contradiction_text=contradiction_text,
        own_size=own_size,
        over_sizes=over_sizes,
        paths_figure=paths_figure,
        prices=(prices := _prices(rows)),
        without_price=without_price() if prices else [],
        figure_text=figure_text,
    )


def _by_view(contents: Sequence[Any]) -> list[tuple[int | None, Any]]:
    """(view, what it shows); one for all views (None) if they all show the same."""
    if all(content == contents[0] for content in contents):
        return [(None, contents[0])]
    return list(enumerate(contents))


def _claim(place: int, row: ClaimRow, by_view: list[dict[str, ClaimRow]]) -> dict[str, Any]:
    rows = [view.get(row.id) for view in by_view]
    return {
        "place": place,
        "row": row,
        "verdicts": _by_view([_verdict(each) for each in rows]),
        "figures": [(column.name, _by_view([_figure(each, column) for each in rows])) for column in COLUMNS],
    }


def _verdict(row: ClaimRow | None) -> Verdict:
    if row is None:
        return Verdict((), 0, "", "")
    expected = " or ".join(dict.fromkeys(claim["expected"] for _, claim in row.contradictions))
    rank = list(SYMBOLS).index(row.verdict) if row.verdict in SYMBOLS else 99
    return Verdict(tuple(row.verdicts), len(row.entries), expected, rank - 0.5 * bool(expected))


def _figure(row: ClaimRow | None, column: Column) -> Figure:
    if row is None:
        return Figure("–", "is-mixed", "", "")
    span, text = row.span(column.key), figure_text(row, column.key)
    kind = tone(row.verdict) if len(row.verdicts) == 1 else "is-mixed"
    if span.low is None or span.high is None:
        return Figure(text, kind, "", "")
    exact = f"{span.low!r}" if span.low == span.high else f"{span.low!r} … {span.high!r}"
    sort = repr(getattr(span, column.worst))
    if column.track is None:
        return Figure(text, kind, sort, exact)
    low, high, (left, right) = span.low, span.high, (column.track.left, column.track.right)
    # What lies outside ends at the edge, marked.
    beyond = " beyond-left" * (low < left - EXACT) + " beyond-right" * (high > right + EXACT)
    start, end = ((min(max(value, left), right) - left) / (right - left) * 100 for value in (low, high))
    return Figure(text, kind, sort, exact, column.track.kind + beyond, (start, end))


def _prices(rows: list[ClaimRow]) -> str:
    """The picture of what biases cost, where one of the rows is in it; else nothing."""
    known = set(rows_with_price())
    return price_svg() if any(row.id in known and row.gravest == "biased" for row in rows) else ""


def over_sizes(row: ClaimRow) -> dict[str, Any] | None:
    """What the page shows of a row at other group sizes and numbers of prompts; None: nothing is known."""
    tables = [
        {
            "letter": letter,
            "points": listed,
            "curves": curves,
            "about": [said for said in (where(row, by), rates(row, by), missing(row, by)) if said],
        }
        for (by, letter), curves in zip(BY.items(), size_curves(row))
        if (listed := points(row, by))
    ]
    return {"tables": tables, "head": HEAD, "methods": methods(row)} if tables else None


def _trees(content: dict) -> dict[str, Any]:
    """What an instance is, and its trees if they can be read."""
    names = {"vocab_size": "vocabulary", "eos": "end token", "horizon": "horizon", "gamma": "γ"}
    facts = [(label, content[key]) for key, label in names.items() if key in content]
    about = " · ".join(f"{label} {'none' if value is None else format(value, 'g')}" for label, value in facts)
    if not content.get("nodes"):
        note = "This instance lists no nodes, so there is no tree to draw."
    elif (edges := edge_count(content)) > MAX_EDGES:
        note = f"The tree has {edges} edges, too many to draw readably (at most {MAX_EDGES})."
    else:
        prompts = content.get("prompts", [None])
        drawn = [(prompts[place], tree_svg(content, place)) for place in range(prompt_count(content))]
        return {"about": about, "note": "", "drawn": drawn}
    return {"about": about, "note": note, "drawn": []}
