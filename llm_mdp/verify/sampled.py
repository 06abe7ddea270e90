"""Sampled certificates: where worlds are too many to enumerate, or to watch the exact figures being approached.

What is drawn leaves intervals for the relative bias, the scale and the cosine, which all hold together with the stated
confidence, and a verdict only where the intervals leave no other: "relative bias below x with 99 % confidence".
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.certificate import OVERFLOW, ROUNDING, WITHIN, Certificate, unresolved
from llm_mdp.verify.draws import draw
from llm_mdp.verify.intervals import Interval, Radius, Region, Squares, bernstein, normal_radius_of
from llm_mdp.verify.weights import flatten_gradients

LEAST = 100
"""Groups without which nothing is drawn."""
SEEN = 30
"""Draws with a gradient that is not zero, without which nothing is decided."""
LIKELY = 2.2
"""Standard errors above which what was found is no longer taken for noise, though the intervals do not exclude it."""
NOISE = 1.4
"""How much smaller than what is to be resolved a radius must be for an estimate to resolve it."""


def sampled_certificate(
    estimator: Estimator,
    enumeration: Enumeration,
    target: Float[Tensor, " parameters"],
    responses: int,
    *,
    magnitude: float = 0.0,
    seed: int = 0,
    confidence: float = 0.99,
) -> Certificate:
    """Certificate from `responses` drawn responses (rounded to whole groups), and a tenth more for the baseline that
    `draws` takes off.

    The intervals are empirical Bernstein bounds (`intervals.bernstein`): they hold with at least `confidence` for every
    reward, rare and heavy-tailed ones too, given the longest gradient that can occur. That is known for estimators of
    one response without branches, and searched for otherwise (`draws.draw`).

    Args:
        magnitude: size of the terms that `target` is a sum of (`Problem.magnitude`).
        confidence: in (0, 1), of all intervals and the verdict together; for k certificates to hold together take 1 -
            0.01 / k.

    Raises:
        NothingKept: the estimator left out every group that was drawn.
        ValueError: fewer responses than 100 groups, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1.")
    members = estimator.group_size
    if responses < LEAST * members:
        raise ValueError(f"--sampled {responses} is too few; {members} a group need at least {LEAST * members}.")
    draws = draw(estimator, enumeration, target, responses // members, seed)
    x = math.log((6 if draws.kept == 1 else 9) / (1 - confidence))
    kept = (1.0, 1.0)
    if draws.kept < 1:
        left_out = Squares(1 - draws.kept, draws.kept * (1 - draws.kept), draws.count)
        radius = bernstein(left_out, 1.0, x).at(draws.count)
        kept = (draws.kept - radius, min(draws.kept + radius, 1.0))
    seen = _Seen(
        mean=draws.mean / draws.kept,
        square=draws.square,
        trace=draws.trace,
        count=draws.count,
        nonzero=draws.nonzero,
        unit="responses" if members == 1 else "groups",
        responses=draws.count * members,
        along=bernstein(draws.along, draws.longest, x).scaled(1 / draws.kept),
        across=bernstein(draws.across, draws.longest, x).scaled(1 / draws.kept),
        noise=math.sqrt((draws.along.mean + draws.across.mean) / draws.count) / draws.kept,
        fraction=(kept[0] / draws.kept, kept[1] / draws.kept),
    )
    return _judge(seen, target, confidence, magnitude)


def policy_certificate(
    estimator: Estimator,
    policy: Policy,
    mdp: TokenMDP,
    target: Float[Tensor, " parameters"],
    responses: int,
    *,
    seed: int = 0,
    confidence: float = 0.99,
    batches: int = 64,
) -> Certificate:
    """As `sampled_certificate`, token by token with `PolicySampler`, for MDPs of which no tree fits in memory.

    The range of a gradient is not known here, so the intervals are those of `judge_means`, and nothing is decided
    unless 30 batches had a gradient.
    """
    assert isinstance(policy, nn.Module)
    groups = max(1, responses // (estimator.group_size * batches))
    sampler = PolicySampler(policy, mdp, torch.Generator().manual_seed(seed), prompts_per_batch=groups)
    parameters, gradients = list(policy.parameters()), []
    for _ in range(batches):
        evidence = estimator.collect(sampler)
        rollouts = evidence.rollouts
        loss = estimator.loss(logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask), evidence)
        gradients.append(flatten_gradients(torch.autograd.grad(-loss, parameters, allow_unused=True), parameters))
    return judge_means(torch.stack(gradients), target, groups, groups * batches * estimator.group_size, confidence)


def judge_means(
    means: Float[Tensor, "batches parameters"],
    target: Float[Tensor, " parameters"],
    groups: int,
    responses: int,
    confidence: float,
    magnitude: float = 0.0,
) -> Certificate:
    """The certificate that means of independent, equally large batches give, where they are close to normal
    (`intervals.normal_radius_of`): nothing is known of rewards that no batch has seen.

    Args:
        groups: in each batch.
        responses: in all.
    """
    count, mean, size = len(means), means.mean(0), float(target.norm())
    trace = float((means - mean).square().sum()) / (count - 1)
    unit = target / size if size > 0 else target
    along = means @ unit
    each = (1 + confidence) / 2
    seen = _Seen(
        mean=mean,
        square=groups * trace + float(mean @ mean),
        trace=groups * trace,
        count=count,
        nonzero=int((means != 0).any(-1).sum()),
        unit="batches",
        responses=responses,
        along=Radius(normal_radius_of(along[:, None], each) * math.sqrt(count)),
        across=Radius(normal_radius_of(means - along[:, None] * unit, each) * math.sqrt(count)),
        noise=math.sqrt(trace / count),
    )
    return _judge(seen, target, confidence, magnitude)


@dataclass(frozen=True)
class _Seen:
    """Estimates and their radii, from `count` independent draws of `unit`."""

    mean: Float[Tensor, " parameters"]
    square: float
    """E|g|²."""
    trace: float
    """Of the covariance of g."""
    count: int
    nonzero: int
    """Draws with a gradient that is not zero."""
    unit: str
    responses: int
    along: Radius
    """Of the estimated bias, along the target."""
    across: Radius
    noise: float
    """Standard error of the estimated bias."""
    fraction: Interval = (1.0, 1.0)
    """What the estimated bias may have to be divided by."""


def _judge(seen: _Seen, target: Float[Tensor, " parameters"], confidence: float, magnitude: float) -> Certificate:
    """Intervals and the only verdict that they leave."""
    size, terms = float(target.norm()), max(math.sqrt(seen.square), magnitude)
    blank = Certificate("undecided", None, None, None, seen.trace, seen.responses, confidence=confidence)
    if not (math.isfinite(size) and math.isfinite(terms**2)):
        return replace(blank, trace_covariance=None, reason=OVERFLOW)
    if (reason := unresolved(size, terms)) is not None:
        return replace(blank, reason=reason)
    floor = ROUNDING * terms
    if seen.fraction[0] <= 0:
        return replace(blank, reason="too few groups were kept to know how many are")
    bias = seen.mean - target
    along = float(bias @ target) / size
    across = float((bias - along * target / size).norm())
    region = _region(seen, along, across, size)
    scale, mean_size = 1 + along / size, float(seen.mean.norm())
    figures = replace(
        blank,
        relative_bias=math.hypot(along, across) / size,
        scale=scale,
        cosine=scale * size / mean_size if mean_size > floor else 0.0,
        bias_interval=region.bias,
        scale_interval=region.along,
        cosine_interval=region.cosine,
    )
    resolved = 10 * floor / size
    if seen.nonzero < SEEN:
        reason = f"too few {seen.unit} had a gradient: {seen.nonzero:,} of {seen.count:,}"
        needed = _rounded_up(seen.responses * SEEN / seen.nonzero) if seen.nonzero else None
        return replace(figures, reason=reason, needed=needed)
    if region.bias[0] <= resolved:
        if region.bias[1] <= WITHIN and math.hypot(along, across) <= LIKELY * seen.noise:
            return replace(figures, verdict="unbiased")
        reason = f"unbiased is not excluded, nor is a relative bias of {region.bias[1]:.2g}"
        return replace(figures, reason=reason, needed=_until_resolved(seen, math.hypot(along, across), size))
    if region.across[0] > resolved or region.along[1] < 0:
        return replace(figures, verdict="biased")
    if region.along[0] > 0 and region.across[1] <= WITHIN * region.along[0] and across <= LIKELY * seen.noise:
        return replace(figures, verdict="proportional")
    if region.along[0] <= 0 and mean_size <= 2 * seen.noise:
        return replace(figures, reason="not unbiased; E g cannot be told from zero")
    reason = "not unbiased; proportional not excluded"
    return replace(figures, reason=reason, needed=_until_directed(seen, region, scale * size, across))


def _region(seen: _Seen, along: float, across: float, size: float) -> Region:
    """The estimated bias by its two parts, give or take their radii."""
    few, many = seen.fraction
    radius, rest = seen.along.at(seen.count), seen.across.at(seen.count)
    low, high = along - radius, along + radius
    return Region(
        along=(1 + low / (few if low < 0 else many) / size, 1 + high / (many if high < 0 else few) / size),
        across=(max(across - rest, 0.0) / many / size, (across + rest) / few / size),
    )


def _until_resolved(seen: _Seen, bias: float, size: float) -> int:
    """About how many responses settle whether there is a bias: the one that was found, if it is more than noise."""
    both = Radius(math.hypot(seen.along.root, seen.across.root), math.hypot(seen.along.rest, seen.across.rest))
    goal = _goal(seen, WITHIN * size, bias)
    return _rounded_up(both.needed(goal / NOISE) * seen.responses / seen.count)


def _goal(seen: _Seen, within: float, found: float) -> float:
    """What is to be resolved: that it is zero but for `within`, or, where it is hardly noise, what was found."""
    if found > LIKELY * seen.noise:
        return found
    return max(within, found if found > 2 * seen.noise else 0.0)


def _until_directed(seen: _Seen, region: Region, along: float, across: float) -> int:
    """About how many responses settle whether E g points along the target; `along`, `across`: its estimated parts."""
    goal = _goal(seen, WITHIN * abs(along), across)
    count = seen.across.needed(goal / NOISE) if along > 0 else 0.0
    if region.along[0] <= 0:
        count = max(count, seen.along.needed(abs(along) / NOISE))
    return _rounded_up(count * seen.responses / seen.count)


def _rounded_up(number: float) -> int:
    """To two digits."""
    unit = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / unit) * unit
