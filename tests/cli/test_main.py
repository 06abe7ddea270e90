"""The command itself: what goes wrong in a user's file is said in one line, with its place there."""

import subprocess
import sys

import pytest

from llm_mdp.cli.__main__ import guarded
from llm_mdp.files import write_text
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
    for error in (ZeroDivisionError("ours"), SystemExit(0)):
        with pytest.raises(type(error)):
            guarded(raising(error))


@pytest.mark.parametrize(("command", "words"), [("train rloo Tabular", "the run began"), ("verify", "the end")])
def test_ctrl_c_while_modules_are_imported_is_said(command, words, here):
    (here / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    typed = [sys.executable, "-m", "llm_mdp", *command.split()]
    done = subprocess.run(typed, cwd=here, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\nllm-mdp: stopped before {words}\n")


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (lambda here: (here / "none").read_text(), "there is no file or folder HERE/none."),
        (lambda here: here.read_text(), "HERE is a folder; name a file."),
        (lambda here: (here / "file").mkdir(), "HERE/file is there already, and is no folder; choose another place."),
        (lambda here: (here / "file" / "in").read_text(), "HERE/file/in lies in a file; name a folder."),
        (lambda here: write_text(here, ""), "HERE cannot be used: not a regular file."),
        (lambda here: raising(PermissionError(13, "no", "x"))(), "x may not be read or written here; change its"),
        (
            lambda here: raising(OSError(28, "x cannot be written (No space left on device)"))(),
            "x cannot be written (No",
        ),
        (lambda here: raising(OSError("there is no address"))(), "there is no address"),
    ],
)
def test_what_the_system_says_of_a_file_is_a_sentence(job, sentence, here, monkeypatch, capsys):
    monkeypatch.setattr("llm_mdp.cli.__main__.error_in_own_code", lambda error: None)
    (here / "file").touch()
    assert guarded(lambda: job(here)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llm-mdp: {sentence.replace('HERE', str(here))}") and "Errno" not in said
