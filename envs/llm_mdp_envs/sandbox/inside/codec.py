"""Plain data as tagged JSON: the only thing that crosses the wall of a sandbox, in either direction.

None, booleans, strings, finite numbers and lists are themselves; everything else is an object with one key, its tag:
`tuple`, `set`, `frozenset`, `dict` (a list of pairs), `bytes` (hexadecimal), `complex`, `float` (inf, -inf, nan), `int`
(hexadecimal, from 1e300 on: Python reads no more than 4300 decimal digits, and takes quadratic time for them).
Subclasses cross as their base, so what they override (`__eq__`, `__hash__`, `__repr__`) stays inside. Nothing is
pickled, nothing is evaluated.

This file runs on both sides: outside as a module, inside the fork server, and inside Monty, whose subset of Python the
encoder keeps to.
"""

import json

MAX_DEPTH = 64
"""Levels of nesting."""

MAX_INT_BITS = 1 << 19
"""Of a whole number: 157,826 decimal digits."""
MAX_PLAIN_DIGITS = 310
MAX_COMPARISONS = 1 << 18
"""Values that are compared while the sets and dicts of one document are built. Keys with equal hashes make this
quadratic, and the program chooses the keys."""


def encode_plain_data(value, depth=0):
    """The JSON-able form of plain data.

    Raises:
        TypeError: something in it is not plain data.
        ValueError: nested deeper than 64 levels, or a whole number of more than 524288 bits.
    """
    if depth > 64:
        raise ValueError("nested deeper than 64 levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value) if type(value) is not str else value
    if isinstance(value, int):
        number = int.__int__(value) if type(value) is not int else value
        if -1e300 < number < 1e300:
            return number
        digits = hex(number)
        if len(digits) > 131075:
            raise ValueError("a whole number of more than 524288 bits")
        return {"int": digits}
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
        TypeError, ValueError: as `encode_plain_data`.
    """
    return json.dumps(encode_plain_data(value), allow_nan=False)


def loads(text):
    """The plain data written by `dumps`, from a writer who may be hostile.

    Raises:
        ValueError: the text is anything else: not JSON, an unknown tag, too deep, an unhashable key, too many keys with
            equal hashes.
    """
    try:
        return decode_plain_data(parse(text))
    except (TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"not tagged plain data: {type(error).__name__}") from None


def parse(text):
    """Strict JSON: without the constants NaN, Infinity and -Infinity that Python's parser would let pass, and without
    numbers that take long to read."""
    return json.loads(text, parse_constant=_refuse, parse_int=_plain_int)


def decode_plain_data(value):
    """The inverse of `encode_plain_data`, on parsed JSON.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: `encode_plain_data` did not write it.
    """
    return _decode(value, 0, Comparisons())


class Comparisons:
    """Counts the values that are compared while sets and dicts are built, from keys that may be chosen to collide."""

    def __init__(self):
        self.left = MAX_COMPARISONS

    def admit(self, keys):
        """The keys of one more set or dict, unchanged.

        Raises:
            ValueError: too many of them have equal hashes. TypeError: a key has no hash.
        """
        chains = {}
        for key in keys:
            chain = chains.setdefault(hash(key), [])
            if self._is_new(key, chain):
                chain.append(key)
        return keys

    def _is_new(self, key, chain):
        cost = _cost(key) if chain else 0
        for other in chain:
            self.left -= cost
            if self.left < 0:
                raise ValueError("too many keys with equal hashes")
            if key == other:
                return False
        return True


def _cost(key):
    """Of comparing this key with one of equal hash."""
    if isinstance(key, tuple):
        return 1 + sum(map(_cost, key))
    if isinstance(key, frozenset):  # a look-up for each item, which passes items of equal hash
        return 1 + len(key) * sum(map(_cost, key))
    return 1 + len(key) // 64 if isinstance(key, (str, bytes)) else 1


def _decode(value, depth, comparisons):
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return _items(value, depth, comparisons)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an object has {len(value)} keys instead of one tag")
    ((tag, content),) = value.items()
    if tag in _SCALARS:
        return _SCALARS[tag](content)
    if not isinstance(content, list):
        raise ValueError("a container's content is not a list")
    return _CONTAINERS[tag](_items(content, depth, comparisons), comparisons)


def _items(content, depth, comparisons):
    return [_decode(item, depth + 1, comparisons) if type(item) in (list, dict) else item for item in content]


def _dict(pairs, comparisons):
    if any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ValueError("a dict's content is not a list of pairs")
    comparisons.admit([key for key, _ in pairs])
    return _each_once(dict(pairs), pairs)


def _each_once(container, items):
    if len(container) < len(items):
        raise ValueError("a set or dict has a key twice")
    return container


def _complex(parts, comparisons):
    real, imag = parts
    return complex(real, imag)


def _float(content):
    if content not in ("inf", "-inf", "nan"):
        raise ValueError(f"{content!r:.20} is not one of inf, -inf, nan")
    return float(content)


def _int(content):
    if not isinstance(content, str) or len(content) > MAX_INT_BITS // 4 + 3:
        raise ValueError("an int's content is not a hexadecimal number of reasonable length")
    return int(content, 16)


def _plain_int(digits):
    if len(digits) > MAX_PLAIN_DIGITS:
        raise ValueError("a long number is not tagged")
    return int(digits)


def _refuse(name):
    raise ValueError(f"{name} is not tagged")


_SCALARS = {"bytes": lambda content: bytes.fromhex(content), "float": _float, "int": _int}
_CONTAINERS = {
    "tuple": lambda items, comparisons: tuple(items),
    "set": lambda items, comparisons: _each_once(set(comparisons.admit(items)), items),
    "frozenset": lambda items, comparisons: _each_once(frozenset(comparisons.admit(items)), items),
    "dict": _dict,
    "complex": _complex,
}
