"""What a run leaves in its folder `runs/<name>/`, while it runs: `metrics.jsonl`, `samples.jsonl`, and what a logger
writes.

One JSON object a line, with its step; a line is on its way to the disk before the next step begins.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_mdp_agents.training.loggers import Logger, check_loggers, open_logger

METRICS, SAMPLES, CONFIG = "metrics.jsonl", "samples.jsonl", "config.json"
FILES = (METRICS, SAMPLES)
RESERVED = ("step", "nonfinite")


class Records:
    """Context manager that appends to the records of a run.

    Args:
        folder: of the run; there already.
        loggers: "tensorboard" (into `folder/tensorboard`), "wandb", "trackio", or "none" alone.

    Raises: ValueError, ImportError: for a logger that does not exist or is not installed, before anything is written.
    """

    def __init__(self, folder: Path, *, loggers: tuple[str, ...] = ("tensorboard",)):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is not a folder; make one with new_run_folder.")
        self._names = check_loggers(loggers)
        self._loggers: list[Logger] = []
        self._resumed: int | None = None

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.close()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line. A value that is not finite is null there, and named under "nonfinite"; loggers get it as it
        is."""
        values = {name: _number(name, value) for name, value in values.items()}
        self._append(METRICS, step, values)
        for logger in self._open_loggers():
            logger.log(step, values)

    def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Append responses, one a line, each with what is known about it (prompt, response, reward)."""
        for sample in samples:
            self._append(SAMPLES, step, sample)
        for logger in self._open_loggers() if samples else ():
            logger.table(step, samples)

    def resume(self, step: int, before: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Forget what was recorded after `step`, so that the steps of a resumed run stand there once. Call it before
        the first step.

        Args:
            before: called when all is read, before anything is forgotten.

        Returns: the metrics that stay.
        Raises: ValueError: naming the line that is not a record, or the file that cannot be read; nothing has changed.
        """
        self._resumed = step
        kept = {file: [line for line in _read(self.folder / file) if line["step"] <= step] for file in FILES}
        before()
        for file, lines in kept.items():
            if (self.folder / file).exists():
                _replace(self.folder / file, "".join(json.dumps(line) + "\n" for line in lines))
        return kept[METRICS]

    def flush(self) -> None:
        """Wait until the lines are on the disk: a checkpoint whose steps are not in the metrics would be a gap."""
        for file in FILES:
            if (self.folder / file).exists():
                with (self.folder / file).open("rb") as opened:
                    os.fsync(opened.fileno())

    def _append(self, file: str, step: int, values: dict[str, Any]) -> None:
        for name in RESERVED:
            if name in values:
                raise ValueError(
                    f"a record of step {step} has a value named {name!r}, which {file} uses itself; give it another "
                    f"name."
                )
        odd = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
        line = {"step": step} | values | dict.fromkeys(odd)
        if odd:
            line["nonfinite"] = odd
        try:
            with (self.folder / file).open("a", encoding="utf-8") as opened:
                opened.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.folder / file} cannot be written ({error.strerror}); when that is mended, go on with "
                f"llm-mdp train --resume {shlex.quote(str(self.folder))}",
            ) from error

    def _open_loggers(self) -> list[Logger]:
        if not self._loggers:
            config = load_config(self.folder)
            self._loggers = [open_logger(name, self.folder, config, self._resumed) for name in self._names]
        return self._loggers


def load_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none if there is no such file yet. A last line that a kill has torn is left out.

    Raises: ValueError: naming the line, if an earlier one is not a record.
    """
    return _read(Path(folder) / METRICS)


def load_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`, read like the metrics."""
    return _read(Path(folder) / SAMPLES)


def load_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a run; nothing if there is none.

    Raises: ValueError: if it cannot be read, or is not a JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"{path} cannot be read ({why}); remove it, and --resume writes it anew from the newest checkpoint."
        ) from error
    return document


def is_run_folder(folder: Path) -> bool:
    """Has a run been here? The folder of a model has a config.json, too."""
    return (folder / CONFIG).is_file() and (folder / METRICS).is_file()


def new_run_folder(root: Path, name: str | None, agent: str, env: str) -> Path:
    """Make `root/name`, or `root/<agent>-<env>-<n>` with the next free n, such as `runs/grpo-arithmetic-3`.

    Raises: ValueError: if the name is no folder's name, or taken.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if name is not None:
        if not re.fullmatch(r"\w[\w.+=-]*", name):
            raise ValueError(f"name is {name!r}; use letters, digits and . _ - + =, as it becomes a folder in {root}.")
        try:
            (root / name).mkdir()
        except FileExistsError:
            raise ValueError(
                f"{root / name} exists already; go on with it by --resume {root / name}, or choose another --name."
            ) from None
        return root / name
    start = f"{_short(agent)}-{_short(env)}"
    taken = [
        int(match[1]) for path in root.iterdir() if (match := re.fullmatch(re.escape(start) + r"-(\d+)", path.name))
    ]
    number = max(taken, default=0) + 1
    while True:
        try:
            (root / f"{start}-{number}").mkdir()
        except FileExistsError:  # another run has just taken it
            number += 1
        else:
            return root / f"{start}-{number}"


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); put the file back, or remove it.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("it is not an object with a step")
        except (ValueError, RecursionError) as error:
            # What stands after the last line break was torn by a kill, or is empty.
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not a record: {error}; remove that line.") from None
        records.append(record)
    return records


def _replace(path: Path, text: str) -> None:
    """Write a file anew, so that a kill leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(path)


def _number(name: str, value: Any) -> float:
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the metric {name!r} is {value!r}; a metric is one number.") from None


def _short(name: str) -> str:
    """`llm_mdp/GuessNumber-v0` -> `guess-number`."""
    name = re.sub(r"-v\d+$", "", name.rsplit("/", 1)[-1])
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
