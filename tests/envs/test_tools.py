"""Functions as tools: their descriptions, calls in the forms that models write, results and errors in words."""

import json
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.tool_calls import parse_calls
from llm_mdp_envs.tools import MOST_CALLS, ToolError, described, fits, run_calls, tools_of


def add(a: int, b: int = 10) -> int:
    """Add two whole numbers.

    Args:
        a: one number.
        b: the other.
    """
    return a + b


def say(text: str) -> str:
    """Say a text.

    Args:
        text: what to say.
    """
    return text


def now() -> dict:
    """Tell the time."""
    return {"hour": 12, "zone": "Zürich"}


def divide(a: float, b: float) -> float:
    """Divide.

    Args:
        a: what is divided.
        b: by what.
    """
    if b < 0:
        raise ToolError("b is below 0, which this tool does not like.")
    return a / b


TOOLS = tools_of([add, say, now, divide])
SCHEMAS = {name: tool.parameters for name, tool in TOOLS.items()}


def calls(text: str) -> list[tuple[str, dict]]:
    parsed = parse_calls(text, SCHEMAS)
    assert not [call.error for call in parsed if call.error]
    return [(call.name, dict(call.arguments)) for call in parsed]


def said(text: str) -> list[str]:
    return [result.text for result in run_calls(TOOLS, parse_calls(text, SCHEMAS))]


