"""What arguments may be: one sentence that names the argument, its value and what it must be, as a ValueError."""

import inspect
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

MOST_SHOWN = 80
"""Characters of a wrong value that a message shows."""
MOST_TOKENS = 2**20
"""Of a prompt or a response: as much as models read, and no more than what arrays can be made for."""
MOST_TURNS = 1_000
"""Of a conversation: what is said in each is read again with every turn after it."""
MOST_SEED = 2**63
"""Every generator here takes seeds below it, torch's included."""


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, not longer than a line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 2]} …"


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """The value as an int, numpy's whole numbers too.

    Raises:
        ValueError: it is no whole number in least … most; True and False are none.
    """
    try:
        number = None if _is_flag(value) or not _is_scalar(value) else operator.index(value)
    except TypeError:
        number = None
    if number is not None and least <= number and (most is None or number <= most):
        return number
    if most is not None and most < 1000:
        wanted = f"a whole number, {least} … {most}"
    elif most is not None and number is not None and number > most:
        wanted = f"a whole number of at most {most:,}"
    else:
        wanted = f"a whole number of at least {least}"
    raise ValueError(f"{name} is {shown(value)}; it must be {wanted}.")


def check_seed(value: Any, name: str = "seed") -> int:
    """The seed as an int; ValueError unless it is a whole number of at least 0, below 2^63."""
    if (seed := check_whole(name, value)) >= MOST_SEED:
        raise ValueError(f"{name} is {shown(value)}; it must be below 2^63.")
    return seed


LARGEST = 1e100
"""Most, in size, of rewards, penalties and weights: larger ones overflow where several are added up."""


def check_finite(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf
) -> float:
    """The value as a float, numpy's numbers too.

    Args:
        above: the value must be larger than this.

    Raises:
        ValueError: it is no finite number in least … most, above `above`, of at most `LARGEST` in size; True and False
        are none.
    """
    try:
        number = (
            math.nan if _is_flag(value) or isinstance(value, str | bytes) or not _is_scalar(value) else float(value)
        )
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (abs(number) <= LARGEST and least <= number <= most and number > above):
        bounds = [f"of at least {least:g}"] if math.isfinite(least) else []
        bounds += [f"above {above:g}"] if math.isfinite(above) else []
        bounds += [f"of at most {most:g}"] if math.isfinite(most) else []
        bounds += [f"of at most {LARGEST:g} in size"] if LARGEST < abs(number) < math.inf else []
        raise ValueError(
            f"{name} is {shown(value)}; it must be a finite number{' ' if bounds else ''}{' and '.join(bounds)}."
        )
    return number


def check_flag(name: str, value: Any) -> bool:
    """The value as a bool; ValueError unless it is True or False."""
    if not _is_flag(value):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """The value; ValueError unless it is one of the choices (texts, or None)."""
    known = list(choices)
    if not (value is None or isinstance(value, str)) or value not in known:
        choices = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}" if known[1:] else f"{known[0]!r}"
        raise ValueError(f"{name} is {shown(value)}; choose {choices}.")
    return value


def check_text(name: str, value: Any, *, optional: bool = False) -> Any:
    """The value; ValueError unless it is a text with something in it (or None, where that is allowed)."""
    if (value is None and optional) or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(f"{name} is {shown(value)}; it must be a text that is not empty{', or None' if optional else ''}.")


def required(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a function or class cannot do without."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def check_callable(name: str, value: Any) -> Any:
    """The value; ValueError unless it can be called."""
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} is {shown(value)}; it must be a function.")
    return value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_scalar(value: Any) -> bool:
    """Is this one number, not an array of one?"""
    return getattr(value, "shape", ()) == ()
