"""Confidence regions of an expected gradient E g around a known target, by its part along the target and the length of
the rest.

Two ways to a radius. *Empirical Bernstein*, where no estimate is longer than a known length: it holds for every
distribution and every number of draws, rare and heavy-tailed ones included. *Normal*, where nothing is known of the
range: the law of large numbers has to have set in.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Interval = tuple[float, float]


@dataclass(frozen=True)
class Region:
    """Where E g is: `along` holds <E g, ∇J> / |∇J|² (the scale), `across` the length of the rest over |∇J|."""

    along: Interval
    across: Interval

    @property
    def bias(self) -> Interval:
        """|E g - ∇J| / |∇J|: hypot(scale - 1, across)."""
        low, high = self.along
        near, far = max(low - 1, 1 - high, 0.0), max(abs(low - 1), abs(high - 1))
        return math.hypot(near, self.across[0]), math.hypot(far, self.across[1])

    @property
    def cosine(self) -> Interval:
        """scale / hypot(scale, across), 0 where both are; it grows with the scale and approaches 0 with the rest."""
        low, high = self.along
        return (
            _cosine(low, self.across[low > 0]),
            _cosine(high, self.across[high <= 0]),
        )


def _cosine(along: float, across: float) -> float:
    length = math.hypot(along, across)
    return along / length if length > 0 else 0.0


@dataclass(frozen=True)
class Radius:
    """A radius that shrinks with the number n of draws as `root` / √n + `rest` / n."""

    root: float
    rest: float = 0.0

    def at(self, count: float) -> float:
        return self.root / math.sqrt(count) + self.rest / count

    def scaled(self, factor: float) -> "Radius":
        return Radius(self.root * factor, self.rest * factor)

    def needed(self, goal: float) -> float:
        """The number of draws at which it is as small as `goal` > 0."""
        inverse = (math.sqrt(self.root**2 + 4 * self.rest * goal) + self.root) / (2 * goal)
        return inverse**2


@dataclass(frozen=True)
class Squares:
    """|Z|² of `count` independent draws of a vector Z."""

    mean: float
    variance: float
    """Mean of the squared deviations."""
    count: int

    def largest_mean(self, most: float, x: float) -> float:
        """Upper bound of E|Z|² with probability at least 1 - exp(-x), for |Z|² ≤ `most` = M (Maurer and Pontil 2009,
        Theorem 4):

            s + √(2 v ln(2eˣ) / (n - 1)) + 7 M ln(2eˣ) / (3 (n - 1))
        """
        x, rest = x + math.log(2), self.count - 1
        return self.mean + math.sqrt(2 * self.variance * x / rest) + 7 * most * x / (3 * rest)


def bernstein(squares: Squares, longest: float, x: float) -> Radius:
    """Radius of the ball around the mean of n independent vectors Z that holds E Z with probability at least 1 - 3
    exp(-x), of whatever distribution with |Z| ≤ `longest` = M.

        |Z̄ - E Z| ≤ √(2 x E|Z|² / n) + 4 M x / (3n)

    Bernstein's inequality in a Hilbert space (Pinelis 1994, Theorem 3.4: fails with probability 2 exp(-x); |Z - E Z| ≤
    2M), with the upper bound that `squares` give of E|Z|² (fails with exp(-x)).

    Args:
        squares: of all draws, or of some of them.
    """
    return Radius(math.sqrt(2 * x * squares.largest_mean(longest**2, x)), 4 * longest * x / 3)


def normal_radius(sum1: float, sum2: float, sum3: float, confidence: float) -> float:
    """Radius of the ball that holds a centred normal vector with probability `confidence`.

    |x|² = Σ λᵢ χ²₁ with sums of λ, λ², λ³ given is close to a shifted and scaled χ²_ν with the same three first
    cumulants, ν = (Σλ²)³ / (Σλ³)² (Hall 1983, Buckley and Eagleson 1988).
    """
    if sum1 <= 0 or sum3 <= 0:
        return 0.0
    freedom = sum2**3 / sum3**2
    return math.sqrt(max(sum1 + math.sqrt(sum2 / freedom) * (_chi_square_quantile(freedom, confidence) - freedom), 0.0))


def normal_radius_of(means: Float[Tensor, "batches d"], confidence: float) -> float:
    """Radius around the mean of independent batch means that holds their expectation, if they are normal: the matched
    χ² of `normal_radius`, for the covariance that the batches show."""
    count = len(means)
    centred = means - means.mean(0)
    inner = centred @ centred.T / (count - 1)
    square = inner @ inner
    radius = normal_radius(
        float(inner.trace()) / count,
        float(square.trace()) / count**2,
        float((square * inner).sum()) / count**3,
        confidence,
    )
    # The covariance itself is estimated, from `count` batches: Student's correction to first order.
    return radius * math.sqrt(1 + (_chi_square_quantile(1, confidence) + 1) / (2 * (count - 1)))


def _chi_square_quantile(freedom: float, confidence: float) -> float:
    """By bisection of the regularised incomplete gamma function."""
    low, high = 0.0, freedom + 20 * math.sqrt(2 * freedom) + 100
    for _ in range(100):
        middle = (low + high) / 2
        shape, place = (torch.tensor(number / 2, dtype=torch.float64) for number in (freedom, middle))
        low, high = (middle, high) if float(torch.special.gammainc(shape, place)) < confidence else (low, middle)
    return high
