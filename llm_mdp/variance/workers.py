"""Where cells of a sweep run: processes or threads here, a Ray or a Dask cluster, each as joblib takes it."""

import contextlib
import os
import pkgutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

BACKENDS = ("loky", "threading", "ray", "dask")
"""Where cells are computed: processes of this machine, threads of this process, a Ray cluster, a Dask cluster."""

CLUSTERS = {"ray": "ray", "dask": "distributed"}
"""The package that a backend needs beyond joblib."""


LOOK = 0.5
"""Seconds after which a worker looks again whether the sweep is still there."""
_watching = threading.Event()


def end_with(parent: int) -> None:
    """End this worker when the process that began it has ended, killed ones included: nobody would hear of its cell.
    (Ray and Dask see to their workers themselves.)

    Args:
        parent: its id.
    """
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


@contextlib.contextmanager
def workers(backend: str, jobs: int) -> Iterator[Any]:
    """The backend as joblib takes it; it can be used as long as the context is open."""
    if backend == "ray":
        with _ray(jobs) as workers:
            yield workers
    elif backend == "dask":
        with _dask(jobs) as workers:
            yield workers
    else:
        # loky replaces a worker that has grown, and says so; nothing is lost, and nobody need know.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor", UserWarning)
        yield backend


@contextlib.contextmanager
def _ray(jobs: int) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.util.joblib.ray_backend import RayBackend
    from ray.util.multiprocessing.pool import ResultThread

    class Workers(RayBackend):
        """Ray's backend inherits from joblib's pool of processes, which cannot hand on results one by one; Ray's own
        pool can."""

        supports_return_generator = True

    connected, address = ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    before = signal.getsignal(signal.SIGTERM)
    if not connected:
        ray.init(address) if address else ray.init("local", num_cpus=jobs, include_dashboard=False)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if jobs > cpus:
            raise ValueError(f"jobs is {jobs}, but the Ray cluster has {cpus} CPUs; lower it or add nodes.")
        # A CPU each: workers that need none may all be put on one node.
        yield Workers(ray_remote_args={"num_cpus": 1})
    finally:
        if not connected:
            # After an interruption these hear that their workers were ended; without Ray they would start it again.
            for thread in threading.enumerate():
                if isinstance(thread, ResultThread):
                    thread.join()
            ray.shutdown()
            # Ray leaves a handler behind that ends this process, whatever it does by then.
            if before is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _dask(jobs: int) -> Iterator[Any]:
    import distributed
    from joblib._dask import DaskDistributedBackend

    class Workers(DaskDistributedBackend):
        """joblib hears from Dask of cells that came back only, and would wait for ever for one whose worker was
        lost."""

        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            future.add_done_callback(lambda done: done.exception() and callback(done.exception()))
            return future

    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    local: dict[str, Any] = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    with contextlib.ExitStack() as stack:
        cluster = address or stack.enter_context(distributed.LocalCluster(**local))
        client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        try:
            client.run(pkgutil.resolve_name, "llm_mdp:__version__")
        except ImportError as error:
            # Dask restarts such a worker for ever.
            raise ImportError(
                f"a worker of the Dask cluster at {address} cannot import llm_mdp ({error}); install it there."
            ) from error
        yield Workers(client=client)
