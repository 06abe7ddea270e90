"""Arithmetic: prompts and answers against Python's own, hidden digit rewards, what is seen of them, the scratchpad."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs import Question, TokenEnv, TokenVectorEnv
from llm_mdp_envs.tasks.arithmetic import CHARACTERS, EOS, OPERATORS, Arithmetic, numerals

PYTHON = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def ask(task: Arithmetic, text: str) -> Question:
    return task.from_prompt(tuple(task.encode(text)))


def answer(task: Arithmetic, question: str, response: str, end: bool = True) -> list[float]:
    """Rewards, step by step, of a response given as text."""
    env, rewards = TokenEnv(task), []
    env.reset(options={"question": ask(task, question)})
    for token in task.encode(response) + [EOS] * end:
        _, reward, terminated, _, _ = env.step(token)
        rewards.append(reward)
        if terminated:
            break
    assert terminated
    return rewards


@st.composite
def sums(draw):
    digits = draw(st.integers(1, 9))
    numbers = st.integers(0, 10**digits - 1)
    return digits, draw(st.lists(st.tuples(st.sampled_from(OPERATORS), numbers, numbers), min_size=1, max_size=20))


@settings(max_examples=100, deadline=None)
@given(sums())
def test_prompts_and_answers_are_pythons(drawn):
    digits, rows = drawn
    task = Arithmetic(OPERATORS, digits)
    secrets = np.array([[OPERATORS.index(operator), a, b] for operator, a, b in rows])
    for (operator, a, b), prompt, right in zip(rows, task.prompts(secrets), task.right_answers(secrets)):
        assert task.decode(prompt) == f"{a}{operator}{b}=" and (np.diff((prompt >= 0).astype(int)) >= 0).all()
        text = [token for token in right.tolist() if token >= 0]
        assert task.decode(text) == str(PYTHON[operator](a, b)) and text[-1] == EOS
        assert (np.diff((right >= 0).astype(int)) <= 0).all()
        assert ask(task, f"{a}{operator}{b}=").secret == (OPERATORS.index(operator), a, b)


@settings(max_examples=60, deadline=None)
@given(sums(), st.sampled_from(["sum", "outcome", "token"]), st.sampled_from([0, 3]))
def test_the_right_answer_and_only_it_is_worth_1(drawn, reward, scratchpad):
    digits, rows = drawn
    task = Arithmetic(OPERATORS, digits, scratchpad, reward)
    for operator, a, b in rows[:3]:
        lead, right = ("7+#" if scratchpad else ""), str(PYTHON[operator](a, b))
        assert sum(answer(task, f"{a}{operator}{b}=", lead + right)) == pytest.approx(1)
        wrong = right[:-1] + str((int(right[-1]) + 1) % 10)
        assert sum(answer(task, f"{a}{operator}{b}=", lead + wrong)) < 1 - 1e-9


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        ("55", [1 / 3, 1 / 3, 1 / 3]),
        ("56", [1 / 3, 0, 1 / 3]),
        ("65", [0, 1 / 3, 1 / 3]),
        ("5", [1 / 3, 0]),
        ("555", [1 / 3, 1 / 3, 0, 0]),
        ("", [0]),
        ("-55", [0, 1 / 3, 0, 0]),
    ],
)
def test_digits_are_right_at_their_places(response, rewards):
    """47 + 8 = 55: two digits and the end token."""
    assert answer(Arithmetic(reward="token"), "47+8=", response) == pytest.approx(rewards)
    total = sum(rewards)
    assert answer(Arithmetic(reward="sum"), "47+8=", response) == pytest.approx([0] * (len(rewards) - 1) + [total])
    assert answer(Arithmetic(reward="outcome"), "47+8=", response)[-1] == (response == "55")


def test_a_response_without_an_end_misses_its_reward():
    task = Arithmetic(digits=1)
    assert task.horizon == 3
    assert answer(task, "7+8=", "155", end=False)[-1] == pytest.approx(2 / 3)
    assert answer(task, "1+1=", "222", end=False)[-1] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("#55", 1),
        ("4+8#55", 1),
        ("12345#55", 1),
        ("55", 0),
        ("4#5#55", 1 / 3),
        ("12#", 0),
        ("##55", 1 / 3),
        ("5512#56", 2 / 3),
    ],
)
def test_scratchpad(response, reward):
    """The answer begins after the first mark; what comes before it is free."""
    assert answer(Arithmetic(scratchpad=5), "47+8=", response)[-1] == pytest.approx(reward)


def test_the_action_mask_forbids_what_no_answer_holds():
    env = TokenEnv(Arithmetic("-", digits=1, restricted=True))
    _, info = env.reset(seed=0)
    assert "".join(character for character, fine in zip(CHARACTERS, info["action_mask"]) if fine) == "0123456789-"
    assert info["action_mask"][EOS] == 1
    with pytest.raises(ValueError, match="the action is 10, which the action mask forbids"):
        env.step(CHARACTERS.index("+"))


def test_questions_cover_all_operands_and_operators():
    task = Arithmetic("+*", digits=1)
    secrets = task.draw(np.random.default_rng(0), 5000)
    assert {tuple(row) for row in secrets.tolist()} == {(o, a, b) for o in (0, 2) for a in range(10) for b in range(10)}


def test_parts_would_show_the_digits_so_there_are_none():
    env = TokenVectorEnv(Arithmetic(), 4)
    env.reset(seed=0)
    assert "parts" not in env.step(np.full(4, EOS))[-1]


def test_numerals():
    assert numerals(np.array([0, 7, 40, 123]), 3).tolist() == [[-1, -1, 0], [-1, -1, 7], [-1, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize("prompt", ["47+8", "47-8=", "047+8=", "470+8=", "+8=", "4+8=1", "47+8=="])
def test_bad_prompts(prompt):
    task = Arithmetic()
    with pytest.raises(
        ValueError, match=r"the prompt reads .*; it must be two numbers of at most 2 digits, as in '7\+5='"
    ):
        ask(task, prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operators": "/"}, "operators is '/'; give some of '+-*', each once"),
        ({"operators": ""}, "operators is ''"),
        ({"operators": "++"}, "operators is '++'"),
        ({"operators": ["+"]}, "operators is ['+']"),
        ({"digits": 0}, "digits is 0; it must be a whole number, 1 … 9"),
        ({"digits": 10}, "digits is 10"),
        ({"digits": 2.0}, "digits is 2.0"),
        ({"scratchpad": -1}, "scratchpad is -1; it must be a whole number of at least 0"),
        ({"reward": "digits"}, "reward is 'digits'; choose 'sum', 'outcome' or 'token'"),
        ({"restricted": True, "scratchpad": 4}, "restricted forbids characters that a scratchpad may need"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as caught:
        Arithmetic(**arguments)
    assert message in str(caught.value)


def test_unknown_characters():
    with pytest.raises(ValueError, match=r"'x' in '4x' is no character of this task"):
        Arithmetic().encode("4x")


@pytest.mark.parametrize("operators", ["+", "+-*"])
def test_its_answers_are_worth_1_and_a_scratchpad_has_none(operators):
    task, generator = Arithmetic(operators), np.random.default_rng(0)
    questions = task.questions(generator, 50)
    tokens = task.answers(questions)
    assert tokens is not None and task.score(questions, tokens, tokens >= 0).reward == pytest.approx(1.0)
    rewards = task.token_rewards(questions, tokens, tokens >= 0)
    assert rewards is not None and rewards.sum(1) == pytest.approx(1.0)
    assert Arithmetic(operators, scratchpad=3).answers(questions) is None
