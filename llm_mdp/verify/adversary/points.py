"""What it takes to follow an estimator of many tables by natural steps, each at its own θ."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.verify.adversary.many import Many


@dataclass(frozen=True)
class Points:
    """`following.Point` of several instances."""

    J: Float[Tensor, " b"]
    kl: Float[Tensor, " b"]
    mean: Float[Tensor, "b S"]
    gradient: Float[Tensor, "b S"]
    kl_gradient: Float[Tensor, "b S"]
    visits: Float[Tensor, "b nodes V"]
    places: Int[Tensor, "nodes V"]
    """Which parameter each logit is."""

    def natural(self, direction: Float[Tensor, "b S"]) -> Float[Tensor, "b S"]:
        """F⁺ direction of tables, as `Following.natural`."""
        padded = torch.cat([direction, direction.new_zeros(len(direction), 1)], dim=1)
        by_logit = torch.where(self.visits > 0, padded[:, self.places] / self.visits, 0.0)
        by_logit = by_logit - by_logit.mean(-1, keepdim=True)
        return torch.zeros_like(padded).index_add_(1, self.places.flatten(), by_logit.flatten(1))[:, :-1]


def points_of(many: Many, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Points:
    """Of these instances of `many`, each at its own θ; no numbers for E g where an estimator leaves out everything."""
    figures, shape = many.figures(theta, which), many.shape
    by_leaf = many.numbers.chance[which][..., None] * many.leaf_chance(theta, which)
    return Points(
        figures.J,
        figures.kl,
        many._mean(theta, which),
        many._gradient(theta, which, {"reward": 1.0}),
        many._gradient(theta, which, {"kl": 1.0}),
        many._by_edge(by_leaf, many._drawn).view(len(theta), shape.nodes, -1),
        shape.places.view(shape.nodes, -1),
    )
