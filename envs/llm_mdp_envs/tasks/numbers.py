"""Numbers as people and models write them: digits, separators, signs, units, LaTeX."""

import re
import unicodedata
from collections import deque
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

MOST_DIGITS = 1000
"""Of one number, its exponent written out. Longer ones are read as no number."""
ROUNDED = 6
"""Significant digits from which on a decimal stands for the numbers that it rounds."""


@dataclass(frozen=True)
class Number:
    """One number, exactly."""

    value: Fraction
    unit: Fraction = Fraction(1)
    """What the value counts: 1/100 before a percent sign or cents, 10^6 before "million"."""
    base: int = 10
    """As written, 101_2. The value is what the digits say in base ten."""
    tail: Fraction = Fraction(0)
    """One unit in the last place of a decimal with at least `ROUNDED` significant digits; else 0."""

    def equals(self, other: "Number") -> bool:
        """Exactly; but 0.333333 equals whatever is less than 0.000001 away. A unit or a base that only one of the two
        writes is understood: 70% equals 70 and 0.7, and 0.7% neither."""
        tail = max(self.tail, other.tail)
        if self.base != other.base:
            return 10 in (self.base, other.base) and _near(self.value, other.value, tail)
        if (self.unit == other.unit or 1 in (self.unit, other.unit)) and _near(self.value, other.value, tail):
            return True
        tail = max(self.tail * self.unit, other.tail * other.unit)
        return _near(self.value * self.unit, other.value * other.unit, tail)


def _near(one: Fraction, other: Fraction, tail: Fraction) -> bool:
    return one == other or abs(one - other) < tail


DIGITS = r"(?:\d+(?:[.,']\d+|[\x20_]\d{3}(?!\d))*+|(?<!\d)\.\d++)"
"""Digits and what stands between them, whatever it means."""

GROUPED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<whole>\d+)(?:\.(?P<part>\d+))?",
        r"\.(?P<part>\d+)",
        r"(?P<whole>[1-9]\d{0,2}(?:,\d{3})+)(?:\.(?P<part>\d+))?",  # 1,234,567.8
        r"(?P<whole>[1-9]\d?(?:,\d{2})+,\d{3})(?:\.(?P<part>\d+))?",  # 12,34,567
        r"(?P<whole>[1-9]\d{0,2}(?:\.\d{3})+),(?P<part>\d+)",  # 1.234,5
        r"(?P<whole>[1-9]\d{0,2}(?:\.\d{3}){2,})",  # 1.234.567
        r"(?P<whole>[1-9]\d{0,2}(?P<gap>[\x20'_])\d{3}(?:(?P=gap)\d{3})*)(?:[.,](?P<part>\d+))?",  # 1 234,5
        r"(?P<whole>\d+),(?P<part>\d+)",  # 1,5 and 0,125: no thousands
    )
)


def ungroup(digits: str) -> str | None:
    """Digits without thousands separators, with a decimal point: 1,234.50 and 1.234,50 are "1234.50"; None for what is
    several numbers, as 1,2,3."""
    found = next((match for grammar in GROUPED if (match := grammar.fullmatch(digits))), None)
    if found is None or len(digits) > MOST_DIGITS:
        return None
    parts = found.groupdict()
    whole = re.sub(r"\D", "", parts.get("whole") or "") or "0"
    return f"{whole}.{parts['part']}" if parts.get("part") else whole


def scale(digits: str, exponent: str | None) -> str | None:
    """Ungrouped digits times a power of ten, written out: "1.5" and "3" give "1500"."""
    if exponent is None:
        return digits
    if len(exponent) > 5 or abs(int(exponent)) > MOST_DIGITS:
        return None
    return format(Decimal(digits).scaleb(int(exponent)), "f")


UNITS = {
    **dict.fromkeys(("%", "percent", "cent", "cents", "¢"), Fraction(1, 100)),
    **dict.fromkeys(("dozen", "dozens"), Fraction(12)),
    **dict.fromkeys(("hundred", "hundreds"), Fraction(100)),
    **dict.fromkeys(("thousand", "thousands", "k", "K"), Fraction(10**3)),
    **dict.fromkeys(("million", "millions", "M", "mn"), Fraction(10**6)),
    **dict.fromkeys(("billion", "billions", "B", "bn"), Fraction(10**9)),
    **dict.fromkeys(("trillion", "trillions"), Fraction(10**12)),
}

