"""What a run shows while it trains: on a terminal and anywhere else."""

import re

import pytest

from llm_mdp_agents.training.progress_line import SECONDS, WIDTH, Stages, plain_lines, progress_line, time_words
from tests.terminals import lines_in_a_terminal


class Watch:
    """A clock that is set by hand."""

    def __init__(self):
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def lines_of(seconds_a_step: float, steps: int, figures: dict[str, float] | None = None) -> list[str]:
    watch, lines = Watch(), []
    show = plain_lines(Stages({"training": steps}, watch), lines.append)
    show("preparing", {})
    show("training", {}, step=0)
    for step in range(1, steps + 1):
        watch.time += seconds_a_step
        show("training", figures or {"reward": 0.5}, step=step)
    return lines


def test_long_steps_have_a_line_each():
    assert lines_of(90, 3) == [
        "preparing  0:00:00 so far",
        "training  0/3  0:00:00 so far",
        "training  1/3  0:03:00 left  reward 0.5",
        "training  2/3  0:01:30 left  reward 0.5",
        "training  3/3  0:00:00 left  reward 0.5",
    ]


@pytest.mark.parametrize("seconds_a_step", [0.01, 1.0, 7.0, 59.0])
def test_short_steps_have_a_line_a_minute(seconds_a_step):
    steps = round(600 / seconds_a_step)
    lines = lines_of(seconds_a_step, steps)[2:]
    assert 5 <= len(lines) <= 600 / SECONDS


def test_a_plain_line_is_short_and_has_no_control_characters():
    names = "reward", "eval/reward", "kl", "entropy", "length", "gradient_norm", "loss"
    figures: dict[str, float] = dict.fromkeys(names, -123456.789)
    for line in lines_of(100, 1000, figures):
        assert len(line) <= WIDTH and line.isprintable()


def test_a_resumed_run_does_not_count_what_was_done_before():
    watch, lines = Watch(), []
    show = plain_lines(Stages({"training": 100}, watch), lines.append)
    show("training", {}, step=90)
    watch.time = 100
    show("training", {}, step=91)
    assert lines == ["training  90/100  0:00:00 so far", "training  91/100  0:15:00 left"]


def test_a_stage_without_steps_says_how_long_it_has_taken_this_time():
    watch, lines = Watch(), []
    show = plain_lines(Stages({"training": 100}, watch), lines.append)
    for _ in range(2):
        show("evaluation", {})
        watch.time += 50
        show("evaluation", {})
        watch.time += 50
        show("training", {}, step=1)
    assert [line for line in lines if line.startswith("eval")] == ["evaluation  0:00:00 so far"] * 2


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00:00"), (61.4, "0:01:01"), (36_000, "10:00:00")])
def test_time(seconds, words):
    assert time_words(seconds) == words


def test_quiet_shows_nothing(capfd):
    with progress_line(False, {"training": 2}) as show:
        show("training", {"reward": 1.0})
    assert capfd.readouterr() == ("", "")


def test_no_terminal_gets_plain_lines_on_the_error_stream(capfd):
    with progress_line(True, {"training": 2}) as show:
        show("training", {"reward": 1.0})
    assert capfd.readouterr() == ("", "training  1/2  0:00:00 so far  reward 1\n")


PROGRAM = """
from llm_mdp_agents.training.progress_line import progress_line
with progress_line(True, {"training": 2000}) as show:
    show("preparing", {})
    for step in range(3):
        show("training", {"reward": -0.123, "eval/reward": 0.5, "kl": 1.0, "entropy": 2.0, "length": 3.0}, step=step)
"""


@pytest.mark.parametrize("columns", [80, 180])
def test_the_line_of_a_terminal_fits_and_says_what_its_time_means(columns):
    lines = [line for line in lines_in_a_terminal(["-c", PROGRAM], columns) if "━" in line]
    assert lines and all(len(line.rstrip()) <= columns and "…" not in line for line in lines)
    assert re.fullmatch(r"training ━+ 2/2000 \d+:\d\d:\d\d (left|so far) +reward -0.123.*", lines[-1].rstrip())
    assert ("length 3" in lines[-1]) == (columns == 180)
