"""How to split a token budget between more responses, more positions and more branches (TRePO, with RLOO as the case
without branches).

A group of K responses to a prompt, cut at the steps D, with M branches from every cut, and the mean of the other
responses as the value of the prompt (`group_baseline`). Two facts make the search short:

1. Branches are independent given the responses and the estimate is affine in their rewards, so with base v₀ (many
   branches) and noise v₁ (one branch), response tokens ℓ and branch tokens β (one branch from every cut),

       tr Cov = v₀ + v₁ / M,   tokens = K (ℓ + M β)
       tokens to signal ∝ (v₀ + v₁ / M)(ℓ + M β),   least at M* = √(v₁ ℓ / (v₀ β))

   whatever the budget: it decides how many prompts are asked, not how each is treated (optimal two-stage sampling,
   Cochran 1977, §10).
2. The estimate is a U-statistic of order 2 in the responses, h(W, W') = ½ [X + X' - RM(W') Y - RM(W) Y'], Y the score
   of the first segment and X the rest; so with P the variance between prompts, a = Var(X - U(w₀) Y) of one response
   whose prompt's value is known, and b that of a pair,

       tr Cov(K) = P + [(K - 2) a + 2 b] / (K (K - 1))                      (Hoeffding 1948)

   which a tree gives exactly for every K from worlds of one and of two responses.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch

from llm_mdp.estimators.algorithms import (
    RLOO,
    TRePO,
    VinePPO,
    first_token,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.notebook import Shown
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic
from llm_mdp.variance.measurement import Spread, draw_progress, progress
from llm_mdp.verify.moments import Moments, exact_moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP_SIZES = (2, 4, 8, 16)
LAMS = (0.0, 0.5, 1.0)
MOST_BRANCHES = 1000
"""More branches from a cut are never drawn, though all of the noise be theirs."""
MOST_STEPS = 6
"""Horizon up to which every set of cuts is tried; beyond it, those of `few_cuts`."""


@dataclass(frozen=True)
class Split:
    """One way to treat a prompt: everything but the number of branches."""

    group_size: int
    """K ≥ 2."""
    steps: tuple[int, ...]
    """D, where responses are cut, 0-based policy tokens; the first token begins a segment anyway and is not among
    them."""
    lam: float
    """λ of GAE over segments."""

    def estimator(self, samples: int) -> Estimator:
        """What trains so: RLOO without cuts."""
        if not self.steps:
            return RLOO(self.group_size)
        return TRePO(
            self.group_size,
            boundary=AtSteps(self.steps),
            temperatures=(1.0,) * samples,
            lam=self.lam,
            group_baseline=True,
        )

    def words(self, prompts: int, samples: int) -> str:
        """For people, with a number of prompts, and of branches before every cut."""
        groups = f"{prompts} prompt{'s' if prompts > 1 else ''} x {self.group_size} responses"
        if not self.steps:
            return f"{groups}, no branches (RLOO)"
        cuts = ", ".join(str(step + 1) for step in self.steps)
        return (
            f"{groups}, {samples} branch{'es' if samples > 1 else ''} before "
            f"token{'s' if len(self.steps) > 1 else ''} {cuts}, λ = {self.lam:g}"
        )


@dataclass(frozen=True)
class Price:
    """What a split costs, and how it scatters."""

    split: Split
    base: float
    """v₀, trace of the covariance with many branches."""
    noise: float
    """v₁, what one branch from every cut adds."""
    responses: float
    """K ℓ, expected tokens of the responses to a prompt."""
    branches: float
    """K β, expected tokens of one branch from every cut."""

    def tokens(self, samples: int) -> float:
        """Expected tokens a prompt."""
        return self.responses + samples * self.branches

    def trace(self, samples: int) -> float:
        """tr Cov of the estimate from a prompt."""
        return self.base + self.noise / samples

    def samples(self, most: float = math.inf) -> int:
        """The whole number of branches, at least 1, that makes (tokens × trace) least, with at most so many tokens a
        prompt."""
        if not self.split.steps or self.branches <= 0:
            return 1
        gain, loss = self.noise * self.responses, self.base * self.branches
        best = MOST_BRANCHES if gain > MOST_BRANCHES**2 * loss else math.sqrt(gain / loss) if gain > 0 else 1
        if math.isfinite(most):
            best = min(best, (most - self.responses) / self.branches)
        below = max(1, math.floor(best))
        # One fewer, too: rounding may put the tokens of the whole number above `most`.
        return min(
            {max(1, below - 1), below, below + 1}, key=lambda m: (self.tokens(m) > most, self.tokens(m) * self.trace(m))
        )


@dataclass(frozen=True, repr=False)
class Allocation(Shown):
    """What a budget is best spent on. `repr` says it in one line, `to_dataframe` has one row, and `plot` draws the
    progress of such batches over their tokens."""

    split: Split
    samples: int
    """M, branches from every cut; 1 and never drawn where there are no cuts."""
    prompts: int
    """How many prompts the budget is enough for."""
    tokens: float
    """Expected tokens a prompt."""
    tokens_to_signal: float
    """q, tokens at which signal equals noise."""
    progress: float
    """With the budget, see `variance.progress`."""
    caution: str | None = None
    """Why a pilot's choice is a guess; None: it is none, or prices are exact."""

    @property
    def estimator(self) -> Estimator:
        return self.split.estimator(self.samples)

    @property
    def words(self) -> str:
        """For people."""
        way = self.split.words(self.prompts, self.samples)
        return way + (f"; a guess, for the pilot batch saw {self.caution}" if self.caution else "")

    def _finding(self) -> tuple[str, str]:
        figures = (self.tokens, self.tokens_to_signal, self.progress)
        said = zip(("{:.4g} tokens a prompt", "{:.4g} tokens to signal", "progress {:.4g}"), figures)
        return self.words, ", ".join(words.format(value) for words, value in said)

    def _rows(self) -> list[dict[str, Any]]:
        split = {"group_size": self.split.group_size, "steps": list(self.split.steps), "lam": self.split.lam}
        return [split | {each.name: getattr(self, each.name) for each in fields(self) if each.name != "split"}]

    def _draw(self, axes: "Axes") -> None:
        draw_progress(axes, 1.0, self.tokens_to_signal)
        axes.set_title(fill(self.words, 70), parse_math=False, fontsize=10)


