"""TRL: our conversations as environments of its GRPOTrainer.

task = Documents()
trainer = GRPOTrainer(
    model, args=…, train_dataset=Dataset.from_list(trl_environment_rows(task, 1000)),
    environment_factory=trl_environment(task),
)
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_mdp_envs.task import Question
from llm_mdp_envs.text_turns import TextTurns
from llm_mdp_envs.tool_turns import ToolTurns

OVER = "The conversation is over."


def trl_environment_rows(task: TextTurns, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for `datasets.Dataset.from_list` and GRPOTrainer: "prompt", the messages that a conversation begins with,
    and "question_seed", from which `trl_environment` draws the same question again. No answer is in them."""
    seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(n, np.uint32)]
    return [{"prompt": task.messages(_question(task, number).secret.text), "question_seed": number} for number in seeds]


def trl_environment(task: TextTurns) -> type:
    """A conversation as an `environment_factory` of TRL: a class whose public methods are tools.

    A task with tools has its own, and `answer(text)`, which ends the conversation; any other task has `say(text)`, by
    which the policy speaks. Every call is one turn of the task, and `get_reward` is the sum of what the turns were
    worth. TRL writes the conversation in its own way, so its tokens are not those of the task; words, rules and rewards
    are.

    Raises:
        ValueError: a tool has the name of a method that TRL calls, or of `answer`.
    """
    if isinstance(task, ToolTurns):
        functions = task.tools(_question(task, 0).secret.secret)
        members = {function.__name__: _as_method(task, function) for function in functions}
        for name in ("answer", "reset", "get_reward"):
            if name in members:
                raise ValueError(
                    f"a tool of {type(task).__name__} has the name {name!r}, which TRL's environment needs."
                )
        members["answer"] = answer
    else:
        members = {"say": say}
    return type(f"{type(task).__name__}Environment", (_Conversation,), {"_task": task, **members})


class _Conversation:
    """One conversation with a task, from `reset` on."""

    _task: TextTurns

    def reset(self, question_seed: int | None = None, **columns: Any) -> str:
        """Begin the conversation of a row; how the policy speaks in it."""
        if question_seed is None:
            raise ValueError(
                f'{type(self).__name__} needs the column "question_seed"; train on trl_environment_rows(task, n).'
            )
        self._secret = _question(self._task, int(question_seed)).secret.secret
        self._turns, self._reward, self._over = [], 0.0, False
        tool = "answer" if isinstance(self._task, ToolTurns) else "say"
        purpose = "Give your final answer by calling" if tool == "answer" else "Say everything by calling"
        return f"\n\n{purpose} the tool `{tool}`."

    def get_reward(self) -> float:
        """What the conversation was worth."""
        return self._reward

    def _turn(self, text: str) -> str:
        """Say something to the task; its reply."""
        if self._over:
            return OVER
        self._turns.append(text)
        response = self._task.respond(self._secret, list(self._turns))
        self._reward += float(sum(response.reward.values()))
        self._over = response.reply is None or len(self._turns) >= self._task.max_turns
        if response.reply is None:
            return OVER
        return response.reply if isinstance(response.reply, str) else "\n".join(m["content"] for m in response.reply)


def say(self, text: str) -> str:
    """Say something.

    Args:
        text: what you say.
    """
    return self._turn(text)


def answer(self, text: str) -> str:
    """Give your final answer, which ends the conversation.

    Args:
        text: the answer.
    """
    return self._turn(text)


def _as_method(task: ToolTurns, function: Callable[..., Any]) -> Callable[..., Any]:
    """A tool of the task as a method: the same signature and docstring; called, it is a turn with this call."""

    @functools.wraps(function)
    def method(self: _Conversation, *arguments: Any, **options: Any) -> str:
        given = inspect.signature(function).bind(*arguments, **options).arguments
        return self._turn(task.call_text(function.__name__, **given))

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = inspect.Signature(  # pyright: ignore[reportAttributeAccessIssue]
        [own, *inspect.signature(function).parameters.values()]
    )
    return method


def _question(task: TextTurns, seed: int) -> Question:
    return task.question(np.random.default_rng(seed))
