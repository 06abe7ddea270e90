"""Comparing outputs with what was expected. Runs outside: no program sees an expected output."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_mdp_envs.sandbox.program import NO_OUTPUT, Outcome

Comparison = Literal["equal", "identical", "truth", "close", "tuple", "sorted", "set", "root"]
"""How a case's output is compared with the expected one; `COMPARISONS` says what each means."""


@dataclass(frozen=True)
class Case:
    """One hidden test: positional arguments, the expected output (plain data), and how to compare."""

    arguments: tuple
    expected: Any
    comparison: Comparison = "equal"

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
        unsupported: the backend may be to blame (see `Outcome`).
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
    return Grade(verdict, passed, len(cases), message, outcome.cpu_seconds, outcome.unsupported)


def matches(output: Any, case: Case) -> bool:
    """Does an output (plain data, of any shape) meet the case?"""
    if output is NO_OUTPUT:
        return False
    try:
        return bool(COMPARISONS[case.comparison](output, case.expected, case.arguments))
    except (
        TypeError,
        ValueError,
        OverflowError,
        ZeroDivisionError,
    ):  # an output of another type than the comparison is for
        return False


def _is_root(output: Any, expected: Any, arguments: tuple) -> bool:
    """|Σᵢ cᵢ xⁱ| < 1e-4 for the coefficients that the case gave (HumanEval/32 has many right answers)."""
    (coefficients,) = arguments
    return (
        isinstance(output, int | float) and abs(sum(c * math.pow(output, i) for i, c in enumerate(coefficients))) < 1e-4
    )


COMPARISONS: dict[str, Callable[[Any, Any, tuple], bool]] = {
    "equal": lambda output, expected, _: output == expected,  # Python's ==: 1 == 1.0 == True
    "identical": lambda output, expected, _: (
        type(output) is type(expected) and output == expected
    ),  # assert f(x) is True
    "truth": lambda output, expected, _: bool(output) is bool(expected),  # assert f(x), assert not f(x)
    "close": lambda output, expected, _: abs(output - expected) < 1e-6,
    "tuple": lambda output, expected, _: (
        tuple(output) == tuple(expected)
    ),  # the same items in the same order, in any container
    "sorted": lambda output, expected, _: sorted(output) == sorted(expected),
    "set": lambda output, expected, _: len(output) <= 4096 and set(output) == set(expected),
    "root": _is_root,
}
