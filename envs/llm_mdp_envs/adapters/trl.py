"""TRL: its reward functions as tasks (`TRLReward`), and our tasks as reward functions of its trainers
(`as_trl_reward`, with the rows to train on, `trl_rows`)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.rows import RowTask, awaited, call, finite, name_of
from llm_mdp_envs.arguments import check_callable, check_finite, check_seed, check_whole, shown
from llm_mdp_envs.check import check_form
from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.text import Reply, TextTask

MOST_ROWS = 10_000_000
"""Rows that are made at once."""


class TRLReward(RowTask):
    """TRL reward functions, f(prompts, completions, completion_ids, **columns) -> list[float | None], as the reward of
    an environment.

    Called as GRPOTrainer calls them: with all columns of the rows as lists; completions are texts where the prompt is a
    text and [{"role": "assistant", "content": …}] where it is messages; `trainer_state` is None, `log_extra` and
    `log_metric` do nothing. Arguments that a function does not have are left out. Coroutine functions are awaited,
    all at the same time.

    The reward is Σ weight · value, each summand reported under its function's name. None means "does not apply" and
    adds nothing, as in TRL; a response to which no function applies is an error unless `no_reward` says what it is
    worth. NaN and infinity are errors.

    Args:
        functions: one function or several, with different names.
        rows: see `RowTask`. Columns besides "prompt" go to the functions; all rows have the same.
        weights: one a function; None: 1 each.
        no_reward: what a response is worth to which no function applies; None: ValueError.
    """

    def __init__(
        self,
        functions: Callable | Sequence[Callable],
        rows: Any,
        *,
        weights: Sequence[float] | None = None,
        no_reward: float | None = None,
        **text_options: Any,
    ):
        if not callable(functions) and not isinstance(functions, list | tuple):
            raise ValueError(f"functions is {shown(functions)}; it must be a reward function or a list of them.")
        functions = [functions] if callable(functions) else list(functions)
        for number, function in enumerate(functions):
            check_callable(f"functions[{number}]", function)
        if weights is not None and (
            not isinstance(weights, list | tuple | np.ndarray) or getattr(weights, "ndim", 1) == 0
        ):
            raise ValueError(f"weights is {shown(weights)}; it must be a list of numbers, one a function, or None.")
        weights = [1.0] * len(functions) if weights is None else list(weights)
        if not functions or len(weights) != len(functions):
            raise ValueError(
                f"there are {len(functions)} reward functions and {len(weights)} weights; give one weight a function."
            )
        weights = [check_finite(f"weights[{number}]", weight) for number, weight in enumerate(weights)]
        self.no_reward = None if no_reward is None else check_finite("no_reward", no_reward)
        super().__init__(rows, **text_options)
        self.functions = dict(zip(map(name_of, functions), zip(functions, weights)))
        if len(self.functions) < len(functions):
            raise ValueError(
                f"two reward functions have the same name among {', '.join(map(name_of, functions))}; rename one."
            )
        self.columns = sorted(set(self.rows[0]) - {"prompt", "completion", "completion_ids"})
        for place, row in zip(self.places, self.rows):
            if missing := set(self.columns) - set(row):
                raise ValueError(
                    f"{place} has no {min(missing)!r}, which {self.places[0]} has; all rows need the same columns."
                )

    def grade(self, replies: Sequence[Reply]) -> Scores:
        columns = {column: [reply.secret[column] for reply in replies] for column in self.columns}
        arguments = {
            **columns,
            "prompts": [reply.question for reply in replies],
            "completions": [
                reply.text if isinstance(reply.question, str) else [{"role": "assistant", "content": reply.text}]
                for reply in replies
            ],
            "completion_ids": [list(reply.tokens) for reply in replies],
            "trainer_state": None,
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        parts, applies = {}, np.zeros(len(replies), dtype=bool)
        given = awaited([call(function, arguments) for function, _ in self.functions.values()])
        for (name, (_, weight)), returned in zip(self.functions.items(), given):
            values = _finite_values(name, returned, len(replies))
            applies |= np.array([value is not None for value in values])
            parts[name] = np.array([0.0 if value is None else weight * value for value in values], dtype=np.float64)
        reward = np.sum(list(parts.values()), axis=0)
        if applies.all():
            return Scores(reward, parts)
        row = int(np.flatnonzero(~applies)[0])
        if self.no_reward is None:
            raise ValueError(
                f"{' and '.join(self.functions)} returned None for response {row}, so it has no reward; set no_reward "
                f"to what it is worth."
            )
        return Scores(
            np.where(applies, reward, self.no_reward), parts | {"no_reward": np.where(applies, 0.0, self.no_reward)}
        )


def trl_rows(task: Task, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for `datasets.Dataset.from_list` and GRPOTrainer: "prompt", and "question_seed", from which `as_trl_reward`
    draws the same question again. No answer is in them.

    Raises:
        ValueError: for a task of several turns, n below 1, or a seed that is none.
    """
    _check_one_turn(task)
    n, seed = check_whole("n", n, 1, MOST_ROWS), check_seed(seed)
    seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(n, np.uint32)]
    return [{"prompt": _prompt_for_trl(task, _question(task, number)), "question_seed": number} for number in seeds]


