"""Every command: its help has examples that can be typed, on 80 columns; names that are none, files, completion."""

import json
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from llm_mdp.cli.parsing import parse
from llm_mdp.cli.words import COMMANDS, EXAMPLES, unknown, usage

MORE = ("verify --model FOLDER", "agents --model FOLDER", "train rloo", "train --resume runs/NAME")
"""What has a help of its own beside the commands."""


@pytest.mark.parametrize("words", [*COMMANDS, *MORE])
def test_help_has_the_examples_on_80_columns_in_any_terminal(words, llm_mdp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, at_80, _ = llm_mdp(f"{words} --help")
    monkeypatch.setenv("COLUMNS", "200")
    assert llm_mdp(f"{words} --help")[1] == at_80 and status == 0
    assert max(map(len, at_80.splitlines())) <= 80
    examples = EXAMPLES[words.split()[0]]
    assert examples and all(f"  # {what}\n  {line}\n" in at_80 for what, line in examples)
    for ugly in ("{None", "default: None", "default: )", "True,False} ]", "\n\n\n"):
        assert ugly not in at_80


class Parsed(Exception):
    """It has been read, and is not run."""


@pytest.mark.parametrize("line", [line for examples in EXAMPLES.values() for _, line in examples])
def test_every_example_can_be_read(line, llm_mdp, here, monkeypatch):
    command = line.split()[1]
    (here / "runs/NAME").mkdir(parents=True)
    agent, model, run = {"name": "rloo"}, {"model": "auto"}, {"warm_start": None, "loggers": [], "shard": False}
    config = {"agent": agent, "env": {"id": "llm_mdp/Tabular-v0", "arguments": {}}, "model": model, "train": {}}
    (here / "runs/NAME/config.json").write_text(json.dumps(config | {"run": run}))

    def read(*words, **options):
        parse(*words, **options)
        raise Parsed

    for file in {COMMANDS[command][0], "verify_model" if command == "verify" else "agents_model"}:
        monkeypatch.setattr(import_module(f"llm_mdp.cli.{file}"), "parse", read)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    from llm_mdp.cli.__main__ import run as run_command

    with pytest.raises(Parsed):
        run_command(command, sys.argv[2:])


def test_the_help_of_all_says_every_command(llm_mdp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(len, usage().splitlines())) <= 80
    assert all(f"\n  {name:<10}" in usage() for name in COMMANDS)
    with pytest.raises(SystemExit) as left:
        monkeypatch.setattr(sys, "argv", ["llm-mdp"])
        import_module("llm_mdp.cli.__main__").main()
    assert left.value.code == 2


@pytest.mark.parametrize("name", ["verfy", "trian", "agent", "\x1b[31mverify"])
def test_a_mistyped_command_is_corrected(name, llm_mdp):
    status, said, complaint = llm_mdp(name)
    assert status == 2 and said == "" and complaint.count("\n") == 1 and "\x1b" not in complaint
    assert complaint == f"llm-mdp: {unknown(name)}\n".replace("\x1b", "\\x1b").replace("\\\\x1b", "\\x1b")
    assert "did you mean" in complaint


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("verify grop --quick", "did you mean grpo?"),
        ("train grop Tabular", "did you mean grpo?"),
        ("train rloo Tabluar", "did you mean"),
        ("agents trpo", "did you mean trepo?"),
        ("inspect --estimators trep", "did you mean trepo?"),
        ("variance rlo", "did you mean rloo?"),
        ("eval Arithmetc", "did you mean"),
        ("audit tlr", "did you mean trl?"),
    ],
)
def test_mistyped_names_are_corrected(words, hint, llm_mdp):
    status, said, complaint = llm_mdp(words)
    assert status == 2 and said == "" and hint in complaint


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_there_is_not_ends_with_status_2(command, llm_mdp):
    names = {"train": "rloo Tabular", "eval": "Tabular"}.get(command, "")
    assert llm_mdp(f"{command} {names} --no-such-option")[:2] == (2, "")


def test_json_goes_to_the_standard_output_and_words_to_the_other(llm_mdp):
    status, said, aside = llm_mdp("verify rloo --vocab 2 --horizon 2 --json -")
    assert status == 0 and json.loads(said)["claims"]["rloo"]["verdict"] == "unbiased"
    assert "unbiased" in aside


def test_what_was_written_is_said(llm_mdp, here):
    said = llm_mdp("verify rloo --vocab 2 --horizon 2 --json a.json --html a.html --save-instance i.json")[1]
    for name in ("a.json", "a.html", "i.json"):
        assert f"written: {name}\n" in said and (here / name).exists()


def test_completion_knows_all_commands_and_options(llm_mdp, here):
    script = here / "completion.bash"
    llm_mdp_main = import_module("llm_mdp.cli.__main__").main
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["llm-mdp", "--tyro-write-completion", "bash", str(script)])
        llm_mdp_main()
    assert not left.value.code
    ask = """
    source completion.bash
    f=$(complete -p llm-mdp | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
    for words in "llm-mdp " "llm-mdp verify --gro" "llm-mdp train grpo Tabular --clip-l" "llm-mdp eval --sam"; do
        IFS=' ' read -ra COMP_WORDS <<< "$words"
        [ "${words: -1}" = " " ] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); $f; echo "${COMPREPLY[*]}"
    done
    """
    answers = subprocess.run(["bash", "-c", ask], cwd=here, capture_output=True, text=True).stdout.splitlines()
    assert {*COMMANDS} <= {*answers[0].split()} and answers[1:] == ["--group-size", "--clip-low", "--samples"]
