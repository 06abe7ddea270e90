"""Credit as one self-contained HTML page: every token of every response, shaded by what each estimator made of it.

One table a response, a column a token, a row an estimator; the page's script wraps the tables to the reader's width,
colours the running text by one estimator, and shows the figures of a token that is pointed at.
"""

import math
import unicodedata
from dataclasses import dataclass
from html import escape

import numpy as np

from llm_mdp.report.drawings import class_name
from llm_mdp.report.page import check_finite, embedded_json, filled
from llm_mdp.report.rows import SYMBOLS, number

Document = dict
"""Output of `llm-mdp inspect --json`."""

CLIPPED_AT = 0.98
"""Quantile of |weight| at which a colour scale ends."""
LINE = 900
"""Pixels of tokens in a line before the page's script has measured anything, and on paper."""
AROUND, PAGE = 210, 1184
"""Pixels of a response's frame and of the labels of its rows; of the page."""
FINISH = {"eos": "ended by itself", "horizon": "cut by the horizon", "environment": "ended by the environment"}


@dataclass(frozen=True)
class Row:
    """One row of every table: an estimator, or a truth."""

    name: str
    label: str
    kind: str
    """truth or estimator."""
    scale: float
    """Where its colours end, on either side of 0."""
    beyond: int
    """How many tokens lie beyond."""
    tokens: int
    """How many tokens it says something about."""

    def value(self, token: dict) -> float | None:
        """What the row says about a token; None where it says nothing."""
        return row_value(self.name, self.kind, token)

    def shade(self, value: float) -> float:
        """-1 … 1."""
        return max(-1.0, min(1.0, value / self.scale))

    def figure(self, value: float) -> str:
        """As many decimals as a reader needs to tell figures of this scale apart: `1.31`, `−0.62`, `−0.012`, `40.1`."""
        size = math.floor(math.log10(self.scale))
        decimals = max(0, 2 - max(size, 0)) if size >= -1 else min(9, 1 - size)
        text = f"{value:.{decimals}f}"
        return "0" if float(text) == 0 else text.replace("-", "−")


def row_value(name: str, kind: str, token: dict) -> float | None:
    """What a row of this name and kind says about a token."""
    return token[name] if kind == "truth" else token["weights"][name]


def tokens_of(document: Document) -> list[dict]:
    """All tokens of all responses."""
    return [token for group in document["groups"] for response in group["responses"] for token in response["tokens"]]


def rows_of(document: Document) -> list[Row]:
    """The rows of every table, the truth first. Raises ValueError if the document is none of `llm-mdp inspect`."""
    if not document.get("groups") or not document.get("estimators"):
        raise ValueError(
            "the document has no responses or no estimators; give the JSON that `llm-mdp inspect --json FILE` writes."
        )
    tokens, rows = tokens_of(document), []
    for kind, each in [("truth", each) for each in document["truth"]] + [
        ("estimator", each) for each in document["estimators"]
    ]:
        sizes = [abs(value) for token in tokens if (value := row_value(each["name"], kind, token)) is not None]
        scale = colour_scale(sizes)
        rows.append(
            Row(each["name"], each["label"], kind, scale, sum(size > scale * (1 + 1e-9) for size in sizes), len(sizes))
        )
    return rows


def colour_scale(sizes: list[float]) -> float:
    """Where the colours of a row end: a quantile of the sizes that are not 0, 1 if there are none."""
    present = [size for size in sizes if size > 0]
    return float(np.quantile(present, CLIPPED_AT, method="higher")) if present else 1.0


def render_inspection(document: Document) -> str:
    """The page.

    Args:
        document: the output of `llm-mdp inspect --json`; embedded in the page as it is.

    Raises:
        ValueError: if the document is another one, or holds a number that JSON cannot (NaN, infinity), naming its
        place.
    """
    check_finite(document)
    rows = rows_of(document)
    slots = {
        "title": escape(str(document.get("task", ""))),
        "facts": _facts(document),
        "banner": _banner(document),
        "picks": "".join(_pick(row) for row in rows),
        "estimators": _estimators(document, rows),
        "groups": "".join(_group(place, group, document, rows) for place, group in enumerate(document["groups"])),
        "terms": _terms(document),
        "json": embedded_json(document),
    }
    # What no file can hold (half a character) becomes "?".
    return filled("llm_mdp.report", "inspect_template.html", slots).encode("utf-8", "replace").decode("utf-8")


def visible(text: str) -> str:
    """White space and control characters that a reader can see; a space inside or beside words stays one."""
    if text and not text.strip(" "):
        return "␣" * len(text)
    shown = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
    return "".join(shown.get(letter) or (chr(0x2400 + ord(letter)) if ord(letter) < 32 else letter) for letter in text)


def token_label(token: dict, eos: int | None) -> str:
    """What stands for a token: its text, made visible; `eos`; its id where it has no text."""
    if token["id"] == eos:
        return "eos"
    return visible(token["text"]) or f"#{token['id']}"


