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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.notebook import GREY, Shown, ends
from llm_mdp.variance.unseen import TooFew
from llm_mdp.verify.certificate import judge
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.classes.moments import class_moments
from llm_mdp.verify.method import MethodName
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.signal import at_most_1, positive, ratio, root, tokens_to_signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.95
"""Of every interval, at least."""
LEVEL = 0.97
"""Which quantiles of the bootstrap samples are its ends. At 0.95, 4 to 7 % of 200 intervals missed the truth
(`benchmarks/coverage_variance.py`): about nominal is not at least nominal."""


def progress(ceiling: float, tokens_to_signal: float | None, budget: float) -> float:
    """cos |cos| / (1 + q / B): negative where the estimate points away from ∇J; 0 where there is no signal (q None or
    infinite).

    Args:
        ceiling: cos |cos|, see `Spread.ceiling`.
        budget: B > 0, generated tokens.
    """
    if tokens_to_signal is None:
        return 0.0
    return ceiling / (1 + tokens_to_signal / budget) + 0.0  # no -0


@dataclass(frozen=True)
class Spread:
    """What one estimate costs, how it scatters and where it points.

    `several` makes one of many, with arrays of numbers, whose figures are arrays too.
    """

    tokens: float
    """c, generated tokens, branches included."""
    rewards: float
    """Responses that are scored."""
    trace: float
    """v = tr Cov g."""
    signal: float
    """|E g|²; a sampled one is unbiased and may come out below 0."""
    dot: float
    """⟨E g, ∇J⟩."""
    size: float
    """|∇J|²; a sampled one is unbiased too, and what is relative to it is infinite where it is not above 0."""

    @classmethod
    def several(cls, spreads: "Sequence[Spread]") -> "Spread":
        """All of these at once: the same formulas, of arrays."""
        return cls(*np.array([tuple(vars(one).values()) for one in spreads], dtype=float).T)

    @property
    def error(self) -> float:
        """|E g - ∇J|²."""
        return self.signal - 2 * self.dot + self.size

    @property
    def is_clipped(self) -> dict[str, bool]:
        """Which figures of a sampled spread are where they are because they can be no further: noise left less than no
        bias, or a cosine beyond 1. What was measured then is the interval alone."""
        beyond = not 0 < self.dot**2 < self.signal * self.size
        return {"relative_bias": self.error <= 0, "cosine": beyond or self.signal <= 0 or self.size <= 0}

    @property
    def relative_bias(self) -> float:
        return root(ratio(positive(self.error), self.size, math.inf))

    @property
    def scale(self) -> float:
        return ratio(self.dot, self.size, math.inf)

    @property
    def cosine(self) -> float:
        """At most 1 in size; 0 without a signal."""
        return at_most_1(ratio(self.dot, root(positive(self.signal) * positive(self.size)), 0.0))

    @property
    def ceiling(self) -> float:
        """cos |cos|: progress with endless tokens."""
        return self.cosine * abs(self.cosine)

    @property
    def tokens_to_signal(self) -> float:
        """q = v c / |E g|², infinite without a signal."""
        return tokens_to_signal(self.trace, self.tokens, self.signal)

    def mean_squared_error(self, budget: float) -> float:
        """E|ĝ - ∇J|² / |∇J|² with B tokens."""
        return ratio(positive(self.error) + self.trace * self.tokens / budget, self.size, math.inf)

    def signal_to_noise(self, budget: float) -> float:
        """B / q, infinite without noise."""
        return ratio(budget, self.tokens_to_signal, math.inf)

    def progress(self, budget: float) -> float:
        return progress(self.ceiling, self.tokens_to_signal, budget)

    def figure(self, name: str, budget: float) -> float:
        """One of `FIGURES` or `AT_BUDGET`."""
        value = getattr(self, name)
        return value(budget) if name in AT_BUDGET else value


FIGURES = ("trace", "relative_bias", "scale", "cosine", "ceiling", "tokens_to_signal")
"""The figures that have intervals whatever the budget."""
AT_BUDGET = ("mean_squared_error", "signal_to_noise", "progress")
"""Those that have them at a budget."""
SAID = ("tokens_to_signal", "relative_bias", "cosine")
"""Those that the line of a measurement has."""
CURVE = 40
"""Points of a drawn curve."""
BY_THEOREM = {"unbiased": ("relative_bias", "scale", "cosine", "ceiling"), "proportional": ("cosine", "ceiling")}
"""What a theorem says of an estimator, so that nobody measures it."""


