"""Regions and radii: what they must contain, and how often they do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_mdp.verify.intervals import Radius, Region, Squares, bernstein, normal_radius, normal_radius_of

NUMBERS = st.floats(-5, 5, allow_subnormal=False)
LENGTHS = st.floats(0, 5, allow_subnormal=False)
PARTS = st.floats(0, 1)


# --- regions ----------------------------------------------------------------------------------------------------------


@given(NUMBERS, LENGTHS, LENGTHS, LENGTHS, PARTS, PARTS)
def test_the_intervals_of_a_region_contain_the_figures_of_its_points(low, width, least, more, part, rest):
    """The figures by vector arithmetic in the plane of the target and E g."""
    region = Region((low, low + width), (least, least + more))
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    mean = torch.tensor([low + part * width, least + rest * more], dtype=torch.float64)
    bias, cosine = float(torch.dist(mean, target)), float(torch.cosine_similarity(mean, target, dim=0, eps=1e-300))
    assert region.bias[0] - 1e-12 <= bias <= region.bias[1] + 1e-12
    if float(mean.norm()) > 1e-6:
        assert region.cosine[0] - 1e-12 <= cosine <= region.cosine[1] + 1e-12


@given(NUMBERS, LENGTHS, LENGTHS, LENGTHS)
def test_the_intervals_of_a_region_are_no_wider_than_its_points_need(low, width, least, more):
    """Both ends are taken at one of its corners, or where it comes closest to ∇J or to zero."""
    region = Region((low, low + width), (least, least + more))
    places = [low, low + width, min(max(1.0, low), low + width), min(max(0.0, low), low + width)]
    points = [(along, across) for along in places for across in region.across]
    biases = [abs(complex(along - 1, across)) for along, across in points]
    assert region.bias == pytest.approx((min(biases), max(biases)), abs=1e-12)
    lengths = [(along, abs(complex(along, across))) for along, across in points]
    cosines = [along / length if length > 0 else 0.0 for along, length in lengths]
    assert region.cosine == pytest.approx((min(cosines), max(cosines)), abs=1e-9)


# --- radii ------------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.001, 1))
def test_the_number_that_a_radius_needs_makes_it_as_small(root, rest, goal):
    radius = Radius(root, rest)
    assert radius.at(radius.needed(goal)) == pytest.approx(goal, rel=1e-9)


@given(st.floats(0.01, 100), st.floats(0, 1), st.floats(0, 1), st.integers(2, 10**6))
def test_a_bernstein_radius_has_the_unit_of_what_is_drawn(unit, mean, variance, count):
    one = bernstein(Squares(mean, variance, count), 1.0, 5.0)
    scaled = bernstein(Squares(unit**2 * mean, unit**4 * variance, count), unit, 5.0)
    assert scaled.at(count) == pytest.approx(unit * one.at(count), rel=1e-9)


@given(st.integers(2, 10**5), st.floats(1, 20))
def test_nothing_seen_leaves_room_for_what_is_rare(count, x):
    """If something of length 1 has probability p, n draws miss it with probability (1 - p)ⁿ; its mean must be allowed
    while that is more than the error allowed."""
    radius = bernstein(Squares(0.0, 0.0, count), 1.0, x).at(count)
    assert radius >= 1 - (3 * math.exp(-x)) ** (1 / count)


@given(st.integers(2, 10**5), st.floats(1, 20))
def test_a_square_that_was_never_seen_may_still_have_a_mean(count, x):
    """As above, of the mean of |Z|² alone and with its own error."""
    assert Squares(0.0, 0.0, count).largest_mean(1.0, x) >= 1 - math.exp(-x / count)


@given(st.floats(1e-6, 0.5), st.integers(1, 60), st.floats(1, 15))
def test_a_bernstein_radius_holds_for_coins_as_often_as_it_says(chance, count, x):
    """The binomial distribution summed up, where E|Z|² is known from 10¹² other throws."""
    radius = bernstein(Squares(chance, chance * (1 - chance), 10**12), 1.0, x).at(count)
    outside = math.fsum(
        math.comb(count, k) * chance**k * (1 - chance) ** (count - k)
        for k in range(count + 1)
        if abs(k / count - chance) > radius
    )
    assert outside <= 2 * math.exp(-x)


def misses(draw, truth: torch.Tensor, longest: float, count: int, repetitions: int) -> tuple[int, int]:
    """How often the truth is outside of the Bernstein and of the normal ball, at 99 %."""
    outside = [0, 0]
    for _ in range(repetitions):
        sample = draw(count)
        squares = sample.square().sum(-1)
        seen = Squares(float(squares.mean()), float(squares.var()), count)
        error = float((sample.mean(0) - truth).norm())
        outside[0] += error > bernstein(seen, longest, math.log(3 / 0.01)).at(count)
        outside[1] += error > normal_radius_of(sample.unflatten(0, (50, -1)).mean(1), 0.99)
    return outside[0], outside[1]


@pytest.mark.parametrize(("chance", "least"), [(1e-4, 200), (1e-3, 60), (0.01, 4)])
def test_bernstein_covers_rare_events_and_the_normal_radius_does_not(chance, least):
    """1,000 draws of a vector of length 1 that is almost always zero: 300 times at 99 %. Nothing is seen in 271, 110
    and 0 of them, and a normal radius is zero then."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)

    def draw(count: int) -> torch.Tensor:
        return (torch.rand(count, 1, generator=generator, dtype=torch.float64) < chance) * direction

    sure, normal = misses(draw, chance * direction, 1.0, 1_000, 300)
    assert sure == 0
    assert normal >= least


