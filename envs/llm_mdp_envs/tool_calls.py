"""Calls of tools in what a language model says, in the forms that models are trained to write:

    <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>                        Hermes, Qwen
    <tool_call><function=add><parameter=a>1</parameter>…</function></tool_call>                  Qwen3-Coder
    {"name": "add", "parameters": {"a": 1, "b": 2}}       (alone, or behind <|python_tag|>)      Llama 3.1
    <function=add>{"a": 1, "b": 2}</function>                                                    Llama 3.1
    [TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": 2}}]      or add[ARGS]{"a": 1, …}    Mistral
    [add(a=1, b=2)]       or add(a=1, b=2), when the turn says nothing else                      Llama 3.2

What stands in <think> … </think> is no call.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

FORM = '{"name": TOOL, "arguments": {…}}'

LONGEST_CALL = 100_000
"""Characters beyond which a turn is not read as Python."""

Tools = Mapping[str, Mapping[str, dict]]


@dataclass(frozen=True)
class Call:
    """One call in what a model said."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why it cannot be read, in words; empty if it can."""


def parse_calls(text: str, tools: Tools) -> list[Call]:
    """The calls in what a model said, in their order; none: it said something else. What is marked as a call but cannot
    be read is a `Call` with an error.

    Args:
        text: one turn, special tokens included.
        tools: the JSON schemas of the arguments of each tool, by name.
    """
    text = without_thoughts(text)
    for mark, read in _MARKS.items():
        if mark in text:
            return [call for part in text.split(mark)[1:] for call in read(part, tools)]
    return _python_calls(_unfenced(text), tools) or list(_bare_objects(text, tools))


def shown(value: Any) -> str:
    """A value as JSON, in short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def without_thoughts(text: str) -> str:
    """What follows the thoughts; their beginning may have been written by the template, their end be missing."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _unfenced(text: str) -> str:
    fenced = re.fullmatch(r"\s*(```|~~~)[\w-]*[ \t]*\n(.*?)\n?\s*\1\s*", text, flags=re.DOTALL)
    return (fenced[2] if fenced else text).strip()


def _hermes(part: str, tools: Tools) -> list[Call]:
    """What follows <tool_call>; a closing tag inside a JSON string does not close it."""
    body = part.strip()
    if body.startswith("<function="):
        return _functions(body.removeprefix("<function="), tools)
    value, rest = _first_json(body)
    if value is not None and (not rest.strip() or rest.strip().startswith("<")):
        return _calls_of(value)
    body = body.partition("</tool_call>")[0].strip()
    return _python_calls(body, tools) or _calls_of(*_whole_json(body))


def _llama(part: str, tools: Tools) -> list[Call]:
    """What follows <|python_tag|>: JSON objects, or f(x=1) or f.call(x=1)."""
    body = re.sub(r"<\|\w+\|>\s*$", "", part.strip())
    if said := _python_calls(body, tools):
        return said
    calls = []
    while body:
        value, rest = _first_json(body)
        if value is None:
            return [*calls, *_calls_of(*_whole_json(body))]
        calls += _calls_of(value)
        body = rest.lstrip(" \t\r\n;,")
    return calls or _calls_of(*_whole_json(""))


def _functions(part: str, tools: Tools) -> list[Call]:
    """What follows <function=: NAME>{…}</function>, or NAME><parameter=KEY>VALUE</parameter>…"""
    name, _, body = part.partition(">")
    name, body = name.strip(), body.strip()
    if "<parameter=" not in body:
        value, rest = _first_json(body)
        if isinstance(value, dict) and not rest.partition("</function>")[0].strip():
            return [Call(name, value)]
        plain = body.partition("</function>")[0].strip()
        return [Call(name)] if not plain else [Call(name, error=f"the arguments of {name} are no JSON object.")]
    arguments: dict[str, Any] = {}
    for key, value in re.findall(r"<parameter=([^>]*)>\n?(.*?)\n?</parameter>", body, flags=re.DOTALL):
        schema = tools[name].get(key.strip(), {}) if name in tools else {}
        decoded, error = (value, "") if schema.get("type", "string") == "string" else _whole_json(value)
        arguments[key.strip()] = value if error else decoded
    return [Call(name, arguments)]


