"""Figures of an estimator from independent draws, with bootstrap intervals, where enumeration is too much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import stream
from llm_mdp.exact.worlds import TreeSampler
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.variance.measurement import BY_THEOREM, LEVEL, Measurement, Spread, check_target
from llm_mdp.variance.unseen import BARELY_LEVEL, bound, exponential_weights, seen_in
from llm_mdp.verify.certificate import ROUNDING
from llm_mdp.verify.sampled import judge_means
from llm_mdp.verify.weights import edges, token_weights

REPLICATES = 400
"""Bootstrap samples behind an interval."""
PARTS = 32
"""Batches whose means a sampled verdict is made of."""
PROBES = 2_000
"""Groups of arbitrary responses that show how large an estimate on a tree can be."""
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
    largest: float | None = None
    """|g|² of the largest estimate there may be; None: unknown."""


def tree_estimates(estimator: Estimator, enumeration: Enumeration, number: int, seed: int = 0) -> Estimates:
    """Draws on an enumerated tree: any group size, whatever the number of worlds. How large an estimate can be is known
    from `PROBES` more, drawn without regard to the probability of responses."""
    generator, parts, kept = torch.Generator().manual_seed(seed), [], []
    chunk = max(1, NUMBERS // enumeration.n_edges)
    for start in range(0, number, chunk):
        sampler = Meter(TreeSampler(enumeration, min(chunk, number - start), generator))
        gradient = _tree_gradients(estimator, enumeration, sampler)
        parts.append((gradient, *sampler.cost(estimator.group_size)))
        kept.append(torch.ones(len(gradient), dtype=torch.bool) if sampler.kept is None else sampler.kept)
    probe = AnyResponses(enumeration, min(chunk, PROBES), stream(seed, "probes"))
    squares = _tree_gradients(estimator, enumeration, probe).square().sum(-1)
    squares = squares if probe.kept is None else squares[probe.kept]
    return replace(kept_estimates(parts, kept), largest=max(squares.tolist(), default=0.0))


def _tree_gradients(estimator: Estimator, enumeration: Enumeration, sampler: TreeSampler | Meter) -> Tensor:
    """(N, d), the estimate of every world."""
    evidence = estimator.collect(sampler)
    weights, edge = token_weights(estimator, evidence, enumeration, sampler.weight.shape), edges(evidence, enumeration)
    by_edge = torch.zeros(len(weights), enumeration.n_edges, dtype=torch.float64)
    by_edge.scatter_add_(1, edge.flatten(1), weights.flatten(1))
    return (enumeration.sparse_scores.T @ by_edge.T).T


class AnyResponses(TreeSampler):
    """Groups in which a share of the responses, another one in every group, is drawn evenly from all, and the rest as
    they come: what can happen, not how often it does."""

    def _worlds(self, group_size, leaf_logp):
        prompt, leaf = super()._worlds(group_size, leaf_logp)
        share, own = (torch.rand(size, generator=self.generator) for size in ((len(leaf), 1), leaf.shape))
        even = torch.randint(self.enumeration.tree.n_leaves, leaf.shape, generator=self.generator)
        return prompt, torch.where(own < share, even, leaf)


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
    """All figures from independent estimates, with bootstrap intervals (`variance.unseen`), or why there are none.

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
    moments = _moments(_even(number), estimates, target, reference)
    whole = _sums(moments, number)
    seen = [seen_in(estimates.gradient, estimates.largest, target if known == "unbiased" else None)]
    seen += [seen_in(reference.gradient, reference.largest)] if reference is not None else []
    few = next((each.too_few for each in seen if each.too_few), None)
    weight, share = exponential_weights(number, REPLICATES, seed)
    again = _moments(weight, estimates, target, reference)
    # A bootstrap sample has the noise of the draws twice; around their own mean its deviations are those of the
    # estimate.
    shift = whole - _sums(again, number).mean(0)
    worse, better = (
        tuple(_spread(row, known) for row in (shift + _sums(_with_one_more(again, share, one), number)).tolist())
        for one in _largest(estimates, target, reference)
    )
    found = Measurement(
        _spread(whole[0].tolist(), known), known or "undecided", samples=number, worse=worse, better=better,
        seconds=estimates.seconds, by_theorem=BY_THEOREM[known] if known else (), too_few=few,
        level=BARELY_LEVEL if any(each.is_barely_enough for each in seen) else LEVEL,
    )  # fmt: skip
    if known or target is None or few is not None:
        return found
    return replace(found, verdict=_verdict(estimates, target, found))


def sampled_spread(
    estimates: Estimates,
    target: Float[Tensor, " d"] | None = None,
    reference: Estimates | None = None,
    *,
    known: Literal["unbiased", "proportional"] | None = None,
) -> Spread:
    """The figures of `sampled_measurement`, with the same arguments and errors, where nobody asks for intervals."""
    number = _check_estimates(estimates, target, reference)
    return _spread(_sums(_moments(_even(number), estimates, target, reference), number)[0].tolist(), known)


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


