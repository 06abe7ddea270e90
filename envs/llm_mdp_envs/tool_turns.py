"""Conversations in which a language model uses tools, which are Python functions. In a dozen lines:

def add(a: int, b: int) -> int:
    '''Add two whole numbers.

    Args:
        a: one number.
        b: the other.
    '''
    return a + b

class Sum(ToolTurns):
    separates, part_names = "nothing yet", ("right",)

    def draw(self, generator):
        a, b = generator.integers(1000, 10_000, size=2).tolist()
        return f"What is {a} + {b}?", a + b

    def tools(self, secret):
        return [add]

    def answered(self, secret, text, results):
        return {"right": float(str(secret) in text)}
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_mdp_envs.encoding import Encoder
from llm_mdp_envs.task import Question
from llm_mdp_envs.text import Asked
from llm_mdp_envs.text_turns import Response, TextTurns
from llm_mdp_envs.tokenizers import load_tokenizer
from llm_mdp_envs.tool_calls import parse_calls
from llm_mdp_envs.tools import Result, described, run_calls, tools_of


class ToolTurns(TextTurns):
    """Base of the conversations with tools. A turn that calls tools is answered with their results, errors included; a
    turn that calls none is the answer and ends the conversation.

    The chat template describes the tools where it has a place for them, and writes their results as messages of the
    role "tool". For other templates the system message (or the first one, where there are none) describes them, and
    results are messages of the user in <tool_response>, as in Hermes and Qwen models. Which calls are understood:
    `tool_calls`.

    Tools may hold a state: each conversation, and each replay of one, begins with new ones (`tools`). They are the
    user's code and run as they are, without a time limit.

    Args:
        tokenizer, …: as in `TextTurns`; `max_turns` counts the answer.
    """

    detail_names = ("calls", "faulty_calls", "tool_exceptions")

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_turns: int = 8,
        horizon: int = 1024,
        reply_length: int = 256,
        prompt_length: int = 2048,
        system: str | None = None,
    ):
        tokenizer = load_tokenizer(tokenizer)
        self.has_tool_section = has_tool_section(tokenizer)
        self.reply_roles = ("tool",) if self.has_tool_section else ("user",)
        super().__init__(
            tokenizer,
            max_turns=max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    @abstractmethod
    def tools(self, secret: Any) -> Sequence[Callable[..., Any]]:
        """The functions of one conversation, with type hints and docstrings; those with a state are new ones (methods
        of a new object, say). They do the same whenever they are called in the same order."""

    @abstractmethod
    def answered(self, secret: Any, text: str, results: Sequence[Result]) -> Mapping[str, float]:
        """Graded parts of what an answer is worth, given the results of all calls before it."""

    def called(self, secret: Any, earlier: Sequence[Result], latest: Sequence[Result]) -> Mapping[str, float]:
        """Graded parts of what a turn of calls is worth, given the results of the calls before it and its own; nothing,
        unless a subclass says so."""
        return {}

    def call_text(self, name: str, **arguments: Any) -> str:
        """A call in the form that the model's chat template has for it: for demonstrations and tests."""
        template = str(self.tokenizer.chat_template)
        llama = self.has_tool_section and "ipython" in template
        call = json.dumps({"name": name, "parameters" if llama else "arguments": arguments}, ensure_ascii=False)
        if llama:
            return call
        return f"[TOOL_CALLS][{call}]" if "[TOOL_CALLS]" in template else f"<tool_call>\n{call}\n</tool_call>"

    def ask(self, question, secret=None):
        tools, messages = tools_of(self.tools(secret)), self.messages(question)
        if self.has_tool_section:
            prompt = self.encoder.messages(messages, [tool.schema for tool in tools.values()])
        else:
            prompt = _described(self.encoder, messages, described(tools))
        return Question(prompt, Asked(question, secret))

    def respond(self, secret, said):
        tools, earlier, latest = tools_of(self.tools(secret)), [], []
        for text in said:
            calls = parse_calls(text, {name: tool.parameters for name, tool in tools.items()})
            earlier, latest = [*earlier, *latest], run_calls(tools, calls)
        if not latest:
            return Response(None, self.answered(secret, said[-1], earlier))
        faults = [result.fault for result in latest]
        details = {
            "calls": float(len(latest)),
            "faulty_calls": float(faults.count("call")),
            "tool_exceptions": float(faults.count("tool")),
        }
        reported = [{"role": "tool", "name": result.name, "content": result.text} for result in latest]
        return Response(reported, self.called(secret, earlier, latest), details)

    def as_written(self, messages):
        if self.has_tool_section:
            return messages
        return [{"role": "user", "content": in_tags(messages)}]


def in_tags(messages: Sequence[dict]) -> str:
    """Results of tools as one text, for models that read them in what the user says."""
    return "\n".join(f"<tool_response>\n{message['content']}\n</tool_response>" for message in messages)


def has_tool_section(tokenizer: Any) -> bool:
    """Does the chat template write tools that it is given?"""

    def probe(word: str) -> int:
        """Describes itself.

        Args:
            word: any.
        """
        return len(word)

    if not tokenizer.chat_template:
        return False
    tools, messages = tools_of([probe]), [{"role": "user", "content": "x"}]
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=[tool.schema for tool in tools.values()], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # templates raise errors of many kinds
        return False
    return "Describes itself." in text


def _described(encoder: Encoder, messages: Sequence[dict], words: str) -> tuple[int, ...]:
    """The prompt for these messages with these words in the system message, or in the first one where the template has
    no system messages."""
    first, *others = messages
    if first["role"] == "system":
        return encoder.messages([{**first, "content": f"{first['content']}\n\n{words}"}, *others])
    try:
        return encoder.messages([{"role": "system", "content": words}, *messages])
    except ValueError:
        return encoder.messages([{**first, "content": f"{words}\n\n{first['content']}"}, *others])
