"""Drift: what a biased estimator unlearns. The exact gradient is followed to its end, and the estimator from there.

    drift = (J(exact end) - J(later)) / (J(exact end) - J(start)),

the part of what was gained that is lost again; 0 for what is unbiased or proportional. On tables it says little,
as most estimators leave the best response alone; where prompts and prefixes share parameters it says what becomes of a
policy that was good. Where an estimator is of a penalty P, J stands for J + P, and it is followed with ∇J added.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.exact.instances import Instance
from llm_mdp.verify.adversary.flow import Manner, follow
from llm_mdp.verify.adversary.many import Many
from llm_mdp.verify.adversary.search import CAREFUL, Row
from llm_mdp.verify.adversary.shapes import numbers_of, shape_of

PATIENCE = 100.0
"""The estimator is followed for so many times as long as the exact gradient was, in steps that are as long at the
start."""


@dataclass(frozen=True)
class Drift:
    """What became of one instance."""

    start: float
    """J at the start, at the end of the exact flow, …"""
    exact: float
    later: float
    """… and where the estimator went from there."""
    rest: bool
    """Is that an end? False: it was still on its way when its time was up."""

    @property
    def share(self) -> float | None:
        """What was lost over what was gained; None: nothing was gained."""
        gained = self.exact - self.start
        return (self.exact - self.later) / gained if gained > 1e-9 else None

    def __str__(self) -> str:
        where = "comes to rest" if self.rest else "is, still on its way,"
        lost = "" if self.share is None else f": {100 * self.share:.3g} % of what was gained is lost"
        return (
            f"from {self.start:.4g} the exact gradient leads to {self.exact:.4g}; followed from there, the estimator "
            f"{where} at {self.later:.4g}{lost}"
        )


def drift(row: Row, instance: Instance) -> Drift:
    """The drift of an estimator on one instance, whose policy is a table or an n-gram table.

    Raises:
        ValueError: for another policy, or a target that is not of `many.OBJECTIVES`.
    """
    many = Many(shape_of(instance), numbers_of(instance), row.build, row.group_size, row.beta, row.target)
    start, exact, later, rest = drifts(many)
    return Drift(float(start), float(exact), float(later), bool(rest))


def drifts(
    many: Many, manner: Manner = CAREFUL
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """J at the start, at the exact end and later, and whether it is at rest there, of every instance."""
    every, start = torch.arange(len(many)), many.numbers.start
    exact = follow(many.gradient, start, manner)
    true, own = many.gradient(start, every).norm(dim=1), many.field(start, every).norm(dim=1)
    until = PATIENCE * exact.time * (true / own.clamp(min=1e-300)).clamp(max=1e6)
    later = follow(many.field, exact.end, manner, until=until)
    J = [many.figures(theta, every).objective for theta in (start, exact.end, later.end)]
    return J[0], J[1], J[2], later.rest
