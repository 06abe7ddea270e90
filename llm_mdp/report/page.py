"""The ledger as one self-contained HTML page, to send to a colleague: no network, no fonts, works without JavaScript
too."""

import json
import math
import re
from collections.abc import Callable
from html import escape
from importlib.resources import files

from llm_mdp.report.drawings import MAX_EDGES, class_name, edge_count, plane_svg, prompt_count, tree_svg
from llm_mdp.report.rows import (
    EXACT,
    SYMBOLS,
    Document,
    Row,
    Span,
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
)

Instances = list[tuple[str, dict]]


def render_page(document: Document) -> str:
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
    views = [instances] if len(instances) == 1 else [instances, *([instance] for instance in instances)]
    slots = {
        "title": _title(instances),
        "facts": _facts(instances),
        "verdict": _verdict_banner(rows, len(instances)),
        "views": _view_cards(views),
        "planes": _each_view([plane_svg(_linked(view, rows)) for view in views]),
        "chips": _chips(rows),
        "table": _table(rows, views),
        "instances": "".join(
            _instance(place, name, instance, views) for place, (name, instance) in enumerate(instances)
        ),
        "json": embedded_json(document),
    }
    return filled("llm_mdp.report", "page_template.html", slots)


def filled(package: str, template: str, slots: dict[str, str]) -> str:
    """A package's template with its slots `{{name}}` filled, `{{style}}` with what all pages share.

    In one pass, so that a slot's name inside somebody's text is left alone.
    """
    slots = {"style": files("llm_mdp.report").joinpath("page_style.css").read_text(encoding="utf-8")} | slots
    text = files(package).joinpath(template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], text)


def check_finite(value: object, place: str = "the document") -> None:
    """Raise ValueError for the first number that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}, which JSON cannot hold; write null for a figure that is not defined.")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        check_finite(item, f"{place}[{key!r}]")


def embedded_json(document: Document) -> str:
    """JSON that neither ends the script element it stands in nor opens another; still plain JSON, equal to the
    document."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _title(instances: Instances) -> str:
    return escape(instances[0][0] if len(instances) == 1 else f"{len(instances)} instances")


def _facts(instances: Instances) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in setting(instances))
    return f"<dl class=facts>{facts}</dl><p class=command><code>{escape(str(instances[0][1].get('command', '')))}</code></p>"


