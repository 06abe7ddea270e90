"""Whatever stands where an argument belongs: either a task that can be asked, or one sentence that names the argument,
its value and what it must be. Never a traceback from inside, never a hang."""

import importlib.util
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs import TokenEnv, TokenVectorEnv, check_task
from llm_mdp_envs.adapters import CallableReward, TRLReward, VerlReward, as_trl_reward, trl_rows
from llm_mdp_envs.arguments import (
    check_callable,
    check_choice,
    check_finite,
    check_flag,
    check_seed,
    check_text,
    check_whole,
    shown,
)
from llm_mdp_envs.registry import ENTRIES, Entry, task_class
from llm_mdp_envs.sandbox import SandboxUnavailable
from llm_mdp_envs.tasks import programs
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.graders import Grader
from llm_mdp_envs.tasks.rows import plain
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask
from llm_mdp_envs.wrappers import OneHot

REFUSALS = (ValueError, TypeError, ImportError, FileNotFoundError, SandboxUnavailable)
FROM_INSIDE = (
    "object is not",
    "object has no",
    "Exceeds the limit",
    "ambiguous",
    "broadcast",
    "unhashable",
    "argument of",
)
"""Words of errors that Python and numpy write where nobody has looked at an argument."""

LONG = 2_000
"""Tokens beyond which a response is not played to its end, token by token."""


class TwoLines:
    def __repr__(self):
        return "two\nlines"


def plain_function(*anything):
    return 0


JUNK: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 5, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**5000),
    *(float("nan"), float("inf"), -float("inf"), 0.5, 3.0, 1e300, 1j),
    *("", " ", "yes", "7", "a\0b", "two\nlines", "x" * 300, b"x"),
    *((), [], {}, set(), [1], [None], ["a"], {"a": 1}, {"a": None}, {1: 2}, range(3), [[1], [2, 3]], [float("nan")]),
    *(object(), TwoLines(), int, len, plain_function, ValueError("x"), slice(3), Ellipsis),
    *(np.int64(3), np.int64(-1), np.float32(0.5), np.float64("nan"), np.bool_(True), np.str_("a")),
    *(np.array(3), np.array([1, 2]), np.array([[1], [2]]), np.array(["a", "b"]), torch.tensor(3), torch.zeros(2, 2)),
)
junk = st.sampled_from(JUNK)


def words_for(value: Any) -> list[str]:
    """Ways to say which value is meant: it, the same in plain values, its type, what is in it, or how much."""
    said = [shown(value).rstrip(" …")[:12], type(value).__name__, shown(plain(value))[:12]]
    if isinstance(value, type):
        said.append(f"the class {value.__name__}")
    if callable(value):
        said.append(" gave ")
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        said.append(str(value.item()))
    if isinstance(value, list | tuple | dict | set | range) or getattr(value, "ndim", 0) > 0:
        said += [shown(one)[:12] for first in list(value)[:1] for one in (first, plain(first))] or [
            "no rows",
            "is empty",
            "none",
            "only nothing",
        ]
        said += [f" {len(value)} "]
    return said


def refused_well(error: Exception, name: str, value: Any) -> str:
    """What is wrong with a refusal; empty: nothing."""
    message = str(error)
    wrong = {
        "an error of another kind": not isinstance(error, REFUSALS) or isinstance(error, UnicodeError),
        "several lines": "\n" in message,
        "the argument is not named": not re.search(rf"\b{name}", message),
        "neither the value nor its type is named": not isinstance(error, SandboxUnavailable)
        and not any(one in message for one in words_for(value)),
        "no sentence": message[-1:] not in (".", "?", ")"),
        "too long": len(message) > 400,
        "words from inside": any(words in message for words in FROM_INSIDE),
    }
    return ", ".join(what for what, is_so in wrong.items() if is_so)


def tried(make, name: str, value: Any, asked: Callable[[Any], bool] = lambda task: True) -> str:
    """Empty if `make` refuses the value well, or makes a task that can be asked; else what is wrong.

    Args:
        asked: whether a task is.
    """
    task = None
    try:
        task = make(value)
        if task.horizon <= LONG and asked(task):
            check_task(task)
    except Exception as error:
        complaint = refused_well(error, name, value)
        return f"{name} = {shown(value)}: {complaint}: {type(error).__name__}: {error}" if complaint else ""
    finally:
        if task is not None:
            task.close()
    return ""


@cache
def arguments_of(id: str) -> tuple[str, ...]:
    parameters = inspect.signature(task_class(entry_of(id).task)).parameters.values()
    return tuple(one.name for one in parameters if one.kind is not one.VAR_KEYWORD)


def entry_of(id: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.id == id)


def made_with(id: str, name: str):
    """What makes the task of an id with one argument."""
    entry = entry_of(id)
    others = QUICK_SANDBOX if entry.task.endswith(":Code") else {}
    return lambda value: task_class(entry.task)(**{**entry.kwargs, **others, name: value})


