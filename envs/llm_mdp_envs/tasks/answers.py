"""The answer of a solution and of a reply, and whether the two are the same. `docs/grading.md` decides case by case."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.tasks.numbers import Number, characters, plain
from llm_mdp_envs.tasks.stated import MATHEMATICS, MOST_TEXT, stated_number

REMEDY = 'end it with "#### " and the answer, put the answer in \\boxed{}, or remove this problem'

# --- where the answer stands ---

THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|scratchpad)"
HEADING = re.compile(r"(?i)\W*(?:step|part)\s+\d+\b")
LABEL = re.compile(
    r"(?i)\W*(?:(?:the|my|your)\s+)?(?:final\s+)?(?:answer|solution|result|total|conclusion|explanation|reasoning)"
    r"(?:\s+is)?\W*|[^\d\\]*:[\s*_]*"
)
ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+(?=\S)")
"""The beginning of a list's item; its number is no answer."""
BOX = r"(?:\\f?box(?:ed)?|\bboxed|\x08oxed)"
"""Some models forget the backslash, and some libraries read \\b as a backspace."""
BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|(?:,\s*)?(?:and|or|\\text\s?\{\s*(?:and|or)\s*\}))[\s$]*")
ANSWER_IS = re.compile(r"(?i)\banswer\b[^.\n:=]{0,80}?(?:\bis\b|:|=)[\s*_:]*(?P<answer>[^\s*_:][^\n]*)")


def without_thoughts(reply: str) -> str:
    """What a reply says outside <think>…</think>: what follows the last closing tag, up to a tag that stays open."""
    spoken = re.split(rf"(?i)</{THOUGHT}>", reply)[-1]
    return re.split(rf"(?i)<{THOUGHT}>", spoken)[0]


def hash_line(text: str) -> str | None:
    """What follows the last "####" (or more) on its line, or on the next line if the first says nothing or "Answer:".
    Headings such as "#### Step 3" and items of a list are no answers. None if there is none."""
    marks = list(re.finditer(r"#{4,}", text))
    end = len(text)
    for number in range(len(marks) - 1, -1, -1):
        piece, end = text[marks[number].end() : end], marks[number].start()
        line, _, rest = piece.partition("\n")
        closes = number > 0 and "\n" not in text[marks[number - 1].end() : end]
        if LABEL.fullmatch(line) or not re.search(r"[^\s*_`:>]", line):
            line = "" if closes else rest.lstrip().partition("\n")[0]
            line = "" if ITEM.match(line) else line
        numbered = len(marks[number][0]) > 4 and ITEM.match(line)
        if line.strip() and not HEADING.match(line) and not numbered:
            return line.strip()
    return None


def after_hashes(text: str) -> str | None:
    """`hash_line` without dollar signs, thousands separators and the full stop."""
    line = hash_line(text)
    if line is None:
        return None
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", line.replace("$", "")).strip().rstrip(".") or None


def in_box(text: str) -> str | None:
    """What the last complete \\boxed{…} or \\fbox{…} holds, braces balanced, after those that it ends a list of
    (\\boxed{1}, \\boxed{2}); None if there is none or it is empty."""
    open_braces, boxes = [], []
    for brace in re.finditer(rf"\\[{{}}]|(?P<box>{BOX}\s*+)?(?P<open>\{{)|(?P<close>\}})", text):
        if brace["open"]:
            open_braces.append((brace.end(), brace.start()) if brace["box"] else None)
        elif brace["close"] and open_braces and (opened := open_braces.pop()) is not None:
            boxes.append((*opened, brace.start()))
    found: list[str] = []
    following = None
    for start, command, end in sorted(boxes, reverse=True):
        if following is not None and not BETWEEN_BOXES.fullmatch(text[end + 1 : following]):
            break
        found.append(text[start:end].strip())
        following = command
    return ", ".join(dict.fromkeys(reversed(found))) or None


def answer_in_tags(reply: str) -> str | None:
    """What the last <answer>…</answer> holds, spaces around it removed."""
    found = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", reply, re.DOTALL)
    return found[-1].strip() if found else None


