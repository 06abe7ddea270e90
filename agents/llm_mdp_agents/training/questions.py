"""Which questions training asks, and which the evaluation: never the same ones, where there are enough.

Two questions are the same if they ask the same: the same text (or messages) without template and answer, or, where a
task is in no words, the same prompt. What is kept for evaluation is found by what is asked, whatever the order of rows.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from llm_mdp_envs.task import Question, Task
from llm_mdp_envs.text import Asked, TextTask

PROBES = 64
"""Questions drawn to see how much of a task an evaluation would take away."""
MOST_KEPT = 0.25
"""Unless it is asked for, no more than this share of a task's questions is kept from training."""
MOST_REDRAWS = 10_000
"""Questions in a row that may be kept for evaluation, or be too long, before we say that none are left."""


@dataclass(frozen=True)
class EvalQuestions:
    """What an evaluation asks, the same every time.

    `questions` are independent draws, or different questions of a list; a question may stand there twice where the task
    has few.
    """

    task: Task
    """Who asks them, and scores the responses."""
    questions: tuple[Question, ...]
    kept: frozenset[str] = frozenset()
    """`content` of those that training leaves out."""
    kept_share: float = 0.0
    """Training leaves out, too, whatever `place` puts below this."""

    @property
    def held_out(self) -> bool:
        """Whether training asks none of them."""
        return bool(self.kept) or self.kept_share > 0

    def keeps(self, question: Question) -> bool:
        """Whether training leaves this question out."""
        if not self.held_out:
            return False
        asked = content(question)
        return asked in self.kept or place(asked) < self.kept_share

    def once(self) -> dict[int, int]:
        """Where each different question stands first -> how often it stands there."""
        first: dict[str, int] = {}
        places = [
            first.setdefault(content(question) + repr(question.secret), number)
            for number, question in enumerate(self.questions)
        ]
        return dict(Counter(places))


def content(question: Question) -> str:
    """What is asked, as text: the same for the same question in any template, any order and any process."""
    return as_text(question.secret.text if isinstance(question.secret, Asked) else question.prompt)


def as_text(asked: Any) -> str:
    """Words, messages or tokens as one text."""
    return json.dumps(asked, sort_keys=True, default=str)


