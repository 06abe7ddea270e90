"""What is wrong with a task, in one sentence, before anybody learns from it."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np

from llm_mdp.own import PACKAGES, error_in_own_code
from llm_mdp_envs.arguments import required, shown
from llm_mdp_envs.episode import (
    Episode,
    advance,
    as_rows,
    check_question,
    check_scores,
    check_token_rewards,
    pad_prompt,
    sequence_of_tokens,
    whole_token,
)
from llm_mdp_envs.task import PAD, Question, Scores, Task, TaskError

LEAST = {"vocab_size": 2, "horizon": 1, "prompt_length": 0, "max_turns": 1}
"""The smallest value of each number that a task says of itself."""


def check_task(task: Any, seed: int = 0) -> None:
    """Raise TaskError if a task cannot be asked: its numbers, questions, replies, action masks and scores, of two
    questions and a short response to each, which are drawn and scored twice, as a task has no state.

    What the task's own code raises is a TaskError with the place in its file; the error itself is the cause.

    Args:
        task: an object of a class derived from `Task`.
        seed: of the two questions.
    """
    try:
        check_form(task)
        _check_answers_to_questions(task, seed)
    except TaskError:
        raise
    except Exception as error:
        if (theirs := error_in_own_code(error)) is None:
            raise
        raise TaskError(theirs) from error


def _check_answers_to_questions(task: Task, seed: int) -> None:
    questions = _same_questions(task, seed)
    for question in questions:
        if not isinstance(words := task.decode(question.prompt), str):
            raise TaskError(f"{_name(task)}.decode gave {words!r:.60}; it must give tokens as a text.")
    responses = [_short_response(task, question, in_turns) for question, in_turns in zip(questions, (False, True))]
    for question, response in zip(questions, responses):
        _check_masks_see_no_secret(task, question, response.tokens)
    tokens, mask = as_rows(responses, task.horizon)
    scores = check_scores(task, task.score(questions, tokens, mask), len(questions))
    _check_parts(task, scores)
    _check_again(task, scores, task.score(_same_questions(task, seed), tokens.copy(), mask.copy()))
    if task.reveals_token_rewards:
        _check_revealed(task, scores, task.token_rewards(questions, tokens, mask), tokens.shape)
    _check_answers(task, task.answers(questions), questions)


def check_form(task: Any) -> None:
    """The part of `check_task` that asks no question: raise TaskError unless this is a task with numbers that fit each
    other, whose methods take what they are given."""
    if isinstance(task, type):
        raise TaskError(f"the task is the class {task.__name__}; make an object of it: {task.__name__}(…).")
    name = _name(task)
    if not isinstance(task, Task):
        raise TaskError(f"the task is {shown(task)}, a {name}; derive its class from llm_mdp_envs.Task.")
    for attribute, least in LEAST.items():
        value = _said(task, attribute, f"a whole number of at least {least}")
        if not _whole(value) or value < least:
            raise TaskError(f"{name}.{attribute} is {value!r}; it must be a whole number of at least {least}.")
    for attribute in ("eos", "end_of_turn"):
        token = _said(task, attribute, "a token or None")
        if token is not None and not (_whole(token) and 0 <= token < task.vocab_size):
            raise TaskError(
                f"{name}.{attribute} is {token!r}, outside the vocabulary 0 … {task.vocab_size - 1}; use one of these "
                f"tokens or None."
            )
    if not isinstance(task.also_ends, tuple) or not all(
        _whole(token) and 0 <= token < task.vocab_size for token in task.also_ends
    ):
        raise TaskError(
            f"{name}.also_ends is {task.also_ends!r}; it must be a tuple of tokens 0 … {task.vocab_size - 1}."
        )
    _check_methods(task)


def _check_methods(task: Task) -> None:
    """Every method that is written anew takes what the method of ours that it stands for is given."""
    for name in (name for name in dir(type(task)) if not name.startswith("_")):
        written_by = [kind for kind in type(task).__mro__ if name in vars(kind)]
        ours = next((vars(kind)[name] for kind in written_by if _is_ours(kind)), None)
        anew = name in vars(task) or not _is_ours(written_by[0])
        if not anew or not isinstance(ours, FunctionType | staticmethod | classmethod):
            continue
        given = required(ours.__get__(task, type(task)))
        words = f"{_name(task)}.{name} must take ({', '.join(given)})"
        if not callable(method := getattr(task, name)):
            raise TaskError(f"{words}; it is {shown(method)}, which is no method.")
        try:
            signature = inspect.signature(method)
        except ValueError:  # some functions of Python's do not say what they take
            continue
        try:
            signature.bind(*given)
        except TypeError:
            raise TaskError(f"{words}; it takes ({', '.join(signature.parameters)}).") from None


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] in PACKAGES


def _name(task: Any) -> str:
    return type(task).__name__


def _said(task: Task, attribute: str, wanted: str) -> Any:
    try:
        return getattr(task, attribute)
    except AttributeError:
        raise TaskError(
            f"{_name(task)} has no {attribute}; set it, {wanted}, in the class or in its constructor."
        ) from None


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@contextmanager
def _refused(remedy: str) -> Iterator[None]:
    """What is found wrong inside becomes a TaskError that says what to do."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise TaskError(f"{str(error).rstrip('.')}; {remedy}.") from error


