"""Word problems: math-verify's verdicts, graded parts, both conventions, files and data sets, hostile replies."""

import json
import os
import pickle
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("math_verify", reason='needs math-verify: pip install "llm-mdp[math]"')

from llm_mdp_envs import TokenEnv
from llm_mdp_envs.tasks.answers import gold_answer, hash_line, in_box
from llm_mdp_envs.tasks.graders import Grader, GradingError
from llm_mdp_envs.tasks.math_problems import (
    MOST_STEPS,
    OWN_PROBLEMS,
    Math,
    equations,
    true_steps,
)
from llm_mdp_envs.tasks.rows import read_rows

GSM = {"question": "Ada has 3 bags of 12 marbles and 6 more. How many?", "answer": "3 * 12 = 36, 36 + 6 = 42\n#### 42"}
MATH = {"problem": "Half of $x$ is a quarter. What is $x$?", "solution": "So $x = \\boxed{\\frac{1}{2}}$."}


@pytest.fixture(scope="module")
def gsm():
    return Math([GSM])


@pytest.fixture(scope="module")
def math():
    return Math([MATH], "math")


def graded(task: Math, text: str):
    scores = task.grade([task.reply_to(task.question(np.random.default_rng(0)), text)])
    return float(scores.reward[0]), {part: float(value[0]) for part, value in scores.parts.items()}


def test_an_episode_reports_its_parts():
    env = TokenEnv(Math([GSM], weights={"answer": 2, "format": 0.5, "steps": 1}))
    env.reset(seed=0)
    for token in env.task.encode_response("3 * 12 = 36, 36 + 6 = 41, 1 + 1 = 2\n#### 42"):
        _, reward, terminated, _, info = env.step(token)
    assert terminated and info["parts"] == {"answer": 2.0, "format": 0.5, "steps": pytest.approx(2 / 3)}
    assert reward == pytest.approx(sum(info["parts"].values()))


@pytest.mark.parametrize(
    ("text", "answer", "given"),
    [
        ("#### 42", 1, 1), ("#### 42.0", 1, 1), ("####42", 1, 1), ("#### $42", 1, 1),
        ("#### 84/2", 1, 1), ("#### 43", 0, 1),
        ("#### 7\n#### 42", 1, 1), ("#### 42\n#### 7", 0, 1), ("the answer is 42", 1, 0), ("The answer is 7.", 0, 0),
        ("", 0, 0), ("####", 0, 0), ("it is \\boxed{42}", 1, 0), ("42 or 7", 0, 0),
    ],
)  # fmt: skip
def test_gsm8k(gsm, text, answer, given):
    _, parts = graded(gsm, text)
    assert parts["answer"] == answer and parts["format"] == pytest.approx(0.1 * given)


@pytest.mark.parametrize(
    ("text", "answer", "given"),
    [
        ("\\boxed{\\frac{1}{2}}", 1, 1), ("\\boxed{0.5}", 1, 1), ("\\boxed{2^{-1}}", 1, 1),
        ("\\boxed{\\frac{2}{4}}", 1, 1),
        ("\\boxed{2}", 0, 1), ("\\boxed{2} no, \\boxed{1/2}", 1, 1), ("so $\\frac12$", 1, 0),
        ("\\boxed{}", 0, 0), ("it is \\boxed{", 0, 0),
    ],
)  # fmt: skip
def test_math(math, text, answer, given):
    _, parts = graded(math, text)
    assert parts["answer"] == answer and parts["format"] == pytest.approx(0.1 * given)


def test_our_own_problems_are_solved_by_their_solutions():
    task, rows = Math(), [row for _, row in read_rows(OWN_PROBLEMS)]
    assert len(rows) == len({row["question"] for row in rows}) == 60
    replies = [task.reply_to(task.ask(row["question"], gold_answer(row["answer"])), row["answer"]) for row in rows]
    assert (task.grade(replies).parts["answer"] == 1).all()
    next_problem = [
        task.reply_to(task.ask("?", gold), reply.text) for (_, gold), reply in zip(task.problems[1:], replies)
    ]
    assert task.grade(next_problem).parts["answer"].mean() < 0.2  # a few neighbours share their answer


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 * 12 = 36, 36 + 6 = 42\n#### 42", 1.0),
        ("3 * 12 = 36, 1 + 1 = 3\n#### 42", 0.5),
        ("1+1=2\n#### 0", 0.0),
        ("3 * 12 = 36, 36 + 6 = 42", 1.0),
        ("1+1=2", 0.0),
    ],
)
def test_steps_pay_for_a_right_answer_only(gsm, text, steps):
    _, parts = graded(gsm, text)
    assert parts["steps"] == pytest.approx(0.1 * steps)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12*3 = 36", [("12*3", "36")]),
        ("<<48/2=24>>24", [("48/2", "24")]),
        ("1,200 × 2 = $2,400.", [("1200 * 2", "2400")]),
        ("12*3 = 30+6 = 36", [("30+6", "36")]),  # the first equation has a sum on its right
        ("x + 12*3 = 36", []),
        ("5 = 5", []),
        ("1 + 1", []),
    ],
)
def test_equations(text, expected):
    assert equations(text) == expected


def test_steps():
    assert true_steps("0.1 + 0.2 = 0.3 and 7 - 9 + 1 = 1") == 0.5
    assert true_steps("1/0 = 1; 007+1=8") == 0 and true_steps("nothing") == 0
    assert true_steps("1 + 1 = 2 " * MOST_STEPS + "1 + 1 = 3 " * 9) == 1.0


