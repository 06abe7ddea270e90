"""The folder of a run: made once, held by one process, and what to type to go on with what is in it."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.records import CONFIG, load_config
from llm_mdp_agents.training.run_config import RunConfig, write_run_config
from llm_mdp_agents.training.run_lock import run_lock

CHECKPOINTS = "checkpoints"
"""Their folder in the folder of a run."""

Place = Path | str | Callable[[], Path]
"""The folder of a run, or what makes it."""


def is_main() -> bool:
    """Whether this process will be the main one, before there is a group."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@contextmanager
def run_folder(config: RunConfig, place: Place, begun: float, new: bool) -> Iterator[Path]:
    """The folder of a run; a new one is locked here and gets its config.json, one that is resumed was locked before it
    was read.

    Raises:
        ValueError: if it is another run's, or cannot be made.
    """
    folder = Path(place() if callable(place) else place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}); choose another folder for the run.") from error
    with run_lock(folder) if new else nullcontext():
        if new and (folder / CONFIG).exists():
            raise ValueError(f"{folder} holds a run already; go on with it by resume, or choose another folder.")
        if new:
            write_run_config(folder, config, begun)
        yield folder


def begun_elsewhere(folder: Path) -> str:
    """Where a run was started whose relative paths lead nowhere from here; nothing if it was here, or is not known."""
    there = load_config(folder).get("folder")
    return "" if there in (None, str(Path.cwd())) else f"The run was started in {there}; go on from there."


def begin_anew(folder: Path) -> str:
    return (
        f"{folder} has no checkpoint, for the run ended before its first step, or they were removed; start it anew: "
        f"llm-mdp train --config {shlex.quote(str(folder / CONFIG))}"
    )


def or_anew(folder: Path) -> str:
    """What to do where this version cannot go on, as the end of a sentence."""
    anew = f"llm-mdp train --config {shlex.quote(str(folder / CONFIG))}"
    return f"go on with the version that wrote it, or start the run anew: {anew}"


def way_on(folder: Path | None, error: BaseException | None = None) -> str:
    """How to go on with a run that a signal ended; nothing in the processes of a group that do not speak.

    Args:
        error: what went wrong while it was to end.
    """
    if folder is None:
        return ""
    steps = checkpoint.steps_in(folder / CHECKPOINTS)
    if not steps:
        return f"stopped before the first step. {begin_anew(folder)}"
    why = f" ({type(error).__name__}: {error})" if error else ""
    return f"stopped; step {steps[-1]} is kept{why}. Go on: llm-mdp train --resume {shlex.quote(str(folder))}"
