"""Records of a run: one line a step, once, whatever happens; loggers that are missing are named before the run."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_mdp_agents.training.records import METRICS, SAMPLES, Records, load_metrics, load_samples, new_run_folder


def steps(records: list[dict]) -> list[int]:
    return [record["step"] for record in records]


def test_metrics_and_samples_are_there_as_soon_as_they_are_recorded(tmp_path):
    with Records(tmp_path, loggers=("none",)) as records:
        records.metrics(1, {"reward": torch.tensor(0.5), "tokens": 12, "critic/loss": 1e-300})
        assert load_metrics(tmp_path) == [{"step": 1, "reward": 0.5, "tokens": 12, "critic/loss": 1e-300}]
        sample = {"prompt": "1+1=", "response": 'two\n\u2028"\ud800', "reward": 1.0}
        records.samples(1, [sample, sample])
        assert load_samples(tmp_path) == [{"step": 1} | sample] * 2
    assert len((tmp_path / SAMPLES).read_text().splitlines()) == 2


def test_what_is_not_finite_is_null_and_named(tmp_path):
    with Records(tmp_path, loggers=("none",)) as records:
        records.metrics(1, {"reward": 1.0, "kl": float("nan"), "loss": torch.tensor(-math.inf)})
        records.samples(1, [{"reward": float("inf")}])
    assert load_metrics(tmp_path) == [{"step": 1, "reward": 1.0, "kl": None, "loss": None, "nonfinite": ["kl", "loss"]}]
    assert load_samples(tmp_path) == [{"step": 1, "reward": None, "nonfinite": ["reward"]}]
    assert "NaN" not in (tmp_path / METRICS).read_text()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"step": 2.0}, "a record of step 1 has a value named 'step'"),
        ({"nonfinite": 2.0}, "has a value named 'nonfinite'"),
        ({"loss": "low"}, "the metric 'loss' is 'low'; a metric is one number"),
        ({"loss": torch.ones(2)}, "the metric 'loss' is .* a metric is one number"),
    ],
)
def test_a_bad_metric_is_refused_and_not_recorded(tmp_path, values, sentence):
    with Records(tmp_path, loggers=("none",)) as records:
        try:
            with pytest.raises(ValueError, match=sentence):
                records.metrics(1, values)
        finally:
            assert load_metrics(tmp_path) == []


def test_a_resumed_run_has_every_step_once(tmp_path):
    with Records(tmp_path, loggers=("none",)) as records:
        for step in range(1, 8):
            records.metrics(step, {"reward": step})
            records.samples(step, [{"response": "a"}, {"response": "b"}])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 8, "rew')
    with Records(tmp_path, loggers=("none",)) as records:
        records.resume(5)
        assert steps(load_metrics(tmp_path)) == [1, 2, 3, 4, 5]
        for step in (6, 7):
            records.metrics(step, {"reward": -step})
    assert steps(load_metrics(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    assert [record["reward"] for record in load_metrics(tmp_path)] == [1, 2, 3, 4, 5, -6, -7]
    assert steps(load_samples(tmp_path)) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, SAMPLES]


def test_resuming_after_a_line_without_its_break_keeps_it(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}')
    with Records(tmp_path, loggers=("none",)) as records:
        records.resume(2)
        records.metrics(3, {"reward": 0.0})
    assert steps(load_metrics(tmp_path)) == [1, 2, 3]


def test_resume_before_anything_was_recorded(tmp_path):
    with Records(tmp_path, loggers=("none",)) as records:
        records.resume(0)
    assert list(tmp_path.iterdir()) == []
    assert load_metrics(tmp_path) == load_samples(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"step": 3, "a', b"\xe2\x82", b"12", b'{"reward": 1}', b"[]"])
def test_only_the_last_line_may_be_torn(tmp_path, torn):
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    assert steps(load_metrics(tmp_path)) == [1, 2]
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n' + torn + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a record: .*; remove that line"):
        load_metrics(tmp_path)


def test_a_kill_in_the_middle_of_a_step_leaves_whole_lines(tmp_path):
    code = """