ASKED: dict[str, Callable[[str], str | None]] = {"gsm8k": hash_line, "math": in_box}
"""Where each convention asks for the answer."""


def find_answer(reply: str, convention: str) -> tuple[str, bool]:
    """The answer of a reply, and whether it stands where the convention asks for it. Else it is what stands where the
    other one asks for it, in <answer> tags, behind the last "answer is" or "Answer:", or in the last sentence that
    holds a digit (the whole last line if none does). Thoughts in tags are not read."""
    reply = without_thoughts(reply)
    asked = ASKED[convention](reply)
    if asked is not None:
        return in_box(asked) or asked, True
    for find in (*ASKED.values(), answer_in_tags):
        found = find(reply)
        if found:
            return found, False
    behind = [found["answer"].strip() for found in ANSWER_IS.finditer(reply)]
    if behind:
        return next((one for one in reversed(behind) if re.search(r"\d", one)), behind[-1]), False
    lines = [line.strip(" \t#") for line in reply.splitlines() if line.strip(" \t#")]
    items = [bool(ITEM.match(line)) for line in lines]
    if len(lines) > 1 and items[-2] and re.fullmatch(r"\d+\.", lines[-1]):  # where the reply broke off
        lines.pop()
    lines = [ITEM.sub("", line, count=1) for line in lines]
    line = next((line for line in reversed(lines) if re.search(r"\d", line)), lines[-1] if lines else "")
    sentences = re.split(r"(?<=[^\W_][.!?])\s+(?=[A-Z*$\\])", line[-MOST_TEXT:])
    return next((one for one in reversed(sentences) if re.search(r"\d", one)), sentences[-1]), False


# --- the answer of a solution ---


def gold_answer(solution: str) -> str:
    """The answer of a solution: after the last "####" (GSM8K), else in the last \\boxed{} (MATH), else all of it."""
    for found in (after_hashes(solution), in_box(solution)):
        if found is not None:
            return in_box(found) or found
    return solution.strip()


def read_gold(solution: Any, place: str) -> str:
    """The answer of a solution, known to be one: a number, a formula, or words behind "####", in a box or alone.

    Raises:
        ValueError: naming the place, the solution and the remedy.
    """
    if isinstance(solution, bool) or not isinstance(solution, str | int | float | Decimal | Fraction):
        raise ValueError(f"{place} has the solution {shown(solution)}; it must be a text or a number.")
    if not isinstance(solution, str):
        if not math.isfinite(solution):
            raise ValueError(f"{place} has the solution {solution}; it must be finite.")
        return str(solution)
    gold = gold_answer(solution)
    marked = after_hashes(solution) is not None or in_box(solution) is not None
    if not _says_something(gold, marked):
        raise ValueError(f"{place} has the solution {shown(solution)}, in which there is no answer; {REMEDY}.")
    if gold.count("{") != gold.count("}"):
        raise ValueError(f"{place} has the answer {shown(gold)}, whose braces do not match; correct it.")
    return gold


NOTHING = frozenset(["null", "nan", "n/a"])
NOTHING_ALONE = NOTHING | frozenset(["none", "na", "unknown", "idk", "tbd"])


