"""The weight that an estimator gives to every token, world by world: minus the derivative of its loss by log π."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.worlds import of_rows
from llm_mdp.sampling.evidence import Evidence, take_world


class EstimatorError(ValueError):
    """An estimator is malformed; the message says what, and what to do."""


class NotFinite(ValueError):
    """A loss has a derivative that is infinite or no number."""


class Precision(TorchFunctionMode):
    """Watches what is computed inside it, and remembers the coarsest floating point that occurred."""

    coarsest = "float64"

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in (result, *args):
            if not isinstance(each, Tensor) or (dtype := each.dtype) is torch.float64:  # nearly all
                continue
            if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(getattr(torch, self.coarsest)).eps:
                self.coarsest = str(dtype).removeprefix("torch.")
        return result


QUIET = 40
"""Weights below 2⁻⁴⁰ (9e-13) of the largest are rounding: the group has no signal."""
SILENT = -1_100
"""Stands for the binary order of magnitude of 0; that of every other number is larger."""


class Loudness:
    """How likely a group's largest |weight| is to be of each binary order of magnitude, over all groups that were
    added."""

    def __init__(self):
        self.chance: dict[int, float] = {}

    def add(self, weight: Float[Tensor, "*worlds"], largest: Float[Tensor, "*worlds"]) -> None:
        """Groups with these probabilities and largest |weight| of a token."""
        magnitude = torch.where(largest > 0, torch.frexp(largest).exponent - SILENT, 0)
        chance = torch.bincount(magnitude.flatten(), weight.flatten())
        for order in chance.nonzero()[:, 0].tolist():
            self.chance[order + SILENT] = self.chance.get(order + SILENT, 0.0) + float(chance[order])

    def with_signal(self) -> float:
        """The share of groups in which a weight is more than rounding."""
        loudest = max(order for order, chance in self.chance.items() if chance > 0)
        loud = sum(chance for order, chance in self.chance.items() if order > max(loudest - QUIET, SILENT))
        return loud / sum(self.chance.values())


def token_weights(
    estimator: Estimator, evidence: Evidence, enumeration: Enumeration, worlds: tuple[int, ...]
) -> Float[Tensor, "*worlds B T"]:
    """-∂loss/∂logp of every world: the weight that each token's score gets."""
    logp = of_rows(enumeration.leaf_logp(), evidence.rollouts)
    return loss_weights(estimator, evidence, logp.expand(*worlds, *logp.shape[-2:]))


def loss_weights(
    estimator: Estimator, evidence: Evidence, logp: Float[Tensor, "*worlds B T"]
) -> Float[Tensor, "*worlds B T"]:
    """-∂loss/∂logp of every world at these log-probabilities."""
    worlds, logp = logp.shape[:-2], logp.clone().requires_grad_()
    loss = estimator.loss(logp, evidence)
    if loss.shape != torch.Size(worlds):
        raise ValueError(
            f"loss has shape {tuple(loss.shape)}, but there are worlds {tuple(worlds)}: return one number a world, "
            "reducing over the last two dimensions only (dim=(-2, -1))."
        )
    if not loss.requires_grad:
        raise ValueError("loss does not depend on logp; multiply advantages by logp (see objectives.policy_gradient).")
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    # A sum is quicker to look at than every number, and where it is finite all are.
    if not (torch.isfinite(gradient.sum()) or torch.isfinite(gradient).all()):
        raise NotFinite(
            "the loss has a derivative that is not finite; look for a division by a group's zero std or length."
        )
    return torch.where(evidence.rollouts.mask, -gradient, 0.0)


def edges(evidence: Evidence, enumeration: Enumeration) -> Int[Tensor, "W B T"]:
    """Which edge of the enumeration each token is."""
    return of_rows(enumeration.edge, evidence.rollouts)


def squared_norms(
    weights: Float[Tensor, "*worlds B T"], edge: Int[Tensor, "*worlds B T"], gram: Float[Tensor, "E E"]
) -> Float[Tensor, "*worlds"]:
    """|Σ weight ∇log π|² of every world, by inner products of scores."""
    a, e = weights.flatten(-2), edge.flatten(-2)
    flat_a, flat_e = a.reshape(-1, a.shape[-1]), e.reshape(-1, e.shape[-1])
    chunk = max(1, 4_000_000 // flat_a.shape[-1] ** 2)
    norms = [
        torch.einsum("wi,wij,wj->w", w, gram[i[:, :, None], i[:, None, :]], w)
        for w, i in zip(flat_a.split(chunk), flat_e.split(chunk))
    ]
    return torch.cat(norms).reshape(a.shape[:-1])


def flatten_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Float[Tensor, " parameters"]:
    """One vector, in the order of the parameters; None stands for zeros."""
    return torch.cat(
        [
            torch.zeros(p.numel(), dtype=torch.float64) if g is None else g.flatten().to("cpu", torch.float64)
            for g, p in zip(gradients, parameters)
        ]
    )


def loss_and_gradient(estimator: Estimator, logp: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """The loss at these log-probabilities and its derivative by them, 0 where mask is False."""
    logp = logp.clone().requires_grad_()
    loss = estimator.loss(logp, evidence)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    return loss.detach(), torch.where(evidence.rollouts.mask, gradient, 0.0)


def check_worlds(
    estimator: Estimator,
    evidence: Evidence,
    weights: Float[Tensor, "*worlds B T"],
    enumeration: Enumeration,
    tried: int = 2,
) -> None:
    """Raise EstimatorError if a world alone does not give what it gives among the others: its figures would be those of
    an average over outcomes that never meet. Branches that are worlds of their own are not tried.

    Args: tried: how many worlds, evenly spaced; not the first, whose responses are all the same and often weigh
        nothing.
    """
    if weights.dim() != 3:
        return
    logp = of_rows(enumeration.leaf_logp(), evidence.rollouts)
    for world in sorted({(2 * number + 1) * len(weights) // (2 * tried) for number in range(tried)}):
        loss, gradient = loss_and_gradient(estimator, logp[world], take_world(evidence, world))
        if loss.dim() != 0 or not torch.allclose(-gradient, weights[world], rtol=1e-9, atol=1e-12):
            raise EstimatorError(
                f"{type(estimator).__name__} mixes worlds: evidence may have leading dimensions that must not meet, so "
                "reduce over the last ones only, e.g. response_reward.mean(-1, keepdim=True) instead of "
                "response_reward.mean()."
            )
