"""`benchmarks/gpu.py` on a toy size: the machine with the GPU sees it only after it has run here."""

import importlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.patience import PATIENCE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RIGHT = ("parity", "agents", "certificates", "resume", "tests")


@pytest.fixture
def gpu(monkeypatch) -> Any:
    """The script, whose signals do not stay."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    kinds = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in kinds]
    yield importlib.import_module("gpu")
    for number, handler in zip(kinds, before):
        signal.signal(number, handler)


def run(gpu: Any, *items: Any, seconds: float = 600) -> tuple[int, list[dict[str, Any]]]:
    """What `run_all` returns and says."""
    lines: list[dict[str, Any]] = []
    now = time.monotonic()
    bench = gpu.Bench("cpu", tiny=False, deadline=now + seconds)
    result = gpu.run_all(bench, [gpu.Item(*each) for each in items], now, lines.append)
    assert lines[0]["item"] == "machine" and lines[-1]["item"] == "end"
    return result, lines[1:]


def test_an_error_is_a_line_and_the_next_item_runs(gpu):
    def fails(bench):
        raise ValueError("no room")

    result, lines = run(gpu, ("a", 1.0, fails), ("b", 1.0, lambda bench: {"figure": 7}))
    assert result == 0 and lines[0]["error"] == "ValueError: no room" and lines[1]["figure"] == 7


@pytest.mark.parametrize("figures, result", [({"right": True}, 0), ({"right": False}, 1), ({}, 1)])
def test_what_is_not_right_fails_the_script(gpu, figures, result):
    found, lines = run(gpu, ("a", 1.0, lambda bench: figures, True))
    assert found == result and lines[-1]["wrong"] == ["a"] * result


def test_what_would_not_end_in_time_is_left_out_and_smaller_items_run(gpu):
    _, lines = run(gpu, ("long", 700.0, lambda bench: {}), ("short", 1.0, lambda bench: {"figure": 7}))
    assert "left out" in lines[0] and lines[1]["figure"] == 7 and lines[-1]["cut off"] is None


def test_the_item_at_work_is_cut_off_when_the_time_is_over(gpu):
    def sleeps(bench):
        signal.raise_signal(signal.SIGALRM)
        time.sleep(PATIENCE)

    _, lines = run(gpu, ("a", 1.0, lambda bench: {"figure": 7}), ("b", 1.0, sleeps), ("c", 1.0, sleeps))
    assert [each["item"] for each in lines] == ["a", "end"] and lines[-1]["cut off"] == "b"


def test_every_item_has_its_place_and_what_is_asked_first_comes_first(gpu):
    items = gpu.choose(None)
    fast = importlib.import_module("gpu_fast")
    assert [each.name for each in items] == list(fast.ORDER)
    assert {each.name for each in items if each.right} == set(RIGHT)
    assert [each.name for each in items][:3] == ["ceilings", "parity", "agents"]
    with pytest.raises(SystemExit, match="there is no item 'step2'; choose from ceilings"):
        gpu.choose(["step2"])


def test_no_wheels_are_said_before_any_work(gpu, tmp_path):
    with pytest.raises(SystemExit, match=r"no wheels in .*docstring"):
        gpu.install(tmp_path, str(tmp_path))


def test_operations_of_an_update_are_the_least_that_pytorch_counts(gpu):
    """Attention by matrix products, which it can count, takes more, for it multiplies what is masked as well."""
    fast = importlib.import_module("gpu_fast")
    size = replace(fast.TINY, hidden=64, middle=128, prompts=1, group=4, prompt=32, response=8, micro_batch=4)
    bench = gpu.Bench("cpu", True, 0.0)
    policy = fast.load(bench, size, dtype="float32", attention="eager")
    task = fast.Prompts(size)
    drawn = policy.sample(
        torch.tensor(task.prompts[:1]), 4, eos=None, horizon=8, generator=torch.Generator().manual_seed(0)
    )
    with FlopCounterMode(display=False) as counter:
        policy.logp(drawn.prompt, drawn.tokens, drawn.mask).sum().backward()
    assert size.update_flops() <= counter.get_total_flops() <= 1.5 * size.update_flops()


@pytest.mark.slow
def test_all_of_it_runs_on_a_toy_size(tmp_path):
    output = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", "--output", str(output)]
    names = ["ceilings", "parity", "agents", "certificates", "resume", "step", "generate", "waits", "changes"]
    names += ["deterministic", "large", "branches and critic"]
    names += ["trl"] if importlib.util.find_spec("trl") else []
    done = subprocess.run(
        [*command, "--minutes", "30", "--only", *names], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = {each["item"]: each for each in map(json.loads, output.read_text().splitlines())}
    assert set(lines) == {"machine", *names, "end"} and not [each for each in lines.values() if "error" in each]
    assert lines["step"]["grpo"]["seconds"]["draw"] > 0 and lines["step"]["rloo"]["update_share_of_peak"] > 0
    assert all(each["gradient_off"] == 0 for each in lines["agents"]["agents"].values()), "the CPU beside itself"
    assert None not in list(lines["end"]["goals"].values())[1:]
