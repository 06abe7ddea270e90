"""Files of one's own on the command line: where a class is forgotten the file's are named, and what lies beside a file
is found as `python FILE.py` finds it, in worker processes too."""

import subprocess
import sys

import pytest

ESTIMATORS = """
from dataclasses import dataclass
from llm_mdp import Estimator

@dataclass(frozen=True)
class Centred(Estimator):
    group_size: int = 2
    def advantages(self, evidence):
        reward = evidence.response_reward.unflatten(-1, (-1, self.group_size))
        return (2 * (reward - reward.mean(-1, keepdim=True))).flatten(-2)[..., None]

def helper(rewards):
    return rewards
"""
TASKS = """
import numpy as np
from llm_mdp_envs import Question, Scores, Task

class Palindrome(Task):
    vocab_size, horizon, prompt_length, eos = 4, 3, 1, 0
    def question(self, generator): return Question((1,))
    def score(self, questions, tokens, mask): return Scores(mask.sum(1).astype(float))

class Helper: ...
"""
NOT_TASK = "there is no environment 'pal.py'; pal.py defines Palindrome; write pal.py:Palindrome"
TWO = "two.py defines one, two; write two.py:one or two.py:two"
IS = "'estimators.py'; estimators.py defines Centred; write estimators.py:Centred"


@pytest.fixture
def files(here):
    (here / "pal.py").write_text(TASKS)
    (here / "estimators.py").write_text(ESTIMATORS)
    (here / "two.py").write_text("def one(batch): ...\n\ndef two(batch): ...\n")
    (here / "empty.py").write_text("x = 1\n")
    return here


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train rloo pal.py", NOT_TASK),
        ("eval pal.py", NOT_TASK),
        ("inspect pal.py", NOT_TASK),
        ("variance rloo --env pal.py", NOT_TASK),
        ("train rloo nowhere.py", "there is no environment 'nowhere.py'; nor is there a file of that name."),
        ("train rloo empty.py", "there is no environment 'empty.py'; empty.py defines no class and no function."),
        ("train estimators.py Tabular", f"there is no agent {IS}"),
        ("verify estimators.py", f"there is no claim {IS}"),
        ("variance estimators.py", f"there is no estimator {IS}"),
        ("inspect --estimators estimators.py", f"there is no estimator {IS}"),
        ("audit two.py", f"there is no library 'two.py' to audit; {TWO}"),
        # Nothing in it is an estimator: all that there is may be meant.
        ("verify two.py", f"there is no claim 'two.py'; {TWO}"),
    ],
)
def test_where_a_class_is_forgotten_those_of_the_file_are_named(llm_mdp, files, words, sentence):
    before = {path.name for path in files.iterdir()}
    assert llm_mdp(words) == (2, "", f"llm-mdp: {sentence}\n")
    assert {path.name for path in files.iterdir()} <= before | {"__pycache__"}


# What lies beside a file


def typed(words: str, here) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "llm_mdp", *words.split()]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "words",
    [
        "verify DIR/imp.py:Mine --vocab 2 --horizon 2",
        "train rloo DIR/task.py:Mine --steps 1 --model small --width 16 --layers 1 --heads 2 --loggers none -q",
        "variance DIR/imp.py:Mine rloo --vocab 2 --horizon 2 --group-sizes 2 --jobs 2",
    ],
    ids=["verify", "train", "worker processes"],
)
def test_a_file_finds_what_lies_beside_it(files, tmp_path_factory, words):
    (files / "imp.py").write_text("from estimators import Centred\n\nclass Mine(Centred): ...\n")
    # Tasks may well import when they are asked something.
    late = "    def question(self, generator):\n        import two\n        return super().question(generator)\n"
    (files / "task.py").write_text(f"from pal import Palindrome\n\nclass Mine(Palindrome):\n{late}")
    done = typed(words.replace("DIR", str(files)), tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stderr


def test_what_is_installed_comes_before_what_lies_beside_a_file(files):
    # A module of Python's that nothing else here imports.
    (files / "tabnanny.py").write_text("raise RuntimeError('not this one')\n")
    (files / "imp.py").write_text("import tabnanny\nfrom estimators import Centred\n\nclass Mine(Centred): ...\n")
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    done = typed("verify ../imp.py:Mine --vocab 2 --horizon 2", elsewhere)
    assert done.returncode == 0, done.stderr
