"""95 % intervals of a mean reward, from independent rewards of one response each.

Three ways, by what is known. *Rewards of 0 and 1*: Clopper and Pearson's, exact. *Rewards within known bounds*: by
betting, of whatever distribution and any number of rewards. *Nothing known*: Student's t, for which the central limit
theorem has to have set in; it is said where it is used, and not used where all rewards are equal.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]

ERROR = 0.05
"""An interval misses the mean with at most this probability."""
HALVINGS = 60
"""Of a bisection: more than a float64 has bits."""
MOST_BET = 0.5
"""The part of the stake that the rewards can lose at most in one round."""


def mean_interval(values: Sequence[float] | np.ndarray, bounds: Interval | None = None) -> Interval | None:
    """An interval that holds E x with probability 0.95, of independent draws x₁ … xₙ.

    Args:
        values: (n,), n ≥ 1.
        bounds: the smallest and the largest x there can be; None: 0 and 1 where all values are within, else nothing is
            known.

    Returns:
        (low, high), within the bounds; None: undecided, for nothing is known of the bounds, and there is one value
        only, or all are equal.

    Raises:
        ValueError: if there is no value, one is not finite, or one is outside the bounds.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"values are {x.tolist()!r:.80}; an interval needs at least one, all of them finite.")
    if bounds is None:
        if x.min() < 0 or x.max() > 1:
            return student(x)
        bounds = (0.0, 1.0)
    low, high = bounds
    rounding = 1e-9 * (high - low)
    if not low - rounding <= x.min() <= x.max() <= high + rounding:
        raise ValueError(f"values go from {x.min()} to {x.max()}, but the bounds are {low} and {high}.")
    if low == high:
        return low, high
    share = ((x - low) / (high - low)).clip(0, 1)
    inner = clopper_pearson(round(share.sum()), len(x)) if np.isin(share, (0.0, 1.0)).all() else betting(share)
    # A wider interval holds E x as well, and a reader looks for the mean inside.
    edges = min(inner[0], float(share.mean())), max(inner[1], float(share.mean()))
    return low + (high - low) * edges[0], low + (high - low) * edges[1]


def clopper_pearson(successes: int, n: int) -> Interval:
    """Of a probability p: all p of which P(X ≥ k) > 0.025 and P(X ≤ k) > 0.025, X ~ Binomial(n, p) (Clopper and Pearson
    1934)."""

    def lower(k: int) -> float:
        if not k:
            return 0.0
        at_least = np.arange(k, n + 1)
        ways = math.lgamma(n + 1) - np.array([math.lgamma(j + 1) + math.lgamma(n - j + 1) for j in at_least])
        return largest(lambda p: np.exp(ways + at_least * np.log(p) + (n - at_least) * np.log1p(-p)).sum() <= ERROR / 2)

    return lower(successes), 1 - lower(n - successes)


def betting(x: np.ndarray) -> Interval:
    """Of the mean of rewards in [0, 1], of any distribution: all m at which nobody gets rich who bets that the mean is
    not m (the hedged capital of Waudby-Smith and Ramdas 2024, Theorem 3 with their bets for a fixed n):

        K⁺ₜ(m) = Πᵢ (1 + λᵢ (xᵢ - m)), K⁻ₜ(m) = Πᵢ (1 - λᵢ (xᵢ - m)); outside: max(K⁺ₜ, K⁻ₜ) / 2 ≥ 1/0.05 at some t

    λᵢ comes from the rewards before the i-th, and 1 ± λᵢ (xᵢ - m) is at least 1 - `MOST_BET`. K⁺ falls with m and K⁻
    rises, so the m that are left are an interval.
    """
    n, count = len(x), np.arange(1, len(x) + 1)
    mean = (0.5 + x.cumsum()) / (count + 1)
    variance = (0.25 + np.square(x - mean).cumsum()) / (count + 1)
    bets = np.sqrt(2 * math.log(2 / ERROR) / (n * np.concatenate([[0.25], variance[:-1]])))

    def lower(rewards: np.ndarray) -> float:
        def outside(m: float) -> bool:
            return np.log1p(np.minimum(bets, MOST_BET / m) * (rewards - m)).cumsum().max() >= math.log(2 / ERROR)

        return largest(outside)

    return lower(x), 1 - lower(1 - x)


def student(x: np.ndarray) -> Interval | None:
    """Mean ± t · standard error, where there is one; t is the 0.975 quantile for n - 1 degrees of freedom, to 1 % by
    its expansion in 1 / (n - 1) (Fisher and Cornish 1960)."""
    n, deviation = len(x), float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if deviation <= 1e-12 * np.abs(x).max():  # alike but for rounding
        return None
    z, f = 1.959963984540054, n - 1
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    t = {1: 12.706, 2: 4.303}.get(f, z + sum(term / f**power for power, term in enumerate(terms, start=1)))
    return float(x.mean()) - t * deviation / n**0.5, float(x.mean()) + t * deviation / n**0.5


def largest(holds: Callable[[float], bool]) -> float:
    """The largest number in [0, 1] up to which something holds, by bisection; 0 if nowhere."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
