"""Sampled certificates: where worlds are too many to enumerate, or to watch the exact figures being approached.

Draws come in batches whose means are kept and nothing else, so 10⁷ responses need no more memory than 10⁴. From the
means m of the batches follow the estimate, its error, and a statement of *equivalence*: "relative bias below x with 99
% confidence".
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.worlds import ExactSampler, TreeSampler, all_groups
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.verify.certificate import (
    ROUNDING,
    WITHIN,
    Certificate,
    displaced_gradients,
    updates_first,
)
from llm_mdp.verify.weights import check_worlds, edges, flatten_gradients, token_weights

BATCHES = 200
CHUNK = 20_000
"""Groups that are in memory at one time."""


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
    """Certificate from `responses` drawn responses (rounded to whole groups and batches).

    Estimators of one response without branches are drawn as multinomial counts of the enumerated responses: the
    distribution of the batch mean is the same as that of a loop over samples, at a cost that does not grow with their
    number.

    Args:
        confidence: of the bound on the relative bias and of the verdict; for k certificates to hold together take 1 -
            0.01 / k.

    Raises:
        ValueError: fewer responses than two batches of one group.
    """
    groups = max(1, responses // (estimator.group_size * BATCHES))
    if responses < 2 * estimator.group_size * BATCHES:
        raise ValueError(
            f"--sampled {responses} is too few; {estimator.group_size} a group need at least "
            f"{2 * estimator.group_size * BATCHES}."
        )
    if updates_first(estimator):
        means = _counted(*displaced_gradients(estimator, enumeration), groups, seed)
    elif _is_count(estimator, enumeration):
        means = pull_back(_counted(*_edge_table(estimator, enumeration), groups, seed), enumeration)
    else:
        means = pull_back(_drawn(estimator, enumeration, groups, seed), enumeration)
    return judge_means(means, target, groups, groups * BATCHES * estimator.group_size, confidence, magnitude)


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
    """As `sampled_certificate`, token by token with `PolicySampler`, for MDPs of which no tree fits in memory."""
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
    """The certificate that means of independent, equally large batches give.

    |ḡ - E g|² is close to a weighted sum of χ², here matched in three cumulants from the batches' covariance:
    radius q with P(|ḡ - E g| ≤ q) = confidence, and so |E g - ∇J| ≤ |ḡ - ∇J| + q.

    Args: groups: in each batch. responses: in all.
    """
    count, mean = len(means), means.mean(0)
    centred = means - mean
    inner = centred @ centred.T / (count - 1)
    trace, square = float(inner.trace()), inner @ inner
    radius = normal_radius(
        trace / count, float(square.trace()) / count**2, float((square * inner).sum()) / count**3, confidence
    )
    # The covariance itself is estimated, from `count` batches: Student's correction to first order.
    radius *= math.sqrt(1 + (_chi_square_quantile(1, confidence) + 1) / (2 * (count - 1)))
    size, bias = float(target.norm()), float((mean - target).norm())
    floor = ROUNDING * max(math.sqrt(trace + float(mean @ mean)), magnitude)
    covariance = trace * groups
    if size <= floor:
        verdict = "biased" if bias > radius + 10 * floor else "undecided"
        return Certificate(verdict, None, None, None, covariance, responses, confidence=confidence)
    along = float(mean @ target) / size
    across = float((mean - along * target / size).norm())
    mean_size = float(mean.norm())
    if bias - radius <= 10 * floor:
        verdict = "unbiased" if bias + radius <= WITHIN * size else "undecided"
    elif across <= radius < abs(along) and across + radius <= WITHIN * (abs(along) - radius):
        verdict = "proportional"
    else:
        verdict = "biased"
    cosine = along / mean_size if mean_size > floor else 0.0
    interval = (max(bias - radius, 0.0) / size, (bias + radius) / size)
    return Certificate(
        verdict, bias / size, along / size, cosine, covariance, responses, interval, confidence=confidence
    )


def pull_back(weights: Float[Tensor, "batches E"], enumeration: Enumeration) -> Float[Tensor, "batches parameters"]:
    """Σ weight ∇log π over the edges."""
    return (enumeration.sparse_scores.T @ weights.T).T


def _is_count(estimator: Estimator, enumeration: Enumeration) -> bool:
    """One response, nothing drawn besides: the batch mean is a function of how often each response was drawn."""
    if estimator.group_size > 1:
        return False
    probe = TreeSampler(enumeration, 4, torch.Generator().manual_seed(0))
    estimator.collect(probe)
    return probe.drawn is None and probe.kept is None


def _edge_table(estimator: Estimator, enumeration: Enumeration) -> tuple[Float[Tensor, "W E"], Float[Tensor, " W"]]:
    """What each world adds to every edge (sparse), and the worlds' probabilities."""
    weights, indices, probability = [], [], []
    for chunk in all_groups(enumeration, 1):
        sampler = ExactSampler(enumeration, chunk)
        evidence = estimator.collect(sampler)
        weights.append(token_weights(estimator, evidence, enumeration, tuple(sampler.weight.shape))[:, 0])
        indices.append(edges(evidence, enumeration)[:, 0])
        probability.append(sampler.weight)
    edge = torch.cat(indices)
    world = torch.arange(len(edge))[:, None].expand(edge.shape)
    place = torch.stack([world.flatten(), edge.flatten()])
    table = torch.sparse_coo_tensor(
        place, torch.cat(weights).flatten(), (len(edge), enumeration.n_edges), check_invariants=False
    )
    return table.coalesce(), torch.cat(probability)


