"""Which number a short text states as its answer: "18 eggs", "3 * 6 = 18", "In 3 days she has 18"; not "18 or 19"."""

import itertools
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from llm_mdp_envs.tasks.numbers import DIGITS, NUMBER, Number, plain, read_number, ungroup

MOST_TEXT = 2000
"""Characters of an answer; a longer one states no number."""
MOST_PARENTHESES = 20
"""In an answer; one with more states no number."""
MOST_EXPONENT = 1000
"""Of a power in an answer."""

OTHER = r"\d{4}-\d\d?-\d\d?(?!\d)|\d+/\d+/\d+(?![\d/])|\d+(?::\d+)+"
"""Dates, times of day and ratios are no numbers."""
WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*+(?:(?<=[A-Za-z])(?:\s?\^-?\d+|\d+))?"
"""A unit keeps its exponent: m^2, cm3."""
TOKEN = re.compile(rf"\s*(?:(?P<other>{OTHER})|(?P<number>{NUMBER.pattern})|(?P<word>{WORD})|(?P<sign>\S))")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OR = _words("or to through till versus vs – & oder bis ou o u ó или до または から")
"""Between two numbers: neither is the answer."""
CIRCUMSTANCE = _words(
    "in after for within per every each from of at over during with by on until since because given if when between "
    "using than into across among day days' step part question problem week month year case round option section"
)
"""Before a number that tells about another one."""
CUE = _words(
    "is are was were be equals equal make makes made give gives earn earns earned total totals get gets have has "
    "leaves costs = ≈ :"
)
"""Before the number that a sentence is about."""
CONCLUSION = _words("so therefore thus hence consequently")
FILLER = _words(
    "the a an about approximately approx around roughly exactly only just all least most another "
    "also then now still ( [ \" ' ~ * #"
)
"""Between such a word and its number."""
CHANGED = _words(
    "not isn't never no half twice double triple quarter third sqrt root log ln sin cos tan exp more less fewer larger "
    "greater smaller other under above below mod pi"
)
"""Before a number that they make another one."""
NOT = _words("not isn't")
CHANGES = _words("squared cubed doubled tripled halved factorial pi radians mod")
"""Behind it."""
CONNECTS = _words("and und et y e и і plus &")
VARIABLES = _words("a b e i j n p q r t u x y z π")
"""Letters that, glued to a number, are mathematics and no unit."""
STANDING = _words("x y z i π")
"""Likewise after a space."""
MEASURES = _words(
    "hour hr h minute min second sec feet foot ft inche inch year month week day km m cm kg g lb pound ounce oz"
)
"""Two of these make one number in neither: 2 hours and 30 minutes."""
MATHEMATICS = re.compile(r"[\\√∛π±∞≠<>≤≥{}|!∪∩∈]|\bpi\b|\^\(")
"""What makes a text a formula that only math-verify reads."""


@dataclass(frozen=True)
class Token:
    kind: str
    """number, word, sign or other."""
    text: str
    """In small letters."""
    number: Number | None = None
    glued: bool = False
    """Nothing stands between it and what is before it."""


def tokens(text: str) -> list[Token]:
    found = []
    for match in TOKEN.finditer(text):
        kind = next(kind for kind in ("other", "number", "word", "sign") if match[kind] is not None)
        number = read_number(match) if kind == "number" else None
        glued = match.start() == match.start(kind) and match.start() > 0
        found.append(Token("other" if kind == "number" and not number else kind, match[kind].lower(), number, glued))
    return found


def stated_number(text: str) -> Number | None:
    """The one number that a text states as its answer; None if it states none, several, or a formula.

    It is the number that the text begins with; else the one behind "is", "=", ":" and the like; else the first that
    does not tell about another one ("in 3 days"); of a chain of equations the last side. A calculation is worth what it
    gives. Another number beside it is harmless if it counts something else ("18 eggs and 0 hens"), tells about the
    first one ("18 of 20", "18 in 3 days"), stands in a remark in parentheses, or is the same; "18 or 19", "18, 19",
    "18-20", "1 8" state none.
    """
    if len(text) > MOST_TEXT:
        return None
    text = _without_remarks(_spread_ranges(plain(text)))
    if len(text) > MOST_TEXT or text.count("(") > MOST_PARENTHESES:
        return None
    if MATHEMATICS.search(re.sub(r"!+(?=\s|$)", "", text)):
        return None
    side = _last_side(_conclusion(_calculated(tokens(_first_sentence(text)))))
    return _chosen(side) if side is not None else None


