"""What a bias costs: how much of the reward that the true gradient gains is lost by following an estimator instead.

    price = (J*(κ) - J_row(κ)) / (J*(κ) - J_start),   0: harmless, 1: nothing gained, above 1: worse than the start

J*(κ) is the largest J within KL(π ‖ start) ≤ κ, on tables that of start · exp(RM/b) / Z; κ is where it has gained half
of what there is to gain, J*(κ) = (J_start + max J) / 2. J_row(κ) is J where following the row under a KL penalty comes
to rest, E g = b ∇KL, with b such that KL = κ there. A row about a KL penalty stands in its place: ∇J + b E g = 0. Any
positive constant in front of g is absorbed by b. Source: `docs/price.md`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.optima import NotConverged, regularised_optimum
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.adversary.many import Many
from llm_mdp.verify.adversary.shapes import Numbers, numbers_of, shape_of
from llm_mdp.verify.claims.claim import Claim
from llm_mdp.verify.equal_kl import Missed, Pulls, spend
from llm_mdp.verify.following import Following
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import NotFinite

ROOM = 0.25
"""The start must be this share of the range of RM below the best: otherwise there is nothing to lose."""
TOO_LITTLE = f"there is too little to lose: the policy starts within {ROOM:g} of the range of RM from the best one"
LEAST = 1e-8
"""Of that range: penalties begin at this at least."""
MISSED = "budget cannot be reached"
"""How reasons begin that are an answer about the row."""


@dataclass(frozen=True)
class Price:
    """What following an estimator costs on one instance."""

    value: float | None
    """(J* - J_row) / (J* - J_start); None: there is none, see `reason`."""
    reason: str | None = None
    """Why there is no price, in words."""
    kappa: float | None = None
    """κ, the budget: KL(π ‖ start) of whole responses, in nats."""
    J_start: float | None = None
    """Expected reward of the policy that the instance starts with, in units of RM (as J_best and J_row)."""
    J_best: float | None = None
    """J*(κ), the most that κ buys."""
    J_row: float | None = None
    """What following the row buys with it."""

    def __str__(self) -> str:
        """In one line."""
        if self.value is None:
            return f"no price: {self.reason}"
        return (
            f"price {self.value:.3g}: with {self.kappa:.3g} nats J goes from {self.J_start:.4g} to {self.J_row:.4g}, "
            f"and along the true gradient to {self.J_best:.4g}"
        )


def price(claim: Claim, problem: Problem) -> Price:
    """What following the estimator of a row, or of a user's own, costs on an instance.

    Raises:
        ValueError: when the estimator is malformed.
    """
    if (reason := without_price(claim, problem)) is not None:
        return Price(None, reason)
    try:
        if (budget := _budget(problem)) is None:
            return Price(None, TOO_LITTLE)
        following = Following(claim.build, problem)

        def pulls(theta: Tensor, which: Tensor) -> list[Pulls]:
            point = following.at(theta[0])
            up, down = _roles(claim, point.mean, point.gradient, point.kl_gradient)
            return [Pulls(point.J, point.kl, up, down, following.natural(point, up), following.natural(point, down))]

        (found,) = _spend([following.start], [budget], pulls)
    except (TooLarge, NothingKept, NotConverged, NotFinite) as error:
        return Price(None, f"not computed: {error}")
    return _priced(budget, found)


def prices(claim: Claim, problems: Sequence[Problem]) -> list[Price]:
    """`price` on many instances of one shape, with one K and β: the estimator is asked about all of them at once.

    Raises:
        ValueError: as `price`.
    """
    budgets = [_budget(problem) if without_price(claim, problem) is None else None for problem in problems]
    found = [Price(None, without_price(claim, problem) or TOO_LITTLE) for problem in problems]
    chosen = [(place, budget) for place, budget in enumerate(budgets) if budget is not None]
    if not chosen:
        return found
    numbers = Numbers.join([numbers_of(problems[place].instance) for place, _ in chosen])
    first = problems[chosen[0][0]]
    many = Many(shape_of(first.instance), numbers, claim.build, first.group_size, first.beta, claim.target)

    def pulls(theta: Tensor, which: Tensor) -> list[Pulls]:
        at = many.points(theta, which)
        up, down = _roles(claim, at.mean, at.gradient, at.kl_gradient)
        return list(map(Pulls, at.J.tolist(), at.kl.tolist(), up, down, at.natural(up), at.natural(down)))

    ends = _spend(list(numbers.start), [budget for _, budget in chosen], pulls)
    for (place, budget), end in zip(chosen, ends):
        found[place] = _priced(budget, end)
    return found


def _roles(claim: Claim, mean: Tensor, gradient: Tensor, kl_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What pulls up and what holds down: an estimator of a penalty takes the place of ∇KL."""
    return (gradient, -mean) if claim.target == "kl" else (mean, kl_gradient)


