"""Arithmetic in words: the same sums as `arithmetic`, asked of language models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.arguments import check_whole
from llm_mdp_envs.task import Scores
from llm_mdp_envs.tasks.arithmetic import OPERATORS, Arithmetic
from llm_mdp_envs.text import Reply, TextTask
from llm_mdp_envs.tokenizers import load_tokenizer


class ArithmeticText(TextTask):
    """Sums in words: "What is 5 + 4?", the answer begun with "5 + 4 = "; the reward is 1 if the rest of it is the right
    number, else 0.

    Args:
        operators, digits: as in `Arithmetic`.
        horizon: most response tokens; None: one a character of the longest answer, and one for the end.
        chat: put the question into the tokenizer's chat template; None: if it has one.
        tokenizer, prompt_length, system, template_options: see `TextTask`.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = Arithmetic.separates
    reward_range = (0.0, 1.0)

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        operators: str = "+",
        digits: int = 2,
        horizon: int | None = None,
        prompt_length: int = 1024,
        chat: bool | None = None,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ):
        self.sums = Arithmetic(operators, check_whole("digits", digits, 1, 9))
        tokenizer = load_tokenizer(tokenizer)
        super().__init__(
            tokenizer,
            horizon=self.sums.answer_length + 1 if horizon is None else horizon,
            prompt_length=prompt_length,
            chat=bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat,
            system=system,
            answer_prefix=begun,
            template_options=template_options,
        )

    def best_reward(self) -> float:
        return 1.0

    def draw(self, generator: np.random.Generator) -> tuple[str, str]:
        secret = self.sums.draw(generator, 1)
        operator, first, second = secret[0].tolist()
        right = self.sums.decode(self.sums.right_answers(secret)[0].tolist())
        return f"What is {first} {OPERATORS[operator]} {second}?", right

    def grade(self, replies: Sequence[Reply]) -> Scores:
        said = [reply.text.rpartition("=")[2].strip() for reply in replies]
        return Scores(np.array([float(text == reply.secret) for text, reply in zip(said, replies)]))


def begun(question: str) -> str:
    """How the answer to 'What is 5 + 4?' begins: '5 + 4 = '."""
    return f"{question.removeprefix('What is ').removesuffix('?')} = "
