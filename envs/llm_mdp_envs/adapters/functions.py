"""Plain functions of two texts as tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.rows import RowTask, awaited, finite, name_of
from llm_mdp_envs.arguments import check_callable, shown
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import Reply


class CallableReward(RowTask):
    """Any function of the prompt and the response, in words, as the reward of an environment.

    Args:
        function: f(prompt: str, response: str) -> float; a coroutine function is awaited.
        prompts: what is asked: a sequence of texts, or of lists of messages.
        others: see `TextTask`.

    Raises:
        ValueError: naming the argument, or the response and what it was given for a reward.
    """

    argument = listed_by = "prompts"

    def __init__(self, function: Callable[[str, str], float], prompts: Sequence[str], **text_options: Any):
        self.function = check_callable("function", function)
        no_list = isinstance(prompts, str | bytes | Mapping | type) or getattr(prompts, "ndim", 1) == 0
        if no_list or not hasattr(prompts, "__len__"):
            raise ValueError(f"prompts is {shown(prompts)}; it must be a list of texts.")
        super().__init__([{"prompt": prompt} for prompt in prompts], **text_options)

    def grade(self, replies: Sequence[Reply]) -> Scores:
        values = awaited([self.function(reply.question, reply.text) for reply in replies])  # pyright: ignore[reportArgumentType]
        name = name_of(self.function)
        return Scores(np.array([finite(name, value, number) for number, value in enumerate(values)], dtype=np.float64))
