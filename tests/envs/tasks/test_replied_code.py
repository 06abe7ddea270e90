"""Where the program is in a reply, in replies as models write them: what a person would call right passes, and what is
a draft, a thought, a usage example or wrong does not."""

# ruff: noqa: E501 (tables)
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.sandbox import Case, SandboxUnavailable, grade, make_sandbox
from llm_mdp_envs.tasks.programs import CodingProblem
from llm_mdp_envs.tasks.replied_code import free_names, program_of
from llm_mdp_envs.tasks.reply_parts import is_python, passages, without_thoughts

R = "def add(a, b):\n    return a + b\n"
W = "def add(a, b):\n    return a - b\n"
T = "```"
REPLIES = [
    ("body", "    return a + b\n", "passed"),
    ("body, no newline", "    return a + b", "passed"),
    ("body after a blank line", "\n    return a + b\n", "passed"),
    ("body without first indent", "return a + b\n", "passed"),
    ("body without first indent, rest with", "total = a + b\n    return total\n", "passed"),
    ("body at margin", "total = a + b\nreturn total\n", "passed"),
    ("tab body", "\treturn a + b\n", "passed"),
    ("wrong body", "    return a - b\n", "failed"),
    ("body then def", "    return a + b\n\n\ndef add(a, b):\n    return a - b\n", "passed"),
    ("wrong body then right def", "    return a - b\n\n\ndef add(a, b):\n    return a + b\n", "failed"),
    ("body then class", "    return a + b\n\nclass A:\n    oops(\n", "passed"),
    ("body then print", "    return a + b\n\nprint(add(1, 2))\nprint(input())\n", "passed"),
    ("body then main", "    return a + b\n\nif __name__ == '__main__':\n    import sys\n    sys.exit(1)\n", "passed"),
    ("body then comment", "    return a + b\n\n# Test\nassert add(1, 2) == 4\n", "passed"),
    ("body then prose", "    return a + b\n\nThis function adds two numbers. It's simple.\n", "passed"),
    ("body then tests", "    return a + b\n\nassert add(1, 2) == 4\n", "passed"),
    ("body with comment at margin", "    total = a + b\n# and now\n    return total\n", "passed"),
    ("body with string at margin", '    text = """\nsome text\n"""\n    return a + b\n\nMore', "passed"),
    ("body with brackets at margin", "    return sum([\na,\nb,\n])\n\nMore", "passed"),
    ("body needs helper", "    return plus(a, b)\n\ndef plus(a, b):\n    return a + b\n\nprint(plus(", "passed"),
    ("body then fence", "    return a + b\n```\nExplanation: adds", "passed"),
    ("body cut in next def", "    return a + b\n\ndef sub(a, b):\n    return a", "passed"),
    ("body with two-space indent", "  total = a + b\n  return total\n", "passed"),
    ("whole", R, "passed"),
    ("whole, wrong", W, "failed"),
    ("whole after a bare word", f"python\n{R}", "passed"),
    ("whole between bare words", f"BEGIN\n{R}\nEND", "passed"),
    ("whole indented", "    def add(a, b):\n        return a + b\n", "passed"),
    ("nested of the same name", "    def add(x, y):\n        return x + y\n    return add(a, b)\n", "passed"),
    ("one space before", " def add(a, b):\n    return a + b\n", "passed"),
    ("fence", f"{T}python\n{R}{T}\n", "passed"),
    ("fence, no language", f"Sure!\n{T}\n{R}{T}\nDone.", "passed"),
    ("fence, title", f'{T}python title="add.py"\n{R}{T}', "passed"),
    ("fence, Python capital", f"{T}Python\n{R}{T}", "passed"),
    ("fence, py", f"{T}py\n{R}{T}", "passed"),
    ("fence {.python}", f"{T}{{.python}}\n{R}{T}", "passed"),
    ("four ticks", f"{T}`python\n{R}{T}`", "passed"),
    ("tildes", f"~~~python\n{R}~~~", "passed"),
    ("fence in list", f"1. Do it:\n\n   {T}python\n   def add(a, b):\n       return a + b\n   {T}\n2. Done", "passed"),
    ("fence at list mark", f"- {T}python\n  def add(a, b):\n      return a + b\n  {T}\n", "passed"),
    ("quoted", f"> {T}python\n> def add(a, b):\n>     return a + b\n> {T}\n", "passed"),
    ("unclosed", f"Here:\n{T}python\n{R}", "passed"),
    ("fence after words", f"Here it is: {T}python\n{R}{T}", "passed"),
    ("closing on the line", f"{T}python\ndef add(a, b):\n    return a + b{T}\nok", "passed"),
    ("one line fence", f"{T}python def add(a, b): return a + b{T}", "passed"),
    ("ended by fence only (prefilled)", f"{R}{T}\nThis works because it adds.", "passed"),
    ("shell first", f"Install:\n{T}bash\npip install add\n{T}\n{T}python\n{R}{T}\n{T}sh\npython add.py\n{T}", "passed"),
    ("output after", f"{T}python\n{R}{T}\nOutput:\n{T}\n3\n{T}", "passed"),
    ("usage after", f"{T}python\n{R}{T}\nUsage:\n{T}python\nprint(add(1, 2))  # 3\nresult = add(3, 4)\n{T}", "passed"),
    (
        "usage before",
        f"Used so:\n{T}python\nresult = add(1, 2)\nprint(result)\n{T}\nThe function:\n{T}python\ndef add(a, b):\n    result = a + b\n    return result\n{T}",
        "passed",
    ),
    (
        "usage import after",
        f"{T}python\n{R}{T}\nTest:\n{T}python\nfrom solution import add\nimport pytest\nassert add(1, 2) == 3\n{T}",
        "passed",
    ),
    ("usage in block", f"{T}python\n{R}\na = int(input())\nb = int(input())\nprint(add(a, b))\n{T}", "passed"),
    ("failing assert in block", f"{T}python\n{R}\nassert add(1, 2) == 4\n{T}", "passed"),
    (
        "main in block",
        f"{T}python\nimport sys\n{R}\ndef main():\n    sys.exit(3)\n\nif __name__ == '__main__':\n    main()\nmain()\n{T}",
        "passed",
    ),
    (
        "unittest in block",
        f"{T}python\nimport unittest\nimport pytest\n{R}\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 4)\nunittest.main()\n{T}",
        "passed",
    ),
    ("draft then final", f"{T}python\n{W}{T}\nCorrection:\n{T}python\n{R}{T}", "passed"),
    ("right draft then wrong final", f"{T}python\n{R}{T}\nCorrection:\n{T}python\n{W}{T}", "failed"),
    (
        "right draft then broken final",
        f"{T}python\n{R}{T}\nBetter:\n{T}python\ndef add(a, b):\n    return (a -\n",
        "error",
    ),
    ("draft in one block", f"{T}python\n{R}\n{W}{T}", "failed"),
    ("signature again", f"{T}python\n{R}{T}\nExplanation:\n{T}python\ndef add(a, b):\n{T}\ndefines it.", "passed"),
    (
        "stub again",
        f'{T}python\n{R}{T}\nYou began with:\n{T}python\ndef add(a, b):\n    """Add."""\n    pass\n{T}',
        "passed",
    ),
    ("think", f"<think>\nMaybe\n{T}python\n{W}{T}\n</think>\n{T}python\n{R}{T}", "passed"),
    ("think holds the right one", f"<think>\n{T}python\n{R}{T}\n</think>\nI do not know.", "error"),
    ("think not opened", f"Maybe\n{T}python\n{W}{T}\n</think>\n\n{R}", "passed"),
    ("think not opened, right inside", f"{R}\n</think>\n\n{W}", "failed"),
    ("think not closed", f"<think>\nSo:\n{T}python\n{R}{T}\nhm", "error"),
    ("think then body", "<think>easy</think>\n    return a + b\n", "passed"),
    (
        "think in a string",
        f"{T}python\ndef add(a, b):\n    '<think>'.replace('</think>', '')\n    return a + b\n{T}",
        "passed",
    ),
    ("prose around", f"Here is the function:\n\n{R}\nThis function returns a + b, doesn't it?", "passed"),
    (
        "prose around, imports",
        "Here you are:\n\nimport operator\nimport numpy as np\n\ndef add(a, b):\n    return operator.add(a, b)\n\nI hope this helps!",
        "passed",
    ),
    ("prose with assignment", f"With x = 5 we have\nx = 5 apples\n\n{R}\nresult = add(1, 2)\nwould be 3.", "passed"),
    (
        "prose, helper before",
        "First a helper:\n\ndef plus(x, y):\n    return x + y\n\nThen:\n\ndef add(a, b):\n    return plus(a, b)\n\nDone.",
        "passed",
    ),
    (
        "helper block",
        f"{T}python\ndef plus(x, y):\n    return x + y\n\nprint(plus(1, 2) / 0)\n{T}\nand\n{T}python\ndef add(a, b):\n    return plus(a, b)\n{T}",
        "passed",
    ),
    (
        "helper block after",
        f"{T}python\ndef add(a, b):\n    return plus(a, b)\n{T}\nwhere\n{T}python\ndef plus(x, y):\n    return x + y\n{T}",
        "passed",
    ),
    (
        "import block",
        f"{T}python\nimport operator\n{T}\n{T}python\ndef add(a, b):\n    return operator.add(a, b)\n{T}",
        "passed",
    ),
    (
        "class block",
        f"{T}python\nclass Adder:\n    def __init__(self, a):\n        self.a = a\n    def to(self, b):\n        return self.a + b\n{T}\n{T}python\ndef add(a, b):\n    return Adder(a).to(b)\n{T}",
        "passed",
    ),
    (
        "draft of helper",
        f"{T}python\ndef plus(x, y):\n    return x - y\n{T}\nno,\n{T}python\ndef plus(x, y):\n    return x + y\n{T}\n{T}python\ndef add(a, b):\n    return plus(a, b)\n{T}",
        "passed",
    ),
    (
        "docstring with fences",
        f'{T}python\ndef add(a, b):\n    """Add.\n\n    {T}python\n    add(1, 2)\n    {T}\n    """\n    return a + b\n{T}\nDone',
        "passed",
    ),
    (
        "docstring with fences at margin",
        f'{T}python\ndef add(a, b):\n    """Add.\n\n{T}\nadd(1, 2)\n{T}\n    """\n    return a + b\n{T}\nDone',
        "passed",
    ),
    ("fenced body", f"{T}python\n    return a + b\n{T}", "passed"),
    (
        "fenced body at margin",
        f"Fill in:\n{T}python\nreturn a + b\n{T}\nExample\n{T}python\nprint(add(1, 2))\n{T}",
        "passed",
    ),
    ("no-break spaces", "def add(a, b):\n\u00a0\u00a0\u00a0\u00a0return a\u00a0+ b\n", "passed"),
    ("no-break body", "\u00a0\u00a0\u00a0\u00a0return a + b\n", "passed"),
    ("zero width", f"{T}python\n\u200bdef add(a, b):\n    return a\u200b + b\n{T}", "passed"),
    ("BOM", "\ufeff" + R, "passed"),
    ("CRLF", R.replace("\n", "\r\n"), "passed"),
    ("CRLF fence", f"Hi\r\n{T}python\r\ndef add(a, b):\r\n    return a + b\r\n{T}\r\n", "passed"),
    (
        "tabs and spaces",
        "def add(a, b):\n\tif a:\n        pass\n\treturn a + b\n".replace("        pass", "\t    pass"),
        "passed",
    ),
    ("PYTHON tags", f"[PYTHON]\n{R}[/PYTHON]\n", "passed"),
    ("PYTHON tags inline", "[PYTHON]def add(a, b):\n    return a + b[/PYTHON]", "passed"),
    ("BEGIN DONE", f"[BEGIN]\n{R}[DONE]\nnext", "passed"),
    ("code tag", f"<code>\n{R}</code>", "passed"),
    ("answer tag", f"<answer>\n{T}python\n{R}{T}\n</answer>", "passed"),
    ("answer tag inline", "<answer>def add(a, b):\n    return a + b</answer>", "passed"),
    ("doctest prompts", f"{T}python\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n{T}", "passed"),
    ("lambda", f"{T}python\nadd = lambda a, b: a + b\n{T}", "passed"),
    ("imported", f"{T}python\nfrom operator import add\n{T}", "passed"),
    (
        "decorated",
        f"{T}python\nfrom functools import lru_cache\n\n@lru_cache(maxsize=None)\ndef add(a, b):\n    return a + b\n{T}",
        "passed",
    ),
    ("wrapped after", f"{T}python\nimport functools\n{R}\nadd = functools.lru_cache(add)\n{T}", "passed"),
    (
        "table filled after",
        f"{T}python\ntable = {{}}\ndef add(a, b):\n    return table['x'](a, b)\n\ntable['x'] = lambda a, b: a + b\nprint(add(1, 2))\n{T}",
        "passed",
    ),
    (
        "future import",
        f"{T}python\nfrom __future__ import annotations\n\ndef add(a: int, b: int) -> int:\n    return a + b\n{T}",
        "passed",
    ),
    ("unused numpy", f"{T}python\nimport numpy as np\n{R}{T}", "passed"),
    ("recursion limit", f"{T}python\nimport sys\nsys.setrecursionlimit(5000)\n{R}{T}", "passed"),
    ("markdown around", f"{T}`markdown\nThe answer:\n{T}python\n{R}{T}\n{T}`", "passed"),
    ("forgot to close", f"{T}python\n{W}\n{T}python\n{R}{T}", "passed"),
    ("ruby too", f"{T}python\n{R}{T}\nIn Ruby:\n{T}ruby\ndef add(a, b)\n  a - b\nend\n{T}", "passed"),
    ("end token on the line", "    return a + b<|endoftext|>", "passed"),
    ("end token after a fence", f"{T}python\n{R}{T}</s>", "passed"),
    ("turn goes on", f"{R}<|im_end|>\n<|im_start|>user\nThanks, that's it!", "passed"),
    ("markdown's indented block", "Here it is:\n\n    def add(a, b):\n        return a + b\n\nIt's done.", "passed"),
    ("Python 2 usage", f"{T}python\n{R}\nprint add(1, 2)\n{T}", "passed"),
    ("usage takes the name", f"{T}python\n{R}\nadd = add(1, 2)\nprint(add)\n{T}", "passed"),
    ("usage block takes the name", f"{T}python\n{R}{T}\nTry:\n{T}python\nadd = add(1, 2)\n{T}", "passed"),
    ("failing assert before the final one", f"{T}python\n{W}\nassert add(1, 2) == 3\n\n{R}{T}", "passed"),
    ("input first", f"{T}python\nx = int(input())\nprint('Sum of', x)\n\n{R}\nprint(add(x, x))\n{T}", "passed"),
    ("input in the function", f"{T}python\ndef add(a, b):\n    c = input()\n    return a + b\n{T}", "error"),
    ("try around", f"{T}python\ntry:\n    import numpy\nexcept ImportError:\n    numpy = None\n\n{R}{T}", "passed"),
    ("needs numpy", f"{T}python\nimport numpy as np\n\ndef add(a, b):\n    return np.add(a, b)\n{T}", "error"),
    ("star import", f"{T}python\nfrom operator import *\n\ndef add(a, b):\n    return sub(a, neg(b))\n{T}", "passed"),
    ("global constant after", f"{T}python\ndef add(a, b):\n    return a + b + ZERO\n\nZERO = 0\n{T}", "passed"),
    ("two on a line", "def add(a, b): return plus(a, b)\nplus = lambda a, b: a + b; print(1 / 0)\n", "error"),
    ("nothing", "", "error"),
    ("prose only", "I am sorry, I cannot help with that.", "error"),
    ("other function", f"{T}python\ndef plus(a, b):\n    return a + b\n{T}", "failed"),
    ("raises", "    raise NotImplementedError\n", "error"),
    (
        "multi-line signature",
        f"{T}python\ndef add(\n    a: int,\n    b: int,\n) -> int:\n    return a + b\n{T}",
        "passed",
    ),
    ("trailing prose in unclosed fence", f"{T}python\n{R}\nThis function adds.\nIt's fine.", "passed"),
    ("example prints in comment", f"{T}python\n{R}\n# Example usage:\n# add(1, 2)\n{T}", "passed"),
    (
        "bold headings",
        f"**Solution:**\n\n{T}python\n{R}{T}\n\n**Explanation:**\n\n* `a`: first\n* `b`: second",
        "passed",
    ),
    (
        "two functions, alternative",
        f"{T}python\n{R}{T}\nAlternatively:\n{T}python\ndef add_two(a, b):\n    return a - b\n{T}",
        "passed",
    ),
]