def _verdict(estimates: Estimates, target: Float[Tensor, " d"], found: Measurement) -> str:
    """By the means of equal parts, as `verify.sampled` has it, with 99 % confidence; *biased* only where the intervals
    of the row exclude the true length and the true direction too, for one page says one thing."""
    each = len(estimates.square) // PARTS
    if each < 2:
        return "undecided"
    means = estimates.gradient[: each * PARTS].unflatten(0, (PARTS, each)).mean(1)
    verdict = judge_means(means, target, each, each * PARTS, 0.99).verdict
    bias, cosine = found.interval("relative_bias"), found.interval("cosine")
    assert bias is not None and cosine is not None
    excluded = bias[0] > 0 and cosine[1] < 1
    return verdict if verdict != "biased" or excluded else "undecided"


@dataclass(frozen=True)
class Moments:
    """Weighted means over estimates, a row for each row of weights; of the reference too, where there is one."""

    tokens: Float[Tensor, " R"]
    rewards: Float[Tensor, " R"]
    square: Float[Tensor, " R"]
    """|g|² of single estimates."""
    mean: Float[Tensor, "R d"]
    length: Float[Tensor, " R"]
    """|gradient|²."""
    other: Float[Tensor, "#R d"]
    """Mean of the reference; ∇J itself where that is known."""
    other_length: Float[Tensor, " R"] | None
    product: Float[Tensor, " R"] | None
    """<gradient, gradient of the reference>."""


@dataclass(frozen=True)
class One:
    """An estimate that was not drawn."""

    square: float
    gradient: Float[Tensor, " d"]
    other: Float[Tensor, " d"]


def _moments(
    weight: Float[Tensor, "R N"], estimates: Estimates, target: Float[Tensor, " d"] | None, reference: Estimates | None
) -> Moments:
    own = estimates.gradient
    of_other: dict[str, Any] = {
        "other": None if target is None else target[None],
        "other_length": None,
        "product": None,
    }
    if reference is not None:
        its = reference.gradient
        product = weight @ (own * its).sum(-1)
        of_other = {"other": weight @ its, "other_length": weight @ its.square().sum(-1), "product": product}
    return Moments(
        tokens=weight @ estimates.tokens, rewards=weight @ estimates.rewards, square=weight @ estimates.square,
        mean=weight @ own, length=weight @ own.square().sum(-1), **of_other,
    )  # fmt: skip


def _largest(estimates: Estimates, target: Float[Tensor, " d"] | None, reference: Estimates | None) -> tuple[One, One]:
    """An estimate as large as there may be against the true gradient and off to the side, which makes all look worse;
    and one along it and back, without noise of its own, which makes all look better."""
    mean, along = estimates.gradient.mean(0), target if reference is None else reference.gradient.mean(0)
    assert along is not None
    along = _unit(along)
    across = _unit(mean - (mean @ along) * along, least=ROUNDING * float(mean.norm()))
    square, length = bound(estimates.square, estimates.largest), bound(_lengths(estimates), estimates.largest)
    its = 0.0 if reference is None else bound(_lengths(reference), reference.largest)
    far, its_far = math.sqrt(length) * (along - across), math.sqrt(its) * along
    return One(square, -far, -its_far), One(0.0, far, its_far)


def _unit(vector: Float[Tensor, " d"], least: float = 0.0) -> Float[Tensor, " d"]:
    """Its direction; none where it is no longer than this."""
    return vector / vector.norm() if float(vector.norm()) > least else torch.zeros_like(vector)


def _lengths(estimates: Estimates) -> Float[Tensor, " N"]:
    return estimates.gradient.square().sum(-1)


def _with_one_more(moments: Moments, share: Float[Tensor, "R 1"], one: One) -> Moments:
    """The moments with one more estimate, which has this share. What an estimate costs is no matter of tails."""
    left, part = 1 - share[:, 0], share[:, 0]
    mean, length = (1 - share) * moments.mean + share * one.gradient, one.gradient.square().sum()
    square = left * moments.square + part * one.square
    length = left * moments.length + part * length
    if moments.other_length is None or moments.product is None:
        return replace(moments, square=square, mean=mean, length=length)
    return replace(
        moments, square=square, mean=mean, length=length,
        other=(1 - share) * moments.other + share * one.other,
        other_length=left * moments.other_length + part * one.other.square().sum(),
        product=left * moments.product + part * (one.gradient @ one.other),
    )  # fmt: skip


def _sums(moments: Moments, number: int) -> Float[Tensor, "R 6"]:
    """c, rewards, v, |E g|², <E g, ∇J>, |∇J|² from means over this number of estimates, without their noise."""
    mean, other = moments.mean, moments.other
    signal = mean.square().sum(-1) - (moments.length - mean.square().sum(-1)) / (number - 1)
    dot, size = (mean * other).sum(-1), other.square().sum(-1).expand(len(mean))
    if moments.product is not None and moments.other_length is not None:
        dot, size = dot - (moments.product - dot) / (number - 1), size - (moments.other_length - size) / (number - 1)
    return torch.stack([moments.tokens, moments.rewards, moments.square - signal, signal, dot, size], dim=-1)