QUICK_SANDBOX = {"backend": "monty", "workers": 1, "unsupported_reward": 0.0}


QUICK = [one.id for one in ENTRIES if not one.packages and "llm_mdp_envs.tasks.synthetic" in one.task]
QUICK += [one.id for one in ENTRIES if "diagnostics" in one.task or "arithmetic" in one.task]
QUICK += ["llm_mdp/Consultation-v0", "llm_mdp/GuessNumber-v0"]


@pytest.mark.parametrize("id", QUICK)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_value_of_any_argument(id, data):
    name = data.draw(st.sampled_from(arguments_of(id)))
    value = data.draw(junk | st.integers() | st.floats() | st.text(max_size=5))
    complaint = tried(made_with(id, name), name, value)
    assert not complaint


@pytest.fixture
def few_processes(monkeypatch):
    """A grading process takes seconds to start; here tasks with the same time limit share one. HumanEval's references
    run once, not for every task."""
    kept = {}
    human_eval = programs.human_eval_problems
    monkeypatch.setattr("llm_mdp_envs.tasks.code.human_eval_problems", lambda sandbox: human_eval())

    def shared(function, *, seconds):
        grader = Grader(function, seconds=seconds)
        return kept.setdefault((function, grader.seconds), grader)

    for module in ("reasoning", "math_problems"):
        monkeypatch.setattr(f"llm_mdp_envs.tasks.{module}.Grader", shared)


GRADED_ELSEWHERE = ("Code", "Math", "ReasoningGym")
"""Tasks that start a process to grade, which takes seconds: one task an argument is asked."""


@pytest.mark.slow
@pytest.mark.usefixtures("few_processes")
@pytest.mark.parametrize("id", [entry.id for entry in ENTRIES])
def test_every_argument_takes_all_the_junk(id, monkeypatch):
    """A text may be the name of a tokenizer; there is none of such a name, and nobody waits for the network here."""

    def no_such_tokenizer(name):
        raise OSError(f"there is no {name}")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", no_such_tokenizer)
    for package in entry_of(id).packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    quick = not id.split("/")[1].startswith(GRADED_ELSEWHERE)
    found = []
    for name in arguments_of(id):
        first = iter([True])
        found += [tried(made_with(id, name), name, value, lambda _: quick or next(first, False)) for value in JUNK]  # noqa: B023
    assert not [complaint for complaint in found if complaint]


# --- adapters ---

ROWS = [{"prompt": "?", "data_source": "own", "reward_model": {"ground_truth": "1"}}]


def one(**columns):
    return 1.0


ADAPTERS = {
    "compute_score": lambda value: VerlReward(value, ROWS),
    "rows": lambda value: VerlReward(one, value),
    "rows of a row": lambda value: VerlReward(one, [value]),
    "split": lambda value: VerlReward(one, ROWS, split=value),
    "prompt": lambda value: VerlReward(one, [ROWS[0] | {"prompt": value}]),
    "reward_model": lambda value: VerlReward(one, [ROWS[0] | {"reward_model": value}]),
    "functions": lambda value: TRLReward(value, ROWS, no_reward=0.0),
    "functions in a list": lambda value: TRLReward([value], ROWS, no_reward=0.0),
    "weights": lambda value: TRLReward([one], ROWS, weights=value),
    "weights in a list": lambda value: TRLReward([one], ROWS, weights=[value]),
    "no_reward": lambda value: TRLReward([one], ROWS, no_reward=value),
    "function": lambda value: CallableReward(value, ["?"]),
    "prompts": lambda value: CallableReward(one, value),
    "prompts in a list": lambda value: CallableReward(one, [value]),
    "mdp": TokenMDPTask,
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_arguments_of_the_adapters(name):
    for value in JUNK:
        try:
            ADAPTERS[name](value)
        except Exception as error:
            told = None if "None" in str(error) else value  # NaN in a table is a missing value
            complaint = refused_well(error, name.split()[0], told)
            assert not complaint, f"{name} = {shown(value)}: {complaint}: {error}"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("task", as_trl_reward),
        ("task", lambda value: trl_rows(value, 1)),
        ("n", lambda value: trl_rows(Arithmetic(), value)),
        ("seed", lambda value: trl_rows(Arithmetic(), 1, value)),
    ],
)
def test_arguments_of_tasks_taken_to_trl(name, call):
    for value in JUNK:
        try:
            call(value)
        except Exception as error:
            assert not refused_well(error, name, value), f"{name} = {shown(value)}: {error}"


# --- environments ---


