"""The parts of a reply: thoughts, fenced blocks, and the words between them."""

import re
import warnings
from collections.abc import Iterator

DEEPEST = 4
"""Levels of blocks in blocks."""

_THOUGHT = re.compile(r"^[ \t]*<(think|thinking|thought|reasoning)>", re.MULTILINE | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(
    r"^[ \t]*</(?:think|thinking|thought|reasoning)>[ \t]*\n?|</(?:think|thinking|thought|reasoning)>[ \t]*(?:\n|\Z)",
    re.MULTILINE | re.IGNORECASE,
)
_FENCE = re.compile(r"(?P<margin>[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)(?P<ticks>`{3,}|~{3,})(?P<info>[^`]*)")
_FENCE_AFTER_WORDS = re.compile(r"(?P<margin>)[^`]*\S[ \t]*(?P<ticks>`{3,})(?P<info>[ \t]*(?:python3?|py)[ \t]*)", re.I)
_FENCED_LINE = re.compile(r"[ \t]*(`{3,})(?:python3?|py)?[ \t]+([^`]+)\1[ \t]*", re.IGNORECASE)
_TAG = r"\[/?(?:PYTHON|CODE|ANSWER|BEGIN|DONE)\]|</?(?:code|python|answer|solution)>|<\|\w+\|>|</s>"
_TAG_LINES = re.compile(rf"^[ \t]*(?:{_TAG})[ \t]*$", re.MULTILINE | re.IGNORECASE)
_TAGS = re.compile(rf"^[ \t]*(?:{_TAG})[ \t]?|(?:{_TAG})[ \t]*$", re.MULTILINE | re.IGNORECASE)
_STRING = re.compile(r"#[^\n]*|\"{3}|'{3}|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'")
_THREE_QUOTES = ('"""', "'''")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def is_python(source: str) -> bool:
    """Does it compile? Nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "<reply>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def without_thoughts(text: str) -> str:
    """The answer alone: no `<think>…</think>`, nothing before a `</think>` that was never opened (a template may have
    opened it), nothing after a `<think>` that is never closed. Tags inside a line of code are code.
    """
    while opened := _THOUGHT.search(text):
        closing = f"</{opened[1]}>"
        end = text.lower().find(closing.lower(), opened.end())
        if end < 0:
            return text[: opened.start()]
        after = text[end + len(closing) :].lstrip(" \t")
        text = text[: opened.start()] + after.removeprefix("\n")
    closed = list(_THOUGHT_ENDS.finditer(text))
    return text[closed[-1].end() :] if closed else text


def mended(text: str) -> str:
    """Without what nobody sees, and without tags and end tokens around the answer."""
    text = _TAGS.sub("\n", _UNSEEN.sub("", _SPACES.sub(" ", text)))
    lines = text.split("\n")
    return "\n".join(line[: -len(rest)].expandtabs(4) + rest if (rest := line.lstrip()) else "" for line in lines)


def passages(text: str, depth: int = 0) -> Iterator[tuple[bool, str]]:
    """Fenced blocks and the text between them, in order: (is it fenced, content). Blocks in a block of words are
    found too."""
    between: list[str] = []
    lines = _TAG_LINES.sub("", text).split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        opening = _FENCE.fullmatch(line) or _FENCE_AFTER_WORDS.fullmatch(line)
        single = _FENCED_LINE.fullmatch(line)
        number += 1
        if not opening and not single:
            between.append(line)
            continue
        yield False, "\n".join(between)
        between = []
        if single:
            yield True, single[2].strip()
        elif opening:
            content, number = _block(lines, number, opening)
            holds_blocks = depth < DEEPEST and any(map(_FENCE.fullmatch, content.split("\n")))
            if holds_blocks and not is_python(content):
                yield from passages(content, depth + 1)
            else:
                yield True, content
    yield False, "\n".join(between)


def _block(lines: list[str], start: int, opening: re.Match) -> tuple[str, int]:
    """The content of a block, and the number of the line after it. Fences inside a docstring close nothing; the end of
    the text closes, and so does a fence that opens the next block."""
    margin, ticks = opening["margin"], opening["ticks"]
    quoted = margin.replace(" ", "").startswith(">")
    content: list[str] = []
    string = ""
    for number in range(start, len(lines)):
        line = re.sub(r"^[ \t]*(?:>[ \t]?)+", "", lines[number]) if quoted else _outdented(lines[number], len(margin))
        run = re.fullmatch(rf"(.*?)({re.escape(ticks[0])}{{{len(ticks)},}})[ \t]*", line)
        if run and "`" not in run[1] and not _open_string(run[1], string):
            return "\n".join([*content, *([run[1]] if run[1].strip() else [])]), number + 1
        inner = _FENCE.fullmatch(line)
        if inner and inner["info"].strip() and inner["ticks"] == ticks and not inner["margin"] and not string:
            return "\n".join(content), number
        content.append(line)
        string = _open_string(line, string)
    return "\n".join(content), len(lines)


def _outdented(line: str, width: int) -> str:
    """Without up to `width` blanks at its beginning."""
    return line[min(width, len(line) - len(line.lstrip())) :]


def _open_string(line: str, string: str) -> str:
    """The three quotes that are open after a line, if any; `string` were open before it."""
    place = 0
    while True:
        if string:
            place = line.find(string, place)
            if place < 0:
                return string
            place, string = place + 3, ""
        found = _STRING.search(line, place)
        if not found:
            return ""
        place = found.end()
        string = found[0] if found[0] in _THREE_QUOTES else ""
