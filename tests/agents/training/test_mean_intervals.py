"""Intervals of a mean reward: exact where there is an exact one, inside the bounds always, and they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_agents.training.mean_intervals import betting, clopper_pearson, mean_interval, student


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Clopper and Pearson's as R's binom.test prints them
        (5, 5, 0.4781762, 1.0),
        (0, 5, 0.0, 0.5218238),
        (3, 64, 0.009773075, 0.1309357),
        (128, 256, 0.4371086, 0.5628914),
        (700, 2000, 0.3290789, 0.3713617),
        (1, 1, 0.025, 1.0),
    ],
)
def test_zeros_and_ones(successes, n, low, high):
    assert clopper_pearson(successes, n) == pytest.approx((low, high), rel=1e-6)
    values = [1.0] * successes + [0.0] * (n - successes)
    assert mean_interval(values) == pytest.approx((low, high), rel=1e-6)
    assert mean_interval([3 * each - 1 for each in values], (-1.0, 2.0)) == pytest.approx(
        (3 * low - 1, 3 * high - 1), abs=1e-6
    )


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_bounded_rewards_never_leave_their_bounds_and_hold_the_mean(values):
    low, high = mean_interval(values) or pytest.fail("undecided")
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1
    assert high - low > 0.005, "never a point, however alike the rewards are"


def test_betting_holds_for_rare_and_skewed_rewards():
    generator = np.random.default_rng(0)
    for draw, mean in (
        (lambda: 0.9 * (generator.random(64) < 0.02), 0.018),
        (lambda: generator.beta(0.2, 0.6, 64), 0.25),
        (lambda: generator.integers(0, 2, 64).astype(float), 0.5),
    ):
        edges = [betting(draw()) for _ in range(400)]
        missed = sum(not low <= mean <= high for low, high in edges)
        # 38 of 400 are four standard deviations above 5 %.
        assert missed <= 38
        assert np.mean([high - low for low, high in edges]) < 0.35


def test_betting_is_narrow_where_rewards_are_alike():
    values = np.random.default_rng(1).uniform(0.45, 0.55, 256)
    low, high = betting(values)
    assert high - low < 0.05, "Hoeffding's is 0.17 wide"


def test_nothing_known_of_the_bounds():
    low, high = mean_interval([1.0, 2.0, 4.0, 5.0]) or pytest.fail("undecided")
    assert (low, high) == pytest.approx((3 - 3.182 * 0.91287, 3 + 3.182 * 0.91287), abs=0.03), "t of 3 degrees: 3.182"
    assert mean_interval([7.0] * 5) is None and mean_interval([7.0]) is None and student(np.ones(1)) is None


@pytest.mark.parametrize(
    ("values", "bounds", "words"),
    [
        ([], None, "needs at least one"),
        ([float("nan")], None, "all of them finite"),
        ([0.5, 2.0], (0.0, 1.0), "go from 0.5 to 2.0, but the bounds are 0.0 and 1.0"),
    ],
)
def test_what_has_no_interval(values, bounds, words):
    with pytest.raises(ValueError, match=words):
        mean_interval(values, bounds)