@pytest.mark.parametrize("make", [lambda: TokenEnv(Arithmetic(restricted=True)), lambda: TokenVectorEnv(Tabular(), 2)])
def test_what_reset_and_step_are_given(make):
    env = make()
    many = isinstance(env, TokenVectorEnv)
    env.reset(seed=0)
    uses = {
        "seed": lambda value: env.reset(seed=value),
        "options": lambda value: env.reset(options=value),
        "action": lambda value: env.step(value),
    }
    for key in ("questions", "prefixes") if many else ("question", "prompt", "prefix"):
        uses[key] = lambda value, key=key: env.reset(options={key: value})
        if many:
            uses[f"{key} of two"] = lambda value, key=key: env.reset(options={key: [value, value]})
    for name, use in uses.items():
        for value in JUNK:
            env.reset(seed=0)
            try:
                use(value)
            except Exception as error:
                message = str(error)
                assert isinstance(error, ValueError | TypeError), f"{name} = {shown(value)}: {error!r}"
                assert re.search(rf"\b{name.split()[0]}", message) and "\n" not in message, f"{shown(value)}: {message}"
                assert not any(words in message for words in FROM_INSIDE) and message[-1] in ".'", message


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("task", TokenEnv),
        ("task", lambda value: TokenVectorEnv(value, 2)),
        ("render_mode", lambda value: TokenEnv(Tabular(), value)),
        ("render_mode", lambda value: TokenVectorEnv(Tabular(), 2, value)),
        ("num_envs", lambda value: TokenVectorEnv(Tabular(), value)),
        ("OneHot", OneHot),
    ],
)
@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_what_environments_are_made_of(name, make):
    for value in JUNK:
        try:
            env = make(value)
        except Exception as error:
            assert not refused_well(error, name, value), f"{shown(value)}: {error}"
        else:
            assert isinstance(env, gym.Env | gym.vector.VectorEnv) and env.render_mode in (None, "ansi", "human")


# --- the checks themselves ---


@pytest.mark.parametrize(
    ("id", "argument"),
    [
        ("llm_mdp/GuessNumber-v0", "malformed_penalty"),
        ("llm_mdp/Consultation-v0", "excess_penalty"),
        ("llm_mdp/Calculator-v0", "fault_penalty"),
        ("llm_mdp/Documents-v0", "source_reward"),
        ("llm_mdp/Forked-v0", "height"),
    ],
)
def test_what_overflows_when_it_is_added_up_is_refused(id, argument):
    with pytest.raises(ValueError, match=rf"{argument} is 1e\+307; .*at most 1e\+100 in size"):
        gym.make(id, **{argument: 1e307})


def test_checks_give_plain_values():
    assert check_whole("n", np.int64(3)) == 3 and type(check_whole("n", np.int64(3))) is int
    assert check_finite("x", np.float32(0.5), 0, 1) == 0.5 and type(check_finite("x", 2)) is float
    assert check_flag("f", np.bool_(True)) is True and check_choice("c", None, ("a", None)) is None
    assert check_text("t", "a") == "a" and check_text("t", None, optional=True) is None
    assert check_seed(2**63 - 1) == 2**63 - 1 and check_callable("f", len) is len


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: check_whole("n", True), "n is True; it must be a whole number of at least 0."),
        (lambda: check_whole("n", 3.0, 1), "n is 3.0; it must be a whole number of at least 1."),
        (lambda: check_whole("n", 10, 1, 9), "n is 10; it must be a whole number, 1 … 9."),
        (lambda: check_whole("n", 10**30, 1, 10**6), f"n is {10**30}; it must be a whole number of at most 1,000,000."),
        (lambda: check_whole("n", 10**5000, 1, 9), "n is a number of 16610 bits; it must be a whole number, 1 … 9."),
        (lambda: check_seed(2**63), "seed is 9223372036854775808; it must be below 2^63."),
        (lambda: check_finite("x", float("nan")), "x is nan; it must be a finite number."),
        (lambda: check_finite("x", -1, 0), "x is -1; it must be a finite number of at least 0."),
        (lambda: check_finite("x", 0, above=0, most=1), "x is 0; it must be a finite number above 0 and of at most 1."),
        (lambda: check_finite("x", "1"), "x is '1'; it must be a finite number."),
        (lambda: check_finite("x", 10**400), "it must be a finite number."),
        (lambda: check_flag("f", 1), "f is 1; it must be True or False."),
        (lambda: check_choice("c", "d", ("a", "b", None)), "c is 'd'; choose 'a', 'b' or None."),
        (lambda: check_choice("c", ["a"], ("a",)), "c is ['a']; choose 'a'."),
        (lambda: check_text("t", " "), "t is ' '; it must be a text that is not empty."),
        (lambda: check_text("t", 3, optional=True), "t is 3; it must be a text that is not empty, or None."),
        (lambda: check_callable("f", int), "f is <class 'int'>; it must be a function."),
        (lambda: check_whole("n", TwoLines()), "n is two lines; it must be"),
        (lambda: check_whole("n", "x" * 300), f"n is '{'x' * 77} …; it must be"),
    ],
)  # fmt: skip
def test_checks_say_what_they_want(check, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check()