import os, signal, sys
from llm_mdp_agents.training.records import Records
records = Records(sys.argv[1], loggers=("none",))
for step in range(1, 50):
    records.metrics(step, {"reward": 0.5})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(str(root / each) for each in ("agents", "envs", "."))
    subprocess.run([sys.executable, "-c", code, tmp_path], env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert steps(load_metrics(tmp_path)) == list(range(1, 50))


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    with Records(tmp_path) as records:
        for step in (1, 2, 3):
            records.metrics(step, {"reward": step, "critic/loss": 0.5})
    assert shown(tmp_path) == {"reward": [(1, 1.0), (2, 2.0), (3, 3.0)], "critic/loss": [(1, 0.5), (2, 0.5), (3, 0.5)]}
    with Records(tmp_path) as records:
        records.resume(1)
        records.metrics(2, {"reward": -2.0, "critic/loss": 0.5})
        assert shown(tmp_path)["reward"] == [(1, 1.0), (2, -2.0)], "shown while the run goes on"


def test_loggers_are_checked_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="'tensorbord' is not a logger; choose from tensorboard, wandb, trackio and none"
    ):
        Records(tmp_path, loggers=("tensorbord",))
    with pytest.raises(ValueError, match="none stands alone"):
        Records(tmp_path, loggers=("none", "tensorboard"))
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        Records(tmp_path / "nowhere")
    pytest.importorskip("tensorboard")  # found from here on, whatever other tests have imported
    monkeypatch.setattr(sys, "path", [])
    for name in ("wandb", "trackio"):
        if name not in sys.modules:
            with pytest.raises(ImportError, match=f"needs the package {name}: pip install {name}"):
                Records(tmp_path, loggers=("tensorboard", name))
    assert list(tmp_path.iterdir()) == []


def test_wandb_and_trackio_get_every_metric(tmp_path, monkeypatch):
    """Their module is the network's edge: one that notes what it is told stands in for it."""
    for name in ("wandb", "trackio"):
        package = tmp_path / "packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            "told = []\n"
            "def init(**options): told.append(('init', options))\n"
            "def log(values, step): told.append(('log', step, values))\n"
            "def finish(): told.append(('finish',))\n"
        )
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    folder = tmp_path / "grpo-arithmetic-1"
    folder.mkdir()
    (folder / "config.json").write_text('{"lr": 0.1}')
    with Records(folder, loggers=("wandb", "trackio")) as records:
        records.metrics(3, {"reward": 0.5})
    for name in ("wandb", "trackio"):
        told = sys.modules.pop(name).told
        options = told[0][1]
        assert (options["project"], options["name"], options["config"]) == ("llm-mdp", "grpo-arithmetic-1", {"lr": 0.1})
        assert told[1:] == [("log", 3, {"reward": 0.5}), ("finish",)]


def test_new_run_folders_count_up(tmp_path):
    root = tmp_path / "runs"
    first = [new_run_folder(root, None, "grpo", "llm_mdp/GuessNumber-v0").name for _ in range(3)]
    assert first == ["grpo-guess-number-1", "grpo-guess-number-2", "grpo-guess-number-3"]
    for number in (1, 2):
        (root / f"grpo-guess-number-{number}").rmdir()
    assert new_run_folder(root, None, "grpo", "llm_mdp/GuessNumber-v0").name == "grpo-guess-number-4"
    assert new_run_folder(root, None, "grpo", "GuessNumber").name == "grpo-guess-number-5"
    assert new_run_folder(root, None, "DPO", "my_pkg/GSM8K-v1").name == "dpo-gsm8k-1"
    assert all(path.is_dir() for path in root.iterdir())


def test_a_named_run_is_made_once(tmp_path):
    assert new_run_folder(tmp_path, "mine", "grpo", "x") == tmp_path / "mine"
    (tmp_path / "mine" / METRICS).write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(
        ValueError, match=r"mine exists already; go on with it by --resume .*mine, or choose another --name"
    ):
        new_run_folder(tmp_path, "mine", "grpo", "x")
    for name in ("", "a/b", "..", ".hidden", "/tmp/x", "a b"):
        with pytest.raises(ValueError, match="use letters, digits"):
            new_run_folder(tmp_path, name, "grpo", "x")
