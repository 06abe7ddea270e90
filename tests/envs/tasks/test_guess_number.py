"""Guess the number: grammar, rewards, and bisection as the known optimum."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from llm_mdp_envs.task import Question
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.turns import play

Guesser = Callable[[int, int], int]
"""(lowest, highest number that is still possible) -> guess."""


def says(task: GuessNumber, number: int) -> tuple[int, ...]:
    return task.encode(" ".join(str(number)))


def asked(task: GuessNumber, secret: int) -> Question:
    return Question((*says(task, task.highest), task.end_of_turn), secret)


def reward(task: GuessNumber, question: Question, turns: list[tuple[int, ...]]) -> float:
    tokens, mask = play(task, question, turns)
    return float(task.score([question], tokens[None], mask[None]).reward[0])


def playing(task: GuessNumber, question: Question, guesser: Guesser) -> tuple[int, float]:
    """Turns needed and reward of a guesser that sees the replies only."""
    low, high, turns = 1, task.highest, []
    while len(turns) < task.max_turns:
        guess = guesser(low, high)
        turns.append(says(task, guess))
        tokens, _ = play(task, question, turns)
        heard = task.words[tokens[-2]]
        low, high = (guess + 1, high) if heard == "higher" else (low, guess - 1) if heard == "lower" else (low, high)
        if heard not in ("higher", "lower"):
            break
    return len(turns), reward(task, question, turns)


@cache
def fewest_turns(n: int) -> int:
    """Total over n numbers of the turns that the best guesser needs, by dynamic programming."""
    return 0 if n == 0 else n + min(fewest_turns(k) + fewest_turns(n - 1 - k) for k in range(n))


@pytest.mark.parametrize("highest", [1, 2, 9, 10, 37, 100])
def test_bisection_is_optimal(highest):
    task = GuessNumber(highest)
    needed, rewards = zip(
        *(playing(task, asked(task, secret), lambda low, high: (low + high) // 2) for secret in range(1, highest + 1))
    )
    assert sum(needed) == fewest_turns(highest)
    assert np.mean(rewards) == pytest.approx(1 - (fewest_turns(highest) / highest - 1) / task.max_turns)
    assert task.best_reward() == pytest.approx(np.mean(rewards))


@pytest.mark.parametrize("highest, max_turns", [(1, 1), (5, 1), (5, 2), (6, 3), (20, 3), (100, 4)])
def test_the_best_reward_where_turns_are_few(highest, max_turns):
    """Against the best of all guesses at every turn, by dynamic programming over how many numbers are possible."""

    @cache
    def best(possible: int, turn: int) -> float:
        if possible == 0 or turn == max_turns:
            return 0.0
        now = 1 - turn / max_turns
        return now + max(best(k, turn + 1) + best(possible - 1 - k, turn + 1) for k in range(possible))

    assert GuessNumber(highest, max_turns).best_reward() == pytest.approx(best(highest, 0) / highest)


def test_the_best_reward_is_known_where_its_games_fit():
    assert GuessNumber(100, horizon=39).best_reward() == GuessNumber(100).best_reward()
    assert GuessNumber(100, horizon=38).best_reward() is None


def test_bisection_beats_other_guessers():
    task, generator = GuessNumber(), np.random.default_rng(0)
    secrets = range(1, 101, 3)
    bisecting, anywhere, counting = (
        np.mean([playing(task, asked(task, secret), guesser)[1] for secret in secrets])
        for guesser in (
            lambda low, high: (low + high) // 2,
            lambda low, high: int(generator.integers(low, high + 1)),
            lambda low, high: low,
        )
    )
    assert bisecting > anywhere + 0.05 > counting + 0.3


def test_the_number_is_drawn_uniformly_and_the_prompt_is_always_the_same():
    task = GuessNumber(5)
    drawn = [task.question(np.random.default_rng(seed)) for seed in range(2000)]
    assert {question.prompt for question in drawn} == {task.encode("5 .")}
    counts = np.bincount([question.secret for question in drawn], minlength=6)
    assert counts[0] == 0 and abs(counts[1:] - 400).max() < 100


@pytest.mark.parametrize("text", ["", "0", "0 7", "1 0 1", "9 9 9 9", "higher", "7 lower", "lower 7", "unclear"])
def test_malformed_turns_are_answered_and_cost_something(text):
    task = GuessNumber(100, malformed_penalty=0.05)
    question = asked(task, 7)
    tokens, _ = play(task, question, [task.encode(text)])
    assert task.decode(tokens[-2:]) == "unclear ."
    without, with_it = (
        reward(task, question, [says(task, 9)]),
        reward(task, question, [says(task, 9), task.encode(text)]),
    )
    assert with_it == pytest.approx(without - 0.05)


def test_endless_digits_do_not_crash():
    task = GuessNumber(100, horizon=6000)
    question = asked(task, 7)
    assert reward(task, question, [(9,) * 5000]) == pytest.approx(-0.05)
    assert reward(task, question, [(9,) * 7000]) == pytest.approx(-0.05)


@pytest.mark.parametrize(
    "turns, value",
    [
        (["7"], 1.0),
        (["5 0", "7"], 0.9),
        (["5 0", "x", "7"], 0.75),
        (["5 0"] * 9 + ["7"], 0.1),
        (["5 0"] * 10 + ["7"], 0.0),
        (["5 0", "7 <eos>"], 0.9),
        (["5 0 <eos>", "7"], 0.0),
        (["7", "x"], 1.0),
        ([], 0.0),
    ],
    ids=[
        "at once",
        "second",
        "malformed between",
        "last turn",
        "too late",
        "eos closes",
        "left",
        "nothing after the end",
        "no turn",
    ],
)
def test_rewards_by_hand(turns, value):
    task = GuessNumber(100, max_turns=10, malformed_penalty=0.05)
    said = [task.encode(text.replace("x", "unclear")) for text in turns]
    assert reward(task, asked(task, 7), said) == pytest.approx(value)


def test_the_host_never_says_a_digit():
    task, generator = GuessNumber(), np.random.default_rng(0)
    for _ in range(100):
        question = task.question(generator)
        turns = [tuple(generator.integers(0, 13, size=generator.integers(0, 4)).tolist()) for _ in range(10)]
        tokens, mask = play(task, question, turns)
        assert set(tokens[~mask].tolist()) <= set(task.encode("higher lower unclear ."))


def test_a_well_formed_game_fits_the_horizon():
    task = GuessNumber(1000, max_turns=3)
    tokens, _ = play(task, asked(task, 1), [says(task, 1000)] * 3)
    assert task.decode(tokens).count("1 0 0 0 .") == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"highest": 0}, "highest is 0; it must be a whole number"),
        ({"highest": 10**30}, "highest is 10+; it must be a whole number"),
        ({"highest": "100"}, "highest is '100'"),
        ({"highest": True}, "highest is True"),
        ({"max_turns": 10**9}, "max_turns is 1000000000; it must be a whole number"),
        ({"malformed_penalty": float("nan")}, "malformed_penalty is nan"),
        ({"malformed_penalty": None}, "malformed_penalty is None"),
        ({"horizon": "long"}, "horizon is 'long'"),
        ({"max_turns": 2.5}, "max_turns is 2.5"),
        ({"horizon": 0}, "horizon is 0"),
        ({"malformed_penalty": -1}, "malformed_penalty is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GuessNumber(**arguments)
