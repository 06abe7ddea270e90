"""From a problem's tests to what grades a program that never meets them.

Tests are assertions, with the expected outputs in them: they and a model's program are never in one sandbox. A test
that compares one call with a literal becomes a `Case`: the program is called with the case's arguments, and its output
is compared outside. Any other test (`Tests`) runs again afterwards, in a sandbox of its own, on what the program
answered to the calls; see `carrier.py`.

What the calls are is found once, when a problem is loaded, by running the tests on the reference solution, in a
sandbox.
"""

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_mdp_envs.sandbox import Case, Comparison, Grade, Outcome, Program, Sandbox
from llm_mdp_envs.sandbox.inside.codec import encode_plain_data
from llm_mdp_envs.tasks import carrier

CARRIER = f"""
carrier_of_the_tests = {{"__name__": "carrier"}}
exec({inspect.getsource(carrier)!r}, carrier_of_the_tests)
"""


@dataclass(frozen=True)
class Examined:
    """A reference solution and the tests that it has to pass.

    Args:
        name: of the function.
        reference: source text that defines it.
        setup: what the tests need besides, and a program must not see.
        texts: the tests, statements each.
    """

    name: str
    reference: str
    setup: str
    texts: tuple[str, ...]

    @cached_property
    def definitions(self) -> str:
        return f"{self.reference}\n\n{self.setup}"


@dataclass(frozen=True)
class Form:
    """What a test expects of one call, and how it compares."""

    comparison: Comparison
    expected: Any
    relative: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Tests:
    """Tests that run on the answers of a program, each right or wrong as a whole.

    Args:
        examined: the tests.
        calls: of each test, as `carrier.describe` writes them.
        classes: names of the solution's own classes that its answers have objects of.
    """

    examined: Examined
    calls: tuple[tuple[Any, ...], ...]
    classes: frozenset[str] = frozenset()

    def observer(self, source: str) -> Program:
        """The program, called as the tests call it; without the tests."""
        answer = (
            f"kept_answers = []\n"
            f"def answer_of_the_program(call):\n"
            f'    return carrier_of_the_tests["observe"]({self.examined.name}, globals(), call, kept_answers)\n'
        )
        calls = []
        for of_test in self.calls:
            before = len(calls)
            calls += [([None if target is None else before + target, nodes],) for target, nodes in of_test]
        return Program(f"{source}\n{CARRIER}\n{answer}", "answer_of_the_program", calls)

    def judge(self, outcome: Outcome) -> Program:
        """The tests, on the answers that `observer` gave; without the program."""
        definitions = [self.examined.definitions, self.examined.name]
        verdict = (
            f"def verdict_of_the_tests(text, calls, answers):\n"
            f'    return carrier_of_the_tests["judge"]({definitions[0]!r}, text, {definitions[1]!r}, calls, answers)\n'
        )
        answers = iter([_carried(output) for output in outcome.outputs])
        inputs = [
            (text, list(calls), [next(answers) for _ in calls]) for text, calls in zip(self.examined.texts, self.calls)
        ]
        return Program(f"{CARRIER}\n{verdict}", "verdict_of_the_tests", inputs)

    def grade(self, outcome: Outcome, judged: Outcome) -> Grade:
        """Grade the outcome of `observer` by the outcome of `judge`."""
        right = [output is True for output in judged.outputs]
        passed = 0 if outcome.verdict == "forbidden" else sum(right)
        verdict, message = outcome.verdict, outcome.message
        if verdict == "finished":
            verdict, message = "passed", ""
            if not all(right):
                verdict, message = "failed", f"test {right.index(False) + 1} of {len(right)} does not hold"
                raised = self._raised(outcome, right)
                verdict, message = ("error", raised) if raised else (verdict, message)
        unsupported = outcome.unsupported or judged.unsupported
        return Grade(verdict, passed, len(right), message, outcome.cpu_seconds, unsupported)

    def _raised(self, outcome: Outcome, right: Sequence[bool]) -> str:
        """The first exception that a program answered with in a test that does not hold."""
        outputs = iter(outcome.outputs)
        for holds, calls in zip(right, self.calls):
            for answer in [next(outputs) for _ in calls]:
                match answer:
                    case ["raised", [str(kind), *_], str(message)] if not holds:
                        return f"{kind}: {message}"[:500] if message else kind
        return ""


def form_of(text: str, function: str) -> Form | None:
    """What a test expects, if it is one assertion about one call, with positional arguments, against a literal.

    f(x) == y, y == f(x): equal. f(x) is y: identical. f(x), not f(x): truth. abs(f(x) - y) < e: close.
    math.isclose(f(x), y, rel_tol=…, abs_tol=…): isclose. None: another form; the test has to run.
    """
    body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert) or len(_mentions(body[0], function)) != 1:
        return None
    try:
        return _form(body[0].test, function)
    except ValueError:  # not a literal
        return None


