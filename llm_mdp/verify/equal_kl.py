"""Where two pulls on a policy balance at a given KL: one that the policy follows, and one that holds it at its start.

The policy comes to rest where up = b · down; b is looked for at which KL(π ‖ start) is the budget there. The search is
a generator that asks for one θ after the other, so that one estimator can be asked about many instances in one call.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

STEPS = 300
"""Steps after which a policy has not come to rest."""
ROUNDS = 60
"""Penalties b that are tried."""
AT_REST = 1e-6
"""It has where the next step is shorter: √(2 KL) of the step, about."""
CLOSE = 1e-3
"""So much for penalties that are far from the budget."""
STRIDE = 1.0
"""Longest step of a logit, in nats."""
SPENT = 3e-5
"""KL / κ may differ from 1 by this."""
LOOSEST = 16.0
"""A leap of log b after which there is no penalty any more: it was weakened by e^15 and more."""


@dataclass(frozen=True)
class Pulls:
    """What is known of a policy."""

    J: float
    """E RM(W)."""
    kl: float
    """KL(π ‖ start), in nats."""
    up: Float[Tensor, " parameters"]
    """Where the reward pulls: E g, or ∇J."""
    down: Float[Tensor, " parameters"]
    """What the penalty takes away: ∇KL, or -E g of an estimator of a penalty."""
    up_natural: Float[Tensor, " parameters"]
    """F⁺ up, F the Fisher information."""
    down_natural: Float[Tensor, " parameters"]


@dataclass(frozen=True)
class Missed:
    """The budget cannot be reached."""

    why: str
    """In words, without figures."""
    kl: float
    J: float
    """Where it was left."""


Search = Generator[Float[Tensor, " parameters"], Pulls, Pulls | Missed]
"""Gives θ, is told `Pulls`; in the end where the policy rests with KL = κ, or why it does not."""


def spend(start: Float[Tensor, " parameters"], kappa: float, least: float) -> Search:
    """Look for the place of rest with KL = κ > 0.

    The penalty is loosened from where it holds the policy close to its start, so of several places of rest this is the
    one that the start leads to. log KL over log b is all but a line: regula falsi (Illinois) finds κ on it.

    Args:
        start: θ of the policy that KL is measured from.
        kappa: κ, the budget in nats.
        least: > 0, the weakest penalty to begin with, far below the rewards: what pulls less is rounding.
    """
    here = yield start
    # Were KL a parabola, it would be κ at this b.
    guess = math.sqrt(max(float(here.up @ here.up_natural), 0.0) / (2 * kappa))
    log_b, leap, theta, damp = math.log(max(guess, least)), 1.0, start, 1.0
    tight: _Tried | None = None
    loose: _Tried | None = None
    tried = None
    for _ in range(ROUNDS):
        tried = yield from _settled(theta, damp, log_b, kappa)
        if isinstance(tried, Missed):
            return tried
        if abs(tried.error) < SPENT:
            return tried.pulls
        damp = tried.damp
        if tried.error < 0:
            tight, loose = tried, None if loose is None else replace(loose, share=loose.share / 2)
        else:
            loose, tight = tried, None if tight is None else replace(tight, share=tight.share / 2)
        if tight is None:
            log_b, theta = log_b + 2.0, start
        elif loose is None:
            if leap > LOOSEST:
                return Missed("without a penalty it comes to rest", tried.pulls.kl, tried.pulls.J)
            log_b, theta, leap = log_b - leap, tight.theta, 2 * leap
        elif tight.log_b - loose.log_b < 1e-9:
            return Missed("KL jumps over it", tight.pulls.kl, tight.pulls.J)
        else:
            share = min(max(tight.share / (tight.share - loose.share), 0.02), 0.98)
            log_b = tight.log_b + share * (loose.log_b - tight.log_b)
            theta = loose.theta if loose.error < 0.1 and share > 0.5 else tight.theta
    left = here if tried is None else tried.pulls
    return Missed("no penalty was found that holds the policy there", left.kl, left.J)


@dataclass(frozen=True)
class _Tried:
    """Where the policy came to rest under one penalty."""

    log_b: float
    theta: Tensor
    damp: float
    """The share of a whole step at which it settled."""
    pulls: Pulls
    error: float
    """log KL / κ."""
    share: float
    """The same, halved whenever the other end of the bracket moved."""


def _settled(theta: Tensor, damp: float, log_b: float, kappa: float) -> Generator[Tensor, Pulls, _Tried | Missed]:
    """The place of rest, as exactly as it takes to compare KL with κ."""
    close = CLOSE
    while True:
        theta, damp, pulls, length = yield from _rest(theta, damp, math.exp(log_b), close)
        if not math.isfinite(length):
            return Missed("it runs away, further than float64 can follow", pulls.kl, pulls.J)
        if length > close:
            return Missed(f"it does not come to rest in {STEPS} steps", pulls.kl, pulls.J)
        error = math.log(max(pulls.kl, 1e-300) / kappa)
        needed = max(AT_REST, 0.02 * abs(error))
        if close <= needed:
            return _Tried(log_b, theta, damp, pulls, error, error)
        close = needed / 2


def _rest(
    theta: Tensor, damp: float, b: float, close: float
) -> Generator[Tensor, Pulls, tuple[Tensor, float, Pulls, float]]:
    """Natural steps from θ until they are shorter than `close`: where that is, with which damping, and how long the
    next step is."""
    before, steps = None, 0
    while True:
        pulls = yield theta
        move = pulls.up_natural / b - pulls.down_natural
        # Measured by the KL that the step makes, so that prefixes that nobody reaches do not count.
        square, longest = float((pulls.up / b - pulls.down) @ move), float(move.abs().max())
        if not math.isfinite(longest) or not math.isfinite(square):
            return theta, damp, pulls, math.inf
        length = math.sqrt(max(square, 0.0))
        if length < close or steps == STEPS:
            return theta, damp, pulls, length
        if before is not None:
            # Steps that turn back are too long; a damped step is the flow itself.
            turn = float(move @ before) / float(move.norm() * before.norm())
            damp = damp * 0.6 if turn < 0 else min(damp * 1.1, 1.0) if turn > 0.9 else damp
        theta, before, steps = theta + min(damp, STRIDE / longest) * move, move, steps + 1
