"""Answers of replies and of solutions: every row of docs/grading.md, where answers stand, golds that are none."""

import re
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.tasks.answers import (
    after_hashes,
    find_answer,
    formula,
    gold_answer,
    hash_line,
    in_box,
    read_gold,
    same_answer,
    without_thoughts,
)
from llm_mdp_envs.tasks.graders import Grader
from llm_mdp_envs.tasks.math_problems import Math

PAGE = Path(__file__).parents[3] / "docs" / "grading.md"
TABLE = re.compile(r"<!-- cases: (\w+) -->\n\|[^\n]*\n\|[-|]*\n(.*?)<!-- end -->", re.DOTALL)
GOLD = {"gsm8k": "work\n#### {}", "math": "so $\\boxed{{{}}}$."}
COLUMNS = {"gsm8k": ("question", "answer"), "math": ("problem", "solution")}


def rows() -> list[tuple[str, str, str, str]]:
    """(convention, gold, reply, verdict) of every row of the page."""
    found = []
    for convention, table in TABLE.findall(PAGE.read_text(encoding="utf-8")):
        for line in table.splitlines():
            gold, reply, verdict, _ = (cell.strip() for cell in line.strip("|").split(" | "))
            texts = [re.sub(r"^(`+) ?(.*?) ?\1$", r"\2", cell).replace("⏎", "\n") for cell in (gold, reply)]
            found.append((convention, texts[0], "" if reply == "(nothing)" else texts[1], verdict))
    return found


ROWS = rows()


@pytest.fixture(scope="module")
def grader():
    pytest.importorskip("math_verify", reason='needs math-verify: pip install "llm-mdp[math]"')
    shared = Grader("math", seconds=3)
    yield shared
    shared.close()


def test_the_page_has_its_rows():
    assert len(ROWS) > 250 and {verdict for *_, verdict in ROWS} == {"right", "wrong"}


@pytest.mark.parametrize(("convention", "gold", "reply", "verdict"), ROWS)
def test_every_row_of_the_page(convention, gold, reply, verdict, grader):
    question, solution = COLUMNS[convention]
    task = Math([{question: "?", solution: GOLD[convention].format(gold)}], convention)
    task._grader = grader
    ((_, read),) = task.problems
    (answer,) = task.grade([task.reply_to(task.ask("?", read), reply)]).parts["answer"]
    assert answer == (verdict == "right")


@pytest.mark.parametrize(
    ("reply", "convention", "expected"),
    [
        ("#### 18", "gsm8k", ("18", True)),
        ("#### 18 eggs\nIndeed.", "gsm8k", ("18 eggs", True)),
        ("#### \\boxed{18}", "gsm8k", ("18", True)),
        ("##### 9. Finally,", "gsm8k", ("Finally,", False)),
        ("so \\boxed{18}", "gsm8k", ("18", False)),
        ("#### 18", "math", ("18", False)),
        ("<answer> 18 </answer>", "math", ("18", False)),
        ("The answer is 18.\nThe answer is correct.", "gsm8k", ("18.", False)),
        ("**Answer:**\n18", "gsm8k", ("18", False)),
        ("1. We have 6 eggs.\n2. So 6 * 3 = 18.\n3.", "gsm8k", ("So 6 * 3 = 18.", False)),
        ("She has 6. He has 18. Good!", "gsm8k", ("He has 18.", False)),
        ("<think>#### 3</think>\n#### 4", "gsm8k", ("4", True)),
        ("", "gsm8k", ("", False)),
    ],
)
def test_where_the_answer_stands(reply, convention, expected):
    assert find_answer(reply, convention) == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("#### 1\n#### 2", "2"),
        ("#### 1\n####", "1"),
        ("#### 1 ####\nBye", "1"),
        ("#### Answer:\n\n**2**", "**2**"),
        ("#### The answer is:\n2", "2"),
        ("#### Step 2: add\n5", None),
        ("####\n1. First, add", None),
        ("### 1", None),
    ],
)
def test_lines_behind_hashes(text, line):
    assert hash_line(text) == line


def test_boxes_and_hashes():
    assert in_box("\\boxed{\\boxed{3}}") == "3" and in_box("\\fbox{7} } \\boxed{8") == "7"
    assert in_box("\\boxed {\\{1,2\\}}") == "\\{1,2\\}" and in_box("\\boxed{") is None and in_box("{1}") is None
    assert after_hashes("#### a\n####  $1,000.\n") == "1000" and after_hashes("### 1") is None


