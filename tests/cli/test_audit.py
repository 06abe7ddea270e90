"""`llm-mdp audit`: a made-up library, functions of a file, and what cannot be done."""

import json
import sys
from types import ModuleType

import pytest
from rich.console import Console

from llm_mdp.audit.library import LIBRARIES, Library, Setting
from llm_mdp.exact.instance_files import write_instance
from llm_mdp.exact.instances import random_instance
from llm_mdp.report import audit_terminal

MINE = '''
def centred(rewards):
    """Less the mean of the group."""
    return rewards - rewards.mean(-1, keepdim=True)


def leave_one_out(rewards):
    return centred(rewards) * rewards.shape[-1] / (rewards.shape[-1] - 1)


def wrong(rewards):
    return 1 / 0
'''


def advantages(batch):
    rewards = batch.response_reward.view(-1, batch.group_size)
    mean = rewards.mean(-1, keepdim=True)
    return ((rewards - mean) * batch.group_size / (batch.group_size - 1)).flatten()


def by_tokens(batch):
    """A mean over all tokens of the batch."""
    return -(batch.logp * advantages(batch)[:, None])[batch.mask].mean()


def sums(batch):
    return -(batch.logp.sum(-1) * advantages(batch)).mean()


def settings():
    place = "stub/core.py"
    return [
        Setting("agg=token", "a mean over tokens", place, by_tokens, advantages, repair="set agg=sum", is_default=True),
        Setting("agg=sum", "a sum over tokens", place, sums, advantages, repair="none needed", since="9.9"),
    ]


@pytest.fixture
def stub(monkeypatch):
    """A library that is installed as pytest is, and one that is not."""
    for name, distribution in (("stub", "pytest"), ("absent", "no-such-distribution")):
        module = ModuleType(f"audit_of_{name}")
        module.LIBRARY = Library(name, distribution, ">=1", f"--no-deps {name}==1.0", settings)
        monkeypatch.setitem(sys.modules, f"audit_of_{name}", module)
        monkeypatch.setitem(LIBRARIES, name, f"audit_of_{name}")
    for name in [name for name in LIBRARIES if name not in ("stub", "absent", "trl")]:
        monkeypatch.delitem(LIBRARIES, name)


def test_without_a_name_the_libraries_are_listed(stub, llm_mdp):
    status, said, complaints = llm_mdp("audit")
    lines = {line.split()[0]: line for line in said.splitlines() if line.split()}
    assert status == 0 and not complaints
    assert "pip install" not in lines["stub"] and "pip install --no-deps absent==1.0" in lines["absent"]


def test_a_library_is_certified_option_by_option(stub, llm_mdp, here):
    status, said, complaints = llm_mdp(
        "audit stub --group-size 2 --prompts 1 2 --examples --json it.json --html it.html"
    )
    assert status == 0 and not complaints
    token, summed = json.loads((here / "it.json").read_text())
    assert (token["option"], token["verdict"], summed["option"], summed["verdict"]) == (
        "agg=token", "biased", "agg=sum", "unbiased",
    )  # fmt: skip
    assert token["default"] and summed["since"] == "9.9" and token["target"] == "reward"
    assert token["group_size"] == 2 and token["prompts"] == [1, 2] and token["with_batch"]["says"]
    for row in (token, summed):
        assert {each["verdict"] for each in row["advantages"].values()} == {"unbiased"}
        assert set(row["problems"]) == {"dense", "two-prompts", "right-or-wrong"}
    assert token["example"]["words"].startswith("V = 2, T = 2, K = 2: biased") and "example" not in summed
    assert "→ repair: set agg=sum" in said and "none needed" not in said
    assert "2 options: 1 unbiased, 1 biased" in said and "agg=token" in (here / "it.html").read_text(encoding="utf-8")
    assert max(map(len, said.splitlines())) <= 80


def test_the_options_named_are_those_audited(stub, llm_mdp, here):
    llm_mdp("audit stub agg=sum --group-size 2 --target length --json it.json")
    (row,) = json.loads((here / "it.json").read_text())
    assert row["option"] == "agg=sum" and row["target"] == "length" and row["verdict"] == "biased"


def test_functions_of_a_file_have_a_diagnosis_and_an_exit_status(llm_mdp, here):
    (here / "mine.py").write_text(MINE)
    write_instance(random_instance(2, 2, seed=1), here / "small.json")
    small = "--group-size 2 --instance mine=small.json"
    assert llm_mdp(f"audit mine.py:leave_one_out {small}")[0] == 0
    status, said, complaints = llm_mdp(f"audit mine.py:centred mine.py:leave_one_out {small} --json it.json")
    assert status == 1 and not complaints
    assert "own-response" in said and "Less the mean of the group." in said and "times 0.5" in said
    rows = json.loads((here / "it.json").read_text())
    assert [row["verdict"] for row in rows] == ["proportional", "unbiased"] and set(rows[0]["problems"]) == {"mine"}
    assert rows[0]["diagnosis"]["instance"] == "mine" and "diagnosis" not in rows[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("stubb", "there is no library 'stubb' to audit; did you mean stub?"),
        ("absent", "absent is not installed; pip install --no-deps absent==1.0"),
        ("stub agg=sun", "stub has no setting 'agg=sun'; did you mean agg=sum?"),
        ("stub agg=sum agg=sum", "the same name is given twice; give each once."),
        ("stub mine.py:centred", "mine.py:centred is a function of yours and 'stub' is none"),
        ("mine.py:centred --examples", "--examples is of a library's options"),
        ("mine.py:centre", "mine.py has no 'centre'"),
        ("stub --group-size 1", "--group-size has 1; each must be at least 2."),
        ("stub --prompts 0", "--prompts has 0; each must be at least 1."),
        ("stub --prompts 2 2", "--prompts has the same number twice; give each once."),
        ("stub --target rewards", "target is 'rewards'; choose among reward"),
        ("stub --instance small.json", "--instance has 'small.json'; write NAME=FILE"),
        ("stub --instance a=small.json a=small.json", "--instance has the name 'a' twice; give each once."),
        ("stub --json no/it.json", "there is no folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, sentence, stub, llm_mdp, here):
    (here / "mine.py").write_text(MINE)
    write_instance(random_instance(2, 2, seed=1), here / "small.json")
    status, said, complaints = llm_mdp(f"audit {words}")
    assert status == 2 and not said
    assert complaints.startswith("llm-mdp: ") and sentence in complaints and complaints.count("\n") == 1


def test_an_error_in_a_function_is_told_with_its_place(llm_mdp, here):
    (here / "mine.py").write_text(MINE)
    status, said, complaints = llm_mdp("audit mine.py:wrong --group-size 2")
    assert status == 1 and not complaints
    assert "ZeroDivisionError" in said and "mine.py, line 12" in " ".join(said.split())


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(audit_terminal.time, "monotonic", lambda: clock[0])
    with audit_terminal.audit_progress(Console()) as tell:
        for number, now in enumerate((0, 30, 61, 90, 122), 1):
            clock[0] = float(now)
            tell(number, 5, f"option {number}")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["2 of 5 done, now option 3  0:01:01 so far", "4 of 5 done, now option 5  0:02:02 so far"]


def test_on_a_terminal_there_is_a_bar():
    with audit_terminal.audit_progress(Console(force_terminal=True, width=100, quiet=True)) as tell:
        tell(1, 2, "an option")
        tell(2, 2, "another \x1b[31m")
