"""Where an estimator leads: E g, ∇J, J and KL(π ‖ start) at any policy, so that they can be followed step by step.

A certificate is about one policy. Here the policy's parameters θ move away from those of an instance, and what the
estimator is made of moves with them: at every θ it is made anew, by `Problem.make` on an instance whose policy is at θ.
Most estimators give the same weights to the same responses wherever the policy is. Then E g is a sum over groups,

    E g(θ) = Σ_groups Πₖ π_θ(Wₖ) Σₖₜ Aₖₜ ∇log π_θ(wₖₜ | W₀,ₜ₋₁),

and the estimator is needed once. Which of the two it is, is tried: weights, groups kept, and who drew, at other θ.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import Groups, all_groups, check_groups
from llm_mdp.exact.instances import stream
from llm_mdp.exact.tree_gradient import node_logits
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.policies import NgramPolicy, Policy, TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.moments import affine_in_branches, displaced_gradients, ignores_order, updates_first
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import edges, token_weights

MAX_ENTRIES = 20_000_000
"""Groups times edges up to which the weights of all groups are kept: 160 MB. Beyond, estimators are made anew."""
NOTHING = "the estimator leaves out every group at this policy, so it leads nowhere."
TRIED = (1.0, 3.0, 10.0)
"""How far away weights are tried: standard deviations of normal logits that are added, in nats."""


@dataclass(frozen=True)
class Point:
    """What is exactly true at one policy. Gradients are by the parameters, in the order of `policy.parameters()`."""

    J: float
    """E RM(W)."""
    kl: float
    """KL(π ‖ start) of whole responses, in nats."""
    length: float
    """E[tokens that the policy draws], in tokens."""
    mean: Float[Tensor, " parameters"]
    """E g."""
    gradient: Float[Tensor, " parameters"]
    """∇J."""
    kl_gradient: Float[Tensor, " parameters"]
    """∇KL(π ‖ start)."""
    visits: Float[Tensor, "nodes V"]
    """P(prompt) P(prefix and this token | prompt), 0 where the environment draws it."""


class Following:
    """The field θ → E g(θ) of one estimator on one instance, and what it should have been.

    The reference policy is the one that the instance starts with, for KL(π ‖ start) and for estimators that have a
    reference. The wrong critic is the instance's, wherever the policy goes: it is never retrained.

    Args:
        build: makes the estimator on a problem (`Claim.build`); one that gives back the same object is fine.
        problem: instance, K and β. Its policy is a table or an n-gram table, its parameters the logits.

    Raises:
        ValueError: for another kind of policy, or one with forbidden tokens.
        TooLarge: when there are too many groups to enumerate.
    """

    def __init__(self, build: Callable[[Problem], Estimator], problem: Problem):
        instance, e = problem.instance, problem.enumeration
        if not isinstance(instance.policy, TabularPolicy | NgramPolicy) or instance.policy.is_masked:
            kind = getattr(instance.policy, "kind", type(instance.policy).__name__)
            raise ValueError(
                f"the policy is {kind}; only tables and n-gram tables without forbidden tokens can be followed exactly."
            )
        if problem.prompts > 1:
            raise ValueError(f"prompts is {problem.prompts}; only updates of one prompt are followed: leave it out.")
        start = TabularPolicy(e.tree, e.prompt, e.logits)
        self.build, self.enumeration = build, e
        self.problem = replace(problem, instance=replace(instance, policy=deepcopy(instance.policy), reference=start))
        self._place = places_of(instance.policy, e)
        self._given = e.edge_logits.flatten(0, 1)
        self._written = torch.where(e.tokens >= 0, e.edge, e.n_edges)
        self._drawn = torch.where(e.mask, e.edge, e.n_edges)
        self._prompt_chance = e.mdp.prompt_probability[:, None]
        self._start_logp = e.leaf_logp().sum(-1)

        self.start = flat(instance.policy)
        """The parameters of the instance's own policy."""
        estimator, _ = self._at(self.start)
        check_groups(e, estimator.group_size, ordered=False)
        self._ordered = estimator.group_size > 1 and not ignores_order(estimator, e)
        self._each_branch = not affine_in_branches(estimator, e)
        self._displaced = updates_first(estimator)
        self._fixed = None if self._displaced else self._fixed_weights()

    @property
    def rebuilt(self) -> bool:
        """Is the estimator made anew at every θ, since its weights move with the policy (or are too many to keep)?"""
        return self._fixed is None

    def at(self, parameters: Float[Tensor, " parameters"]) -> Point:
        """Everything at θ.

        Raises:
            NothingKept: when the estimator leaves out every group there.
        """
        logp = self._logp(parameters)
        chance, own_logp = self._leaves(logp)
        by_leaf, apart = self._prompt_chance * chance, own_logp - self._start_logp
        reward, length = self.enumeration.response_reward, self.enumeration.length.double()
        return Point(
            float((by_leaf * reward).sum()),
            float((by_leaf * apart).sum()),
            float((by_leaf * length).sum()),
            self.mean(parameters),
            self._to_parameters(self._by_edge(by_leaf * reward), logp),
            self._to_parameters(self._by_edge(by_leaf * apart), logp),
            self._by_edge(by_leaf).view_as(logp),
        )

    def mean(self, parameters: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """E g at θ alone."""
        if self._fixed is None:
            return self._mean_anew(parameters)
        logp = self._logp(parameters)
        return self._to_parameters(self._fixed.mean(self._leaves(logp)[0]), logp)

    def natural(self, point: Point, direction: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        """F⁺ direction, F the Fisher information of the parameters: the way to go for a gradient `direction` where a
        step's length is the KL divergence that it makes. Of a table, direction / (P(prefix) π), centred at each
        prefix."""
        place, visits = self._place, point.visits
        if isinstance(self.problem.instance.policy, TabularPolicy):
            return natural_of_tables(direction, visits, place)
        reach = visits.sum(-1, keepdim=True)
        products = torch.where(reach > 0, visits / reach, 0.0)[:, :, None] * visits[:, None, :]
        fisher = direction.new_zeros(len(direction) + 1, len(direction) + 1)
        fisher.index_put_((place[:, :, None], place[:, None, :]), torch.diag_embed(visits) - products, accumulate=True)
        return torch.linalg.pinv(fisher[:-1, :-1], hermitian=True) @ direction

    # --- one policy ---------------------------------------------------------------------------------------------------

    def _logp(self, parameters: Tensor) -> Float[Tensor, "nodes V"]:
        logits = torch.cat([parameters, parameters.new_zeros(1)])[self._place]
        return torch.where(self._place < len(parameters), logits, self._given).log_softmax(-1)

    def _leaves(self, logp: Tensor) -> tuple[Float[Tensor, "P N"], Float[Tensor, "P N"]]:
        """P(W | prompt), and log π of the policy's tokens in it."""
        padded = torch.cat([logp.flatten(), logp.new_zeros(1)])
        return padded[self._written].sum(-1).exp(), padded[self._drawn].sum(-1)

    def _by_edge(self, by_leaf: Float[Tensor, "P N"]) -> Float[Tensor, " edges"]:
        """Every response's number on each of the policy's tokens in it."""
        total = by_leaf.new_zeros(self.enumeration.n_edges + 1)
        return total.index_add_(0, self._drawn.flatten(), by_leaf[..., None].expand(self._drawn.shape).flatten())[:-1]

    def _to_parameters(self, by_edge: Float[Tensor, " edges"], logp: Tensor) -> Float[Tensor, " parameters"]:
        """Σ by_edge ∇log π."""
        by_edge = by_edge.view_as(logp)
        by_logit = by_edge - logp.exp() * by_edge.sum(-1, keepdim=True)
        total = by_logit.new_zeros(len(self.start) + 1)
        return total.index_add_(0, self._place.flatten(), by_logit.flatten())[:-1]

    # --- the estimator ------------------------------------------------------------------------------------------------

    def _at(self, parameters: Tensor) -> tuple[Estimator, Enumeration]:
        """The estimator and all responses at θ."""
        policy = self.problem.instance.policy
        assert isinstance(policy, nn.Module)
        nn.utils.vector_to_parameters(parameters, policy.parameters())
        problem = replace(self.problem)
        # What the problem would enumerate itself when it is asked, but for what stays.
        vars(problem)["enumeration"] = self.enumeration.under(policy)
        return self.build(problem), problem.enumeration

    def _worlds(self, parameters: Tensor) -> Iterator[tuple[Groups, ExactSampler, Tensor, Tensor]]:
        """In chunks, all groups, the sampler that gave them, the weights of their tokens, and the edges of these."""
        estimator, e = self._at(parameters)
        for groups in all_groups(e, estimator.group_size, self._ordered):
            sampler = ExactSampler(e, groups, self._each_branch)
            evidence = estimator.collect(sampler)
            weights = token_weights(estimator, evidence, e, sampler.weight.shape)
            yield groups, sampler, weights, edges(evidence, e).expand(weights.shape)

    def _mean_anew(self, parameters: Tensor) -> Float[Tensor, " parameters"]:
        if self._displaced:
            gradients, weight = displaced_gradients(*self._at(parameters))
            return weight @ gradients
        by_edge, total = torch.zeros(self.enumeration.n_edges, dtype=torch.float64), 0.0
        for _, sampler, weights, edge in self._worlds(parameters):
            chance = sampler.weight if sampler.kept is None else sampler.weight * sampler.kept
            by_edge.index_add_(0, edge.flatten(), (chance[..., None, None] * weights).flatten())
            total += float(chance.sum())
        if total == 0:
            raise NothingKept(NOTHING)
        return self._to_parameters(by_edge / total, self._logp(parameters))

    def _fixed_weights(self) -> "Weights | None":
        """The weights of all groups, if they are the same wherever the policy is."""
        weights = self._weights(self.start)
        for number, distance in enumerate(TRIED):
            noise = torch.randn(self.start.shape, generator=stream(number, "following"), dtype=torch.float64)
            other = None if weights is None else self._weights(self.start + distance * noise)
            if weights is None or other is None or not weights.equal(other):
                return None
        return weights

    def _weights(self, parameters: Tensor) -> "Weights | None":
        """The weights of all groups at θ; None: too many, drawn by another policy than π, or with random branches."""
        chance, _ = self._leaves(self._logp(parameters))
        parts, entries = [], 0
        for groups, sampler, weights, edge in self._worlds(parameters):
            own = groups.weight * chance[groups.which_prompt[:, None], groups.leaf].prod(-1)
            entries += len(own) * self.enumeration.n_edges
            if sampler.drawn is not None or entries > MAX_ENTRIES:
                return None
            if not torch.allclose(sampler.weight, own, rtol=1e-9, atol=1e-15):
                return None
            table = torch.zeros(len(own), self.enumeration.n_edges, dtype=torch.float64)
            table.scatter_add_(1, edge.flatten(1), weights.flatten(1).double())
            kept = torch.ones_like(own) if sampler.kept is None else sampler.kept.double()
            parts.append((groups.which_prompt, groups.leaf, groups.weight, table * kept[:, None], kept))
        return Weights(*map(torch.cat, zip(*parts)))


@dataclass(frozen=True)
class Weights:
    """What an estimator gives to every group, whoever draws it."""

    which_prompt: Int[Tensor, " G"]
    leaf: Int[Tensor, "G K"]
    orders: Float[Tensor, " G"]
    """P(prompt), times the orders that an unordered group stands for."""
    table: Float[Tensor, "G edges"]
    """The weight of every edge; 0 for a group that is left out."""
    kept: Float[Tensor, " G"]

    def equal(self, other: "Weights") -> bool:
        """Do the two agree to rounding?"""
        tolerance = 1e-12 * float(self.table.abs().max() + 1)
        return torch.equal(self.kept, other.kept) and torch.allclose(self.table, other.table, rtol=1e-9, atol=tolerance)

    def mean(self, chance: Float[Tensor, "P N"]) -> Float[Tensor, " edges"]:
        """E of the weights, given the probability of every response to every prompt.

        Raises:
            NothingKept: if no group is kept.
        """
        drawn = self.orders * chance[self.which_prompt[:, None], self.leaf].prod(-1)
        total = float(drawn @ self.kept)
        if total == 0:
            raise NothingKept(NOTHING)
        return drawn @ self.table / total


def natural_of_tables(
    direction: Float[Tensor, "*b S"], visits: Float[Tensor, "*b nodes V"], places: Int[Tensor, "nodes V"]
) -> Float[Tensor, "*b S"]:
    """F⁺ direction of tables: direction / (P(prefix) π), centred at each prefix; 0 where nobody comes.

    Args: places: which parameter each logit is (`places_of`).
    """
    padded = torch.cat([direction, direction.new_zeros(*direction.shape[:-1], 1)], dim=-1)
    by_logit = torch.where(visits > 0, padded[..., places] / visits, 0.0)
    by_logit = by_logit - by_logit.mean(-1, keepdim=True)
    return torch.zeros_like(padded).index_add_(-1, places.flatten(), by_logit.flatten(-2))[..., :-1]


def flat(policy: Policy) -> Float[Tensor, " parameters"]:
    """All parameters of a policy as one vector, a copy."""
    assert isinstance(policy, nn.Module)
    return nn.utils.parameters_to_vector(policy.parameters()).detach().clone()


def places_of(policy: Policy, enumeration: Enumeration) -> Int[Tensor, "nodes V"]:
    """Which parameter the logit of every edge is; the number of parameters where the environment draws the token."""
    numbered = deepcopy(policy)
    assert isinstance(numbered, nn.Module)
    size = len(flat(policy))
    nn.utils.vector_to_parameters(torch.arange(size, dtype=torch.float64), numbered.parameters())
    levels = [
        level.detach() if own else torch.full_like(level, size)
        for level, own in zip(node_logits(numbered, enumeration.mdp), enumeration.mdp.policy_steps.tolist())
    ]
    by_node = torch.cat([level.transpose(1, 2) for level in levels], dim=1)
    return by_node.flatten(0, 1).long()
