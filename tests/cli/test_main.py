"""The command itself: what goes wrong in a user's file is said in one line, with its place there."""

import subprocess
import sys

import pytest

from llm_mdp.cli.__main__ import guarded
from llm_mdp.own import UsageError

ESTIMATOR = """
import sys
from dataclasses import dataclass
from llm_mdp import Estimator


@dataclass(frozen=True)
class Mine(Estimator):
    def advantages(self, evidence):
        BODY
"""


def verify(file, here) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "llm_mdp", "verify", f"{file}:Mine", "--quick"]
    return subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 1 / 0", "llm-mdp: mine.py, line 10, in Mine.advantages: ZeroDivisionError: division by zero\n"),
        pytest.param(
            "raise ValueError('no')",
            "llm-mdp: mine.py, line 10, in Mine.advantages: ValueError: no\n",
            marks=pytest.mark.slow,
        ),
        ("sys.exit(0)", "llm-mdp: mine.py, line 10, in Mine.advantages: SystemExit: 0\n"),
    ],
)
def test_an_error_in_a_user_s_file_is_theirs(body, sentence, here):
    (here / "mine.py").write_text(ESTIMATOR.replace("BODY", body))
    done = verify("mine.py", here)
    assert done.returncode == 2 and done.stderr.startswith(sentence) and done.stderr.count("\n") == 1


def test_a_file_that_ends_the_program_does_not_end_it_well(here):
    (here / "mine.py").write_text("import sys\nsys.exit(0)\n")
    done = verify("mine.py", here)
    assert done.returncode == 2
    assert done.stderr.startswith("llm-mdp: mine.py ends the program when it is imported (sys.exit(0)); put that under")


def raising(error: BaseException):
    def job() -> int:
        raise error

    return job


def test_what_is_no_user_s_error_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr("llm_mdp.cli.__main__.error_in_own_code", lambda error: None)
    assert guarded(raising(UsageError("say it so"))) == 2 and capsys.readouterr().err == "llm-mdp: say it so\n"
    assert guarded(raising(KeyboardInterrupt())) == 130
    for error in (ZeroDivisionError("ours"), SystemExit(0)):
        with pytest.raises(type(error)):
            guarded(raising(error))