@given(st.integers(-999, 999), st.integers(0, 999), st.sampled_from("+-*"), st.integers(-1, 1))
def test_steps_agree_with_python(a, b, operator, error):
    assert true_steps(f"{a} {operator} {b} = {eval(f'{a} {operator} {b}') + error}") == (error == 0)


# --- hostile replies ---


@pytest.mark.slow
def test_no_reply_can_hang_it():
    task = Math([GSM], seconds=1.0)
    assert graded(task, "#### 42")[1]["answer"] == 1
    for text in (
        "#### 9^{9^{9^{9}}}",
        "#### 9**9**9**9**9",
        "#### " + "(" * 20_000,
        "\\boxed{" * 20_000,
        "#### 10^{10^{10}}!",
    ):
        assert graded(task, text)[1]["answer"] == 0
    assert graded(task, "#### 42")[1]["answer"] == 1


@pytest.mark.parametrize(
    "text", ["1+", "1 ", "\\boxed{", "\\boxed ", "####", "#### \n", "1", "1+1=", "{", "- ", "1,", "1 = "]
)
def test_reading_a_long_reply_takes_linear_time(text):
    """CPU time, so that others on the machine do not count; in quadratic time it takes many minutes."""
    began = time.process_time()
    for read in (in_box, hash_line, true_steps):
        read(text * 100_000)
    assert time.process_time() - began < 30


def test_threads_and_pickles(gsm):
    task = pickle.loads(pickle.dumps(gsm))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: graded(task, f"#### {number}")[1]["answer"], range(60)))
    assert answers == [float(number == 42) for number in range(60)]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="reads another process's limits, which Linux offers")
def test_memory_is_limited():
    grader = Grader("math", memory=700 << 20)
    assert grader("\\boxed{2}", "\\boxed{2}") is True
    assert resource.prlimit(grader._process.pid, resource.RLIMIT_AS) == (700 << 20, 700 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("signal", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broken_process_is_replaced_and_the_answer_graded(signal):
    grader = Grader("math", seconds=0.5)
    assert grader("\\boxed{2}", "\\boxed{2}") is True
    os.killpg(grader._process.pid, signal)
    assert grader("\\boxed{2}", "\\boxed{2}") is True and grader("\\boxed{2}", "\\boxed{3}") is False


def test_a_gold_answer_without_answer():
    with pytest.raises(GradingError, match="finds no answer in the gold answer"):
        Grader("math")("", "\\boxed{1}")


# --- sources ---


def test_files_folders_and_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets", reason='needs datasets: pip install "llm-mdp[math]"')
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(GSM) + "\n\n" + json.dumps(GSM) + "\n")
    table = datasets.Dataset.from_list([GSM, GSM])
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "two"))
    expected = Math([GSM, GSM]).problems
    for source, split in (
        (path, None),
        (str(path), None),
        (table, None),
        (tmp_path / "one", None),
        (tmp_path / "two", "train"),
    ):
        assert Math(source, split=split).problems == expected
    assert len(Math(tmp_path / "two", split="test").problems) == 1
    renamed = table.rename_columns({"question": "ask", "answer": "key"})
    assert Math(renamed, question_column="ask", solution_column="key").problems == expected
    with pytest.raises(ValueError, match=r"split is 'dev'; .*two has 'train', 'test'"):
        Math(tmp_path / "two", split="dev")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"question": 1', "line 1 is '{\"question\": 1', which is no JSON"),
        ("[1]", "bad.jsonl, entry 0 is 1; each row must be an object"),
        (
            '{"question": "?", "solution": "1"}',
            "bad.jsonl, line 1 has no column 'answer', only 'question', 'solution'; name the columns",
        ),
        ('{"question": "?", "answer": " "}', "in which there is no answer"),
        (
            '\n{"question": "?", "answer": null}',
            r"bad\.jsonl, line 2 has the solution None; it must be a text or a number",
        ),
        ('{"question": "?", "answer": {"value": 1}}', "has the solution {'value': 1}"),
        ('{"question": null, "answer": "#### 1"}', "line 1 has the question None; it must be a text"),
        ("", "bad.jsonl has no rows"),
    ],
)
def test_bad_files(tmp_path, lines, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=words):
        Math(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"convention": "gsm"}, "convention is 'gsm'"),
        ({"weights": {"answers": 1}}, "weights has 'answers'; the parts are 'answer', 'format', 'steps'"),
        ({"weights": {"answer": float("nan")}}, "must be a finite number"),
        ({"split": "train"}, "problems has no splits"),
        ({"seconds": -1}, "time limit for grading is -1"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        Math([GSM], **options)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match="problems is '/nowhere', and there is no such file or folder"):
        Math("/nowhere")


@pytest.mark.parametrize("number", [np.int64(42), np.float64(42.0), np.float32(42.0), 42, 42.0, "42", "#### 42"])
def test_golds_may_be_numbers(number):
    task = Math([{"question": "?", "answer": number}])
    assert graded(task, "#### 42")[1]["answer"] == 1 and graded(task, "#### 43")[1]["answer"] == 0


def test_numbers_and_words_are_graded_without_a_process():
    task = Math([GSM])
    assert graded(task, "so **42** marbles")[1]["answer"] == 1 and graded(task, "#### 42 or 43")[1]["answer"] == 0
    assert task._grader._process is None