def _without_remarks(text: str) -> str:
    """Without parentheses that hold words, or the whole answer; with those that begin with "or"."""
    text = re.sub(r"(?<=[\w%.'])\s\(\s?(or\b[^()]*)\)", r" \1", text)
    text = re.sub(r"^\(?[A-Ja-j]\)\s+(?=\S)", "", text)  # (C) 18
    return re.sub(r"\((?=[^()]*([^\W\d_]{2}|=))[^()]*\)", " ", text)


def _first_sentence(text: str) -> str:
    """Up to the end of the first sentence that holds a digit, if another sentence in words follows that is no
    alternative."""
    text = re.split(r"(?<=[\w.%]),?\s(?:because|since)\b", text, maxsplit=1)[0]
    for end in re.finditer(r"(?<=[^\W_])[%)\]\"']{0,3}[.;!?]\s+(?=[A-Z][a-z']*\b(\s+\w+)?)", text):
        if re.search(r"\d", text[: end.start()]) and text[end.end() :].split()[0].lower().strip(",") not in OR:
            return text[: end.start()]
    return text


def _spread_ranges(text: str) -> str:
    """18-20 and 18–20 as "18 to 20": a hyphen without spaces before a larger number is no minus."""

    def spread(found: re.Match[str]) -> str:
        ends = [ungroup(found[name]) for name in ("low", "high")]
        rising = None not in ends and Fraction(str(ends[0])) < Fraction(str(ends[1]))
        return f"{found['low']} to {found['high']}" if rising or found["dash"].strip() == "–" else found[0]

    return re.sub(
        rf"(?<![-+*/^=(.,\d:])(?P<low>{DIGITS})(?P<dash>-|\s?–\s?)(?P<high>{DIGITS})(?![-/\d^:])", spread, text
    )


# --- calculations ---


def _calculated(given: list[Token]) -> list[Token]:
    """The same with every calculation such as 3 * 6, 18/2, (2 + 4), -3, 12 eggs + 6 eggs as one number."""
    result, at = [], 0
    while at < len(given):
        read = _calculation(given, at, result)
        if read is None:
            result.append(given[at])
            at += 1
        else:
            number, at = read
            result.append(number)
    return result


def _calculation(given: list[Token], at: int, before: list[Token]) -> tuple[Token, int] | None:
    """The calculation that begins here and where it ends; None if none does. "other" if it has no value."""
    first = _operand(given, at, before)
    if first is None:
        return None
    operands, signs, at = [first[0]], [], first[1]
    while True:
        ahead = at
        while ahead < len(given) and given[ahead].kind == "word" and given[ahead].text not in OR | CUE | CONNECTS:
            ahead += 1
        if ahead > at + 2 or ahead >= len(given) or given[ahead].text not in ("+", "-", "*", "/", "^"):
            break
        following = _operand(given, ahead + 1, [Token("sign", "=")])
        if following is None:
            break
        signs.append(given[ahead].text)
        operands.append(following[0])
        at = following[1]
    if not signs:
        return Token("number", "", operands[0], given[at - 1].glued), at
    value = evaluate([one.value * one.unit for one in operands], signs)
    return (Token("other", "") if value is None else Token("number", "", Number(value))), at


