"""An estimator as a black box: groups of responses go in, the weights of their tokens come out."""

from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.worlds import ExactSampler, TreeRollouts
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.weights import Precision, check_worlds, token_weights

AT_ONCE = 250_000
"""Token weights that are asked for at once: what of them is in work fits into a processor's cache."""


class Refused(Exception):
    """Classes do not do for this estimator; the message is the reason, to be read after "because"."""


class Drawn(ExactSampler):
    """Given groups, and a record of the law that responses were asked of."""

    law: Float[Tensor, "P N"]

    def _worlds(self, group_size, leaf_logp):
        self.law = (leaf_logp.sum(-1) + self.enumeration.reply_logp).exp()
        return super()._worlds(group_size, leaf_logp)


class Subject:
    """An estimator on an enumeration.

    Args:
        estimator: what is looked into.
        enumeration: where its responses come from.

    Raises:
        Refused: it branches at random, updates first, or passes on other responses than it drew.
        EstimatorError: it mixes worlds (when many groups are first asked for).
    """

    def __init__(self, estimator: Estimator, enumeration: Enumeration):
        self.estimator, self.enumeration = estimator, enumeration
        self.group_size = estimator.group_size
        self._precision: Precision | None = None
        self._checked = False
        if estimator.displacement(torch.zeros(0, dtype=torch.float64)) is not None:
            raise Refused("it differentiates its loss at a policy that was updated first")
        likeliest = (enumeration.leaf_logp().sum(-1) + enumeration.reply_logp).argmax(-1)
        self._law: Float[Tensor, "P N"] | None = None
        self(torch.arange(enumeration.n_prompts), likeliest[:, None].expand(-1, self.group_size))

    @property
    def law(self) -> Float[Tensor, "P N"]:
        """Probability of every response, given its prompt, of whoever draws."""
        assert self._law is not None
        return self._law

    @property
    def precision(self) -> str:
        """The coarsest floating point that it computed in."""
        return "float64" if self._precision is None else self._precision.coarsest

    def rows(self, responses: int) -> int:
        """How many groups, or batches, of so many responses are asked about at once."""
        return max(1, AT_ONCE // (responses * self.enumeration.tree.horizon))

    def __call__(self, prompt: Int[Tensor, " R"], leaf: Int[Tensor, "R K"]) -> Float[Tensor, "R K X"]:
        """What every response of every group gets: T weights (0 in groups that are left out), what its branches cost in
        tokens and in rewards, and 1 if the group is kept."""
        size = self.rows(leaf.shape[1])
        return torch.cat([self._some(*part) for part in zip(prompt.split(size), leaf.split(size))])

    def _some(self, prompt: Tensor, leaf: Tensor) -> Float[Tensor, "R K X"]:
        drawn = Drawn(self.enumeration, Groups(prompt, leaf, torch.ones(len(leaf), dtype=torch.float64)))
        sampler = Meter(drawn)
        evidence = self.estimator.collect(sampler)
        if drawn.drawn is not None:
            raise Refused("it draws branches at random")
        if not isinstance(evidence.rollouts, TreeRollouts) or not torch.equal(evidence.rollouts.leaf, leaf):
            raise Refused("it passes on other responses than it drew")
        first = self._precision is None
        if first:
            self._precision, self._law = Precision(), drawn.law
        assert self._precision is not None
        with self._precision if first else nullcontext():
            weights = token_weights(self.estimator, evidence, self.enumeration, tuple(drawn.weight.shape))
        if not self._checked and len(leaf) > 10:
            check_worlds(self.estimator, evidence, weights, self.enumeration)
            self._checked = True
        cost = torch.zeros(*leaf.shape, 2, dtype=torch.float64)
        for branches in sampler.branched:
            assert branches.tokens is not None
            spent = branches.tokens.double().expand(len(leaf), -1)
            cost[..., 0].index_add_(1, branches.row, spent)
            cost[..., 1].index_add_(1, branches.row, (spent > 0).double())
        kept = torch.ones(len(leaf), dtype=torch.float64) if drawn.kept is None else drawn.kept.double()
        weights = torch.where(kept[:, None, None] > 0, weights, 0.0)
        return torch.cat([weights, cost, kept[:, None, None].expand(-1, leaf.shape[1], 1)], dim=-1)
