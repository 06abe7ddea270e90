"""Right programs compute in a sandbox what plain Python computes, value by value and type by type; and where a backend
speaks a subset of Python, what it cannot do is never called the program's fault."""

# ruff: noqa: E501 (tables)
import contextlib
import copy
import io
import sys
import types
import warnings

import pytest

from llm_mdp_envs.sandbox import NO_OUTPUT, Case, Program, SandboxUnavailable, grade, make_sandbox
from tests.envs.sandbox.right_programs import PROGRAMS

NAMES = [name for name, _, _ in PROGRAMS]
BACKENDS = ("auto", "landlock", "monty")


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request):
    try:
        made = make_sandbox(request.param, workers=2)
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {request.param} does not work on this machine: {error}")
    with made:
        yield made


@pytest.fixture(scope="module")
def outcomes(sandbox):
    return dict(zip(NAMES, sandbox.run([Program(source, "f", inputs) for _, source, inputs in PROGRAMS])))


def in_plain_python(name: str, source: str, inputs: list[tuple]) -> list:
    module = types.ModuleType("program")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "program", module)
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
            return [module.__dict__["f"](*arguments) for arguments in copy.deepcopy(inputs)]


def typed(value):
    """A value with the plain type of everything in it, as something that can be compared."""
    if isinstance(value, dict):
        return dict, tuple((typed(key), typed(item)) for key, item in value.items())
    for kind in (list, tuple):
        if isinstance(value, kind):
            return kind, tuple(map(typed, value))
    for kind in (set, frozenset):
        if isinstance(value, kind):
            return kind, frozenset(map(typed, value))
    for kind in (float, complex):
        if isinstance(value, kind):
            return kind, repr(kind(value))
    kind = next((kind for kind in (bool, int, str, bytes) if isinstance(value, kind)), type(None))
    return kind, value


def test_there_are_many_and_their_names_differ():
    assert len(set(NAMES)) == len(NAMES) >= 120


@pytest.mark.parametrize("name,source,inputs", PROGRAMS, ids=NAMES)
def test_a_right_program_agrees_with_plain_python(sandbox, outcomes, name, source, inputs):
    expected = in_plain_python(name, source, inputs)
    outcome = outcomes[name]
    graded = grade(outcome, [Case(arguments, answer) for arguments, answer in zip(inputs, expected)])
    if sandbox.full:
        assert outcome.verdict == "finished" and not outcome.unsupported, outcome
        assert typed(list(outcome.outputs)) == typed(expected)
    assert graded.verdict == "passed" or (graded.unsupported and not sandbox.full), graded


@pytest.mark.parametrize("source", [
    "def f(x):\n    raise NotImplementedError", "def f(x): raise NotImplementedError('not supported')", "def f(x:", "def f(x):\n    return undefined",
    "def f(x):\n    return 'a'.no_such_method()", "import no_such\ndef f(x):\n    return x", "def f(x):\n  return 1\n   return 2", "g = 1",
])  # fmt: skip
def test_what_python_refuses_too_is_an_error_and_supported(sandbox, source):
    graded = grade(sandbox.run([Program(source, "f", [(1,)])])[0], [Case((1,), 1)])
    assert (graded.verdict, graded.unsupported) == ("error", False), graded


@pytest.mark.parametrize("source,verdict", [
    ("def f(x):\n    return x + 1", "failed"), ("def f(x):\n    return [][x]", "error"), ("def f(x):\n    while True: pass", "timeout"),
    ("def f(x):\n    raise ValueError", "error"), ("def f(x):\n    yield x", "error"),
])  # fmt: skip
def test_other_failures_are_unsupported_exactly_where_the_backend_is_a_subset(sandbox, source, verdict):
    graded = grade(sandbox.run([Program(source, "f", [(1,)])])[0], [Case((1,), 1)])
    assert graded.verdict == verdict or not sandbox.full
    assert graded.unsupported is (not sandbox.full and graded.verdict != "passed"), graded


def test_one_right_output_does_not_hide_an_unsupported_one(sandbox):
    outcome = sandbox.run([Program("def f(x):\n    return x if x else undefined", "f", [(0,), (1,), (2,)])])[0]
    graded = grade(outcome, [Case((0,), 0), Case((1,), 1), Case((2,), 5)])
    assert (graded.verdict, graded.passed, graded.unsupported) == ("error", 1, not sandbox.full)
    assert outcome.outputs[0] is NO_OUTPUT
