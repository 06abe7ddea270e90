"""Drawing with keys and values of a fixed width: no shape changes from token to token, so that the step of a column is
compiled once and, on CUDA, replayed as a graph. The draws are the same, and so are the tokens, up to the rounding of
other kernels. It pays where the time goes into starting kernels: few rows, small models, accelerators."""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, StaticCache

from llm_mdp_agents.lm.architecture import arguments_of, forward
from llm_mdp_agents.lm.reader import Reader

COMPILERS = (os.environ.get("CXX", "g++"), "clang++")
COLUMNS = 64
"""Widths are multiples of this: a new width is compiled anew (15 to 30 seconds), a wider one read needlessly."""


class FixedWidth:
    """Makes what a policy keeps while it draws, of few shapes, and the compiled step that they share.

    Args:
        policy: a model with full attention.
        compiled: False: the same step, as it is.

    Raises:
        ValueError: if the model cannot go on from keys and values in columns of its own.
    """

    def __init__(self, policy: Reader, compiled: bool = True):
        if not policy.full_attention:
            raise ValueError(
                f"{type(policy.causal_lm).__name__} does not attend to all columns alike, so that they cannot have a "
                f"fixed width; leave decode at 'growing'."
            )
        if compiled and policy.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
            raise ValueError(
                f"decode is 'static', which compiles a step for the processor, and there is none of the compilers "
                f"{', '.join(COMPILERS)}; install one, or leave decode at 'growing'."
            )
        self.policy, self.takes = policy, arguments_of(policy.causal_lm)
        mode = "reduce-overhead" if policy.device.type == "cuda" else "default"
        self.step = torch.compile(self._step, fullgraph=True, dynamic=False, mode=mode) if compiled else self._step
        self._cache: tuple[tuple[int, int], StaticCache] | None = None

    def memory(self, cache: Cache, seen: Bool[Tensor, "N S"], most: int) -> "Fixed":
        """What was read, with room for so many tokens more. Only one at a time: the next overwrites it."""
        rows, columns = seen.shape
        shape = _rows(rows), -(-(columns + most) // COLUMNS) * COLUMNS
        # The rows that are too many are copies of the first.
        which = torch.arange(shape[0], device=seen.device) % shape[0]
        which = torch.where(which < rows, which, 0)
        if self._cache is None or self._cache[0] != shape:
            self._cache = shape, StaticCache(config=self.policy.causal_lm.config, max_cache_len=shape[1])
        fixed = self._cache[1]
        layers: Any = zip(fixed.layers, cache.layers)
        for new, old in layers:
            if not new.is_initialized:
                new.lazy_initialization(old.keys[:1].expand(shape[0], -1, -1, -1), old.values[:1])
            new.keys[:, :, :columns], new.values[:, :, :columns] = old.keys[which], old.values[which]
            new.cumulative_length.fill_(columns)
        wide = torch.zeros(shape, dtype=torch.bool, device=seen.device)
        wide[:, :columns] = seen[which]
        return Fixed(self, fixed, wide, rows, columns)

    def _step(self, newest: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        model = self.policy.causal_lm
        if model.config._attn_implementation != "sdpa":  # others add their masks
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
        return forward(model, self.takes, newest, mask=mask, position=position, cache=cache, last=True).logits[:, -1]


@dataclass
class Fixed:
    """Keys and values of a fixed width, of rows that stay until all have ended: a `Memory`."""

    of: FixedWidth
    cache: Cache
    wide: Bool[Tensor, "M S"]
    rows: int
    """Of the M; the others are copies."""
    column: int
    """The next one."""
    shrinks = False

    @property
    def seen(self) -> Bool[Tensor, "N S"]:
        return self.wide[: self.rows]

    def read(self, newest: Int[Tensor, "N 1"], alive: Bool[Tensor, " N"]) -> Float[Tensor, "N V"]:
        extra = len(self.wide) - self.rows
        newest, alive = (torch.cat([part, part[:1].expand(extra, *part.shape[1:])]) for part in (newest, alive))
        self.wide[:, self.column] = alive
        self.column += 1
        position = self.wide.sum(-1, keepdim=True) - 1
        # A graph's results are overwritten when it runs again.
        logits = self.of.step(newest, position, self.wide[:, None, None, :], self.cache).clone()
        return self.of.policy.scores(logits[: self.rows])

    def take(self, rows: Int[Tensor, " n"]) -> None:
        raise ValueError("rows do not leave what has a fixed width.")


def _rows(rows: int) -> int:
    """The next power of two: a new number of rows is compiled anew."""
    return 1 << (rows - 1).bit_length()