def place(asked: str) -> float:
    """A number in [0, 1) by what is asked alone, spread evenly (SHA-256)."""
    return int.from_bytes(hashlib.sha256(asked.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def eval_questions(
    task: Task, prompts: int, seed: int, share: float | None = None, other: Task | None = None
) -> EvalQuestions:
    """The questions of the evaluations of a run.

    - `other`, the same kind of task over other rows: its questions, and training leaves out those that are in both.
    - `share` > 0: this share of the task's questions, by what they ask (`place`), is kept from training.
    - `share` None: as many questions as are asked are kept from training, unless this would take away more than a
      quarter of the task, or the task is a token MDP, whose expectation is over all of its prompts.
    - Else, and with `share` 0: questions of the training itself.

    Of a list (`Task.listed`) each question is asked once, those whose `place` comes first; otherwise they are drawn.

    Args:
        prompts: how many at most.
        seed: of the draws.

    Raises:
        ValueError: if nothing is left to evaluate on, or to train on.
    """
    if other is not None:
        questions = _fitting(other, different(_candidates(other, prompts, [seed, 1])), prompts)
        kept = frozenset(map(content, questions))
        if kept.issuperset(each.content for each in _candidates(task, PROBES, [seed, 3])):
            raise ValueError("eval_problems holds every question of the training; give other ones.")
        return EvalQuestions(other, questions, kept)
    if share:
        candidates = different(_candidates(task, math.ceil(4 * prompts / share), [seed, 1]))
        chosen = [each for each in candidates if place(each.content) < share]
        if len(chosen) in (0, len(candidates)):
            few = not chosen
            raise ValueError(
                f"eval_split is {share}, which keeps {'none' if few else 'all'} of {len(candidates):,} different "
                f"questions for evaluation; give {'more' if few else 'less'}."
            )
        return EvalQuestions(task, _fitting(task, chosen, prompts), kept_share=share)
    candidates = _candidates(task, prompts, [seed, 1])
    if share is None and task.mdp is None:
        questions = _fitting(task, different(candidates), prompts)
        kept = frozenset(map(content, questions))
        probes = candidates if length_of_list(task) else _candidates(task, PROBES, [seed, 3])
        if sum(each.content in kept for each in probes) <= MOST_KEPT * len(probes):
            return EvalQuestions(task, questions, kept)
    return EvalQuestions(task, _fitting(task, candidates, prompts))


@dataclass(frozen=True)
class Candidate:
    """A question that may be asked; it is encoded when it is."""

    content: str
    encode: Callable[[], Question]


def _candidates(task: Task, draws: int, seed: Sequence[int]) -> list[Candidate]:
    """The different questions of a list by their `place`, else so many draws."""
    if length := length_of_list(task):
        every = (
            Candidate(
                as_text(task.draw_at(number)[0]) if isinstance(task, TextTask) else content(task.question_at(number)),
                partial(task.question_at, number),
            )
            for number in range(length)
        )
        return sorted(different(every), key=lambda each: place(each.content))
    drawn = task.questions(np.random.default_rng(seed), draws)
    return [Candidate(content(question), partial(_itself, question)) for question in drawn]


def _itself(question: Question) -> Question:
    return question


def different(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that ask something else than the ones before them."""
    first: dict[str, Candidate] = {}
    for each in candidates:
        first.setdefault(each.content, each)
    return list(first.values())


def _fitting(task: Task, candidates: Iterable[Candidate], most: int) -> tuple[Question, ...]:
    """The first ones that are not too long."""
    questions = (each.encode() for each in candidates)
    found = tuple(islice((each for each in questions if len(each.prompt) <= task.prompt_length), most))
    if not found:
        raise ValueError(
            f"{type(task).__name__} has no question to evaluate on that is at most {task.prompt_length} tokens long; "
            f"give a larger prompt_length."
        )
    return found


def length_of_list(task: Task) -> int:
    """`Task.listed`; 0 where a subclass draws otherwise than its base lists."""

    def floor(name: str) -> int:
        classes = type(task).__mro__
        return next((number for number, each in enumerate(classes) if name in vars(each)), len(classes))

    changed = floor("draw") < floor("draw_at") or floor("question") < floor("question_at")
    return 0 if changed else task.listed()


class TrainQuestions:
    """What training asks: nothing that is kept for evaluation; of a list every question once before one is asked again,
    in a new order every time.

    Args:
        seed: of the orders.
        rank, size: of this process and of its group, which share an epoch.
    """

    def __init__(self, task: Task, kept: EvalQuestions, seed: Sequence[int], rank: int = 0, size: int = 1):
        self.task, self.kept, self.seed, self.size = task, kept, list(seed), size
        self.position = rank
        """Where this process is in the epochs, laid end to end."""
        self.length = length_of_list(task)
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, generator: np.random.Generator, n: int) -> list[Question]:
        """The next n questions.

        Args:
            generator: of questions that are drawn.

        Raises:
            ValueError: if there is none that may be asked.
        """
        if not self.length and not self.kept.held_out:
            return [self.task.question(generator) for _ in range(n)]
        found: list[Question] = []
        left = MOST_REDRAWS + n + self.length
        while len(found) < n and left > 0:
            batch = self._of_list(n - len(found)) if self.length else self.task.questions(generator, n - len(found))
            left -= len(batch)
            found += [
                each for each in batch if len(each.prompt) <= self.task.prompt_length and not self.kept.keeps(each)
            ]
        if len(found) == n:
            return found
        raise ValueError(
            f"{type(self.task).__name__} has no question left to train on: all are kept for evaluation, or longer than "
            f"{self.task.prompt_length} tokens; give a smaller eval_split, or a larger prompt_length."
        )

    def _of_list(self, n: int) -> list[Question]:
        questions = []
        for _ in range(n):
            epoch, place_in_epoch = divmod(self.position, self.length)
            self.position += self.size
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, np.random.default_rng([*self.seed, epoch]).permutation(self.length)
            questions.append(self.task.question_at(int(self._order[1][place_in_epoch])))
        return questions
