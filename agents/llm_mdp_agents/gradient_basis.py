"""Gradients of many estimators on the same responses, of which all are sums of a few.

An estimator's gradient is Σ weight ∇log π(token). Of N estimators on the responses to one prompt, tokens whose weights
are the same N numbers, such as those between two cuts, go together: one backward pass for each such class of tokens,
and matrix products for the estimators, instead of a pass for each of those.
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
    logp: Float[Tensor, "K T"],
    coefficients: Float[Tensor, "N C"],
    which: Int[Tensor, " KT"],
    parameters: Sequence[nn.Parameter],
    sketch: Callable[[Sequence[Tensor | None]], tuple[Float[Tensor, " d"], float]],
) -> tuple[Float[Tensor, "N d"], Float[Tensor, " N"]]:
    """The sketch and the squared length of each estimator's gradient.

    Args: logp: of the tokens, with the graph that leads to them.
    """
    vectors, flat = [], []
    for number in range(coefficients.shape[1]):
        of_class = (which == number).view_as(logp).to(logp)
        gradients = torch.autograd.grad(logp, parameters, of_class, retain_graph=True, allow_unused=True)
        vectors.append(sketch(gradients)[0])
        flat.append(
            torch.cat(
                [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(gradients, parameters)]
            )
        )
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in torch.arange(len(flat[0])).split(2**18):
        rows = torch.stack([each[int(part[0]) : int(part[-1]) + 1] for each in flat]).to("cpu", torch.float64)
        products += rows @ rows.T
    square = ((coefficients @ products) * coefficients).sum(-1).clamp(min=0)
    return coefficients @ torch.stack(vectors), square