def test_thoughts():
    assert without_thoughts("a<think>b</think>c") == "c" and without_thoughts("b</think>c<think>d") == "c"
    assert without_thoughts("a <think> b") == "a " and without_thoughts("I think so") == "I think so"


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        *[("so\n#### 1,234", "1234"), ("#### -7 ", "-7"), (" 12 ", "12"), ("x #### 3\n#### 4", "4")],
        *[("a \\boxed{\\frac{a}{b}} b", "\\frac{a}{b}"), ("\\boxed{1} \\boxed{2}", "2"), ("#### \\boxed{5}", "5")],
    ],
)
def test_gold_answers(solution, gold):
    assert gold_answer(solution) == gold


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (18, "18"),
        (2.5, "2.5"),
        (Decimal("0.10"), "0.10"),
        (Fraction(1, 3), "1/3"),
        ("x^2 + 1", "x^2 + 1"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("east", "east"),
        ("C", "C"),
        ("She has 18 eggs.", "She has 18 eggs."),
        ("\\boxed{\\text{no solution}}", "\\text{no solution}"),
        ("#### not enough information", "not enough information"),
        ("\\boxed{\\emptyset}", "\\emptyset"),
    ],
)
def test_golds_that_are_answers(solution, gold):
    assert read_gold(solution, "here") == gold and same_answer(gold, gold) is True


@pytest.mark.parametrize(
    "solution",
    [
        *[None, True, float("nan"), float("inf"), {"value": "18"}, ["18"], b"18", 1j, "", " \n", "####", "work ####"],
        *["\\boxed{}", "\\boxed{ }", "so \\boxed{", "I do not know.", "null", "N/A", "?", "#### ", "#### -"],
        *["\\boxed{\\frac{1}{2}", "#### null", "3 bags.\nThen 4 bags.\nSo 7 * 2."],
    ],
)
def test_golds_that_are_none(solution):
    with pytest.raises(ValueError, match=r"file\.jsonl, line 3 has the (solution|answer) ") as error:
        read_gold(solution, "file.jsonl, line 3")
    assert "\n" not in str(error.value)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(-99_999, 99_999),
    st.sampled_from(
        ["{}", "**{}** eggs", "The answer is {}.", "$\\boxed{{{}}}$", "x = {}", "{} m^2", "${}$", "{} (sure)"]
    ),
    st.sampled_from([str, "{:,}".format, "{:_}".format, "{:.2f}".format, lambda n: f"{n}".replace("-", "−")]),
)
def test_a_number_in_any_dress(number, dress, written):
    answer, asked = find_answer("#### " + dress.format(written(number)), "gsm8k")
    assert asked and same_answer(str(number), answer) is True
    assert same_answer(str(number + 1), answer) is False and same_answer(str(10 * number + 1), answer) is False


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 999), min_size=2, max_size=4, unique=True),
    st.sampled_from([" or ", ", ", " and ", "; ", " to ", " – ", ". "]),
)
def test_naming_several_numbers_is_no_answer(numbers, joint):
    answer = joint.join(map(str, numbers))
    assert not any(same_answer(str(number), answer) for number in numbers)


def test_what_math_verify_reads():
    assert formula("The area is $3\\sqrt{2}$ cm^2.") == "3\\sqrt{2}" and formula("**√2** metres.") == "\\sqrt{2}"
    assert formula("the answer is $ $") and formula("x is \\(")  # never empty
    assert formula("x = 1 or x = 2") == "x = 1, x = 2" and formula("2π") == "2\\pi"


HOSTILE = [
    *["1+", "1 ", "\\boxed{", "\\boxed ", "####", "#### ", "#### \n", "1", "{", "- ", "1,", "(", "1(", "*", "_", "$"],
    *["<think>", "</think>", "<answer>", "answer ", "answer: ", "answer is 1. ", "½", "１", "²", "1–", "1-2 ", "1. A"],
    *[
        "√(",
        "^{",
        "1:",
        "1/",
        "1'",
        "one ",
        "=",
        " ",
        "\n",
        "####\n1. A\n",
        "\\frac{1}{",
        "\\text{a",
        "0.3",
        "1 or ",
        "\\(",
        "b)(",
        "b, ",
        "\\boxed{1},",
        "one half ",
        "<<",
        "x < 1, ",
    ],
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_reply_takes_long_to_read(text):
    """CPU time, so that others on the machine do not count; in quadratic time it takes many minutes."""
    reply, began = text * (100_000 // len(text)), time.process_time()
    for convention in COLUMNS:
        for answer in (find_answer(reply, convention)[0], reply[:2000]):
            for gold in ("18", "\\text{east}", "\\sqrt{2}"):
                same_answer(gold, answer)
            formula(answer[:2000])
    assert time.process_time() - began < 20
