"""`benchmarks/zoo.py`: cells that survive a kill, and what is said of predictions."""

import importlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest

from llm_mdp_agents.zoo import AGENTS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOUND = {
    "before": 0.0, "after": 0.5, "best": 1.0, "updates": 1, "generated": 10, "cpu_seconds": 1.0, "stopped": None
}  # fmt: skip


@pytest.fixture
def zoo(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return importlib.import_module("zoo")


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("zoo_report")


def test_predictions_are_of_cells_that_there_are(zoo):
    for env, agents in zoo.PREDICTED_TO_FAIL.items():
        assert env in zoo.SETTINGS and set(agents) <= set(AGENTS) and all(agents.values())


def test_a_cell_spends_its_tokens_and_learns(zoo):
    cell = zoo.identity("Credit", "rloo", 0, part=20)
    found = zoo.play(cell)
    most = found["prompts_per_step"] * zoo.config_of("rloo").group_size * 8
    assert cell["tokens"] <= found["generated"] <= cell["tokens"] + most
    assert (found["before"], found["best"], found["stopped"]) == (pytest.approx(0), 1.0, None)
    assert 0.05 < found["after"] <= 1
    assert {**zoo.play(cell), "cpu_seconds": 0} == {**found, "cpu_seconds": 0}, "the same seed, the same cell"


def test_a_killed_script_goes_on_and_keeps_the_cells_that_were_not_asked_for(zoo, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "certified", dict)
    played = []
    monkeypatch.setattr(zoo, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(zoo, "play", lambda cell: played.append(cell) or cell | FOUND)

    def run(*options: str) -> list[dict]:
        played.clear()
        monkeypatch.setattr("sys.argv", ["zoo.py", "--output", str(tmp_path / "zoo.json"), *options])
        zoo.main()
        return json.loads((tmp_path / "zoo.json").read_text())["cells"]

    assert len(run("--envs", "Credit", "--agents", "rloo", "grpo")) == 6 == len(played)
    cells = run("--envs", "Credit", "--agents", "rloo", "ppo")
    assert len(cells) == 9 and {cell["agent"] for cell in played} == {"ppo"}
    (tmp_path / "zoo.json").write_text(json.dumps({"cells": [cells[0] | {"tokens": 7}, *cells[1:]]}))
    assert run("--envs", "Credit", "--agents", "rloo", "grpo", "ppo") and len(played) == 1, "of another setting"


def result(**shares: list[float]) -> dict:
    """Of agents on one environment whose rewards go from 1 to at most 3."""
    cells = [
        {"agent": agent, "env": "Credit", "before": 1.0, "best": 3.0, "after": 1 + 2 * share, "stopped": None}
        for agent, values in shares.items()
        for share in values
    ]
    certificates = {agent: {"verdict": "biased", "cosine": 0.5} for agent in shares}
    marked = {"Credit": {"marked": "it lags", "slow": "it lags"}}
    return {
        "agents": [*shares, "missing"], "environments": ["Credit"], "certificates": certificates,
        "predicted_to_fail": marked, "cells": cells,
    }  # fmt: skip


def test_nothing_is_shown_before_every_cell_has_an_interval(report):
    found = result(best=[0.9, 0.91], missing=[0.1, 0.2])
    found["agents"].remove("missing")
    assert report.is_whole(found)
    assert not report.is_whole(found | {"cells": found["cells"][1:]})
    assert not report.is_whole(found | {"environments": ["Credit", "Needle"]})


def test_what_becomes_of_predictions(report):
    found = report.cells(
        result(
            best=[0.9, 0.91, 0.92],
            marked=[0.9, 0.9, 0.9],
            slow=[0.1, 0.11, 0.1],
            bad=[0.2, 0.2, 0.21],
            wild=[0, 0.5, 1],
        )
    )
    said = {agent: (cell.failed, cell.differs) for (agent, _), cell in found.items()}
    assert said == {
        "best": (False, False), "marked": (False, True), "slow": (True, False), "bad": (True, True),
        "wild": (None, False),
    }  # fmt: skip


def test_one_seed_decides_nothing_and_neither_does_a_column_in_which_nobody_learned(report):
    assert {cell.failed for cell in report.cells(result(best=[0.9], slow=[0.0])).values()} == {None}
    nobody = report.cells(result(best=[0.3, -0.3, 0.1], bad=[-0.2, -0.2, -0.21]))
    assert {cell.failed for cell in nobody.values()} == {None}


def test_the_table_names_what_differs_and_what_is_missing(report, tmp_path):
    written = result(best=[0.9, 0.91, 0.92], marked=[0.9, 0.9, 0.9], slow=[0.1, 0.11, 0.1])
    text = report.table(written)
    assert "| `missing` | – | – |" in text and "- `marked` on Credit: 0.90 ▼!, predicted to fail (it lags)" in text
    assert (
        "Of 2 cells that were predicted to fail (▼), 1 did, and so did 0 of the others; 0 of 3 cells are undecided."
        in text
    )
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        report.figure(written, tmp_path / "zoo.svg")
    drawn = (tmp_path / "zoo.svg").read_text()
    assert all(cell.words in drawn for cell in report.cells(written).values())
