"""The `auto` backend: Monty first, and what Monty cannot judge is run again on a backend that speaks all of Python."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_mdp_envs.sandbox.program import Limits, Sandbox, SandboxUnavailable

MONTY_SLOWNESS = 4
"""Monty computes about four times slower than CPython, so its verdict on time is not CPython's. It gets a part of the
CPU time (a loop that never ends should not be paid for twice), and what runs out of it runs again."""


class AutoSandbox(Sandbox):
    """Two backends behind each other. What the first reports as unsupported, out of time or out of memory is for the
    second to judge."""

    def __init__(self, subset: Sandbox, full: Sandbox) -> None:
        self.name = f"{subset.name}+{full.name}"
        self._subset, self._full = subset, full

    def run(self, programs):
        outcomes = self._subset.run(programs)
        again = [
            number
            for number, outcome in enumerate(outcomes)
            if outcome.unsupported or outcome.verdict in ("timeout", "memory")
        ]
        for number, outcome in zip(again, self._full.run([programs[number] for number in again])):
            outcomes[number] = outcome
        return outcomes

    def close(self):
        self._subset.close()
        self._full.close()


def auto_sandbox(start: Callable[..., Sandbox], limits: Limits) -> Sandbox:
    """Both kinds where both are there, else the one that is.

    Args:
        start: (backend, limits=…) -> sandbox, or SandboxUnavailable.

    Raises:
        SandboxUnavailable: there is none; with the reason of each.
    """
    reasons: list[str] = []
    full = _first_that_starts(("bwrap", "landlock"), start, limits, reasons)
    brief = replace(limits, cpu_seconds=limits.cpu_seconds / MONTY_SLOWNESS) if full else limits
    try:
        subset = _first_that_starts(("monty",), start, brief, reasons)
    except BaseException:
        if full:
            full.close()
        raise
    if subset and full:
        return AutoSandbox(subset, full)
    if only := subset or full:
        return only
    raise SandboxUnavailable("no backend keeps programs in on this machine, so none is run. " + "; ".join(reasons))


def _first_that_starts(
    backends: Sequence[str], start: Callable[..., Sandbox], limits: Limits, reasons: list[str]
) -> Sandbox | None:
    for backend in backends:
        try:
            return start(backend, limits=limits)
        except SandboxUnavailable as error:
            reasons.append(str(error))
    return None