def _mistral(part: str, tools: Tools) -> list[Call]:
    """What follows [TOOL_CALLS]: a JSON list, or NAME[ARGS]{…}."""
    body = part.strip()
    if named := re.match(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*[\w-]+\s*)?(?:\[ARGS\])?\s*(?=\{)", body):
        value, _ = _first_json(body[named.end() :])
        wrong = "" if isinstance(value, dict) else f"the arguments of {named[1]} are no JSON object."
        return [Call(named[1], value if isinstance(value, dict) else {}, wrong)]
    value, _ = _first_json(body)
    return _calls_of(value) if value is not None else _calls_of(*_whole_json(body))


_MARKS: dict[str, Callable[[str, Tools], list[Call]]] = {
    "<tool_call>": _hermes,
    "[TOOL_CALLS]": _mistral,
    "<|python_tag|>": _llama,
    "<function=": _functions,
}
"""What begins a call, and what reads the text after it."""


def _bare_objects(text: str, tools: Tools) -> Iterator[Call]:
    """JSON objects at the beginning of a line that have the form of a call, or that try to."""
    place = 0
    while found := re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE).search(text, place):
        value, rest = _first_json(text[found.end() :])
        place = len(text) - len(rest) if value is not None else found.end() + 1
        objects = value if isinstance(value, list) and value else [value]
        if all(isinstance(one, dict) and _has_form(one) for one in objects):
            yield from _calls_of(value)
            while text[place:].lstrip().startswith(";"):  # Llama's own separator
                following, rest = _first_json(text[place:].lstrip(" \t\r\n;"))
                if following is None:
                    break
                yield from _calls_of(following)
                place = len(text) - len(rest)
        elif value is None and text[found.end() :].lstrip("[ \n").startswith("{"):
            name = re.match(r'[\[{\s]*"name"\s*:\s*"([^"]*)"', text[found.end() :])
            if name and name[1] in tools:
                yield Call(name[1], error=_whole_json(text[found.end() :].strip())[1])
                return


def _has_form(value: Mapping[str, Any]) -> bool:
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    return isinstance(inner.get("name"), str) and bool({"arguments", "parameters"} & {*inner})


def _calls_of(value: Any, error: str = "") -> list[Call]:
    """A JSON value, an object or several, as calls."""
    if error:
        return [Call("", error=error)]
    return [_call_of(one) for one in (value if isinstance(value, list) and value else [value])]


def _call_of(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call("", error=f"the call {shown(value)} has not the form {FORM}.")
    name, arguments = value["name"], value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # OpenAI's form has the arguments as a text
        arguments = _whole_json(arguments)[0] if arguments.strip() else None
        arguments = value.get("arguments", value.get("parameters")) if arguments is None else arguments
    if arguments is not None and not isinstance(arguments, dict):
        return Call(name, error=f"the arguments of {name} are {shown(arguments)}; they must be a JSON object.")
    return Call(name, arguments or {})


def _python_calls(text: str, tools: Tools) -> list[Call]:
    """Calls of tools in Python's form, if the text is nothing but these; arguments are literals."""
    if not re.match(r"\[?\s*[A-Za-z_]\w*(\.call)?\s*\(", text) or len(text) > LONGEST_CALL:
        return []
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = [
        node
        for line in body
        if isinstance(line, ast.Expr)
        for node in (line.value.elts if isinstance(line.value, ast.List | ast.Tuple) else [line.value])
    ]
    calls = [_python_call(node, tools) for node in nodes]
    known = [call for call in calls if call is not None]
    return known if len(known) == len(calls) and all(isinstance(line, ast.Expr) for line in body) else []


def _python_call(node: ast.expr, tools: Tools) -> Call | None:
    """None: it is no call of a tool."""
    if not isinstance(node, ast.Call):
        return None
    function = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "call" else node.func
    if not isinstance(function, ast.Name) or function.id not in tools:
        return None
    name, names = function.id, list(tools[function.id])
    if len(node.args) > len(names):
        return Call(name, error=f"{name} takes {len(names)} arguments, not {len(node.args)}.")
    pairs = [*zip(names, node.args), *((keyword.arg or "**", keyword.value) for keyword in node.keywords)]
    try:
        return Call(name, {key: ast.literal_eval(value) for key, value in pairs})
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return Call(name, error=f"the arguments of {name} must be numbers, texts, lists or other literals.")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _first_json(text: str) -> tuple[Any, str]:
    """The JSON value at the beginning of a text and the rest; None if there is none."""
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:]


def _whole_json(text: str) -> tuple[Any, str]:
    """The value and no error, or None and what is wrong."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except RecursionError:
        return None, f"the call is nested too deeply; write {FORM}."
    except ValueError as error:
        return None, f"the call is no JSON ({error}); write {FORM}."
