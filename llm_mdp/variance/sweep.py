"""Sweeps: one function on many cells, in parallel, on one machine or on many, and never the same cell twice.

    cells = [{"name": "rloo", "group_size": k, "seed": 0} for k in (2, 4, 8)]
    results = run_cells(measure, cells, folder=Path("sweep"), jobs=8)

Every finished cell is a file of the folder at once, so a sweep that was stopped, by whatever, goes on where it was:

    {"cell": {"name": "rloo", "group_size": 2, "seed": 0}, "function": "my_module:measure", "version": null,
     "llm_mdp": "0.1.0", "result": {…}}

What decides a result is in the cell, its seed included; then the result is the same on every backend.
"""

import contextlib
import copy
import hashlib
import importlib.util
import json
import math
import os
import pickle
import pkgutil
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_mdp import __version__
from llm_mdp.files import write_text
from llm_mdp.variance.workers import BACKENDS, CLUSTERS, end_with, workers

Cell = dict[str, Any]
"""What one result depends on, in JSON: finite numbers, strings, true, false, null, lists and objects of these."""

Result = dict[str, Any]
"""What the function makes of a cell, in JSON."""

Identity = dict[str, Any]
"""All that decides a result, as it is written to the file: the cell, the function, its version, that of LLM-MDP."""


class SweepError(ValueError):
    """A cell, or the worker that computed it, failed; the message says which cell and why. Finished cells are kept."""


@dataclass(frozen=True)
class Failure:
    """What a function raised: in words, and itself."""

    message: str
    error: Exception


Outcome = tuple[str, Result | Failure]
"""The key of a cell, with what came of it."""


def run_cells(
    function: Callable[[Cell], Result],
    cells: Sequence[Cell],
    *,
    folder: Path | None = None,
    jobs: int = 1,
    backend: str = "loky",
    tell: Callable[[str], None] = lambda label: None,
) -> list[Result]:
    """The function's result for each cell, in the order of the cells. Equal cells are computed once.

    With a folder, finished cells are read from it and new ones written to it as they finish, whole or not at all.
    Another function, another `function.version` or another version of LLM-MDP makes it another cell; a changed function
    of the same version does not, so raise its `version`. A function of a script is known as `__main__:name`: give each
    script its own folder.

    After a cell has failed no further one is begun, but those in flight are finished and kept. An interrupted sweep
    loses the cells in flight.

    Args:
        function: makes a JSON object from a cell; at the top level of a module, unless `jobs` is 1 and there is no
            folder.
        cells: JSON objects; `name` is what `tell` is told.
        folder: where finished cells are kept; made if it does not exist.
        jobs: how many cells at once. One: in this process, whatever the backend, with its torch threads. More: in
            workers, with one torch thread each, so the last digits of sums over large tensors may differ from those of
            a process with several. A running Dask cluster uses all of its threads instead.
        backend: one of `BACKENDS`. Ray connects to the cluster in RAY_ADDRESS, or uses the one that this process is
            connected to, or else starts one here; Dask to that in DASK_SCHEDULER_ADDRESS, or else starts one here, for
            which a script needs its `if __name__ == "__main__":`. Workers on other machines need this package, and the
            module of the function, installed in the same versions.
        tell: called with `cell.get("name", "")` as each cell is finished, those found in the folder first.

    Raises:
        ValueError: for an argument out of range, before any cell is computed.
        ImportError: if the package that the backend needs is not installed.
        SweepError: if a cell fails (chained from its own error), or returns something other than a JSON object, or if a
        worker is lost.
    """
    _check_arguments(function, folder, jobs, backend)
    identities = [_identity(function, cell, f"cells[{number}]") for number, cell in enumerate(cells)]
    keys = [_key(identity) for identity in identities]
    if folder is not None:
        _make(folder)
    labels: dict[str, list[str]] = {}
    for key, cell in zip(keys, cells):
        labels.setdefault(key, []).append(str(cell.get("name", "")))
    results: dict[str, Result] = {}
    with contextlib.closing(_finish(function, dict(zip(keys, identities)), folder, jobs, backend)) as finished:
        for key, result in finished:
            results[key] = result
            for label in labels[key]:
                tell(label)
    return [copy.deepcopy(results[key]) for key in keys]


