"""Credit as one self-contained HTML page: every token of every response, shaded by what each estimator made of it.

One table a response, a column a token, a row an estimator; the page's script wraps the tables to the reader's width,
colours the running text by one estimator, and shows the figures of a token that is pointed at.
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mdp.report.pages import check_finite, rendered
from llm_mdp.report.rows import number

Document = dict
"""Output of `llm-mdp inspect --json`."""

CLIPPED_AT = 0.98
"""Quantile of |weight| at which a colour scale ends."""
LINE = 900
"""Pixels of tokens in a line before the page's script has measured anything, and on paper."""
AROUND, PAGE = 210, 1184
"""Pixels of a response's frame and of the labels of its rows; of the page."""
SHADES = {"strong": 0.6, "full": 0.9}
"""Shades beyond which letters need the other colour to be read: "strong" in a dark theme, "full" in a light one."""
FACTS = {
    "task": "task",
    "policy": "policy",
    "group_size": "responses to a prompt",
    "seed": "seed",
    "version": "llm-mdp",
}
FINISH = {"eos": "ended by itself", "horizon": "cut by the horizon", "environment": "ended by the environment"}


@dataclass(frozen=True)
class CreditRow:
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
        return _value(self.name, self.kind, token)

    def shade(self, value: float) -> float:
        """-1 … 1."""
        return max(-1.0, min(1.0, value / self.scale))

    def colour(self, value: float) -> str:
        """CSS classes of a figure."""
        shade = self.shade(value)
        side = "gain" if shade > 0 else "loss" if shade < 0 else "zero"
        return " ".join([side, *(name for name, least in SHADES.items() if abs(shade) > least)])

    def figure(self, value: float) -> str:
        """As many decimals as a reader needs to tell figures of this scale apart: `1.31`, `−0.62`, `−0.012`, `40.1`."""
        size = math.floor(math.log10(self.scale))
        decimals = max(0, 2 - max(size, 0)) if size >= -1 else min(9, 1 - size)
        text = f"{value:.{decimals}f}"
        return "0" if float(text) == 0 else text.replace("-", "−")


def _value(name: str, kind: str, token: dict) -> float | None:
    """What a row of this name and kind says about a token."""
    return token[name] if kind == "truth" else token["weights"][name]


def tokens_of(document: Document) -> list[dict]:
    """All tokens of all responses."""
    return [token for group in document["groups"] for response in group["responses"] for token in response["tokens"]]


def credit_rows(document: Document) -> list[CreditRow]:
    """The rows of every table, the truth first. Raises ValueError if the document is none of `llm-mdp inspect`."""
    if not document.get("groups") or not document.get("estimators"):
        raise ValueError(
            "the document has no responses or no estimators; give the JSON that `llm-mdp inspect --json FILE` writes."
        )
    tokens, rows = tokens_of(document), []
    for kind, described in (("truth", document["truth"]), ("estimator", document["estimators"])):
        for each in described:
            sizes = [abs(value) for token in tokens if (value := _value(each["name"], kind, token)) is not None]
            scale = colour_scale(sizes)
            beyond = sum(size > scale * (1 + 1e-9) for size in sizes)
            rows.append(CreditRow(each["name"], each["label"], kind, scale, beyond, len(sizes)))
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
    rows, words = credit_rows(document), [_described(each["name"], document) for each in document["truth"]]
    label = next((truth["label"] for truth in document["truth"] if truth["name"] == "advantage"), None)
    ranked = [each for each in document["estimators"] if each["agreement"] is not None] if label else []
    ranked.sort(key=lambda each: -each["agreement"])
    return rendered(
        "inspect.html",
        document=document,
        title=document.get("task", ""),
        facts=[(name, document[key]) for key, name in FACTS.items() if document.get(key) is not None],
        command=document.get("command", ""),
        advantage=label,
        ranked=ranked,
        finding=_finding(ranked, str(label), sum(token["policy"] for token in tokens_of(document))) if ranked else "",
        rows=list(zip(rows, words + document["estimators"])),
        columns=_columns(document),
        groups=[_group(group, document.get("eos")) for group in document["groups"]],
        correlation=_correlation,
        signed=_signed,
    )


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


