"""Running programs that a model wrote, without harm and without giving the tests away.

    with make_sandbox("auto", workers=2) as sandbox:
        outcomes = sandbox.run([Program("def double(x): return 2 * x", "double", [(1,), (21,)])])

Only the program, the name of its entry point and the inputs enter; outputs come back as plain data and are compared
outside (`grade`). A program can say whatever it wants about itself: it does not know the answers.
"""

from collections.abc import Callable
from typing import Literal, get_args

from llm_mdp_envs.arguments import check_choice, shown
from llm_mdp_envs.sandbox.grading import Case, Comparison, Grade, grade
from llm_mdp_envs.sandbox.program import (
    NO_OUTPUT,
    Limits,
    Outcome,
    Program,
    Sandbox,
    SandboxUnavailable,
    Verdict,
    check_workers,
)

__all__ = [
    "NO_OUTPUT",
    "Backend",
    "Case",
    "Comparison",
    "Grade",
    "Limits",
    "Outcome",
    "Program",
    "Sandbox",
    "SandboxUnavailable",
    "Verdict",
    "grade",
    "make_sandbox",
]

Backend = Literal["auto", "monty", "bwrap", "landlock"]


def make_sandbox(backend: Backend = "auto", *, workers: int = 2, limits: Limits | None = None) -> Sandbox:
    """A warm sandbox, probed: it has run a program and kept another one in.

    Args:
        backend: "bwrap" or "landlock" (all of Python, Linux), "monty" (a subset of Python, everywhere), or "auto": the
            first of these that works here. `Sandbox.full` tells whether it speaks all of Python.
        workers: programs run at once, 1 or more; one a core is a good number.
        limits: for each program.

    Raises:
        ValueError: an unknown backend or a bad number of workers.
        SandboxUnavailable: no such backend works here; why, and what to install. Nothing is ever run without one.
    """
    check_workers(workers)
    if limits is not None and not isinstance(limits, Limits):
        raise ValueError(f"limits is {shown(limits)}; it must be Limits(…), or None.")
    limits = limits or Limits()
    if check_choice("backend", backend, get_args(Backend)) == "auto":
        return _first_that_starts(workers, limits)
    return _start(backend, workers, limits)


def _first_that_starts(workers: int, limits: Limits) -> Sandbox:
    reasons = []
    for backend in ("bwrap", "landlock", "monty"):
        try:
            return _start(backend, workers, limits)
        except SandboxUnavailable as error:
            reasons.append(str(error))
    raise SandboxUnavailable("no backend keeps programs in on this machine, so none is run. " + "; ".join(reasons))


def _start(backend: str, workers: int, limits: Limits) -> Sandbox:
    sandbox = _starter(backend)(workers, limits)
    try:
        _probe(sandbox)
    except BaseException:
        sandbox.close()
        raise
    return sandbox


def _starter(backend: str) -> Callable[[int, Limits], Sandbox]:
    """Imported when asked for: each needs something that other machines lack."""
    if backend == "monty":
        from llm_mdp_envs.sandbox.monty import monty_sandbox

        return monty_sandbox
    try:
        if backend == "bwrap":
            from llm_mdp_envs.sandbox.bwrap import bwrap_sandbox

            return bwrap_sandbox
        from llm_mdp_envs.sandbox.landlock import landlock_sandbox

        return landlock_sandbox
    except (ImportError, AttributeError, OSError) as error:
        raise SandboxUnavailable(f"{backend}: works on Linux only ({error})") from None


def _probe(sandbox: Sandbox) -> None:
    """Let it run a program, and see that it keeps another one in.

    Raises:
        SandboxUnavailable: it does not do both.
    """
    works = Program("def identity(x):\n    return x", "identity", [((1, [2.5], {"three": b"4"}),)])
    # Any file of the host outside the interpreter's own will do; this one is open here and not readable in there.
    reaches_out = Program("def leak(path):\n    return open(path).read(1)", "leak", [(__file__,)])
    calls_out = Program(
        "import os\ndef session():\n    return os.getsid(0)", "session", [()]
    )  # harmless, and no program's business
    works_outcome, leak_outcome, call_outcome = sandbox.run([works, reaches_out, calls_out])
    if works_outcome.verdict != "finished" or works_outcome.outputs != works.inputs[0]:
        raise SandboxUnavailable(f"{sandbox.name}: its probe could not run a program ({works_outcome.message})")
    if leak_outcome.verdict == "finished":
        raise SandboxUnavailable(f"{sandbox.name}: its probe could read a file of the host")
    if call_outcome.verdict == "finished":
        raise SandboxUnavailable(f"{sandbox.name}: its probe could make a system call that programs may not make")
