"""Expectation and covariance of an estimator's gradient, exactly.

The loss sees the model only through `logp`, so the derivative by `logp` of every world (tiny tensors) times the score
of each token is that world's gradient: exact mean and covariance without Monte-Carlo noise.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import Groups, all_batches, all_groups, check_batches, check_groups
from llm_mdp.exact.worlds import ExactSampler, TreeBranches
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, take_world
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.method import Method
from llm_mdp.verify.score_products import squares
from llm_mdp.verify.weight_sums import WeightSums, WholeResponses
from llm_mdp.verify.weights import (
    Loudness,
    Precision,
    check_worlds,
    edges,
    flatten_gradients,
    token_weights,
)

MAX_UPDATED = 5_000
"""Worlds up to which each one's own updated policy is differentiated."""

IN_CACHE = 30_000
"""Groups that are looked at together: what is made of them fits in a processor's cache."""


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
    kept: float | None = None
    """Chance that a group is kept: 1 unless the estimator leaves groups out; None: not counted."""
    with_signal: float | None = None
    """Chance that a kept group has a token whose weight is not 0 (`weights.QUIET`); None: not counted."""
    method: Method | None = None
    """How all this was summed up."""


def exact_moments(estimator: Estimator, enumeration: Enumeration, prompts: int = 1) -> Moments:
    """Mean and trace of the covariance of the estimator over all its outcomes.

    Args: prompts: P ≥ 1, prompts whose groups are in one update. Where the estimator leaves groups out, the figures are
        those of updates that lose none of theirs, and `kept` is the chance of that (`batches` puts the rest together).

    Raises:
        TooLarge: see `exact_certificate`.
        ValueError: when the estimator is malformed; `check.check_estimator` says more.
    """
    if updates_first(estimator):
        gradients, weight = displaced_gradients(estimator, enumeration, prompts)
        expected, square = weight @ gradients, float(weight @ gradients.square().sum(-1))
        trace = max(square - float(expected @ expected), 0.0)
        method = Method("groups", "", len(weight), 0, prompts)
        return Moments(expected, trace, math.sqrt(square), kept=1.0, method=method)
    sums, whole = WeightSums(enumeration), WholeResponses(estimator, enumeration)
    total = noise = tokens = rewards = everything = 0.0
    affine, by_place, precision, loudness, groups = False, False, Precision(), Loudness(), 0
    for chunk, (sampler, evidence) in enumerate(_worlds(estimator, enumeration, prompts=prompts)):
        weight = sampler.weight if sampler.kept is None else sampler.weight * sampler.kept
        spent = [float((sampler.weight * each).sum()) for each in sampler.cost(estimator.group_size)]
        tokens, rewards = tokens + spent[0], rewards + spent[1]
        with precision if chunk == 0 else nullcontext():
            derivative, of_responses = whole.either(evidence, weight.shape, sums.tabulated)
        if chunk == 0:
            assert derivative is not None, "autograd has seen none before"
            check_worlds(estimator, evidence, derivative, enumeration)
        total, everything = total + float(weight.sum()), everything + float(sampler.weight.sum())
        groups += weight.numel()
        largest = sums.add(weight, derivative, of_responses, evidence.rollouts).unflatten(-1, (prompts, -1)).amax(-1)
        loudness.add((weight / prompts)[..., None].expand(largest.shape), largest)
        if derivative is not None and isinstance(evidence.branches, TreeBranches):
            if not affine:
                affine, by_place = True, _by_place(estimator, enumeration, prompts)
            noise += float(weight.flatten() @ _branch_noise(whole, evidence, derivative, by_place).flatten())
    if total == 0:
        raise NothingKept("the estimator leaves out every outcome of this instance, so it has no expectation.")
    gradient = enumeration.scores.T @ (sums.mean / total)
    second, noise = (sums.second + noise) / total, noise / total
    trace = max(second - float(gradient @ gradient), 0.0)
    return Moments(
        gradient,
        trace,
        math.sqrt(second),
        noise if affine else None,
        tokens / total,
        rewards / total,
        precision.coarsest,
        sums.absolute / total,
        kept=total / everything,
        with_signal=loudness.with_signal(),
        method=Method("groups", "", groups, 0, prompts),
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
    estimator: Estimator, enumeration: Enumeration, enumerate_branches: bool | None = None, prompts: int = 1
) -> Iterator[tuple[Meter, Evidence]]:
    """All worlds of an estimator, in chunks, and the `ExactSampler` that gave them (metered). Groups, and batches of
    them, without order where the estimator has none, branch means where they suffice."""
    size = estimator.group_size
    if prompts == 1:
        check_groups(enumeration, size, ordered=False)  # fewer than in order: before any work
    else:
        check_batches(enumeration, size, prompts, ordered_groups=False, ordered=False)
    ordered = size > 1 and not ignores_order(estimator, enumeration, prompts)
    if prompts == 1:
        worlds = all_groups(enumeration, size, ordered, IN_CACHE)
    else:
        batches = not ignores_order(estimator, enumeration, prompts, of="groups")
        worlds = all_batches(enumeration, size, prompts, ordered_groups=ordered, ordered=batches)
    for groups in worlds:
        sampler = Meter(ExactSampler(enumeration, groups, bool(enumerate_branches)))
        evidence = estimator.collect(sampler)
        if enumerate_branches is None and sampler.drawn is not None:  # few estimators have branches to ask about
            enumerate_branches = not affine_in_branches(estimator, enumeration, prompts)
            if enumerate_branches:
                sampler = Meter(ExactSampler(enumeration, groups, True))
                evidence = estimator.collect(sampler)
        yield sampler, evidence