@dataclass(frozen=True, repr=False)
class Measurement(Shown):
    """An estimator's spread, exact or sampled.

    `repr` says it in one line. `to_dataframe` has one row, the figures with their intervals; `plot` draws the progress
    of a batch over its tokens.
    """

    spread: Spread
    verdict: str
    """As in `verify.Certificate`."""
    branch_noise: float | None = None
    """The part of an exact trace that is noise of branch draws and would go with more of them."""
    samples: int | None = None
    """Number of estimates drawn; None: exact."""
    worse: tuple[Spread, ...] = ()
    """Bootstrap samples, laid around the estimate, with one more estimate that was not drawn (`variance.unseen`):
    against the gradient and as noisy as can be;"""
    better: tuple[Spread, ...] = ()
    """and along it, without noise. Paired with `worse`, and with those of whatever has the same draws."""
    seconds: float | None = None
    """Of one estimate, sampling and backward pass, where measured."""
    by_theorem: tuple[str, ...] = ()
    """Figures that a theorem says and nobody measured."""
    too_few: TooFew | None = None
    """Why nothing was measured but the cost."""
    level: float = LEVEL
    """Of the quantiles of its intervals; higher where draws were barely enough (`unseen.BARELY`)."""
    method: MethodName | None = None
    """How exact figures came about; None: they are sampled, or no groups were enumerated."""
    not_exact: str = ""
    """Why the figures are sampled, where exact ones were tried first."""

    def interval(self, figure: str, budget: float = 1.0) -> tuple[float, float] | None:
        """What holds the figure with 95 % confidence; None if it is exact.

        Args: figure: one of `FIGURES`, or of `AT_BUDGET` at this budget.
        """
        if not self.worse:
            return None
        return _ends([some.figure(figure, budget) for some in self._samples], self.level)

    def norm_interval(self) -> tuple[float, float] | None:
        """Of |∇J|; None if it is exact, or too little was seen."""
        if not self.worse or self.too_few:
            return None
        return _ends([root(some.size) for some in self._samples], self.level)

    @cached_property
    def _samples(self) -> tuple[Spread, Spread]:
        return Spread.several(self.worse), Spread.several(self.better)

    def over(self, base: "Measurement", shared: bool = False) -> tuple[float, tuple[float, float] | None]:
        """Tokens to signal over those of another, and the ratio's interval (None if both are exact).

        Args: shared: both come from the same draws. Their bootstrap samples are paired then, and what they share (the
            length of ∇J, hard prompts, a rare response) is not in the interval of the ratio.
        """
        value = _ratio(self.spread, base.spread)
        pairs = self._pairs(base, shared)
        level = max(self.level, base.level)
        return value, _ends([_ratio(*pair) for pair in pairs], level) if pairs else None

    def behind(
        self, leader: "Measurement", budget: float, shared: bool = False, comparisons: int = 1
    ) -> tuple[float, float]:
        """By how much another makes more progress at the budget, as an interval.

        Args: comparisons: how many of these hold together with 95 % confidence.
        """

        def gap(one: Spread, other: Spread) -> float:
            return other.progress(budget) - one.progress(budget)

        pairs = self._pairs(leader, shared)
        if not pairs:
            exact = gap(self.spread, leader.spread)
            return exact, exact
        level = 1 - (1 - max(self.level, leader.level)) / comparisons
        return _ends([gap(*pair) for pair in pairs], level)

    def _pairs(self, other: "Measurement", shared: bool) -> list[tuple[Spread, Spread]]:
        """Bootstrap samples side by side; what is not shared may be better here and worse there."""
        if not self.worse and not other.worse:
            return []
        ours, theirs = (each._samples if each.worse else (each.spread,) * 2 for each in (self, other))
        return list(zip(ours, theirs)) if shared else [(one, two) for one in ours for two in theirs]

    def _finding(self) -> tuple[str, str]:
        spread = self.spread
        how = "exact" if self.samples is None else f"{self.samples:,} estimates drawn"
        cost = f"{spread.tokens:.4g} tokens an estimate"
        if self.too_few:
            return "not measured", f"{self.too_few.words}, {cost}, {how}"
        said = [f"{name.replace('_', ' ')} {self._figure(name)}" for name in SAID if name not in self.by_theorem]
        return self.verdict, ", ".join([*said, cost, how])

    def _figure(self, name: str) -> str:
        """With its 95 % interval, where it has one."""
        interval = self.interval(name)
        value = f"{getattr(self.spread, name):.4g}"
        return value if interval is None else f"{value} [{interval[0]:.4g}, {interval[1]:.4g}]"

    def _rows(self) -> list[dict[str, Any]]:
        spread, row = self.spread, {"verdict": self.verdict}
        for name in () if self.too_few else FIGURES:
            row |= {name: finite(getattr(spread, name))}
            if self.worse and name not in self.by_theorem:
                row |= ends(name, self.interval(name))
        return [row | {"tokens": spread.tokens, "rewards": spread.rewards, "samples": self.samples}]

    def _draw(self, axes: "Axes") -> None:
        """Progress over a hundredth to a hundred times the tokens to signal."""
        noise = self.spread.tokens_to_signal
        if self.too_few or not 0 < noise < math.inf:
            raise ValueError(f"there is no curve to draw: {self!r}.")
        budgets = draw_progress(axes, self.spread.ceiling, noise)
        if self.worse:
            low, high = zip(*(self.interval("progress", budget) or (0.0, 0.0) for budget in budgets))
            axes.fill_between(budgets, low, high, alpha=0.18)
            axes.set_xlabel(f"{axes.get_xlabel()}; band: 95 % interval")
        axes.set_title(f"{self.verdict}, cosine {self.spread.cosine:.4g}", parse_math=False)

    def document(self) -> dict[str, Any]:
        """As JSON; `read_measurement` reads it."""
        samples = {side: tuple(dict(vars(one)) for one in getattr(self, side)) for side in ("worse", "better")}
        return asdict(replace(self, worse=(), better=())) | samples

    def row(self, budget: float) -> dict[str, Any]:
        """All figures, JSON-able: what is infinite is None, and so is what was not measured."""
        spread = self.spread
        names = {name: "trace_covariance" if name == "trace" else name for name in (*FIGURES, *AT_BUDGET)}
        figures = {names[name]: finite(spread.figure(name, budget)) for name in names}
        measured = [name for name in names if name not in self.by_theorem]
        intervals = None
        if self.worse and self.too_few is None:
            held = {names[name]: self.interval(name, budget) for name in measured}
            intervals = {name: [finite(end) for end in ends] for name, ends in held.items() if ends is not None}
            clipped = [name for name, is_clipped in spread.is_clipped.items() if is_clipped and name in measured]
            figures |= dict.fromkeys(clipped)
        elif self.too_few:
            figures |= dict.fromkeys(names[name] for name in measured)
        return {
            "verdict": self.verdict,
            "tokens": spread.tokens,
            "rewards": spread.rewards,
            "seconds": self.seconds,
            "trace_covariance_of_draws": self.branch_noise,
            **figures,
            "estimates": budget / spread.tokens,
            "intervals": intervals,
            "confidence": CONFIDENCE if intervals else None,
            "samples": self.samples,
            "method": self.method,
            "not_exact": self.not_exact,
            "by_theorem": list(self.by_theorem),
            "too_few": self.too_few and asdict(self.too_few) | {"words": self.too_few.words},
        }