NUMBER = re.compile(
    r"(?:(?P<entire>\d{1,9})\x20+(?:and\x20+)?(?P<top>\d{1,9})\s?/\s?(?P<bottom>\d{1,9})(?![\d/]|[.,]\d)"
    rf"|(?P<digits>{DIGITS})(?:[eE](?P<exponent>[-+]?\d++)(?![^\W_]))?+)"
    r"(?:_(?P<base>\d{1,2})(?!\d)|(?:st|nd|rd|th)\b)?+"
    r"(?:(?P<glued>[kKMB]|mn|bn)(?![^\W_])|\s*+(?P<unit>[%¢]|(?:percent|per cent|cents?|dozens?|hundreds?|thousands?"
    r"|(?:m|b|tr)illions?)\b))?+"
)
"""2 1/2, 1,234.5, 3e8, 101_2, 18th, 18k, 18%, 18 million. Its unit belongs to a number, 18k is never 18."""


def read_number(found: re.Match[str]) -> Number | None:
    """What a match of `NUMBER` stands for; None if it is several numbers, or longer than `MOST_DIGITS`."""
    unit = UNITS.get((found["unit"] or "").replace("per cent", "percent"), Fraction(1))
    if found["digits"] is None:
        top, bottom = int(found["top"]), int(found["bottom"])
        return Number(int(found["entire"]) + Fraction(top, bottom), unit) if top < bottom else None
    digits = ungroup(found["digits"])
    written = scale(digits, found["exponent"]) if digits is not None else None
    if digits is None or written is None:
        return None
    significant = len(digits.replace(".", "").lstrip("0"))
    places = Decimal(digits).as_tuple().exponent
    tail = Fraction(0)
    if "." in digits and significant >= ROUNDED:
        tail = Fraction(10) ** (int(places) + int(found["exponent"] or 0))
    number = Number(Fraction(written), unit, int(found["base"] or 10), tail)
    if found["glued"]:
        return replace(number, value=number.value * UNITS[found["glued"]], tail=tail * UNITS[found["glued"]])
    return number


LAST = re.compile(
    r"(?<![A-Za-z0-9_])(?<![A-Za-z0-9_]\.)(?P<minus>(?<![\w)\]}.%])-)?+"
    rf"(?:(?P<fraction>\d++\s?/\s?\d++)(?![\d/])|(?P<digits>{DIGITS})(?:[eE](?P<exponent>[-+]?\d++)(?![^\W_]))?+)"
)


def last_number(reply: str) -> str | None:
    """The last number of a text, as Python writes it: 1,234.50 is "1234.50", .5 is "0.5", 1e3 is "1000", 3/4 stays. Of
    several that only commas separate, such as 1,2,3, the last. Digits of a word, such as x2, are no number."""
    found = deque(LAST.finditer(re.sub(r"-\$", "-", characters(reply)).replace("$", "")), maxlen=1)
    if not found:
        return None
    last = found[0]
    if last["fraction"]:
        number = re.sub(r"\s", "", last["fraction"])
    else:
        digits = ungroup(last["digits"]) or re.split(r"[.,'_ ]", last["digits"])[-1]
        number = scale(digits, last["exponent"]) or digits
    return (last["minus"] or "") + number


# --- plain text ---

SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
ALIKE = {
    **dict.fromkeys("−‐‑﹣➖", "-"),
    **dict.fromkeys("‒—", "–"),
    **dict.fromkeys("’‘ʼ′", "'"),
    **dict.fromkeys("⋅∙·•", "·"),
    **dict.fromkeys("✕✖⨯", "×"),
    **dict.fromkeys("⁄∕÷", "/"),
    "٫": ".",
    "٬": ",",
    "。": ". ",
    "、": ", ",
    "٪": "%",
    "≅": "≈",
    "≃": "≈",
}


def characters(text: str) -> str:
    """The same in fewer characters: any script's digits, fullwidth forms, spaces, minus signs, ½, x² as ASCII."""
    text = re.sub("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(SUPERSCRIPTS), text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_" + found[0].translate(SUBSCRIPTS), text)
    return re.sub(r"[^\x00-\x7f]", lambda found: _ascii(found[0]), text)