CASES = (Case((1, 2), 3), Case((5, 7), 12))
AFTER_A_SIGNATURE = CodingProblem("own/1", "Add.\ndef add(a, b):\n", "import math\n\ndef add(a, b):\n", "add", R, CASES)
PROMPT = 'from typing import List\n\n\ndef add(a, b):\n    """ Add two numbers.\n    >>> add(1, 2)\n    3\n    """\n'
AFTER_A_DOCSTRING = CodingProblem("own/2", PROMPT, PROMPT, "add", R, CASES)


@pytest.fixture(scope="module")
def verdicts():
    try:
        sandbox = make_sandbox("auto", workers=1)
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works on this machine: {error}")
    with sandbox:
        if not sandbox.full:
            pytest.skip("neither bubblewrap nor Landlock works on this machine")
        found = {}
        for problem in (AFTER_A_SIGNATURE, AFTER_A_DOCSTRING):
            outcomes = sandbox.run([problem.program(reply) for _, reply, _ in REPLIES])
            for (name, _, _), outcome in zip(REPLIES, outcomes):
                found[problem.task_id, name] = grade(outcome, CASES)
        yield found


def test_the_names_of_the_replies_differ():
    assert len({name for name, _, _ in REPLIES}) == len(REPLIES) > 100


@pytest.mark.parametrize("task_id", ["own/1", "own/2"])
@pytest.mark.parametrize("name,wanted", [(name, wanted) for name, _, wanted in REPLIES])
def test_replies(verdicts, task_id, name, wanted):
    verdict = verdicts[task_id, name].verdict
    assert verdict == wanted if wanted == "passed" else verdict in ("failed", "error")


