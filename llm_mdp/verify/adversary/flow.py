"""Following fields θ' = f(θ), many at once, each with steps of its own size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Field = Callable[[Float[Tensor, "B S"], Int[Tensor, " B"]], Float[Tensor, "B S"]]
"""f(θ, which): one direction for every row of θ; `which` says whose each row is."""

LONGEST = 1e6
"""A path ends after this time, in units of 1 / (the longest field that it met)."""
FAR = 100.0
"""A path is left where a parameter is so many nats from its start: the policy has been certain for long, and soon
log-ratios of it would have no exponential in float64."""
SHARE = 0.1
"""A step's error may be this part of the step, so that a path comes to rest where its field ends in a point."""
CROWD = 0.7
"""Paths that ended stay among those that are computed until fewer than this part of these go on."""


@dataclass(frozen=True)
class Manner:
    """How carefully paths are followed."""

    tolerance: float = 0.01
    """Error of one step that is allowed, in nats of the logits."""
    rest: float = 1e-4
    """A path is at rest where its field is below this part of the longest that it met."""
    steps: int = 400
    """Steps after which a path is left, wherever it is."""


@dataclass(frozen=True)
class Flow:
    """Where paths came to."""

    end: Float[Tensor, "B S"]
    time: Float[Tensor, " B"]
    """A step of gradient ascent with learning rate η is about η of it."""
    rest: Bool[Tensor, " B"]
    """Did the path end because the field is small, or because its time was up? False: it was left on the way."""
    trail: list[tuple[Float[Tensor, " B"], Float[Tensor, "B S"]]]
    """(time, θ) after every step, the start first; empty unless recorded. Paths that ended stay where they are."""


def follow(
    field: Field,
    start: Float[Tensor, "B S"],
    manner: Manner,
    *,
    until: Float[Tensor, " B"] | None = None,
    record: bool = False,
) -> Flow:
    """Follow a field from every row of `start`, by the pair of formulas of Bogacki and Shampine (1989), of orders 3 and
    2, whose difference chooses the steps.

    Args:
        until: time at which each path ends; None: LONGEST of its own units.
        record: keep the trail.
    """
    theta, which = start.clone(), torch.arange(len(start))
    time = torch.zeros(len(start), dtype=torch.float64)
    speed = field(theta, which)
    peak = speed.norm(dim=-1)
    size = 0.1 / peak.clamp(min=1e-300)
    rest = ~(peak > 0)
    done = rest
    trail = [(time.clone(), theta.clone())] if record else []
    for _ in range(manner.steps):
        if bool(done[which].all()):
            break
        if float((~done[which]).double().mean()) < CROWD:
            which = (~done).nonzero()[:, 0]
        here, h, k1 = theta[which], size[which, None], speed[which]
        if until is not None:
            h = torch.minimum(h, (until[which] - time[which]).clamp(min=0)[:, None])
        k2 = field(here + h / 2 * k1, which)
        k3 = field(here + 3 / 4 * h * k2, which)
        there = here + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
        k4 = field(there, which)
        error = (h * (-5 / 72 * k1 + k2 / 12 + k3 / 9 - k4 / 8)).abs().amax(-1)
        allowed = (SHARE * (there - here).abs().amax(-1)).clamp(max=manner.tolerance)
        wrong = error / allowed.clamp(min=1e-300)
        wrong = torch.where(wrong.isfinite(), wrong, torch.full_like(wrong, 1e3))
        accepted = (wrong <= 1) & ~done[which]
        moved = which[accepted]
        theta[moved], speed[moved] = there[accepted], k4[accepted]
        time[moved] += h[accepted, 0]
        size[which] = h[:, 0] * (0.9 * wrong.clamp(min=1e-9) ** (-1 / 3)).clamp(0.2, 5.0)
        now = speed.norm(dim=-1)
        peak = torch.maximum(peak, now)
        ends = LONGEST / peak.clamp(min=1e-300) if until is None else until
        rest = rest | (now <= manner.rest * peak) | (time >= ends * (1 - 1e-12))
        done = rest | ((theta - start).abs().amax(-1) > FAR)
        size = size.masked_fill(done, 0.0)
        if record:
            trail.append((time.clone(), theta.clone()))
    return Flow(theta, time, rest, trail)
