"""What draws have not shown: intervals that hold for rare and heavy-tailed estimates, and when there is none.

The bootstrap knows what was drawn and nothing else: where one response in 20,000 is right, 300 draws have no scatter,
and its interval is a point. Two remedies.

1. *One more draw.* Every bootstrap sample weighs N + 1 estimates by independent exponentials: the N that were drawn,
   and one that was not, as large as any can be, in the direction that moves the figures most. For the mean of numbers
   with a known bound these are the limits of Gaffke (2005; Learned-Miller and Thomas 2019), which hold at every N where
   they were ever tried; unlike the bootstrap's they do so for rare ones.
2. *Enough draws.* Fewer than `ENOUGH` estimates with a gradient, or a noise that rests on fewer than that, are too few
   for any figure (`TooFew`).

How large an estimate can be is known on trees, where draws without regard to their probability show it
(`variance.sampled`). Elsewhere it is taken to be at most `BEYOND` times the square of the largest that was drawn: an
assumption, and the one way in which an interval can be too narrow.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ENOUGH = 30
"""Estimates with a gradient, and estimates that the noise rests on, below which nothing is said."""
BEYOND = 2.0
"""|g|² of the largest estimate there may be, over that of the largest drawn, where nobody knows."""
FAR = 25.0
"""|ḡ - ∇J|² of an unbiased estimator over its expectation v / N from which the draws cannot be all there is: by
Markov's inequality it happens in at most one of 25 cases, and where estimates are about normal, hardly ever."""
BARELY, BARELY_LEVEL = 2 * ENOUGH, 0.998
"""Below so many, intervals end at quantiles of this level. Runs that had barely enough are the lucky ones of those that
mostly have too few, and their figures are lucky too: what holds in 95 % of all runs holds in fewer of these (90 %,
`benchmarks/coverage_variance.py`)."""
FURTHER = 10
"""Where nothing at all was seen in N draws its rate is below 3 / N (with 95 %), so `ENOUGH` need 10 N at least."""


@dataclass(frozen=True)
class TooFew:
    """Why there are no figures: too few of the draws say anything."""

    draws: int
    """N, estimates drawn."""
    successes: int
    """Those with a gradient that is not zero."""
    effective: float
    """How many the noise rests on: (Σ s + S)² / (Σ s² + S²) - 1 with s = |g - ḡ|² and S the largest there may be; N of
    equal size are N."""
    needed: int
    """About how many draws it takes; at least so many where `at_least`."""
    at_least: bool = False

    @property
    def words(self) -> str:
        """For people: the counts, and about how many draws it takes."""
        if self.successes < ENOUGH:
            seen = f"{self.successes} of {self.draws:,} estimates have a gradient"
        elif 1 <= self.effective < ENOUGH:
            seen = f"the noise of {self.draws:,} estimates rests on about {round(self.effective)} of them"
        elif self.effective < 1:
            seen = f"estimates much larger than the {self.draws:,} drawn are possible, and would decide the noise"
        else:
            seen = f"the mean of {self.draws:,} estimates is farther from the true gradient than their scatter explains"
        more = "at least" if self.at_least else "about"
        return f"too few successes: {seen}; {more} {self.needed:,} are needed"


@dataclass(frozen=True)
class Seen:
    """How much the draws say."""

    draws: int
    successes: int
    effective: float
    """See `TooFew`."""
    far: bool = False
    """Is the mean farther from E g, where that is known, than the scatter explains?"""

    @property
    def too_few(self) -> TooFew | None:
        """Whether these are too few to say anything."""
        least, counts = min(float(self.successes), self.effective), (self.draws, self.successes, self.effective)
        if least < 1 or (self.far and least >= ENOUGH):
            return TooFew(*counts, FURTHER * self.draws, at_least=True)
        return TooFew(*counts, two_digits(self.draws * ENOUGH / least)) if least < ENOUGH else None

    @property
    def is_barely_enough(self) -> bool:
        return min(self.successes, self.effective) < BARELY


def seen_in(gradient: Float[Tensor, "N d"], largest: float | None, truth: Float[Tensor, " d"] | None = None) -> Seen:
    """How much these estimates say.

    Args:
        largest: |g|² of the largest estimate there may be, see `bound`; None: unknown.
        truth: E g, where it is known.
    """
    draws, square, mean = len(gradient), gradient.square().sum(-1), gradient.mean(0)
    deviation, most = (gradient - mean).square().sum(-1), bound(square, largest)
    total, fourth = float(deviation.sum()), float(deviation.square().sum())
    effective = (total + most) ** 2 / (fourth + most**2) - 1 if most > 0 else 0.0
    noise = total / (draws - 1) / draws
    far = truth is not None and float((mean - truth).square().sum()) > FAR * noise
    return Seen(draws, int((square > 0).sum()), effective, far)


def bound(square: Float[Tensor, " N"], largest: float | None) -> float:
    """|g|² of the largest estimate there may be: as known, and at least as drawn; or `BEYOND` times the largest
    drawn."""
    drawn = float(square.max())
    return BEYOND * drawn if largest is None else max(largest, drawn)


def exponential_weights(number: int, samples: int, seed: int) -> tuple[Float[Tensor, "R N"], Float[Tensor, "R 1"]]:
    """Weights of a bootstrap sample of N draws, and the share of one more that was not drawn; all N + 1 shares of a row
    are uniform on the simplex."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    drawn = torch.from_numpy(generator.standard_exponential((samples, number + 1)))
    seen = drawn[:, 1:]
    total = seen.sum(-1, keepdim=True)
    return seen / total, drawn[:, :1] / (total + drawn[:, :1])


def two_digits(value: float) -> int:
    """Rounded up to two digits: a forecast is no better."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step