def test_a_right_draft_and_a_wrong_end_differ_from_a_wrong_draft_and_a_right_end(verdicts):
    assert verdicts["own/1", "right draft then wrong final"].fraction == 0
    assert verdicts["own/1", "draft then final"].fraction == 1


def test_a_completion_is_the_program_as_it_is_written():
    assert program_of("    return a + b\n", PROMPT, "add") == PROMPT + "    return a + b\n"
    assert program_of("\n    return a + b", PROMPT.rstrip("\n"), "add") == PROMPT + "    return a + b"


def test_a_whole_function_takes_the_place_of_a_signature_and_keeps_what_stands_before_it():
    assert program_of(R, "import math\n\ndef add(a, b):\n", "add") == f"import math\n\n{R}"
    assert program_of(R, PROMPT, "add") == PROMPT + R
    assert program_of(R, "import math\n\n@cached\nasync def add(\n    a, b\n):\n", "add") == f"import math\n\n{R}"


@pytest.mark.parametrize("reply,left", [
    ("<think>a</think>b", "b"), ("<think>\na\n</think>\n\nb", "\nb"), ("a</think>\nb", "b"), ("a\n</think>b", "b"), ("<think>a", ""),
    ("x\n<THINK>\na", "x\n"), ("<thinking>a</thinking>b<think>", "b<think>"), ("s = '</think>'", "s = '</think>'"), ("s = '<think>'", "s = '<think>'"),
    ("<think>a</think><think>b</think>c", "c"), ("no tags", "no tags"), ("", ""),
])  # fmt: skip
def test_thoughts_are_no_part_of_the_answer(reply, left):
    assert without_thoughts(reply) == left


