"""What a token of sampling buys: covariance, bias and cost of an estimator, and what follows from them at equal cost.

One *estimate* g is a group of K responses to one prompt with its branches; it costs c generated tokens and scatters
with v = tr Cov g. A budget of B tokens buys n = B / c independent estimates, whose mean ĝ has the covariance v / n.
Then

    mean squared error    E|ĝ - ∇J|² = |E g - ∇J|² + v / n
    signal to noise       |E g|² / (v / n) = B / q,    q = v c / |E g|²    (*tokens to signal*: at B = q signal equals
    noise) progress              <E g, ∇J>² / (|∇J|² E|ĝ|²) = cos² / (1 + q / B)

Progress is what the best step along ĝ gains, over what the best step along ∇J gains, where J is equally smooth in all
directions: the largest of η <E ĝ, ∇J> - (L/2) η² E|ĝ|² over η is <E g, ∇J>² / (2 L E|ĝ|²), and |∇J|² / (2 L) for the
exact gradient. It does not depend on the estimator's scale, which a learning rate can undo; its ceiling is the cosine,
its pace is q. Two numbers say all.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators.algorithms import Estimator
from llm_mdp.exact.enumeration import Enumeration, TreeSampler
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.certificate import certify, edges, exact_moments, token_weights
from llm_mdp.verify.sampled import certify_means, pull_back

CONFIDENCE = 0.95
"""Of every interval."""
REPLICATES = 400
"""Bootstrap samples behind an interval."""
PARTS = 32
"""Batches whose means a sampled verdict is made of."""
NUMBERS = 20_000_000
"""Most numbers of estimates by edges that are in memory at one time (160 MB)."""


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
        known = self.signal > 0 and self.size > 0
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.signal * self.size))) if known else 0.0

    @property
    def tokens_to_signal(self) -> float:
        """q = v c / |E g|², infinite without a signal."""
        return self.trace * self.tokens / self.signal if self.signal > 0 else math.inf

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
    draws: float | None = None
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
            "trace_covariance_of_draws": self.draws,
            "relative_bias": known(spread.relative_bias),
            "scale": known(spread.scale),
            "cosine": spread.cosine,
            "tokens_to_signal": known(spread.tokens_to_signal),
            "estimates": budget / spread.tokens,
            "mean_squared_error": known(spread.mean_squared_error(budget)),
            "signal_to_noise": budget / spread.tokens_to_signal if spread.tokens_to_signal > 0 else None,
            "progress": spread.progress(budget),
            "intervals": intervals
            and {name: [known(end) for end in ends] for name, ends in intervals.items() if ends is not None},
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


def known(value: float) -> float | None:
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
    mean, certificate = moments.mean, certify(moments, target, magnitude)
    # What differs from the true gradient by rounding is the true gradient.
    mean = target if certificate.verdict == "unbiased" else mean
    signal = float(mean @ mean) if certificate.cosine else 0.0
    spread = Spread(
        moments.tokens, moments.rewards, moments.trace_covariance, signal, float(mean @ target), float(target @ target)
    )
    return Measurement(spread, certificate.verdict, moments.draws)


def check_target(target: Float[Tensor, " parameters"]) -> None:
    """Raise ValueError if there is no gradient to measure by."""
    if not float(target.norm()) > 0:
        raise ValueError(
            "the true gradient is zero here, so nothing can be measured relative to it; take another policy or reward."
        )


@dataclass(frozen=True)
class Estimates:
    """Independent estimates of the gradient, one for every prompt drawn; or the means of several by disjoint groups of
    responses to it."""

    gradient: Float[Tensor, "N d"]
    """The estimates (means of them), or sketches with about the same inner products."""
    square: Float[Tensor, " N"]
    """|g|² of one estimate (mean of them)."""
    tokens: Float[Tensor, " N"]
    """What each cost."""
    rewards: Float[Tensor, " N"]
    seconds: float | None = None
    """Of one estimate."""


def tree_estimates(estimator: Estimator, enumeration: Enumeration, number: int, seed: int = 0) -> Estimates:
    """Draws on an enumerated tree: any group size, whatever the number of worlds."""
    generator, parts, kept = torch.Generator().manual_seed(seed), [], []
    chunk = max(1, NUMBERS // enumeration.n_edges)
    for start in range(0, number, chunk):
        sampler = Meter(TreeSampler(enumeration, min(chunk, number - start), generator))
        evidence = estimator.collect(sampler)
        worlds = sampler.weight.shape
        weights, edge = token_weights(estimator, evidence, enumeration, worlds), edges(evidence, enumeration)
        by_edge = torch.zeros(len(weights), enumeration.n_edges, dtype=torch.float64)
        by_edge.scatter_add_(1, edge.flatten(1), weights.flatten(1))
        gradient = pull_back(by_edge, enumeration)
        parts.append((gradient, *sampler.cost(estimator.group_size)))
        kept.append(torch.ones(len(gradient), dtype=torch.bool) if sampler.kept is None else sampler.kept)
    return kept_estimates(parts, kept)


def kept_estimates(parts: Sequence[tuple[Tensor, Tensor, Tensor]], kept: Sequence[Bool[Tensor, " N"]]) -> Estimates:
    """Estimates of the groups that an estimator kept; what it left out is charged to those.

    Args:
        parts: gradients (N, d), tokens (N,) and reward calls (N,) of each batch of groups.
        kept: which groups of each batch were kept.

    Raises:
        NothingKept: if none was.
    """
    (gradient, tokens, rewards), keep = (torch.cat(each) for each in zip(*parts)), torch.cat(list(kept))
    if not keep.any():
        raise NothingKept(
            f"the estimator left out every one of {len(keep)} groups; draw more, or take another setting."
        )
    number = int(keep.sum())
    if number < len(keep):
        tokens, rewards = (each.sum().expand(number) / number for each in (tokens, rewards))
    return Estimates(gradient[keep], gradient[keep].square().sum(-1), tokens, rewards)


def sampled_measurement(
    estimates: Estimates,
    target: Float[Tensor, " d"] | None = None,
    reference: Estimates | None = None,
    *,
    seed: int = 0,
    known: Literal["unbiased", "proportional"] | None = None,
) -> Measurement:
    """All figures from independent estimates, with bootstrap intervals.

    Means enter squares without their noise: E|ḡ|² = |E g|² + tr Cov ḡ, so what the estimates say of the latter comes
    off.

    Args:
        target: ∇J; or
        reference: where it is not known, estimates by an unbiased estimator, paired with these (from the same draws,
            one by one).
        known: what is true of the estimator on every instance (its claim in the ledger). Figures then need not
            rediscover it: they have the true direction, and if unbiased the true length, and less noise.

    Raises:
        ValueError: fewer than two estimates, or neither or both of target and reference.
    """
    number = _check_estimates(estimates, target, reference)
    generator = np.random.Generator(np.random.Philox(key=seed))
    even = _even(number)
    drawn = torch.from_numpy(generator.multinomial(number, even[0].numpy(), size=REPLICATES) / number)
    whole = _sums(even, estimates, target, reference)
    again = _sums(drawn, estimates, target, reference)
    # A bootstrap sample has the noise of the draws twice; around their own mean its deviations are those of the
    # estimate.
    replicates = whole + again - again.mean(0)
    measured = tuple(_spread(row, known) for row in replicates.tolist())
    verdict = known or ("undecided" if target is None else _verdict(estimates, target))
    return Measurement(_spread(whole[0].tolist(), known), verdict, None, number, measured, estimates.seconds)


def sampled_spread(
    estimates: Estimates,
    target: Float[Tensor, " d"] | None = None,
    reference: Estimates | None = None,
    *,
    known: Literal["unbiased", "proportional"] | None = None,
) -> Spread:
    """The figures of `sampled_measurement`, with the same arguments and errors, where nobody asks for intervals."""
    number = _check_estimates(estimates, target, reference)
    return _spread(_sums(_even(number), estimates, target, reference)[0].tolist(), known)


def _even(number: int) -> Float[Tensor, "1 N"]:
    return torch.full((1, number), 1 / number, dtype=torch.float64)


def _check_estimates(estimates: Estimates, target: Float[Tensor, " d"] | None, reference: Estimates | None) -> int:
    """How many estimates there are, if figures can be had from them."""
    number = len(estimates.square)
    if (target is None) == (reference is None):
        raise ValueError("give either the true gradient or estimates by an unbiased estimator.")
    if number < 2:
        raise ValueError(f"{number} estimate has no spread; draw at least 2.")
    if reference is not None and len(reference.square) != number:
        raise ValueError(
            f"the reference has {len(reference.square)} estimates and not {number}; draw both from the same prompts."
        )
    if target is not None:
        check_target(target)
    return number


def _spread(sums: Sequence[float], known: str | None) -> Spread:
    tokens, rewards, trace, signal, dot, size = sums
    if known == "unbiased":
        signal = dot = size
    elif known == "proportional" and size > 0:
        signal = dot**2 / size
    return Spread(tokens, rewards, max(trace, 0.0), signal, dot, size)


def _verdict(estimates: Estimates, target: Float[Tensor, " d"]) -> str:
    """By the means of equal parts, as `sampled.sampled_certificate` has it, with 99 % confidence."""
    each = len(estimates.square) // PARTS
    if each < 2:
        return "undecided"
    means = estimates.gradient[: each * PARTS].unflatten(0, (PARTS, each)).mean(1)
    return certify_means(means, target, each, each * PARTS, 0.99).verdict


def _noise(
    weight: Float[Tensor, "R N"], gradient: Float[Tensor, "N d"], mean: Float[Tensor, "R d"]
) -> Float[Tensor, " R"]:
    """What the noise of N estimates adds to the squared length of their mean: tr Cov / N."""
    return (weight @ gradient.square().sum(-1) - mean.square().sum(-1)) / (weight.shape[1] - 1)


def _sums(
    weight: Float[Tensor, "R N"], estimates: Estimates, target: Float[Tensor, " d"] | None, reference: Estimates | None
) -> Float[Tensor, "R 6"]:
    """c, rewards, v, |E g|², <E g, ∇J>, |∇J|² from estimates that count with these weights, a row of weights each."""
    number = weight.shape[1]
    mean = weight @ estimates.gradient
    signal = mean.square().sum(-1) - _noise(weight, estimates.gradient, mean)
    trace = weight @ estimates.square - signal
    if target is not None:
        dot, size = mean @ target, (target @ target).expand(len(weight))
    else:
        assert reference is not None
        other = weight @ reference.gradient
        product = (estimates.gradient * reference.gradient).sum(-1)
        shared = (weight @ product - (mean * other).sum(-1)) * number / (number - 1)
        dot, size = (
            (mean * other).sum(-1) - shared / number,
            other.square().sum(-1) - _noise(weight, reference.gradient, other),
        )
    return torch.stack([weight @ estimates.tokens, weight @ estimates.rewards, trace, signal, dot, size], dim=-1)
