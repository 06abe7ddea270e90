"""Price against 1 - cosine as SVG: every row with a price has its dot, and what has none is named with its reason."""

import re

import pytest

from llm_mdp.report import price_plot
from llm_mdp.verify.typical_price import Typical

STORED = {
    "dear": {
        "token": Typical(60, 60, {}, 0.7, (0.6, 0.8), 1.5, 0.6, 1.0),
        "outcome": Typical(60, 59, {"jumps": 1}, 0.75, (0.65, 0.85), 1.2, 0.8, 1.1),
    },
    "cheap": {
        "token": Typical(60, 60, {}, 0.02, (0.01, 0.03), 0.1, 0.03, 0.5),
        "outcome": Typical(60, 60, {}, 1e-6, (-1e-6, 2e-6), 1e-5, 0.0, 0.4),
    },
    "lost": {
        "token": Typical(60, 0, {"cannot be reached": 60}, None, None, None, 1.0, 1.0),
        "outcome": Typical(60, 0, {"cannot be reached": 60}, None, None, None, 1.0, 1.0),
    },
}


@pytest.fixture
def stored(monkeypatch):
    monkeypatch.setattr(price_plot, "rows_with_price", lambda: tuple(STORED))
    monkeypatch.setattr(price_plot, "typical_prices", STORED.__getitem__)


def test_rows_are_named_and_coloured_by_the_page(stored):
    svg = price_plot.price_svg()
    words = re.findall(r">([^<>]+)</text>", svg)
    assert {"dear", "cheap"} <= set(words) and "lost" not in words
    assert "var(--biased)" in svg and "var(--tone-1)" in svg and "#0a0b" not in svg


def test_the_dearer_row_stands_higher(stored, monkeypatch):
    drawn = {}
    monkeypatch.setattr(price_plot, "to_svg", lambda axes, *rest: drawn.update(axes=axes) or "")
    price_plot.price_svg()
    dots = [
        tuple(float(each[0]) for each in line.get_data()) for line in drawn["axes"].lines if len(line.get_xdata()) == 1
    ]
    assert len(dots) == 4
    assert max(dots, key=lambda dot: dot[1]) == pytest.approx((0.8, 0.75))
    assert min(dots, key=lambda dot: dot[1]) == pytest.approx((price_plot.ALIGNED, price_plot.HARMLESS))


def test_rows_without_a_price_are_listed_with_their_reason(stored):
    assert price_plot.without_price() == [("lost", "cannot be reached")]


def test_without_stored_prices_there_is_no_drawing(monkeypatch):
    monkeypatch.setattr(price_plot, "rows_with_price", tuple)
    assert price_plot.price_svg() == ""