def _same_questions(task: Task, seed: int) -> list[Question]:
    """Two questions; TaskError if they are none, or if the same generator would ask others."""
    name = _name(task)
    first, again = (_drawn(task, np.random.default_rng(seed)) for _ in range(2))
    remedy = (
        f"{name}.question must return Question(prompt, secret) with a prompt of at most {task.prompt_length} tokens "
        f"in 0 … {task.vocab_size - 1}"
    )
    with _refused(remedy):
        for question in (*first, *again):
            check_question(task, question, f"what {name}.question gave")
    for one, other in zip(first, again):
        if list(one.prompt) != list(other.prompt):
            raise TaskError(
                f"{name}.question gave the prompt {list(one.prompt)!s:.60} and then {list(other.prompt)!s:.60} for the "
                f"same seed; a task has no state, so it must draw with the generator only."
            )
    return first


def _drawn(task: Task, generator: np.random.Generator) -> list[Question]:
    return [task.question(generator) for _ in range(2)]


def _short_response(task: Task, question: Question, in_turns: bool) -> Episode:
    """A response that ends as soon as it may; in turns: one of a word or so a turn, handed over as often as there are
    turns."""
    episode, spoken = Episode(), 0
    closing = (task.end_of_turn, task.eos) if in_turns else (task.eos, task.end_of_turn)
    while episode.finish is None:
        allowed = _allowed(task, question, episode.tokens)
        ends = [token for token in closing if token is not None and allowed[token]]
        words = [token for token in np.flatnonzero(allowed)[:3].tolist() if token not in closing]
        token = ends[0] if ends and (spoken or not in_turns or not words) else (words or ends)[0]
        handed_over = token == task.end_of_turn
        if handed_over and episode.turns + 1 < task.max_turns:
            _check_reply(task, question, (*episode.tokens, token))
        episode, spoken = advance(task, question, episode, token), 0 if handed_over else spoken + 1
    return episode


def _allowed(task: Task, question: Question, tokens: Sequence[int]) -> np.ndarray:
    """(V,) bool; TaskError if the mask is none."""
    array, place = _mask(task, question, tokens), f"after {list(tokens)}"
    if not array.any():
        raise TaskError(f"{_name(task)}.action_mask forbids every token {place:.60}; allow one, such as eos.")
    return array


def _mask(task: Task, question: Question, tokens: Sequence[int]) -> np.ndarray:
    """(V,) bool, all True where the task has no mask; TaskError if the mask is none."""
    mask, place = task.action_mask(question, list(tokens)), f"after {list(tokens)}"
    if mask is None:
        return np.ones(task.vocab_size, dtype=bool)
    array, wanted = np.asarray(mask), f"it must be ({task.vocab_size},) int8, 1 where a token is allowed, or None"
    if array.shape != (task.vocab_size,) or array.dtype.kind not in "biuf":
        raise TaskError(f"{_name(task)}.action_mask gave {array.dtype} of shape {array.shape} {place:.60}; {wanted}.")
    return array != 0