def as_trl_reward(task: Task) -> Callable[..., list[float]]:
    """The score of a task as a TRL reward function, for rows made by `trl_rows`.

    A `TextTask` grades the completions' text, whatever tokenizer the trainer uses; another task grades
    `completion_ids`, so the trainer must use its vocabulary. Completions beyond the task's horizon are graded as far as
    the horizon by the latter.

    Raises:
        ValueError: for a task of several turns; when called: if the column "question_seed" is missing.
    """
    _check_one_turn(task)
    question = lru_cache(maxsize=65_536)(lambda number: _question(task, number))

    def reward(
        prompts: list, completions: list, completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float]:
        if "question_seed" not in columns:
            raise ValueError(f'{reward.__name__} needs the column "question_seed"; train on trl_rows(task, n).')
        questions = [question(check_seed(number, "a question_seed")) for number in columns["question_seed"]]
        if isinstance(task, TextTask):
            scores = task.grade(
                [task.reply_to(one, text_of(completion)) for one, completion in zip(questions, completions)]
            )
        else:
            if completion_ids is None:
                raise ValueError(f"{reward.__name__} grades tokens; call it with completion_ids.")
            tokens = pad_responses(completion_ids, task.horizon)
            scores = task.score(questions, tokens, tokens >= 0)
        return [float(value) for value in scores.reward]

    reward.__name__ = f"{type(task).__name__}_reward"
    return reward


def text_of(completion: str | list[dict]) -> str:
    """A TRL completion, plain or conversational, as text."""
    return completion if isinstance(completion, str) else "".join(message["content"] or "" for message in completion)


def pad_responses(responses: Iterable[Sequence[int]], horizon: int) -> np.ndarray:
    """Token lists as (N, horizon) int64, -1 after the end; cut at the horizon."""
    rows = [list(response)[:horizon] for response in responses]
    return np.array([row + [-1] * (horizon - len(row)) for row in rows], dtype=np.int64).reshape(len(rows), horizon)


def _finite_values(name: str, values: Any, n: int) -> list[float | None]:
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or len(values) != n:
        raise ValueError(f"{name} returned {shown(values)}; it must return a list of {n} rewards, one a completion.")
    return [None if value is None else finite(name, value, number) for number, value in enumerate(values)]


def _check_one_turn(task: Task) -> None:
    check_form(task)
    if task.max_turns > 1:
        raise ValueError(
            f"{type(task).__name__} has {task.max_turns} turns; a TRL reward function sees one response only."
        )


def _question(task: Task, seed: int) -> Question:
    return task.question(np.random.default_rng(seed))


def _prompt_for_trl(task: Task, question: Question) -> str | list[dict]:
    if not isinstance(task, TextTask):
        return task.decode(question.prompt)
    asked = question.secret.text
    if task.chat or not isinstance(asked, str):
        return task.messages(asked)
    return asked + question.secret.beginning


def _ignore(*arguments: Any) -> None:
    """Stands for TRL's loggers."""
