"""verifiers (0.4, its v1): our conversations as a taskset and the environment that plays them. A module for it is:

from llm_mdp_envs.adapters.verifiers import verifiers_classes

Conversations, ConversationEnv = verifiers_classes(GuessNumberText(), 1000)
__all__ = ["ConversationEnv", "Conversations"]
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_mdp_envs.task import Question
from llm_mdp_envs.text_turns import TextTurns
from llm_mdp_envs.tool_turns import ToolTurns, in_tags
from llm_mdp_envs.tools import described, tools_of


def verifiers_classes(task: TextTurns, n: int, seed: int = 0) -> tuple[type, type]:
    """A `Taskset` of n questions and the `Env` in which its agent "player" converses with the task, turn by turn; each
    part of the reward is recorded under its name.

    Tools of the task are described in the system prompt and called in the text (`tool_calls`), as the agent's harness
    has none of its own. verifiers writes the conversation in its own way, so its tokens are not those of the task;
    words, rules and rewards are.

    Raises:
        ImportError: verifiers is not installed.
    """
    try:
        import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"verifiers_classes needs verifiers 0.4 ({error}): pip install verifiers==0.4.0") from error

    class ConversationData(vf.TaskData):
        question_seed: int

    class Conversation(vf.Task[ConversationData, vf.State, vf.TaskConfig]):
        pass

    class Conversations(vf.Taskset[Conversation, vf.TasksetConfig]):
        def load(self) -> Iterator[Conversation]:
            for number in np.random.SeedSequence(seed).generate_state(n, np.uint32).tolist():
                system, prompt = _beginning(task, _question(task, number))
                name = f"{type(task).__name__}#{number}"
                data = ConversationData(name=name, prompt=prompt, system_prompt=system, question_seed=number)
                yield Conversation(data, self.config.task)

    class ConversationConfig(vf.EnvConfig):
        player: vf.AgentConfig = vf.AgentConfig()

    class ConversationEnv(vf.Env[ConversationConfig]):
        async def run(self, one: Conversation, agents: Any) -> None:
            secret = _question(task, one.data.question_seed).secret.secret
            said, parts = [], dict.fromkeys(task.part_names, 0.0)
            async with agents.player.interaction(one) as talk:
                segment = await talk.turn()
                while not segment.terminated:
                    said.append(segment.last_reply or "")
                    response = task.respond(secret, list(said))
                    for part, value in response.reward.items():
                        parts[part] += float(value)
                    if response.reply is None or len(said) >= task.max_turns:
                        break
                    reply = response.reply
                    segment = await talk.turn(reply if isinstance(reply, str) else in_tags(reply))
            for part, value in parts.items():
                talk.trace.record_reward(part, value, 1.0)

    return Conversations, ConversationEnv


def _beginning(task: TextTurns, question: Question) -> tuple[str | None, str]:
    """The system message, if any, and what the user says first."""
    messages = task.messages(question.secret.text)
    system = [message["content"] for message in messages if message["role"] == "system"]
    if isinstance(task, ToolTurns):
        system.append(described(tools_of(task.tools(question.secret.secret))))
    said = [message["content"] for message in messages if message["role"] != "system"]
    return "\n\n".join(system) or None, "\n\n".join(said)


def _question(task: TextTurns, seed: int) -> Question:
    return task.question(np.random.default_rng(seed))
