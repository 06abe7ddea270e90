"""How an episode goes on, of any task: token by token (`advance`), along given tokens (`follow`), and whole responses
scored at once (`replay`)."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.task import PAD, Question, Scores, Task, TaskError

FINISH = ("eos", "horizon", "environment")
"""Why a response ended, in the order of `llm_mdp.sampling.evidence.Finish`: by its end token, by length, because the
conversation was over."""


@dataclass(frozen=True)
class Episode:
    """How far a response is."""

    tokens: tuple[int, ...] = ()
    """Response so far, what the environment wrote included."""
    mask: tuple[bool, ...] = ()
    """True where the policy chose the token."""
    turns: int = 0
    """Turns that the policy has handed over."""
    finish: str | None = None
    """One of `FINISH`, None while it goes on."""


def advance(task: Task, question: Question, episode: Episode, token: int) -> Episode:
    """The response after one more token of the policy and, if that hands over the turn, the environment's reply (cut at
    the horizon)."""
    tokens, mask, turns = (*episode.tokens, token), (*episode.mask, True), episode.turns
    if token in task.turn_ends:
        turns += 1
        reply = task.reply(question, tokens) if turns < task.max_turns else None
        if reply is None:
            return Episode(tokens, mask, turns, "eos" if token in task.ends else "environment")
        written = tuple(whole_token(t, task.vocab_size, f"a token of {type(task).__name__}'s reply") for t in reply)
        written = written[: task.horizon - len(tokens)]
        tokens, mask = tokens + written, mask + (False,) * len(written)
    elif token in task.ends:
        return Episode(tokens, mask, turns, "eos")
    return Episode(tokens, mask, turns, "horizon" if len(tokens) >= task.horizon else None)


def follow(task: Task, question: Question, tokens: Sequence[int], name: str = "the response") -> Episode:
    """Replay a response, or the beginning of one, to learn whose its tokens are. A reply that is missing at its end is
    written.

    Raises:
        ValueError, TypeError: naming the place where a token is outside the vocabulary, comes after the end, or is not
            what the environment writes there.
    """
    given = tuple(
        whole_token(token, task.vocab_size, f"{name}[{place}]")
        for place, token in enumerate(sequence_of_tokens(tokens, name))
    )
    episode = Episode()
    while len(episode.tokens) < len(given):
        place = len(episode.tokens)
        if episode.finish is not None:
            raise ValueError(f"{name} goes on at place {place}, after its end (by {episode.finish}); cut it there.")
        episode = advance(task, question, episode, given[place])
        for here in range(place, min(len(episode.tokens), len(given))):
            if episode.tokens[here] != given[here]:
                raise ValueError(
                    f"{name} has the token {given[here]} at place {here}, where the environment writes "
                    f"{episode.tokens[here]}; "
                    "it belongs to another question or another task."
                )
    return episode


def begun(task: Task, question: Question, prefix: Sequence[int], name: str) -> Episode:
    """`follow`, for the beginning of a response that is to go on; ValueError if it has ended."""
    episode = follow(task, question, prefix, name)
    if episode.finish is not None:
        raise ValueError(f"{name} is a complete response (it ended by {episode.finish}); leave out its end.")
    return episode


def replay(task: Task, questions: Sequence[Question], token_rows: np.ndarray) -> Scores:
    """Score whole responses at once, as stepping through them would.

    Args:
        questions: N of them.
        token_rows: (N, T) integers, T ≤ horizon, -1 after the end; with turns, what the environment wrote included
            (whose tokens are whose is worked out again). Action masks do not apply.

    Returns:
        Reward (N,) and parts.

    Raises:
        ValueError, TypeError: naming the first response that is unfinished, goes on after its end, or contradicts the
        environment.
    """
    for number, question in enumerate(sequence_of_tokens(questions, "questions", "Questions, one a response")):
        if not isinstance(question, Question):
            raise TypeError(
                f"questions[{number}] is {shown(question)}; it must be a Question of {type(task).__name__}."
            )
    rows, n = np.asarray(token_rows), len(questions)
    if rows.ndim != 2 or len(rows) != n or rows.shape[1] > task.horizon:
        raise ValueError(f"token_rows have shape {rows.shape}; for {n} questions it is ({n}, at most {task.horizon}).")
    if rows.dtype.kind not in "iu":
        raise TypeError(f"token_rows are {rows.dtype}; tokens are whole numbers.")
    tokens = np.full((len(rows), task.horizon), PAD, dtype=np.int64)
    tokens[:, : rows.shape[1]] = rows
    mask = (
        _mask_of_single_turns(task, tokens) if task.end_of_turn is None else _mask_by_replaying(task, questions, tokens)
    )
    return check_scores(task, task.score(questions, tokens, mask), len(tokens))


def _mask_of_single_turns(task: Task, tokens: np.ndarray) -> np.ndarray:
    mask = tokens != PAD
    ends = np.isin(tokens, task.ends)
    length = mask.sum(1)
    ended_before = np.cumsum(ends, axis=1) - ends > 0
    wrong = (
        (tokens < PAD)
        | (tokens >= task.vocab_size)
        | (mask & ended_before)
        | (mask != (np.arange(task.horizon) < length[:, None]))
    )
    unfinished = (length < task.horizon) & ~ends.any(1)
    for row in np.flatnonzero(wrong.any(1) | unfinished).tolist():
        _check_finished(follow(task, Question(()), unpadded(tokens[row]), f"token_rows[{row}]"), row)
    return mask


def _mask_by_replaying(task: Task, questions: Sequence[Question], tokens: np.ndarray) -> np.ndarray:
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, question in enumerate(questions):
        episode = follow(task, question, unpadded(tokens[row]), f"token_rows[{row}]")
        _check_finished(episode, row)
        mask[row, : len(episode.mask)] = episode.mask
    return mask


def _check_finished(episode: Episode, row: int) -> None:
    if episode.finish is None:
        raise ValueError(
            f"token_rows[{row}] has not ended after {len(episode.tokens)} tokens; only whole responses have a reward."
        )


def unpadded(tokens: Sequence[int] | np.ndarray) -> list[int]:
    """The tokens without the padding at their end."""
    row = list(tokens)
    while row and row[-1] == PAD:
        row.pop()
    return row


# --- tokens and arrays ---


def pad_prompt(prompt: Sequence[int], width: int) -> np.ndarray:
    """(width,) int64, padded on the left.

    Raises:
        ValueError: if the prompt is longer.
    """
    if len(prompt) > width:
        raise ValueError(f"a prompt has {len(prompt)} tokens; this task's prompt_length allows {width}.")
    return np.array([PAD] * (width - len(prompt)) + list(prompt), dtype=np.int64)


def as_rows(episode: Sequence[Episode], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N, horizon) int64, padded on the right, and mask (N, horizon) bool."""
    tokens = np.full((len(episode), horizon), PAD, dtype=np.int64)
    mask = np.zeros((len(episode), horizon), dtype=bool)
    for row, one in enumerate(episode):
        tokens[row, : len(one.tokens)] = one.tokens
        mask[row, : len(one.mask)] = one.mask
    return tokens, mask


