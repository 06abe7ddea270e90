"""Tasks whose questions are rows of numbers, so that thousands of episodes are asked, masked and scored as arrays."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from llm_mdp_envs.task import PAD, Question, Scores, Task


class ArrayTask(Task):
    """A task whose questions are rows of numbers: `Question.secret` is the row, as a tuple of W ints.

    Subclasses write `draw`, `prompts` and `score_rows`; the methods of `Task` follow from these.
    """

    @abstractmethod
    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw n questions: (n, W) int64."""

    @abstractmethod
    def prompts(self, secrets: np.ndarray) -> np.ndarray:
        """Prompts of questions (n, W): (n, prompt_length) int64, padded with -1 on the left."""

    @abstractmethod
    def score_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> Scores:
        """`Task.score` for questions (n, W)."""

    def answer_rows(self, secrets: np.ndarray) -> np.ndarray | None:
        """`Task.answers` for questions (n, W)."""
        return None

    def token_reward_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """`Task.token_rewards` for questions (n, W)."""
        return None

    def question(self, generator: np.random.Generator) -> Question:
        return self.questions(generator, 1)[0]

    def questions(self, generator: np.random.Generator, n: int) -> list[Question]:
        return self.questions_of(self.draw(generator, n))

    def questions_of(self, secrets: np.ndarray) -> list[Question]:
        """The questions of rows (n, W)."""
        return [
            Question(tuple(prompt[prompt != PAD].tolist()), tuple(secret.tolist()))
            for prompt, secret in zip(self.prompts(secrets), secrets)
        ]

    def score(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> Scores:
        return self.score_rows(secrets_of(questions), tokens, mask)

    def answers(self, questions: Sequence[Question]) -> np.ndarray | None:
        return self.answer_rows(secrets_of(questions))

    def token_rewards(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        return self.token_reward_rows(secrets_of(questions), tokens, mask)


def secrets_of(questions: Sequence[Question]) -> np.ndarray:
    """The rows (N, W) of an `ArrayTask`'s questions."""
    return np.array([question.secret for question in questions], dtype=np.int64).reshape(len(questions), -1)
