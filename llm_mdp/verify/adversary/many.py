"""Many small instances at once: J, KL, length, ∇ of the objective, and E g of an estimator, each at its own θ.

The instances stand side by side as the prompts of one large token MDP, so that an estimator is called once for all of
them. Where it gives each group the same weights wherever the policy is, once is enough; otherwise it is made anew at
every θ. And where an instance among the others does not give what it gives alone (`following.Following`), each is
followed alone.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import Groups, all_groups
from llm_mdp.exact.instances import Instance, stream
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.adversary.shapes import Numbers, Shape, instance_of, levels, side_by_side
from llm_mdp.verify.adversary.wide import Centred, SideBySide, distinct
from llm_mdp.verify.following import TRIED, Following, natural_of_tables
from llm_mdp.verify.moments import affine_in_branches, ignores_order, updates_first
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import parse_target
from llm_mdp.verify.weights import NotFinite, edges, loss_weights, token_weights

Build = Callable[[Problem], Estimator]
"""Makes the estimator on a problem, as `Claim.build` does."""

TOGETHER = 128
"""Instances that stand side by side."""
MAX_TOGETHER = 2_000_000
"""Weights of all of them up to which they do."""
OBJECTIVES = ("reward", "kl", "entropy")
"""Terms of a target that can be followed."""


@dataclass(frozen=True)
class Figures:
    """Of every instance, at its own θ."""

    J: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]
    """KL(π ‖ start) of whole responses, in nats."""
    length: Float[Tensor, " B"]
    """E[tokens that the policy draws]."""
    objective: Float[Tensor, " B"]
    """J; for a target that is no reward, J and that target together."""


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
        return natural_of_tables(direction, self.visits, self.places)


class Many:
    """B instances of one shape, with one estimator.

    Args:
        target: what E g should be the gradient of, an expression of OBJECTIVES. Without `reward` in it E g is followed
            with ∇J added, as penalties are.

    Raises:
        ValueError: for another target.
    """

    def __init__(
        self,
        shape: Shape,
        numbers: Numbers,
        build: Build,
        group_size: int = 2,
        beta: float = 0.7,
        target: str = "reward",
    ):
        self.terms = parse_target(target)
        if wrong := [term for term in self.terms if term not in OBJECTIVES]:
            raise ValueError(f"{wrong[0]!r} cannot be followed; choose a target of {', '.join(OBJECTIVES)}.")
        self.alone = "reward" in self.terms
        self.terms = self.terms if self.alone else {"reward": 1.0} | self.terms
        self.shape, self.numbers, self.build = shape, numbers, build
        self.group_size, self.beta = group_size, beta
        e = shape.enumeration
        self._edges = e.n_edges
        self._written = torch.where(e.tokens >= 0, e.edge, e.n_edges)
        self._drawn = torch.where(e.mask, e.edge, e.n_edges)
        self._length = e.length.double()
        self.reward = (self._at_leaves(numbers.reward.flatten(1), self._written) * e.mdp.discount).sum(-1)
        self._start_logp = self._logp_of(numbers.start, slice(None))[1]
        probe = Problem(instance_of(shape, numbers, 0), group_size, beta)
        estimator = build(probe)
        self.ordered = estimator.group_size > 1 and not ignores_order(estimator, probe.enumeration)
        self._each_branch = not affine_in_branches(estimator, probe.enumeration)
        parts = list(all_groups(e, estimator.group_size, self.ordered))
        self._leaf = torch.cat([part.leaf for part in parts if int(part.which_prompt[0]) == 0])
        first = torch.cat([part.weight for part in parts if int(part.which_prompt[0]) == 0])
        self._orders = first / e.mdp.prompt_probability[0]
        self._followed: dict[int, Following] = {}
        self._fixed: tuple[Tensor, Tensor] | None = None
        self._twice = updates_first(estimator)
        self._sides: dict[bytes, Instance] = {}
        self.way = self._way()

    @property
    def spread(self) -> Float[Tensor, " B"]:
        """Largest RM less smallest RM."""
        return self.reward.flatten(1).amax(1) - self.reward.flatten(1).amin(1)

    # --- what is true -------------------------------------------------------------------------------------------------

    def figures(self, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Figures:
        """Everything at θ."""
        chance, logp = self._logp_of(theta, which)
        by_leaf, apart = self.numbers.chance[which][..., None] * chance, logp - self._start_logp[which]

        def mean(each: Tensor) -> Tensor:
            return (by_leaf * each).sum((-2, -1))

        found = {"reward": mean(self.reward[which]), "kl": mean(apart), "entropy": -mean(logp)}
        objective = torch.stack([factor * found[term] for term, factor in self.terms.items()]).sum(0)
        return Figures(found["reward"], found["kl"], mean(self._length.expand_as(chance)), objective)

    def leaf_chance(self, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Float[Tensor, "b P N"]:
        """P(W | prompt) of every response."""
        return self._logp_of(theta, which)[0]

    def gradient(self, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Float[Tensor, "b S"]:
        """∇ of the objective."""
        return self._gradient(theta, which, self.terms)

    def _gradient(self, theta: Tensor, which: Tensor, terms: dict[str, float]) -> Tensor:
        chance, logp = self._logp_of(theta, which)
        each = {"reward": self.reward[which], "kl": logp - self._start_logp[which], "entropy": -logp}
        total = torch.stack([factor * each[term] for term, factor in terms.items()]).sum(0)
        by_leaf = self.numbers.chance[which][..., None] * chance * total
        return self._to_parameters(self._by_edge(by_leaf, self._drawn), theta, which)

    def points(self, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Points:
        """What it takes to follow the estimator by natural steps; no numbers for E g where it leaves out everything."""
        figures, shape = self.figures(theta, which), self.shape
        by_leaf = self.numbers.chance[which][..., None] * self.leaf_chance(theta, which)
        return Points(
            figures.J,
            figures.kl,
            self._mean(theta, which),
            self._gradient(theta, which, {"reward": 1.0}),
            self._gradient(theta, which, {"kl": 1.0}),
            self._by_edge(by_leaf, self._drawn).view(len(theta), shape.nodes, -1),
            shape.places.view(shape.nodes, -1),
        )

    # --- what the estimator gives -------------------------------------------------------------------------------------

    def field(self, theta: Float[Tensor, "b S"], which: Int[Tensor, " b"]) -> Float[Tensor, "b S"]:
        """E g, with ∇J added where the target holds no reward; no number where the estimator leaves out everything."""
        mean = self._mean(theta, which)
        return mean if self.alone else mean + self._gradient(theta, which, {"reward": 1.0})

    def _mean(self, theta: Tensor, which: Tensor) -> Tensor:
        if self.way == "alone":
            return torch.stack([self._one(row, int(index)) for row, index in zip(theta, which)])
        if self._fixed is None:
            parts = zip(theta.split(TOGETHER), which.split(TOGETHER))
            return torch.cat([self._apart(rows, here) for rows, here in parts])
        table, kept = (part[which] for part in self._fixed)
        drawn = self._group_chance(self._logp_of(theta, which)[0]) * self.numbers.chance[which][..., None]
        total = (drawn * kept).sum((-2, -1))
        by_edge = torch.einsum("bpg,bpge->be", drawn, table) / total[:, None]
        return self._to_parameters(by_edge, theta, which)

    def _way(self) -> str:
        """How fields are computed: "fixed" weights, "anew" at every θ, or each instance "alone"."""
        size = len(self.shape.prompts) * len(self._leaf) * self._leaf.shape[-1] * self.shape.horizon
        if size * min(len(self), TOGETHER) > MAX_TOGETHER:
            return "alone"
        every = torch.arange(len(self))
        some = every[:3]
        try:
            there = self.numbers.start[some]
            found, said = (
                self._together(there, some),
                torch.stack([self._one(*each) for each in zip(there, some.tolist())]),
            )
        except (TooLarge, NothingKept, RuntimeError, TypeError, ValueError):
            return "alone"
        if not torch.allclose(found, said, rtol=1e-9, atol=1e-12 * float(said.abs().max() + 1)):
            return "alone"
        tables = None if self._twice else self._tables(self.numbers.start)
        if tables is None:
            return "anew"
        for number, distance in enumerate(TRIED):
            noise = torch.randn(self.numbers.start.shape, generator=stream(number, "many"), dtype=torch.float64)
            other = self._tables(self.numbers.start + distance * noise)
            tolerance = 1e-12 * float(tables[0].abs().max() + 1)
            if other is None or not torch.equal(tables[1], other[1]):
                return "anew"
            if not torch.allclose(tables[0], other[0], rtol=1e-9, atol=tolerance):
                return "anew"
        self._fixed = tables
        return "fixed"

    def _tables(self, theta: Tensor) -> tuple[Tensor, Tensor] | None:
        """The weights of all edges in all groups to every prompt, and which groups are kept; None: others draw, or
        some have no finite weights."""
        parts = []
        for rows, which in zip(theta.split(TOGETHER), torch.arange(len(theta)).split(TOGETHER)):
            try:
                sampler, weights, edge, _, _ = self._worlds(rows, which)
            except NotFinite:
                return None
            own = self._group_chance(self._logp_of(rows, which)[0]) * self._orders
            if sampler.drawn is not None or not torch.allclose(sampler.weight, own.flatten(), rtol=1e-9, atol=1e-15):
                return None
            table = torch.zeros(len(own.flatten()), self._edges, dtype=torch.float64)
            local = self._local(edge)
            table.scatter_add_(1, local.flatten(1), weights.flatten(1).double())
            kept = torch.ones(len(table)) if sampler.kept is None else sampler.kept
            shape = (len(rows), len(self.shape.prompts), len(self._leaf))
            kept = kept.double().view(shape)
            parts.append((table.view(*shape, -1) * (kept * self._orders)[..., None], kept * self._orders))
        table, kept = map(torch.cat, zip(*parts))
        return table, kept

    def _local(self, edge: Tensor) -> Tensor:
        """Edges of the large token MDP as edges of each instance's own."""
        return edge % self._edges

    def _apart(self, theta: Tensor, which: Tensor) -> Tensor:
        """`_together`, with no numbers for the instances at whose θ the loss has no finite derivative."""
        try:
            return self._together(theta, which)
        except NotFinite:
            if len(which) == 1:
                return torch.full_like(theta, torch.nan)
            half = len(which) // 2
            return torch.cat([self._apart(theta[:half], which[:half]), self._apart(theta[half:], which[half:])])

    def _together(self, theta: Tensor, which: Tensor) -> Tensor:
        sampler, weights, edge, prompts, again = self._worlds(theta, which)
        chance = sampler.weight if sampler.kept is None else sampler.weight * sampler.kept
        chance = chance * self.numbers.chance[which].flatten()[prompts]
        if self._twice:
            return self._second_updates(theta, which, chance, weights, self._local(edge), again)
        by_edge = torch.zeros(len(theta) * self._edges, dtype=torch.float64)
        by_edge.index_add_(0, edge.flatten(), (chance[..., None, None] * weights).flatten())
        owner = (prompts // len(self.shape.prompts)).expand(chance.shape)
        total = torch.zeros(len(theta), dtype=torch.float64).index_add_(0, owner.flatten(), chance.flatten())
        return self._to_parameters(by_edge.view(len(theta), -1) / total[:, None], theta, which)

    def _second_updates(
        self, theta: Tensor, which: Tensor, chance: Tensor, weights: Tensor, edge: Tensor, again
    ) -> Tensor:
        """E of what every group gives at the parameters that its own first update leads to."""
        owner = torch.arange(len(theta)).repeat_interleave(len(chance) // len(theta))
        theta, which = theta[owner], which[owner]
        estimator, evidence = again

        def gradient(at: Tensor, weights: Tensor) -> Tensor:
            by_edge = torch.zeros(len(owner), self._edges, dtype=torch.float64)
            return self._to_parameters(by_edge.scatter_add_(1, edge.flatten(1), weights.flatten(1)), at, which)

        moved = estimator.displacement(gradient(theta, weights))
        assert moved is not None
        there = theta + moved
        logp = self._logits(there, which).view(len(owner), self.shape.nodes, -1).log_softmax(-1).flatten(1)
        logp = logp.gather(1, edge.flatten(1)).view(edge.shape)
        second = gradient(there, loss_weights(estimator, evidence, torch.where(evidence.rollouts.mask, logp, 0.0)))
        total = torch.zeros(int(owner[-1]) + 1, theta.shape[1], dtype=torch.float64)
        return total.index_add_(0, owner, chance[:, None] * second)

    def _side(self, which: Tensor) -> Instance:
        """These instances side by side, their policy and reference those that they start with."""
        key = which.numpy().tobytes()
        if key not in self._sides:
            if len(self._sides) > 64:
                self._sides.clear()
            logits = self._logits(self.numbers.start[which], which).view(len(which), self.shape.nodes, -1)
            prompts = distinct(len(which) * len(self.shape.prompts))
            self._sides[key] = side_by_side(self.shape, self.numbers[which], logits, prompts)
        return self._sides[key]

    def _worlds(
        self, theta: Tensor, which: Tensor
    ) -> tuple[ExactSampler, Tensor, Tensor, Tensor, tuple[Estimator, Evidence]]:
        """All groups of these instances, side by side: the sampler, weights of tokens, their edges, and the prompts."""
        side, number = self._side(which), len(theta) * len(self.shape.prompts)
        by_node = self._logits(theta, which).view(number, self.shape.tree.n_nodes, -1)
        policy = TabularPolicy(self.shape.tree, side.mdp.prompt_tokens, levels(self.shape, by_node))
        instance = copy(side)
        object.__setattr__(instance, "policy", policy)
        problem = SideBySide(instance, self.group_size, self.beta)
        object.__setattr__(problem, "prompts_each", len(self.shape.prompts))
        estimator, e = self.build(problem), problem.enumeration
        every = torch.arange(number).repeat_interleave(len(self._leaf))
        groups = Groups(every, self._leaf.repeat(number, 1), self._orders.repeat(number))
        sampler = Centred(e, groups, self._each_branch)
        if problem.given.centred:
            J = self.figures(theta, which).J.repeat_interleave(len(self.shape.prompts))
            sampler.less = J[every]
        evidence = estimator.collect(sampler)
        weights = token_weights(estimator, evidence, e, sampler.weight.shape)
        return sampler, weights, edges(evidence, e).expand(weights.shape), every, (estimator, evidence)

    def _one(self, theta: Tensor, index: int) -> Tensor:
        if index not in self._followed:
            instance = instance_of(self.shape, self.numbers, index)
            self._followed[index] = Following(self.build, Problem(instance, self.group_size, self.beta))
        try:
            return self._followed[index].mean(theta)
        except (NothingKept, NotFinite):
            return torch.full_like(theta, torch.nan)

    # --- tables -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.numbers)

    def _logits(self, theta: Tensor, which: Tensor | slice) -> Float[Tensor, "b edges"]:
        own = torch.cat([theta, theta.new_zeros(len(theta), 1)], dim=1)[:, self.shape.places]
        given = self.numbers.environment[which].flatten(1)
        return torch.where(self.shape.places < theta.shape[1], own, given)

    def _logp_of(self, theta: Tensor, which: Tensor | slice) -> tuple[Float[Tensor, "b P N"], Float[Tensor, "b P N"]]:
        """P(W | prompt), and log π of the policy's tokens in it."""
        logp = self._logits(theta, which).view(len(theta), self.shape.nodes, -1).log_softmax(-1).flatten(1)
        return self._at_leaves(logp, self._written).sum(-1).exp(), self._at_leaves(logp, self._drawn).sum(-1)

    def _at_leaves(self, by_edge: Float[Tensor, "b edges"], place: Tensor) -> Float[Tensor, "b P N T"]:
        return torch.cat([by_edge, by_edge.new_zeros(len(by_edge), 1)], dim=1)[:, place]

    def _by_edge(self, by_leaf: Float[Tensor, "b P N"], place: Tensor) -> Float[Tensor, "b edges"]:
        """Every response's number on each of its tokens."""
        total = by_leaf.new_zeros(len(by_leaf), self._edges + 1)
        spread = by_leaf[..., None].expand(*by_leaf.shape, place.shape[-1]).flatten(1)
        return total.index_add_(1, place.flatten(), spread)[:, :-1]

    def _group_chance(self, chance: Float[Tensor, "b P N"]) -> Float[Tensor, "b P G"]:
        """Π P(W | prompt) of the responses of every group."""
        return chance[..., self._leaf].prod(-1)

    def _to_parameters(self, by_edge: Float[Tensor, "b edges"], theta: Tensor, which: Tensor) -> Tensor:
        """Σ by_edge ∇log π."""
        pi = self._logits(theta, which).view(len(theta), self.shape.nodes, -1).softmax(-1)
        by_node = by_edge.view_as(pi)
        by_logit = (by_node - pi * by_node.sum(-1, keepdim=True)).flatten(1)
        total = theta.new_zeros(len(theta), theta.shape[1] + 1)
        return total.index_add_(1, self.shape.places, by_logit)[:, :-1]
