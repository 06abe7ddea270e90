"""The base of the adapters: a task that asks the rows of a data set; and what its graders have to give."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.text import TextTask


class RowTask(TextTask):
    """Base of the adapters: asks the rows of a data set, each with a "prompt" (a text, or the messages of a chat).

    Args:
        rows: a sequence of mappings or a `datasets.Dataset`.
        others: see `TextTask`.

    Raises:
        ValueError: naming the row and what it lacks.
    """

    needed: tuple[str, ...] = ("prompt",)

    def __init__(self, rows: Sequence[Mapping[str, Any]], **text_options: Any):
        super().__init__(**text_options)
        if len(rows) == 0:
            raise ValueError("rows is empty; give at least one.")
        self.rows = [_checked_row(row, number, self.needed) for number, row in enumerate(rows)]

    def draw(self, generator: np.random.Generator) -> tuple[str | list[dict], Any]:
        row = self.rows[int(generator.integers(len(self.rows)))]
        return row["prompt"], row


def name_of(function: Callable) -> str:
    """A function's name for messages and for the parts of the reward."""
    return getattr(function, "__name__", type(function).__name__)


def finite(name: str, value: Any, number: int) -> float:
    try:
        finite = math.isfinite(value)
    except TypeError:
        finite = False
    if not finite:
        raise ValueError(f"{name} returned {value!r} for response {number}; a reward must be a finite number.")
    return float(value)


def _checked_row(row: Any, number: int, needed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"rows[{number}] is {row!r:.80}; it must be a mapping with {', '.join(map(repr, needed))}.")
    for column in needed:
        if column not in row:
            raise ValueError(f"rows[{number}] has no {column!r}, only {', '.join(map(repr, row))}.")
    prompt = row["prompt"]
    is_chat = isinstance(prompt, list | tuple) and len(prompt) > 0 and all(map(_is_message, prompt))
    if not isinstance(prompt, str) and not is_chat:
        raise ValueError(
            f'rows[{number}]["prompt"] is {prompt!r:.80}; it must be a text or a list of messages with "role" and '
            f'"content".'
        )
    return dict(row) | {"prompt": list(prompt) if is_chat else prompt}


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and {"role", "content"} <= set(message)
