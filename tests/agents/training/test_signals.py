"""Ctrl-C, SIGTERM and a terminal that closes: a run ends after its step, with everything written."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from llm_mdp_agents import resume, train
from llm_mdp_agents.training.parallel import Parallel
from llm_mdp_agents.training.records import load_metrics, load_samples
from llm_mdp_agents.training.signals import AGAIN, Stopped, listening
from llm_mdp_envs.tasks.synthetic import Tabular
from tests.patience import PATIENCE

SHORT = {"prompts_per_step": 4, "eval_prompts": 4, "eval_every": 3, "signal_every": 0, "progress": False}
TIMING = ("seconds", "tokens_per_second")


class Signalling(Tabular):
    """Sends this process a signal while its responses are scored, at a certain call."""

    def __init__(self, at: int, number: int):
        super().__init__()
        self.at, self.number, self.calls = at, number, 0

    def score(self, questions, tokens, mask):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return super().score(questions, tokens, mask)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_step_is_finished_and_the_way_on_is_said(number, tmp_path, monkeypatch):
    def signalled(self, questions, tokens, mask, real=Tabular.score):
        monkeypatch.setattr(Tabular, "calls", getattr(Tabular, "calls", 0) + 1, raising=False)
        if Tabular.calls == 9:
            os.kill(os.getpid(), number)
        return real(self, questions, tokens, mask)

    whole, folder, before = tmp_path / "whole", tmp_path / "my run", signal.getsignal(number)
    train("rloo", "Tabular", folder=whole, steps=12, checkpoint_every=100, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(Tabular, "score", signalled)
        with pytest.raises(Stopped, match=rf"step \d+ is kept. Go on: llm-mdp train --resume '{folder}'") as stopped:
            train("rloo", "Tabular", folder=folder, steps=12, checkpoint_every=100, **SHORT)
    assert stopped.value.status == 128 + number and signal.getsignal(number) is before
    done = load_metrics(folder)[-1]["step"]
    assert 0 < done < 12 and (folder / "checkpoints" / f"step-{done:06d}").is_dir()
    assert (folder / "report.html").exists() and not (folder / "model").exists()
    resume(folder, progress=False)
    left, right = ([without_times(line) for line in load_metrics(each)] for each in (folder, whole))
    assert left == right and load_samples(folder) == load_samples(whole)
    assert table(folder) == table(whole)


def without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in TIMING}


def table(folder) -> bytes:
    return (folder / "model" / "table.safetensors").read_bytes()


def test_a_signal_that_comes_while_processes_agree_is_not_lost(tmp_path, monkeypatch):
    sent = []

    def most(self, number):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return number

    monkeypatch.setattr(Parallel, "most", most)
    with pytest.raises(Stopped, match="step 1 is kept"):
        train("rloo", "Tabular", folder=tmp_path / "run", steps=5, **SHORT)


def test_before_the_first_step_a_run_ends_at_once(tmp_path, monkeypatch):
    from llm_mdp_agents.zoo.ppo import PPOAgent, PPOConfig

    def signalled(self, sampler):
        os.kill(os.getpid(), signal.SIGTERM)
        self.report("critic", 1, 1000)
        raise AssertionError("the preparation goes on")

    monkeypatch.setattr(PPOAgent, "prepare", signalled)
    with pytest.raises(Stopped, match=r"stopped before the first step\. .*start it anew: llm-mdp train --config"):
        train(PPOConfig(), "Tabular", folder=tmp_path, steps=2, **SHORT)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_goes_wrong_while_a_run_ends_is_said(tmp_path, monkeypatch):
    def breaking(self, questions, tokens, mask, real=Tabular.score):
        monkeypatch.setattr(Tabular, "calls", getattr(Tabular, "calls", 0) + 1, raising=False)
        if Tabular.calls == 9:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("the grader has gone")
        return real(self, questions, tokens, mask)

    monkeypatch.setattr(Tabular, "score", breaking)
    with pytest.raises(Stopped, match=r"step 0 is kept \(RuntimeError: the grader has gone\)\. Go on"):
        train("rloo", "Tabular", folder=tmp_path, steps=12, checkpoint_every=100, **SHORT)


def test_the_second_signal_ends_at_once_and_two_in_a_moment_are_one(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGTERM)
    with listening(True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        clock[0] += 2 * AGAIN
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.status == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the third would not kill"
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_of_a_program_and_ignored_signals_stay(monkeypatch):
    heard, before = [], {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        with listening(True) as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            assert heard == [signal.SIGTERM] and not stop.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_thread_trains_too(tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(train("rloo", "Tabular", folder=tmp_path, steps=2, **SHORT)["step"])
    )
    thread.start()
    thread.join(PATIENCE)
    assert done == [2]


def test_without_a_folder_signals_do_what_they_always_do(monkeypatch):
    heard = []
    monkeypatch.setattr("llm_mdp_agents.training.signals.Stop.__call__", lambda *args: heard.append(args))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        train("rloo", Signalling(3, signal.SIGINT), steps=50, **SHORT)
    assert not isinstance(interrupted.value, Stopped) and not heard


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_one_line_and_its_status(number, status, here):
    words = "train rloo Tabular --steps 100000 --prompts-per-step 4 --eval-prompts 2 --loggers none --name run -q"
    folder = here / "runs" / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_mdp.cli", *words.split()], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    said, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == status and said == "" and "Traceback" not in complaints
    assert complaints.strip().splitlines()[-1].endswith("Go on: llm-mdp train --resume runs/run")
    config = json.loads((folder / "config.json").read_text())
    assert config["train"]["steps"] == 100_000


@pytest.mark.slow
def test_a_group_stops_after_the_same_step(here):
    words = "train rloo Tabular --steps 100000 --prompts-per-step 4 --eval-prompts 2 --loggers none --name run -q"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*launch, "-m", "llm_mdp.cli", *words.split()], stderr=subprocess.PIPE, text=True)
    folder = here / "runs" / "run"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not ((folder / "metrics.jsonl").exists() and len(load_metrics(folder)) > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    complaints = process.communicate(timeout=PATIENCE)[1]
    done = load_metrics(folder)[-1]["step"]
    assert (folder / "checkpoints" / f"step-{done:06d}").is_dir(), complaints[-3000:]
    assert complaints.count(f"step {done} is kept. Go on: llm-mdp train --resume runs/run") == 1
