"""How many draws an answer is likely to need, from a pilot of few: said before the work, so that nobody waits for `draw
more`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from llm_mdp.own import is_own
from llm_mdp.variance.benches import NgramBench, TreeBench
from llm_mdp.variance.comparison import UNSURE
from llm_mdp.variance.grid import Candidate
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.unseen import ENOUGH, two_digits

PILOT = 200
"""Estimates of a pilot on a setting."""


@dataclass(frozen=True)
class Forecast:
    """What a pilot says of the draws to come."""

    draws: int
    """Of the pilot."""
    needed: int
    """About how many give an answer: an interval of progress no wider than `UNSURE`."""
    at_least: bool
    """Is it a lower bound only, for the pilot saw next to nothing?"""
    seconds: float
    """About how long they take."""

    def words(self, asked: int, option: str) -> str:
        """For people.

        Args:
            asked: how many draws were asked for,
            option: by this option, which is called after what is drawn.
        """
        about, what = "at least" if self.at_least else "about", option.lstrip("-")
        text = f"an answer is likely to take {about} {self.needed:,} {what} ({_duration(self.seconds)})"
        enough = self.needed <= asked
        return f"{text}; {option} is {asked:,}" + (
            "." if enough else ", so raise it, or take an easier task or larger groups."
        )


def forecast(pilot: Measurement, budget: float, seconds: float) -> Forecast:
    """From a measurement by few draws: intervals of progress narrow with the root of their number.

    Args:
        pilot: of an unbiased estimator; sampled.
        budget: B > 0, generated tokens.
        seconds: what a draw takes.
    """
    ends = pilot.interval("progress", budget)
    assert pilot.samples is not None and ends is not None
    needed, few = two_digits(max(ENOUGH, pilot.samples * ((ends[1] - ends[0]) / UNSURE) ** 2)), pilot.too_few
    needed, at_least = (needed, False) if few is None else (max(needed, few.needed), few.at_least)
    return Forecast(pilot.samples, needed, at_least, needed * seconds)


def setting_forecast(
    bench: TreeBench | NgramBench, listed: Sequence[Candidate], budget: float, seed: int
) -> Forecast | None:
    """By `PILOT` estimates of the first candidate that is proved unbiased and whose figures are sampled; None if there
    is no such one.

    Raises: as `measure` does.
    """
    for candidate in listed:
        if is_own(candidate.name) or candidate.given_values or candidate.proved != "unbiased":
            continue
        estimator = candidate.build(bench.given)
        if isinstance(bench, TreeBench) and bench.has_few_groups(estimator):
            continue
        start = time.perf_counter()
        pilot = bench.measure(estimator, PILOT, seed, candidate.proved)
        if pilot.samples is not None:
            return forecast(pilot, budget, (time.perf_counter() - start) / PILOT * len(listed))
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
