"""Figures of many bootstrap samples at once, against the same figures of one after the other."""

import math

import numpy as np
import pytest

from llm_mdp.variance.measurement import AT_BUDGET, FIGURES, Measurement, Spread, _ends, _ratio, read_measurement

BUDGET = 500.0


def samples(seed: int, signal: float | None = None) -> tuple[Spread, ...]:
    """Some without a signal, some whose gradient is shorter than its noise, some that point away."""
    numbers = np.random.default_rng(seed).normal([3.0, 1.0, 5.0, 0.3, 0.2, 0.4], [0, 0, 0.5, 0.3, 0.3, 0.3], (60, 6))
    numbers[:3, 3], numbers[3:6, 5], numbers[6, 2] = 0.0, 0.0, 0.0
    made = [Spread(*row) for row in numbers.tolist()]
    return tuple(made if signal is None else [Spread(s.tokens, 1.0, s.trace, signal, s.dot, s.size) for s in made])


def measurement(seed: int) -> Measurement:
    worse, better = samples(seed), samples(seed + 1)
    return Measurement(worse[10], "undecided", samples=60, worse=worse, better=better)


EXACT = Measurement(Spread(3.0, 1.0, 5.0, 0.3, 0.2, 0.4), "unbiased")
SAME_SIGNAL = Measurement(samples(5, 0.5)[0], "unbiased", worse=samples(5, 0.5), better=samples(6, 0.5))


def test_intervals_are_those_of_one_sample_after_the_other():
    found = measurement(0)
    for name in (*FIGURES, *AT_BUDGET):
        sides = [[one.figure(name, BUDGET) for one in some] for some in (found.worse, found.better)]
        assert all(type(value) is float for side in sides for value in side)
        for some, side in zip(found._samples, sides):
            assert np.asarray(some.figure(name, BUDGET)).tolist() == pytest.approx(side, rel=1e-13)
        assert found.interval(name, BUDGET) == pytest.approx(_ends(sides, found.level), rel=1e-13)
    sizes = [[math.sqrt(max(one.size, 0.0)) for one in some] for some in (found.worse, found.better)]
    assert found.norm_interval() == pytest.approx(_ends(sizes, found.level), rel=1e-13)


@pytest.mark.parametrize("other", [measurement(2), EXACT, SAME_SIGNAL], ids=["sampled", "exact", "one signal"])
@pytest.mark.parametrize("shared", [False, True])
def test_comparisons_too(other, shared):
    for this in (measurement(0), SAME_SIGNAL):
        ours, theirs = ([one.worse or (one.spread,) * 60, one.better or (one.spread,) * 60] for one in (this, other))
        pairs = list(zip(ours, theirs)) if shared else [(one, two) for one in ours for two in theirs]
        ratios = [[_ratio(*each) for each in zip(*pair)] for pair in pairs]
        assert all(type(value) is float for some in ratios for value in some)
        value, ends = this.over(other, shared)
        assert value == pytest.approx(_ratio(this.spread, other.spread))
        assert ends == pytest.approx(_ends(ratios, this.level), rel=1e-13)
        gaps = [[two.progress(BUDGET) - one.progress(BUDGET) for one, two in zip(*pair)] for pair in pairs]
        assert this.behind(other, BUDGET, shared) == pytest.approx(_ends(gaps, this.level), rel=1e-13)


def test_a_ratio_without_a_signal_is_infinite():
    none, one = Spread(3.0, 1.0, 5.0, -0.1, 0.2, 0.4), EXACT.spread
    assert (
        _ratio(none, one) == math.inf
        and _ratio(one, none) == 0.0
        and _ratio(none, Spread(1, 1, 1, -0.2, 0, 1)) == math.inf
    )
    assert none.progress(BUDGET) == 0.0 and none.cosine == 0.0 and math.copysign(1, none.progress(BUDGET)) == 1


def test_a_signal_that_is_known_to_be_the_same_cancels():
    """Whatever it is, and entry by entry."""
    one, other = Spread(3.0, 1.0, 5.0, -0.1, 0.2, 0.4), Spread(1.0, 1.0, 5.0, -0.1, 0.2, 0.4)
    assert _ratio(one, other) == pytest.approx(3.0) and _ratio(other, one) == pytest.approx(1 / 3)
    assert _ratio(Spread.several([one, other]), Spread.several([other, one])) == pytest.approx([3.0, 1 / 3])


def test_a_document_is_read_as_it_was():
    found = measurement(0)
    assert read_measurement(found.document()) == found