ADD, NOW = ("add", {"a": 1, "b": 2}), ("now", {})
JSON = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
LLAMA = '{"name": "add", "parameters": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Hermes, Qwen
        (f"<tool_call>{JSON}</tool_call>", [ADD]),
        (f'I add.\n<tool_call>\n{JSON}\n</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>', [ADD, NOW]),
        (f"<tool_call>{JSON}", [ADD]),
        (f"<tool_call>\n{JSON}\n<tool_call>\n{JSON}\n", [ADD, ADD]),
        (f"<tool_call>[{JSON}, {JSON}]</tool_call>", [ADD, ADD]),
        (
            '<tool_call>{"name": "say", "arguments": {"text": "</tool_call>"}}</tool_call>',
            [("say", {"text": "</tool_call>"})],
        ),
        ('<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>', [ADD]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>', [ADD]),
        (
            '<tool_call>{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}</tool_call>',
            [ADD],
        ),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', [NOW]),
        ("<tool_call>add(a=1, b=2)</tool_call>", [ADD]),
        # Qwen3-Coder
        (
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n"
            "</tool_call>",
            [ADD],
        ),
        ("<function=say><parameter=text>\n12\n</parameter></function>", [("say", {"text": "12"})]),
        # Llama 3.1 and 3.2
        (LLAMA, [ADD]),
        (f"<|python_tag|>{LLAMA}<|eom_id|>", [ADD]),
        (f'<|python_tag|>{LLAMA}; {{"name": "now", "parameters": {{}}}}', [ADD, NOW]),
        (f'{LLAMA};{{"name": "now", "parameters": {{}}}}', [ADD, NOW]),
        (f'{LLAMA}\n{{"name": "now", "parameters": {{}}}}', [ADD, NOW]),
        ("<|python_tag|>add.call(a=1, b=2)", [ADD]),
        ('<function=add>{"a": 1, "b": 2}</function>', [ADD]),
        ("<function=now></function>", [NOW]),
        ("[add(a=1, b=2), now()]", [ADD, NOW]),
        ("add(1, b=2)", [ADD]),
        ("```python\nadd(1, 2)\nnow()\n```", [ADD, NOW]),
        # Mistral
        (f"[TOOL_CALLS][{JSON}, {JSON}]", [ADD, ADD]),
        ('[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}[TOOL_CALLS]now[ARGS]{}', [ADD, NOW]),
        # others
        (f"Sure:\n```json\n{JSON}\n```\nLet us see.", [ADD]),
        (f"<think>now() or add?</think>\n<tool_call>{JSON}</tool_call>", [ADD]),
        (f"it says </think>{LLAMA}", [ADD]),
    ],
)
def test_calls_in_the_forms_of_many_models(text, expected):
    assert calls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 3.",
        "I would use add(1, 2) here.",
        "print(3)",
        "f(x) = 3",
        "[1, 2, 3]",
        "[]",
        '{"answer": 3}',
        '{"name": "Bob", "age": 3}',
        "<think>add(1, 2)</think>12",
        f"<think><tool_call>{JSON}</tool_call>",
        "add(1, 2",
        "add",
        "[" * 5000,
        "add(" * 5000,
    ],
)
def test_what_is_no_call(text):
    assert parse_calls(text, SCHEMAS) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1,}}</tool_call>', "is no JSON"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}', "is no JSON"),
        ('{"name": "add", "arguments": {"a": 1', "is no JSON"),
        ("<tool_call></tool_call>", "is no JSON"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "is no JSON"),
        (f'<tool_call>{{"name": "add", "arguments": {{"a": {"9" * 5000}}}}}</tool_call>', "is no JSON"),
        ("<tool_call>" + "[" * 100_000, "nested too deeply"),
        ("<tool_call>42</tool_call>", "has not the form"),
        ('<tool_call>{"tool": "add"}</tool_call>', "has not the form"),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "must be a JSON object"),
        ("<function=add>1, 2</function>", "are no JSON object"),
        ("[TOOL_CALLS]nothing", "is no JSON"),
        (
            '<tool_call>{"name": "ad", "arguments": {}}</tool_call>',
            "no tool 'ad'; there are add, say, now, divide; did you mean add?",
        ),
        ('{"name": "search", "parameters": {}}', "no tool 'search'; there are"),
        (
            '<tool_call>{"name": "add", "arguments": {}}</tool_call>',
            "lacks the argument a; it takes a (integer), b (integer)",
        ),
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "c": 2}}</tool_call>', "no argument 'c'"),
        ('<tool_call>{"name": "now", "arguments": {"c": 2}}</tool_call>', "takes no arguments"),
        ('<tool_call>{"name": "add", "arguments": {"a": "1"}}</tool_call>', 'a of add is "1"; it must be integer'),
        ('<tool_call>{"name": "add", "arguments": {"a": true}}</tool_call>', "a of add is true"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1.5}}</tool_call>', "a of add is 1.5"),
        ('<tool_call>{"name": "divide", "arguments": {"a": 1e400, "b": 1}}</tool_call>', "a of divide is Infinity"),
        ('<tool_call>{"name": "say", "arguments": {"text": null}}</tool_call>', "text of say is null"),
        ("add(x)", "must be numbers, texts, lists"),
        ("add(1, 2, 3)", "takes 2 arguments, not 3"),
    ],
)
def test_malformed_calls_are_answered_in_words(text, words):
    (result,) = run_calls(TOOLS, parse_calls(text, SCHEMAS))
    assert result.text.startswith("Error: ") and words in result.text and result.fault == "call"
    assert len(result.text) < 400


def test_results():
    assert said("[add(1), add(a=1, b=2)]") == ["11", "3"]
    assert said('<tool_call>{"name": "add", "arguments": {"a": 3.0}}</tool_call>') == ["13"]
    assert json.loads(said("now()")[0]) == {"hour": 12, "zone": "Zürich"} and "ü" in said("now()")[0]
    assert said("say('plain')") == ["plain"]


def test_a_good_call_beside_a_bad_one():
    assert [
        result.fault for result in run_calls(TOOLS, parse_calls(f"<tool_call>{JSON}</tool_call><tool_call>{{", SCHEMAS))
    ] == ["", "call"]


def test_an_exception_of_a_tool_is_named_and_one_that_it_means_is_not_its_fault():
    with pytest.warns(RuntimeWarning, match="the tool divide raised ZeroDivisionError"):
        (result,) = run_calls(TOOLS, parse_calls("divide(1, 0)", SCHEMAS))
    assert result.fault == "tool" and result.text == "Error: divide raised ZeroDivisionError: division by zero"
    (result,) = run_calls(TOOLS, parse_calls("divide(1, -1)", SCHEMAS))
    assert result.fault == "call" and result.text == "Error: b is below 0, which this tool does not like."


