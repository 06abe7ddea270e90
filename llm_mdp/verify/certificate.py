"""Exact and sampled certificates: is the expected gradient of an estimator's loss the true policy gradient?

The loss sees the model only through `logp`, so the derivative by `logp` of every world (tiny tensors) times the score
of each token is that world's gradient: exact mean and covariance without Monte-Carlo noise.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.worlds import (
    ExactSampler,
    Groups,
    TreeBranches,
    all_groups,
    check_groups,
)
from llm_mdp.sampling.evidence import Evidence, Rollouts, take_world
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.signal import tokens_to_signal
from llm_mdp.verify.weights import Precision, check_worlds, edges, flatten_gradients, squared_norms, token_weights

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
MAX_UPDATED = 5_000
"""Worlds up to which each one's own updated policy is differentiated."""
WITHIN = 0.05
"""A sampled certificate says "unbiased" or "proportional" when it can bound the rest by this."""


@dataclass(frozen=True)
class Certificate:
    """What was found about one estimator. Figures are None where they mean nothing (a true gradient of zero, say)."""

    verdict: str
    """unbiased, proportional, biased or undecided."""
    relative_bias: float | None
    """|E g - ∇J| / |∇J|."""
    scale: float | None
    """<E g, ∇J> / |∇J|²."""
    cosine: float | None
    """<E g, ∇J> / (|E g| |∇J|), 0 when E g is zero."""
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

    @property
    def bound(self) -> float | None:
        """Upper confidence bound on the relative bias."""
        return None if self.bias_interval is None else self.bias_interval[1]

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


@dataclass(frozen=True)
class Moments:
    """Mean and spread of an estimator's gradient."""

    mean: Float[Tensor, " parameters"]
    trace_covariance: float
    root_mean_square: float
    branch_noise: float | None = None
    tokens: float = 0.0
    """Expected number of tokens that one estimate generates, branches included; of kept groups, with what was left out
    at their charge."""
    rewards: float = 0.0
    """Expected number of responses that are scored for it."""
    precision: str = "float64"
    """The coarsest floating point that the estimator computed in."""
    weights: float = 0.0
    """E of the sum of |weight| over the tokens."""


def exact_certificate(
    estimator: Estimator, enumeration: Enumeration, target: Float[Tensor, " parameters"], magnitude: float = 0.0
) -> Certificate:
    """Exact bias, scale, cosine and trace of the covariance against the true gradient `target`.

    Args: magnitude: size of the terms that `target` is a sum of (`Problem.magnitude`), see `judge`.

    Raises:
        TooLarge: when there are too many worlds; a sampled certificate remains.
    """
    moments = exact_moments(estimator, enumeration)
    certificate, tokens = judge(moments, target, magnitude), moments.tokens or None
    if tokens is None or not certificate.cosine:
        return replace(certificate, tokens=tokens)
    noise = tokens_to_signal(moments.trace_covariance, tokens, float(moments.mean @ moments.mean))
    return replace(certificate, tokens=tokens, tokens_to_signal=noise)


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
        return _undecided("overflow: the estimator's terms are too large to be squared in float64", None, noise)
    if moments.root_mean_square == size == 0:
        return Certificate("unbiased", None, None, None, 0.0)
    floor = ROUNDING * terms
    if size < RESOLVED * floor:
        what = f"the true gradient, {size:.1e}, is below what float64 resolves in terms of size {terms:.1e}"
        return _undecided(f"rounding: {what} (|E g| is {mean_size:.1e})", trace, noise)
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


