"""Stored prices: what the ledger says of them."""

import json
from pathlib import Path

import pytest

from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.typical_price import Typical, price_text, rows_with_price, typical_prices


def typical(mean: float | None, interval: tuple[float, float] | None, priced: int = 60) -> Typical:
    return Typical(60, priced, {"rare": 1, "budget cannot be reached": 60 - priced}, mean, interval, mean, 0.1, 0.2)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (typical(0.0461, (0.0392, 0.0531)), "0.046 [0.039, 0.053]"),
        (typical(0.0461, (0.0392, 0.0531), 45), "0.046 [0.039, 0.053] on 45 of 60"),
        (typical(1e-5, (-1e-5, 3e-4)), "below 0.0004"),
        (typical(0.001, (-1e-5, 3e-3)), "0.001 [0, 0.003]"),
        (typical(None, None, 2), "budget cannot be reached"),
    ],
)
def test_a_figure_has_its_interval_or_there_are_words(found, text):
    assert found.text == text


def test_an_exact_direction_costs_nothing():
    assert price_text("rloo", "unbiased") == price_text("dr-grpo", "proportional") == "0"


def test_a_row_that_was_never_computed_says_nothing():
    assert price_text("mine", "biased") == ""


def test_stored_rows_are_rows_of_the_ledger_with_both_kinds_of_rewards():
    ids = {claim.id for claim in CLAIMS}
    assert set(rows_with_price()) <= ids and len(rows_with_price()) > 10
    for row in rows_with_price():
        assert set(typical_prices(row)) == {"token", "outcome"}


def test_right_or_wrong_rewards_make_the_std_harmless_and_a_wrong_critic_costs_most():
    """THEORY.md §5: one prompt, two rewards: /std keeps the direction; gae-wrong-0 costs about .6 on both kinds."""
    grpo, wrong = typical_prices("grpo"), typical_prices("gae-wrong-0")
    assert grpo["outcome"].text.startswith("below") and grpo["token"].mean == pytest.approx(0.03, abs=0.02)
    assert all(each.mean == pytest.approx(0.65, abs=0.15) for each in wrong.values())


def test_every_biased_row_of_the_ledger_has_a_price_or_says_why_not():
    ledger = Path(__file__).parents[2] / "benchmarks" / "results" / "ledger.json"
    runs = json.loads(ledger.read_text(encoding="utf-8"))["instances"]
    biased = {name for run in runs for name, row in run["claims"].items() if row["verdict"] == "biased"}
    assert len(biased) > 50
    assert not {name for name in biased if not price_text(name, "biased")}