def text_so_far(task: Task, question: Question | None, tokens: Sequence[int]) -> str:
    """Prompt and response for people."""
    return f"{task.decode(question.prompt) if question else ''} ▸ {task.decode(tokens)}".strip()


# --- what may be wrong ---


def whole_token(token: Any, vocab_size: int, name: str) -> int:
    """The token as an int.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is outside the vocabulary.
    """
    if isinstance(token, bool | np.bool_):
        raise TypeError(f"{name} is {shown(token)}; a token is a whole number, 0 … {vocab_size - 1}.")
    try:
        value = operator.index(token)
    except TypeError:
        raise TypeError(f"{name} is {shown(token)}; a token is a whole number, 0 … {vocab_size - 1}.") from None
    if not 0 <= value < vocab_size:
        raise ValueError(f"{name} is {shown(value)}, outside the vocabulary 0 … {vocab_size - 1}.")
    return value


def check_question(task: Task, question: Any, name: str) -> Question:
    """Raise TypeError or ValueError unless this is a question whose prompt fits the task."""
    if not isinstance(question, Question):
        raise TypeError(f"{name} is a {type(question).__name__}; it must be a Question of {type(task).__name__}.")
    for place, token in enumerate(sequence_of_tokens(question.prompt, f"{name}.prompt")):
        whole_token(token, task.vocab_size, f"{name}.prompt[{place}]")
    pad_prompt(question.prompt, task.prompt_length)
    return question


def check_scores(task: Task, scores: Scores, n: int) -> Scores:
    """Raise TaskError unless there is one finite reward a response, and one value of every part and detail."""
    method = f"{type(task).__name__}.score"
    if not isinstance(scores, Scores):
        raise TaskError(
            f"{method} gave a {type(scores).__name__}; it must give Scores(reward) with one reward a response."
        )
    _check_column(f"{method} gave rewards", scores.reward, n)
    for kind, columns in (("part", scores.parts), ("detail", scores.details)):
        for name, column in columns.items():
            _check_column(f"{method} gave the {kind} {name!r}", column, n, "biuf" if kind == "part" else "")
    if not np.isfinite(scores.reward).all():
        row = int(np.flatnonzero(~np.isfinite(scores.reward))[0])
        raise TaskError(f"{method} gave response {row} the reward {scores.reward[row]}; rewards must be finite.")
    return scores


def _check_column(what: str, column: Any, n: int, kinds: str = "biuf") -> None:
    """Raise TaskError unless this is an array (n,) whose dtype is one of these kinds ("": any)."""
    if not isinstance(column, np.ndarray):
        raise TaskError(f"{what} as a {type(column).__name__}; they must be a numpy array ({n},), float64.")
    if column.shape != (n,):
        raise TaskError(f"{what} of shape {column.shape} for {n} responses; it must be ({n},).")
    if kinds and column.dtype.kind not in kinds:
        raise TaskError(f"{what} of dtype {column.dtype}; it must be float64.")


def check_token_rewards(task: Task, rewards: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The rewards of single tokens that a task reveals; TaskError if they are not known, or of another shape."""
    if rewards is None or np.shape(rewards) != shape:
        got = "None" if rewards is None else f"an array of shape {np.shape(rewards)}"
        raise TaskError(
            f"{type(task).__name__} says reveals_token_rewards, and its token_rewards gave {got}; it must give an "
            f"array of shape {shape}, the responses', or leave reveals_token_rewards False."
        )
    return rewards


def sequence_of_tokens(tokens: Any, name: str, what: str = "tokens") -> list[Any]:
    """The tokens (or what else) as a list; TypeError if they are no sequence."""
    if (
        isinstance(tokens, str | bytes)
        or not isinstance(tokens, Sequence | np.ndarray)
        or getattr(tokens, "ndim", 1) == 0
    ):
        raise TypeError(f"{name} is {shown(tokens)}; it must be a sequence of {what}.")
    return list(tokens)
