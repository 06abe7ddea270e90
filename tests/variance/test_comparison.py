"""From rows to an answer: frontier, ranges of budgets and the sentence, against every pair and every budget tried by
hand."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.variance.comparison import (
    EVEN,
    best_by_budget,
    budget_for,
    competing,
    on_frontier,
    progress_of,
    recommendation,
)

BUDGET = 1000.0


def row(label: str, cosine: float = 1.0, q: float | None = 100.0, tokens: float = 10.0, **more: Any) -> dict[str, Any]:
    plain = {"estimator": label.split()[0], "options": {}, "given_values": False, "verdict": "unbiased", "rewards": 4.0}
    plain |= {"intervals": None, "samples": None, "too_few": None, "behind": None}
    figures = {"cosine": cosine, "ceiling": cosine * abs(cosine), "tokens_to_signal": q, "tokens": tokens}
    return {"label": label} | figures | plain | more


@st.composite
def rows(draw: st.DrawFn, given_values: bool = True, least: int = 1) -> list[dict[str, Any]]:
    """Up to eight rows, figures that often tie; the first one competes."""
    found = []
    for number in range(draw(st.integers(least, 8))):
        cosine = draw(st.sampled_from([-0.5, 0.0, 0.5, 0.9, 1.0]) | st.floats(-1, 1))
        q = draw(st.none() | st.sampled_from([10.0, 100.0, 1000.0]) | st.floats(0.1, 1e5))
        more = {"given_values": given_values and number > 0 and draw(st.booleans())}
        found.append(row(f"r{number}", cosine, q, draw(st.floats(1, 300)), **more))
    return found


# --- who competes -----------------------------------------------------------------------------------------------------


def dominated(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Is the other at least as good in both ways, and better in one?"""
    q, other_q = (math.inf if each["tokens_to_signal"] is None else each["tokens_to_signal"] for each in (one, other))
    as_good = other["cosine"] >= one["cosine"] and other_q <= q
    return as_good and (other["cosine"] > one["cosine"] or other_q < q)


@given(rows())
def test_the_frontier_is_what_nothing_that_competes_dominates(listed):
    # Cosines closer than 1e-9 are equal; such draws would make the pairwise rule disagree by rounding alone.
    for each in listed:
        each["cosine"] = round(each["cosine"], 3)
        each["ceiling"] = each["cosine"] * abs(each["cosine"])
    paid = [each for each in listed if not each["given_values"]]
    assert competing(listed) == paid
    wanted = {each["label"] for each in paid if not any(dominated(each, other) for other in paid)}
    assert on_frontier(listed) == wanted and wanted


def test_rounding_moves_nobody_off_the_frontier():
    """Two unbiased estimators differ in tokens to signal; that one has 1 - 2e-16 as its cosine is no advantage of the
    other."""
    slow, fast = row("slow", 1.0, 200.0), row("fast", 1.0 - 2e-16, 100.0)
    assert on_frontier([slow, fast]) == {"fast"}
    assert on_frontier([row("one", 1.0), row("two", 1.0 - 1e-15)]) == {"one", "two"}


def test_whoever_was_given_values_pushes_nobody_off():
    assert on_frontier([row("rloo", 0.9, 100.0), row("oracle", 1.0, 1.0, given_values=True)]) == {"rloo"}


# --- budgets ----------------------------------------------------------------------------------------------------------


def by_hand(each: dict[str, Any], budget: float) -> float:
    """cos |cos| / (1 + q / B)."""
    if each["tokens_to_signal"] is None:
        return 0.0
    return math.copysign(each["cosine"] ** 2, each["cosine"]) * budget / (budget + each["tokens_to_signal"])


@settings(deadline=None, max_examples=60)
@given(rows(), st.floats(10.0, 1e5), st.lists(st.floats(0, 1, exclude_min=True), min_size=8, max_size=8))
def test_each_budget_has_the_label_that_makes_most_progress_with_it(listed, budget, places):
    ranges = best_by_budget(listed, budget)
    start, end = min(each["tokens"] for each in competing(listed)), 1000 * budget
    assert ranges[0]["from"] == pytest.approx(start) and ranges[-1]["to"] is None
    assert all(one["to"] == two["from"] and one["label"] != two["label"] for one, two in pairwise(ranges))
    step = (end / start) ** (1 / 599)
    for place in places:
        at = start * (end / start) ** place
        found = next(each for each in ranges if each["from"] <= at and (each["to"] is None or at < each["to"]))
        chosen = next(each for each in listed if each["label"] == found["label"])
        assert not chosen["given_values"] and chosen["tokens"] <= at
        # Ranges change at points of a grid: a step before its end, or before a row is affordable, a range may lag
        # behind.
        if found["to"] is None or at < found["to"] / step:
            best = max(
                (by_hand(each, at) for each in competing(listed) if each["tokens"] <= at / step), default=-math.inf
            )
            assert by_hand(chosen, at) >= best - 1e-12