def _operand(given: list[Token], at: int, before: list[Token]) -> tuple[Number, int] | None:
    if at >= len(given):
        return None
    token = given[at]
    if token.number is not None and not (before and token.glued and before[-1].text in ("_", "-", "^")):
        return token.number, at + 1
    if token.text == "-" and at + 1 < len(given):
        number, glued = given[at + 1].number, given[at + 1].glued
        # "Total - 18" is a dash, "x = - 18" and "Total: -18" are not.
        if number is not None and (glued or not before or before[-1].kind == "sign"):
            if at + 2 < len(given) and given[at + 2].text == "^":  # -2^2 is -4
                power = _operand(given, at + 3, [Token("sign", "=")])
                value = _apply("^", number.value, power[0].value) if power else None
                return (Number(-value), power[1]) if power and value is not None else None
            return replace(number, value=-number.value), at + 2
        if given[at + 1].text != "(" or (inner := _operand(given, at + 1, [])) is None:
            return None
        return Number(-inner[0].value, inner[0].unit), inner[1]
    if token.text == "(":
        inner = _calculation(given, at + 1, [])
        if inner is not None and inner[0].number and inner[1] < len(given) and given[inner[1]].text == ")":
            return inner[0].number, inner[1] + 1
    return None


def evaluate(values: list[Fraction], signs: list[str]) -> Fraction | None:
    """values[0] signs[0] values[1] …, powers first, then products; None if it has no value or too long a one."""
    values, signs = list(values), list(signs)
    for group, order in (("^", -1), ("*/", 1), ("+-", 1)):
        at = len(signs) - 1 if order < 0 else 0
        while 0 <= at < len(signs):
            if signs[at] in group:
                value = _apply(signs[at], values[at], values[at + 1])
                if value is None:
                    return None
                values[at : at + 2], signs[at : at + 1] = [value], []
                at -= order < 0
            else:
                at += order
    return values[0]


def _apply(sign: str, one: Fraction, other: Fraction) -> Fraction | None:
    match sign:
        case "+":
            return one + other
        case "-":
            return one - other
        case "*":
            return one * other
        case "/":
            return one / other if other else None
    size = max(one.numerator.bit_length(), one.denominator.bit_length())
    if other.denominator != 1 or abs(other) * size > 4 * MOST_EXPONENT or (not one and other < 0):
        return None
    return one ** int(other)


# --- the choice ---


def _conclusion(given: list[Token]) -> list[Token]:
    """What follows "so" and the like, if there is a number in it."""
    for at, token in enumerate(given):
        if token.text in CONCLUSION and any(later.number for later in given[at:]):
            return given[at + 1 :]
    return given


def _last_side(given: list[Token]) -> list[Token] | None:
    """What stands behind the last "=" that has a number, if this is one chain of equations; None for several ("x = 1,
    y = 2", "x = 1 or x = 2"), and for one that is still to be solved ("2x = 36")."""
    sides: list[list[Token]] = [[]]
    for token in given:
        if token.text in ("=", "≈"):
            sides.append([])
        else:
            sides[-1].append(token)
    while len(sides) > 1 and not any(token.number for token in sides[-1]):
        sides.pop()
    for side in sides[:-1]:
        for at, token in enumerate(side):
            rest = side[at + 1 :]
            if token.number and (_names_another(rest) or (rest and rest[0].glued and rest[0].text in VARIABLES)):
                return None
    return ([Token("sign", "=")] if len(sides) > 1 else []) + sides[-1]


def _names_another(rest: list[Token]) -> bool:
    """Whether another unknown follows before the next "=": ", y" or "or x", but not ", 18 + 2"."""
    words = {token.text for token in rest}
    return bool(words & OR or (words & (CONNECTS | {",", ";"}) and not any(token.number for token in rest)))


def _chosen(side: list[Token]) -> Number | None:
    places = [at for at, token in enumerate(side) if token.number is not None]
    if not places:
        return number_in_words(side)
    if any(token.kind == "other" for token in side):
        return None
    at = _place(side, places)
    number = side[at].number
    assert number is not None
    before, after = _word_before(side, at), side[at + 1] if at + 1 < len(side) else Token("sign", "")
    changed = before in CHANGED or after.text in CHANGES | STANDING | {"^", "_", "("}
    if changed or (after.glued and after.text in VARIABLES) or _in_a_formula(side, at):
        return None
    others = [one for one in places if one == at or side[one].number != number]
    beside = [(one, other) for one, other in itertools.pairwise(others) if at in (one, other)]
    if any(_rivals(side, *pair) for pair in beside) or _or_in_words(side):
        return None
    return number