def _says_something(gold: str, marked: bool) -> bool:
    wording = plain(gold[:MOST_TEXT])
    if not re.search(r"[^\W_]|\\[A-Za-z]|[∞∅]", wording) or wording.lower() in (NOTHING if marked else NOTHING_ALONE):
        return False
    if marked:
        return True
    if "####" in gold or re.search(r"\\f?box", gold) or "\n" in gold:
        return False
    prose = len(re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", "", wording))) > 1
    return not prose or gold_number(gold) is not None


# --- the same? ---


UNCLEAR = re.compile(
    r"\d\s?(?!e[-+]?\d)[A-Za-z](?![A-Za-z])|\d!|(?<![\d,])\d+,(?:\d\d?|\d{4,})(?![\d,])", re.IGNORECASE
)
"""In a gold answer a product, a factorial or a list; in a reply 18 m, 18! and 1,5 may be said of a number."""


@lru_cache(maxsize=65536)
def gold_number(gold: str) -> Number | None:
    """The number that a gold answer is: 18, x = 18, $18.50, 18 eggs, "She has 18 eggs"; None if it is a formula (2x,
    18\\pi, \\sqrt{2}) or words (May 18; 2 apples, 3 pears)."""
    wording = plain(gold[:MOST_TEXT])
    if UNCLEAR.search(wording) and not re.search(r"\\(?:text|math|degree|circ)", gold):
        return None
    if len(re.findall(r"\d\s+[^\W\d_]{3}", re.sub(r"\([^()]*\)", "", wording))) > 1 and "=" not in wording:
        return None
    if not re.match(r"[-+≈(]?\s*[.\d]", wording) and not re.search(r"=|\b(?:is|are|has|have|was|were)\b", wording):
        return None
    return stated_number(gold)


def same_answer(gold: str, answer: str) -> bool | None:
    """Whether an answer is the gold one, as numbers or words; None: math-verify must compare the `formula`s.

    A gold number counts if the answer states it and no other (`stated_number`). Gold words count if the answer, or what
    it says before its first comma or behind its last "is", is the same words, whatever their case.
    """
    if _squeezed(gold) == _squeezed(answer):
        return True
    if len(answer) > MOST_TEXT:
        return False
    number = gold_number(gold)
    if number is not None:
        stated = stated_number(answer)
        if stated is None:
            wording = plain(answer)
            return None if MATHEMATICS.search(wording) and wording[0] not in "<>≤≥≠" else False
        return number.equals(stated) or (None if re.search(r"\d!", answer) else False)
    words = _words(gold)
    if not words or re.fullmatch(
        r"[a-zK-Z]|[b-df-hj-np-tv-z]{2,3}", plain(gold)
    ):  # x and xy are formulas, C is a choice
        return None
    said = _sayings(answer)
    return words in said and not any(len(said & choices) > 1 for choices in CHOICES)


CHOICES = (frozenset("abcdefghij"), frozenset(["yes", "no"]), frozenset(["true", "false"]))
"""Who says two of these has not chosen."""


def _squeezed(text: str) -> str:
    return re.sub(r"\$|\\left|\\right|(?<!\d)\\[,;:!]|\\[,;:!](?!\d)|(?<!\w)\s+|\s+(?!\w)|\.$", "", text)


IN_FORMULAS = re.compile(r"\d[A-Za-z](?![A-Za-z])|[A-Za-z]\d|_|\d\s?-|\b[A-Za-z]\s?-\s?\w|^-|\d\s+(?:or|and)\s+[-\d]")
"""What words and numbers hold only where they are mathematics: 2x, x2, x-1, 1 or 2."""


def _words(text: str) -> str:
    """A text of words in small letters, without articles, punctuation and the parentheses around it, the items of a
    list in order; "" if it has formulas in it."""
    text = re.sub(r"\b([ap])\.m\.?(?=\W|$)", r"\1m", plain(text), flags=re.IGNORECASE).strip(" .,!;")
    text = re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"^\((.*)\)$", r"\1", text).lower()
    if not re.fullmatch(r"(?:[\w\s'.,-]|(?<=\d):(?=\d\d))+", text) or IN_FORMULAS.search(text):
        return ""
    if not re.search(r"[^\W\d_]{3}" if re.search(r",|\band\b", text) else r"[^\W\d_]", text):
        return ""
    items = re.split(r",\s*(?:and\s+)?|\s+and\s+", re.sub(r"\b(?:the|an?)\s+(?=\w)", "", text))
    return " ".join(" ".join(items if re.search(r"\d", text) else sorted(items)).split())


def _is_listed(first: str, separator: str, rest: str) -> bool:
    """Whether another answer follows the first one: A, B; yes, no; Ann, Bob."""
    items = [item.strip(" .!\"'").lower() for item in re.split(r"[,;/().]|\band\b|\bor\b", rest)]
    items = [item for item in items if item]
    choices = next((choices for choices in CHOICES if first.strip().lower() in choices), None)
    if choices is not None:
        return any(item in choices and item != first.strip().lower() for item in items)
    return separator in (",", ";") and bool(items) and all(re.fullmatch(r"[^\W\d_]+", item) for item in items)


