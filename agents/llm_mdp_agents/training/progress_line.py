"""What a run shows while it trains: on a terminal one line that moves, with its stage and the latest figures;
anywhere else (a file, a pipe, a job's log) a plain line a step, or a minute where steps are shorter."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

SHOWN = {
    "reward": "reward",
    "eval/reward": "eval",
    "kl": "kl",
    "entropy": "entropy",
    "length": "length",
    "gradient_norm": "gradient",
    "groups_with_signal": "signal",
    "signal_to_noise": "snr",
    "cosine_to_rloo": "cosine",
    "loss": "loss",
}
"""What the line says of the latest batch, the most important first, and its words for it."""
BAR = 20
"""Width of its bar."""
CLOCK = len("99:59:59 so far")
"""Columns for the time."""
WIDTH = 100
"""Most columns of a plain line."""
SECONDS = 60
"""Least time between two plain lines."""


class Show(Protocol):
    """Takes what the line shows next."""

    def __call__(self, stage: str, figures: dict[str, float], step: int | None = None) -> None:
        """One more step of a stage; `step` is its number where the stage does not begin with its first."""
        ...


@dataclass
class Stage:
    """A part of a run, such as its training: how far it is, and how long it takes."""

    name: str
    total: int | None
    """Steps; None: not known."""
    done: int
    now: Callable[[], float] = time.monotonic
    latest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began, self.before = self.now(), self.done

    @property
    def clock(self) -> str:
        """`0:03:10 left`; until that can be said, `0:00:05 so far`."""
        passed, done = self.now() - self.began, self.done - self.before
        if self.total is None or done < 1:
            return f"{time_words(passed)} so far"
        return f"{time_words(passed / done * max(self.total - self.done, 0))} left"

    @property
    def count(self) -> str:
        """`12/200`."""
        return "" if self.total is None else f"{self.done}/{self.total}"


class Stages:
    """The stages of a run as they come and come again; one without a number of steps begins anew when it comes again.

    Args:
        totals: the steps of every stage that has steps; may grow.
    """

    def __init__(self, totals: dict[str, int], now: Callable[[], float] = time.monotonic):
        self.totals, self.now = totals, now
        self.known: dict[str, Stage] = {}
        self.current = ""

    def advance(self, name: str, figures: dict[str, float], step: int | None) -> Stage:
        """The stage after one more step."""
        total = self.totals.get(name)
        if name not in self.known or (total is None and name != self.current):
            # How long a step takes is known from the second one on: nobody saw when the first began.
            self.known[name] = Stage(name, total, 1 if step is None else step, self.now)
        else:
            self.known[name].done = self.known[name].done + 1 if step is None else step
        self.current = name
        self.known[name].latest.update(figures)
        return self.known[name]


@contextmanager
def progress_line(shown: bool, totals: dict[str, int]) -> Iterator[Show]:
    """The line, while it stands; `totals` are the steps of every stage that has steps."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    stages = Stages(totals)
    if not shown:
        yield _nothing
    elif not console.is_terminal:
        yield plain_lines(stages, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        with _bar(console) as bar:
            yield _on_terminal(stages, bar, console)


def _nothing(stage: str, figures: dict[str, float], step: int | None = None) -> None:
    pass


def plain_lines(stages: Stages, say: Callable[[str], None]) -> Show:
    """Lines without control characters: where a stage begins, and not before a minute after the last line of it."""
    said: dict[str, float] = {}

    def show(stage: str, figures: dict[str, float], step: int | None = None) -> None:
        at = stages.advance(stage, figures, step)
        if stage in said and stages.now() - said[stage] < SECONDS:
            return
        said[stage] = stages.now()
        line = "  ".join(filter(None, (stage, at.count, at.clock)))
        say(f"{line}  {figures_within(WIDTH - len(line) - 2, at.latest)}".rstrip())

    return show


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Clock(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.fields["of"].clock, no_wrap=True)

    def words(name: str) -> TextColumn:
        return TextColumn(f"{{task.fields[{name}]}}", markup=False)

    columns = (words("stage"), BarColumn(BAR), words("count"), Clock(), words("figures"))
    return Progress(*columns, console=console, transient=True)


def _on_terminal(stages: Stages, bar: Any, console: Any) -> Show:
    tasks: dict[str, Any] = {}

    def show(stage: str, figures: dict[str, float], step: int | None = None) -> None:
        at = stages.advance(stage, figures, step)
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=at.total, stage=stage, count="", figures="", of=at)
        for other, task in tasks.items():
            bar.update(task, visible=other == stage)
        # The line's other columns, and a space after each.
        room = console.width - len(stage) - BAR - len(at.count) - CLOCK - 4
        words = {"count": at.count, "figures": figures_within(room, at.latest), "of": at}
        bar.update(tasks[stage], completed=at.done, **words)

    return show


def figures_within(room: int, figures: dict[str, float]) -> str:
    """The figures of SHOWN in words, as many of them as fit into so many columns, from the first on."""
    said = ""
    for name, word in SHOWN.items():
        longer = f"{said}  {word} {figures[name]:.3g}".lstrip() if name in figures else said
        if len(longer) > room:
            break
        said = longer
    return said


def time_words(seconds: float) -> str:
    """`1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