def _check_arguments(function: Callable[[Cell], Result], folder: Path | None, jobs: int, backend: str) -> None:
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs is {jobs!r}; it must be a whole number of at least 1.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    package = CLUSTERS.get(backend)
    if jobs > 1 and package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f'the backend {backend} needs the package {package}: pip install "llm-mdp[cluster]"')
    if _name(function) is None and (jobs > 1 or folder is not None):
        raise ValueError(
            f"{function!r} cannot be imported by its name, as workers and kept cells need; define it at the top of a "
            f"module."
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be a folder for the finished cells ({error.strerror}); name another one."
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written; name another folder for the finished cells.")


def _finish(
    function: Callable[[Cell], Result], identities: dict[str, Identity], folder: Path | None, jobs: int, backend: str
) -> Generator[tuple[str, Result]]:
    """The results of cells by key: first those in the folder, then the others, in the order in which they come, once
    they are in it."""
    missing, failed = {}, None
    for key, identity in identities.items():
        result = None if folder is None else _read(_file(folder, key), identity)
        if result is None:
            missing[key] = identity["cell"]
        else:
            yield key, result
    with contextlib.closing(_compute(function, missing, jobs, backend)) as outcomes:
        for key, outcome in outcomes:
            if isinstance(outcome, Failure):
                failed = key, outcome
                continue
            if folder is not None:
                write_text(_file(folder, key), json.dumps(identities[key] | {"result": outcome}) + "\n")
            yield key, outcome
    if failed is not None:
        key, why = failed
        raise SweepError(
            f"the cell {_shown(missing[key])} failed ({why.message}); correct it and run the sweep again."
        ) from why.error


# --- cells and their files --------------------------------------------------------------------------------------------


def _name(function: Callable[[Cell], Result]) -> str | None:
    """`module:name`, None if this is not where the function is found."""
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    try:
        return name if pkgutil.resolve_name(name) is function else None
    except (ValueError, ImportError, AttributeError):
        return None


def _identity(function: Callable[[Cell], Result], cell: Cell, place: str) -> Identity:
    version = _plain(getattr(function, "version", None), "the function's version")
    return {"cell": _plain_object(cell, place), "function": _name(function), "version": version, "llm_mdp": __version__}


def _key(identity: Identity) -> str:
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()[:24]


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _file(folder: Path, key: str) -> Path:
    return folder.resolve() / f"{key}.json"


def _read(file: Path, identity: Identity) -> Result | None:
    """The result in the file of a finished cell; None if there is none, or it is torn, or of another cell."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        result = content.pop("result")
        return result if _canonical(content) == _canonical(identity) else None
    except (FileNotFoundError, ValueError, AttributeError, LookupError, TypeError):
        return None


def _plain_object(content: Any, place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{place} is {_shown(content)}; it must be a dict.")
    return _plain(content, place)


def _plain(content: Any, place: str) -> Any:
    """As it is read from JSON, so that nothing depends on whether it was. Raises ValueError naming what JSON cannot
    hold."""
    _check_plain(content, place)
    return json.loads(json.dumps(content))


def _check_plain(content: Any, place: str) -> None:
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise ValueError(f"{place} has the key {key!r}; keys must be strings.")
            _check_plain(value, f"{place}[{key!r}]")
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            _check_plain(value, f"{place}[{number}]")
    elif isinstance(content, float) and not math.isfinite(content):
        raise ValueError(f"{place} is {content}, which JSON does not have; write None for it.")
    elif content is not None and not isinstance(content, str | int | float):
        raise ValueError(
            f"{place} is {_shown(content)}; it must be a number, a string, True, False, None, or a list or dict of "
            f"these."
        )


def _shown(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, default=repr) if isinstance(content, dict) else repr(content)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:200]} … {text[-100:]}"


# --- computing them ---------------------------------------------------------------------------------------------------


def _compute(function: Callable[[Cell], Result], cells: dict[str, Cell], jobs: int, backend: str) -> Generator[Outcome]:
    """The outcomes of cells by key, as they come; after a failure, only of those in flight."""
    if not cells:
        return
    if jobs > 1:
        yield from _compute_in_workers(function, cells, jobs, backend)
        return
    for key, cell in cells.items():
        outcome = _outcome(function, cell)
        yield key, outcome
        if isinstance(outcome, Failure):
            return


def _compute_in_workers(
    function: Callable[[Cell], Result], cells: dict[str, Cell], jobs: int, backend: str
) -> Generator[Outcome]:
    import joblib

    # Named, for a function that a worker cannot import is then an error like any other. A script's is sent as it is.
    sent = function if function.__module__ == "__main__" else _name(function)
    failed, threads = False, torch.get_num_threads()
    parent = os.getpid() if backend == "loky" else None

    def tasks() -> Iterator[Any]:
        for key, cell in cells.items():
            if failed:
                return
            yield joblib.delayed(_work)(sent, key, cell, parent)

    # One cell a batch: a batch comes back, and is kept, as one.
    options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
    try:
        with workers(backend, jobs) as pool, joblib.parallel_config(pool, n_jobs=jobs):
            outcomes: Any = joblib.Parallel(**options)(tasks())
            try:
                for key, outcome in outcomes:
                    failed = failed or isinstance(outcome, Failure)
                    yield key, outcome
            except Exception as error:
                raise SweepError(
                    f"a worker of the backend {backend} was lost ({_in_words(error)}); run the sweep again."
                ) from error
            finally:
                # After an interruption this ends the workers; joblib warns that they were not done.
                with warnings.catch_warnings(action="ignore"):
                    outcomes.close()
    finally:
        # Workers that are threads of this process have set the number that later threads begin with.
        torch.set_num_threads(threads)


def _work(function: Callable[[Cell], Result] | str, key: str, cell: Cell, parent: int | None) -> Outcome:
    if parent is not None:
        end_with(parent)
    torch.set_num_threads(1)
    outcome = _outcome(function, cell)
    return key, Failure(outcome.message, _portable(outcome.error)) if isinstance(outcome, Failure) else outcome


def _outcome(function: Callable[[Cell], Result] | str, cell: Cell) -> Result | Failure:
    try:
        found = pkgutil.resolve_name(function) if isinstance(function, str) else function
        # A copy, for the cell is still to be written to its file.
        return _plain_object(found(copy.deepcopy(cell)), "the result")
    except Exception as error:
        return Failure(_in_words(error), error)


def _portable(error: Exception) -> Exception:
    """The error, or one with the same words if it does not come through pickling, with its traceback as a note, which
    does."""
    note = "in the worker:\n" + "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(_in_words(error))
    error.add_note(note)
    return error


def _in_words(error: Exception) -> str:
    return _cut(" ".join(f"{type(error).__name__}: {error}".split()))
