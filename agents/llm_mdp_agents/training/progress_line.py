"""What a run shows on the terminal while it trains: one line, its stage and the latest figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SHOWN = {
    "reward": "reward",
    "eval/reward": "eval",
    "kl": "kl",
    "entropy": "entropy",
    "length": "length",
    "gradient_norm": "gradient",
    "groups_with_signal": "signal",
    "signal_to_noise": "snr",
    "loss": "loss",
}
"""What the line says of the latest batch, the most important first, and its words for it."""
BAR = 20
"""Width of its bar."""


class Show(Protocol):
    """Takes what the line shows next."""

    def __call__(self, stage: str, figures: dict[str, float], step: int | None = None) -> None:
        """One more step of a stage; `step` is its number where the stage does not begin with its first."""
        ...


@contextmanager
def progress_line(shown: bool, totals: dict[str, int]) -> Iterator[Show]:
    """The line, while it stands; `totals` are the steps of every stage that has steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    words = TextColumn("{task.fields[figures]}")
    columns = (TextColumn("{task.description}"), BarColumn(BAR), MofNCompleteColumn(), TimeRemainingColumn(), words)
    with Progress(*columns, console=console, transient=True, disable=not shown or not console.is_terminal) as bar:
        stages: dict[str, TaskID] = {}
        latest: dict[str, float] = {}

        def show(stage: str, figures: dict[str, float], step: int | None = None) -> None:
            if stage not in stages:  # one of its own, whose remaining time is not guessed from another's speed
                for earlier in stages.values():
                    bar.update(earlier, visible=False)
                latest.clear()
                before = max((step or 0) - 1, 0)
                stages[stage] = bar.add_task(stage, total=totals.get(stage), completed=before, figures="")
            latest.update(figures)
            # The line's other columns: stage, bar, "10/200", "0:00:00", and a space after each.
            room = console.width - len(stage) - BAR - 2 * len(str(totals.get(stage))) - 1 - 8 - 4
            bar.update(stages[stage], advance=1, figures=figures_within(room, latest))

        yield show


def figures_within(room: int, figures: dict[str, float]) -> str:
    """The figures of SHOWN in words, as many of them as fit into so many columns, from the first on."""
    said = ""
    for name, word in SHOWN.items():
        longer = f"{said}  {word} {figures[name]:.3g}".lstrip() if name in figures else said
        if len(longer) > room:
            break
        said = longer
    return said