@pytest.mark.parametrize("text,blocks", [
    ("```\na\n```\nb\n~~~py\nc\n~~~", ["a", "c"]), ("````\n```\na\n```\n````", ["a"]), ("```python\na = '''\n```\n'''\n```", ["a = '''\n```\n'''"]),
    ("```a\nb", ["b"]), ("text ``` no fence", []), ("   ```\n     a\n   ```", ["  a"]), ("```\na```b\n```", ["a```b"]), ("", []),
])  # fmt: skip
def test_blocks(text, blocks):
    assert [content for fenced, content in passages(text) if fenced and content.strip()] == blocks


def test_free_names():
    source = "import os\nfrom m import n as k\nx = y\ndef f(a, b=c):\n    def g():\n        return a + h + len(d)\n    return [e for e in g()]\nclass C(B):\n    z = w\n"
    binds, needs = free_names(source)
    assert binds == {"os", "k", "x", "f", "C"} and needs == {"y", "c", "h", "len", "d", "B", "w"}


PIECES = st.sampled_from(["```", "```python", "~~~", "<think>", "</think>", "\n", " ", "    ", "\t", '"""', "'", "def add(a, b):", "return a", "@x", "(", "[", "# c", "a = 1", "\u00a0", "> ", "- ", "\r", "\0", "\ud800", "\\"])  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join))
def test_any_text_makes_some_text(reply):
    for problem in (AFTER_A_SIGNATURE, AFTER_A_DOCSTRING):
        assert isinstance(program_of(reply, problem.prefix, "add"), str)