def test_ranges_change_where_progress_is_equal():
    """A quick one with a bias, and one that gets there."""
    quick, right = row("quick", 0.9, 10.0), row("right", 1.0, 100.0)
    # 0.81 / (1 + 10 / B) = 1 / (1 + 100 / B) is 0.81 (B + 100) = B + 10.
    equal = (81 - 10) / (1 - 0.81)
    ranges = best_by_budget([quick, right], BUDGET)
    assert [each["label"] for each in ranges] == ["quick", "right"]
    assert ranges[0]["to"] == pytest.approx(equal, rel=0.025)


def test_what_costs_more_than_the_budget_is_not_best_with_it():
    cheap, dear = row("cheap", 0.5, 1000.0, tokens=5.0), row("dear", 1.0, 1.0, tokens=400.0)
    ranges = best_by_budget([cheap, dear], BUDGET)
    assert [each["label"] for each in ranges] == ["cheap", "dear"]
    assert 400.0 <= ranges[1]["from"] <= 400.0 * 1.03


def test_a_tie_goes_to_the_cheaper():
    assert best_by_budget([row("dear", tokens=8.0), row("cheap", tokens=4.0)], BUDGET) == [
        {"label": "cheap", "from": 4.0, "to": None}
    ]


@given(st.floats(-1, 1), st.floats(0.1, 1e4), st.floats(0.01, 0.99))
def test_the_budget_for_a_progress_buys_it(cosine, q, wanted):
    each = row("any", cosine, q)
    needed = budget_for(each, wanted)
    if math.isinf(needed):
        assert by_hand(each, 1e12) <= wanted * (1 + 1e-9)
    else:
        assert progress_of(each, needed) == pytest.approx(wanted, rel=1e-6) == by_hand(each, needed)


# --- the sentence -----------------------------------------------------------------------------------------------------

RLOO = row("rloo K=4", 1.0, 250.0, tokens=40.0)


def test_a_budget_of_less_than_one_estimate():
    words = recommendation([RLOO, row("oracle", tokens=1.0, given_values=True)], 30.0)
    assert words == "30 tokens do not pay for a single estimate; the cheapest takes 40."


@pytest.mark.parametrize("silent", [row("rloo", 0.0, None), row("rloo", -0.4, 100.0)])
def test_no_signal(silent):
    words = recommendation([silent], 2000.0)
    assert words == "With 2,000 tokens a batch no estimator shows a signal here; draw more tokens, or measure longer."


def test_one_alone():
    words = recommendation([RLOO], BUDGET)
    assert words == "With 1,000 tokens a batch take rloo K=4: 25 prompts give 0.80 of the exact gradient's progress."
    one = row("reinforce", 1.0, 250.0, tokens=900.0, rewards=1.0)
    assert recommendation([one], BUDGET).startswith("With 1,000 tokens a batch take reinforce: 1 response give")
    assert "take reinforce: 2 responses give" in recommendation([one], 1900.0)


def test_a_best_one_with_a_bias_is_called_so():
    words = recommendation([row("grpo K=4", 0.9, 10.0, verdict="biased")], BUDGET)
    assert words.startswith(
        "With 1,000 tokens a batch take grpo K=4 (biased: at most 0.81 however many tokens): 100 prompts give 0.80 of"
    )
    assert "(biased" not in recommendation([row("grpo K=4", 0.9, 10.0, verdict="undecided")], BUDGET)


def sampled(label: str, q: float, progress: tuple[float, float], behind: tuple[float, float], **more: Any):
    intervals = {"progress": list(progress), "ceiling": list(more.pop("ceiling", (1.0, 1.0)))}
    return row(label, 1.0, q, intervals=intervals, behind=list(behind), samples=400, **more)


def test_no_bias_is_blamed_for_a_ceiling_that_was_not_measured():
    """Biased in length it may be; that its ceiling is below 1 its interval does not say."""
    for ceiling, part in (((1.0, 1.0), None), ((0.4, 1.0), None), ((0.7, 0.9), "(biased: at most 0.9 however")):
        words = recommendation(
            [sampled("grpo K=4", 250.0, (0.75, 0.85), (0, 0), verdict="biased", ceiling=ceiling)], BUDGET
        )
        assert ("biased" in words) == (part is not None) and (part or "") in words


def test_what_draws_do_not_tell_apart_is_named_together():
    best = sampled("rloo K=4", 250.0, (0.75, 0.85), (0, 0))
    close, far = sampled("remax", 300.0, (0.6, 0.82), (-0.05, 0.2)), sampled("ppo", 2000.0, (0.3, 0.4), (0.4, 0.5))
    words = recommendation([best, close, far], BUDGET)
    assert words.endswith(
        "take rloo K=4: 100 prompts give 0.75 to 0.85 of the exact gradient's progress; remax may do as well, for all "
        "that was drawn."
    )
    assert "ppo" not in words and "times the tokens" not in words
    assert "the next best, ppo, needs about 8 times the tokens" in recommendation([best, far], BUDGET)
    even = sampled("remax", 260.0, (0.75, 0.85), (-0.01, 0.015))
    assert "remax does as well (0.79)" in recommendation([best, even], BUDGET)


