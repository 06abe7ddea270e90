"""Damage to the files of a run: it is refused in one sentence, or the run ends with the weights that it would have had.
`benchmarks/kills.py` tries every file at random places."""

import json
import os
import shutil

import pytest

from llm_mdp_agents import resume, train
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.records import load_metrics

SHORT = {"prompts_per_step": 4, "eval_prompts": 8, "eval_every": 2, "signal_every": 0, "progress": False}
NEWEST, BEFORE = "checkpoints/step-000006", "checkpoints/step-000004"
DONE = 8
"""Steps to which the damaged runs of 6 go on."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, the longer one that nothing befell, and foreign ones."""
    root = tmp_path_factory.mktemp("runs")
    kinds = {
        "finished": ("rloo", "Tabular", {}),
        "whole": ("rloo", "Tabular", {"steps": DONE}),
        "seed": ("rloo", "Tabular", {"seed": 5}),
        "env": ("rloo", "Tabular", {"env_arguments": {"horizon": 3}}),
        "agent": ("reinforce", "Tabular", {}),
    }
    for name, (agent, env, options) in kinds.items():
        train(agent, env, folder=root / name, **SHORT | {"steps": 6, "checkpoint_every": 2} | options)
    return root


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs / "finished", tmp_path / "run")
    return tmp_path / "run"


def trained(folder) -> bytes:
    return (folder / "model" / "table.safetensors").read_bytes()


def change(file, old: str, new: str):
    def edit(folder):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return edit


def by_folder(file):
    def replace(folder):
        (folder / file).unlink()
        (folder / file).mkdir()

    return replace


def write(file, text: str):
    return lambda folder: (folder / file).write_text(text)


def cut(file, size: int):
    return lambda folder: os.truncate(folder / file, size)


