"""What an expected gradient is compared with: ∇ of an expression such as `reward - 0.3 kl`."""

import re
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.geometry import Geometry, geometry_of

TERMS = {
    "reward": "J = E RM(W)",
    "kl": "KL(π ‖ ref) of whole responses",
    "kl at visited states": "the same divergence token by token, at prefixes that π visits and that are held fixed",
    "entropy": "-E log π(W), of whole responses",
    "max of K": "E of the largest RM(W) among K responses to a prompt",
    "length": "E of a response's number of tokens",
    "overlong": "E of DAPO's overlong penalty, clip((len - (T - 2)) / 2, 0, 1)",
}
"""What an expression may hold, and what each word means."""
PENALTIES = ("kl", "kl at visited states", "length", "overlong")
"""Alone in an expression these are descended: "kl" is -∇KL."""

_TERM = re.compile(rf"\s*([+-]?)\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)?\s*\*?\s*({'|'.join(sorted(TERMS)[::-1])})\b")


def parse_target(expression: str) -> dict[str, float]:
    """Each term's factor: {"reward": 1, "kl": -0.3} of `reward - 0.3 kl`.

    Raises:
        ValueError: if it is no sum of such terms.
    """
    text, place = expression.strip(), 0
    factors: dict[str, float] = {}
    while place < len(text) or not factors:
        found = _TERM.match(text, place)
        if found is None or (factors and not found[1]):
            raise ValueError(
                f"target is {expression!r}; choose among {', '.join(TERMS)}, or a sum such as 'reward - 0.3 kl'."
            )
        factor = float(found[2] or 1) * (-1 if found[1] == "-" else 1)
        factors[found[3]] = factors.get(found[3], 0.0) + factor
        place = found.end()
    return {text: -1.0} if text in PENALTIES else factors


class Targets:
    """Gradients of all terms on one enumerated instance.

    Args:
        reference_logp: log ref of every token of every response, (P, N, T), 0 after its end.
        group_size: K of `max of K`.
    """

    def __init__(self, enumeration: Enumeration, reference_logp: Float[Tensor, "P N T"], group_size: int):
        self.enumeration, self.reference_logp, self.group_size = enumeration, reference_logp, group_size

    def gradient(self, term: str) -> Float[Tensor, " parameters"]:
        """By differentiating the term, a sum over all responses, by log π of every edge."""
        e = self.enumeration
        edge_logp = e.edge_logp().clone().requires_grad_()
        token_logp = torch.where(e.mask, edge_logp[e.edge], 0.0)
        value = e.mdp.prompt_probability @ self._by_prompt(term, token_logp)
        (by_edge,) = torch.autograd.grad(value, edge_logp)
        return self._geometry.gradient(by_edge)

    def magnitude(self, term: str) -> float:
        """Root mean square of X(W) ∇log π(W), X what the term adds up for a response: less than about 1e-13 of it is
        rounding."""
        e = self.enumeration
        logp, reference = e.leaf_logp().sum(-1), self.reference_logp.sum(-1)
        square = {
            "reward": e.response_reward**2,
            "kl": logp**2 + reference**2,
            "kl at visited states": logp**2 + reference**2,
            "entropy": logp**2,
            "max of K": self.group_size**2 * e.response_reward**2,
            "length": e.length.double() ** 2,
            "overlong": overlong(e.length, e.mdp.longest) ** 2,
        }[term]
        return float((self._chance_of_score * square).sum().sqrt())

    @cached_property
    def _chance_of_score(self) -> Float[Tensor, "P N"]:
        """P(W) |∇log π(W)|²."""
        e = self.enumeration
        return e.mdp.prompt_probability[:, None] * e.probability * self._geometry.sizes()

    @cached_property
    def _geometry(self) -> Geometry:
        return geometry_of(self.enumeration)

    def _by_prompt(self, term: str, token_logp: Float[Tensor, "P N T"]) -> Float[Tensor, " P"]:
        e, reference = self.enumeration, self.reference_logp
        logp = token_logp.sum(-1)
        chance = (logp + e.reply_logp).exp()
        if term == "max of K":
            return torch.stack(list(map(partial(_largest, group_size=self.group_size), chance, e.response_reward)))
        if term == "kl at visited states":
            # E Σₜ KL(π(·|Wₜ) ‖ ref(·|Wₜ)), the chance of the prefix taken as a constant: π/stop(π) is 1 with a gradient
            visited, here = chance.detach()[..., None], (token_logp - token_logp.detach()).exp()
            return (visited * here * (token_logp.detach() - reference)).sum((-2, -1))
        each = {
            "reward": lambda: e.response_reward,
            # Not differentiated where it is averaged: E ∇log π = 0, and without it a KL of zero has a gradient of zero.
            "kl": lambda: logp.detach() - reference.sum(-1),
            "entropy": lambda: -logp.detach(),
            "length": lambda: e.length.double(),
            "overlong": lambda: overlong(e.length, e.mdp.longest),
        }[term]()
        return (chance * each).sum(-1)


def overlong(length: Tensor, horizon: int) -> Float[Tensor, "..."]:
    """clip((len - (T - 2)) / 2, 0, 1): nothing up to two tokens before the cap, 1 at it (DAPO, Eq. 13)."""
    return ((length.double() - (horizon - 2)) / 2).clamp(0, 1)


def _largest(chance: Float[Tensor, " N"], reward: Float[Tensor, " N"], group_size: int) -> Float[Tensor, ""]:
    """E max of K independent draws: Σ over the sorted rewards of r (Fᴷ - F₋ᴷ), F the chance of r or less."""
    ordered, order = reward.sort()
    below = torch.cat([torch.zeros(1, dtype=chance.dtype), chance[order].cumsum(0)]) ** group_size
    return (ordered * below.diff()).sum()
