"""`llm-mdp verify … --price`."""

import json

import pytest

from llm_mdp.cli.price import summed_up
from llm_mdp.cli.verify import verify
from llm_mdp.verify.price import Price
from tests.cli.per_token import OWN


@pytest.mark.slow
def test_own_estimators_and_rows_have_a_price_in_words_and_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    run = [
        "mine.py:PerToken",
        "length-normalised",
        "rloo",
        "pass-at-k",
        "--vocab",
        "2",
        "--horizon",
        "2",
        "--seed",
        "1",
    ]
    verify([*run, "--group-size", "2", "--price", "--json", "found.json"])
    rows = json.loads((tmp_path / "found.json").read_text())["claims"]
    said = capsys.readouterr().out
    prices = {name: row["price"] for name, row in rows.items()}
    assert abs(prices["PerToken"]["value"] - prices["length-normalised"]["value"]) < 1e-9
    assert prices["PerToken"]["value"] > 1e-3 > abs(prices["rloo"]["value"])
    assert f"PerToken: price {prices['PerToken']['value']:.3g}: with" in said
    assert "pass-at-k: no price: the row is compared with the gradient of max of K" in said


def test_without_the_option_nothing_is_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verify(["rloo", "--vocab", "2", "--horizon", "2", "--json", "found.json"])
    assert "price" not in json.loads((tmp_path / "found.json").read_text())["claims"]["rloo"]


def test_several_prices_are_a_range_and_every_reason_is_said_once():
    found = [Price(0.5), Price(0.125), Price(None, "why"), Price(None, "why"), Price(None, "other")]
    assert summed_up(found) == "price 0.125 to 0.5 on 2 of 5 instances; why; other"
    assert summed_up(found[2:]) == "no price; why; other"
