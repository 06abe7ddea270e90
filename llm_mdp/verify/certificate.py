"""Exact certificates: is the expected gradient of an estimator's loss the true policy gradient?"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.notebook import Shown, ends
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.method import Method
from llm_mdp.verify.moments import Moments
from llm_mdp.verify.shown import WORST_FIRST, draw_gradient
from llm_mdp.verify.signal import tokens_to_signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNBIASED = 1e-9
"""Relative bias below which an exact certificate says "unbiased"."""
PROPORTIONAL = 1e-12
"""1 - cosine below which it says "proportional"."""
ROUNDING = 1e-13
"""Norms below this fraction of the terms they are sums of are rounding, not gradient."""
SCORES = 0.05
"""Scores are differences of numbers of size 1, known to some 1e-15: this share of the weights counts as terms."""
RESOLVED = 1e3
"""A target must be this many times what is rounding, or nothing can be said about it."""
UNITS = 8
"""Units in the last place of an estimator's own precision that its terms may be off by."""
COARSE = 1e-3
"""Rounding in that precision must be below this fraction of the target for a verdict."""
WITHIN = 0.03
"""A sampled certificate says "unbiased" or "proportional" when it can bound the rest by this."""

OVERFLOW = "overflow: the estimator's terms are too large to be squared in float64"
"""Why nothing is said of figures that are not finite."""
FIGURES = ("verdict", "relative_bias", "scale", "cosine", "trace_covariance")
"""What every certificate has, and a row of the ledger shows."""


INTERVALS = ("bias_interval", "scale_interval", "cosine_interval")
"""Of sampled certificates; two columns each in a data frame."""


@dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """What was found about one estimator. Figures are None where they mean nothing (a true gradient of zero, say).

    `repr` says it in one line. `to_dataframe` has one row, all of the fields below; `plot` draws E g beside ∇J, in
    lengths of ∇J.
    """

    verdict: str
    """unbiased, proportional, biased or undecided."""
    relative_bias: float | None
    """|E g - ∇J| / |∇J|."""
    scale: float | None
    """⟨E g, ∇J⟩ / |∇J|²."""
    cosine: float | None
    """⟨E g, ∇J⟩ / (|E g| |∇J|), 0 when E g is zero."""
    trace_covariance: float | None
    """Trace of the covariance of g, the mean over a group; None: too large for float64."""
    samples: int | None = None
    """Number of responses drawn; None: exact."""
    bias_interval: tuple[float, float] | None = None
    """Confidence interval of a sampled relative bias."""
    scale_interval: tuple[float, float] | None = None
    cosine_interval: tuple[float, float] | None = None
    confidence: float | None = None
    """With which all intervals hold together."""
    reason: str | None = None
    """Why it is undecided, in words."""
    needed: int | None = None
    """About how many responses would settle what is undecided; None: not undecided, or no number would."""
    precision: str = "float64"
    """What the estimator computed in."""
    branch_noise: float | None = None
    """The part of an exact `trace_covariance` that is noise of branch draws and would go with more of them; None: no
    branches were summed up by their variances."""
    tokens: float | None = None
    """c, expected number of tokens that one exact estimate generates, branches included; None: not counted."""
    tokens_to_signal: float | None = None
    """q = tr Cov · c / |E g|² (`signal.tokens_to_signal`); None: E g is zero, or c was not counted."""
    method: Method | None = None
    """How an exact one was computed; None: it was sampled."""
    kept: float | None = None
    """Chance that a group is kept, in [0, 1]: 1 unless the estimator leaves groups out; None: not counted."""
    with_signal: float | None = None
    """Chance that a kept group has a token whose weight is not 0, in [0, 1]; None: not counted."""

    @property
    def bound(self) -> float | None:
        """Upper confidence bound on the relative bias."""
        return None if self.bias_interval is None else self.bias_interval[1]

    @property
    def sine(self) -> float | None:
        """Of the angle between E g and the true gradient, 1 beyond a right angle: what no learning rate undoes; None:
        not known."""
        if self.cosine is None:
            return None
        return math.sqrt(max(1 - self.cosine**2, 0.0)) if self.cosine > 0 else 1.0

    @property
    def statement(self) -> str:
        """What was found, in words that the figures bear."""
        if self.verdict == "undecided":
            more = "" if self.needed is None else f"; about {self.needed:,} responses would settle it"
            return f"undecided: {self.reason}{more}"
        if self.relative_bias is None:
            return "the true gradient is exactly zero, and so is every estimate"
        if self.bias_interval is not None and self.scale_interval is not None and self.cosine_interval is not None:
            said = {
                "unbiased": f"relative bias below {_outwards(self.bias_interval)[1]}",
                "proportional": (
                    f"scale {' to '.join(_outwards(self.scale_interval))}, "
                    f"cosine above {_outwards(self.cosine_interval)[0]}"
                ),
                "biased": (
                    f"relative bias {' to '.join(_outwards(self.bias_interval))}, "
                    f"cosine {' to '.join(_outwards(self.cosine_interval))}"
                ),
            }[self.verdict]
            return f"{said} with {100 * (self.confidence or 0):.6g} % confidence ({self.samples:,} responses)"
        if self.precision != "float64" and self.verdict == "unbiased":
            return f"{self.precision}: bias below {_rounded_up(self.relative_bias)}"
        return str(self)

    def __str__(self) -> str:
        """The verdict and its figures in one line."""
        figures = (("relative bias", self.relative_bias), ("scale", self.scale), ("cosine", self.cosine))
        known = [f"{name} {_figure(value)}" for name, value in figures if value is not None]
        if self.reason is not None:
            known = [self.reason]
        where = "" if self.precision == "float64" else f" (computed in {self.precision})"
        return f"{self.verdict}: " + ", ".join(known or [self.statement]) + where

    def _of(self) -> dict[str, Any]:
        """What it is of, as columns; a bare certificate does not know."""
        return {}

    def _finding(self) -> tuple[str, str]:
        name = self._of().get("estimator", "")
        said = [self.statement.removeprefix(f"{self.verdict}: ")]
        said += [f"{each} = {value}" for each, value in self._of().items() if each in ("K", "P")]
        said += [self.method.words] if self.method else []
        return f"{name}: {self.verdict}" if name else self.verdict, ", ".join(said)

    def _rows(self) -> list[dict[str, Any]]:
        known = {each.name: getattr(self, each.name) for each in fields(Certificate)}
        known["method"] = None if self.method is None else self.method.words
        held = {key: end for name in INTERVALS for key, end in ends(name, known.pop(name)).items()}
        return [self._of() | known | held]

    def _draw(self, axes: "Axes") -> None:
        words = self.statement.removeprefix(f"{self.verdict}: ")
        draw_gradient(axes, self._finding()[0], self.verdict, self.relative_bias, self.scale, words)


def worst(verdicts: Iterable[str]) -> str:
    """The verdict on all instances, of those on each: "undecided" if there is none."""
    return min(verdicts, key=WORST_FIRST.index, default="undecided")


def _figure(value: float) -> str:
    """Four digits, more where a figure is close to 1; what an exact certificate calls zero is a bound."""
    if abs(value) < UNBIASED:
        return f"below {UNBIASED:g}"
    return f"{value:.4g}" if abs(value - 1) > 1e-4 else f"{value:.10g}"


def _outwards(interval: tuple[float, float]) -> tuple[str, str]:
    """Both ends in two digits, rounded away from each other; in as many as show that an end is not 1."""
    ends = []
    for end, rounded in zip(interval, (math.floor, math.ceil)):
        distance = abs(1 - abs(end)) if 0.9 < abs(end) < 1 else abs(end)
        unit = 10.0 ** (math.floor(math.log10(distance)) - 1) if distance > 0 else 1.0
        ends.append(f"{rounded(end / unit) * unit:.10g}")
    return ends[0], ends[1]


