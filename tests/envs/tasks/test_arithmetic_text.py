"""Sums in words: asked, begun, graded, and made from the registry with text=True."""

import numpy as np
import pytest

from llm_mdp_envs.check import check_task
from llm_mdp_envs.registry import make_task
from llm_mdp_envs.tasks.arithmetic_text import ArithmeticText


def worth(task, question, *texts: str) -> list[float]:
    return task.grade([task.reply_to(question, text) for text in texts]).reward.tolist()


def test_a_question_its_beginning_and_what_answers_are_worth():
    task = ArithmeticText(chat=False, digits=1)
    question = task.ask("What is 5 + 4?", "9")
    assert task.decode(question.prompt).endswith("What is 5 + 4?5 + 4 = ")
    assert worth(task, question, "9", " 9 ", "90", "8", "", "9 eggs", "09") == [1, 1, 0, 0, 0, 0, 0]


def test_the_sums_are_those_of_arithmetic_and_negative_numbers_are_right():
    task = ArithmeticText(operators="+-*", digits=2)
    generator, seen = np.random.default_rng(0), set()
    for _ in range(200):
        text, right = task.draw(generator)
        assert eval(text.removeprefix("What is ").removesuffix("?")) == int(right)
        assert worth(task, task.ask(text, right), right, f"1{right}") == [1, 0]
        seen |= {right[0] == "-"}
    assert seen == {True, False}


def test_it_is_a_task_and_the_registry_makes_it():
    task = make_task("llm_mdp_envs.tasks.arithmetic:Arithmetic", text=True, digits=1)
    assert isinstance(task, ArithmeticText) and task.horizon == 3
    check_task(task)
    with pytest.raises(ValueError, match="digits is 10"):
        ArithmeticText(digits=10)
