"""What the tests of sweeps ask of one, here and on clusters."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from llm_mdp.variance.sweep import run_cells
from tests.variance.sweep_worker import measure, plan

ROOT = Path(__file__).parents[2]


def computed(log: Path) -> Counter:
    """How often the cell of each seed was computed."""
    return Counter(int(line) for line in log.read_text().split()) if log.exists() else Counter()


def kept(folder: Path) -> dict[int, tuple[int, bytes]]:
    """The time and the content of the file of each finished cell, by its seed."""
    files = folder.glob("*.json")
    return {
        json.loads(file.read_bytes())["cell"]["seed"]: (file.stat().st_mtime_ns, file.read_bytes()) for file in files
    }


@contextlib.contextmanager
def elsewhere(function: str, cells: list[dict], folder: Path, **options):
    """A sweep in a process of its own; the workers that it leaves behind are ended with it."""
    asked = {"function": function, "cells": cells, "folder": str(folder), **options}
    command = [sys.executable, "-m", "tests.variance.sweep_worker", json.dumps(asked)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as sweep:
        try:
            yield sweep
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(sweep.pid, signal.SIGKILL)


def check_results(folder: Path, **options) -> None:
    """The results are those of a loop, in the order of the cells. With workers, the first cell waits for another one to
    be kept."""
    cells = plan(None)
    expected = [measure(cell) for cell in cells]
    if options["jobs"] > 1:
        cells[0] |= {"folder": str(folder), "after": 1}
    labels = []
    assert run_cells(measure, cells, folder=folder, tell=labels.append, **options) == expected
    assert sorted(labels) == ["seed 1", "seed 2", "seed 3", "seed 4"] and kept(folder).keys() == {1, 2, 3, 4}
    assert (labels[0] == "seed 4") == (options["jobs"] == 1)
