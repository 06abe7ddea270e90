"""What a factor of a weight may depend on: the place of the token, the length of the response, …"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.diagnosis.black_box import TOLERANCE, Shown

Feature = Callable[[Enumeration, Shown], Int[Tensor, "W K T"]]


def position(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """t, from 0."""
    return torch.arange(e.tree.horizon).expand(*shown.leaf.shape, -1)


def length(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """Tokens of the response."""
    return e.length[shown.leaf][..., None].expand(*shown.leaf.shape, e.tree.horizon)


def to_the_end(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """Tokens that follow in the response."""
    return (length(e, shown) - 1 - position(e, shown)).clamp(min=0)


def tokens_of_group(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """Tokens of all responses of the group together."""
    return e.length[shown.leaf].sum(-1)[:, None, None].expand(*shown.leaf.shape, e.tree.horizon)


def longest_of_group(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """Tokens of the longest response of the group."""
    return e.length[shown.leaf].amax(-1)[:, None, None].expand(*shown.leaf.shape, e.tree.horizon)


def prefix_before(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """The prefix that the token is chosen after."""
    return e.node[shown.leaf]


def tokens_so_far(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """The prefix and the token."""
    return e.edge[0][shown.leaf]


def own_response(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
    """The place in the whole response."""
    return shown.leaf[..., None] * e.tree.horizon + position(e, shown)


def both(one: Feature, other: Feature) -> Feature:
    def feature(e: Enumeration, shown: Shown) -> Int[Tensor, "W K T"]:
        return one(e, shown) * 1000 + other(e, shown)

    return feature


@dataclass(frozen=True)
class Factor:
    """m(feature), one number for each value that the feature takes."""

    feature: Feature
    table: dict[int, float]

    def of(self, e: Enumeration, shown: Shown) -> Float[Tensor, "W K T"]:
        """m of every token; 1 where the feature takes a value that was never seen with a weight."""
        values = self.feature(e, shown)
        factor = torch.ones(values.shape, dtype=torch.float64)
        for value, number in self.table.items():
            factor = torch.where(values == value, number, factor)
        return factor

    def times(self, number: float) -> "Factor":
        return Factor(self.feature, {value: number * each for value, each in self.table.items()})


def factor_by(
    feature: Feature,
    e: Enumeration,
    shown: Shown,
    weights: Float[Tensor, "W K T"],
    seen: Bool[Tensor, "W K T"],
) -> Factor | None:
    """The factor by which weights depend on the feature and on nothing else, for each place in the group; None: they
    depend on more. All worlds of `shown` have the same rewards.

    Args: seen: the tokens to look at.
    """
    values = feature(e, shown)
    tables = []
    for k in range(weights.shape[1]):
        table = {}
        for value in values[:, k][seen[:, k]].unique().tolist():
            here = weights[:, k][(values[:, k] == value) & seen[:, k]]
            if float(here.max() - here.min()) > TOLERANCE * float(weights.abs().max()):
                return None
            table[value] = float(here.mean())
        tables.append(table)
    # With these rewards a response may have no weight at all: the best one, where the best is the baseline.
    floor = TOLERANCE * float(weights.abs().max())
    tables = [table for table in tables if any(abs(number) > floor for number in table.values())]
    first = max(tables[0], key=lambda value: abs(tables[0][value]))
    if any(abs(table.get(first, 0.0)) <= floor for table in tables):
        return None
    relative = [{value: number / table[first] for value, number in table.items()} for table in tables]
    for table in relative[1:]:
        if any(abs(table[v] - relative[0][v]) > TOLERANCE for v in table.keys() & relative[0].keys()):
            return None
    joined = {value: number for table in reversed(relative) for value, number in table.items()}
    return Factor(feature, joined)
