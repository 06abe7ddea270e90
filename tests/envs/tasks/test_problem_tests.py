"""Tests as people write them: each passes right programs and no wrong ones, and its expected outputs never enter a
sandbox together with a program."""

# ruff: noqa: E501 (tables)
import ast

import pytest

from llm_mdp_envs.sandbox import Limits, SandboxUnavailable, make_sandbox
from llm_mdp_envs.tasks import carrier
from llm_mdp_envs.tasks.problem_tests import Form, form_of
from llm_mdp_envs.tasks.programs import grades_of, mbpp_problems, problems_and_skipped

ADD = "def add(a, b=0):\n    return a + b\n"
BADADD = "def add(a, b=0):\n    return a - b\n"
P = "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n    def __eq__(self, other):\n        return (self.x, self.y) == (other.x, other.y)\n"


def listed(value):
    return value if isinstance(value, list) else [value]


def t(code, tests, right, wrong, **more):
    """A row, right replies and wrong ones."""
    return {"task_id": 1, "text": "t", "code": code, "test_list": listed(tests), **more}, listed(right), listed(wrong)


ROWS = {
    "keyword": t(ADD, "assert add(1, b=2) == 3", ADD, BADADD),
    "in": t(ADD, "assert add(1, 2) in (3, 4)", ADD, BADADD),
    "in set": t(ADD, "assert add(1, 2) in {3, 4}", ["def add(a, b): return 4", ADD], BADADD),
    "ne": t(ADD, "assert add(1, 2) != -1", ADD, BADADD),
    "lt": t(ADD, "assert add(1, 2) > 0", ADD, BADADD),
    "round": t(
        "def f(x):\n    return x/3", "assert round(f(1), 2) == 0.33", ["def f(x): return .333"], "def f(x): return .34"
    ),
    "len": t(
        "def f(n):\n    return list(range(n))",
        "assert len(f(3)) == 3",
        ["def f(n): return [1]*n", "def f(n): return 'abc'"],
        ["def f(n): return [1]", "def f(n): return 3"],
    ),
    "index": t(
        "def f(n):\n    return list(range(n))",
        "assert f(3)[1] == 1",
        "def f(n): return (5,1)",
        "def f(n): return [2,2]",
    ),
    "startswith": t(
        "def f(n):\n    return 'ab'*n",
        "assert f(3).startswith('ab')",
        "def f(n): return 'abc'",
        "def f(n): return 'bab'",
    ),
    "all": t(
        "def f(n):\n    return list(range(n))",
        "assert all(v >= 0 for v in f(3))",
        "def f(n): return [1]",
        "def f(n): return [-1]",
    ),
    "and": t(ADD, "assert add(1, 2) == 3 and add(2, 2) == 4", ADD, [BADADD, "def add(a,b): return 3"]),
    "several": t(ADD, "assert add(1, 2) == 3\nassert add(2, 2) == 4", ADD, [BADADD, "def add(a,b): return 3"]),
    "loop": t(ADD, "for i in range(5):\n    assert add(i, i) == 2 * i", ADD, [BADADD, "def add(a,b): return 0"]),
    "local": t(ADD, "x = 3\nassert add(x, x) == 6", ADD, BADADD),
    "try": t(
        "def f(x):\n    if x < 0:\n        raise ValueError('neg')\n    return x",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'neg' in str(e)",
        "def f(x):\n    raise ValueError('neg!')",
        ["def f(x): return x", "def f(x): raise KeyError(1)", "def f(x): raise ValueError", "def f(x:"],
    ),
    "raises": t(
        "def f(x):\n    if x < 0:\n        raise ValueError('neg')\n    return x",
        "with pytest.raises(ValueError, match='neg'):\n    f(-1)",
        "def f(x):\n    raise ValueError('neg!')",
        ["def f(x): return x", "def f(x): raise KeyError(1)", "def f(x): raise ValueError"],
        test_imports=["import pytest"],
    ),
    "raises import": t(
        "def f(x):\n    raise KeyError(x)",
        "from pytest import raises\nwith raises(LookupError):\n    f(-1)",
        "def f(x):\n    return {}[x]",
        ["def f(x): return x", "def f(x): return [][x]+1 if 0 else None"],
    ),
    "approx": t(
        "def f(x):\n    return x/3",
        "import pytest\nassert f(1) == pytest.approx(0.3333, abs=1e-3)",
        "def f(x): return .3334",
        "def f(x): return .34",
    ),
    "own argument": t(
        P + "def f(p):\n    return p.x + p.y",
        "assert f(Point(1, 2)) == 3",
        ["def f(p): return p.y+p.x", P + "def f(q):\n    assert isinstance(q, Point)\n    return q.x+q.y"],
        "def f(p): return p.x",
    ),
    "own in setup": t(
        "def f(p):\n    return p.x + p.y",
        "assert f(Point(1, 2)) == 3",
        ["def f(p): return p.y+p.x"],
        "def f(p): return p.x",
        test_setup_code=P,
    ),
    "own result": t(
        P + "def f(x):\n    return Point(x, x)",
        "assert f(2) == Point(2, 2)",
        ["def f(p): return Point(p, p)", P + "def f(q):\n    return Point(q, q)"],
        [
            "def f(p): return Point(p, 0)",
            "def f(p): return (p,p)",
            "class A:\n    def __eq__(self, o): return True\ndef f(p): return A()",
            "class Point:\n    def __init__(self, x, y): pass\n    def __eq__(self, o): return True\ndef f(p): return Point(0, 0)",
        ],
    ),
    "dataclass": t(
        "from dataclasses import dataclass\n@dataclass\nclass Q:\n    x: int\n    y: list\ndef f(x):\n    return Q(x, [x])",
        "assert f(2) == Q(2, [2])",
        ["def f(p): return Q(p, [p])"],
        ["def f(p): return Q(p, [])"],
    ),
    "namedtuple": t(
        "from collections import namedtuple\nPair = namedtuple('Pair', 'a b')\ndef f(ps):\n    return max(ps, key=lambda p: p.a)",
        "assert f([Pair(1, 2), Pair(3, 0)]).b == 0",
        ["def f(ps): return sorted(ps)[-1]"],
        ["def f(ps): return ps[0]"],
    ),
    "tree setup": t(
        "class Node:\n    def __init__(self, v):\n        self.v = v\n        self.left = self.right = None\ndef height(n):\n    return 0 if n is None else 1 + max(height(n.left), height(n.right))",
        "assert (height(root)) == 3",
        "def height(n):\n    if not n: return 0\n    return max(height(n.left), height(n.right)) + 1",
        "def height(n): return 2",
        test_setup_code="root = Node(1)\r\nroot.left = Node(2)\r\nroot.left.left = Node(3)",
    ),
    "helper arg": t(
        "def make(xs):\n    return tuple(xs)\ndef f(t):\n    return sum(t)",
        "assert f(make([1, 2])) == 3",
        "def f(t): return t[0]+t[1]",
        "def f(t): return 0",
    ),
    "generator": t(
        "def f(n):\n    for i in range(n):\n        yield i",
        "assert list(f(3)) == [0, 1, 2]",
        [
            "def f(n): return range(n)",
            "def f(n): return list(range(n))",
            "def f(n): yield from range(n)",
            "def f(n): return iter([0,1,2])",
        ],
        "def f(n): yield 1",
    ),
    "sorted": t(
        "def f(n):\n    return [2, 1]",
        "assert sorted(f(3)) == [1, 2]",
        ["def f(n): return {1, 2}", "def f(n): yield 2; yield 1"],
        "def f(n): return [1, 1]",
    ),
    "set": t(
        "def f(n):\n    return [2, 1]",
        "assert set(f(3)) == {1, 2}",
        ["def f(n): return [1,1,2]"],
        "def f(n): return [1, 1]",
    ),
    "next": t(
        "import itertools\ndef f():\n    return itertools.count(5)",
        "g = f()\nassert next(g) == 5 and next(g) == 6",
        "def f():\n    n = 5\n    while True:\n        yield n\n        n += 1",
        "def f(): return iter([5,5])",
    ),
    "mutate": t(
        "def f(xs):\n    xs.sort()",
        "x = [3, 1]\nf(x)\nassert x == [1, 3]",
        "def f(xs): xs[:] = sorted(xs)",
        ["def f(xs): return sorted(xs)", "def f(xs): pass"],
    ),
    "not": t("def f(x):\n    return x > 2", "assert not f(1)", "def f(x): return 0", "def f(x): return 1"),
    "is None": t("def f(x):\n    return None", "assert f(1) is None", "def f(x): pass", "def f(x): return 0"),
    "is not None": t("def f(x):\n    return 1", "assert f(1) is not None", "def f(x): return 0", "def f(x): pass"),
    "isinstance": t(
        "def f(x):\n    return 1.0", "assert isinstance(f(1), float)", "def f(x): return 2.0", "def f(x): return 1"
    ),
    "fraction": t(
        "from fractions import Fraction\ndef f(x):\n    return Fraction(1, x)",
        "assert f(2) == Fraction(1, 2)",
        "from fractions import Fraction\ndef f(x):\n    return Fraction(2, 2*x)",
        ["def f(x): return '1/2'"],
        test_setup_code="from fractions import Fraction",
    ),
    "decimal date": t(
        "import datetime\ndef f(d):\n    return d + datetime.timedelta(days=1)",
        "assert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)",
        "from datetime import timedelta\ndef f(d):\n    return d + timedelta(1)",
        ["def f(x): return x"],
        test_setup_code="import datetime",
    ),
    "counter": t(
        "from collections import Counter\ndef f(s):\n    return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1}",
        [
            "def f(s): return {c: s.count(c) for c in s}",
            "from collections import *\ndef f(s): return Counter(s)",
            "from collections import defaultdict\ndef f(s):\n    d = defaultdict(int)\n    for c in s: d[c] += 1\n    return d",
        ],
        ["def f(s): return {}"],
    ),
    "most_common": t(
        "from collections import Counter\ndef f(s):\n    return Counter(s)",
        "assert f('aab').most_common(1) == [('a', 2)]",
        ["from collections import Counter\ndef f(s): return Counter(s)"],
        ["def f(s): return {}"],
    ),
    "custom error": t(
        "class Bad(Exception):\n    pass\ndef f(x):\n    raise Bad('no')",
        "try:\n    f(1)\nexcept Bad:\n    pass\nelse:\n    assert False",
        "def f(x): raise Bad",
        ["def f(x): raise ValueError", "def f(x): pass"],
    ),
    "setup expected": t(
        "def f(x):\n    return x * 7",
        "assert f(6) == EXPECTED",
        "def f(x): return 42",
        ["def f(x): return 41", "def f(x): return EXPECTED"],
        test_setup_code="EXPECTED = 42",
    ),
    "setup oracle": t(
        "def f(x):\n    return x * 7",
        "assert f(6) == oracle(6)",
        "def f(x): return 42",
        ["def f(x): return 41", "def f(x): return oracle(x)"],
        test_setup_code="def oracle(x):\n    return x * 7",
    ),
    "check": t(
        "def f(x):\n    return x * 7",
        "check(6, 42)",
        "def f(x): return 42",
        ["def f(x): return 41"],
        test_setup_code="def check(x, y):\n    assert f(x) == y",
    ),
    "prelude": t(
        "def f(x):\n    return x * 7", ["x = 6", "assert f(x) == 42"], "def f(x): return 42", ["def f(x): return 41"]
    ),
    "typed": t(
        "from typing import List\ndef f(x: List[int]) -> int:\n    return sum(x)",
        "assert f([6]) == 6",
        ["    return sum(x)\n", "def f(x): return 6"],
        ["def f(x): return 41"],
    ),
    "nested": t(
        "def f(x):\n    return x * 2",
        "assert f(f(2)) == 8",
        ["def f(x): return x+x"],
        ["def f(x): return 8", "def f(x): return 4"],
    ),
    "recursion": t(
        "def f(x):\n    return 1 if x < 2 else x * f(x - 1)",
        "assert f(n=5) == 120".replace("n=", "x="),
        ["def f(x): return 120"],
        ["def f(x): return 1"],
    ),
    "string type": t(
        "def f(x):\n    return str(x)", "assert str(f(5)) == '5'", ["def f(x): return 5"], ["def f(x): return 6"]
    ),
    "enum": t(
        "from enum import Enum\nclass C(Enum):\n    R = 1\n    G = 2\ndef f(x):\n    return C(x)",
        "assert f(2) is C.G",
        ["def f(x): return C.G"],
        ["def f(x): return C.R", "def f(x): return 2"],
    ),
    "cycle": t(
        "class N:\n    def __init__(self):\n        self.next = None\ndef f(n):\n    return n.next is n",
        "a = N()\na.next = a\nassert f(a)",
        ["def f(n):\n    return n.next.next is n"],
        ["def f(n): return False"],
    ),
    "builtin function": t(
        "def f(g, xs):\n    return [g(x) for x in xs]",
        "assert f(abs, [-1]) == [1]",
        ["def f(g, xs): return list(map(g, xs))"],
        ["def f(g, xs): return xs"],
    ),
    "keys": t(
        "def f(d):\n    return d.keys()",
        "assert f({'a': 1}) == {'a'}",
        ["def f(d): return set(d)"],
        ["def f(d): return {1}"],
    ),
    "isinf": t(
        "def f():\n    return float('inf')",
        "assert f() == float('inf')",
        ["def f(): return 1e999"],
        ["def f(): return 1.0"],
    ),
    "swapped": t(ADD, "assert 3 == add(1, 2)", ADD, BADADD),
    "challenge": t(
        ADD, "assert add(1, 2) == 3", ADD, "def add(a, b): return 3", challenge_test_list=["assert add(5, 5) == 10"]
    ),
    "message": t(ADD, "assert add(1, 2) == 3, 'wrong sum'", ADD, BADADD),
    "adder": t(
        "def f(x):\n    return lambda y: x + y",
        "assert f(1)(2) == 3 and f(2)(2) == 4",
        ["def f(x):\n    def g(y): return x + y\n    return g"],
        ["def f(x): return lambda y: 3", "def f(x): return 3"],
    ),
    "lambda argument": t(
        "def f(g, x):\n    return g(g(x))",
        "assert f(lambda v, k=2: v * k, 3) == 12",
        ["def f(g, x):\n    y = g(x)\n    return g(y)"],
        ["def f(g, x): return g(x)"],
    ),
    "map": t(
        "def f(g, xs):\n    return map(g, xs)",
        "assert list(f(lambda v: v + 1, [1, 2])) == [2, 3]",
        ["def f(g, xs): return [g(x) for x in xs]"],
        ["def f(g, x): return x"],
    ),
    "decorator": t(
        "def f(g):\n    def h(*a):\n        return g(*a) + 1\n    return h",
        "@f\ndef two():\n    return 2\nassert two() == 3",
        ["def f(g):\n    return lambda *a: 1 + g(*a)"],
        ["def f(g): return g"],
    ),
    "setup function": t(
        "def f(g, xs):\n    return sum(map(g, xs))",
        "assert f(twice, [1, 2]) == 6",
        ["def f(g, xs):\n    return sum(g(x) for x in xs)"],
        ["def f(g, xs): return 0"],
        test_setup_code="def twice(x):\n    return 2 * x",
    ),
    "iterator argument": t(
        "def f(it):\n    return next(it)",
        "it = iter([4, 5])\nassert f(it) == 4",
        ["def f(it):\n    for x in it: return x"],
        ["def f(g): return 5"],
    ),
    "unnamed class": t(
        "class Bag:\n    def __init__(self):\n        self.kept = []\n    def put(self, x):\n        self.kept.append(x)\n        return self\n    def __len__(self):\n        return len(self.kept)\n\ndef f(n):\n    bag = Bag()\n    return bag.put(n)",
        "b = f(3)\nassert len(b) == 1 and len(b.put(4)) == 2",
        ["def f(n):\n    b = Bag()\n    b.put(n)\n    return b"],
        ["def f(n): return Bag()", "def f(n): return [n]"],
    ),
    "shadow": t(ADD, "assert add(1, b=2) == 3", "list = dict = str = isinstance = type = len = None\n" + ADD, BADADD),
}
SKIPPED = {
    "closure": t(
        "def f(g, x):\n    return g(x)", "def make(k):\n    return lambda v: v + k\nassert f(make(1), 1) == 2", [], []
    ),
    "reference wrong": t(ADD, "assert add(1, 2) == 4", [], []),
    "reference wrong 2": t(ADD, "assert add(1, b=2) == 4", [], []),
    "not python": t(ADD, "assert add(1, 2) ==", [], []),
    "code not python": t("def add(a, b)\n  a + b", "assert add(1, 2) == 3", [], []),
    "no call": t(ADD, "assert 1 + 2 == 3", [], []),
    "class": t("class S:\n    def f(self): return 1", "assert S().f() == 1", [], []),
    "numpy": t("import numpy as np\ndef f(x):\n    return np.sum(x)", "assert f([1]) == 1", [], []),
    "slow": t("def f(x):\n    while True: pass", "assert f([1]) == 1", [], []),
}


