"""What a bias costs: how much of the reward that the true gradient gains is lost by following an estimator instead.

    price = (J*(κ) - J_row(κ)) / (J*(κ) - J_start),   0: harmless, 1: nothing gained, above 1: worse than the start

J*(κ) is the largest J within KL(π ‖ start) ≤ κ, on tables that of start · exp(RM/b) / Z; κ is where it has gained half
of what there is to gain, J*(κ) = (J_start + max J) / 2. J_row(κ) is J where following the row under a KL penalty comes
to rest, E g = b ∇KL, with b such that KL = κ there. A row about a KL penalty stands in its place: ∇J + b E g = 0. Any
positive constant in front of g is absorbed by b. Source: `docs/price.md`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.optima import NotConverged, regularised_optimum
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.claims.claim import Claim
from llm_mdp.verify.following import Following, Point
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import NotFinite

ROOM = 0.25
"""The start must be this share of the range of RM below the best: otherwise there is nothing to lose."""
STEPS = 300
"""Steps after which following has not come to rest."""
ROUNDS = 60
"""Penalties that are tried."""
AT_REST = 1e-6
"""It has where the next step is shorter: √(2 KL) of the step, about."""
CLOSE = 1e-3
"""So much for penalties that are far from the budget."""
STRIDE = 1.0
"""Longest step of a logit, in nats."""
SPENT = 3e-5
"""KL / κ may differ from 1 by this."""
LOOSEST = 16.0
"""A leap of log b after which there is no penalty any more: it was weakened by e^15."""
TOO_LITTLE = f"there is too little to lose: the policy starts within {ROOM:g} of the range of RM from the best one"
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
        budget = _budget(problem)
        if isinstance(budget, str):
            return Price(None, budget)
        following = Following(claim.build, problem)
        found = _spend(following, budget, penalty=claim.target == "kl")
    except (TooLarge, NothingKept, NotConverged, NotFinite) as error:
        return Price(None, f"not computed: {error}")
    if isinstance(found, str):
        return Price(None, found, budget.kappa, budget.J_start, budget.J_best)
    value = (budget.J_best - found.J) / (budget.J_best - budget.J_start)
    return Price(value, None, budget.kappa, budget.J_start, budget.J_best, found.J)


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
    b: float
    """The penalty at which the true gradient spends κ."""


def _budget(problem: Problem) -> _Budget | str:
    """κ and what the true gradient buys with it; words if there is too little to gain."""
    e, mdp, start = problem.enumeration, problem.instance.mdp, problem.instance.policy
    reward, J_start = e.response_reward, problem.gradient[0]
    spread = float(mdp.prompt_probability @ (reward.amax(-1) - reward.amin(-1)))

    def best(b: float) -> tuple[float, float]:
        """J and KL(π ‖ start) of the optimum under a penalty."""
        optimum = Enumeration(mdp, regularised_optimum(mdp, start, b))
        chance = mdp.prompt_probability[:, None] * optimum.probability
        apart = torch.where(chance > 0, optimum.leaf_logp().sum(-1) - e.leaf_logp().sum(-1), 0.0)
        return float((chance * reward).sum()), float((chance * apart).sum())

    if spread == 0 or (top := best(1e-9 * spread)[0]) - J_start < ROOM * spread:
        return TOO_LITTLE
    middle = (J_start + top) / 2
    low, high = math.log(1e-3 * spread), math.log(1e3 * spread)
    for _ in range(30):
        half = (low + high) / 2
        low, high = (half, high) if best(math.exp(half))[0] > middle else (low, half)
    b = math.exp(low)
    J_best, kappa = best(b)
    return _Budget(kappa, J_start, J_best, b)


def _spend(following: Following, budget: _Budget, penalty: bool) -> Point | str:
    """Where following comes to rest with KL = κ; words if it does not.

    The penalty is loosened from where it holds the policy close to its start, so of several places of rest this is the
    one that the start leads to. log KL over log b is all but a line: regula falsi (Illinois) finds κ on it.
    """
    scale = 1.0 if penalty else _scale(following)
    log_b, leap, theta, damp = math.log(budget.b * scale), 1.0, following.start, 1.0
    tight: _Tried | None = None
    loose: _Tried | None = None
    for _ in range(ROUNDS):
        tried = _settled(following, theta, damp, log_b, penalty, budget)
        if isinstance(tried, str) or abs(tried.error) < SPENT:
            return tried if isinstance(tried, str) else tried.point
        damp = tried.damp
        if tried.error < 0:
            tight, loose = tried, None if loose is None else replace(loose, pull=loose.pull / 2)
        else:
            loose, tight = tried, None if tight is None else replace(tight, pull=tight.pull / 2)
        if tight is None:
            log_b, theta = log_b + 2.0, following.start
        elif loose is None:
            if leap > LOOSEST:
                return f"{MISSED}: without a penalty it comes to rest at {_share(tried.point, budget)}"
            log_b, theta, leap = log_b - leap, tight.theta, 2 * leap
        elif tight.log_b - loose.log_b < 1e-9:
            return f"{MISSED}: KL jumps over it, from {tight.point.kl:.2g} to {loose.point.kl:.2g} nats"
        else:
            share = min(max(tight.pull / (tight.pull - loose.pull), 0.02), 0.98)
            log_b = tight.log_b + share * (loose.log_b - tight.log_b)
            theta = loose.theta if loose.error < 0.1 and share > 0.5 else tight.theta
    return f"{MISSED}: no penalty was found that holds the policy there"


@dataclass(frozen=True)
class _Tried:
    """Where following came to rest under one penalty."""

    log_b: float
    theta: Tensor
    damp: float
    """The share of a whole step at which it settled."""
    point: Point
    error: float
    """log KL / κ."""
    pull: float
    """The same, halved whenever the other end of the bracket moved."""


def _settled(
    following: Following, theta: Tensor, damp: float, log_b: float, penalty: bool, budget: _Budget
) -> _Tried | str:
    """Where following comes to rest, as exactly as it takes to compare KL with κ; words if it does not."""
    close = CLOSE
    while True:
        theta, damp, point, length = _rest(following, theta, damp, math.exp(log_b), penalty, close)
        if not math.isfinite(length):
            return f"{MISSED}: following runs away, further than float64 can follow"
        if length > close:
            return f"{MISSED}: following does not come to rest in {STEPS} steps, at {_share(point, budget)}"
        error = math.log(max(point.kl, 1e-300) / budget.kappa)
        needed = max(AT_REST, 0.02 * abs(error))
        if close <= needed:
            return _Tried(log_b, theta, damp, point, error, error)
        close = needed / 2


def _share(point: Point, budget: _Budget) -> str:
    return (
        f"{point.kl:.2g} of {budget.kappa:.2g} nats and J = {point.J:.3g} (the start has {budget.J_start:.3g}, the "
        f"budget can buy {budget.J_best:.3g})"
    )


def _scale(following: Following) -> float:
    """How long E g is along ∇J at the start, measured by KL; 1 if it points away."""
    point = following.at(following.start)
    along = following.natural(point, point.gradient)
    size = float(point.gradient @ along)
    scale = float(point.mean @ along) / size if size > 0 else 1.0
    return scale if scale > 0 else 1.0


def _rest(
    following: Following, theta: Tensor, damp: float, b: float, penalty: bool, close: float
) -> tuple[Tensor, float, Point, float]:
    """Natural steps from θ until they are shorter than `close`: where that is, with which damping, and how long the
    next step is."""
    before, steps = None, 0
    while True:
        point = following.at(theta)
        field = point.gradient + b * point.mean if penalty else point.mean - b * point.kl_gradient
        move = following.natural(point, field) / b
        # Measured by the KL that the step makes, so that prefixes that nobody reaches do not count.
        length, longest = math.sqrt(max(float(field @ move) / b, 0.0)), float(move.abs().max())
        if not math.isfinite(longest):
            return theta, damp, point, math.inf
        if length < close or steps == STEPS:
            return theta, damp, point, length
        if before is not None:
            turn = float(move @ before) / float(move.norm() * before.norm())
            damp = damp * 0.6 if turn < 0 else min(damp * 1.1, 1.0) if turn > 0.9 else damp
        theta, before, steps = theta + min(damp, STRIDE / longest) * move, move, steps + 1
