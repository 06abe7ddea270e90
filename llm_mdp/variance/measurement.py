"""What a token of sampling buys: covariance, bias and cost of an estimator, and what follows from them at equal cost.

One *estimate* g is a group of K responses to one prompt with its branches; it costs c generated tokens and scatters
with v = tr Cov g. A budget of B tokens buys n = B / c independent estimates, whose mean ĝ has the covariance v / n.
Then

    mean squared error    E|ĝ - ∇J|² = |E g - ∇J|² + v / n
    signal to noise       |E g|² / (v / n) = B / q,    q = v c / |E g|²
    progress              <E g, ∇J>² / (|∇J|² E|ĝ|²) = cos² / (1 + q / B)

where q is *tokens to signal*: at B = q signal equals noise.

Progress is what the best step along ĝ gains, over what the best step along ∇J gains, where J is equally smooth in all
directions: the largest of η <E ĝ, ∇J> - (L/2) η² E|ĝ|² over η is <E g, ∇J>² / (2 L E|ĝ|²), and |∇J|² / (2 L) for the
exact gradient. It does not depend on the estimator's scale, which a learning rate can undo; its ceiling is the cosine,
its pace is q. Two numbers say all.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.certificate import exact_moments, judge
from llm_mdp.verify.signal import tokens_to_signal

CONFIDENCE = 0.95
"""Of every interval."""


def progress(cosine: float, tokens_to_signal: float | None, budget: float) -> float:
    """cos |cos| / (1 + q / B): negative where the estimate points away from ∇J; 0 where there is no signal (q None or
    infinite).

    Args: budget: B > 0, generated tokens.
    """
    if tokens_to_signal is None or math.isinf(tokens_to_signal):
        return 0.0
    return cosine * abs(cosine) / (1 + tokens_to_signal / budget)


@dataclass(frozen=True)
class Spread:
    """What one estimate costs, how it scatters and where it points."""

    tokens: float
    """c, generated tokens, branches included."""
    rewards: float
    """Responses that are scored."""
    trace: float
    """v = tr Cov g."""
    signal: float
    """|E g|²; a sampled one is unbiased and may come out below 0."""
    dot: float
    """<E g, ∇J>."""
    size: float
    """|∇J|²; a sampled one is unbiased too, and what is relative to it is infinite where it is not above 0."""

    @property
    def error(self) -> float:
        """|E g - ∇J|²."""
        return self.signal - 2 * self.dot + self.size

    @property
    def relative_bias(self) -> float:
        return math.sqrt(max(self.error, 0.0) / self.size) if self.size > 0 else math.inf

    @property
    def scale(self) -> float:
        return self.dot / self.size if self.size > 0 else math.inf

    @property
    def cosine(self) -> float:
        """At most 1 in size; 0 without a signal."""
        signal = self.signal > 0 and self.size > 0
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.signal * self.size))) if signal else 0.0

    @property
    def tokens_to_signal(self) -> float:
        """q = v c / |E g|², infinite without a signal."""
        return tokens_to_signal(self.trace, self.tokens, self.signal)

    def mean_squared_error(self, budget: float) -> float:
        """E|ĝ - ∇J|² / |∇J|² with B tokens."""
        return (max(self.error, 0.0) + self.trace * self.tokens / budget) / self.size if self.size > 0 else math.inf

    def progress(self, budget: float) -> float:
        return progress(self.cosine, self.tokens_to_signal, budget)


FIGURES = ("trace", "relative_bias", "cosine", "tokens_to_signal")
"""The figures that have intervals, and `progress`."""


@dataclass(frozen=True)
class Measurement:
    """An estimator's spread, exact or sampled."""

    spread: Spread
    verdict: str
    """As in `verify.Certificate`."""
    branch_noise: float | None = None
    """The part of an exact trace that is noise of branch draws and would go with more of them."""
    samples: int | None = None
    """Number of estimates drawn; None: exact."""
    replicates: tuple[Spread, ...] = ()
    """Bootstrap samples, laid around the estimate."""
    seconds: float | None = None
    """Of one estimate, sampling and backward pass, where measured."""

    def interval(self, figure: str, budget: float = 1.0) -> tuple[float, float] | None:
        """95 % of the bootstrap samples; None if exact.

        Args: figure: one of `FIGURES`, or "progress" at this budget.
        """
        if not self.replicates:
            return None
        values = [one.progress(budget) if figure == "progress" else getattr(one, figure) for one in self.replicates]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
        return float(low), float(high)

    def over(self, base: "Measurement") -> tuple[float, tuple[float, float] | None]:
        """Tokens to signal over those of another, and the ratio's interval (None if both are exact).

        Where both come from the same draws their bootstrap samples are paired, and what they share (the length of ∇J,
        hard prompts) is not in the interval of the ratio.
        """
        value = _ratio(self.spread, base.spread)
        if not self.replicates and not base.replicates:
            return value, None
        ours, theirs = (
            self.replicates or (self.spread,) * len(base.replicates),
            base.replicates or (base.spread,) * len(self.replicates),
        )
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(
            [_ratio(one, other) for one, other in zip(ours, theirs)], [tail, 1 - tail], method="inverted_cdf"
        )
        return value, (float(low), float(high))

    def document(self) -> dict[str, Any]:
        """As JSON; `read_measurement` reads it."""
        return asdict(self)

    def row(self, budget: float) -> dict[str, Any]:
        """All figures, JSON-able: what is infinite is None."""
        spread = self.spread
        intervals = {name: self.interval(name, budget) for name in (*FIGURES, "progress")} if self.replicates else None
        if intervals is not None:
            intervals["trace_covariance"] = intervals.pop("trace")
        return {
            "verdict": self.verdict,
            "tokens": spread.tokens,
            "rewards": spread.rewards,
            "seconds": self.seconds,
            "trace_covariance": spread.trace,
            "trace_covariance_of_draws": self.branch_noise,
            "relative_bias": finite(spread.relative_bias),
            "scale": finite(spread.scale),
            "cosine": spread.cosine,
            "tokens_to_signal": finite(spread.tokens_to_signal),
            "estimates": budget / spread.tokens,
            "mean_squared_error": finite(spread.mean_squared_error(budget)),
            "signal_to_noise": budget / spread.tokens_to_signal if spread.tokens_to_signal > 0 else None,
            "progress": spread.progress(budget),
            "intervals": intervals
            and {name: [finite(end) for end in ends] for name, ends in intervals.items() if ends is not None},
            "samples": self.samples,
        }


