"""Conversations: a response that the policy and the environment write in turns.

The policy hands over with `end_of_turn`; then the environment writes its reply. How an episode goes on (the turn limit,
replies that the horizon cuts) is `episode.advance`; here are whole conversations by it (`play`, `mask_of`, any task)
and `TurnTask`, which makes a task out of one function, `outcome`: what a turn is answered, and what it is worth.
`text_turns.TextTurns` does the same for language models.
"""

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from llm_mdp.own import load
from llm_mdp_envs.arguments import check_flag
from llm_mdp_envs.episode import Episode, advance, follow
from llm_mdp_envs.task import Question, Scores, Task


def mask_of(task: Task, question: Question, tokens: Sequence[int]) -> np.ndarray:
    """(len(tokens),) bool: True where the policy wrote the token, found by replaying a response or the beginning of
    one.

    Raises:
        ValueError: if no conversation on this question goes so: a token outside the vocabulary (padding too), a reply
            that the environment would not have written, tokens after the end.
    """
    return np.array(follow(task, question, tokens).mask[: len(tokens)], dtype=bool)


def play(task: Task, question: Question, policy_turns: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The conversation in which the policy writes these turns, each closed with `end_of_turn` unless it ends with it or
    with `eos`.

    What would come after the end of the response is not played.

    Returns:
        tokens (T,) int64 and mask (T,) bool, T at most the horizon, no padding.

    Raises:
        ValueError: if the task has no turns.
    """
    if task.end_of_turn is None:
        raise ValueError(
            f"{type(task).__name__} has one turn only (its end_of_turn is None); play needs a task with turns."
        )
    episode = Episode()
    for turn in policy_turns:
        closed = len(turn) > 0 and turn[-1] in (*task.turn_ends, task.eos)
        for token in (*turn, *(() if closed else (task.end_of_turn,))):
            if episode.finish is None:
                episode = advance(task, question, episode, int(token))
    return np.array(episode.tokens, dtype=np.int64), np.array(episode.mask, dtype=bool)


@dataclass(frozen=True)
class Turn:
    """What the policy wrote between two replies."""

    words: tuple[int, ...]
    """Without the token that closes the turn."""
    last: int
    """Index in the response of its last token, the closing one if there is one."""


def split_turns(tokens: np.ndarray, mask: np.ndarray, closing: Sequence[int | None]) -> list[Turn]:
    """The policy's turns in one response: the stretches where mask is True, their last token left out if it is one of
    `closing`.

    Args:
        tokens, mask: (T,). The end of the response closes its last turn.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    turns = []
    for start, stop in edges.reshape(-1, 2).tolist():
        words = tuple(tokens[start:stop].tolist())
        turns.append(Turn(words[:-1] if words[-1] in closing else words, stop - 1))
    return turns


def alternating_mask(tokens: np.ndarray, end_of_turn: int) -> np.ndarray:
    """(..., T) bool: whose token is whose where replies, too, end with `end_of_turn` (as in `TurnTask`), the policy
    beginning."""
    ends = tokens == end_of_turn
    return (tokens >= 0) & ((ends.cumsum(-1) - ends) % 2 == 0)


@dataclass(frozen=True)
class Outcome:
    """What one turn of the policy leads to."""

    reply: tuple[int, ...] | None
    """What the environment says, without `end_of_turn`; None: the conversation is over."""
    reward: dict[str, float] = field(default_factory=dict)
    """Graded parts of what the turn is worth, by name; those left out are 0."""


class JudgedTurns(Task):
    """A conversation whose response-level reward is the sum of what its turns are worth, each a function of the
    question and the conversation up to that turn:

        RM(W) = Σₖ r(turns before k, turn k)

    So r is a hidden token reward on the turn's last token.
    """

    part_names: ClassVar[tuple[str, ...]]
    """Names of all graded parts."""

    @abstractmethod
    def judged(
        self, question: Question, tokens: np.ndarray, mask: np.ndarray
    ) -> Sequence[tuple[Turn, Mapping[str, float]]]:
        """Every turn of one complete response (T,), and its reward by parts; those left out are 0."""

    def score(self, questions, tokens, mask):
        parts = {name: np.zeros(len(questions)) for name in self.part_names}
        for row, question in enumerate(questions):
            for _, reward in self.judged(question, tokens[row], mask[row]):
                for name, value in reward.items():
                    parts[name][row] += value
        return Scores(np.sum(list(parts.values()), axis=0), parts)

    def hidden_turn_rewards(self, question: Question, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(T,) float64: the reward of every turn on its last policy token, 0 elsewhere; their sum is the response-level
        reward.

        For verifiers and comparison runs; no agent may see it.

        Args:
            tokens, mask: (T,) one complete response, -1 and False after its end.
        """
        reward = np.zeros(len(tokens))
        for turn, parts in self.judged(question, tokens, mask):
            reward[turn.last] = sum(parts.values())
        return reward


class TurnTask(JudgedTurns):
    """A conversation in words: token w is `words[w]`, and both sides end their turns with `end_of_turn`.

    A subclass writes `question` and `outcome`. The end of the response (`eos`, or the horizon) closes the last turn:
    what it says counts, but it gets no reply.
    """

    words: tuple[str, ...]
    end_of_turn: int  # pyright: ignore[reportIncompatibleVariableOverride]
    speakers: ClassVar[tuple[str, str]] = ("policy", "environment")

    @abstractmethod
    def outcome(self, question: Question, earlier: Sequence[tuple[int, ...]], turn: tuple[int, ...]) -> Outcome:
        """What a turn leads to, given the policy's earlier ones. Turns are any words but `end_of_turn` and `eos`, or
        none at all."""

    def reply(self, question, tokens):
        row = np.asarray(tokens)
        turns = [turn.words for turn in self._turns(row, alternating_mask(row, self.end_of_turn))]
        reply = self.outcome(question, turns[:-1], turns[-1]).reply
        return None if reply is None else (*reply, self.end_of_turn)

    def encode(self, text: str) -> tuple[int, ...]:
        """Words separated by white space as tokens.

        Raises:
            ValueError: naming a word that is not in the vocabulary.
        """
        unknown = [word for word in text.split() if word not in self.words]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not among the words of {type(self).__name__}; they are {' '.join(self.words)}."
            )
        return tuple(self.words.index(word) for word in text.split())

    def decode(self, tokens):
        """Words, one turn a line; `encode` reads them back."""
        words = [self.words[token] + ("\n" if token == self.end_of_turn else " ") for token in tokens if token >= 0]
        return "".join(words).rstrip()

    def dialogue(self, question: Question, tokens: Sequence[int]) -> str:
        """The conversation with its speakers, one turn a line, the prompt first."""
        mask = mask_of(self, question, tokens)
        lines = [f"{self.speakers[1]}: {self.decode(question.prompt)}"]
        for position, token in enumerate(tokens):
            if position == 0 or mask[position] != mask[position - 1]:
                lines.append(f"{self.speakers[0 if mask[position] else 1]}:")
            lines[-1] += f" {self.words[token]}"
        return "\n".join(lines)

    def _turns(self, tokens: np.ndarray, mask: np.ndarray) -> list[Turn]:
        return split_turns(tokens, mask, (self.end_of_turn, self.eos))

    def judged(self, question, tokens, mask):
        """What stands after the end of the conversation is worth nothing."""
        turns = self._turns(tokens, mask)[: self.max_turns]
        judged = []
        for number, turn in enumerate(turns):
            outcome = self.outcome(question, [before.words for before in turns[:number]], turn.words)
            judged.append((turn, outcome.reward))
            if outcome.reply is None:
                break
        return judged


class TwoFaced(TurnTask):
    """A conversation that language models hold as well: with text=True another class makes the task, in words.

    A subclass names that class in `text_face`, and has an argument `text` in its constructor.
    """

    text_face: ClassVar[str]
    """module:class of the face for language models; it takes the same arguments by name, and those of `TextTurns`."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(parameters)  # `__new__` below would hide it

    def __new__(cls, *arguments: Any, text: bool = False, **options: Any):
        if not check_flag("text", text):
            return super().__new__(cls)
        return load(cls.text_face)(**dict(zip(inspect.signature(cls).parameters, arguments)), **options)


def check_words(words: Sequence[str], place: str) -> None:
    """Raise ValueError if these cannot be the words of a vocabulary: each distinct, none empty or with white space in
    it."""
    for word in words:
        if not isinstance(word, str) or word.split() != [word]:
            raise ValueError(f"{place} has the word {word!r}; a word is a string without white space, one token each.")
        if list(words).count(word) > 1:
            raise ValueError(f"{place} has the word {word!r} twice; every word must be another token.")
