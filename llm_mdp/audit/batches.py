"""Does an error die with the batch? Certificates of updates of several prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import Certificate, exact_certificate, judge
from llm_mdp.verify.fading import fading
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

MOST = 4
"""Prompts up to which batches are enumerated, on a small instance."""
SAYS = {"none": "exact", "falls": "dies with the batch", "stays": "stays"}


@dataclass(frozen=True)
class WithBatch:
    """How the error of direction goes with the number of prompts."""

    prompts: tuple[int, ...] = ()
    one_minus_cosine: tuple[float | None, ...] = ()
    rate: float | None = None
    """ρ of an error that falls like P^-ρ, of the sine of the angle."""
    says: str = ""
    """dies with the batch, stays, exact, not decided: why, or not computed: why."""
    instance: str = ""
    """What it was computed on, in words."""

    def to_json(self) -> dict[str, Any]:
        return {
            "prompts": list(self.prompts),
            "one_minus_cosine": list(self.one_minus_cosine),
            "rate": self.rate,
            "says": self.says,
            "instance": self.instance,
        }


def small_problem() -> Problem:
    """V = 2, T = 2, K = 2: 3 responses, 6 groups, 126 batches of 4."""
    return Problem(random_instance(2, 2, seed=1), group_size=2)


def with_batch(
    make: Callable[[Problem], Estimator], problem: Problem, target: str, prompts: Sequence[int]
) -> WithBatch:
    """Certificates at these numbers of prompts: of a small instance by enumeration up to 4 prompts, beyond of `problem`
    by classes of responses."""
    if len(prompts) < 2:
        return WithBatch(says="not computed: one number of prompts was asked for")
    try:
        if max(prompts) <= MOST:
            found, where = _enumerated(make, target, prompts), "V = 2, T = 2, K = 2, by enumeration"
        else:
            estimator, found = make(problem), {}
            for number in prompts:
                found[number] = exact_certificate(
                    estimator, problem.enumeration, problem.target(target), problem.magnitude(target), prompts=number
                )
            where = f"the first instance, K = {problem.group_size}"
    except (EstimatorError, UsageError, TooLarge) as error:
        return WithBatch(says=f"not computed: {error}")
    return _said(found, where)


def _enumerated(make: Callable[[Problem], Estimator], target: str, prompts: Sequence[int]) -> dict[int, Certificate]:
    problem = small_problem()
    estimator, gradient, magnitude = make(problem), problem.target(target), problem.magnitude(target)
    return {
        number: judge(exact_moments(estimator, problem.enumeration, number), gradient, magnitude) for number in prompts
    }


def _said(found: dict[int, Certificate], where: str) -> WithBatch:
    sizes = tuple(sorted(found))
    cosines = [found[number].cosine for number in sizes]
    fades = fading(found)
    says = SAYS.get(fades.kind, f"not decided: {fades.reason}")
    one_minus = tuple(None if cosine is None else max(1 - cosine, 0.0) for cosine in cosines)
    return WithBatch(sizes, one_minus, fades.rate, says, where)