def _form(test: ast.expr, function: str) -> Form | None:
    literal = ast.literal_eval
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=call) if _is_call(call, function):
            return Form("truth", False)
        case ast.Call() if _is_call(test, function):
            return Form("truth", True)
        case ast.Compare(left=call, ops=[ast.Is()], comparators=[ast.Constant(value=value)]) if _is_call(
            call, function
        ):
            return Form("identical", value)
        case ast.Compare(left=call, ops=[ast.Eq()], comparators=[other]) if _is_call(call, function):
            return Form("equal", literal(other))
        case ast.Compare(left=other, ops=[ast.Eq()], comparators=[call]) if _is_call(call, function):
            return Form("equal", literal(other))
        case ast.Compare(
            left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=left, op=ast.Sub(), right=right)]),
            ops=[ast.Lt()],
            comparators=[bound],
        ):
            other = right if _is_call(left, function) else left if _is_call(right, function) else None
            return Form("close", literal(other), absolute=float(literal(bound))) if other is not None else None
        case ast.Call(
            func=ast.Name(id="isclose") | ast.Attribute(value=ast.Name(id="math"), attr="isclose"),
            args=[left, right],
            keywords=keywords,
        ):
            other = right if _is_call(left, function) else left if _is_call(right, function) else None
            named = {keyword.arg: float(literal(keyword.value)) for keyword in keywords}
            if other is None or not named.keys() <= {"rel_tol", "abs_tol"}:
                return None
            return Form("isclose", literal(other), named.get("rel_tol", 1e-9), named.get("abs_tol", 0.0))
    return None


def _mentions(node: ast.AST, function: str) -> list[ast.Name]:
    return [one for one in ast.walk(node) if isinstance(one, ast.Name) and one.id == function]


def _is_call(node: ast.AST, function: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == function
        and not node.keywords
        and not any(isinstance(argument, ast.Starred) for argument in node.args)
    )


def examine(many: Sequence[Examined], sandbox: Sandbox) -> list[tuple[Case, ...] | Tests | str]:
    """What each one's tests come to: cases, tests that run again, or in words why they cannot be used."""
    forms = [[form_of(text, one.name) for text in one.texts] for one in many]
    found: list[tuple[Case, ...] | Tests | str] = [()] * len(many)
    simple = [number for number, some in enumerate(forms) if all(some)]
    outcomes = sandbox.run([_recorder_of_arguments(many[number]) for number in simple])
    for number, outcome in zip(simple, outcomes):
        if outcome.verdict == "finished":
            found[number] = tuple(
                Case(arguments, form.expected, form.comparison, form.relative, form.absolute)
                for (arguments, _), form in zip(outcome.outputs[0], forms[number])
                if form is not None
            )
        elif outcome.verdict != "error":
            found[number] = f"its own solution does not pass its tests ({outcome.verdict}: {outcome.message})"
    others = [number for number, cases in enumerate(found) if not cases]
    if not sandbox.full:
        reason = f"its tests need more of Python than the sandbox {sandbox.name} speaks; install bubblewrap"
        return [reason if number in others else one for number, one in enumerate(found)]
    for number, outcome in zip(others, sandbox.run([_recorder_of_calls(many[number]) for number in others])):
        found[number] = _tests_of(many[number], outcome)
    return found


def _recorder_of_arguments(one: Examined) -> Program:
    """Runs the tests, and returns the arguments and the output of the call in each, if these are plain data. Speaks as
    little of Python as Monty does."""
    statements = "\n".join(f"    {ast.unparse(_renamed(text, one.name))}" for text in one.texts)
    source = f"""{one.definitions}

import copy as copy_of_the_recorder
import random as random_of_the_recorder

def record_cases():
    random_of_the_recorder.seed(0)
    recorded = []
    def candidate(*arguments):
        kept = copy_of_the_recorder.deepcopy(arguments)
        output = {one.name}(*arguments)
        recorded.append((kept, output))
        return output
{statements}
    return recorded
"""
    return Program(source, "record_cases", [()])


def _renamed(text: str, function: str) -> ast.AST:
    """The test, with `candidate` called in place of the function."""
    tree = ast.parse(text)
    for node in _mentions(tree, function):
        node.id = "candidate"
    return tree


def _recorder_of_calls(one: Examined) -> Program:
    """Runs a test, and returns its calls: [[call, answer], …]."""
    record = (
        f"def calls_of_the_test(text):\n"
        f'    return carrier_of_the_tests["record"]({one.reference!r}, {one.definitions!r}, text, {one.name!r})\n'
    )
    return Program(f"{CARRIER}\n{record}", "calls_of_the_test", [(text,) for text in one.texts])


def _tests_of(one: Examined, outcome: Outcome) -> Tests | str:
    for text, calls in zip(one.texts, outcome.outputs):
        if not isinstance(calls, list):
            return f"its own solution does not pass its test {text!r:.200} ({outcome.verdict}: {outcome.message})"
        if not calls:
            return f"its test {text!r:.200} never calls {one.name}"
    answers = [answer for calls in outcome.outputs for _, answer in calls if answer[0] == "returned"]
    made = {node[1] for answer in answers for node in answer[1] if node[0] in ("new", "made")}
    calls = tuple(tuple(call for call, _ in calls) for calls in outcome.outputs)
    return Tests(one, calls, frozenset(name for name in made if "." not in name))


def _carried(answer: Any) -> Any:
    """An answer that can enter a sandbox; None for one that cannot (a program may answer anything)."""
    try:
        encode_plain_data(answer, 8)
    except (TypeError, ValueError):
        return None
    return answer
