"""How strong a penalty is as training goes on: the coefficients of the KL penalty and of the entropy bonus. The
learning rate follows the same schedules.

    β_s = β left(s)                             a schedule over the S steps of a run, s = 0 … S - 1
    β_s+1 = β_s (1 + 0.1 e_s),   e_s = clip((KL_s - target) / target, ±0.2)       (Ziegler et al. 2019, §2.2)

with left(s) = 1, 1 - s/S or (1 + cos(π s/S)) / 2, and KL_s the mean over the responses of a batch of Σₜ log π/ref.

The entropy bonus β H(π(· | prompt)) of the whole response is the KL penalty with a reference of log-probability 0:
log π as a token reward's price, Aₜ = -β Σₖ≥ₜ log π(wₖ), less the mean of the other responses' where there are any. Its
gradient is β ∇H exactly (claim `entropy-reward`).
"""

import math
from dataclasses import replace
from typing import Literal

from torch import where, zeros_like

from llm_mdp.estimators.objectives import kl_estimate
from llm_mdp.sampling.evidence import Evidence

Schedule = Literal["constant", "linear", "cosine"]
GAIN, MOST_ERROR = 0.1, 0.2
"""Of the controller, as published."""


def left(schedule: Schedule, done: int, steps: int | None) -> float:
    """What is left of a coefficient after `done` of `steps` steps, in [0, 1]; all of it where nobody says how many
    there are."""
    share = 0.0 if steps is None else min(done / steps, 1.0)
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[schedule]


def controlled(coefficient: float, measured: float, target: float) -> float:
    """The next coefficient of a KL penalty that is held at a target: larger where the policy is further away."""
    error = min(max((measured - target) / target, -MOST_ERROR), MOST_ERROR)
    return coefficient * (1 + GAIN * error)


def measured_kl(evidence: Evidence) -> float:
    """KL(π ‖ ref) of responses, in nats: the mean of Σₜ log π/ref over the batch (k1, unbiased)."""
    assert evidence.reference_logp is not None
    rollouts = evidence.rollouts
    difference = kl_estimate(rollouts.logp, evidence.reference_logp, "k1")
    return float(where(rollouts.mask, difference, 0.0).sum(-1).mean())


def without_reference(evidence: Evidence) -> Evidence:
    """The evidence with a reference of log-probability 0, under which a KL penalty is an entropy bonus."""
    return replace(evidence, reference_logp=zeros_like(evidence.rollouts.logp))


def check_coefficients(
    kl: float, kl_target: float | None, kl_schedule: Schedule, entropy: float, entropy_schedule: Schedule
) -> None:
    """Raise ValueError for a coefficient out of range, or options that contradict one another."""
    if not 0 <= kl < math.inf:
        raise ValueError(f"kl is {kl}; the weight of the penalty is at least 0.")
    if not 0 <= entropy < math.inf:
        raise ValueError(f"entropy is {entropy}; the weight of the bonus is at least 0.")
    if kl_target is not None and not 0 < kl_target < math.inf:
        raise ValueError(f"kl_target is {kl_target}; it must be above 0 nats a response.")
    if kl_target is not None and not kl:
        raise ValueError(
            f"kl_target is {kl_target}, but kl is 0, and what holds the target is kl times a factor; begin with a kl "
            "above 0, such as 0.1."
        )
    if kl_target is not None and kl_schedule != "constant":
        raise ValueError(
            f"kl_target is {kl_target} and kl_schedule {kl_schedule!r}, but only one of them can decide on kl; leave"
            " one out."
        )
    if kl_schedule != "constant" and not kl:
        raise ValueError(
            f"kl_schedule is {kl_schedule!r}, but kl is 0, so there is no penalty; give kl, or leave it out."
        )
    if entropy_schedule != "constant" and not entropy:
        raise ValueError(
            f"entropy_schedule is {entropy_schedule!r}, but entropy is 0, so there is no bonus; give entropy, or leave"
            " it out."
        )
