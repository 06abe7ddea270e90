"""The page of a run while it runs."""

import time
from collections.abc import Callable
from pathlib import Path

from llm_mdp_agents.training.run_report import write_report

SHARE = 0.05
"""Of a run's time that its pages may take."""
FIRST = 1.5
"""Seconds that the first page is thought to take."""


class LiveReport:
    """Writes `report.html` anew after an evaluation, if the pages have taken no more than `SHARE` of the time.

    Args:
        folder: of the run.
        now: the clock, in seconds.
        write: writes the page.
    """

    def __init__(
        self,
        folder: Path,
        now: Callable[[], float] = time.monotonic,
        write: Callable[[Path], object] = lambda folder: write_report(folder, running=True),
    ):
        self.folder, self.now, self.write = folder, now, write
        self.began, self.spent, self.next = now(), 0.0, FIRST

    def update(self) -> None:
        """After an evaluation."""
        start = self.now()
        if self.spent + self.next > SHARE * (start - self.began):
            return
        self.write(self.folder)
        self.next = self.now() - start
        self.spent += self.next
