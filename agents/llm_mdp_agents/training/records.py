"""What a run leaves in its folder `runs/<name>/`, while it runs: `metrics.jsonl`, `samples.jsonl`, and what a logger
writes.

One JSON object a line, with its step; a line is on its way to the disk before the next step begins.
"""

import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Protocol

METRICS, SAMPLES, CONFIG = "metrics.jsonl", "samples.jsonl", "config.json"
PROJECT = "llm-mdp"
"""Where wandb and trackio put the runs."""
RESERVED = ("step", "nonfinite")


class Logger(Protocol):
    """Shows metrics elsewhere, too."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


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

    def resume(self, step: int) -> None:
        """Forget what was recorded after `step`, so that the steps of a resumed run stand there once. Call it before
        the first step."""
        self._resumed = step
        for file in (METRICS, SAMPLES):
            path = self.folder / file
            if path.exists():
                _replace(path, "".join(json.dumps(line) + "\n" for line in _read(path) if line["step"] <= step))

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
        with (self.folder / file).open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(line, allow_nan=False) + "\n")

    def _open_loggers(self) -> list[Logger]:
        if not self._loggers:
            self._loggers = [LOGGERS[name](self.folder, self._resumed) for name in self._names]
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
    """`config.json` of a run; nothing if there is none."""
    path = Path(folder) / CONFIG
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


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


def check_loggers(loggers: tuple[str, ...]) -> tuple[str, ...]:
    """The loggers to open, checked without opening one.

    Raises: ValueError, ImportError: naming what to choose or to install.
    """
    for name in loggers:
        if name not in (*LOGGERS, "none"):
            raise ValueError(f"{name!r} is not a logger; choose from {', '.join(LOGGERS)} and none.")
        if name != "none" and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"logging to {name} needs the package {name}: pip install {name} (or log to none: {METRICS} is there "
                f"anyway)"
            )
    if "none" in loggers and len(loggers) > 1:
        raise ValueError(f"loggers are {', '.join(loggers)}; none stands alone.")
    return () if "none" in loggers else tuple(dict.fromkeys(loggers))


class _TensorBoard:
    def __init__(self, folder: Path, resumed: int | None):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what earlier files say about the step to purge and later ones.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=None if resumed is None else resumed + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """wandb, and trackio, which has the same functions. A resumed run is another run of the same group."""

    def __init__(self, module: Any, folder: Path, **more: Any):
        self._module = module
        module.init(project=PROJECT, name=folder.name, group=folder.name, config=load_config(folder), **more)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._module.log(values, step=step)

    def close(self) -> None:
        self._module.finish()


def _wandb(folder: Path, resumed: int | None) -> Logger:
    import wandb  # pyright: ignore[reportMissingImports]  # whoever logs there installs it

    return _Hosted(wandb, folder, dir=str(folder))


def _trackio(folder: Path, resumed: int | None) -> Logger:
    import trackio  # pyright: ignore[reportMissingImports]  # likewise

    return _Hosted(trackio, folder)


LOGGERS = {"tensorboard": _TensorBoard, "wandb": _wandb, "trackio": _trackio}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("it is not an object with a step")
        except ValueError as error:
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