def _facts(document: Document) -> str:
    names = {
        "task": "task",
        "policy": "policy",
        "group_size": "responses to a prompt",
        "seed": "seed",
        "version": "llm-mdp",
    }
    facts = [(label, document[key]) for key, label in names.items() if document.get(key) is not None]
    shown = "".join(f"<div><dt>{label}</dt><dd>{escape(str(value))}</dd></div>" for label, value in facts)
    return f"<dl class=facts>{shown}</dl><p class=command><code>{escape(str(document.get('command', '')))}</code></p>"


def _advantage_label(document: Document) -> str | None:
    return next((truth["label"] for truth in document["truth"] if truth["name"] == "advantage"), None)


def _banner(document: Document) -> str:
    """Who comes closest to the truth, if that is known and more than chance."""
    label = _advantage_label(document)
    ranked = sorted(
        (each for each in document["estimators"] if each["agreement"] is not None), key=lambda each: -each["agreement"]
    )
    if label is None or not ranked:
        return ""
    count = sum(token["policy"] for token in tokens_of(document))
    # Unrelated figures correlate by 1/√n, give or take.
    if ranked[0]["agreement"] * math.sqrt(count) > 2:
        text = f"{ranked[0]['label']} is closest to the {label} of these {count:,} tokens."
    else:
        text = f"On these {count:,} tokens no estimator can be seen to follow the {label}."
    listed = "".join(f"<li>{escape(each['label'])} <b>{_correlation(each['agreement'])}</b></li>" for each in ranked)
    return f"<div class=banner><p><strong>{escape(text)}</strong>Correlation of the weights with that advantage:</p><ol>{listed}</ol></div>"


