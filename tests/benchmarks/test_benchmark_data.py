"""The problem sets of our own in `benchmarks/data`: they are what they say, and right."""

import importlib
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_word_problems_are_what_their_script_makes(monkeypatch):
    monkeypatch.syspath_prepend(DATA)
    assert importlib.import_module("make_gsm8k_format").rows() == rows("gsm8k_format.jsonl")


def test_the_word_problems_have_the_form_of_gsm8k_and_right_steps():
    problems = rows("gsm8k_format.jsonl")
    assert len(problems) == len({row["question"] for row in problems}) == 128
    for row in problems:
        assert row.keys() == {"question", "answer"} and row["question"].endswith("?")
        *steps, last = row["answer"].split("\n")
        assert 1 <= len(steps) <= 4
        values = []
        for step in steps:
            for shown, expression, value, again in re.findall(r"([\d.*/+-]+) = <<([^=]+)=([^>]+)>>([\d.]*\d)", step):
                assert shown == expression and value == again
                # Every number as a fraction, so that nothing is rounded.
                exact = eval(re.sub(r"[\d.]+", r"Fraction('\g<0>')", expression), {"Fraction": Fraction})
                assert exact == Fraction(value), step
                values.append(value)
        answer = re.fullmatch(r"#### ((?:\d{1,3}(?:,\d{3})*|\d+)(?:\.\d+)?)", last)
        assert answer and Fraction(answer[1].replace(",", "")) == Fraction(values[-1])


def test_the_programs_pass_their_own_tests():
    problems = rows("mbpp_format.jsonl")
    assert [row["task_id"] for row in problems] == list(range(1, 129))
    assert len({row["text"] for row in problems}) == 128
    assert all(len(row["test_list"]) == 3 for row in problems)
    programs = ["\n".join([row["code"], row.get("test_setup_code", ""), *row["test_list"]]) for row in problems]
    script = "import json, sys\nfor program in json.load(sys.stdin):\n    exec(program, {'__name__': 'program'})"
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(programs), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(0, 128, 16))
def test_the_tests_notice_a_program_that_returns_nothing(number):
    row = rows("mbpp_format.jsonl")[number]
    name = re.findall(r"^def (\w+)", row["code"], re.MULTILINE)[-1]
    wrong = "\n".join(
        [row["code"], f"def {name}(*arguments, **named): pass", row.get("test_setup_code", ""), *row["test_list"]]
    )
    with pytest.raises(Exception):  # noqa: B017
        exec(wrong, {"__name__": "program"})