@pytest.fixture(scope="module")
def sandbox():
    try:
        made = make_sandbox("auto", workers=1, limits=Limits(cpu_seconds=1.0))
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works on this machine: {error}")
    with made:
        if not made.full:
            pytest.skip("neither bubblewrap nor Landlock works on this machine")
        yield made


@pytest.fixture(scope="module")
def problems(sandbox):
    """All in one file, so that they are examined together."""
    found, skipped = problems_and_skipped([row | {"task_id": name} for name, (row, _, _) in ROWS.items()], sandbox)
    assert skipped == ()
    return {problem.task_id: problem for problem in found}


def graded(problem, replies, sandbox):
    outcomes = sandbox.run([problem.program(reply) for reply in replies])
    return grades_of([problem] * len(replies), outcomes, sandbox)


@pytest.mark.parametrize("name", ROWS)
def test_right_programs_pass_and_wrong_ones_do_not(problems, sandbox, name):
    row, right, wrong = ROWS[name]
    problem = problems[name]
    replies = [*right, row["code"], problem.reference, *wrong]
    verdicts = [grade.verdict for grade in graded(problem, replies, sandbox)]
    assert verdicts[: len(replies) - len(wrong)] == ["passed"] * (len(replies) - len(wrong))
    assert wrong and "passed" not in verdicts[len(replies) - len(wrong) :]


