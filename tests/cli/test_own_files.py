"""Files of one's own on the command line: where a class is forgotten the file's are named, and what lies beside a file
is found as `python FILE.py` finds it, in worker processes too."""

import html
import json
import subprocess
import sys

import pytest

from llm_mdp.report.model_terminal import _remarks
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import claims_nothing

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


# What is expected of an estimator of one's own

SQUARED = """
from dataclasses import dataclass
from llm_mdp import Estimator

@dataclass(frozen=True)
class Squared(Estimator):
    def advantages(self, evidence):
        return (evidence.response_reward ** 2)[..., None]

class Known(Squared):
    expected = "biased"
"""
CLAIMS_NOTHING = 'it claims nothing, so unbiased was expected; `expected = "biased"` in its class says otherwise'


@pytest.mark.parametrize(("name", "status", "times"), [("Squared", 1, 1), ("Known", 0, 0)])
@pytest.mark.parametrize("width", ["80", "200"])
def test_why_unbiased_was_expected_is_said_once(llm_mdp, here, monkeypatch, name, status, times, width):
    (here / "squared.py").write_text(SQUARED)
    monkeypatch.setenv("COLUMNS", width)
    words = f"verify squared.py:{name} --vocab 2 --horizon 2 --html page.html --json found.json"
    left, said, complaints = llm_mdp(words)
    assert (left, complaints) == (status, "")
    assert json.loads((here / "found.json").read_text())["claims"][name].get("claims_nothing", False) is bool(times)
    assert html.unescape((here / "page.html").read_text()).count(CLAIMS_NOTHING) == times
    if width == "80":
        assert " ".join(said.split()).count(CLAIMS_NOTHING) == times
    else:  # in a column of its own, beside others
        assert said.count("claims nothing") == times


def test_the_same_on_a_language_model():
    row = {"holds": False, "expected": "unbiased", "verdict": "biased", "only_here": None, "repair": None}
    assert _remarks(row) == ["⚠ expected unbiased, found biased"]
    assert _remarks(row | {"claims_nothing": True}) == ["⚠ expected unbiased, found biased", CLAIMS_NOTHING]


def test_rows_of_the_ledger_claim_something():
    assert all(claims_nothing(claim) == {} for claim in CLAIMS)


# Arguments of a task of one's own

WORDS = """
import numpy as np
from llm_mdp_envs import Scores
from llm_mdp_envs.text import TextTask

class Plain(TextTask):
    def draw(self, generator): return "1+1=", "2"
    def grade(self, replies): return Scores(np.zeros(len(replies)))

class Handing(Plain):
    def __init__(self, digits=1, **options):
        super().__init__(**options)
        len(digits)

class Needing(Plain):
    def __init__(self, digits):
        super().__init__()

thing = Plain
number = 3
"""
TAKES = "tokenizer, horizon, prompt_length, chat, system, answer_prefix, template_options"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("Plain --env-args horizn=4", f"Plain has no argument 'horizn'; it takes {TAKES}; did you mean horizon?"),
        ("thing --env-args horizn=4", f"Plain has no argument 'horizn'; it takes {TAKES}; did you mean horizon?"),
        # What is handed on with ** is found out further up.
        (
            "Handing --env-args horizn=4",
            f"Handing has no argument 'horizn'; it takes digits, {TAKES}; did you mean horizon?",
        ),
        (
            "Handing --env-args digts=4",
            f"Handing has no argument 'digts'; it takes digits, {TAKES}; did you mean digits?",
        ),
        ("Needing", "Needing needs the argument 'digits'; it takes digits."),
    ],
)
def test_an_argument_that_a_task_of_one_s_own_lacks(llm_mdp, here, words, sentence):
    (here / "words_of_mine.py").write_text(WORDS)
    name = words.split()[0]
    for command in ("eval words_of_mine.py:{}", "train rloo words_of_mine.py:{}"):
        said = llm_mdp(command.format(words))
        assert said == (2, "", f"llm-mdp: words_of_mine.py:{name}: {sentence}\n")


def test_what_a_constructor_raises_has_its_place(llm_mdp, here):
    (here / "words_of_mine.py").write_text(WORDS)
    where = "words_of_mine.py, line 13, in Handing.__init__"
    said = llm_mdp("eval words_of_mine.py:Handing --env-args digits=2")
    assert said == (2, "", f"llm-mdp: {where}: TypeError: object of type 'int' has no len()\n")
    said = llm_mdp("eval words_of_mine.py:number")
    sentence = "words_of_mine.py:number is 3, which makes no task; name a class derived from llm_mdp_envs.Task."
    assert said == (2, "", f"llm-mdp: {sentence}\n")


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
