"""Plain data as tagged JSON: the only thing that crosses the wall of a sandbox, in either direction.

None, booleans, strings, finite numbers and lists are themselves; everything else is an object with one key, its tag:
`tuple`, `set`, `frozenset`, `dict` (a list of pairs), `bytes` (hexadecimal), `complex`, `float` (inf, -inf, nan).
Subclasses cross as their base, so what they override (`__eq__`, `__hash__`, `__repr__`) stays inside. Nothing is
pickled, nothing is evaluated.

This file runs on both sides: outside as a module, inside the fork server, and inside Monty, whose subset of Python the
encoder keeps to.
"""

import json

MAX_DEPTH = 64
"""Levels of nesting."""

MAX_HASHED = 4096
"""Entries of one set or dict. Keys with equal hashes make sets quadratic, and the program chooses the keys."""


def encode_plain_data(value, depth=0):
    """The JSON-able form of plain data.

    Raises:
        TypeError: something in it is not plain data.
        ValueError: nested deeper than 64 levels, or a set or dict of more than 4096 entries.
    """
    if depth > 64:
        raise ValueError("nested deeper than 64 levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value) if type(value) is not str else value
    if isinstance(value, int):
        return int.__int__(value) if type(value) is not int else value
    if isinstance(value, float):
        return value if value - value == 0 else {"float": str(value)}
    if isinstance(value, list):
        return [encode_plain_data(item, depth + 1) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode_plain_data(item, depth + 1) for item in value]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [encode_plain_data(value.real), encode_plain_data(value.imag)]}
    if isinstance(value, (set, frozenset, dict)) and len(value) > 4096:
        raise ValueError("a set or dict of more than 4096 entries")
    if isinstance(value, dict):
        return {
            "dict": [
                [encode_plain_data(key, depth + 1), encode_plain_data(item, depth + 1)] for key, item in value.items()
            ]
        }
    if isinstance(value, set):
        return {"set": [encode_plain_data(item, depth + 1) for item in value]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode_plain_data(item, depth + 1) for item in value]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def dumps(value) -> str:
    """Plain data as one line of JSON (ASCII, no line break).

    Raises:
        TypeError, ValueError: as `encode_plain_data`; also for whole numbers of more than 4300 digits.
    """
    return json.dumps(encode_plain_data(value), allow_nan=False)


def loads(text):
    """The plain data written by `dumps`, from a writer who may be hostile.

    Raises:
        ValueError: the text is anything else: not JSON, an unknown tag, too deep, an unhashable key, too many entries.
    """
    try:
        return decode_plain_data(parse(text))
    except (TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"not tagged plain data: {type(error).__name__}") from None


def parse(text):
    """Strict JSON: without the constants NaN, Infinity and -Infinity that Python's parser would let pass."""
    return json.loads(text, parse_constant=_refuse)


def decode_plain_data(value, depth=0):
    """The inverse of `encode_plain_data`, on parsed JSON."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [decode_plain_data(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an object has {len(value)} keys instead of one tag")
    ((tag, content),) = value.items()
    return _DECODERS[tag](content, depth)


def _items(content, depth):
    if not isinstance(content, list):
        raise ValueError("a container's content is not a list")
    return [decode_plain_data(item, depth + 1) for item in content]


def _hashed(content, depth):
    if isinstance(content, list) and len(content) > MAX_HASHED:
        raise ValueError(f"a set or dict of more than {MAX_HASHED} entries")
    return _items(content, depth)


def _pairs(content, depth):
    pairs = _hashed(content, depth)
    if any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ValueError("a dict's content is not a list of pairs")
    return dict(pairs)


def _float(content, depth):
    if content not in ("inf", "-inf", "nan"):
        raise ValueError(f"{content!r} is not one of inf, -inf, nan")
    return float(content)


def _complex(content, depth):
    real, imag = _items(content, depth)
    return complex(real, imag)


def _refuse(name):
    raise ValueError(f"{name} is not tagged")


_DECODERS = {
    "tuple": lambda content, depth: tuple(_items(content, depth)),
    "set": lambda content, depth: set(_hashed(content, depth)),
    "frozenset": lambda content, depth: frozenset(_hashed(content, depth)),
    "dict": _pairs,
    "bytes": lambda content, depth: bytes.fromhex(content),
    "complex": _complex,
    "float": _float,
}
