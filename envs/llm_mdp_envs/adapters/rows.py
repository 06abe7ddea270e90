"""The base of the adapters: a task that asks the rows of a data set; and how its graders are called, and what they have
to give."""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.tasks.rows import read_rows
from llm_mdp_envs.text import TextTask


class RowTask(TextTask):
    """Base of the adapters: asks the rows of a data set, each with a "prompt" (a text, or the messages of a chat).

    Args:
        rows: a sequence of mappings, a `datasets.Dataset`, a DataFrame, a JSONL or Parquet file, or what else
            `tasks.rows.read_rows` reads. Numpy's arrays in them become lists, NaN becomes None.
        split: such as "train", where there are splits.
        others: see `TextTask`.

    Raises:
        ValueError: naming the row and what it lacks.
    """

    needed: tuple[str, ...] = ("prompt",)
    argument = listed_by = "rows"
    """What a class calls its rows, for messages."""

    def __init__(self, rows: Any, *, split: str | None = None, **text_options: Any):
        super().__init__(**text_options)
        placed = read_rows(rows, split, name=self.argument)
        self.rows = [_checked_row(row, place, self.needed) for place, row in placed]
        self.places = [place for place, _ in placed]

    def listed(self) -> int:
        return len(self.rows)

    def draw_at(self, number: int) -> tuple[str | list[dict], Any]:
        row = self.rows[number]
        return row["prompt"], row

    def draw(self, generator: np.random.Generator) -> tuple[str | list[dict], Any]:
        return self.draw_at(int(generator.integers(len(self.rows))))


def name_of(function: Callable) -> str:
    """A function's name for messages and for the parts of the reward."""
    return getattr(function, "__name__", type(function).__name__)


def finite(name: str, value: Any, number: int) -> float:
    """The reward as a float; ValueError unless it is a finite number."""
    try:
        if math.isfinite(value):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} returned {shown(value)} for response {number}; a reward must be a finite number.")


def call(function: Callable, arguments: Mapping[str, Any]) -> Any:
    """What a function gives for these keyword arguments, those left out that it does not have."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C do not say
        return function(**arguments)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function(**arguments)
    return function(**{one.name: arguments[one.name] for one in parameters if one.name in arguments})


def awaited(results: Sequence[Any]) -> list[Any]:
    """The results, coroutines among them awaited, all at the same time."""
    if not any(map(inspect.isawaitable, results)):
        return list(results)
    with ThreadPoolExecutor(1) as thread:  # of its own, for callers that already run an event loop (notebooks)
        return thread.submit(asyncio.run, _together(results)).result()


async def _together(results: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*(one if inspect.isawaitable(one) else _given(one) for one in results))


async def _given(result: Any) -> Any:
    return result


def _checked_row(row: dict[str, Any], place: str, needed: tuple[str, ...]) -> dict[str, Any]:
    for column in needed:
        if column not in row:
            raise ValueError(f"{place} has no {column!r}, only {', '.join(map(repr, row)) or 'nothing'}.")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return row
    if not isinstance(prompt, list | tuple) or not prompt or not all(map(_is_message, prompt)):
        raise ValueError(
            f'{place} has the "prompt" {shown(prompt)}; it must be a text or a list of messages with "role" and '
            f'"content".'
        )
    return row | {"prompt": [_without_holes(message) for message in prompt]}


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and {"role", "content"} <= set(message) and isinstance(message["role"], str)


def _without_holes(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the keys that a table filled with None because other messages have them, such as tool calls."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}