def _finding(ranked: list[dict], label: str, count: int) -> str:
    """Who comes closest to the truth, if that is more than chance."""
    # Unrelated figures correlate by 1/√n, give or take.
    if ranked[0]["agreement"] * math.sqrt(count) > 2:
        return f"{ranked[0]['label']} is closest to the {label} of these {count:,} tokens."
    return f"On these {count:,} tokens no estimator can be seen to follow the {label}."


def _correlation(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


TRUTHS = {
    "hidden_reward": "What the token itself is worth; no estimator sees it.",
    "advantage": "How much the token changes the expected reward of the response: U(after it) − U(before it).",
}


def _described(name: str, document: Document) -> dict[str, Any]:
    """What a truth is, and how far off it may be, as an estimator is described."""
    errors = [token["error"] for token in tokens_of(document) if name == "advantage" and token["error"] is not None]
    error = f" Its standard error is {number(sum(errors) / len(errors))} on average." if errors else ""
    return {"words": TRUTHS[name] + error, "verdict": None, "agreement": None}


def _group(group: dict, eos: int | None) -> dict[str, Any]:
    rewards = [response["reward"] for response in group["responses"]]
    return {
        "prompt": group["prompt"],
        "mean": sum(rewards) / len(rewards),
        "equal": len(rewards) > 1 and max(rewards) == min(rewards),
        "responses": [_response(response, eos) for response in group["responses"]],
    }


def _response(response: dict, eos: int | None) -> dict[str, Any]:
    labels = labels_of(response, eos)
    columns = list(zip(response["tokens"], map(_head, range(len(labels)), response["tokens"], labels)))
    return {
        "reward": response["reward"],
        "count": len(labels),
        "finish": FINISH.get(response["finish"], response["finish"]),
        "lines": [columns[start:stop] for start, stop in lines_of(labels)],
    }


def _columns(document: Document) -> str:
    """How wide the widest response is, and how many of them stand beside one another: as many as fit that leave no gap
    in a group."""
    responses = [response for group in document["groups"] for response in group["responses"]]
    widest = max(sum(map(_width, labels_of(response, document.get("eos")))) for response in responses)
    least = min(int(widest), LINE) + AROUND
    fit = max(1, PAGE // least)
    columns = max(number for number in range(1, fit + 1) if document["group_size"] % number == 0 or number == 1)
    return f"--least:{least}px;--columns:{columns}"


def labels_of(response: dict, eos: int | None) -> list[str]:
    """What stands for each token of a response."""
    return [token_label(token, eos) for token in response["tokens"]]


def _width(label: str) -> float:
    """About how many pixels a column takes."""
    letters = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)
    return max(50.0, 8.5 * letters + 16)


def _signed(value: float) -> str:
    return number(value).replace("-", "−")


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


@dataclass(frozen=True)
class Head:
    """The token at the head of a column."""

    kinds: str
    about: str
    space: str
    """White space before the word, which stands in the running text only; in a column it would push the word aside."""
    word: str


def _head(step: int, token: dict, label: str) -> Head:
    starts, ends = (edge(token["text"].strip(" "), "\n") for edge in (str.startswith, str.endswith))
    kinds = {
        "tok": True,
        "given": not token["policy"],
        "blank": not label.strip("␣"),
        "end": label == "eos" != token["text"],
        "line-start": starts and not ends,
        "line-end": ends,
    }
    chance = f"log π {_signed(token['logp'])}" if token["logp"] is not None else "written by the environment"
    about = f"token {step + 1}, id {token['id']}: {chance}"
    word = label.lstrip(" ")
    return Head(" ".join(kind for kind, holds in kinds.items() if holds), about, " " * (len(label) - len(word)), word)