def _sayings(answer: str) -> set[str]:
    """What an answer may be saying, as `_words` gives it."""
    text = plain(answer)[:MOST_TEXT]
    behind = re.split(r"(?i)\b(?:is|are|was|were|be|option|choice)\b|:(?!\d)", text)[-1].strip()
    found = {text, behind}
    for whole in (text, behind):
        whole = whole.lstrip(" (")
        parts = re.split(r"([,;()]|[.:](?!\d)|\s[-–]\s|\b(?:because|since)\b)", whole, maxsplit=1)
        if len(parts) == 1 or not _is_listed(*parts):
            found.add(parts[0])
    return {_words(one) for one in found} - {""}


SYMBOLS = (
    (r"√\s?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√\s?(\d+|\w)", r"\\sqrt{\1}"),
    (r"\bsqrt\s?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"π|(?<![\\A-Za-z])pi\b", r"\\pi "),
    (r"∞|(?<![\\A-Za-z])(?:infinity|inf|oo)\b", r"\\infty "),
    (r"∅|\\varnothing", r"\\emptyset "),
    ("×|·", r"\\times "),
    ("≤", r"\\le "),
    ("≥", r"\\ge "),
    ("≠", r"\\ne "),
    ("±", r"\\pm "),
    ("∪", r"\\cup "),
    ("∩", r"\\cap "),
    ("∈", r"\\in "),
    (r"(?<=[\w)}])\*\*(?=[-\w({\\])", "^"),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\\(?:mathrm|text)\s?\{\s*i\s*\}|(?<=\d)\s+i\b", "i"),
    (r"(?<=\d)\s*(?:\\text\s?\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":"),
    (r"\*\*|`+|</?[A-Za-z|][\w|]{0,40}/?>", ""),
)


RAYS = re.compile(r"([a-z])\s*(<|>|\\[lg]eq?)\s*([^,<>]+?)\s*,\s*\1\s*(<|>|\\[lg]eq?)\s*([^,<>]+)")
"""x < 2, x > 3."""


def _ray(sign: str, end: str) -> str:
    """The interval of the numbers that are less, or greater, than one."""
    low = sign == ">" or sign.startswith("\\g")
    if low:
        return f"{'(' if sign == '>' else '['}{end}, \\infty)"
    return f"(-\\infty, {end}{')' if sign == '<' else ']'}"


LENGTH = r"(?:[mck]?m|in|ft|yd|mi|units?)\s?(?:\^\{?[23]\}?)?"


def formula(answer: str) -> str:
    """The part of an answer that math-verify shall read, as LaTeX: the only formula of a sentence ("The area is
    $3\\sqrt{2}$ cm."), else what follows "is" or a colon, without the words behind it."""
    text = characters(answer).strip()
    for pattern, by in SYMBOLS:
        text = re.sub(pattern, by, text)
    spans = re.findall(r"\$([^$]+)\$|\\\(((?:(?!\\[()]).)+)\\\)", text)
    if len(spans) == 1 and "".join(spans[0]).strip():
        return "".join(spans[0]).strip()
    text = re.sub(r"^[^\\$]*(?:\b(?:is|are|equals)\b:?|[A-Za-z]{2,}\s?:)\s+(?=\S)", "", text)
    text = re.sub(r"\\?[$]|\\[()]", "", text).strip()
    text = re.sub(r",?\s*(?:\\text\s?\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)\s*", ", ", text.rstrip(" .;"))
    if rays := RAYS.fullmatch(text):
        return "\\cup ".join(_ray(*side) for side in ((rays[2], rays[3]), (rays[4], rays[5])))
    shorter = re.sub(rf"(?<=[\w}})\]])(?:\s+(?:{LENGTH}|[A-Za-z]{{3,20}})){{1,4}}$", "", text)
    return shorter.strip() or answer.strip()
