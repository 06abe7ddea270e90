"""What the page says of SmolLM2's runs: that it learned only where chance does not explain it."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import smollm2_report

    yield smollm2_report
    for name in ("smollm2_report", "drawing"):
        sys.modules.pop(name, None)


def run(before: float, after: float, half: float = 0.1) -> dict:
    name = "eval/greedy_reward"
    return {
        "curve": [{name: each, f"{name}_low": each - half, f"{name}_high": each + half} for each in (before, after)]
    }


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([run(0.1, 0.4)], "yes"),
        ([run(0.1, 0.25)], "undecided"),  # above the score before, whose own interval reaches higher
        ([run(0.5, 0.1)], "less than before"),
        ([run(0.1, 0.3), run(0.3, 0.52), run(0.5, 0.71)], "yes"),  # seeds differ more than they learn
        ([run(0.1, 0.3), run(0.3, 0.3), run(0.5, 0.4)], "undecided"),
    ],
)
def test_it_learned_only_where_the_rise_is_beyond_chance(report, runs, words):
    assert report.learned(runs) == words