def allocate(budget: float, prices: Iterable[Price], size: float) -> Allocation:
    """The split and the number of branches with the fewest tokens to signal, among those of which a budget affords one
    prompt.

    Args:
        budget: B, generated tokens of a batch.
        prices: `exact_prices` of a tree, or what was measured on a pilot batch (`fitted_price`).
        size: |∇J|².

    Raises:
        ValueError: if the budget does not afford a single group of the cheapest split, or there is no split.
    """
    listed = list(prices)
    if not listed:
        raise ValueError("there is no way to split the budget among; give at least one price.")
    if not budget > 0:
        raise ValueError(f"budget is {budget}; it must be above 0 tokens.")
    if not size > 0:
        raise ValueError(f"size is {size}; the squared length of the true gradient must be above 0.")
    options = [(price, price.samples(budget)) for price in listed]
    affordable = [(price, samples) for price, samples in options if price.tokens(samples) <= budget]
    if not affordable:
        least = min(price.tokens(1) for price in listed)
        raise ValueError(
            f"a budget of {budget:g} tokens is too small: the cheapest group costs {least:.1f} tokens on average; "
            f"raise it."
        )
    # Fewer branches and smaller groups where the figures are the same.
    price, samples = min(
        affordable, key=lambda pair: (pair[0].tokens(pair[1]) * pair[0].trace(pair[1]), pair[0].tokens(pair[1]))
    )
    tokens, trace = price.tokens(samples), price.trace(samples)
    signal = trace * tokens / size
    return Allocation(price.split, samples, int(budget // tokens), tokens, signal, progress(1.0, signal, budget))


def cut_sets(horizon: int) -> list[tuple[int, ...]]:
    """Where responses may be cut: every set of steps up to horizon `MOST_STEPS`, `few_cuts` beyond it."""
    if horizon > MOST_STEPS:
        return few_cuts(horizon)
    return [cuts for number in range(horizon) for cuts in combinations(range(1, horizon), number)]


def few_cuts(horizon: int) -> list[tuple[int, ...]]:
    """None; segments of equal length, 2, 4, 8 or 16 of them; after the first token only; after 1, 2, 4, 8 … tokens."""
    doubling = [2**power for power in range(horizon.bit_length()) if 2**power < horizon]
    even = [even_cuts(horizon, segments) for segments in (1, 2, 4, 8, 16) if segments <= horizon]
    return list(dict.fromkeys([*even, tuple(doubling[:1]), tuple(doubling)]))


def even_cuts(horizon: int, segments: int) -> tuple[int, ...]:
    """Cuts of a response of full length into segments of equal length, as far as whole tokens allow."""
    return tuple(sorted({part * horizon // segments for part in range(1, segments)} - {0}))


def exact_prices(
    enumeration: Enumeration,
    group_sizes: Sequence[int] = GROUP_SIZES,
    cuts: Sequence[tuple[int, ...]] | None = None,
    lams: Sequence[float] = LAMS,
) -> Iterator[Price]:
    """The price of every split of a tree, exactly, for every group size from worlds of one and of two responses.

    Raises:
        ValueError: for a group size below 2.
        TooLarge: if the pairs of responses cannot be enumerated.
    """
    if min(group_sizes) < 2:
        raise ValueError(
            f"group_sizes holds {min(group_sizes)}; the value of the prompt is the mean of other responses, so at "
            f"least 2."
        )
    between = between_prompts(enumeration)
    for steps in cut_sets(enumeration.mdp.horizon) if cuts is None else cuts:
        for lam in lams if steps else lams[:1]:
            pair = exact_moments(Split(2, steps, lam).estimator(1), enumeration)
            one = exact_moments(
                KnownPrompt(boundary=AtSteps(steps), temperatures=(1.0,), lam=lam, critic=enumeration.exact_u),
                enumeration,
            )
            for size in group_sizes:
                yield _extended(Split(size, steps, lam), pair, one, between, enumeration.expected_length)


def _extended(split: Split, pair: Moments, one: Moments, between: float, length: float) -> Price:
    """From K = 2 and one response whose prompt's value is known to any K; noise of draws and the rest follow the same
    law."""
    size = split.group_size

    def law(a: float, b: float) -> float:
        return ((size - 2) * a + 2 * b) / (size * (size - 1))

    noise = law(one.branch_noise or 0.0, pair.branch_noise or 0.0)
    base = between + law(
        one.trace_covariance - (one.branch_noise or 0.0) - between,
        pair.trace_covariance - (pair.branch_noise or 0.0) - between,
    )
    return Price(split, base, noise, size * length, size * (pair.tokens / 2 - length))


def between_prompts(enumeration: Enumeration) -> float:
    """P, the trace of the covariance of ∇J(prompt) over prompts: what is left when every prompt's own gradient is
    known."""
    e = enumeration
    weight = (e.probability * e.response_reward)[..., None] * e.mask
    by_edge = torch.zeros(e.n_prompts, e.n_edges, dtype=torch.float64).scatter_add_(
        1, e.edge.flatten(1), weight.flatten(1)
    )
    gradients = by_edge @ e.scores
    mean = e.mdp.prompt_probability @ gradients
    return float(e.mdp.prompt_probability @ (gradients - mean).square().sum(-1))


@dataclass(frozen=True)
class KnownPrompt(VinePPO):
    """One response whose prompt's value is known, Û(w₀) = U(w₀) by `critic`, branches from later cuts: what a large
    group comes to."""

    critic: Critic | None = None

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        assert self.critic is not None
        branches = sampler.branches(rollouts, self.boundary(rollouts) & ~first_token(rollouts.mask), self.temperatures)
        return Evidence(
            rollouts, sampler.response_reward(rollouts), value=sampler.value(self.critic, rollouts), branches=branches
        )

    def value_of_prompt(self, evidence):
        assert evidence.value is not None
        return evidence.value[..., :1]


def fitted_price(split: Split, samples: int, few: Spread, many: Spread) -> Price:
    """A price from two measurements of a split: with one branch from every cut, and with `samples` ≥ 2 (without cuts:
    twice the same)."""
    if not split.steps:
        return Price(split, few.trace, 0.0, few.tokens, 0.0)
    branches = (many.tokens - few.tokens) / (samples - 1)
    noise = max(few.trace - many.trace, 0.0) * samples / (samples - 1)
    return Price(split, max(few.trace - noise, 0.0), noise, few.tokens - branches, branches)