def test_a_wide_interval_says_how_many_draws_would_do():
    words = recommendation([sampled("rloo K=4", 250.0, (0.45, 0.85), (0, 0))], BUDGET)
    assert words.endswith("about 1,600 draws would leave less room than 400 did."), "half the width, four times as many"


def test_a_signal_that_may_be_none_is_no_advice():
    words = recommendation([sampled("rloo K=4", 250.0, (0.0, 0.9), (0, 0))], BUDGET)
    assert words == (
        "With 1,000 tokens a batch nobody can say what to take: 400 draws do not tell a signal from none; about 8,100 "
        "may."
    )


FEW = {"needed": 3000, "words": "too few successes: 3 of 300 estimates have a gradient; about 3,000 are needed"}


def test_whatever_too_little_was_seen_of_competes_with_nobody():
    unseen = row("grpo K=4", ceiling=None, tokens_to_signal=None, progress=None, too_few=FEW)
    assert recommendation([unseen], BUDGET) == (
        "With 1,000 tokens a batch nobody can say what to take: too few successes: 3 of 300 estimates have a gradient; "
        "about 3,000 are needed."
    )
    words = recommendation([RLOO, unseen], BUDGET)
    assert "take rloo K=4: " in words and words.endswith("; of grpo K=4 too little was seen.")
    assert on_frontier([RLOO, unseen]) == {"rloo K=4"}
    assert {each["label"] for each in best_by_budget([RLOO, unseen], BUDGET)} == {"rloo K=4"}


def test_a_rival_that_does_as_well():
    words = recommendation([RLOO, row("grpo K=4", 1.0, 260.0)], BUDGET)
    assert words.endswith("of the exact gradient's progress; grpo K=4 does as well (0.79).")


def test_a_rival_that_needs_more():
    # 0.8 again at q · 0.8 / 0.2 = 4 q.
    words = recommendation([RLOO, row("remax", 1.0, 500.0)], BUDGET)
    assert words.endswith("; the next best, remax, needs 2 times the tokens for that.")


def test_a_rival_that_never_gets_there():
    words = recommendation([RLOO, row("grpo K=4", 0.8, 1.0)], BUDGET)
    assert words.endswith("; the next best, grpo K=4, never gets there.")


def test_other_options_of_the_best_are_no_rivals():
    words = recommendation([RLOO, row("rloo K=2", 1.0, 255.0), row("remax", 1.0, 500.0)], BUDGET)
    assert "rloo K=2" not in words and "remax" in words


def test_what_values_would_be_worth():
    words = recommendation(
        [RLOO, row("theorem-2", 1.0, 25.0, given_values=True), row("ppo", 1.0, 50.0, given_values=True)], BUDGET
    )
    assert words.endswith("; exact values of states, if a critic could learn them, would give 0.98 (theorem-2).")
    assert "critic" not in recommendation([RLOO, row("ppo", 1.0, 240.0, given_values=True)], BUDGET)


@settings(max_examples=200)
@given(rows(), st.floats(1.0, 1e5))
def test_what_is_recommended_makes_most_progress_of_what_can_be_paid_for(listed, budget):
    words = recommendation(listed, budget)
    paid = [each for each in listed if not each["given_values"] and each["tokens"] <= budget]
    best = max((by_hand(each, budget) for each in paid), default=None)
    if best is None:
        assert "do not pay for a single estimate" in words
    elif best <= 0:
        assert "no estimator shows a signal here" in words
    else:
        taken = re.search(r"take (r\d)", words)
        assert taken is not None
        chosen = next(each for each in paid if each["label"] == taken[1])
        assert by_hand(chosen, budget) == pytest.approx(best, rel=1e-9)
        assert f"{int(budget // chosen['tokens']):,} prompt" in words
        rival = re.search(r"; (r\d) does as well", words)
        if rival is not None:
            other = next(each for each in paid if each["label"] == rival[1])
            assert best - by_hand(other, budget) < EVEN * (1 + 1e-9) and other is not chosen


@pytest.mark.parametrize("budget", [5.0, 50.0, 500.0, 5000.0])
def test_the_sentence_and_the_ranges_agree(budget):
    listed = [row("a", 0.7, 5.0, 2.0), row("b", 0.9, 50.0, 8.0), row("c", 1.0, 300.0, 40.0)]
    ranges = best_by_budget(listed, budget)
    here = next(
        each["label"] for each in ranges if each["from"] <= budget and (each["to"] is None or budget < each["to"])
    )
    assert f"take {here}:" in recommendation(listed, budget)


def test_one_response_gives():
    words = recommendation([row("reinforce", 1.0, 250.0, tokens=900.0, rewards=1.0)], 1000.0)
    assert "1 response gives" in words


def test_only_rows_that_were_given_values():
    """ValueError: min() arg is an empty sequence."""
    recommendation([row("theorem-2", given_values=True)], 1000.0)
