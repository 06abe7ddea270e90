"""Whose turn it is: conversations by hand, replayed, and with everything that a policy may babble."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.turns import (
    Outcome,
    TurnTask,
    alternating_mask,
    check_words,
    mask_of,
    play,
    split_turns,
)

OVER, CLOSE, LEAVE = 2, 3, 4


class Echo(Task):
    """Repeats the turn as it stands, closing token included, so replies have no token of their own; OVER ends the
    conversation."""

    vocab_size, eos, end_of_turn = 5, LEAVE, CLOSE
    prompt_length = 0

    def __init__(self, horizon: int = 12, max_turns: int = 3):
        self.horizon, self.max_turns = horizon, max_turns

    def question(self, generator):
        return Question(())

    def reply(self, question, tokens):
        turns = [[]]
        for token in tokens:
            turns[-1].append(int(token))
            if token == CLOSE:
                turns.append([])
        return None if OVER in turns[-2] else tuple(turns[-2])

    def score(self, questions, tokens, mask):
        return Scores(np.zeros(len(questions)))


class Tally(TurnTask):
    """Says how many turns came before and repeats the first of them: replies may depend on the whole conversation."""

    words = ("zero", "one", "two", "three", ".", "<eos>")
    vocab_size, end_of_turn, eos = 6, 4, 5
    horizon, max_turns, prompt_length = 40, 4, 0
    part_names = ("turns",)

    def question(self, generator):
        return Question(())

    def outcome(self, question, earlier, turn):
        return Outcome((len(earlier), *(earlier[0] if earlier else ())), {"turns": float(len(earlier))})


TASKS: dict[str, Task] = {
    "consultation": Consultation(),
    "short consultation": Consultation(max_turns=4, horizon=17),
    "guess": GuessNumber(20, max_turns=4),
    "short guess": GuessNumber(horizon=13),
    "tally": Tally(),
    "echo": Echo(),
}
WORDED: dict[str, TurnTask] = {name: task for name, task in TASKS.items() if isinstance(task, TurnTask)}


def questions(task: Task) -> st.SearchStrategy[Question]:
    return st.integers(0, 2**32 - 1).map(lambda seed: task.question(np.random.default_rng(seed)))


def streams(task: Task) -> st.SearchStrategy[list[int]]:
    """Policy tokens, some of them well-formed turns, enough for any episode."""
    anything = st.lists(st.integers(0, task.vocab_size - 1), max_size=4)
    within = st.lists(st.integers(0, task.vocab_size - 1).filter(lambda w: w != task.eos), max_size=3).map(
        lambda t: [*t, task.end_of_turn]
    )
    asking = st.integers(0, task.vocab_size - 1).map(lambda word: [0, word, task.end_of_turn])
    deciding = st.integers(0, task.vocab_size - 1).map(lambda word: [1, word, task.end_of_turn])
    turns = st.lists(st.one_of(within, asking, asking, deciding, anything), max_size=14)
    return turns.map(lambda turns: [token for turn in turns for token in turn] + [task.end_of_turn] * task.horizon)


def converse(task: Task, question: Question, stream: list[int]) -> tuple[list[int], list[bool], list[tuple[int, ...]]]:
    """Tokens, mask and replies, straight from the definition of an episode."""
    tokens: list[int] = []
    mask: list[bool] = []
    replies = []
    for token in stream:
        tokens, mask = [*tokens, token], [*mask, True]
        if token == task.eos or len(tokens) == task.horizon:
            break
        if token == task.end_of_turn:
            reply = task.reply(question, tokens) if len(replies) + 1 < task.max_turns else None
            if reply is None:
                break
            replies.append(tuple(reply[: task.horizon - len(tokens)]))
            tokens, mask = [*tokens, *replies[-1]], [*mask, *[False] * len(replies[-1])]
            if len(tokens) == task.horizon:
                break
    return tokens, mask, replies


def turns_in(stream: list[int], task: Task) -> list[list[int]]:
    """The stream cut behind every token that closes a turn."""
    turns: list[list[int]] = [[]]
    for token in stream:
        turns[-1].append(token)
        if token in (task.end_of_turn, task.eos):
            turns.append([])
    return turns[:-1]


def check_rewards(task: TurnTask, rows: list[tuple[Question, list[int]]]) -> None:
    """Hidden rewards of the turns, graded parts and rewards of the responses agree."""
    tokens, mask = np.full((len(rows), task.horizon), -1), np.zeros((len(rows), task.horizon), dtype=bool)
    for number, (question, stream) in enumerate(rows):
        written, whose, _ = converse(task, question, stream)
        tokens[number, : len(written)], mask[number, : len(written)] = written, whose
    asked = [question for question, _ in rows]
    scores = task.score(asked, tokens, mask)
    hidden = np.stack([task.hidden_turn_rewards(*row) for row in zip(asked, tokens, mask)])
    assert scores.reward.shape == (len(rows),) and np.isfinite(scores.reward).all()
    np.testing.assert_allclose(hidden.sum(-1), scores.reward, atol=1e-12)
    np.testing.assert_allclose(sum(scores.parts.values()), scores.reward, atol=1e-12)
    assert tuple(scores.parts) == task.part_names
    assert not hidden[~mask].any(), "no reward for what the environment wrote"
    closing = np.concatenate([~mask[:, 1:], np.ones((len(rows), 1), dtype=bool)], axis=1)
    assert not hidden[~closing].any(), "rewards stand on the last token of a turn"
    assert np.array_equal(alternating_mask(tokens, task.end_of_turn), mask)


def check_memory(task: TurnTask, seed: int, stream: list[int]) -> None:
    """The same prefixes get the same replies in any order, also when the question is drawn anew."""
    question, again = task.question(np.random.default_rng(seed)), task.question(np.random.default_rng(seed))
    assert question == again
    tokens, mask, _ = converse(task, question, stream)
    due = [t + 1 for t in range(len(tokens)) if mask[t] and tokens[t] == task.end_of_turn]
    replies = {t: task.reply(question, tokens[:t]) for t in due}
    assert {t: task.reply(question, tuple(tokens[:t])) for t in reversed(due)} == replies
    assert {t: task.reply(again, np.array(tokens[:t])) for t in due} == replies


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, turns, tokens, mask",
    [
        (Echo(), [[0, 1], [1]], [0, 1, 3, 0, 1, 3, 1, 3, 1, 3], [1, 1, 1, 0, 0, 0, 1, 1, 0, 0]),
        (Echo(), [[]], [3, 3], [1, 0]),
        (Echo(), [[0, CLOSE]], [0, 3, 0, 3], [1, 1, 0, 0]),
        (Echo(), [[0, LEAVE], [1]], [0, 4], [1, 1]),
        (Echo(), [[OVER], [1]], [2, 3], [1, 1]),
        (Echo(), [[0], [1], [0], [1]], [0, 3, 0, 3, 1, 3, 1, 3, 0, 3], [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]),
        (Echo(horizon=5), [[0, 1], [1]], [0, 1, 3, 0, 1], [1, 1, 1, 0, 0]),
        (Echo(horizon=6), [[0, 1], [1]], [0, 1, 3, 0, 1, 3], [1, 1, 1, 0, 0, 0]),
        (Echo(horizon=3), [[0, 1], [1]], [0, 1, 3], [1, 1, 1]),
        (Echo(horizon=3), [[0, 1, 0, 1]], [0, 1, 0], [1, 1, 1]),
        (Echo(), [], [], []),
    ],
    ids=[
        "two turns",
        "empty turn",
        "closed already",
        "eos",
        "over",
        "limit",
        "reply cut",
        "reply fits",
        "no reply",
        "turn cut",
        "none",
    ],
)
def test_conversations_by_hand(task, turns, tokens, mask):
    played, whose = play(task, Question(()), turns)
    assert played.tolist() == tokens
    assert whose.tolist() == [bool(flag) for flag in mask]
    assert (played.dtype, whose.dtype) == (np.int64, bool)


def test_a_task_without_turns_cannot_be_played():
    task = Echo()
    task.end_of_turn = None
    with pytest.raises(ValueError, match="Echo has one turn only"):
        play(task, Question(()), [[0]])


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([0, CLOSE, 1], "the token 1 at place 2, where the environment writes 0"),
        ([0, LEAVE, 1], r"goes on at place 2, after its end \(by eos\)"),
        ([OVER, CLOSE, 0], r"after its end \(by environment\)"),
        ([0] * 13, r"after its end \(by horizon\)"),
        ([0, -1], "is -1, outside the vocabulary"),
    ],
)
def test_mask_of_refuses_what_cannot_have_happened(tokens, message):
    with pytest.raises(ValueError, match=message):
        mask_of(Echo(), Question(()), tokens)


def test_turns_are_split_at_the_mask():
    tokens = np.array([5, 9, 7, 9, 9, 7, 9, 6, 8, -1])
    mask = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 0], dtype=bool)
    turns = split_turns(tokens, mask, (9, 8))
    assert [(turn.words, turn.last) for turn in turns] == [((5,), 1), ((), 4), ((6,), 8)]
    assert [turn.words for turn in split_turns(tokens[:8], mask[:8], (9, 8))] == [(5,), (), (6,)], (
        "the end closes a turn too"
    )
    assert split_turns(tokens[:0], mask[:0], (9, 8)) == []


def test_speakers_alternate():
    tokens = np.array([[5, 9, 7, 9, 9, 7, 9, 6, -1, -1], [9, 9, 9, 9, 5, 5, 5, 9, 9, 5]])
    expected = [[1, 1, 0, 0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 1, 1, 1, 1, 0, 1]]
    assert alternating_mask(tokens, 9).astype(int).tolist() == expected


def test_words_and_dialogue():
    task = TASKS["guess"]
    question = Question(task.encode("2 0 ."), secret=7)
    tokens, _ = play(task, question, [task.encode(text) for text in ["1 0", "", "7"]])
    assert task.decode(tokens) == "1 0 .\nlower .\n.\nunclear .\n7 ."
    assert (
        task.dialogue(question, tokens)
        == "host: 2 0 .\nguesser: 1 0 .\nhost: lower .\nguesser: .\nhost: unclear .\nguesser: 7 ."
    )
    assert task.decode([7, -1, -1]) == "7"
    with pytest.raises(ValueError, match="'ten' is not among the words of GuessNumber; they are 0 1 2"):
        task.encode("1 ten")


def test_replies_may_depend_on_the_whole_conversation():
    task = Tally()
    tokens, mask = play(task, Question(()), [task.encode(text) for text in ["three two", "one", "", "zero", "zero"]])
    assert task.decode(tokens) == "three two .\nzero .\none .\none three two .\n.\ntwo three two .\nzero ."
    assert task.hidden_turn_rewards(Question(()), tokens, mask)[[2, 6, 11, 17]].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "text, turns", [("7 . lower . 7 .", 1), ("9 . lower . 7 . lower . 7 .", 2), ("9 . lower . " * 6 + "7 .", 4)]
)
def test_nothing_after_the_end_of_a_conversation_is_worth_anything(text, turns):
    """Rows that no conversation can have, forged to find the number twice, or after the turn limit."""
    task = GuessNumber(20, max_turns=4)
    tokens = np.array(task.encode(text))
    mask = alternating_mask(tokens, task.end_of_turn)
    end = split_turns(tokens, mask, (task.end_of_turn,))[turns - 1].last + 1
    whole, cut = (
        float(task.score([Question((), 7)], tokens[None, :n], mask[None, :n]).reward[0]) for n in (len(tokens), end)
    )
    assert whole == cut


# --- whatever the policy writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_stream_ends_and_its_mask_parts_policy_from_environment(name, data):
    task = TASKS[name]
    question, stream = data.draw(questions(task)), data.draw(streams(task))
    tokens, mask, replies = converse(task, question, stream)
    assert 1 <= len(tokens) <= task.horizon
    assert [token for token, own in zip(tokens, mask) if own] == stream[: sum(mask)]
    assert [token for token, own in zip(tokens, mask) if not own] == [token for reply in replies for token in reply]
    played, whose = play(task, question, turns_in(stream, task))
    assert (played.tolist(), whose.tolist()) == (tokens, mask)
    for t in range(len(tokens) + 1):
        assert mask_of(task, question, tokens[:t]).tolist() == mask[:t]


@pytest.mark.parametrize("name", WORDED)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_hidden_turn_rewards_sum_to_the_reward_of_the_response(name, data):
    task = WORDED[name]
    check_rewards(task, data.draw(st.lists(st.tuples(questions(task), streams(task)), min_size=1, max_size=3)))


@pytest.mark.parametrize("name", WORDED)
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_replies_and_rewards_depend_on_earlier_tokens_only(name, data):
    task = WORDED[name]
    question, one, other = data.draw(questions(task)), data.draw(streams(task)), data.draw(streams(task))
    shared = data.draw(st.integers(0, task.horizon))
    first, second = (converse(task, question, stream) for stream in (one, one[:shared] + other))
    alike = 0
    for a, b in zip(zip(*first[:2]), zip(*second[:2])):
        if a != b:
            break
        alike += 1
    assert sum(first[1][:alike]) >= min(shared, sum(first[1])), "the conversations part only where the policy does"
    hidden = [task.hidden_turn_rewards(question, np.array(t), np.array(m)) for t, m, _ in (first, second)]
    closed = [t for t in range(alike) if first[0][t] in (task.end_of_turn, task.eos)]
    assert hidden[0][closed].tolist() == hidden[1][closed].tolist()


@pytest.mark.parametrize("name", WORDED)
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_task_has_no_memory(name, data):
    task = WORDED[name]
    check_memory(task, data.draw(st.integers(0, 2**32 - 1)), data.draw(streams(task)))


@pytest.mark.parametrize("name", WORDED)
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_words_read_back(name, data):
    task = WORDED[name]
    tokens = data.draw(st.lists(st.integers(0, task.vocab_size - 1)))
    assert list(task.encode(task.decode(tokens))) == tokens


@pytest.mark.parametrize("name", WORDED)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_the_token_environment_goes_the_same_way(name, data):
    task = WORDED[name]
    question, stream = data.draw(questions(task)), data.draw(streams(task))
    tokens, mask, _ = converse(task, question, stream)
    env = TokenEnv(task)
    env.reset(options={"question": question})
    for action in stream[: sum(mask)]:
        observation, reward, terminated, _, info = env.step(action)
    assert terminated
    response = observation[task.prompt_length :]
    assert response[: len(tokens)].tolist() == tokens and (response[len(tokens) :] == -1).all()
    assert env.mask[: len(tokens)].tolist() == mask
    assert reward == pytest.approx(
        task.hidden_turn_rewards(question, np.array(tokens), np.array(mask)).sum(), abs=1e-12
    )
    assert set(info["parts"]) == set(task.part_names)


# --- planted bugs -----------------------------------------------------------------------------------------------------


class Forgetful(GuessNumber):
    """Planted bug: says "higher" or "lower" by how often it was asked."""

    asked = 0

    def outcome(self, question, earlier, turn):
        self.asked += 1
        outcome = super().outcome(question, earlier, turn)
        return replace(outcome, reply=(10 + self.asked % 2,)) if outcome.reply else outcome


class Prophet(GuessNumber):
    """Planted bug: the parts do not add up to what the turns are worth, as the score is made elsewhere."""

    def score(self, questions, tokens, mask):
        scores = super().score(questions, tokens, mask)
        return replace(scores, reward=scores.reward + 0.01)


STREAM = [1, 13, 2, 13, 10, 13, 3, 13, 13]


@pytest.mark.parametrize("make, caught", [(GuessNumber, False), (Forgetful, True), (Prophet, True)])
def test_planted_bugs_are_caught(make, caught):
    task = make(20, max_turns=4)
    expectation = pytest.raises(AssertionError) if caught else nullcontext()
    with expectation:
        check_memory(task, 1, STREAM)
        check_rewards(task, [(task.question(np.random.default_rng(1)), STREAM)])


# --- bad arguments ----------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="the list has the word 'a b'; a word is a string without white space"):
        check_words(["a b"], "the list")
    with pytest.raises(ValueError, match="the list has the word 'a' twice"):
        check_words(["a", "b", "a"], "the list")