def _correlation(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _pick(row: Row) -> str:
    return (
        f'<button type=button class="chip {row.kind}" data-row="{escape(row.name)}" data-scale="{row.scale!r}" '
        f"aria-pressed=true>"
        f"{escape(row.label)}</button>"
    )


def _estimators(document: Document, rows: list[Row]) -> str:
    """What each row is, how well it agrees with the truth, and its colours."""
    label = _advantage_label(document)
    described = {("estimator", each["name"]): each for each in document["estimators"]}
    for each in document["truth"]:
        described["truth", each["name"]] = {
            "words": _truth_words(each["name"], document),
            "verdict": None,
            "agreement": None,
        }
    lines = []
    for row in rows:
        each = described[row.kind, row.name]
        agreement = f"<td data-label=agreement>{_agreement(each['agreement'], row)}</td>" if label else ""
        lines.append(
            f'<tr class="{row.kind}"><th scope=row><b>{escape(row.label)}</b><span>{escape(each["words"])}</span></th>'
            f"<td data-label=verdict>{_verdict(each['verdict'])}</td>{agreement}<td "
            f"data-label=colours>{_ramp(row)}</td></tr>"
        )
    agreement = f"<th scope=col>agreement with the {escape(label)}</th>" if label else ""
    head = f"<th scope=col>estimator</th><th scope=col>verdict</th>{agreement}<th scope=col>colours</th>"
    return f"<table class=about><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


TRUTHS = {
    "hidden_reward": "What the token itself is worth; no estimator sees it.",
    "advantage": "How much the token changes the expected reward of the response: U(after it) − U(before it).",
}


def _truth_words(name: str, document: Document) -> str:
    """What a truth is, and how far off it may be."""
    errors = [token["error"] for token in tokens_of(document) if name == "advantage" and token["error"] is not None]
    return TRUTHS[name] + (f" Its standard error is {number(sum(errors) / len(errors))} on average." if errors else "")


def _verdict(verdict: str | None) -> str:
    if verdict is None:
        return ""
    return f'<span class="badge {class_name(verdict)}">{SYMBOLS.get(verdict, "")} {escape(verdict)}</span>'


def _agreement(value: float | None, row: Row) -> str:
    if row.kind == "truth":
        return ""
    if value is None:
        return "<span class=figure>–</span>"
    left, width = (50 + 50 * min(value, 0.0), 50 * abs(value))
    return (
        f"<span class=figure>{_correlation(value)}</span>"
        f'<span class=track aria-hidden=true style="--left:{left:.1f}%;--width:{width:.1f}%"><i></i></span>'
    )


def _ramp(row: Row) -> str:
    beyond = f"<small>{row.beyond} of {row.tokens:,} beyond</small>" if row.beyond else ""
    end = number(row.scale)
    return f"<span class=scale><span>−{end}</span><i></i>+{end}</span>{beyond}"


def _group(place: int, group: dict, document: Document, rows: list[Row]) -> str:
    prompt = escape(group["prompt"]) or "<span class=none>(the empty prompt)</span>"
    rewards = [response["reward"] for response in group["responses"]]
    equal = ", all rewards equal" if len(rewards) > 1 and max(rewards) == min(rewards) else ""
    responses = "".join(_response(place, k, response, document, rows) for k, response in enumerate(group["responses"]))
    return (
        f"<section class=group><h2>Prompt {place + 1} <small>mean reward "
        f"{_signed(sum(rewards) / len(rewards))}{equal}</small></h2>"
        f'<pre class=prompt>{prompt}</pre><div class=responses style="{_columns(document)}">{responses}</div></section>'
    )


def _columns(document: Document) -> str:
    """How wide the widest response is, and how many of them stand beside one another: as many as fit that leave no gap
    in a group."""
    responses = [response for group in document["groups"] for response in group["responses"]]
    widest = max(sum(map(_width, labels_of(response, document))) for response in responses)
    least = min(int(widest), LINE) + AROUND
    fit = max(1, PAGE // least)
    columns = max(number for number in range(1, fit + 1) if document["group_size"] % number == 0 or number == 1)
    return f"--least:{least}px;--columns:{columns}"


def labels_of(response: dict, document: Document) -> list[str]:
    """What stands for each token of a response."""
    return [token_label(token, document.get("eos")) for token in response["tokens"]]


def _width(label: str) -> float:
    """About how many pixels a column takes."""
    letters = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)
    return max(50.0, 8.5 * letters + 16)


def _signed(value: float) -> str:
    return number(value).replace("-", "−")


def _response(place: int, k: int, response: dict, document: Document, rows: list[Row]) -> str:
    tokens, labels = response["tokens"], labels_of(response, document)
    count = "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"
    finish = str(FINISH.get(response["finish"], response["finish"]))
    tables = "".join(_table(tokens, labels, start, stop, rows) for start, stop in lines_of(labels))
    return (
        f'<article class=response data-group="{place}" data-response="{k}">'
        f"<h3>Response {k + 1} <span class=reward>reward <b>{_signed(response['reward'])}</b></span> "
        f"<small>{count}, {escape(finish)}</small></h3><div class=tokens>{tables}</div></article>"
    )


def lines_of(labels: list[str], width: int = LINE) -> list[tuple[int, int]]:
    """Where lines of at most about `width` pixels start and stop."""
    lines, start, used = [], 0, 0.0
    for place, label in enumerate(labels):
        wide = _width(label)
        if place > start and used + wide > width:
            lines.append((start, place))
            start, used = place, 0.0
        used += wide
    return [*lines, (start, len(labels))] if labels else []


def _table(tokens: list[dict], labels: list[str], start: int, stop: int, rows: list[Row]) -> str:
    """One line of a response. No white space between elements: as running text it would stand between tokens."""
    head = "".join(_token(step, tokens[step], labels[step]) for step in range(start, stop))
    bodies = []
    for kind in ("truth", "estimator"):
        lines = [
            f'<tr data-row="{escape(row.name)}"><th scope=row>{escape(row.label)}</th>'
            f"{''.join(_cell(row, token) for token in tokens[start:stop])}</tr>"
            for row in rows
            if row.kind == kind
        ]
        bodies.append(f"<tbody class={kind}>{''.join(lines)}</tbody>" if lines else "")
    return f"<table class=credit><thead><tr><th scope=row>token</th>{head}</tr></thead>{''.join(bodies)}</table>"


def _token(step: int, token: dict, label: str) -> str:
    starts, ends = (edge(token["text"].strip(" "), "\n") for edge in (str.startswith, str.endswith))
    kinds = {
        "tok": True,
        "given": not token["policy"],
        "blank": not label.strip("␣"),
        "end": label == "eos" != token["text"],
        "line-start": starts and not ends,
        "line-end": ends,
    }
    note = f"log π {_signed(token['logp'])}" if token["logp"] is not None else "written by the environment"
    # A space before a word stands in the running text only; in a column it would push the word aside.
    word = label.lstrip(" ")
    text = f"<i>{' ' * (len(label) - len(word))}</i><bdi>{escape(word)}</bdi>"
    shown = " ".join(kind for kind, holds in kinds.items() if holds)
    return f'<th scope=col class="{shown}" title="token {step + 1}, id {token["id"]}: {note}">{text}</th>'


def _cell(row: Row, token: dict) -> str:
    value = row.value(token)
    if value is None:
        return "<td class=none></td>"
    shade = row.shade(value)
    kinds = [name for name, least in SHADES.items() if abs(shade) > least]
    kind = " ".join([("gain" if shade > 0 else "loss") if shade else "zero", *kinds])
    return f'<td class="{kind}" style="--v:{100 * abs(shade):.0f}%">{row.figure(value)}</td>'


SHADES = {"strong": 0.6, "full": 0.9}
"""Shades beyond which letters need the other colour to be read: "strong" in a dark theme, "full" in a light one."""


def _terms(document: Document) -> str:
    label = _advantage_label(document)
    if label is None:
        return ""
    return (
        f"<dt>agreement</dt><dd>Pearson's correlation of the weights with the {escape(label)}, over all tokens that "
        f"the policy chose on "
        "this page. It is about these few responses; how noisy an estimator is on the whole, <code>llm-mdp "
        "variance</code> measures.</dd>"
    )