REFUSED = {
    "state emptied": (write(f"{NEWEST}/state.json", ""), "is not JSON, so step-000006 is torn; resume from step 4"),
    "state of braces": (
        write(f"{NEWEST}/state.json", "{}"),
        "is not of a checkpoint of LLM-MDP .*; resume from step 4",
    ),
    "state, one digit": (
        change(f"{NEWEST}/state.json", '"step": 6', '"step": 7'),
        "its bytes were changed; resume",
    ),
    "tensors cut": (cut(f"{NEWEST}/tensors.safetensors", 900), "has 900 bytes instead of .*; resume from step 4"),
    "tensors a folder": (by_folder(f"{NEWEST}/tensors.safetensors"), "is missing, .*; resume from step 4"),
    "config emptied": (
        write("config.json", ""),
        "config.json cannot be read .*; remove it, and --resume writes it anew",
    ),
    "config a list": (write("config.json", "[1]"), "config.json cannot be read .it is not an object"),
    "config a folder": (by_folder("config.json"), "config.json cannot be read .Is a directory"),
    "config of braces": (write("config.json", "{}"), r"does not fit this version .* Or remove it, and --resume"),
    "config, one digit": (
        change("config.json", '"seed": 0', '"seed": 3'),
        r"\(train.seed is 3, and 0 in the checkpoint",
    ),
    "config, steps": (change("config.json", '"steps": 6', '"steps": 9'), "config.json is not as the run wrote it; "),
    "metrics, foreign line": (change("metrics.jsonl", "\n", "\n12\n"), "metrics.jsonl, line 2 is not a record"),
    "samples, foreign line": (change("samples.jsonl", "\n", "\n[]\n"), "samples.jsonl, line 2 is not a record"),
    "samples a folder": (
        by_folder("samples.jsonl"),
        "samples.jsonl cannot be read .Is a directory.; put the file back",
    ),
    "lock a folder": (by_folder(".lock"), "cannot be opened"),
    "no checkpoints": (lambda folder: shutil.rmtree(folder / "checkpoints"), "has no checkpoint, .* start it anew"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_damage_is_refused_in_a_sentence_and_nothing_changes(kind, run):
    damage, words = REFUSED[kind]
    damage(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=words) as refused:
        resume(run, progress=False, steps=DONE)
    assert "\n" not in str(refused.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seed", r"of another run than .*config.json \(train.seed is 0, and 5 in the checkpoint"),
        ("env", r"\(env.arguments.horizon is None, and 3 in the checkpoint\)"),
        ("agent", r"\(agent.name is 'rloo', and 'reinforce' in the checkpoint\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(name, words, run, runs):
    shutil.rmtree(run / NEWEST)
    shutil.copytree(runs / name / NEWEST, run / NEWEST)
    with pytest.raises(ValueError, match=words):
        resume(run, progress=False, steps=DONE)


def test_what_does_not_fit_is_a_sentence_that_offers_the_one_before(run, monkeypatch):
    """As after a change of the program: the checkpoint is whole, and the agent has other parts."""
    from llm_mdp_agents.training.trainer import Trainer

    for error in (KeyError("models"), RuntimeError("size mismatch\n for weight"), TypeError("NoneType")):

        def restore(self, tensors, state, error=error):
            raise error

        monkeypatch.setattr(Trainer, "restore", restore)
        with pytest.raises(
            ValueError, match=r"step-000006 does not fit this run \(.*\); resume from step 4"
        ) as refused:
            resume(run, progress=False, steps=DONE)
        assert "\n" not in str(refused.value)


def without(run, *parts: str) -> None:
    """The newest checkpoint alone, as a version wrote it that did not keep these parts."""
    found = checkpoint.load(run / "checkpoints")
    entries = found.state["trainer"]["dict"]
    found.state["trainer"]["dict"] = [entry for entry in entries if entry[0] not in parts]
    shutil.rmtree(run / "checkpoints")
    checkpoint.save(run / "checkpoints", found.step, found.tensors, found.state, keep=1)


def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_sentence(run):
    without(run, "base", "scheduler")
    words = (
        r"step-000006 is of an earlier version of LLM-MDP, which did not keep base, scheduler; go on with the version "
        r"that wrote it, or start the run anew: llm-mdp train --config .*config.json$"
    )
    with pytest.raises(ValueError, match=words) as refused:
        resume(run, progress=False, steps=DONE)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_from_before_the_gradient_was_measured_goes_on(run, runs):
    without(run, "own_gradient")
    resume(run, progress=False, steps=DONE)
    assert trained(run) == trained(runs / "whole")


@pytest.mark.parametrize("file", ["report.html", "samples.jsonl", "config.json", ".lock", "metrics.jsonl"])
def test_what_is_missing_is_made_anew(file, run, runs):
    (run / file).unlink()
    if file in ("config.json", "metrics.jsonl"):
        words = {"config.json": "is written anew from .*step-000006", "metrics.jsonl": "lack step 0 and 6 others"}[file]
        with pytest.warns(UserWarning, match=words):
            resume(run, progress=False, steps=DONE)
    else:
        resume(run, progress=False, steps=DONE)
    assert trained(run) == trained(runs / "whole") and (run / file).exists()


def test_a_torn_last_line_is_left_out(run, runs):
    with (run / "metrics.jsonl").open("a") as opened:
        opened.write('{"step": 7, "rew')
    resume(run, progress=False, steps=DONE)
    assert [line["step"] for line in load_metrics(run)] == list(range(DONE + 1)) and trained(run) == trained(
        runs / "whole"
    )


def test_a_full_disk_is_a_sentence(run, monkeypatch):
    from pathlib import Path

    def full(self, *arguments, real=Path.open, **options):
        if self.name == "metrics.jsonl" and arguments == ("a",):
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written \(No space left on device\); .* --resume"):
        resume(run, progress=False, steps=DONE)


def test_a_live_run_is_not_resumed(run):
    from llm_mdp_agents.training.run_lock import run_lock

    with run_lock(run), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        resume(run, progress=False, steps=DONE)
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 6