@pytest.mark.parametrize(
    "piece",
    [
        "```a\n",
        "<think>\n",
        "x = (\n",
        "def add(\n",
        '"""\n',
        " ",
        "    \n",
        "@a\n",
        "<think></think>",
        "a=1;",
        "```\n'''\n",
        "> ",
        "[",
        "-",
        "def add(a): pass\n",
    ],
)
def test_no_text_takes_long_to_read(piece):
    """About 40,000 characters: a quadratic search would take minutes. The bound is on CPU time, and wide."""
    reply = piece * (40_000 // len(piece))
    start = time.process_time()
    program_of(reply, PROMPT, "add")
    assert time.process_time() - start < 20


def test_is_python_survives_what_python_refuses():
    for text in (
        "(" * 5000,
        "-" * 50_000 + "1",
        "a" + ".b" * 50_000,
        "x\0",
        "\ud800",
        "1_" * 9,
        "return 1",
        "if 1:\n" * 3,
    ):
        assert not is_python(text)
    assert is_python("'\\d'") and is_python("")


@pytest.mark.parametrize("terms", [200, 900, 2900, 5800])
def test_a_deep_expression_stops_nothing(terms):
    for expression in ("a" + "+b" * terms, "-" * terms + "a", "a" + ".b" * terms, "not " * terms + "a"):
        assert "return" in program_of(f"Hi\n```\ndef add(a, b):\n    return {expression}\n```", PROMPT, "add")


def test_python_may_refuse_to_make_a_tree(monkeypatch):
    def refuses(*_):
        raise RecursionError

    monkeypatch.setattr("llm_mdp_envs.tasks.replied_code.statements", refuses)
    assert program_of(R, "import math\n", "add") == f"import math\n{R}"