def _or_in_words(side: list[Token]) -> bool:
    """18 or nineteen."""
    return any(one.text == "or" and two.text.split("-")[0] in COUNTED for one, two in itertools.pairwise(side))


def _in_a_formula(side: list[Token], at: int) -> bool:
    """Whether a single letter is added to a number, taken from it or multiplied: 18 + x."""
    pairs = (side[at + 1 : at + 3], side[max(at - 2, 0) : at][::-1])
    return any(len(pair) == 2 and pair[0].text in ("+", "-", "*") and len(pair[1].text) == 1 for pair in pairs)


def _place(side: list[Token], places: list[int]) -> int:
    first = places[0]
    if all(token.kind == "sign" for token in side[:first]):
        return first
    for wanted in (lambda word: word in CUE, lambda word: word not in CIRCUMSTANCE):
        for at in places:
            if wanted(_word_before(side, at)):
                return at
    return first


def _word_before(side: list[Token], at: int) -> str:
    """What stands before a token, fillers left out; with "of" and "than", the word before them if it changes it."""
    at -= 1
    while at >= 0 and side[at].text in FILLER:
        at -= 1
    if at > 0 and side[at].text in ("of", "than") and side[at - 1].text in CHANGED:
        return side[at - 1].text
    return side[at].text if at >= 0 else ""


def _rivals(side: list[Token], one: int, other: int) -> bool:
    """Whether two neighbouring numbers of a text are said of the same thing."""
    first, second = side[one].number, side[other].number
    between = [token.text for token in side[one + 1 : other]]
    if first is not None and second is not None and first.equals(second):
        return False
    nouns = [_noun(side, one), _noun(side, other)]
    if any(word in OR for word in between):
        return "or" not in between or nouns[0] == nouns[1] or not MEASURES.issuperset(nouns)  # 2 hours or 120 minutes
    leads = all(token.kind == "sign" for token in side[:one])
    if {"least", "most"} & set(between) or (leads and CUE.union(FILLER, ",;").issuperset(between)):
        return True
    if _word_before(side, other) in CIRCUMSTANCE | CUE | NOT:
        return False
    if nouns[0] is not None and _word_before(side, one) in CIRCUMSTANCE - {"between", "from"}:
        return False
    if not any(word in CONNECTS | {",", ";", ".", "("} for word in between) or nouns[0] is None:
        return True
    if nouns[1] is None:
        return other + 1 >= len(side) or side[other + 1].text not in CIRCUMSTANCE
    return nouns[0] == nouns[1] or (MEASURES.issuperset(nouns) and second != Number(Fraction(0)))


def _noun(side: list[Token], at: int) -> str | None:
    """What a number counts: the word behind it."""
    number = side[at].number
    if number is not None and number.unit != 1:
        return str(number.unit)
    token = side[at + 1] if at + 1 < len(side) else None
    if token is None or token.kind != "word" or token.text in OR | CONNECTS | CIRCUMSTANCE | CUE:
        return None
    return token.text.removesuffix("s")


SMALL = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
COUNTED = {**{word: size for size, word in enumerate(SMALL)}, **{word: 10 * ten for ten, word in enumerate(TENS, 2)}}
SCALES = {"hundred": 100, "thousand": 1000}


def number_in_words(side: list[Token]) -> Number | None:
    """Eighteen, twenty-three, four hundred and five; None if the text holds two such numbers, or none."""
    words = [word for token in side for word in token.text.split("-")]
    places = [at for at, word in enumerate(words) if word in COUNTED or word in SCALES]
    if not places or (places[0] and words[places[0] - 1] in CHANGED):
        return None
    sign = -1 if places[0] and words[places[0] - 1] in ("minus", "negative") else 1
    total, part, least = 0, 0, 100
    for word in words[places[0] : places[-1] + 1]:
        if word in SCALES:
            part = max(part, 1) * SCALES[word]
            total, part = (total + part, 0) if word == "thousand" else (total, part)
            least = 100
        elif word in COUNTED and (COUNTED[word] < 10 < least or least == 100):
            part, least = part + COUNTED[word], COUNTED[word] if COUNTED[word] >= 20 else 0
        elif word != "and" or least < 100:
            return None
    return Number(Fraction(sign * (total + part)))
