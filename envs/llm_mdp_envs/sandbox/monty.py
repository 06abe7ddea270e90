"""The `monty` backend: pydantic-monty, an interpreter of a subset of Python that has no way out. Linux, macOS,
Windows."""

import builtins
import contextlib
import importlib
import inspect
import re
import sys
import time
from functools import cache

from llm_mdp_envs.sandbox.inside import codec
from llm_mdp_envs.sandbox.program import NO_OUTPUT, Limits, Outcome, PoolSandbox, Program, SandboxUnavailable, printable
from llm_mdp_envs.sandbox.reports import failure_of_exception, read_line

ENCODER = "import json as json_of_the_sandbox\n" + inspect.getsource(codec.encode_plain_data)
CALL = """print()
print('{{"output": ' + json_of_the_sandbox.dumps(
    encode_plain_data({entry_point}(*arguments_of_the_sandbox)), allow_nan=False
) + '}}')
pass"""
"""`pass`: a last expression would be converted to an object out here, whatever its size."""
POLICY = {"sleep": "zero", "random_start": {"seed": 0}}
CRASH_GRACE = 5.0
CRASHED = "Monty crashed"
MODULES = (
    *("builtins", "array", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools"),
    *("inspect", "io", "itertools", "json", "operator", "pathlib", "random", "re", "string", "types", "typing"),
)
"""Of the standard library, what programs use objects of."""


def monty_sandbox(workers: int, limits: Limits) -> PoolSandbox:
    """
    Raises:
        SandboxUnavailable: pydantic-monty is not installed, or its worker does not start.
    """
    try:
        import pydantic_monty
    except ImportError as error:
        raise SandboxUnavailable(f"monty: not installed ({error}); pip install 'llm-mdp[code]'") from None
    pool = contextlib.ExitStack()
    try:
        deadline = limits.wall_seconds + CRASH_GRACE
        monty = pool.enter_context(
            pydantic_monty.Monty(min_processes=workers, max_processes=workers, request_timeout=deadline)
        )
    except (pydantic_monty.MontyError, OSError, RuntimeError) as error:
        raise SandboxUnavailable(f"monty: {printable(str(error))}") from None
    return PoolSandbox("monty", [MontyWorker(monty, pool, limits) for _ in range(workers)], limits, full=False)


class MontyWorker:
    """Checks one interpreter out of the pool for each program and never uses it for two."""

    def __init__(self, monty, pool: contextlib.ExitStack, limits: Limits) -> None:
        self._monty, self._pool, self._limits = monty, pool, limits

    def close(self) -> None:
        self._pool.close()

    def run(self, program: Program, last_attempt: bool) -> Outcome:
        """Monty's own clock is a wall clock, so the first attempt may be cut short on a busy machine; the last one gets
        the loose limit."""
        outcome = self._attempt(program, last_attempt)
        return self._attempt(program, last_attempt) if outcome.message.startswith(CRASHED) else outcome

    def _attempt(self, program: Program, last_attempt: bool) -> Outcome:
        import pydantic_monty

        duration = self._limits.wall_seconds if last_attempt else self._limits.cpu_seconds
        bounds = {"max_feed_duration_secs": duration, "max_memory": self._limits.memory_bytes}
        outputs: list = []
        spent = 0.0
        try:
            with self._monty.checkout(limits=bounds, os_policy=POLICY) as session:
                clock = cpu_clock(session.worker_pid)
                start = clock()
                try:
                    outcome = self._feed(session, program, outputs, lambda: clock() - start)
                finally:
                    spent = clock() - start
        except pydantic_monty.MontyCrashedError as error:
            crash = ("error", printable(f"{CRASHED}: {error}"), True)
            outcome = ("timeout", "it had to be killed", True) if error.timed_out else crash
        except pydantic_monty.MontyError as error:
            outcome = failure_in_monty(error, program.source)
        verdict, message, unsupported = outcome
        outputs += [NO_OUTPUT] * (len(program.inputs) - len(outputs))
        return Outcome(verdict, tuple(outputs), message, spent, unsupported, full=False)

    def _feed(self, session, program: Program, outputs: list, spent) -> tuple:
        """Run everything; appends to outputs. Verdict and message of the first failure, and whether any is
        unsupported."""
        import pydantic_monty

        room, deadline = self._limits.output_bytes, time.monotonic() + self._limits.wall_seconds
        session.feed_run(program.source + "\npass", print_callback=pydantic_monty.CollectString(room))
        session.feed_run(ENCODER, print_callback=pydantic_monty.CollectString(room))
        call, failures = CALL.format(entry_point=program.entry_point), []
        for arguments in program.inputs:
            printed = pydantic_monty.CollectString(room)
            if out_of_time := self._out_of_time(spent(), deadline):
                failures.append(out_of_time)
                break
            try:
                session.feed_run(call, inputs={"arguments_of_the_sandbox": arguments}, print_callback=printed)
                text = printed.output.rstrip("\n").rpartition("\n")[2]
                room -= len(text)
                output, failure = read_line(text.encode("utf-8", "replace"))
                failure = (*failure, True) if failure else None
            except pydantic_monty.MontyRuntimeError as error:
                output, failure = NO_OUTPUT, failure_in_monty(error, program.source)
            outputs.append(output)
            failures += [failure] if failure else []
            if failure and failure[0] in ("timeout", "memory"):
                break
        verdict, message, _ = next(iter(failures), ("finished", "", False))
        return verdict, message, any(unsupported for *_, unsupported in failures)

    def _out_of_time(self, cpu_seconds: float, deadline: float) -> tuple | None:
        """All inputs share both limits."""
        if cpu_seconds > self._limits.cpu_seconds:
            return "timeout", f"more than {self._limits.cpu_seconds:g} seconds of CPU time", True
        if time.monotonic() > deadline:
            return "timeout", f"more than {self._limits.wall_seconds:g} seconds passed", True
        return None


def failure_in_monty(error, source: str) -> tuple:
    """Verdict, message, and whether Monty rather than the program may be at fault."""
    exception = error.exception()
    if isinstance(exception, TimeoutError) and "time limit exceeded" in str(exception):
        return "timeout", printable(str(exception)), True
    verdict, message = failure_of_exception([base.__name__ for base in type(exception).__mro__], str(exception))
    return verdict, message, verdict != "forbidden" and not fails_in_python(error, source)


def fails_in_python(error, source: str) -> bool:
    """Is it certain that plain Python fails here too? Monty lacks a part of the language and may compute another value
    than Python, so this holds for few errors: the program is not Python's grammar, says itself that it is not
    implemented, or asks for a name, a module or a method that Python does not have either."""
    import pydantic_monty

    if isinstance(error, pydantic_monty.MontySyntaxError):
        return True
    exception = error.exception()
    text = str(exception)
    names = re.findall(r"'([^']*)'", text)
    match exception:
        case NotImplementedError():
            return raised_by_itself(error, "NotImplementedError")
        case ImportError():
            return bool(names) and all(name.partition(".")[0] not in sys.stdlib_module_names for name in names)
        case UnboundLocalError():
            return False
        case NameError():
            return len(names) == 1 and not names[0].startswith("__") and not hasattr(builtins, names[0])
        case AttributeError() if len(names) == 2:
            owner, name = names
            once = len(re.findall(rf"\b{re.escape(name)}\b", source)) == 1
            return once and isinstance(getattr(builtins, owner, None), type) and name not in known_attributes()
    return False


def raised_by_itself(error, name: str) -> bool:
    """Did the program's own `raise NAME` lead to this error, rather than a want of Monty?"""
    frames = error.traceback()
    if not frames or not frames[-1].source_line:
        return False
    line, column = frames[-1].source_line, frames[-1].column - 1
    return line[:column].rstrip().endswith("raise") and line[column:].startswith(name)


@cache
def known_attributes() -> frozenset[str]:
    """Names that classes of the standard library give their instances. Monty may put a simpler object in their place
    (a tuple for a named one), which then lacks the attribute."""
    classes = [kind for module in MODULES for kind in vars(importlib.import_module(module)).values()]
    return frozenset(name for kind in classes if isinstance(kind, type) for name in dir(kind))


def cpu_clock(pid: int | None):
    """A clock of the CPU seconds that a process has used. Where there is none (not Linux, or the process is gone): the
    wall clock, which is never behind.
    """
    wall, begin = time.perf_counter, time.perf_counter()
    if pid is None or not sys.platform.startswith("linux"):
        return wall
    used = time.clock_gettime(~pid << 3 | 2)

    def clock() -> float:
        try:
            return time.clock_gettime(~pid << 3 | 2)
        except OSError:
            return used + wall() - begin

    return clock
