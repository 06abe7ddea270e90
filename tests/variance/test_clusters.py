"""Sweeps on real clusters of Dask and Ray. Their servers wait for each other, for minutes on a busy machine, so these
tests run when they are asked for: `make cluster`."""

import importlib
import os
import signal
import subprocess
import sys

import pytest

from llm_mdp.variance.sweep import SweepError, run_cells
from tests.patience import PATIENCE
from tests.variance.sweep_worker import measure, plan, where
from tests.variance.sweeps import check_results, computed, elsewhere, kept

pytestmark = pytest.mark.cluster


@pytest.fixture
def dask_cluster(monkeypatch):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        yield cluster


def test_results_on_dask_are_those_of_a_loop_and_kept_as_they_come(tmp_path, dask_cluster):
    check_results(tmp_path, jobs=2, backend="dask")


def test_a_worker_lost_by_dask_is_told(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    cells = plan(None)
    cells[1]["broken"] = str(broken)
    with elsewhere("die_once", cells, tmp_path / "cells", jobs=2, backend="dask") as sweep:
        _, errors = sweep.communicate(timeout=PATIENCE)
    assert "a worker of the backend dask was lost (KilledWorker" in errors and sweep.returncode == 1
    assert 3 not in kept(tmp_path / "cells")


def test_a_dask_worker_without_this_package_is_told(tmp_path, monkeypatch):
    from distributed import Client, LocalCluster

    refuse = "import sys\nsys.modules['llm_mdp'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(refuse)
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard"]
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(cluster) as client:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        with subprocess.Popen(
            [*worker, cluster.scheduler_address], env=os.environ | {"PYTHONPATH": str(tmp_path)}
        ) as process:
            try:
                client.wait_for_workers(1, timeout=PATIENCE)
                with pytest.raises(
                    ImportError, match=rf"the Dask cluster at {cluster.scheduler_address} cannot import llm_mdp"
                ):
                    run_cells(measure, plan(None), jobs=2, backend="dask")
            finally:
                process.terminate()


# --- Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a Ray cluster of two nodes, with one processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_the_nodes_of_a_ray_cluster_share_the_cells(two_nodes, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    cells = plan(None, 6, sleep=0.1)
    labels = []
    results = run_cells(where, cells, folder=tmp_path, jobs=2, backend="ray", tell=labels.append)
    assert len({result.pop("node") for result in results}) == 2
    assert results == run_cells(measure, cells, jobs=2, backend="loky")
    assert sorted(labels) == [f"seed {seed}" for seed in range(1, 7)] and kept(tmp_path).keys() == set(range(1, 7))
    assert not ray.is_initialized()


def test_a_cell_that_fails_on_ray_loses_no_other(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    log, folder, broken = tmp_path / "log", tmp_path / "cells", tmp_path / "broken"
    broken.touch()
    cells = plan(log, 20, sleep=0.1)
    cells[3]["broken"] = str(broken)
    with pytest.raises(SweepError, match=r'cell \{"name": "seed 17".*broken at 17'):
        run_cells(measure, cells, folder=folder, jobs=2, backend="ray")
    assert kept(folder).keys() == computed(log).keys() and len(computed(log)) < 19
    broken.unlink()
    assert [result["seed"] for result in run_cells(measure, cells, folder=folder, jobs=2, backend="ray")] == list(
        range(20, 0, -1)
    )
    assert set(computed(log).values()) == {1}


def test_a_function_that_a_worker_cannot_import_fails_its_cell(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    (tmp_path / "only_here.py").write_text("def empty(cell):\n    return {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    empty = importlib.import_module("only_here").empty
    with pytest.raises(SweepError, match=r"the cell \{\} failed \(ModuleNotFoundError: No module named 'only_here'\)"):
        run_cells(empty, [{}], jobs=2, backend="ray")


def test_a_connection_to_ray_that_was_there_is_used_and_left(two_nodes):
    import ray

    ray.init(two_nodes)
    try:
        assert len({result["node"] for result in run_cells(where, plan(None, sleep=0.1), jobs=2, backend="ray")}) == 2
        assert ray.is_initialized()
        with pytest.raises(ValueError, match="jobs is 3, but the Ray cluster has 2 CPUs; lower it or add nodes"):
            run_cells(where, plan(None), jobs=3, backend="ray")
    finally:
        ray.shutdown()


def test_ray_is_started_here_where_there_is_none_and_again_after_an_interruption(tmp_path, monkeypatch):
    import ray

    def interrupt(label):
        raise KeyboardInterrupt

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt):
        run_cells(
            measure,
            plan(None, 20, sleep=0.1),
            folder=tmp_path / "interrupted",
            jobs=2,
            backend="ray",
            tell=interrupt,
        )
    assert len(kept(tmp_path / "interrupted")) == 1 and not ray.is_initialized()
    # Nothing of the first one is left that would speak to the second.
    check_results(tmp_path / "cells", jobs=2, backend="ray")
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