def exact_moments(estimator: Estimator, enumeration: Enumeration) -> Moments:
    """Mean and trace of the covariance of the estimator over all its outcomes.

    Raises:
        TooLarge: see `exact_certificate`.
        ValueError: when the estimator is malformed; `check.check_estimator` says more.
    """
    if updates_first(estimator):
        gradients, weight = displaced_gradients(estimator, enumeration)
        expected, square = weight @ gradients, float(weight @ gradients.square().sum(-1))
        return Moments(expected, max(square - float(expected @ expected), 0.0), math.sqrt(square))
    mean = torch.zeros(enumeration.n_edges, dtype=torch.float64)
    second = total = noise = tokens = rewards = weights = 0.0
    affine, precision = False, Precision()
    for chunk, (sampler, evidence) in enumerate(_worlds(estimator, enumeration)):
        weight = sampler.weight if sampler.kept is None else sampler.weight * sampler.kept
        spent = [float((sampler.weight * each).sum()) for each in sampler.cost(estimator.group_size)]
        tokens, rewards = tokens + spent[0], rewards + spent[1]
        with precision if chunk == 0 else nullcontext():
            derivative = token_weights(estimator, evidence, enumeration, weight.shape)
        if chunk == 0:
            check_worlds(estimator, evidence, derivative, enumeration)
        edge = edges(evidence, enumeration).expand(derivative.shape)
        mean.index_add_(0, edge.flatten(), (weight[..., None, None] * derivative).flatten())
        total += float(weight.sum())
        weights += float((weight * derivative.abs().sum((-2, -1))).sum())
        second += float(weight.flatten() @ squared_norms(derivative, edge, enumeration.gram).flatten())
        noise += float(weight.flatten() @ _branch_noise(estimator, evidence, enumeration, derivative, edge).flatten())
        affine = affine or isinstance(evidence.branches, TreeBranches)
    if total == 0:
        raise NothingKept("the estimator leaves out every outcome of this instance, so it has no expectation.")
    gradient = enumeration.scores.T @ (mean / total)
    second, noise = (second + noise) / total, noise / total
    trace = max(second - float(gradient @ gradient), 0.0)
    return Moments(
        gradient,
        trace,
        math.sqrt(second),
        noise if affine else None,
        tokens / total,
        rewards / total,
        precision.coarsest,
        weights / total,
    )


def covariance(estimator: Estimator, enumeration: Enumeration) -> Float[Tensor, "parameters parameters"]:
    """The whole covariance matrix of the estimator; branches are enumerated outcome by outcome, so keep the instance
    small."""
    if updates_first(estimator):
        gradients, weight = displaced_gradients(estimator, enumeration)
        centred = gradients - weight @ gradients
        return centred.T @ (weight[:, None] * centred)
    scores = enumeration.scores
    mean, total = torch.zeros(scores.shape[1], dtype=torch.float64), 0.0
    second = torch.zeros(scores.shape[1], scores.shape[1], dtype=torch.float64)
    for sampler, evidence in _worlds(estimator, enumeration, enumerate_branches=True):
        weight = (sampler.weight if sampler.kept is None else sampler.weight * sampler.kept).flatten()
        derivative = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
        edge = edges(evidence, enumeration).expand(derivative.shape)
        for w, a, e in zip(weight.split(4096), derivative.flatten(0, -3).split(4096), edge.flatten(0, -3).split(4096)):
            gradient = (
                torch.zeros(len(w), len(scores), dtype=torch.float64).scatter_add_(1, e.flatten(1), a.flatten(1))
                @ scores
            )
            mean += w @ gradient
            second += gradient.T @ (w[:, None] * gradient)
        total += float(weight.sum())
    return second / total - torch.outer(mean / total, mean / total)


def _worlds(
    estimator: Estimator, enumeration: Enumeration, enumerate_branches: bool | None = None
) -> Iterator[tuple[Meter, Evidence]]:
    """All worlds of an estimator, in chunks, and the `ExactSampler` that gave them (metered). Groups without order
    where the estimator has none, branch means where they suffice."""
    check_groups(enumeration, estimator.group_size, ordered=False)  # fewer than in order: before any work
    ordered = estimator.group_size > 1 and not _ignores_order(estimator, enumeration)
    if enumerate_branches is None:
        enumerate_branches = not _affine_in_branches(estimator, enumeration)
    for groups in all_groups(enumeration, estimator.group_size, ordered):
        sampler = Meter(ExactSampler(enumeration, groups, enumerate_branches))
        yield sampler, estimator.collect(sampler)


def _branch_noise(
    estimator: Estimator, evidence: Evidence, enumeration: Enumeration, base: Tensor, edge: Tensor
) -> Tensor:
    """Σ over branches of Var(branch) |∂g/∂branch|²: what the draws add to E|g|² when the estimator is affine in
    them."""
    noise = torch.zeros(base.shape[:-2], dtype=torch.float64)
    branches = evidence.branches
    if not isinstance(branches, TreeBranches) or branches.variance is None:
        return noise
    deviation = branches.variance.sqrt()
    for draw in range(len(branches.row)):
        moved = branches.reward.clone()
        moved[..., draw] += deviation[..., draw]
        shifted = replace(evidence, branches=replace(branches, reward=moved))
        change = token_weights(estimator, shifted, enumeration, base.shape[:-2]) - base
        noise += squared_norms(change, edge, enumeration.gram)
    return noise


class _ProbeSampler(ExactSampler):
    """Branches have rewards that do occur: `left` times one random draw and 1 - `left` times another."""

    left = 0.5

    def _branches(self, rollouts, row, step, drawn, temperature):
        generator = torch.Generator().manual_seed(1)
        rewards = self.enumeration.response_reward.flatten()
        one, two = (rewards[torch.randint(len(rewards), drawn.shape, generator=generator)] for _ in range(2))
        return TreeBranches(
            row, step, self.left * one + (1 - self.left) * two, tokens=torch.zeros(drawn.shape, dtype=torch.float64)
        )


