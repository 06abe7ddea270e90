"""Gradients of many estimators on the same responses, of which all are sums of a few.

An estimator's gradient is Σ weight ∇log π(token). Of N estimators on the responses to one prompt, tokens whose weights
are the same N numbers, such as those between two cuts, go together: a backward pass for each such class of tokens,
through the responses that have some, and matrix products for the estimators, instead of a pass for each of those.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_mdp_agents.sketch import Sketch

MOST = 2**30
"""Bytes that gradients of classes may take together."""

SPARED = 4
"""Passes that must be spared, or the products are not worth it."""

PRODUCT = 2**14
"""Coordinates that are multiplied at once: few enough for a processor's cache to hold those of dozens of gradients."""


def classes(weights: Float[Tensor, "N tokens"]) -> tuple[Float[Tensor, "N C"], Int[Tensor, " tokens"]]:
    """The weights of each class of tokens, and which class each token is of; -1: of none, for its weights are all 0."""
    distinct, which = weights.unique(dim=1, return_inverse=True)
    kept = (distinct != 0).any(0)
    number = torch.where(kept, kept.cumsum(0) - 1, -1)
    return distinct[:, kept], number[which]


def is_quicker(
    which: Int[Tensor, "K T"], rows: Sequence[int], parameters: Sequence[nn.Parameter], sketch: Sketch
) -> bool:
    """Does a pass for every class of every response cost less than one for each estimator, and is there room for what
    has to be kept of it?

    Args: rows: how many responses each estimator's pass goes through. What a pass costs beside them is about as much as
        one more response.
    """
    passes = sum(len(of_row[of_row >= 0].unique()) for of_row in which)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    if sketch.keeps and (int(which.max()) + 1) * size > MOST:
        return False
    return 2 * passes + SPARED <= len(rows) + sum(rows)


def combined(
    logp_of_row: Callable[[int], Float[Tensor, "1 T"]],
    coefficients: Float[Tensor, "N C"],
    which: Int[Tensor, "K T"],
    parameters: Sequence[nn.Parameter],
    sketch: Sketch,
) -> tuple[Float[Tensor, "N d"], Float[Tensor, " N"]]:
    """The sketch and the squared length of each estimator's gradient.

    One response at a time goes through the model, and a pass back goes through the one that has the tokens of its
    class. Where squared lengths are those of sketches, no gradient is kept.

    Args: logp_of_row: log-probabilities of the tokens of a response, with the graph that leads to them.
    """
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    starts = [0, *torch.tensor(sketch.sizes).cumsum(0).tolist()]
    flat = torch.zeros(coefficients.shape[1], starts[-1] if sketch.keeps else 0, dtype=dtype)
    sketches = torch.zeros(coefficients.shape[1], sketch.width, dtype=torch.float64)
    for row, of_row in enumerate(which):
        here = of_row[of_row >= 0].unique().tolist()
        logp = logp_of_row(row) if here else torch.zeros(0)
        for number in here:
            of_class = (of_row == number)[None].to(logp)
            gradients = torch.autograd.grad(logp, parameters, of_class, retain_graph=True, allow_unused=True)
            sketches[number] += sketch.vector(gradients)
            for start, end, gradient in zip(starts, starts[1:], gradients if sketch.keeps else ()):
                if gradient is not None:
                    flat[number, start:end] += gradient.flatten().to("cpu", dtype)
    vectors = coefficients @ sketches
    if not sketch.keeps:
        return vectors, vectors.square().sum(-1)
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for columns in flat.split(PRODUCT, dim=1):
        products.addmm_(columns.double(), columns.double().T)
    return vectors, ((coefficients @ products) * coefficients).sum(-1).clamp(min=0)