def test_what_a_tool_returns_must_be_json():
    def odd() -> object:
        """Odd."""
        return object()

    odd.__annotations__ = {}
    tools = tools_of([odd])
    with pytest.warns(RuntimeWarning, match="not JSON serializable"):
        (result,) = run_calls(tools, parse_calls("odd()", {"odd": {}}))
    assert result.fault == "tool"


def test_a_flood_of_calls_is_cut_and_said():
    results = run_calls(TOOLS, parse_calls(f"<tool_call>{JSON}</tool_call>" * 100, SCHEMAS))
    assert len(results) == MOST_CALLS + 1 and "100 calls in one turn; only the first 16" in results[-1].text


@pytest.mark.parametrize("wrong", [lambda x: x, len, 3, "add", str, None])
def test_what_is_no_tool(wrong):
    with pytest.raises(ValueError, match=r"the tool .* is no function|cannot be a tool: .*type hints"):
        tools_of([wrong])


def test_two_tools_of_one_name():
    with pytest.raises(ValueError, match="two tools have the name 'add'"):
        tools_of([add, add])


def test_methods_are_tools_without_self():
    class Shelf:
        def put(self, book: str, place: Literal["left", "right"] = "left", note: str | None = None) -> str:
            """Put a book.

            Args:
                book: its title.
                place: where.
                note: on it.
            """
            return f"{book} {place} {note}"

    tools = tools_of([Shelf().put])
    schemas = {"put": tools["put"].parameters}
    assert run_calls(tools, parse_calls("put('Emma', note=None)", schemas))[0].text == "Emma left None"
    (result,) = run_calls(tools, parse_calls("put('Emma', place='up')", schemas))
    assert 'place of put is "up"; it must be "left" or "right"' in result.text


def test_the_description_has_every_tool():
    words = described(TOOLS)
    assert all(f'"name": "{name}"' in words for name in TOOLS) and "Add two whole numbers." in words


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ([1, 2], {"type": "array", "items": {"type": "integer"}}, True),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}, False),
        ([1, "a"], {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, True),
        ([1], {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, False),
        ({"a": 1}, {"type": "object", "additionalProperties": {"type": "integer"}}, True),
        ({"a": "1"}, {"type": "object", "additionalProperties": {"type": "integer"}}, False),
        (None, {"type": "number", "nullable": True}, True),
        (None, {"type": "number"}, False),
        ("a", {"type": ["integer", "string"]}, True),
        ([], {"type": ["integer", "string"]}, False),
        ("a", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, False),
        (10**30, {"type": "integer"}, True),
        ("anything", {}, True),
    ],
)
def test_values_and_schemas(value, schema, expected):
    assert fits(value, schema) is expected


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "[TOOL_CALLS]",
                "<|python_tag|>",
                "<function=",
                "add",
                "(",
                ")",
                "{",
                "}",
                "[",
                "]",
                '"name":',
                '"add"',
                ",",
                "1",
                "<think>",
                "</think>",
                "\n",
                "```",
                ";",
                "\\",
                "=",
                "<parameter=a>",
            ]
        ),
        max_size=30,
    )
)
def test_any_babble_is_read(pieces):
    for result in run_calls(TOOLS, parse_calls("".join(pieces), SCHEMAS)):
        assert isinstance(result.text, str)


@settings(max_examples=20, deadline=None)
@given(st.text(), st.sampled_from(["<tool_call>%s</tool_call>", "%s", "<|python_tag|>%s", "[TOOL_CALLS][%s]"]))
def test_any_text_arrives(text, form):
    call = json.dumps({"name": "say", "arguments": {"text": text}})
    if not any(mark in text for mark in ("<tool_call>", "<think>", "</think>")):
        assert said(form % call) == [text]
