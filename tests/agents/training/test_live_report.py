"""The page of a run while it runs takes a small part of the run's time."""

from pathlib import Path

import pytest

from llm_mdp_agents.training.live_report import FIRST, SHARE, LiveReport


@pytest.mark.parametrize(("between", "page"), [(0.5, 2.0), (10.0, 2.0), (300.0, 2.0), (300.0, 60.0)])
def test_pages_take_no_more_than_their_share(between, page):
    time, written = 0.0, []

    def write(folder: Path) -> None:
        nonlocal time
        time += page
        written.append(time)

    live = LiveReport(Path("run"), now=lambda: time, write=write)
    for _ in range(400):
        time += between
        live.update()
    # The first page alone may take longer than was thought.
    assert (len(written) - 1) * page <= SHARE * time
    assert len(written) >= 0.9 * min(400, SHARE * time / page) - 1
    assert written[0] >= FIRST / SHARE


def test_a_short_run_has_no_page_before_its_end():
    time, written = 0.0, []
    live = LiveReport(Path("run"), now=lambda: time, write=written.append)
    for _ in range(20):
        time += 1
        live.update()
    assert not written