def _branch_noise(whole: WholeResponses, evidence: Evidence, base: Tensor, by_place: bool) -> Tensor:
    """Σ over branches of Var(branch) |∂g/∂branch|²: what the draws add to E|g|² when the estimator is affine in them.

    Args: by_place: are those of one place known by their sum (`_by_place`)? They are then moved as one.
    """
    branches, enumeration = evidence.branches, whole.enumeration
    if not isinstance(branches, TreeBranches) or branches.variance is None or not len(branches.row):
        return torch.zeros(base.shape[:-2], dtype=torch.float64)
    number = _places(branches, enumeration.tree.horizon) if by_place else torch.arange(len(branches.row))
    sums = torch.zeros(*base.shape[:-2], int(number.max()) + 1, dtype=torch.float64)
    deviation, changes = sums.index_add_(-1, number, branches.variance).sqrt(), []
    for one in range(deviation.shape[-1]):
        moved = branches.reward.clone()
        moved[..., (number == one).nonzero()[0, 0]] += deviation[..., one]
        shifted = replace(evidence, branches=replace(branches, reward=moved))
        changes.append((whole.of_tokens(shifted, base.shape[:-2]) - base).flatten(-2))
    return torch.stack(squares(changes, edges(evidence, enumeration).flatten(-2), enumeration)).sum(0)


def _places(branches: Branches, horizon: int) -> Int[Tensor, " F"]:
    """The number of the place that each branch begins at."""
    return (branches.row * horizon + branches.step).unique(return_inverse=True)[1]


