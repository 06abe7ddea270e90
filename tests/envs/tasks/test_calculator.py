"""The calculator: what it works out, what it refuses, and what a conversation with it is worth."""

from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs import check_task
from llm_mdp_envs.episode import replay
from llm_mdp_envs.tasks.calculator import Calculator, calculate, evaluate
from llm_mdp_envs.tools import ToolError
from tests.envs.chat_templates import LLAMA_3, QWEN, tokenizer_with


def worth(task: Calculator, *said: str) -> dict[str, float]:
    question = task.ask("What is 12 + 30?", "12 + 30")
    tokens, _ = task.converse(question, said)
    scores = replay(task, [question], tokens[None])
    return {name: float(values[0]) for name, values in (scores.parts | scores.details).items()}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4"),
        ("(4821 - 377) * 56", "248864"),
        ("1,234 * 2", "2468"),
        ("3 × 4 − 2", "10"),
        ("84 ÷ 2 =", "42"),
        ("1/3", "0.333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 100", str(2**100)),
        ("4 ** -2", "0.0625"),
        ("(-1) ** 99999999999", "-1"),
        ("0 ** 0", "1"),
    ],
)
def test_what_it_works_out(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("1 / 0", "divides by zero"),
        ("0 ** -1", "divides by zero"),
        ("2 % 0", "divides by zero"),
        ("2 ^ 3", "write \\*\\* for powers"),
        ("9 ** 9 ** 9", "too large"),
        ("1e400", "too large"),
        ("1e-400", "too small"),
        ("2 ** 0.5", "no whole number"),
        ("x + 1", "'x' is no number"),
        ("'a' * 9", "is no number"),
        ("True", "is no number"),
        ("__import__('os').getcwd()", "is no number"),
        ("1 < 2", "is no number"),
        ("", "no arithmetic expression"),
        ("two plus two", "no arithmetic expression"),
        ("1 +", "no arithmetic expression"),
        ("1" * 201, "201 characters"),
        ("-" * 50 + "1", "nested"),
        ("(" * 190, "no arithmetic expression"),
    ],
)
def test_what_it_refuses(expression, words):
    with pytest.raises(ToolError, match=words):
        calculate(expression)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=5), st.lists(st.sampled_from("+-*"), min_size=4, max_size=4)
)
def test_whole_numbers_as_python_has_them(numbers, signs):
    text = "".join(f"{number}{sign}" for number, sign in zip(numbers, signs))[:-1]
    assert evaluate(text) == eval(text)


@settings(max_examples=20, deadline=None)
@given(st.text(alphabet="0123456789.+-*/%()e ,=^x", max_size=60))
def test_any_text_is_worked_out_or_refused(text):
    with suppress(ToolError):
        assert isinstance(evaluate(text), Fraction) and calculate(text)


def test_what_a_conversation_is_worth():
    task = Calculator()
    good, bad = task.call_text("calculate", expression="12 + 30"), task.call_text("calculate", expression="12 +")
    assert worth(task, good, "It is 42.") == {
        "right": 1.0, "called": 0.1, "faults": 0.0, "calls": 1.0, "faulty_calls": 0.0, "tool_exceptions": 0.0,
    }  # fmt: skip
    assert worth(task, "42")["right"] == 1.0
    assert worth(task, "42 or 43")["right"] == 0.0
    said = worth(task, bad, good, good, "41")
    assert (said["right"], said["called"], said["faults"], said["calls"]) == (0.0, 0.1, -0.05, 3.0)
    assert worth(task, good, good, good, good, "42")["right"] == 0.0
    assert worth(task, bad, "<tool_call>{", "add(1)")["faults"] == -0.1


@pytest.mark.parametrize("template", [None, QWEN, LLAMA_3])
def test_demonstrations_earn_all_there_is(template):
    task = Calculator(None if template is None else tokenizer_with(template))
    check_task(task)
    questions = task.questions(np.random.default_rng(0), 20)
    assert replay(task, questions, task.answers(questions)).reward.tolist() == [1.1] * 20


def test_questions_are_read_from_left_to_right():
    for question in Calculator(operations=5, digits=1).questions(np.random.default_rng(1), 50):
        text = question.secret.secret
        assert text in question.secret.text
        value, rest = None, text.replace("(", "").replace(")", "").split()
        for sign, number in zip(["+", *rest[1::2]], rest[::2]):
            value = {"+": (value or 0) + int(number), "-": (value or 0) - int(number), "*": (value or 0) * int(number)}[
                sign
            ]
        assert evaluate(text) == value


@pytest.mark.parametrize(
    ("argument", "value"),
    [("digits", 0), ("digits", 10), ("digits", "4"), ("operations", 0), ("operations", 6), ("call_reward", -1),
     ("call_reward", np.nan), ("fault_penalty", np.inf), ("fault_penalty", None), ("max_turns", 0)],
)  # fmt: skip
def test_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        Calculator(**{argument: value})
