"""Games of other libraries as tasks: one of our own that draws from global generators, and those that are installed."""

import importlib.util
import pickle
import random
import re

import numpy as np
import pytest

from llm_mdp_envs import TokenEnv, check_task
from llm_mdp_envs.adapters.games import TextGame, gem_game, textarena_game
from llm_mdp_envs.episode import replay
from llm_mdp_envs.task import TaskError
from llm_mdp_envs.text_turns import TextTurns


class Dice:
    """Draws from both global generators, at the beginning and in every turn."""

    def start(self, seed: int) -> str:
        self.sum, self.turns = 0, 0
        return f"Say more or stop. First: {self.roll()}"

    def roll(self) -> int:
        face = random.randint(1, 6) * 10 + int(np.random.randint(1, 7))  # noqa: NPY002
        self.sum += face
        return face

    def say(self, text: str) -> tuple[str | None, float]:
        self.turns += 1
        return (None, float(self.sum)) if "stop" in text else (f"Now {self.roll()}", -1.0)


class Forgetful(Dice):
    """Another game every time: nothing of it comes from the seed."""

    count = 0

    def roll(self) -> int:
        Forgetful.count += 1
        return Forgetful.count


def needs(module: str, remedy: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is missing: {remedy}")


needs_gem = needs("gem", "pip install --no-deps gem-llm==0.1.0")
needs_textarena = needs("textarena", "pip install textarena==0.7.4")


def played(task: TextTurns, seed: int, said: list[str]) -> tuple[list[int], float]:
    question = task.question(np.random.default_rng(seed))
    tokens, _ = task.converse(question, said)
    return tokens.tolist(), float(replay(task, [question], tokens[None]).reward[0])


def test_a_game_is_replayed_from_its_seed_and_leaves_the_global_generators_alone():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), float(np.random.random())  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = played(TextGame(Dice), 0, ["more", "more", "stop"])
    assert (random.random(), float(np.random.random())) == expected  # noqa: NPY002
    assert played(TextGame(Dice), 0, ["more", "more", "stop"]) == first
    assert played(TextGame(Dice), 1, ["more", "more", "stop"]) != first
    check_task(TextGame(Dice))


def test_games_that_go_on_in_turns_do_not_disturb_each_other():
    """Two games, one turn here and one there, are the same as each by itself; so is one that branches."""
    task, alone = TextGame(Dice), TextGame(Dice)
    said = ["more"] * 4 + ["stop"]
    questions = [task.question(np.random.default_rng(seed)) for seed in (0, 1)]
    for length in range(1, 6):
        for question in questions:
            task.converse(question, said[:length])
    for question in questions:
        again = alone.ask(question.secret.text, question.secret.secret)
        assert task.converse(question, said)[0].tolist() == alone.converse(again, said)[0].tolist()
    branch = task.converse(questions[0], ["more", "something else", "stop"])[0].tolist()
    again = alone.ask(questions[0].secret.text, questions[0].secret.secret)
    assert branch == alone.converse(again, ["more", "something else", "stop"])[0].tolist()


def test_a_game_goes_as_it_would_by_itself():
    """Its generators go on from turn to turn, whatever happens in between."""
    task, game = TextGame(Dice), Dice()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    alone = [game.start(5), *(game.say("more")[0] for _ in range(4))]
    question = task.ask(alone[0], 5)
    tokens, mask = task.converse(question, ["more"] * 4)
    told = re.findall(r"Now \d+", task.decode(tokens[~mask]))
    assert told == alone[1:] and len(set(told)) > 1


def test_a_game_that_does_not_keep_to_its_seed_is_found():
    with pytest.raises(TaskError, match="same seed"):
        check_task(TextGame(Forgetful))


def test_a_task_with_games_is_pickled():
    task = TextGame(Dice)
    first = played(task, 3, ["more", "stop"])
    assert played(pickle.loads(pickle.dumps(task)), 3, ["more", "stop"]) == first


def test_few_games_are_few():
    task = TextGame(Dice, games=2)
    generator = np.random.default_rng(0)
    assert {task.question(generator).secret.secret for _ in range(20)} == {0, 1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"make": 3}, "make is 3"),
        ({"make": Dice, "games": 0}, "games is 0"),
        ({"make": Dice, "max_turns": 0}, "max_turns is 0"),
    ],
)
def test_arguments(given, words):
    with pytest.raises(ValueError, match=words):
        TextGame(**given)


@pytest.mark.parametrize("make", [gem_game, textarena_game])
def test_a_library_that_is_missing(make, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", _missing)
    with pytest.raises(ImportError, match=r"needs the package .*pip install"):
        make("game:Nothing-v0")


def _missing(name: str):
    raise ImportError(f"no {name}")


def bisect(task: TextGame, seed: int, form: str, highest: int) -> float:
    """The reward of a player that halves what is left, reading the game's own words."""
    env, low, high = TokenEnv(task), 1, highest
    observation, _ = env.reset(seed=seed)
    reward, over = 0.0, False
    while not over:
        guess = (low + high) // 2
        for token in task.encode_response(form % guess):
            observation, reward, over, _, _ = env.step(token)
        told = task.decode([token for token in observation if token >= 0])
        hints = re.findall(r"\b(higher|lower)\b(?! or)", told)
        low, high = (guess + 1, high) if hints and hints[-1] == "higher" else (low, guess - 1)
    return float(reward)


@needs_gem
def test_a_game_of_gem_is_played():
    task = TextGame(gem_game("game:GuessTheNumber-v0-easy"), max_turns=4)
    check_task(task)
    assert [bisect(task, seed, "I guess \\boxed{%d}.", 10) for seed in range(6)] == [1.0] * 6
    question = task.question(np.random.default_rng(0))
    tokens, _ = task.converse(question, ["no guess"])
    assert replay(task, [question], tokens[None]).reward[0] < 0.5


@needs_gem
def test_another_game_of_gem_is_replayed():
    task = TextGame(gem_game("game:Mastermind-v0-easy"), max_turns=2)
    check_task(task)
    assert played(task, 0, ["\\boxed{1 2}", "\\boxed{2 1}"]) == played(task, 0, ["\\boxed{1 2}", "\\boxed{2 1}"])


@needs_gem
def test_an_unknown_game_of_gem():
    with pytest.raises(ValueError, match="Nothing-v0"):
        TextGame(gem_game("game:Nothing-v0")).question(np.random.default_rng(0))


@needs_textarena
def test_a_game_of_textarena_is_played():
    task = TextGame(textarena_game("GuessTheNumber-v0"))
    check_task(task)
    assert [bisect(task, seed, "[%d]", 20) for seed in range(6)] == [1.0] * 6


@needs_textarena
def test_a_game_of_textarena_for_two():
    with pytest.raises(ValueError, match="TicTacToe-v0 is no game for one player"):
        TextGame(textarena_game("TicTacToe-v0")).question(np.random.default_rng(0))
