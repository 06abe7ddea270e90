"""Two paths as SVG: every number of them has its place, and each is told apart without colours."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from llm_mdp.report.paths import LINES, PANELS, paths_figure, paths_svg, standalone, stored_paths


def path(J: list[float], kl: list[float]) -> dict:
    time = [0.0, 1.0, 10.0, 1000.0][: len(J)]
    return {"time": time, "J": J, "kl": kl, "length": [2.0] * len(J)}


SAID = {
    "exact": path([0.0, 0.5, 0.9, 1.0], [0.0, 0.1, 2.0, 3.0]),
    "row": path([0.0, 0.1, 0.0, -1.0], [0.0, 0.2, 0.3, 0.3]),
}


def lines(svg: str) -> list[list[tuple[float, ...]]]:
    root = ET.fromstring(svg)
    return [
        [tuple(map(float, point.split(","))) for point in each.get("points", "").split()]
        for each in root.iter()
        if each.tag.endswith("polyline")
    ]


def test_both_paths_are_in_every_panel():
    found = lines(paths_svg("grpo", SAID))
    assert len(found) == len(PANELS) * len(LINES)
    assert all(len(line) == 4 for line in found)


def test_time_goes_right_and_more_reward_goes_up():
    exact, row = lines(paths_svg("grpo", SAID))[:2]
    for line in (exact, row):
        assert all(one[0] <= other[0] for one, other in pairwise(line))
    heights = [y for _, y in exact]
    assert heights == sorted(heights, reverse=True)
    assert row[-1][1] > exact[-1][1]


def test_what_does_not_change_is_a_level_line_inside():
    *_, length = lines(paths_svg("grpo", SAID))
    assert len({y for _, y in length}) == 1


def test_the_estimators_line_is_broken_and_the_other_is_not():
    root = ET.fromstring(paths_svg("grpo", SAID))
    dashed = ["stroke-dasharray" in each.attrib for each in root.iter() if each.tag.endswith("polyline")]
    assert dashed == [False, True] * len(PANELS)


def test_a_name_cannot_leave_its_element():
    svg = paths_svg('<script>"x"</script>', SAID)
    assert "<script>" not in svg
    ET.fromstring(svg)


def test_a_file_of_its_own_has_all_colours_and_a_ground_for_pages_of_any_theme():
    svg = standalone(paths_svg("grpo", SAID))
    root = ET.fromstring(svg)
    used = set(re.findall(r"var\((--[a-z]+)\)", svg))
    assert used and all(f"{name}:#" in root.attrib["style"] for name in used)
    assert "prefers-color-scheme" not in svg  # a page's own switch may say otherwise than the reader's system
    assert root[0].tag.endswith("rect") and root[0].attrib["fill"].startswith("#")


@pytest.mark.parametrize("row", sorted(stored_paths()))
def test_stored_paths_can_be_drawn(row):
    figure = paths_figure(row)
    assert figure is not None
    assert len(lines(figure)) == len(PANELS) * len(LINES)


def test_a_row_without_paths_has_no_figure():
    assert paths_figure("no such row") is None
