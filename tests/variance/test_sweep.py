"""Sweeps: the results of a plain loop on every backend, and no finished cell computed twice, whatever stopped the
sweep."""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_mdp.variance.sweep import SweepError, run_cells
from tests.patience import PATIENCE
from tests.variance.sweep_worker import (
    another,
    count_threads,
    die_once,
    measure,
    plan,
    return_odd,
    spoil,
    wait_for_files,
)
from tests.variance.sweeps import check_results, computed, elsewhere, kept

HERE = {
    "in this process": {"jobs": 1},
    "threads": {"jobs": 2, "backend": "threading"},
    "processes": {"jobs": 2, "backend": "loky"},
}


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", HERE.values(), ids=HERE)
def test_results_are_those_of_a_loop_and_kept_as_they_come(tmp_path, options):
    check_results(tmp_path, **options)


def test_every_cell_is_kept_on_its_own(tmp_path):
    # When a cell begins, all before it have ended, but for the one of the other worker.
    cells = [cell | {"folder": str(tmp_path), "after": number - 1} for number, cell in enumerate(plan(None, 40))]
    assert len(run_cells(measure, cells, folder=tmp_path, jobs=2)) == len(kept(tmp_path)) == 40


def test_no_cells_need_no_worker(tmp_path):
    assert run_cells(measure, [], folder=tmp_path, jobs=2, backend="ray") == []


def test_equal_cells_are_computed_once_and_their_results_are_apart(tmp_path):
    log = tmp_path / "log"
    cell = {"name": "twin", "seed": 1, "log": str(log), "grid": (1, 2)}
    other_order = {"grid": [1, 2]} | {key: cell[key] for key in ("log", "seed", "name")}
    labels = []
    first, second, third = run_cells(measure, [cell, other_order, cell | {"grid": [2, 1]}], tell=labels.append)
    assert computed(log) == {1: 2} and labels == ["twin"] * 3
    first["draws"]["mean"] = "changed"
    assert second == third == measure({"seed": 1})


def test_a_function_that_changes_its_cell_changes_nothing_else(tmp_path):
    cells = [{"seed": 1}, {"seed": 2}]
    # The pairs are lists at once, and not only once they are read from the folder.
    assert run_cells(spoil, cells, folder=tmp_path) == [{"seeds": [1, 1]}, {"seeds": [2, 2]}]
    assert cells == [{"seed": 1}, {"seed": 2}] and kept(tmp_path).keys() == {1, 2}


