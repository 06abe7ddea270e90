"""One process or several: what the trainer asks of the group it belongs to. Alone, all of it is nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from llm_mdp.evidence import Evidence

T = TypeVar("T")


class Parallel:
    """A single process."""

    rank, size, main = 0, 1, True

    def prepare(self, policy: Any) -> Any:
        """The module whose forward is differentiated."""
        return policy

    def gather(self, evidence: Evidence) -> tuple[Evidence, int]:
        """The whole batch and where this process's rows begin in it."""
        return evidence, 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        return rows

    def most(self, number: int) -> int:
        """The largest of every process's numbers."""
        return number

    def accumulate(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Leave gradients unaveraged but in the last part of a batch."""
        return nullcontext()

    def on_whole_model(self, policy: Any, function: Callable[[], T]) -> T:
        """Run something while every process holds all weights."""
        return function()

    def average_if_sharded(self, parameters: list[nn.Parameter]) -> None:
        pass

    def clip(self, parameters: list[nn.Parameter], most: float) -> float:
        """Shorten the gradient to `most`; returns its length before."""
        return float(nn.utils.clip_grad_norm_(parameters, most))

    def whole_state(self, policy: Any) -> dict[str, Tensor]:
        return policy.state_dict()

    def load_whole_state(self, policy: Any, state: dict[str, Tensor]) -> None:
        policy.load_state_dict(state)


def parallel_from_environment(shard: bool = False) -> Parallel:
    """The group that torchrun says this process belongs to."""
    return Parallel()