def _counted(
    table: Float[Tensor, "W n"], probability: Float[Tensor, " W"], groups: int, seed: int
) -> Float[Tensor, "batches n"]:
    """Batch means from multinomial counts of the worlds."""
    generator, chance = np.random.Generator(np.random.Philox(key=seed)), probability.numpy()
    counts = torch.from_numpy(generator.multinomial(groups, chance / chance.sum(), size=BATCHES) / groups)
    return (table.T @ counts.T).T


def _drawn(estimator: Estimator, enumeration: Enumeration, groups: int, seed: int) -> Float[Tensor, "batches E"]:
    """Batch means over edges from drawn worlds, at most `CHUNK` in memory."""
    generator, worlds = torch.Generator().manual_seed(seed), groups * BATCHES
    sums, kept = (
        torch.zeros(BATCHES * enumeration.n_edges, dtype=torch.float64),
        torch.zeros(BATCHES, dtype=torch.float64),
    )
    for start in range(0, worlds, CHUNK):
        sampler = TreeSampler(enumeration, min(CHUNK, worlds - start), generator)
        evidence = estimator.collect(sampler)
        derivative = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
        if start == 0:
            check_worlds(estimator, evidence, derivative, enumeration)
        batch = torch.arange(start, start + len(sampler.weight)) // groups
        keep = torch.ones_like(sampler.weight) if sampler.kept is None else sampler.kept.double()
        if sampler.kept is not None:
            derivative = derivative * keep[:, None, None]
        kept.index_add_(0, batch, keep)
        place = edges(evidence, enumeration) + (batch * enumeration.n_edges)[:, None, None]
        sums.index_add_(0, place.flatten(), derivative.flatten())
    if not kept.any():
        raise NothingKept(
            f"the estimator left out every one of {worlds} groups; draw more responses or another instance."
        )
    sums = sums.view(BATCHES, -1)
    # The ratio of the totals, and around it what each batch adds to first order: a batch of its own may have kept
    # nothing.
    ratio = sums.sum(0) / kept.sum()
    return ratio + (sums - ratio * kept[:, None]) / kept.mean()


def normal_radius(sum1: float, sum2: float, sum3: float, confidence: float) -> float:
    """Radius of the ball that holds a centred normal vector with probability `confidence`.

    |x|² = Σ λᵢ χ²₁ with sums of λ, λ², λ³ given is close to a shifted and scaled χ²_ν with the same three first
    cumulants, ν = (Σλ²)³ / (Σλ³)² (Hall 1983, Buckley and Eagleson 1988).
    """
    if sum1 == 0:
        return 0.0
    freedom = sum2**3 / sum3**2
    return math.sqrt(max(sum1 + math.sqrt(sum2 / freedom) * (_chi_square_quantile(freedom, confidence) - freedom), 0.0))


def _chi_square_quantile(freedom: float, confidence: float) -> float:
    """By bisection of the regularised incomplete gamma function."""
    low, high = 0.0, freedom + 20 * math.sqrt(2 * freedom) + 100
    for _ in range(100):
        middle = (low + high) / 2
        shape, place = (torch.tensor(number / 2, dtype=torch.float64) for number in (freedom, middle))
        low, high = (middle, high) if float(torch.special.gammainc(shape, place)) < confidence else (low, middle)
    return high
