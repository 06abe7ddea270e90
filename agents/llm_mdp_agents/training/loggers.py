"""Where the records of a run can be looked at beside its folder: TensorBoard, wandb and trackio."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

PROJECT = "llm-mdp"
"""Where wandb and trackio put the runs."""
RESPONSES = "responses"
"""What their table of responses is called."""
CHARACTERS = 2000
"""Of a text in a table that are shown."""


class Logger(Protocol):
    """Shows metrics and responses elsewhere, too."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def table(self, step: int, rows: list[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...


def check_loggers(loggers: tuple[str, ...]) -> tuple[str, ...]:
    """The loggers to open, checked without opening one.

    Raises: ValueError, ImportError: naming what to choose or to install.
    """
    for name in loggers:
        if name not in (*LOGGERS, "none"):
            raise ValueError(f"{name!r} is not a logger; choose from {', '.join(LOGGERS)} and none.")
        if name != "none" and find_spec(name) is None:
            raise ImportError(
                f"logging to {name} needs the package {name}: pip install {name} (or log to none: metrics.jsonl is "
                f"there anyway)"
            )
    if "none" in loggers and len(loggers) > 1:
        raise ValueError(f"loggers are {', '.join(loggers)}; none stands alone.")
    return () if "none" in loggers else tuple(dict.fromkeys(loggers))


def open_logger(name: str, folder: Path, config: dict[str, Any], resumed: int | None) -> Logger:
    """A logger of a run.

    Args:
        config: what it says of the run.
        resumed: the step that a resumed run goes on from.
    """
    return LOGGERS[name](folder, config, resumed)


class _TensorBoard:
    def __init__(self, folder: Path, config: dict[str, Any], resumed: int | None):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what earlier files say about the step to purge and later ones.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=None if resumed is None else resumed + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        self._writer.add_text(RESPONSES, markdown_table(rows), step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """wandb, and trackio, which has the same functions. A resumed run is another run of the same group."""

    def __init__(self, module: Any, folder: Path, config: dict[str, Any], **more: Any):
        self._module = module
        module.init(project=PROJECT, name=folder.name, group=folder.name, config=config, **more)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._module.log(values, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        columns = columns_of(rows)
        table = self._module.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._module.log({RESPONSES: table}, step=step)

    def close(self) -> None:
        self._module.finish()


class _Trackio(_Hosted):
    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        # It passes over the names of the columns, and takes them from rows that have names.
        self._module.log({RESPONSES: self._module.Table(data=rows)}, step=step)


def _wandb(folder: Path, config: dict[str, Any], resumed: int | None) -> Logger:
    import wandb  # pyright: ignore[reportMissingImports]  # whoever logs there installs it

    return _Hosted(wandb, folder, config, dir=str(folder))


def _trackio(folder: Path, config: dict[str, Any], resumed: int | None) -> Logger:
    import trackio  # pyright: ignore[reportMissingImports]  # likewise

    return _Trackio(trackio, folder, config)


def default_loggers() -> tuple[str, ...]:
    """TensorBoard, where it is installed."""
    return ("tensorboard",) if find_spec("tensorboard") else ()


LOGGERS = {"tensorboard": _TensorBoard, "wandb": _wandb, "trackio": _trackio}


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """All names of the rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table. Nothing that a model wrote becomes markup or another cell: texts are shown letter
    by letter, at most `CHARACTERS` of each."""
    names = columns_of(rows)
    lines = [[*map(_cell, names)], ["---"] * len(names), *([_cell(row.get(name)) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    text = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} …"
    escaped = "".join(each if each.isalnum() or each == " " else f"&#{ord(each)};" for each in text)
    return escaped.replace("&#10;", "<br>")