def _ascii(character: str) -> str:
    if character in ALIKE:
        return ALIKE[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    kind = unicodedata.category(character)
    if kind in ("Zs", "Zl", "Zp"):
        return " "
    if kind == "Cf":
        return ""
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', character).replace('⁄', '/')} "
    return character


def _recurring(found: re.Match[str]) -> str:
    """0.1\\overline{6} and 0.1666... as the fraction that they are."""
    whole, first, digits = found["whole"] or "0", found["first"], found["digits"] or found["digit"]
    part = Fraction(int(digits), 10 ** len(digits) - 1) / 10 ** len(first)
    value = Fraction(f"{whole}.{first or 0}") + part
    return f" {value.numerator}/{value.denominator} "


PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
COUNTS = {"one": 1, "a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def _parts(found: re.Match[str]) -> str:
    """Two thirds as 2/3."""
    return f"{COUNTS[found[1].lower()]}/{PARTS[found[2].lower()]}"


RECURRING = (
    r"(?<!\d)(?P<whole>\d{0,20})\.(?P<first>\d{0,20}?)"
    r"(?:\\(?:overline|bar)\s?\{(?P<digits>\d{1,20})\}|(?P<digit>\d)(?P=digit){1,20}(?:\.{3}|…|\\l?dots\b))"
)
LATEX = (
    (RECURRING, _recurring),
    (r"\{,\}", ","),
    (r"\\\\(?=\s|$)", " "),
    (r"\\!", ""),
    (r"\\[,;:> ]|~|\\q?quad\b", " "),
    (r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z])|\\[()\[\]]", ""),
    (r"([\^_])\{(-?\d{1,9})\}", r"\1\2"),
    (r"_\{?\\text\s?\{\s*(?:base\s*)?(\d{1,2})\s*\}\}?", r"_\1"),
    (r"\\(?:text)?color\s?\{\w{1,40}\}", ""),
    (r"\\(?:text|math|underline|operatorname|emph|[mh]box|bm|boldsymbol)[a-z]{0,6}\s?\{([^{}\\]*)\}", r" \1 "),
    (r"\\([%$#&_])", r"\1"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", " * "),
    (r"\\div(?![A-Za-z])", " / "),
    (r"\\neq?(?![A-Za-z])", " ≠ "),
    (r"\\(?:lt|leq?|leqslant)(?![A-Za-z])", " < "),
    (r"\\(?:gt|geq?|geqslant)(?![A-Za-z])", " > "),
    (r"\\(?:approx|simeq|doteq)(?![A-Za-z])", " ≈ "),
    (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])|°", " degrees "),
    (r"\\(?:pounds|euro|textdollar)(?![A-Za-z])", ""),
    (r"(?<!\^)\\[dtc]?frac\s?(?:\{\s?(-?[\d.]{1,99})\s?\}|(\d))\s?(?:\{\s?([\d.]{1,99})\s?\}|(\d))", r" \1\2/\3\4 "),
    (r"\{(-?[\d.,]{1,99})\}", r"\1"),
    (r"(?<![\w)])\(?(\d{1,99})\)?\s?_(?=\d)", r"\1_"),
)
EMPHASIS = (
    (r"(?<=\d)\x20?\*\*\x20?(?=[-\d])", "^"),
    (r"\*\*|__|`+", ""),
    (r"<<[^<>]{0,200}>>\s?(?=[-.\d])", ""),
    (r"<<([^<>]{0,200})>>", r"\1"),
    (r"(?<![\w*])[*_](?=\S)([^*_\n]{0,999})(?<=\S)[*_](?![\w*])", r"\1"),
    (r"</?[A-Za-z|][\w|]{0,40}/?>", " "),
)
CURRENCY = (
    (r"(?:\b(?:US|CA|AU|NZ|HK|[ACS]))?\$|[€£¥₹₽₩₺₴₦₫₱₪฿]", ""),
    (r"\b(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|Rs\.?|RM)\x20?(?=[-.\d])", ""),
)
WORDS = (
    (r"\b(?:minus|negative)\x20+(?=[\d.])", "-"),
    (r"(?<=\d)\x20?(?:[x×·]|times\b|multiplied by\b)\x20?(?=[-.\d])", " * "),
    (r"(?<=\d)\x20plus\x20(?=[-.\d])", " + "),
    (r"(?<=\d)\x20divided by\x20(?=[-.\d])", " / "),
    (r"(?<![\w)])–(?=[.\d])", "-"),
    (r"\b(?:equals? to|(?:amounts?|comes?|adds? up|sums? up) to|(?:a )?(?:grand )?total of)\b", "equals"),
    (r"(\d) and (?:a|one) half\b", r"\1 1/2"),
    (r"\b(one|an?|two|three|four|five)[ -](half|third|quarter|fourth|fifth|sixth|eighth|tenth)s?\b(?! of \d)", _parts),
    (r"(\d) (?:dollars?|euros?|pounds?),?(?: and)? (\d\d) (?:cents?|pence)\b", r"\1.\2 dollars"),
)
PLAIN = tuple((re.compile(pattern), by) for pattern, by in (*LATEX, *EMPHASIS, *CURRENCY, *WORDS))


def plain(text: str) -> str:
    """A short text without LaTeX's and Markdown's dress, currency signs and tags: \\frac{1}{2} is 1/2, **$1{,}234$** is
    1,234, 3 \\times 10^{8} is 3 * 10^8. LaTeX that says more keeps its backslash."""
    text = characters(text)
    for pattern, by in PLAIN:
        text = pattern.sub(by, text)
    return text.strip()