@pytest.mark.parametrize("options", [HERE["threads"], HERE["processes"]], ids=["threads", "processes"])
def test_workers_have_one_torch_thread_and_this_process_keeps_its_own(options):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run_cells(count_threads, [{"n": 0}, {"n": 1}], jobs=1) == [{"threads": 3}] * 2
        assert run_cells(count_threads, [{"n": 0}, {"n": 1}], **options) == [{"threads": 1}] * 2
        begun_later = []
        thread = threading.Thread(target=lambda: begun_later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 3 and begun_later == [3]
    finally:
        torch.set_num_threads(before)


echoed = []


def echo(cell: dict) -> dict:
    echoed.append(cell)
    return {"is": cell}


numbers = st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
contents = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), contents, max_size=3), max_size=4))
def test_any_json_comes_back_from_the_folder_as_it_was(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("sweep")
    echoed.clear()
    for _ in range(2):
        assert run_cells(echo, cells, folder=folder) == [{"is": cell} for cell in cells]
        # True and 1 are equal in Python, not in JSON.
        assert len(echoed) == len({json.dumps(cell, sort_keys=True) for cell in cells})


# --- stopped and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path, jobs):
    log, folder = tmp_path / "log", tmp_path / "cells"
    cells = plan(log, 12, sleep=0.2)
    with elsewhere("measure", cells, folder, jobs=jobs) as sweep:
        wait_for_files(3, folder)
        sweep.kill()
        sweep.wait()
        before = kept(folder)
        assert 3 <= len(before) < 12
    in_flight = computed(log).keys() - before.keys()
    assert len(in_flight) <= 2 * jobs
    results = run_cells(measure, cells, folder=folder)
    assert [result["seed"] for result in results] == list(range(12, 0, -1))
    assert results == [measure(cell | {"log": os.devnull, "sleep": 0}) for cell in cells]
    assert {seed for seed, times in computed(log).items() if times > 1} <= in_flight
    assert before.items() <= kept(folder).items()


def at_work(group: int) -> list[str]:
    """The commands of the processes of a group that still run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, its_group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.slow
def test_the_workers_of_a_killed_sweep_end_with_it(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "cells"
    cells = [cell | {"sleep": 0.0 if number < 4 else PATIENCE} for number, cell in enumerate(plan(log, 8))]
    with elsewhere("measure", cells, folder, jobs=2) as sweep:
        wait_for_files(4, folder)
        assert len(at_work(sweep.pid)) >= 3
        sweep.kill()
        sweep.wait()
        deadline = time.monotonic() + PATIENCE / 9
        while (left := at_work(sweep.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left


@pytest.mark.slow
@pytest.mark.parametrize("options", HERE.values(), ids=HERE)
def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, options, recwarn):
    log, folder = tmp_path / "log", tmp_path / "cells"
    cells = plan(log, 12, sleep=0.03)
    finished = []

    def interrupt(label):
        finished.append(label)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(measure, cells, folder=folder, tell=interrupt, **options)
    before = kept(folder)
    assert {f"seed {seed}" for seed in before} == set(finished)
    assert not [warning for warning in recwarn if "joblib" in str(warning.filename)]
    labels = []
    results = run_cells(measure, cells, folder=folder, tell=labels.append, **options)
    assert [result["seed"] for result in results] == list(range(12, 0, -1))
    assert all(computed(log)[seed] == 1 for seed in before) and before.items() <= kept(folder).items()
    assert set(labels[:3]) == set(finished) and len(labels) == 12


@pytest.mark.slow
@pytest.mark.parametrize("options", HERE.values(), ids=HERE)
def test_a_cell_that_fails_is_named_and_what_was_in_flight_is_kept(tmp_path, options):
    log, folder, broken = tmp_path / "log", tmp_path / "cells", tmp_path / "broken"
    broken.touch()
    cells = plan(log, 30, sleep=0.05)
    cells[3]["broken"] = str(broken)
    with pytest.raises(
        SweepError, match=r'cell \{"name": "seed 27", "seed": 27.* failed \(Unusual: broken at 27\); correct it'
    ) as caught:
        run_cells(measure, cells, folder=folder, **options)
    cause = caught.value.__cause__
    assert "broken at 27" in str(cause) and "in measure" in "".join(traceback.format_exception(cause))
    before = kept(folder)
    assert before.keys() == computed(log).keys() and {30, 29, 28} <= before.keys()
    # A few more are begun before a failure is seen.
    assert len(before) == 3 if options["jobs"] == 1 else len(before) < 20
    broken.unlink()
    assert [result["seed"] for result in run_cells(measure, cells, folder=folder, **options)] == list(range(30, 0, -1))
    assert set(computed(log).values()) == {1} and before.items() <= kept(folder).items()


def test_a_lost_process_is_told_and_the_sweep_can_go_on(tmp_path):
    log, folder, broken = tmp_path / "log", tmp_path / "cells", tmp_path / "broken"
    broken.touch()
    cells = plan(log, 8)
    cells[5]["broken"] = str(broken)
    with pytest.raises(
        SweepError, match=r"a worker of the backend loky was lost \(TerminatedWorkerError.*run the sweep again"
    ):
        run_cells(die_once, cells, folder=folder, jobs=2)
    before = kept(folder)
    assert 3 not in before
    broken.unlink()
    assert [result["seed"] for result in run_cells(die_once, cells, folder=folder, jobs=2)] == list(range(8, 0, -1))
    assert all(computed(log)[seed] == 1 for seed in before)


# --- what counts as finished ------------------------------------------------------------------------------------------

SPOILT = {
    "empty": lambda text, other: "",
    "torn": lambda text, other: text[: len(text) // 2],
    "a list": lambda text, other: "[1]",
    "a number": lambda text, other: "3",
    "of another cell": lambda text, other: other,
    "of another function": lambda text, other: text.replace(":measure", ":another"),
    "of another version": lambda text, other: text.replace('"version": null', '"version": 1'),
    "without a result": lambda text, other: text.replace('"result"', '"other"'),
    "not finite": lambda text, other: text.replace('"version": null', '"version": NaN'),
}


@pytest.mark.parametrize("spoil_text", SPOILT.values(), ids=SPOILT)
def test_a_torn_or_foreign_file_is_missing_and_is_overwritten(tmp_path, spoil_text):
    log, folder = tmp_path / "log", tmp_path / "cells"
    cells = plan(log, 2)
    results = run_cells(measure, cells, folder=folder)
    files = {json.loads(file.read_text())["cell"]["seed"]: file for file in folder.glob("*.json")}
    whole, other = files[1].read_text(), files[2].read_text()
    spoilt = spoil_text(whole, other)
    assert spoilt != whole
    files[1].write_text(spoilt)
    assert run_cells(measure, cells, folder=folder) == results
    assert computed(log) == {1: 2, 2: 1} and files[1].read_text() == whole and files[2].read_text() == other


def test_bytes_that_are_no_text_are_missing_too(tmp_path):
    results = run_cells(measure, plan(None, 1), folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"\xff" + whole)
    assert run_cells(measure, plan(None, 1), folder=tmp_path) == results and file.read_bytes() == whole


def test_another_function_or_version_is_another_cell(tmp_path, monkeypatch):
    log, folder = tmp_path / "log", tmp_path / "cells"
    (result,) = run_cells(measure, plan(log, 1), folder=folder)
    assert run_cells(another, plan(log, 1), folder=folder) == [{"another": result}] and computed(log) == {1: 2}
    monkeypatch.setattr(measure, "version", 2, raising=False)
    assert run_cells(measure, plan(log, 1), folder=folder) == [result] and computed(log) == {1: 3}
    monkeypatch.setattr("llm_mdp.variance.sweep.__version__", "of tomorrow")
    assert run_cells(measure, plan(log, 1), folder=folder) == [result] and computed(log) == {1: 4}
    monkeypatch.undo()
    assert run_cells(measure, plan(log, 1), folder=folder) == [result] and computed(log) == {1: 4}
    assert len(list(folder.iterdir())) == 4


# --- bad input --------------------------------------------------------------------------------------------------------

nested = lambda cell: measure(cell)  # noqa: E731
BAD = {
    "no jobs": (measure, {}, {"jobs": 0}, r"jobs is 0; it must be a whole number of at least 1"),
    "half a job": (measure, {}, {"jobs": 1.5}, r"jobs is 1.5; it must be a whole number"),
    "backend": (measure, {}, {"backend": "spark"}, r"backend is 'spark'; it must be one of loky, threading, ray, dask"),
    "lambda in workers": (nested, {}, {"jobs": 2}, r"cannot be imported by its name.*define it"),
    "partial in a folder": (functools.partial(measure), {}, {}, r"functools.partial.* cannot be imported by its name"),
    "tensor": (
        measure,
        {"grid": {"lam": torch.ones(1)}},
        {},
        r"cells\[1\]\['grid'\]\['lam'\] is tensor\(\[1.\]\); it must be a number",
    ),
    "infinite": (
        measure,
        {"lam": [0.0, float("inf")]},
        {},
        r"cells\[1\]\['lam'\]\[1\] is inf, which JSON does not have",
    ),
    "key": (measure, {"grid": {1: 2}}, {}, r"cells\[1\]\['grid'\] has the key 1; keys must be strings"),
}


@pytest.mark.parametrize("function, addition, options, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_any_cell_is_computed(tmp_path, function, addition, options, message):
    log = tmp_path / "log"
    first, second = plan(log, 2)
    with pytest.raises(ValueError, match=message):
        run_cells(function, [first, second | addition], folder=tmp_path / "cells", **options)
    assert not log.exists() and not (tmp_path / "cells").exists()


def test_a_cell_must_be_a_dict():
    with pytest.raises(ValueError, match=r"cells\[0\] is \[1, 2\]; it must be a dict"):
        run_cells(measure, [[1, 2]])


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=rf"{place} cannot be a folder for the finished cells \(.*\); name another one"
    ):
        run_cells(measure, plan(tmp_path / "log"), folder=tmp_path / place)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("kind, message", {
    "a list": r"the result is \[1\]; it must be a dict",
    "a tensor": r"the result\['q'\]\['v'\] is tensor",
    "infinite": r"the result\['q'\]\[1\] is inf, which JSON does not have; write None",
}.items())  # fmt: skip
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_result_that_is_no_json_object_fails_its_cell(tmp_path, kind, message, jobs):
    with pytest.raises(SweepError, match=rf'cell {{"kind": "{kind}"}} failed .*{message}'):
        run_cells(return_odd, [{"kind": kind}], folder=tmp_path, jobs=jobs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend, package", [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_package_is_named(monkeypatch, backend, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=rf'{backend} needs the package {package}: pip install "llm-mdp\[cluster\]"'):
        run_cells(measure, plan(None), jobs=2, backend=backend)
