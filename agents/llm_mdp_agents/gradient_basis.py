"""Gradients of many estimators on the same responses, of which all are sums of a few.

An estimator's gradient is Σ weight ∇log π(token). Of N estimators on the responses to one prompt, tokens whose weights
are the same N numbers, such as those between two cuts, go together: a backward pass for each such class of tokens,
through the responses that have some, and matrix products for the estimators, instead of a pass for each of those.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MOST = 2**30
"""Bytes that gradients of classes may take together."""

SPARED = 4
"""Passes that must be spared, or the products are not worth it."""


def classes(weights: Float[Tensor, "N tokens"]) -> tuple[Float[Tensor, "N C"], Int[Tensor, " tokens"]]:
    """The weights of each class of tokens, and which class each token is of; -1: of none, for its weights are all 0."""
    distinct, which = weights.unique(dim=1, return_inverse=True)
    kept = (distinct != 0).any(0)
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    return distinct[:, kept], number[which]


def is_quicker(coefficients: Float[Tensor, "N C"], parameters: Sequence[nn.Parameter]) -> bool:
    """Are there fewer classes than estimators by `SPARED`, and is there room for their gradients?"""
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return coefficients.shape[1] + SPARED <= coefficients.shape[0] and coefficients.shape[1] * size <= MOST


def combined(
    logp_of_row: Callable[[int], Float[Tensor, "1 T"]],
    coefficients: Float[Tensor, "N C"],
    which: Int[Tensor, "K T"],
    parameters: Sequence[nn.Parameter],
    fold: Callable[[Float[Tensor, "C part"], int], Float[Tensor, "C d"]],
    part: int,
) -> tuple[Float[Tensor, "N d"], Float[Tensor, " N"]]:
    """The sketch and the squared length of each estimator's gradient.

    One response at a time goes through the model, and a pass back goes through the one that has the tokens of its
    class.

    Args:
        logp_of_row: log-probabilities of the tokens of a response, with the graph that leads to them.
        fold: what some coordinates of gradients, from that number on, add to their sketches.
        part: how many coordinates are folded together.
    """
    starts = [0, *torch.tensor([parameter.numel() for parameter in parameters]).cumsum(0).tolist()]
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    flat = torch.zeros(coefficients.shape[1], starts[-1], dtype=dtype)
    for row, of_row in enumerate(which):
        here = of_row[of_row >= 0].unique().tolist()
        logp = logp_of_row(row) if here else torch.zeros(0)
        for number in here:
            of_class = (of_row == number)[None].to(logp)
            gradients = torch.autograd.grad(logp, parameters, of_class, retain_graph=True, allow_unused=True)
            for start, end, gradient in zip(starts, starts[1:], gradients):
                if gradient is not None:
                    flat[number, start:end] += gradient.flatten().to("cpu", dtype)
    sketches, products = torch.zeros(0), torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, starts[-1], part):
        columns = flat[:, start : start + part].double()
        products.addmm_(columns, columns.T)
        folded = fold(columns, start)
        sketches = sketches + folded if len(sketches) else folded
    square = ((coefficients @ products) * coefficients).sum(-1).clamp(min=0)
    return coefficients @ sketches, square
