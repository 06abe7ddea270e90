"""A row over group sizes and prompts: in a terminal, on the page, in a page of docs/."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from llm_mdp.report.ledger_page import render_ledger
from llm_mdp.report.readme import updated_text
from llm_mdp.report.rows import ClaimRow, claim_rows, exit_meaning, named_instances
from llm_mdp.report.sizes import line, missing, own_size, points, rates
from llm_mdp.report.terminal import print_report
from tests.report.pages import HOSTILE, Page
from tests.report.test_report import single_document

METHOD = {"name": "classes", "words": "classes of responses, of the others the tokens (9 values); 6,000 groups agreed"}
FIGURES = ("relative_bias", "scale", "cosine", "tokens_to_signal")
AT: dict[int, tuple[Any, ...]] = {
    3: ("biased", 0.5, 0.9, 90.0),
    8: ("biased", 0.45, 0.99, 70.0),
    64: ("biased", 0.44, 0.99999, 61.0),
}


NAMED = {"group-sizes": "old", "batches": "kept"}


def entry(verdict: str, scale: float | None, cosine: float | None, signal: float | None) -> dict:
    computed = verdict != "not computed"
    figures = dict(zip(FIGURES, (0.5 if computed else None, scale, cosine, signal)))
    said = {"method": METHOD} if computed else {"method": None, "reason": "not computed: 9 groups are too many"}
    return figures | said | {"verdict": verdict, "expected": "biased", "holds": True if computed else None}


def document(name: str = "one", sizes: dict | None = None, claim: str = "token-mean") -> dict:
    found = single_document()
    row = found["claims"][claim] | entry(*AT[3]) | {"group_size": 3, "prompts": 1}
    row["by_group_size"] = {str(size): entry(*what) for size, what in (AT if sizes is None else sizes).items()}
    return found | {"name": name, "claims": {claim: row}, "command": "llm-mdp verify token-mean"}


def row_of(*documents: dict) -> ClaimRow:
    return claim_rows(named_instances({"instances": list(documents)}))[0]


def printed(found: dict, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(found, console)
    return console.export_text()


def test_a_row_says_of_what_size_it_is_and_what_it_is_at_others():
    row = row_of(document())
    assert own_size(row) == "K = 3"
    assert line(row) == "K = 8: scale 0.450, cosine 0.990 · K = 64: scale 0.440, cosine 1-1e-5"


def test_the_terminal_has_a_line_for_every_size_within_80_columns():
    text = printed(document())
    assert all(len(written) <= 80 for written in text.splitlines())
    assert "token-mean K=3" in text and METHOD["words"].split("(")[0].strip() in " ".join(text.split())
    table = re.findall(r"^ +(3|8|64)  ✗ biased +([\d.]+) +(\S+) +(\S+) +(\S+) +classes", text, re.M)
    assert [found[0] for found in table] == ["3", "8", "64"]
    assert table[0][1:] == ("0.500", "0.900", "0.100", "90.0") and table[2][2:] == ("1-1e-5", "1.00e-5", "61.0")


def test_sizes_that_were_not_computed_are_left_out_of_all_and_the_reason_is_given():
    other = document("two", AT | {64: ("not computed", None, None, None)})
    row = row_of(document("one"), other)
    # 64 is known on one of the two, so the figures of all sizes are that one's.
    assert [[name for name, _ in point.row.entries] for point in points(row, "by_group_size")] == [["one"]] * 3
    assert missing(row, "by_group_size") == "K = 64 on two: not computed: 9 groups are too many"
    alone = row_of(other)
    assert [point.computed for point in points(alone, "by_group_size")] == [True, True, False]
    assert "K = 64 on two: not computed: 9 groups are too many" in " ".join(printed(other).split())


def test_what_fails_at_one_size_is_a_contradiction_everywhere():
    found = document()
    found["claims"]["token-mean"]["by_group_size"]["64"] |= {"expected": "unbiased", "holds": False}
    row = row_of(found)
    assert [name for name, _ in row.contradictions] == ["one, K = 64"] and "Exit status 1" in exit_meaning([row])
    assert "CONTRADICTION" in printed(found) and "one, K = 64" in render_ledger(found)


def test_the_page_draws_scale_and_cosine_over_sizes():
    text = render_ledger(document(HOSTILE))
    Page(text)  # every element is closed where it should be
    drawn = re.findall(r'<svg class="sizes".*?</svg>', text)
    assert len(drawn) == 2 and all(picture.count("<circle") == 3 for picture in drawn)
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', drawn[1])]
    assert heights == sorted(heights, reverse=True) and heights[0] > heights[1], "the cosine rises, upwards"
    assert "alert(1)</script>" not in text.replace(HOSTILE, "")
    assert 'class="sizes"' not in render_ledger(single_document())


def of_sines(sine: Callable[[int], float], *sizes: int) -> dict[int, tuple[Any, ...]]:
    return {size: ("biased", 0.5, math.sqrt(1 - sine(size) ** 2), 60.0) for size in sizes}


def test_whether_the_error_dies_with_the_size_is_said_with_its_rate():
    falls, stays = of_sines(lambda size: 0.5 / size, 4, 8, 16), of_sines(lambda size: 0.3, 4, 8, 16)
    said = rates(row_of(document(sizes=falls)), "by_group_size")
    assert said == "the error of the direction, √(1 - cosine²), falls like K^-1.00 (± 0.01): 0.031 at K = 16"
    both = rates(row_of(document("one", falls), document("two", stays)), "by_group_size")
    assert both.endswith("falls like K^-1.00 on 1 of 2 instances; stays, going to 0.3, on 1 of 2 instances")
    assert said in render_ledger(document(sizes=falls)) and said in " ".join(printed(document(sizes=falls)).split())
    assert not rates(row_of(document(sizes=of_sines(lambda size: 0.3, 4, 8))), "by_group_size"), "two sizes say nothing"
    assert not rates(row_of(document(sizes=falls)), "by_prompts")
    right = dict.fromkeys((4, 8, 16), ("unbiased", 1.0, 1.0, 5.0))
    assert not rates(row_of(document(sizes=right)), "by_group_size")


@pytest.mark.parametrize("sizes", [{3: AT[3]}, {3: ("unbiased", 1.0, 1.0, 5.0), 8: ("unbiased", 1 + 1e-15, 1.0, 4.0)}])
def test_one_size_is_no_curve_and_rounding_is_none(sizes):
    drawn = re.findall(r'<svg class="sizes".*?</svg>', render_ledger(document(sizes=sizes)))
    assert len(drawn) == (0 if len(sizes) == 1 else 2)
    assert all(len(set(re.findall(r'cy="([\d.]+)"', picture))) == 1 for picture in drawn)


def test_a_page_of_docs_has_the_table_and_keeps_what_the_result_does_not_have():
    sizes, batches = (f"<!-- {name}:begin -->\n{old}\n<!-- {name}:end -->\n" for name, old in NAMED.items())
    page = sizes + batches
    new = updated_text(document(), page)
    assert "old" not in new and "kept" in new and "| K = 3 | K = 8 | K = 64 |" in new
    assert "| `token-mean` | 0.500 / 0.100 / 90.0 |" in new and "`llm-mdp verify token-mean`" in new
