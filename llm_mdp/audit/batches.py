"""Does an error die with the batch? Certificates of updates of several prompts, and of the limit of many.

Statistics over the batch (its number of tokens, its mean, its std) converge to constants, and so does the update
itself. The limit is had exactly, without any fit: on an instance whose groups have probabilities n/64, a batch of 64
prompts holds every group as often as it is likely, so its statistics are those of the population.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.audit.batch import Needs
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.own import UsageError
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.certificate import Certificate, exact_certificate, judge
from llm_mdp.verify.fading import fading
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError, edges, token_weights

PROMPTS = (1, 2, 4)
"""Numbers of prompts that are tried, unless others are asked for."""
MOST = 8
"""Prompts up to which batches of the small instance are enumerated."""
SHARES = 8
"""Probabilities of responses are multiples of 1/8, and those of groups of two of 1/64."""
RESOLVED = 1e-6
"""A sine below this is rounding."""
DIES = 0.6
"""In a batch four times as large a sine that dies has fallen to this share or less."""
Rewards = Literal["dense", "right-or-wrong"]
SMALL = "V = 2, T = 2, K = 2, {} rewards, every batch"


@dataclass(frozen=True)
class WithBatch:
    """How the error of direction goes with the number of prompts."""

    says: str
    """"dies with the batch", "stays", "exact" or "not computed: why"."""
    prompts: tuple[int, ...] = ()
    one_minus_cosine: tuple[float, ...] = ()
    limit: float | None = None
    """1 - cosine in the limit of many prompts."""
    rate: float | None = None
    """ρ of an error that falls like P^-ρ (the sine of the angle); None: it does not, or not like a power yet."""
    instance: str = ""
    """What it was computed on, in words."""

    def to_json(self) -> dict[str, Any]:
        """As in a row's "with_batch"."""
        return {
            "says": self.says,
            "prompts": list(self.prompts),
            "one_minus_cosine": list(self.one_minus_cosine),
            "limit": self.limit,
            "rate": self.rate,
            "instance": self.instance,
        }


def with_batch(
    make: Callable[[Problem], Estimator],
    problem: Problem,
    target: str,
    prompts: Sequence[int],
    rewards: Rewards = "dense",
    biased: bool = True,
) -> WithBatch:
    """Certificates at these numbers of prompts, and of the limit: of a small instance, and beyond `MOST` prompts of
    `problem` by classes of responses.

    Args:
        rewards: of the small instance.
        biased: is it, on some instance, with one prompt?
    """
    if len(prompts) < 2:
        return WithBatch("not computed: one number of prompts was asked for")
    small = small_problem(rewards)
    try:
        estimator = make(small)
        if max(prompts) <= MOST:
            found, where = _enumerated(estimator, small, target, prompts), SMALL.format(rewards)
        else:
            found = {number: _at(make(problem), problem, target, number) for number in sorted(prompts)}
            where = f"{problem.instance.name or 'the first instance'}, K = {problem.group_size}"
        (first, _), (limit, cosine) = (_limit(estimator, small, target, copies) for copies in (1, 4))
    except (EstimatorError, UsageError, TooLarge) as error:
        return WithBatch(f"not computed: {error}")
    except Needs as part:
        return WithBatch(f"not computed: {part} is read in some batches only")
    sizes, sines = tuple(sorted(found)), [_sine(found[number]) for number in sorted(found)]
    says = _said(sines, first, limit)
    if says == "exact" and biased:
        says = f"not computed: {where} shows no error"
    return WithBatch(
        says=says,
        prompts=sizes,
        one_minus_cosine=tuple(max(1 - (found[number].cosine or 0.0), 0.0) for number in sizes),
        limit=max(1 - cosine, 0.0),
        rate=fading(found).rate if says == "dies with the batch" else None,
        instance=where,
    )


@cache
def small_problem(rewards: Rewards) -> Problem:
    """V = 2, T = 2, K = 2: 3 responses of probabilities 1/2, 1/8 and 3/8, so 6 groups, and 126 batches of 4."""
    drawn = random_instance(2, 2, seed=1)
    tree, prompts = drawn.mdp.tree, drawn.mdp.prompt_tokens
    chances = [torch.tensor([[[0.5], [0.5]]]), torch.tensor([[[0.25], [0.75]]])]
    policy = TabularPolicy(tree, prompts, [each.double().log() for each in chances])
    mdp = drawn.mdp
    if rewards == "right-or-wrong":
        right = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
        mdp = replace(mdp, token_reward=TableReward(tree, prompts, [right, right]))
    return Problem(Instance(mdp, policy, drawn.reference, drawn.value), group_size=2)


def _enumerated(estimator: Estimator, problem: Problem, target: str, prompts: Sequence[int]) -> dict[int, Certificate]:
    gradient, magnitude = problem.target(target), problem.magnitude(target)
    return {
        number: judge(exact_moments(estimator, problem.enumeration, number), gradient, magnitude) for number in prompts
    }


def _at(estimator: Estimator, problem: Problem, target: str, prompts: int) -> Certificate:
    gradient, magnitude = problem.target(target), problem.magnitude(target)
    return exact_certificate(estimator, problem.enumeration, gradient, magnitude, prompts=prompts)


def _limit(estimator: Estimator, problem: Problem, target: str, copies: int) -> tuple[float, float]:
    """Sine (1 beyond a right angle) and cosine of the angle between ∇J and the update by a batch that holds every group
    as often as it is likely, and each so many times over."""
    found, true = _population_gradient(estimator, problem, copies), problem.target(target)
    size, aim = float(found.norm()), float(true.norm())
    if size == 0:
        return 1.0, 0.0
    cosine = float(found @ true) / (size * aim)
    return float((found / size - cosine * true / aim).norm()) if cosine > 0 else 1.0, cosine


def _population_gradient(estimator: Estimator, problem: Problem, copies: int) -> Float[Tensor, " parameters"]:
    e = problem.enumeration
    shares = (e.probability[0] * SHARES).round().long()
    drawn = torch.arange(len(shares)).repeat_interleave(shares)
    groups = torch.cartesian_prod(*[drawn] * estimator.group_size).repeat(copies, 1)
    prompt = torch.zeros(1, len(groups), dtype=torch.int64)
    sampler = ExactSampler(e, Groups(prompt, groups.flatten()[None], torch.ones(1, dtype=torch.float64)))
    evidence = estimator.collect(sampler)
    weights = token_weights(estimator, evidence, e, (1,))
    return e.scores[edges(evidence, e).flatten()].T @ weights.flatten()


def _said(sines: Sequence[float], first: float, limit: float) -> str:
    """From the sines at some numbers of prompts, and at 64 and 256 prompts that are the population."""
    if max(*sines, limit) < RESOLVED:
        return "exact"
    return "dies with the batch" if limit < RESOLVED or limit <= DIES * first else "stays"


def _sine(certificate: Certificate) -> float:
    if certificate.sine is None:
        raise EstimatorError(certificate.statement)
    return 0.0 if certificate.verdict in ("unbiased", "proportional") else certificate.sine
