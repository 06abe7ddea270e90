"""A task: what is asked, and what the answer is worth. Everything else (stepping, vectors, replay, turns) is made from
it, so a new environment is one file with one class.

A task has no state. An episode is its question plus the tokens so far; the same question and tokens always give the
same replies and the same score. That is what makes restarts from any prefix, replays and branches cost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llm_mdp.own import UsageError

if TYPE_CHECKING:
    from llm_mdp.mdp.token_mdp import TokenMDP

PAD = -1
"""Fills token arrays before the prompt and after the response."""


class TaskError(UsageError):
    """A task cannot be asked, or says something that no task may; the message says what, and what to change."""


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
    """One kind of question: all that anybody may ask of it.

    Subclasses write `question` and `score` and set the four numbers without a default, as class attributes or in their
    constructor. What has a default is for tasks that know more. `llm_mdp_envs.check_task` says what is wrong with one.
    """

    separates: ClassVar[str] = ""
    """What the task is for, in a few words: which estimators or abilities it tells apart."""
    vocab_size: int
    eos: int | None
    """Ends a response, and is what one is closed with where it is written here; None: only the horizon does."""
    also_ends: tuple[int, ...] = ()
    """Further tokens that end the turn where there are turns, else the response: a model may have several end
    tokens."""
    horizon: int
    """Most response tokens of an episode, those of the environment included."""
    prompt_length: int
    """Longest prompt."""
    end_of_turn: int | None = None
    """Hands the turn to the environment; None: one turn."""
    max_turns: int = 1
    mdp: "TokenMDP | None" = None
    """The token MDP that this task is, for verifiers and exact values, with its hidden rewards; None: it is none."""
    tokenizer: Any = None
    """A Hugging Face tokenizer between words and tokens; None: the task has an alphabet of its own."""
    reward_range: tuple[float, float] | None = None
    """The smallest and the largest reward that a response may have, for intervals that keep within; None: not known."""
    listed_by: str | None = None
    """The constructor's argument that brings the list of questions, where there is one: `listed` says how many."""
    reveals_token_rewards: bool = False
    """Every step pays its own token, for comparison runs against agents that see the end only. It takes
    `token_rewards` whose sum is the reward, that look back only, of unfinished responses too."""

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a response, whatever the environment would say to them."""
        own = () if self.eos is None else (self.eos,)
        return own if self.end_of_turn is not None else (*own, *self.also_ends)

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """All tokens that hand the turn over."""
        return () if self.end_of_turn is None else (self.end_of_turn, *self.also_ends)

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
        """(V,) int8, 1 where a token is allowed next; None: everything is.

        Policies obey it wherever they draw and are scored, and see no secret: so it may depend on the prompt and the
        tokens alone, whatever beginning of a response they are, and `question.secret` is None when a policy asks.
        Either this method is written, or `action_masks`.
        """
        if getattr(self.action_masks, "__func__", None) is Task.action_masks:
            return None
        row = np.full((1, self.horizon), PAD, dtype=np.int64)
        row[0, : len(tokens)] = tokens
        masks = self.action_masks(np.array(question.prompt, dtype=np.int64)[None], row)
        return None if masks is None else masks[0]

    def action_masks(self, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray | None:
        """`action_mask` of many: (N, V) int8; None: everything is allowed, always. A task that masks many at once
        faster than one by one does it here.

        Args:
            prompts: (N, L) int64, -1 on the left.
            tokens: (N, T) int64, responses so far, -1 from their ends on.
        """
        if getattr(self.action_mask, "__func__", None) is Task.action_mask:
            return None
        masks = np.ones((len(prompts), self.vocab_size), dtype=np.int8)
        for row, (prompt, response) in enumerate(zip(prompts, tokens)):
            question = Question(tuple(prompt[prompt != PAD].tolist()))
            if (mask := self.action_mask(question, response[response != PAD].tolist())) is not None:
                masks[row] = np.asarray(mask) != 0
        return masks

    def questions(self, generator: np.random.Generator, n: int) -> list[Question]:
        """Draw n questions; a task that draws many at once faster than one by one does it here."""
        return [self.question(generator) for _ in range(n)]

    def listed(self) -> int:
        """How many questions there are, where they are a list such as the rows of a file: training asks each of them
        once an epoch. 0: questions are drawn."""
        return 0

    def question_at(self, number: int) -> Question:
        """One of the listed questions, 0 … listed() - 1, however long its prompt is."""
        raise IndexError(f"{type(self).__name__} has no list of questions.")

    def from_prompt(self, tokens: tuple[int, ...]) -> Question | None:
        """The question with this prompt, for `reset(options={"prompt": tokens})`; ValueError if the task asks no such
        question. None: a prompt alone does not tell what answers are worth."""
        return None

    def answers(self, questions: Sequence[Question]) -> np.ndarray | None:
        """A right response to each question, its end token included, to learn from before there is any reward: (N, T)
        int64, T ≤ horizon, -1 after the end. None: there are none."""
        return None

    def token_rewards(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """Hidden rewards of single tokens, (N, T) float64, 0 where mask is False; undiscounted where `mdp` discounts.
        For verifiers and comparison runs; no agent may see them. None: they are not known.

        Args:
            tokens, mask: as in `score`.
        """
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text, for people."""
        return " ".join(str(token) for token in tokens if token >= 0)

    def close(self) -> None:  # noqa: B027 - most tasks hold nothing
        """End what the task holds, such as processes; called when an environment is closed, perhaps more than once."""
