"""The `monty` backend: pydantic-monty, an interpreter of a subset of Python that has no way out. Linux, macOS,
Windows."""

import builtins
import contextlib
import inspect
import re
import sys
import time

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


def monty_sandbox(workers: int, limits: Limits) -> PoolSandbox:
    """
    Raises:
        SandboxUnavailable: pydantic-monty is not installed, or its worker does not start.
    """
    try:
        import pydantic_monty
    except ImportError as error:
        raise SandboxUnavailable(f"monty: not installed ({error}); pip install pydantic-monty==1.4.0") from None
    pool = contextlib.ExitStack()
    try:
        deadline = limits.wall_seconds + CRASH_GRACE
        monty = pool.enter_context(
            pydantic_monty.Monty(min_processes=workers, max_processes=workers, request_timeout=deadline)
        )
    except (pydantic_monty.MontyError, OSError, RuntimeError) as error:
        raise SandboxUnavailable(f"monty: {printable(str(error))}") from None
    return PoolSandbox("monty", [MontyWorker(monty, pool, limits) for _ in range(workers)], limits)


class MontyWorker:
    """Checks one interpreter out of the pool for each program and never uses it for two."""

    def __init__(self, monty, pool: contextlib.ExitStack, limits: Limits) -> None:
        self._monty, self._pool, self._limits = monty, pool, limits

    def close(self) -> None:
        self._pool.close()

    def run(self, program: Program, last_attempt: bool) -> Outcome:
        """Monty's own clock is a wall clock, so the first attempt may be cut short on a busy machine; the last one gets
        the loose limit."""
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
            crash = ("error", printable(f"Monty crashed: {error}"), True)
            outcome = ("timeout", "it had to be killed", False) if error.timed_out else crash
        except pydantic_monty.MontyError as error:
            outcome = failure_in_monty(error)
        verdict, message, unsupported = outcome
        outputs += [NO_OUTPUT] * (len(program.inputs) - len(outputs))
        return Outcome(verdict, tuple(outputs), message, spent, unsupported)

    def _feed(self, session, program: Program, outputs: list, spent) -> tuple:
        """Run everything; appends to outputs. Verdict, message and unsupported of the first failure."""
        import pydantic_monty

        room = self._limits.output_bytes
        session.feed_run(program.source + "\npass", print_callback=pydantic_monty.CollectString(room))
        session.feed_run(ENCODER, print_callback=pydantic_monty.CollectString(room))
        call, first = CALL.format(entry_point=program.entry_point), None
        for arguments in program.inputs:
            printed = pydantic_monty.CollectString(room)
            if spent() > self._limits.cpu_seconds:
                return first or ("timeout", f"more than {self._limits.cpu_seconds:g} seconds of CPU time", False)
            try:
                session.feed_run(call, inputs={"arguments_of_the_sandbox": arguments}, print_callback=printed)
                text = printed.output.rstrip("\n").rpartition("\n")[2]
                room -= len(text)
                output, failure = read_line(text.encode("utf-8", "replace"))
                failure = (*failure, False) if failure else None
            except pydantic_monty.MontyRuntimeError as error:
                output, failure = NO_OUTPUT, failure_in_monty(error)
            outputs.append(output)
            first = first or failure
            if failure and failure[0] in ("timeout", "memory"):
                break
        return first or ("finished", "", False)


def failure_in_monty(error) -> tuple:
    """Verdict, message, and whether Monty rather than the program may be at fault."""
    exception = error.exception()
    if isinstance(exception, TimeoutError) and "time limit exceeded" in str(exception):
        return "timeout", printable(str(exception)), False
    verdict, message = failure_of_exception([base.__name__ for base in type(exception).__mro__], str(exception))
    return verdict, message, is_unsupported(exception)


def is_unsupported(exception: BaseException) -> bool:
    """Would CPython perhaps have gone on here? Errs towards yes: then the program is only run once more."""
    text = str(exception)
    names = re.findall(r"'([^']*)'", text)
    match exception:
        case NotImplementedError() | RuntimeError():
            return bool(re.search(r"not (yet )?(support|implemented)", text))
        case ImportError():
            return any(name.partition(".")[0] in sys.stdlib_module_names for name in names)
        case NameError():
            return any(hasattr(builtins, name) for name in names)
        case AttributeError() if text.startswith("module "):
            return any(name in sys.stdlib_module_names for name in names)
        case AttributeError():
            return len(names) == 2 and hasattr(getattr(builtins, names[0], None), names[1])
        case TypeError():
            return "keyword argument" in text
    return False


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
