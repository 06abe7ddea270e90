"""What goes into a sandbox, what comes out, and the pool of workers in between."""

import keyword
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.sandbox.inside.codec import encode_plain_data

Verdict = Literal["finished", "error", "timeout", "memory", "forbidden"]
"""How a run ended; whether its outputs are right is decided outside (`grading.grade`)."""


class SandboxUnavailable(OSError):
    """No backend on this machine keeps a program in; the message says what each one lacks. Nothing was run."""


class NoOutput:
    """Stands where an input gave no output. No program can return it."""

    def __repr__(self) -> str:
        return "NO_OUTPUT"


NO_OUTPUT = NoOutput()


@dataclass(frozen=True)
class Program:
    """A program and the inputs to call it with. Expected outputs have no place here: they never enter a sandbox.

    Args:
        source: Python source text.
        entry_point: the name of the function to call.
        inputs: tuples of positional arguments, plain data (None, bool, int, float, complex, str, bytes, list, tuple,
            set, frozenset, dict).

    Raises:
        ValueError: naming the argument, its value and what it must be.
    """

    source: str
    entry_point: str
    inputs: Sequence[tuple]

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise ValueError(f"source is a {type(self.source).__name__}; it must be Python source text.")
        if (
            not isinstance(self.entry_point, str)
            or not self.entry_point.isidentifier()
            or keyword.iskeyword(self.entry_point)
        ):
            raise ValueError(f"entry_point is {self.entry_point!r}; it must be the name of a function.")
        for number, arguments in enumerate(self.inputs):
            if not isinstance(arguments, tuple):
                raise ValueError(
                    f"inputs[{number}] is {arguments!r:.80}; it must be a tuple of positional arguments, such as (3,)."
                )

    @cached_property
    def encoded_inputs(self) -> list:
        """The inputs as JSON-able values.

        Raises:
            ValueError: naming the input that is not plain data.
        """
        encoded = []
        for number, arguments in enumerate(self.inputs):
            try:
                encoded.append([encode_plain_data(argument) for argument in arguments])
            except (TypeError, ValueError) as error:
                raise ValueError(f"inputs[{number}] of {self.entry_point} cannot enter a sandbox: {error}.") from None
        return encoded


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Args:
        verdict: finished (every input gave an output), error, timeout, memory or forbidden.
        outputs: one plain value an input, `NO_OUTPUT` where there is none.
        message: the first thing that went wrong, in words; empty when finished. It may quote the program: do not trust
            it.
        cpu_seconds: CPU time, measured outside the program.
        unsupported: the backend does not speak all of Python, and this may be why the program did not finish. Not the
            program's fault: scoring it as wrong trains a policy away from the feature.
        full: the backend speaks all of Python. Where it does not, it may also compute another value than Python would,
            so that an output proves nothing against a program.
    """

    verdict: Verdict
    outputs: tuple[Any, ...]
    message: str = ""
    cpu_seconds: float = 0.0
    unsupported: bool = False
    full: bool = True


@dataclass(frozen=True)
class Limits:
    """What one program may use, over all its inputs."""

    cpu_seconds: float = 2.0
    """CPU time; this is what a timeout is judged on."""
    wall_seconds: float = 10.0
    """A loose cap on elapsed time, for programs that wait instead of working. A program that hits it with half of its
    CPU time left is run once more before the verdict: the machine may have been busy."""
    memory_bytes: int = 512 << 20
    """Address space (bwrap, landlock) or heap (monty)."""
    output_bytes: int = 1 << 20
    """Encoded outputs, all together."""
    request_bytes: int = 16 << 20
    """Encoded program and inputs."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"{name} is {value!r}; a limit must be a finite number above 0.")
        if self.wall_seconds < self.cpu_seconds:
            raise ValueError(
                f"wall_seconds is {self.wall_seconds}, less than cpu_seconds, {self.cpu_seconds}; it must be the "
                f"looser one."
            )
        if self.memory_bytes < 64 << 20:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; an interpreter needs at least {64 << 20} (64 MiB).")


class Sandbox(ABC):
    """Runs programs that nobody has read. A context manager; closing it ends every process it started.

    `run` may be called from several threads.
    """

    name: str
    """The backend at work: "bwrap", "landlock" or "monty"."""
    full: bool = True
    """It speaks all of Python. No outcome of such a sandbox is `unsupported`."""

    @abstractmethod
    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """One outcome a program, in order.

        Raises:
            ValueError: an input that is not plain data, or a request that is too large; nothing was run.
            SandboxUnavailable: a worker died and could not be replaced.
        """

    @abstractmethod
    def close(self) -> None:
        """End every process. Safe to call twice."""

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Worker(Protocol):
    """Runs one program at a time."""

    def run(self, program: Program, last_attempt: bool) -> Outcome: ...

    def close(self) -> None: ...


class PoolSandbox(Sandbox):
    """A sandbox of equal workers, kept warm, each with a thread that feeds it."""

    def __init__(self, name: str, workers: Sequence[Worker], limits: Limits, full: bool = True) -> None:
        self.name, self.limits, self.full = name, limits, full
        self._workers = workers
        self._free: SimpleQueue[Worker] = SimpleQueue()
        for worker in workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(len(workers), thread_name_prefix=f"sandbox-{name}")

    def run(self, programs):
        for number, program in enumerate(programs):
            size = request_size(program)
            if size > self.limits.request_bytes:
                raise ValueError(
                    f"program {number} and its inputs take {size} bytes; request_bytes is {self.limits.request_bytes}."
                )
        return list(self._threads.map(self._run_one, programs))

    def close(self):
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _run_one(self, program: Program) -> Outcome:
        worker = self._free.get()
        try:
            outcome = worker.run(program, last_attempt=False)
            if outcome.verdict == "timeout" and outcome.cpu_seconds < 0.5 * self.limits.cpu_seconds:
                outcome = worker.run(program, last_attempt=True)
        except SandboxUnavailable as error:
            raise SandboxUnavailable(
                f"{self.name}: a worker died and could not be started again ({error}); this machine may be short of "
                f"memory or of processes: use fewer workers."
            ) from None
        finally:
            self._free.put(worker)
        return outcome


def request_size(program: Program) -> int:
    """Bytes, about: what the source and the inputs take when they cross."""
    return len(program.source.encode("utf-8", "surrogatepass")) + len(str(program.encoded_inputs))


def check_workers(workers: int) -> None:
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= 1024:
        raise ValueError(f"workers is {shown(workers)}; it must be a whole number from 1 to 1024.")


def printable(text: str, characters: int = 500) -> str:
    """Text from inside, made safe to print: one line, no control characters, no lone surrogates, not long."""
    return "".join(
        c if c.isprintable() else " " for c in text[:characters].encode("utf-8", "replace").decode("utf-8")
    ).strip()
