"""Plain functions of two texts as tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.rows import RowTask, finite, name_of
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import Reply


class CallableReward(RowTask):
    """Any function of the prompt and the response, in words, as the reward of an environment.

    Args:
        function: f(prompt: str, response: str) -> float.
        prompts: what is asked.
    """

    def __init__(self, function: Callable[[str, str], float], prompts: Sequence[str], **text_options: Any):
        if isinstance(prompts, str):
            raise ValueError(f"prompts is the text {prompts!r}; give a list of texts.")
        super().__init__([{"prompt": prompt} for prompt in prompts], **text_options)
        self.function = function

    def grade(self, replies: Sequence[Reply]) -> Scores:
        values = [self.function(reply.question, reply.text) for reply in replies]  # pyright: ignore[reportArgumentType]
        name = name_of(self.function)
        return Scores(np.array([finite(name, value, number) for number, value in enumerate(values)], dtype=np.float64))