def _rounded_up(value: float) -> str:
    """One digit, upwards: 3e-07 of 2.3e-07."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else UNBIASED
    return f"{max(math.ceil(value / power), 1) * power:.0e}"


def exact_certificate(
    estimator: Estimator,
    enumeration: Enumeration,
    target: Float[Tensor, " parameters"],
    magnitude: float = 0.0,
    *,
    method: str = "auto",
    prompts: int = 1,
) -> Certificate:
    """Exact bias, scale, cosine and trace of the covariance against the true gradient `target`.

    Args:
        magnitude: size of the terms that `target` is a sum of (`Problem.magnitude`), see `judge`.
        method: "groups", one by one; "classes" of responses, at any group size; "auto", whichever is quicker.
        prompts: P ≥ 1, prompts whose groups are in one update.

    Raises:
        TooLarge: when there are too many worlds; a sampled certificate remains.
        ValueError: for another method, or no number of prompts.
    """
    return certificate_of(moments_by(estimator, enumeration, method, prompts), target, magnitude)


def certificate_of(moments: Moments, target: Float[Tensor, " parameters"], magnitude: float = 0.0) -> Certificate:
    """The exact certificate of an estimator with these moments, see `exact_certificate`."""
    judged, tokens = judge(moments, target, magnitude), moments.tokens or None
    certificate = replace(
        judged, tokens=tokens, method=moments.method, kept=moments.kept, with_signal=moments.with_signal
    )
    if tokens is None or not certificate.cosine:
        return certificate
    noise = tokens_to_signal(moments.trace_covariance, tokens, float(moments.mean @ moments.mean))
    return replace(certificate, tokens_to_signal=noise)


def unresolved(size: float, terms: float) -> str | None:
    """Why nothing can be said about a target of this size, known as a sum of terms of that size; None: it can."""
    if size > RESOLVED * ROUNDING * terms:
        return None
    return f"rounding: the true gradient, {size:.1e}, is below what float64 resolves in terms of size {terms:.1e}"


def judge(moments: Moments, target: Float[Tensor, " parameters"], magnitude: float = 0.0) -> Certificate:
    """The verdict on an exactly known mean.

    E g and the target are sums whose terms have a size, and are known to 1e-13 of it (to some units of the estimator's
    own precision, where that is coarser). What lies below is rounding: *undecided* if the target does, or if the bias
    found is no larger than that and no smaller than 1e-9 of the target.
    """
    mean = moments.mean
    terms = max(moments.root_mean_square, magnitude, SCORES * moments.weights)
    bias, size, mean_size = float((mean - target).norm()), float(target.norm()), float(mean.norm())
    trace, noise, precision = moments.trace_covariance, moments.branch_noise, moments.precision
    if not all(math.isfinite(number) for number in (terms, trace, bias, size, mean_size)):
        return _undecided(OVERFLOW, None, noise)
    if moments.root_mean_square == size == 0:
        return Certificate("unbiased", None, None, None, 0.0)
    if (reason := unresolved(size, terms)) is not None:
        return _undecided(f"{reason} (|E g| is {mean_size:.1e})", trace, noise)
    floor = ROUNDING * terms
    along = float(mean @ target) / size
    across = float((mean - along * target / size).norm())
    relative, scale, cosine = bias / size, along / size, along / mean_size if mean_size > floor else 0.0
    figures = (relative, scale, cosine, trace)
    if relative < UNBIASED:
        return Certificate("unbiased", *figures, branch_noise=noise)
    if precision != "float64":
        floor = UNITS * torch.finfo(getattr(torch, precision)).eps * terms
        if bias <= floor < COARSE * size:
            return Certificate("unbiased", *figures, branch_noise=noise, precision=precision)
    if bias > 10 * floor and (1 - cosine < PROPORTIONAL or (cosine > 0 and across <= floor < COARSE * mean_size)):
        return Certificate("proportional", *figures, branch_noise=noise, precision=precision)
    if bias <= 10 * floor:
        what = f"a relative bias of {relative:.1e} was found, but below {10 * floor / size:.1e} it may be rounding"
        return _undecided(f"rounding: {what} ({precision})", trace, noise, relative, scale, cosine)
    if cosine > 0 and across <= 10 * floor:
        what = f"E g leaves the direction of ∇J by {across / mean_size:.1e}, which may be rounding"
        return _undecided(f"rounding: not unbiased, and {what} ({precision})", trace, noise, relative, scale, cosine)
    return Certificate("biased", *figures, branch_noise=noise, precision=precision)


def _undecided(
    reason: str,
    trace: float | None,
    noise: float | None,
    relative: float | None = None,
    scale: float | None = None,
    cosine: float | None = None,
) -> Certificate:
    return Certificate("undecided", relative, scale, cosine, trace, branch_noise=noise, reason=reason)