def test_bernstein_covers_heavy_tails():
    """A length of 100 with probability 1/1,000 beside ordinary ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> torch.Tensor:
        ordinary = 2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1
        rare = torch.rand(count, 1, generator=generator, dtype=torch.float64) < 1e-3
        return torch.where(rare, 100.0, ordinary)

    sure, normal = misses(draw, torch.tensor([0.1], dtype=torch.float64), 100.0, 1_000, 300)
    assert sure == 0 and normal > 60


def test_bernstein_is_of_the_order_of_the_noise():
    """√(2 ln 300) = 3.4 standard errors at 99 %, where the range does not matter."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.rand(100_000, 3, generator=generator, dtype=torch.float64) - 0.5
    squares = sample.square().sum(-1)
    radius = bernstein(Squares(float(squares.mean()), float(squares.var()), 100_000), math.sqrt(0.75), math.log(300))
    assert radius.at(100_000) == pytest.approx(math.sqrt(2 * math.log(300) * 0.25 / 100_000), rel=0.05)


CHI_SQUARE = {
    (1, 0.95): 3.841459, (1, 0.99): 6.634897, (2, 0.95): 5.991465, (2, 0.99): 9.210340, (3, 0.5): 2.365974,
    (5, 0.99): 15.086272, (10, 0.90): 15.987179, (10, 0.99): 23.209251, (30, 0.95): 43.772972, (100, 0.99): 135.806723,
    (100, 0.9999): 161.318647,
}  # fmt: skip
"""Quantiles from printed tables: (degrees of freedom, confidence)."""


@pytest.mark.parametrize(("freedom", "confidence"), CHI_SQUARE)
def test_radius_of_a_standard_normal_vector(freedom, confidence):
    """Σ = 1 in k dimensions: Σ λ = Σ λ² = Σ λ³ = k and the squared radius is the quantile of χ²ₖ."""
    found = normal_radius(freedom, freedom, freedom, confidence)
    assert found**2 == pytest.approx(CHI_SQUARE[freedom, confidence], rel=1e-4)
    assert normal_radius(4 * freedom, 16 * freedom, 64 * freedom, confidence) == pytest.approx(2 * found, rel=1e-9)


IMHOF = {
    (0.7, 0.15, 0.08, 0.07): 4.977125,
    (0.4, 0.35, 0.1, 0.07, 0.05, 0.03): 3.742411,
    (1.0, 0.1, 0.1, 0.1, 0.1, 0.1): 7.166206,
}
"""99 % quantiles of Σ λᵢ χ²₁ by numerical inversion of the characteristic function (Imhof 1961)."""


@pytest.mark.parametrize("eigenvalues", IMHOF)
def test_radius_where_some_directions_are_noisier_than_others(eigenvalues):
    """Matching mean and variance only (Satterthwaite) falls short by 4 to 7 % here."""
    found = normal_radius(*(sum(value**power for value in eigenvalues) for power in (1, 2, 3)), 0.99)
    assert found**2 == pytest.approx(IMHOF[eigenvalues], rel=0.01)


def test_radius_of_no_spread_is_zero():
    assert normal_radius(0.0, 0.0, 0.0, 0.99) == 0


@pytest.mark.parametrize(
    ("batches", "draws", "most"), [(64, 400, 13), pytest.param(200, 1_500, 29, marks=pytest.mark.slow)]
)
def test_the_normal_radius_holds_as_often_as_it_says_where_one_direction_is_noisy(batches, draws, most):
    """Normal batch means at 99 %: 4 and 15 failures are expected; the most are 4 standard deviations more."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.tensor([1.0, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64).sqrt()
    outside = 0
    for _ in range(draws):
        means = deviation * torch.randn(batches, 6, generator=generator, dtype=torch.float64)
        outside += float(means.mean(0).norm()) > normal_radius_of(means, 0.99)
    assert 0 < outside < most
