"""Comparing outputs with what was expected. Runs outside: no program sees an expected output."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from llm_mdp_envs.sandbox.inside.codec import Comparisons
from llm_mdp_envs.sandbox.program import NO_OUTPUT, Outcome

Comparison = Literal["equal", "identical", "truth", "close", "isclose", "tuple", "sorted", "set", "root"]
"""How a case's output is compared with the expected one; `COMPARISONS` says what each means."""


@dataclass(frozen=True)
class Case:
    """One hidden test.

    Args:
        arguments: positional, plain data.
        expected: the expected output, plain data.
        comparison: how the two are compared.
        relative: for "isclose", as `math.isclose` takes it.
        absolute: for "isclose" likewise; for "close" the output has to be nearer than this.
    """

    arguments: tuple
    expected: Any
    comparison: Comparison = "equal"
    relative: float = 1e-9
    absolute: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.arguments, tuple):
            raise ValueError(
                f"arguments is {self.arguments!r:.80}; it must be a tuple of positional arguments, such as (3,)."
            )
        if self.comparison not in COMPARISONS:
            raise ValueError(f"comparison is {self.comparison!r}; it must be one of {', '.join(COMPARISONS)}.")


@dataclass(frozen=True)
class Grade:
    """A program's result.

    Args:
        verdict: passed, failed (it ran to the end; some outputs are wrong), error, timeout, memory or forbidden.
        passed: number of cases passed; 0 where the verdict is forbidden.
        total: number of cases, at least 1.
        message: the first thing that went wrong, without the expected output. May quote the program.
        unsupported: the backend may be to blame (see `Outcome`): it does not speak all of Python, and the program did
            not finish, or gave an output that is wrong here and may be right in Python. Never where all cases pass.
    """

    verdict: Literal["passed", "failed", "error", "timeout", "memory", "forbidden"]
    passed: int
    total: int
    message: str
    cpu_seconds: float
    unsupported: bool

    @property
    def fraction(self) -> float:
        """Cases passed, in [0, 1]."""
        return self.passed / self.total


def grade(outcome: Outcome, cases: Sequence[Case]) -> Grade:
    """Grade the outcome of a program that was run on the arguments of these cases, in this order.

    Raises:
        ValueError: no cases, or not as many as there are outputs.
    """
    if not cases or len(cases) != len(outcome.outputs):
        raise ValueError(
            f"{len(outcome.outputs)} outputs and {len(cases)} cases; there must be one output a case and at least one "
            f"case."
        )
    right = [matches(output, case) for output, case in zip(outcome.outputs, cases)]
    passed = 0 if outcome.verdict == "forbidden" else sum(right)
    verdict, message = outcome.verdict, outcome.message
    if verdict == "finished":
        verdict = "passed" if all(right) else "failed"
        message = "" if all(right) else f"wrong output for input {right.index(False) + 1} of {len(cases)}"
    wrong_here = any(not ok and output is not NO_OUTPUT for ok, output in zip(right, outcome.outputs))
    unsupported = outcome.unsupported or (wrong_here and not outcome.full)
    return Grade(verdict, passed, len(cases), message, outcome.cpu_seconds, unsupported)


def matches(output: Any, case: Case) -> bool:
    """Does an output (plain data, of any shape) meet the case?"""
    if output is NO_OUTPUT:
        return False
    try:
        return bool(COMPARISONS[case.comparison](output, case.expected, case))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):  # of another type than the comparison is for
        return False


def _sorted_alike(output: Any, expected: Any) -> bool:
    """sorted(output) == sorted(expected). Sorting large nested lists takes long; equal ones are of equal size."""
    size = len(list(_parts(list(expected))))
    return len(list(islice(_parts(list(output)), size + 1))) == size and sorted(output) == sorted(expected)


def _parts(value: Any) -> Iterator[Any]:
    """Every value in a value, itself included."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part


def _is_root(output: Any, expected: Any, case: Case) -> bool:
    """|Σᵢ cᵢ xⁱ| < 1e-4 for the coefficients that the case gave (HumanEval/32 has many right answers)."""
    (coefficients,) = case.arguments
    return (
        isinstance(output, int | float) and abs(sum(c * math.pow(output, i) for i, c in enumerate(coefficients))) < 1e-4
    )


COMPARISONS: dict[str, Callable[[Any, Any, Case], bool]] = {
    "equal": lambda output, expected, _: output == expected,  # Python's ==: 1 == 1.0 == True
    "identical": lambda output, expected, _: (
        type(output) is type(expected) and output == expected
    ),  # assert f(x) is True
    "truth": lambda output, expected, _: bool(output) is bool(expected),  # assert f(x), assert not f(x)
    "close": lambda output, expected, case: abs(output - expected) < case.absolute,  # assert abs(f(x) - y) < e
    "isclose": lambda output, expected, case: math.isclose(
        output, expected, rel_tol=case.relative, abs_tol=case.absolute
    ),
    "tuple": lambda output, expected, _: (
        tuple(output) == tuple(expected)
    ),  # the same items in the same order, in any container
    "sorted": lambda output, expected, _: _sorted_alike(output, expected),
    "set": lambda output, expected, _: set(Comparisons().admit(output)) == set(expected),
    "root": _is_root,
}
