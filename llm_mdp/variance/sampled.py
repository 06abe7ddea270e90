"""Figures of an estimator from independent draws, with bootstrap intervals, where enumeration is too much."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.worlds import TreeSampler
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.variance.measurement import Measurement, Spread, check_target
from llm_mdp.verify.sampled import judge_means, pull_back
from llm_mdp.verify.weights import edges, token_weights

REPLICATES = 400
"""Bootstrap samples behind an interval."""
PARTS = 32
"""Batches whose means a sampled verdict is made of."""
NUMBERS = 20_000_000
"""Most numbers of estimates by edges that are in memory at one time (160 MB)."""


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
    return judge_means(means, target, each, each * PARTS, 0.99).verdict


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
