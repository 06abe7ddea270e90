"""Lengths and angles of sums of scores, without a score matrix where the policy is a table."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.weights import squared_norms


class Geometry(ABC):
    """Inner products of Σ_e u_e s_e, s_e = ∇log π of edge e, edges as in `Enumeration`."""

    def __init__(self, enumeration: Enumeration):
        self.enumeration = enumeration

    @abstractmethod
    def gradient(self, weights: Float[Tensor, " E"]) -> Float[Tensor, " parameters"]:
        """Σ_e u_e s_e by the policy's parameters."""

    @abstractmethod
    def products(self, prompt: int, weights: Float[Tensor, "A E1"]) -> Float[Tensor, "A A"]:
        """<Σ u_e s_e, Σ v_e s_e> of every two rows, over the edges of one prompt."""

    @abstractmethod
    def within(
        self, chance: Float[Tensor, " N"], edge: Int[Tensor, "N T"], weights: Float[Tensor, "B N T"]
    ) -> Float[Tensor, "B B"]:
        """Σ_i chance_i <Σ_t u_bit s_it, Σ_t u_b'it s_it> over responses i, s_it the scores of their tokens."""

    @abstractmethod
    def sizes(self) -> Float[Tensor, "P N"]:
        """|∇log π(W)|² of every response."""

    @abstractmethod
    def rank(self) -> int:
        """Dimensions that scores span."""


class TableGeometry(Geometry):
    """Of a table of logits: s_e is the unit vector of e less π(·|node), and nodes are orthogonal."""

    def __init__(self, enumeration: Enumeration):
        super().__init__(enumeration)
        self.pi = enumeration.edge_logits.softmax(-1)
        self.square = (1 - 2 * self.pi + self.pi.square().sum(-1, keepdim=True)).flatten()
        """|s_e|²."""

    def gradient(self, weights):
        e = self.enumeration
        by_logit = self._centred(weights.view(self.pi.shape), self.pi)
        return torch.cat([level.transpose(1, 2).flatten() for level in by_logit.split(e.tree.level_sizes, dim=1)])

    def products(self, prompt, weights):
        pi = self.pi[prompt]
        by_logit = self._centred(weights.view(-1, *pi.shape), pi).flatten(1)
        return by_logit @ by_logit.T

    def within(self, chance, edge, weights):
        return torch.einsum("nt,bnt,cnt->bc", chance[:, None] * self.square[edge], weights, weights)

    def sizes(self):
        e = self.enumeration
        return torch.where(e.mask, self.square[e.edge], 0.0).sum(-1)

    def rank(self):
        e = self.enumeration
        own = e.mdp.policy_steps.repeat_interleave(torch.tensor(e.tree.level_sizes))
        return int(((self.pi > 0).sum(-1) - 1)[:, own].sum())

    @staticmethod
    def _centred(weights: Float[Tensor, "*rows M V"], pi: Float[Tensor, "*shape M V"]) -> Float[Tensor, "*rows M V"]:
        return weights - pi * weights.sum(-1, keepdim=True)


class ScoreGeometry(Geometry):
    """Of any policy, by the matrix of its scores; as many edges as `Enumeration.scores` allows."""

    def gradient(self, weights):
        return self.enumeration.scores.T @ weights

    def products(self, prompt, weights):
        edges = weights.shape[-1]
        here = slice(prompt * edges, (prompt + 1) * edges)
        return weights @ self.enumeration.gram[here, here] @ weights.T

    def within(self, chance, edge, weights):
        gram = self.enumeration.gram
        total = torch.zeros(len(weights), len(weights), dtype=torch.float64)
        for c, e, w in zip(chance.split(4096), edge.split(4096), weights.split(4096, dim=1)):
            total += torch.einsum("n,bnt,nts,cns->bc", c, w, gram[e[:, :, None], e[:, None, :]], w)
        return total

    def sizes(self):
        e = self.enumeration
        written = e.mask.double().expand(e.n_prompts, -1, -1)
        return squared_norms(written[..., None, :], e.edge[..., None, :], e.gram)

    def rank(self):
        return int(torch.linalg.matrix_rank(self.enumeration.scores))


def geometry_of(enumeration: Enumeration) -> Geometry:
    """The quickest that the policy allows."""
    policy = enumeration.policy
    if (
        type(policy) is TabularPolicy
        and policy.tree == enumeration.tree
        and torch.equal(policy.prompts, enumeration.prompt)
    ):
        return TableGeometry(enumeration)
    return ScoreGeometry(enumeration)