def _verdict_banner(rows: list[Row], instances: int) -> str:
    wrong = [(place, row) for place, row in enumerate(rows) if row.contradictions]
    items = "".join(
        f'<li><a href="#claim-{place}">{escape(row.id)}</a> {escape(contradiction_text(row))}</li>'
        for place, row in wrong
    )
    return (
        f'<div class="banner {"wrong" if wrong else "right"}"><p><strong>{escape(exit_meaning(rows))}</strong> '
        f"{escape(summary(rows, instances))}</p>{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _view_cards(views: list[Instances]) -> str:
    """Cards with J and its gradient's length; with several instances they choose the view."""
    if len(views) == 1:
        return f"<div class=cards>{_card_text(views[0][0])}</div>"
    choices = [f"<strong>All {len(views[0])}</strong><span>ranges over the instances</span>"]
    choices += [_card_text(view[0]) for view in views[1:]]
    cards = "".join(
        f"<label class=card><input type=radio name=view "
        f'value="{view}"{" checked" if view == 0 else ""}>{choice}</label>'
        for view, choice in enumerate(choices)
    )
    return f"<fieldset class=cards><legend>Instance</legend>{cards}</fieldset>"


def _card_text(named: tuple[str, dict]) -> str:
    name, instance = named
    return (
        f"<span class=about><strong>{escape(name)}</strong><span>{escape(str(instance.get('policy', '')))}</span>"
        f"<span>J = {number(instance.get('J'))}</span><span>|∇J| = {number(instance.get('grad_norm'))}</span></span>"
    )


def _each_view(contents: list[str], attributes: list[str] | None = None) -> str:
    """One block a view, all but the first hidden; a single block if they are all the same."""
    attributes = attributes or [""] * len(contents)
    if len(set(zip(contents, attributes))) == 1:
        return f"<div {attributes[0]}>{contents[0]}</div>"
    blocks = enumerate(zip(contents, attributes))
    return "".join(f'<div data-view="{k}" {a}{" hidden" if k else ""}>{content}</div>' for k, (content, a) in blocks)


def _linked(view: Instances, rows: list[Row]) -> list[tuple[Row, str]]:
    links = {row.id: f"claim-{place}" for place, row in enumerate(rows)}
    return [(row, links[row.id]) for row in claim_rows(view)]


def _chips(rows: list[Row]) -> str:
    present = {verdict for row in rows for verdict, _ in row.verdicts}
    verdicts = [verdict for verdict in SYMBOLS if verdict in present]
    chips = [(verdict, f"{SYMBOLS[verdict]} {verdict}", class_name(verdict)) for verdict in verdicts]
    if any(row.contradictions for row in rows):
        chips.append(("contradiction", "⚠ contradiction", "is-wrong"))
    return "".join(
        f'<button type=button class="chip {kind}" data-verdict="{value}" aria-pressed=false>{label} <span '
        f"class=count></span></button>"
        for value, label, kind in chips
    )


def _table(rows: list[Row], views: list[Instances]) -> str:
    by_view = [{row.id: row for row in claim_rows(view)} for view in views]
    order = {row.id: place for place, row in enumerate(rows)}
    bodies = []
    for title, members in grouped(rows):
        claims = "1 claim" if len(members) == 1 else f"{len(members)} claims"
        bodies.append(
            f"<tbody class=group><tr><th colspan=6 scope=colgroup>{escape(title)} "
            f"<small>{claims}</small></th></tr></tbody>"
        )
        bodies += [_claim(order[row.id], row, [view.get(row.id) for view in by_view], title) for row in members]
    return "".join(bodies)


def _claim(place: int, row: Row, views: list[Row | None], group: str) -> str:
    """The two table rows of a claim: its figures, and what to know about them."""
    words = row.lead
    columns = (
        ("relative bias", "relative_bias", "high", _bias_cell),
        ("scale", "scale", "high", _scale_cell),
        ("cosine", "cosine", "low", _cosine_cell),
        ("tr Cov", "trace_covariance", "high", _trace_cell),
    )
    figures = "".join(_figure(views, *column) for column in columns)
    kind = "claim wrong" if row.contradictions else "claim"
    return (
        f'<tbody id="claim-{place}" class="{kind}" data-order="{place}"><tr class=figures><th scope=row>'
        f'<button type=button class=toggle aria-expanded=true aria-controls="more-{place}">{escape(row.id)}</button>'
        f"<span class=statement>{escape(words['statement'])}</span>"
        f"<span class=source><span class=in-group>{escape(group)} · </span>{escape(words['source'])}</span></th>"
        f'<td data-label="verdict">{_verdict_views(views)}</td>{figures}</tr>'
        f'<tr class=more id="more-{place}"><td colspan=6>{_more(row)}</td></tr></tbody>'
    )


def _verdict_views(views: list[Row | None]) -> str:
    ranks = {verdict: rank for rank, verdict in enumerate(SYMBOLS)}
    contents, attributes = [], []
    for row in views:
        verdicts = [verdict for verdict, _ in row.verdicts] if row else []
        wrong = ["contradiction"] if row and row.contradictions else []
        contents.append(_badges(row) if row else "–")
        sort = ranks.get(row.verdict, 99) - 0.5 * bool(wrong) if row else ""
        attributes.append(f'class=verdict data-sort="{sort}" data-verdicts="{escape("|".join([*verdicts, *wrong]))}"')
    return _each_view(contents, attributes)


def _badges(row: Row) -> str:
    several = len(row.entries) > 1
    badges = "".join(
        f'<span class="badge {class_name(verdict)}">{SYMBOLS[verdict]} {escape(verdict)}'
        f"{f' <small>{count}/{len(row.entries)}</small>' if several else ''}</span>"
        for verdict, count in row.verdicts
    )
    expected = " or ".join(dict.fromkeys(claim["expected"] for _, claim in row.contradictions))
    return badges + (f'<span class="badge is-wrong">⚠ expected {escape(expected)}</span>' if expected else "")


def _figure(views: list[Row | None], label: str, key: str, end: str, draw: Callable[[Span], str]) -> str:
    spans = [row.span(key) if row else Span(None, None) for row in views]
    sorts = [getattr(span, end) for span in spans]
    kinds = [class_name(row.verdict) if row and len(row.verdicts) == 1 else "is-mixed" for row in views]
    attributes = [
        f'class="{kind}" data-sort="{"" if value is None else repr(value)}" title="{_exact(span)}"'
        for kind, value, span in zip(kinds, sorts, spans)
    ]
    contents = [draw(span) for span in spans]
    if key == "relative_bias":
        contents = [content + _bound(row) for content, row in zip(contents, views)]
    return f'<td data-label="{label}">{_each_view(contents, attributes)}</td>'


def _bound(row: Row | None) -> str:
    """The certified upper bound of a sampled relative bias."""
    bound = row.span("bound").high if row else None
    return "" if bound is None else f"<small class=bound>certified ≤ {number(bound)}</small>"


def _exact(span: Span) -> str:
    """Every digit, as a tooltip."""
    return "" if span.low is None else f"{span.low!r}" if span.low == span.high else f"{span.low!r} … {span.high!r}"


def _bias_cell(span: Span) -> str:
    return _bar(span_text(span, bias), span, 0.0, 1.0, "from-zero")


def _scale_cell(span: Span) -> str:
    return _bar(span_text(span, ratio), span, -1.0, 2.0, "scale")


def _cosine_cell(span: Span) -> str:
    return _bar(span_text(span, ratio), span, -1.0, 1.0, "cosine")


def _trace_cell(span: Span) -> str:
    return f"<span class=figure>{span_text(span)}</span>"


def _bar(text: str, span: Span, left: float, right: float, kind: str) -> str:
    """The figure, and below it its range on a track from `left` to `right`; what lies outside ends at the edge,
    marked."""
    if span.low is None or span.high is None:
        return f"<span class=figure>{text}</span>"
    low, high = ((min(max(value, left), right) - left) / (right - left) * 100 for value in (span.low, span.high))
    beyond = (" beyond-left" if span.low < left - EXACT else "") + (
        " beyond-right" if span.high > right + EXACT else ""
    )
    return (
        f'<span class=figure>{text}</span><span class="track {kind}{beyond}" aria-hidden=true '
        f'style="--low:{low:.1f};--high:{high:.1f}"><i></i></span>'
    )


def _more(row: Row) -> str:
    parts = [f"<p><b>Why</b> {escape(reason)}</p>" for reason in row.reasons]
    parts += [f"<p><b>Repair</b> {escape(repair)}</p>" for repair in row.repairs]
    if row.certificate:
        parts.append(f"<p><b>Certificate</b> {escape(row.certificate)}</p>")
    if row.contradictions:
        parts.insert(0, f"<p class=contradiction><b>Contradiction</b> {escape(contradiction_text(row))}</p>")
    table = _instances_of_claim(row) if len(row.entries) > 1 else f"<p><b>Expected</b> {escape(row.expected)}</p>"
    return f"<div class=more-inner><div class=words>{''.join(parts)}</div>{table}</div>"


def _instances_of_claim(row: Row) -> str:
    lines = "".join(
        f"<tr{' class=wrong' if claim['holds'] is False else ''}><th scope=row>{escape(name)}</th>"
        f'<td><span class="plain {class_name(claim["verdict"])}">{SYMBOLS[claim["verdict"]]} '
        f"{escape(claim['verdict'])}</span></td>"
        f"<td>{escape(claim['expected'])}</td><td>{bias(claim['relative_bias'])}</td><td>{ratio(claim['scale'])}</td>"
        f"<td>{ratio(claim['cosine'])}</td><td>{number(claim['trace_covariance'])}</td></tr>"
        for name, claim in row.entries
    )
    names = ("instance", "verdict", "expected", "bias", "scale", "cosine", "tr Cov")
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return f"<div class=scroll><table class=each><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _instance(place: int, name: str, instance: dict, views: list[Instances]) -> str:
    """What an instance is, and its trees if they can be read. Closed where there are several, for there they fill the
    page."""
    alone = len(views) == 1
    content = instance.get("instance") or {}
    names = {"vocab_size": "vocabulary", "eos": "end token", "horizon": "horizon", "gamma": "γ"}
    facts = [(label, content[key]) for key, label in names.items() if key in content]
    about = " · ".join(f"{label} {'none' if value is None else format(value, 'g')}" for label, value in facts)
    attributes = "" if alone else f' data-instance="{place + 1}"'
    return (
        f"<details class=instance{attributes}{' open' if alone else ''}><summary><strong>{escape(name)}</strong> "
        f"<span>{escape(about)}</span></summary>{_trees(content)}</details>"
    )


def _trees(content: dict) -> str:
    if not content.get("nodes"):
        return "<p class=note>This instance lists no nodes, so there is no tree to draw.</p>"
    if edge_count(content) > MAX_EDGES:
        return f"<p class=note>The tree has {edge_count(content)} edges, too many to draw readably (at most {MAX_EDGES}).</p>"
    return "".join(
        f"<figure class=scroll>{_prompt_caption(content, prompt)}{tree_svg(content, prompt)}</figure>"
        for prompt in range(prompt_count(content))
    )


def _prompt_caption(content: dict, prompt: int) -> str:
    if "prompts" not in content:
        return ""
    asked = content["prompts"][prompt]
    tokens = " ".join(map(str, asked["tokens"])) or "(empty)"
    return f"<figcaption>prompt {escape(tokens)}, asked with probability {number(asked['probability'])}</figcaption>"