def _check_masks_see_no_secret(task: Task, question: Question, tokens: Sequence[int]) -> None:
    """After every beginning of a response, what the environment wrote included: the same mask without the secret, one
    by one and many at once."""
    if task.action_masks(np.zeros((0, task.prompt_length), np.int64), np.zeros((0, task.horizon), np.int64)) is None:
        return
    name = f"{_name(task)}.action_mask"
    remedy = "a policy obeys it without seeing the secret, so let it depend on the prompt and the tokens alone"
    for length in range(len(tokens) + 1):
        before, hidden = list(tokens[:length]), Question(tuple(question.prompt))
        expected = _mask(task, question, before)
        try:
            found = _mask(task, hidden, before)
        except TaskError:
            raise
        except Exception as error:
            raise TaskError(
                f"{name} fails without the question's secret after {before!s:.60} ({error}); {remedy}."
            ) from error
        if not np.array_equal(found, expected):
            raise TaskError(f"{name} changes after {before!s:.60} when the question's secret is hidden; {remedy}.")
        prompts = pad_prompt(question.prompt, task.prompt_length)[None]
        several = task.action_masks(prompts, as_rows([Episode(tuple(before))], task.horizon)[0])
        if not np.array_equal(np.ones_like(expected) if several is None else np.asarray(several)[0] != 0, expected):
            raise TaskError(
                f"{_name(task)}.action_masks and action_mask differ after {before!s:.60}; they must allow the same "
                f"tokens."
            )


def _check_reply(task: Task, question: Question, tokens: tuple[int, ...]) -> None:
    name = f"{_name(task)}.reply"
    reply = task.reply(question, tokens)
    if reply is not None:
        with _refused(f"{name} must return tokens in 0 … {task.vocab_size - 1}, or None where nothing is said"):
            for place, token in enumerate(sequence_of_tokens(reply, f"what {name} gave")):
                whole_token(token, task.vocab_size, f"what {name} gave at place {place}")


def _check_parts(task: Task, scores: Scores) -> None:
    if scores.parts and not _close(total := np.sum(list(scores.parts.values()), axis=0), scores.reward):
        raise TaskError(
            f"{_name(task)}.score gave parts ({', '.join(scores.parts)}) that sum to {total.tolist()} where the "
            f"rewards are {scores.reward.tolist()}; parts are summands of the reward, other figures go into details."
        )


def _check_again(task: Task, first: Scores, again: Scores) -> None:
    again = check_scores(task, again, len(first.reward))
    if not _close(first.reward, again.reward):
        raise TaskError(
            f"{_name(task)}.score gave the rewards {first.reward.tolist()} and then {again.reward.tolist()} to the "
            f"same responses to questions of the same seed; a task has no state, so leave chance to the generator of "
            f"`question`."
        )


def _check_revealed(task: Task, scores: Scores, rewards: np.ndarray | None, shape: tuple[int, ...]) -> None:
    total = check_token_rewards(task, rewards, shape).sum(1)
    if not _close(total, scores.reward):
        raise TaskError(
            f"{_name(task)}.token_rewards sum to {total.tolist()} where the rewards are {scores.reward.tolist()}; they "
            f"must be equal if reveals_token_rewards is True."
        )


def _check_answers(task: Task, answers: np.ndarray | None, questions: Sequence[Question]) -> None:
    if answers is None:
        return
    n = len(questions)
    array = np.asarray(answers)
    if array.ndim != 2 or len(array) != n or array.shape[1] > task.horizon or array.dtype.kind not in "iu":
        raise TaskError(
            f"{_name(task)}.answers gave {array.dtype} of shape {array.shape} for {n} questions; it must be ({n}, at "
            f"most {task.horizon}) whole numbers, -1 after the end, or None."
        )
    if array.min(initial=0) < PAD or array.max(initial=0) >= task.vocab_size:
        raise TaskError(
            f"{_name(task)}.answers gave tokens from {array.min()} to {array.max()}; they must be in "
            f"0 … {task.vocab_size - 1}, and -1 after the end."
        )
    for question, answer in zip(questions, array.tolist()):
        own = [token for token in answer if token != PAD]
        for place, token in enumerate(own if task.end_of_turn is None else []):
            if not _mask(task, question, own[:place])[token]:
                raise TaskError(
                    f"{_name(task)}.answers gave the token {token} at place {place} of {own!s:.60}, which its "
                    f"action_mask forbids there; allow what a right answer holds."
                )


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding; what is not finite is close to nothing."""
    return bool(np.allclose(one, other, rtol=1e-5, atol=1e-6))
