"""Functions of cells for test_sweep.py, where the workers of every backend can import them.

As a program it is one sweep, to be killed or waited for:  python -m tests.variance.sweep_worker '{"function": …,
"cells": …, "folder": …, …}'
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llm_mdp.variance.sweep import SweepError, run_cells
from tests.patience import PATIENCE


class Unusual(Exception):
    """An error that does not come through pickling."""

    def __init__(self, number: int, *, reason: str):
        super().__init__(f"{reason} {number}")


def wait_for_files(number: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("*.json"))) < number:
        time.sleep(0.01)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {number} files in {folder}")


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Numbers drawn from the cell's own seed, late if it says so, or once so many other cells are kept. `log` then has
    one more line."""
    time.sleep(cell.get("sleep", 0.0))
    if "after" in cell:
        wait_for_files(cell["after"], Path(cell["folder"]))
    if "broken" in cell and Path(cell["broken"]).exists():
        raise Unusual(cell["seed"], reason="broken at")
    draws = torch.randn(1000, generator=torch.Generator().manual_seed(cell["seed"]), dtype=torch.float64)
    if "log" in cell:
        with open(cell["log"], "a") as log:
            log.write(f"{cell['seed']}\n")
    return {"seed": cell["seed"], "draws": {"mean": draws.mean().item(), "first": draws[:3].tolist()}}


def another(cell: dict[str, Any]) -> dict[str, Any]:
    return {"another": measure(cell)}


def spoil(cell: dict[str, Any]) -> dict[str, Any]:
    return {"seeds": (cell["seed"], cell.pop("seed"))}


def count_threads(cell: dict[str, Any]) -> dict[str, Any]:
    return {"threads": torch.get_num_threads()}


def return_odd(cell: dict[str, Any]) -> Any:
    return {"a list": [1], "a tensor": {"q": {"v": torch.ones(1)}}, "infinite": {"q": [0.5, float("inf")]}}[
        cell["kind"]
    ]


def die_once(cell: dict[str, Any]) -> dict[str, Any]:
    """Ends its process if `broken` exists."""
    if "broken" in cell and Path(cell["broken"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(cell)


def where(cell: dict[str, Any]) -> dict[str, Any]:
    """The same as `measure`, and on which node of the Ray cluster."""
    import ray

    return measure(cell) | {"node": ray.get_runtime_context().get_node_id()}


def plan(log: Path | None, n: int = 4, sleep: float = 0.0) -> list[dict[str, Any]]:
    """Cells with the seeds n, …, 1."""
    logged = {} if log is None else {"log": str(log)}
    return [{"name": f"seed {seed}", "seed": seed, "sleep": sleep} | logged for seed in range(n, 0, -1)]


if __name__ == "__main__":
    # Under its importable name, or the cells would be those of a script.
    from tests.variance import sweep_worker

    asked = json.loads(sys.argv[1])
    try:
        run_cells(
            getattr(sweep_worker, asked.pop("function")), asked.pop("cells"), folder=Path(asked.pop("folder")), **asked
        )
    except SweepError as error:
        sys.exit(str(error))