def _some_groups(
    estimator: Estimator, enumeration: Enumeration, *, left: float = 0.5, order: Tensor | None = None
) -> tuple[_ProbeSampler, Evidence]:
    """A few random groups to probe an estimator with, their responses in another order if one is given."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(enumeration.n_prompts, (32,), generator=generator)
    leaf = torch.randint(enumeration.tree.n_leaves, (32, estimator.group_size), generator=generator)
    leaf = leaf if order is None else leaf[:, order]
    sampler = _ProbeSampler(enumeration, Groups(prompt, leaf, torch.ones(32, dtype=torch.float64)))
    sampler.left = left
    return sampler, estimator.collect(sampler)


def _ignores_order(estimator: Estimator, enumeration: Enumeration) -> bool:
    """Does permuting the responses of a group only permute their weights, and keep the same groups? Tried on random
    groups."""
    sampler, evidence = _some_groups(estimator, enumeration)
    if evidence.branches is not None or sampler.drawn is not None:
        return False
    weights = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
    tolerance = 1e-12 * float(weights.abs().max() + 1)
    # A rotation and an exchange of two generate every order.
    every = torch.arange(estimator.group_size)
    for order in (every.roll(1), torch.cat([every[:2].flip(0), every[2:]])):
        other, permuted = _some_groups(estimator, enumeration, order=order)
        moved = token_weights(estimator, permuted, enumeration, other.weight.shape)
        if not torch.allclose(weights[..., order, :], moved, rtol=1e-10, atol=tolerance):
            return False
        if sampler.kept is not None and (other.kept is None or not torch.equal(sampler.kept, other.kept)):
            return False
    return True


def _affine_in_branches(estimator: Estimator, enumeration: Enumeration) -> bool:
    """Is every token's weight an affine function of branch rewards, and are they passed on? Tried at random rewards."""
    tried = []
    for left in (1.0, 0.0, 0.5):
        sampler, evidence = _some_groups(estimator, enumeration, left=left)
        if sampler.drawn is None:
            return True
        if evidence.branches is not sampler.drawn:
            return False
        tried.append(token_weights(estimator, evidence, enumeration, sampler.weight.shape))
    one, two, middle = tried
    return torch.allclose(
        middle, (one + two) / 2, rtol=1e-10, atol=1e-12 * float(one.abs().max() + two.abs().max() + 1)
    )


def updates_first(estimator: Estimator) -> bool:
    """Does every world differentiate the loss at a policy of its own (`Estimator.displacement`)?"""
    return estimator.displacement(torch.zeros(0, dtype=torch.float64)) is not None


def displaced_gradients(
    estimator: Estimator, enumeration: Enumeration
) -> tuple[Float[Tensor, "W parameters"], Float[Tensor, " W"]]:
    """The second update of every world, at the parameters that its own first update gave, and the worlds'
    probabilities."""
    if enumeration.tree.n_leaves > MAX_UPDATED:
        raise TooLarge(
            f"{enumeration.tree.n_leaves:,} updated policies are too many to differentiate one by one (at most "
            f"{MAX_UPDATED:,}); "
            "take a smaller instance."
        )
    scorer = _Scorer(enumeration.policy)
    start = {name: parameter.detach() for name, parameter in scorer.named_parameters()}
    gradients, weights = [], []
    for sampler, evidence in _worlds(estimator, enumeration):
        derivative = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
        edge = edges(evidence, enumeration)
        for world in range(len(sampler.weight)):
            first = enumeration.scores[edge[world].flatten()].T @ derivative[world].flatten()
            displacement = estimator.displacement(first)
            assert displacement is not None
            steps = displacement.split([parameter.numel() for parameter in start.values()])
            updated = {
                name: (parameter + step.view_as(parameter).to(parameter.dtype)).requires_grad_()
                for (name, parameter), step in zip(start.items(), steps)
            }
            here = take_world(evidence, world)
            logp = functional_call(scorer, updated, (here.rollouts,))
            second = torch.autograd.grad(-estimator.loss(logp, here), list(updated.values()), allow_unused=True)
            gradients.append(flatten_gradients(second, list(start.values())))
        weights.append(sampler.weight)
    return torch.stack(gradients), torch.cat(weights)


class _Scorer(nn.Module):
    """log π of given tokens as a module's forward, so that `functional_call` can give it other parameters."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, rollouts: Rollouts) -> Tensor:
        return logp_of(self.policy, rollouts.prompt, rollouts.tokens, rollouts.mask)