def _by_place(estimator: Estimator, enumeration: Enumeration, prompts: int = 1) -> bool:
    """Do weights depend on the sum of the branches from one place alone? Tried at random rewards."""
    sampler, evidence = _some_groups(estimator, enumeration, prompts)
    branches = evidence.branches
    if branches is None or not len(branches.row):
        return False
    place = _places(branches, enumeration.tree.horizon)
    others = torch.randn(branches.reward.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_place = torch.zeros(len(others), len(place), dtype=torch.float64).index_add_(-1, place, others)
    others -= (of_place / torch.bincount(place, minlength=len(place)))[:, place]
    here, there = (
        token_weights(
            estimator,
            replace(evidence, branches=replace(branches, reward=branches.reward + moved)),
            enumeration,
            sampler.weight.shape,
        )
        for moved in (0, others)
    )
    return torch.allclose(here, there, rtol=1e-10, atol=1e-12 * float(here.abs().max() + others.abs().max() + 1))


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
    estimator: Estimator, enumeration: Enumeration, prompts: int = 1, left: float = 0.5, order: Tensor | None = None
) -> tuple[_ProbeSampler, Evidence]:
    """A few random batches to probe an estimator with, their rows in another order if one is given."""
    generator, size = torch.Generator().manual_seed(0), estimator.group_size
    prompt = torch.randint(enumeration.n_prompts, (32, prompts), generator=generator)
    leaf = torch.randint(enumeration.tree.n_leaves, (32, prompts * size), generator=generator)
    if order is not None:
        prompt, leaf = prompt[:, order[::size] // size], leaf[:, order]
    sampler = _ProbeSampler(enumeration, Groups(prompt, leaf, torch.ones(32, dtype=torch.float64)))
    sampler.left = left
    return sampler, estimator.collect(sampler)


def ignores_order(
    estimator: Estimator,
    enumeration: Enumeration,
    prompts: int = 1,
    of: Literal["responses", "groups"] = "responses",
) -> bool:
    """Does permuting the responses of a group, or the groups of a batch, only permute their weights, and keep the same
    groups? Tried on random batches."""
    sampler, evidence = _some_groups(estimator, enumeration, prompts)
    if evidence.branches is not None or sampler.drawn is not None:
        return False
    weights = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
    tolerance = 1e-12 * float(weights.abs().max() + 1)
    every = torch.arange(prompts * estimator.group_size).view(prompts, -1)
    orders = []
    for number in range(prompts) if of == "responses" else (slice(None),):
        # A rotation and an exchange of two generate every order.
        part = every[number]
        for moved in (part.roll(1, 0), torch.cat([part[:2].flip(0), part[2:]])):
            orders.append(every.index_put((torch.arange(prompts)[number],), moved).flatten())
    for order in orders:
        other, permuted = _some_groups(estimator, enumeration, prompts, order=order)
        moved = token_weights(estimator, permuted, enumeration, other.weight.shape)
        if not torch.allclose(weights[..., order, :], moved, rtol=1e-10, atol=tolerance):
            return False
        if sampler.kept is not None and (other.kept is None or not torch.equal(sampler.kept, other.kept)):
            return False
    return True


def affine_in_branches(estimator: Estimator, enumeration: Enumeration, prompts: int = 1) -> bool:
    """Is every token's weight an affine function of branch rewards, and are they passed on? Tried at random rewards."""
    tried = []
    for left in (1.0, 0.0, 0.5):
        sampler, evidence = _some_groups(estimator, enumeration, prompts, left)
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
    estimator: Estimator, enumeration: Enumeration, prompts: int = 1
) -> tuple[Float[Tensor, "W parameters"], Float[Tensor, " W"]]:
    """The second update of every world, at the parameters that its own first update gave, and the worlds'
    probabilities."""
    responses = enumeration.tree.n_leaves * (enumeration.n_prompts if prompts > 1 else 1)
    updated = math.comb(responses + prompts - 1, prompts)
    if updated > MAX_UPDATED:
        raise TooLarge(
            f"{updated:,} updated policies are too many to differentiate one by one (at most {MAX_UPDATED:,}); "
            "take a smaller instance" + (", or fewer prompts." if prompts > 1 else ".")
        )
    scorer = _Scorer(enumeration.policy)
    start = {name: parameter.detach() for name, parameter in scorer.named_parameters()}
    gradients, weights = [], []
    for sampler, evidence in _worlds(estimator, enumeration, prompts=prompts):
        derivative = token_weights(estimator, evidence, enumeration, sampler.weight.shape)
        edge = edges(evidence, enumeration)
        for world in range(len(sampler.weight)):
            first = enumeration.scores[edge[world].flatten()].T @ derivative[world].flatten()
            displacement = estimator.displacement(first)
            assert displacement is not None
            steps = displacement.split([parameter.numel() for parameter in start.values()])
            updated = {
                name: (parameter + step.view_as(parameter).to(parameter)).requires_grad_()
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
