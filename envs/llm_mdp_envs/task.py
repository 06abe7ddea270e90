"""A task: what is asked, and what the answer is worth. Everything else (stepping, vectors, replay, turns) is made from
it, so a new environment is one file with one class.

A task has no state. An episode is its question plus the tokens so far; the same question and tokens always give the
same replies and the same score. That is what makes restarts from any prefix, replays and branches cost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Question:
    """What one episode is about."""

    prompt: tuple[int, ...]
    """Tokens that the policy sees before its first one."""
    secret: Any = None
    """What the task needs to reply and to score; never shown."""


@dataclass(frozen=True)
class Scores:
    """What complete responses are worth."""

    reward: np.ndarray
    """(N,) float64: the response-level reward RM(W)."""
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) each: graded parts whose sum is the reward (Eq. 30), reported in `info` after the episode. Empty: nothing is
    revealed."""
    details: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) each: whatever else a person may want to know of a finished response (verdicts, say), reported in `info`
    beside the parts."""


class Task(ABC):
    """One kind of question.

    Subclasses set these, as class attributes or in their constructor.
    """

    separates: ClassVar[str] = ""
    """What the task is for, in a few words: which estimators or abilities it tells apart."""
    vocab_size: int
    eos: int | None
    """Ends a response; None: only the horizon does."""
    horizon: int
    """Most response tokens of an episode, those of the environment included."""
    prompt_length: int
    """Longest prompt."""
    end_of_turn: int | None = None
    """Hands the turn to the environment; None: one turn."""
    max_turns: int = 1

    @abstractmethod
    def question(self, generator: np.random.Generator) -> Question:
        """Draw a question."""

    @abstractmethod
    def score(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> Scores:
        """Reward of complete responses.

        Args:
            tokens: (N, T) int64, -1 after the end.
            mask: (N, T) bool, True where the policy chose the token, its end token included; False on what the
                environment wrote.
        """

    def reply(self, question: Question, tokens: Sequence[int]) -> tuple[int, ...] | None:
        """What the environment writes after a turn that ends with `end_of_turn`; None: the conversation is over."""
        return None

    def action_mask(self, question: Question, tokens: Sequence[int]) -> np.ndarray | None:
        """(V,) int8, 1 where a token is allowed next; None: everything is."""
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text, for people."""
        return " ".join(str(token) for token in tokens if token >= 0)
