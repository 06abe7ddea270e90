"""Python functions as tools that a language model calls: their descriptions, and what becomes of calls."""

import difflib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_mdp_envs.tool_calls import Call, shown

MOST_CALLS = 16
"""Calls of one turn that are run."""

LONGEST_RESULT = 100_000
"""Characters of a result that are kept; what a task shows of them is its `reply_length`."""


class ToolError(Exception):
    """Raised by a tool that cannot do what it was asked; its words are the reply. (Any other exception of a tool is
    taken for a fault in it.)"""


@dataclass(frozen=True)
class Tool:
    """A function, and how it is described to a model."""

    name: str
    function: Callable[..., Any]
    schema: dict
    """As chat templates take it: {"type": "function", "function": {"name", "description", "parameters"}}."""

    @property
    def parameters(self) -> Mapping[str, dict]:
        """JSON schemas by the names of the arguments."""
        return self.schema["function"]["parameters"]["properties"]

    @property
    def required(self) -> Sequence[str]:
        return self.schema["function"]["parameters"].get("required", ())


@dataclass(frozen=True)
class Result:
    """What became of a call."""

    name: str
    text: str
    """What the model gets to read."""
    fault: Literal["", "call", "tool"] = ""
    """Whose fault it is that there is no result: the call's, or the tool's; empty: there is one."""


def tools_of(functions: Sequence[Callable[..., Any]]) -> dict[str, Tool]:
    """Functions as tools, by name. Each has type hints, and a docstring that describes it and, under "Args:", every
    argument.

    Raises:
        ValueError: naming the function, and what its description lacks.
    """
    from transformers.utils.chat_template_utils import get_json_schema

    tools = {}
    for function in functions:
        name = getattr(function, "__name__", repr(function))
        if not inspect.isroutine(function):
            raise ValueError(f"the tool {function!r:.60} is no function; give functions or bound methods.")
        try:
            schema = get_json_schema(function)
        except Exception as error:  # transformers has a kind of its own for each fault
            raise ValueError(
                f"the function {name} cannot be a tool: {str(error).strip().rstrip('.')}; give it type hints, and a "
                f'docstring that describes it and, under "Args:", every argument.'
            ) from error
        if name in tools:
            raise ValueError(f"two tools have the name {name!r}; rename one.")
        tools[name] = Tool(name, function, schema)
    return tools


def described(tools: Mapping[str, Tool]) -> str:
    """The tools in words, for the system message of models whose chat template has no place for them (the words that
    Hermes and Qwen models are trained on)."""
    schemas = "\n".join(json.dumps(tool.schema, ensure_ascii=False) for tool in tools.values())
    return (
        "You may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{schemas}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def run_calls(tools: Mapping[str, Tool], calls: Sequence[Call]) -> list[Result]:
    """Run the calls of one turn, in their order. Errors are results in words, so that the conversation goes on."""
    results = [_run(tools, call) for call in calls[:MOST_CALLS]]
    if len(calls) > MOST_CALLS:
        words = f"Error: {len(calls)} calls in one turn; only the first {MOST_CALLS} were run."
        results.append(Result(calls[MOST_CALLS].name, words, "call"))
    return results


def _run(tools: Mapping[str, Tool], call: Call) -> Result:
    if error := call.error or _mistake(tools, call):
        return Result(call.name, f"Error: {error}", "call")
    tool = tools[call.name]
    try:
        value = tool.function(**_as_hinted(tool, call.arguments))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except ToolError as error:
        return Result(call.name, f"Error: {error}", "call")
    except Exception as error:  # the conversation goes on; the fault is counted, and said to whoever wrote the tool
        words = f"{type(error).__name__}: {error}"
        warnings.warn(f"the tool {call.name} raised {words:.200}", RuntimeWarning, stacklevel=2)
        return Result(call.name, f"Error: {call.name} raised {words}"[:LONGEST_RESULT], "tool")
    return Result(call.name, text[:LONGEST_RESULT])


def _mistake(tools: Mapping[str, Tool], call: Call) -> str:
    """What is wrong with a call, in words; empty: nothing."""
    if call.name not in tools:
        near = difflib.get_close_matches(call.name, tools, 1)
        guess = f"; did you mean {near[0]}?" if near else "."
        return f"there is no tool {call.name!r:.60}; there are {', '.join(tools)}{guess}"
    tool = tools[call.name]
    takes = ", ".join(f"{name} ({_words(schema)})" for name, schema in tool.parameters.items()) or "no arguments"
    for name in call.arguments:
        if name not in tool.parameters:
            return f"{call.name} has no argument {name!r:.60}; it takes {takes}."
    for name in tool.required:
        if name not in call.arguments:
            return f"{call.name} lacks the argument {name}; it takes {takes}."
    for name, value in call.arguments.items():
        if not fits(value, tool.parameters[name]):
            return f"the argument {name} of {call.name} is {shown(value)}; it must be {_words(tool.parameters[name])}."
    return ""


_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != math.inf,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Is this a value of the JSON schema, as far as `transformers` writes them?"""
    if value is None and schema.get("nullable"):
        return True
    if "anyOf" in schema and not any(fits(value, option) for option in schema["anyOf"]):
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_KINDS.get(kind, lambda _: True)(value) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, list):
        firsts = schema.get("prefixItems")
        if firsts is not None:
            return len(value) == len(firsts) and all(map(fits, value, firsts))
        return all(fits(item, schema.get("items", {})) for item in value)
    others = schema.get("additionalProperties", {})
    return not isinstance(value, dict) or all(fits(item, others) for item in value.values())


def _as_hinted(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with whole numbers as int where JSON had 3.0."""
    return {
        name: int(value) if isinstance(value, float) and tool.parameters[name].get("type") == "integer" else value
        for name, value in arguments.items()
    }


def _words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "enum" in schema:
        return " or ".join(map(shown, schema["enum"]))
    kinds = schema.get("type", "anything")
    words = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if words == "array" and (items := schema.get("items")):
        words = f"array of {_words(items)}"
    return words + (" or null" if schema.get("nullable") else "")