def draw_progress(axes: "Axes", ceiling: float, noise: float) -> list[float]:
    """Progress from a hundredth to a hundred times the tokens to signal; gives the budgets of the curve."""
    budgets = np.geomspace(noise / 100, noise * 100, CURVE).tolist()
    axes.semilogx(budgets, [progress(ceiling, noise, budget) for budget in budgets])
    axes.axvline(noise, color=GREY, linewidth=0.8)
    axes.annotate(f" {noise:.4g} tokens to signal", (noise, 0.02), color=GREY, xycoords=("data", "axes fraction"))
    axes.set_xlabel("generated tokens of a batch")
    axes.set_ylabel("progress")
    return budgets


def read_measurement(document: dict[str, Any]) -> Measurement:
    """What `Measurement.document` wrote."""
    read = {
        "spread": Spread(**document["spread"]),
        "worse": tuple(Spread(**one) for one in document["worse"]),
        "better": tuple(Spread(**one) for one in document["better"]),
        "by_theorem": tuple(document["by_theorem"]),
        "too_few": document["too_few"] and TooFew(**document["too_few"]),
    }
    return Measurement(**{**document, **read})


def _ends(sides: Sequence[Any], level: float) -> tuple[float, float]:
    """The ends that hold whichever side is true."""
    tail = (1 - level) / 2
    ends = [np.quantile(values, [tail, 1 - tail], method="inverted_cdf") for values in sides]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _ratio(one: Spread, other: Spread) -> Any:
    """Of two tokens to signal; unbiased estimates share their signal, known or not."""
    noise = ratio(one.trace * one.tokens, other.trace * other.tokens, math.inf)
    both = ratio(one.tokens_to_signal, np.where(one.signal > 0, other.tokens_to_signal, 0.0), math.inf)
    found = np.where(np.equal(one.signal, other.signal), noise, both)
    return found if found.ndim else float(found)


def finite(value: float) -> float | None:
    """As JSON has it: None for what is infinite."""
    return value if math.isfinite(value) else None


def exact_measurement(
    estimator: Estimator,
    enumeration: Enumeration,
    target: Float[Tensor, " parameters"],
    magnitude: float = 0.0,
    classes: int | None = None,
) -> Measurement:
    """All figures by enumeration, group by group (`verify.exact_moments`) or by classes (`verify.classes`).

    Args: classes: by classes of responses, with at most so many token weights asked of the estimator; None: groups.

    Raises:
        TooLarge: when there are too many worlds, or classes do not do for it; `tree_estimates` remains.
        ValueError: when the true gradient is zero, so that nothing is relative to it.
    """
    check_target(target)
    if classes is None:
        moments = exact_moments(estimator, enumeration)
    else:
        try:
            moments = class_moments(estimator, enumeration, classes)
        except Refused as why:
            raise TooLarge(f"classes of responses do not do, because {why}") from why
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
    method = None if moments.method is None else moments.method.name
    return Measurement(spread, certificate.verdict, moments.branch_noise, method=method)


def check_target(target: Float[Tensor, " parameters"]) -> None:
    """Raise ValueError if there is no gradient to measure by."""
    if not float(target.norm()) > 0:
        raise ValueError(
            "the true gradient is zero here, so nothing can be measured relative to it; take another policy or reward."
        )