def test_some_are_compared_here_and_some_run_again(problems):
    assert {name for name, problem in problems.items() if problem.cases} >= {
        "not",
        "is None",
        "swapped",
        "challenge",
        "message",
    }
    assert {name for name, problem in problems.items() if problem.tests} >= {
        "keyword",
        "in",
        "own result",
        "try",
        "generator",
        "keys",
    }
    assert all(bool(problem.cases) != bool(problem.tests) for problem in problems.values())


@pytest.mark.parametrize("name,words", [
    ("closure", "a function cannot be carried"), ("reference wrong", r"does not pass its test 'assert add\(1, 2\) == 4' \(error: AssertionError"),
    ("reference wrong 2", "AssertionError"), ("not python", r"the test 'assert add\(1, 2\) ==' is not Python"), ("code not python", "code is not Python"),
    ("no call", "no test calls a function that code defines"), ("class", "no test calls a function"), ("numpy", "No module named 'numpy'"), pytest.param("slow", "timeout", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_row_that_cannot_be_used_is_skipped_with_its_place_and_reason(sandbox, name, words):
    good = ROWS["keyword"][0]
    found, skipped = problems_and_skipped([good, SKIPPED[name][0], good], sandbox)
    ((place, reason),) = skipped
    assert len(found) == 2 and place == "problems[1]"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reason)
    with pytest.warns(UserWarning, match=r"1 of 2 rows are skipped; the first is problems\[1\]"):
        mbpp_problems([good, SKIPPED[name][0]], sandbox)


def test_no_row_left_is_an_error(sandbox):
    with pytest.raises(ValueError, match=r"no row can be used; the first is problems\[0\]: code is not Python"):
        problems_and_skipped([SKIPPED["code not python"][0], SKIPPED["numpy"][0]], sandbox)


def test_grading_tests_that_run_needs_a_sandbox(problems, sandbox):
    problem = problems["keyword"]
    (outcome,) = sandbox.run([problem.program(ADD)])
    assert problem.grade(outcome, sandbox).verdict == "passed"
    with pytest.raises(ValueError, match="keyword: its tests have to run; give the sandbox"):
        problem.grade(outcome)


CANARY = "493827160"
HIDING = {
    "equal": t(ADD, f"assert add({int(CANARY) - 1}, 1) == {CANARY}", [], []),
    "keyword": t(ADD, f"assert add({int(CANARY) - 1}, b=1) == {CANARY}", [], []),
    "isclose": t(ADD, f"import math\nassert math.isclose(add({int(CANARY) - 1}, 1), {CANARY})", [], []),
    "setup": t(ADD, f"assert add({int(CANARY) - 1}, 1) == wanted", [], [], test_setup_code=f"wanted = {CANARY}"),
    "oracle": t(
        ADD,
        f"assert add({int(CANARY) - 1}, 1) == oracle()",
        [],
        [],
        test_setup_code=f"def oracle():\n    return {CANARY}",
    ),
    "solution": t(f"{ADD}def oracle():\n    return {CANARY}", f"assert add({int(CANARY) - 1}, 1) == oracle()", [], []),
    "method": t(ADD, f"assert add({int(CANARY) - 1}, 1).__eq__({CANARY})", [], []),
    "raises": t(
        f"def f(x):\n    raise ValueError('{CANARY}')",
        f"try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == '{CANARY}'",
        [],
        [],
    ),
    "own": t(f"{P}def f(x):\n    return Point(x, {CANARY})", f"assert f(1) == Point(1, {CANARY})", [], []),
}


@pytest.mark.parametrize("name", HIDING)
def test_no_expected_output_enters_with_a_program_and_no_program_enters_with_a_test(sandbox, name):
    ((problem,), _) = problems_and_skipped([HIDING[name][0]], sandbox)
    program = problem.program("MARK = 1\n" + HIDING[name][0]["code"].replace(CANARY, "0"))
    assert CANARY not in program.source + str(program.inputs) + problem.prompt and "MARK" in program.source
    if problem.tests is not None:
        (outcome,) = sandbox.run([program])
        judge = problem.tests.judge(outcome)
        assert "MARK" not in judge.source + str(judge.inputs) and CANARY in judge.source + str(judge.inputs)


LIES = {
    "true": "True", "none": "None", "text": "'returned'", "a lie": "['returned', True, None]", "deep": "eval('[' * 40 + ']' * 40)",
    "an object of another class": "['returned', [['new', 'Yes', [], None, [], []]], None]",
    "a class": "['returned', [['own', 'oracle']], None]", "a function": "['returned', [['function', b'', 0, 0]], None]",
    "a module": "['returned', [['made', 'os.system', [], None, [], []]], None]", "a function of the tests": "['returned', [['own', 'f']], None]",
    "a call": "['function']", "an exception": "['raised', ['AssertionError', 'Exception'], '']", "an exit": "['raised', ['SystemExit', 'BaseException'], '']",
    "a large number": "['returned', [['plain', 1 << 400000]], None]", "a circle": "['returned', [['tuple', [0]]], None]",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_program_that_speaks_for_the_carrier_gains_nothing(sandbox, lie):
    """It may answer what it likes to the calls; it does not know what is wanted."""
    setup = "class Yes:\n    def __init__(self, x):\n        self.x = x\n    def __eq__(self, other):\n        return self.x == other.x\ndef oracle(x):\n    return 42"
    row, _, _ = t(
        "def f(x):\n    return Yes(x)",
        ["assert f(1) == Yes(1)", "assert f(x=2) == Yes(2)", "assert f(3).x == oracle(1) - 39"],
        [],
        [],
        test_setup_code=setup,
    )
    ((problem,), _) = problems_and_skipped([row], sandbox)
    honest, liar = (
        "def f(x):\n    return Yes(x)\n",
        f"class Liar(dict):\n    def __setitem__(self, name, value):\n        pass\nf = lambda x: None\n"
        f"def exec(source, namespace):\n    namespace['observe'] = lambda *_: {LIES[lie]}\n",
    )
    right, wrong = graded(problem, [honest, "def f(x):\n    return None\n"], sandbox)
    assert (right.verdict, wrong.passed) == ("passed", 0)
    source = problem.prefix.rpartition("def f")[0] + liar
    assert problem.tests is not None
    (outcome,) = sandbox.run([problem.tests.observer(source)])
    assert outcome.verdict in ("finished", "error")
    assert grades_of([problem], [outcome], sandbox)[0].passed == 0


def test_a_forbidden_program_earns_nothing(sandbox):
    row, _, _ = t(ADD, ["assert add(1, b=2) == 3", "assert add(2, b=2) == 4"], [], [])
    ((problem,), _) = problems_and_skipped([row], sandbox)
    half = "def add(a, b):\n    if a == 1:\n        return 3\n    raise {}"
    error, forbidden = graded(problem, [half.format("ValueError"), half.format("PermissionError")], sandbox)
    assert (error.verdict, error.passed, error.total) == ("error", 1, 2)
    assert (forbidden.verdict, forbidden.passed) == ("forbidden", 0)


@pytest.mark.parametrize("nodes", [
    [["function", b"", 0, 0]], [["made", "os.system", [1], None, [], []], ["plain", "true"]], [["made", "builtins.eval", [1], None, [], []], ["plain", "1"]],
    [["new", "subprocess.Popen", [], None, [], []]], [["plain"]], [["sorted", []]],
])  # fmt: skip
def test_no_answer_makes_anything_but_data(nodes):
    with pytest.raises((TypeError, KeyError)):
        carrier.rebuild(nodes, {})


def test_no_answer_is_a_function_of_the_tests():
    assert isinstance(carrier.rebuild([["own", "oracle"]], {"oracle": lambda x: 42}), type)


def test_the_first_exception_is_told_and_not_what_was_wanted(problems, sandbox):
    failed, raised = graded(
        problems["keyword"], ["def add(a, b):\n    return 4", "def add(a, b):\n    return [][a]"], sandbox
    )
    assert (failed.verdict, failed.message) == ("failed", "test 1 of 1 does not hold")
    assert (raised.verdict, raised.message) == ("error", "IndexError: list index out of range")


@pytest.mark.parametrize("text,form", [
    ("assert f(1) == 2", Form("equal", 2)), ("assert [2] == f(1, 2)", Form("equal", [2])), ("assert (f(1)) == -2, 'no'", Form("equal", -2)),
    ("assert f(1) is True", Form("identical", True)), ("assert f(1)", Form("truth", True)), ("assert not f(1)", Form("truth", False)),
    ("assert abs(f(1) - 2) < 1e-3", Form("close", 2, absolute=1e-3)), ("assert abs(2 - f(1)) < 1", Form("close", 2, absolute=1.0)),
    ("assert math.isclose(f(1), 2.5)", Form("isclose", 2.5, 1e-9, 0.0)), ("assert isclose(2.5, f(1), abs_tol=1)", Form("isclose", 2.5, 1e-9, 1.0)),
    ("assert math.isclose(f(1), 2, rel_tol=0.1)", Form("isclose", 2, 0.1, 0.0)),
    *((f"assert {test}", None) for test in ("g(1) == 2", "f(1) != 2", "f(1) < 2", "f(1) == 2 or True", "True", "abs(f(1)) < 3", "len(f(1)) == 2", "f(x=1) == 2", "f(*x) == 2", "f(f(1)) == 2",
      "f(1) == y", "f(1) == 2 == 2", "sorted(f(1)) == [2]", "abs(f(1) - 2) <= 1", "np.isclose(f(1), 2)", "f(1) is y", "math.isclose(f(1), 7 / 3)", "f(1) == f(2)")),
    ("f(1)", None), ("assert f(1) == 2; assert f(2) == 3", None), ("x = 1\nassert f(x) == 2", None),
])  # fmt: skip
def test_forms(text, form):
    assert form_of(text, "f") == form


class Own:
    def __init__(self, x):
        self.x = x


VALUES = [
    None, 1, 2.5, "a", b"b", [1, [2]], (1,), {1, 2}, {"a": [1]}, frozenset({1}), range(3), bytearray(b"x"), 10**400, float("inf"), {(1, 2): {3}},
    ["a", Own(3)], {"k": Own([1])}, (Own(1), Own(2)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_what_is_described_is_rebuilt(value):
    def plain(item):
        if isinstance(item, Own):
            return ("own", item.x)
        if isinstance(item, list | tuple):
            return type(item)(map(plain, item))
        return {key: plain(one) for key, one in item.items()} if isinstance(item, dict) else item

    copied = carrier.rebuild(carrier.describe(value, {"Own": Own}), {"Own": Own})
    assert type(copied) is type(value) and plain(copied) == plain(value)


def test_shared_and_circular_references_are_kept():
    own = Own([])
    own.x += [own, own]
    copied = carrier.rebuild(carrier.describe([own, own], {"Own": Own}), {"Own": Own})
    assert copied[0] is copied[1] is copied[0].x[1] and copied[0] is not own


@pytest.mark.parametrize("value", [ast, print, lambda: 1, Own(1).__init__, Own(lambda: 1), open])
def test_what_is_no_data_is_refused(value):
    if value is print or value is open:
        assert carrier.describe(value, {}) == [["builtin", value.__name__]]
        return
    with pytest.raises(TypeError, match=r"cannot be carried|is no data|cannot pickle"):
        carrier.describe(value, {"Own": Own})