def read_measurement(document: dict[str, Any]) -> Measurement:
    """What `Measurement.document` wrote."""
    spreads = {
        "spread": Spread(**document["spread"]),
        "replicates": tuple(Spread(**one) for one in document["replicates"]),
    }
    return Measurement(**{**document, **spreads})


def _ratio(one: Spread, other: Spread) -> float:
    """Of two tokens to signal; unbiased estimates share their signal, known or not."""
    if one.signal == other.signal:
        noise = other.trace * other.tokens
        return one.trace * one.tokens / noise if noise > 0 else math.inf
    return one.tokens_to_signal / other.tokens_to_signal if other.tokens_to_signal > 0 and one.signal > 0 else math.inf


def finite(value: float) -> float | None:
    """As JSON has it: None for what is infinite."""
    return value if math.isfinite(value) else None


def exact_measurement(
    estimator: Estimator, enumeration: Enumeration, target: Float[Tensor, " parameters"], magnitude: float = 0.0
) -> Measurement:
    """All figures by enumeration (`verify.exact_moments`).

    Raises:
        TooLarge: when there are too many worlds; `tree_estimates` remains.
        ValueError: when the true gradient is zero, so that nothing is relative to it.
    """
    check_target(target)
    moments = exact_moments(estimator, enumeration)
    if not moments.tokens > 0:
        raise ValueError(
            f"what {type(estimator).__name__} draws is not counted, so it has no place at equal cost; verify it "
            f"instead."
        )
    mean, certificate = moments.mean, judge(moments, target, magnitude)
    # What differs from the true gradient by rounding is the true gradient.
    mean = target if certificate.verdict == "unbiased" else mean
    signal = float(mean @ mean) if certificate.cosine else 0.0
    spread = Spread(
        moments.tokens, moments.rewards, moments.trace_covariance, signal, float(mean @ target), float(target @ target)
    )
    return Measurement(spread, certificate.verdict, moments.branch_noise)


def check_target(target: Float[Tensor, " parameters"]) -> None:
    """Raise ValueError if there is no gradient to measure by."""
    if not float(target.norm()) > 0:
        raise ValueError(
            "the true gradient is zero here, so nothing can be measured relative to it; take another policy or reward."
        )