def _spend(
    starts: list[Tensor], budgets: Sequence["_Budget"], pulls: Callable[[Tensor, Tensor], list[Pulls]]
) -> list[Pulls | Missed]:
    """The searches of several instances side by side: each asks for a θ, and all are told together."""
    searches = [spend(start, budget.kappa, LEAST * budget.spread) for start, budget in zip(starts, budgets)]
    asked = {number: next(search) for number, search in enumerate(searches)}
    found: dict[int, Pulls | Missed] = {}
    while asked:
        told = pulls(torch.stack(list(asked.values())), torch.tensor(list(asked)))
        for number, answer in zip(list(asked), told):
            try:
                asked[number] = searches[number].send(answer)
            except StopIteration as end:
                found[number] = end.value
                del asked[number]
    return [found[number] for number in range(len(searches))]


def _priced(budget: "_Budget", end: Pulls | Missed) -> Price:
    known = (budget.kappa, budget.J_start, budget.J_best)
    if isinstance(end, Missed):
        where = f"{end.kl:.2g} of {budget.kappa:.2g} nats and J = {end.J:.3g}"
        line = f"the start has {budget.J_start:.3g}, the budget can buy {budget.J_best:.3g}"
        return Price(None, f"{MISSED}: {end.why}, at {where} ({line})", *known)
    return Price((budget.J_best - end.J) / (budget.J_best - budget.J_start), None, *known, end.J)


def without_price(claim: Claim, problem: Problem) -> str | None:
    """Why there is no price before anything is computed; None: there may be one."""
    if claim.figure is not None:
        return "the row is a statement, and there is no estimator to follow"
    if claim.target not in ("reward", "kl"):
        return (
            f"the row is compared with the gradient of {claim.target}, and a price is counted in reward: there is one "
            f"of estimators of ∇J, and of a KL penalty beside it"
        )
    if problem.prompts > 1:
        return "an update of several prompts cannot be followed; leave --prompts out"
    if not isinstance(problem.instance.policy, TabularPolicy) or problem.instance.policy.is_masked:
        return "the most that a budget of KL buys is known of tables alone"
    return None


@dataclass(frozen=True)
class _Budget:
    kappa: float
    J_start: float
    J_best: float
    spread: float
    """Largest less smallest RM, the mean over prompts."""


def has_room(problem: Problem) -> bool:
    """Is there enough to lose on an instance of a table that a price means something?"""
    return _budget(problem) is not None


@lru_cache(maxsize=256)
def _budget(problem: Problem) -> _Budget | None:
    """κ and what the true gradient buys with it; None if there is too little to gain."""
    e, mdp, start = problem.enumeration, problem.instance.mdp, problem.instance.policy
    reward, J_start = e.response_reward, problem.gradient[0]
    spread = float(mdp.prompt_probability @ (reward.amax(-1) - reward.amin(-1)))

    def best(b: float) -> tuple[float, float]:
        """J and KL(π ‖ start) of the optimum under a penalty."""
        optimum = e.under(regularised_optimum(mdp, start, b))
        chance = mdp.prompt_probability[:, None] * optimum.probability
        apart = torch.where(chance > 0, optimum.leaf_logp().sum(-1) - e.leaf_logp().sum(-1), 0.0)
        return float((chance * reward).sum()), float((chance * apart).sum())

    if spread == 0 or (top := best(1e-9 * spread)[0]) - J_start < ROOM * spread:
        return None
    middle = (J_start + top) / 2
    low, high = math.log(1e-3 * spread), math.log(1e3 * spread)
    for _ in range(30):
        half = (low + high) / 2
        low, high = (half, high) if best(math.exp(half))[0] > middle else (low, half)
    J_best, kappa = best(math.exp(low))
    return _Budget(kappa, J_start, J_best, spread)
