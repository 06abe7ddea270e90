"""Sums over worlds of what token weights make: the mean gradient, E|g|², and how large weights are.

Most group estimators weigh a response and not its tokens. Then g = Σₖ aₖ s(Wₖ) with the response's score s(W) = Σₜ ∇log
π(wₜ | W₀,ₜ₋₁), and |g|² is K (K + 1) / 2 entries of one table of <s(W), s(W')>, where tokens need (KT)² of another.
"""

from dataclasses import dataclass
from types import MethodType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.worlds import TreeBranches, TreeRollouts, WorldSampler, of_rows
from llm_mdp.sampling.evidence import Evidence, Rollouts
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.weights import check_worlds, squared_norms, token_weights

MOST = 1_000
"""Responses, to all prompts together, of which inner products are tabulated (8 MB)."""
FEW = 64
"""Worlds that are looked at before all others."""


class WeightSums:
    """Σ chance · (weights, |weights|, |g|²) over the worlds that were added."""

    def __init__(self, enumeration: Enumeration):
        self.enumeration = enumeration
        self.second = 0.0
        """E|g|²."""
        self.absolute = 0.0
        """E of the sum of |weight| over the tokens."""
        self._by_edge = torch.zeros(enumeration.n_edges, dtype=torch.float64)
        self._by_response = torch.zeros(enumeration.n_prompts * enumeration.tree.n_leaves, dtype=torch.float64)
        self.tabulated = len(self._by_response) <= MOST

    def add(
        self,
        chance: Float[Tensor, "*worlds"],
        weights: Float[Tensor, "*worlds B T"] | None,
        whole: Float[Tensor, "W B"] | None,
        rollouts: Rollouts,
    ) -> Float[Tensor, "*worlds B"]:
        """Some worlds, by the weights of whole responses where there are any; returns the largest |weight|
        of every response."""
        e = self.enumeration
        if whole is not None and self.tabulated:
            return self._add_responses(chance, whole, rollouts)
        assert weights is not None
        edge = of_rows(e.edge, rollouts).expand(weights.shape)
        self._by_edge.index_add_(0, edge.flatten(), (chance[..., None, None] * weights).flatten())
        self.second += float(chance.flatten() @ squared_norms(weights, edge, e.gram).flatten())
        size = weights.abs()
        self.absolute += float((chance * size.sum((-2, -1))).sum())
        return size.amax(-1)

    def _add_responses(
        self, chance: Float[Tensor, " W"], weights: Float[Tensor, "W B"], rollouts: Rollouts
    ) -> Float[Tensor, "W B"]:
        e, response = self.enumeration, _responses(rollouts, self.enumeration)
        self._by_response.index_add_(0, response.flatten(), (chance[:, None] * weights).flatten())
        self.second += float(chance @ response_norms(weights, response, response_gram(e)))
        size, length = weights.abs(), e.length.double()[response % e.tree.n_leaves]
        self.absolute += float(chance @ (size * length).sum(-1))
        return size

    @property
    def mean(self) -> Float[Tensor, " E"]:
        """The sum of weights by edge."""
        return self._by_edge + spread(self._by_response, self.enumeration)


@dataclass(frozen=True)
class Seen:
    """What an estimator makes of some worlds: a weight for each token, or for each response where that says all."""

    rollouts: Rollouts
    weights: Float[Tensor, "W B T"] | None
    whole: Float[Tensor, "W B"] | None
    kept: Float[Tensor, " W"]
    on_policy: bool
    """Is it the policy itself that drew?"""
    own: bool
    """Did it draw the tokens that have weights?"""

    def tokens(self, enumeration: Enumeration, worlds: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The weight and the edge of every token of the first so many worlds (None: of all), and is it one of the
        policy: three of (W, B T)."""
        assert isinstance(self.rollouts, TreeRollouts)
        which, leaf = (of[:worlds].flatten() for of in (self.rollouts.which_prompt, self.rollouts.leaf))
        mask = enumeration.mask.index_select(0, leaf)
        if self.weights is not None:
            weights = self.weights[:worlds]
        else:
            assert self.whole is not None
            weights = torch.where(mask, self.whole[:worlds].reshape(-1, 1), 0.0)
        edge = enumeration.edge.flatten(0, 1).index_select(0, which * enumeration.tree.n_leaves + leaf)
        shape = (len(self.kept[:worlds]), -1)
        own = mask if self.own else torch.zeros_like(mask)
        return weights.reshape(shape), edge.view(shape), own.view(shape)


class Means:
    """What the mean of worlds is made of: sums of weights, and of the policy's own tokens, by edge."""

    def __init__(self, enumeration: Enumeration):
        self.enumeration = enumeration
        self.kept, self.nonzero = 0.0, 0
        """Worlds that were kept, and those with a weight that is not 0."""
        responses = enumeration.n_prompts * enumeration.tree.n_leaves
        self._by_edge = torch.zeros(enumeration.n_edges, dtype=torch.float64)
        self._by_response, self._number = torch.zeros(2, responses, dtype=torch.float64)

    def add(self, seen: Seen) -> None:
        e, rollouts = self.enumeration, seen.rollouts
        self.kept += float(seen.kept.sum())
        if seen.own:
            self._number += torch.bincount(_responses(rollouts, e).flatten(), minlength=len(self._number))
        if seen.whole is not None:
            response = _responses(rollouts, e).flatten()
            self._by_response += torch.bincount(response, seen.whole.flatten(), len(self._number))
            self.nonzero += int((seen.whole != 0).any(-1).sum())
        else:
            assert seen.weights is not None
            self._by_edge.index_add_(0, of_rows(e.edge, rollouts).flatten(), seen.weights.flatten())
            self.nonzero += int((seen.weights != 0).flatten(1).any(-1).sum())

    @property
    def weights(self) -> Float[Tensor, " E"]:
        return self._by_edge + spread(self._by_response, self.enumeration)

    @property
    def own(self) -> Float[Tensor, " E"]:
        return spread(self._number, self.enumeration)


class WholeResponses:
    """An estimator's weights where its loss is the policy gradient of `objectives`, whose derivative is known: what
    `advantages` gives, shared out. It is taken where autograd gave the same, to the last bits, on the worlds that were
    seen before; where `advantages` gives one number for each response, those are its weights."""

    def __init__(self, estimator: Estimator, enumeration: Enumeration):
        self.estimator, self.enumeration = estimator, enumeration
        plain = estimator.loss == MethodType(Estimator.loss, estimator) and estimator.clip_low is None
        self.possible = plain and int(enumeration.length.min()) > 0
        self.agreed = False

    def either(
        self, evidence: Evidence, worlds: tuple[int, ...], tabulated: bool = True
    ) -> tuple[Float[Tensor, "*worlds B T"] | None, Float[Tensor, "W B"] | None]:
        """The weights of tokens, or None where it takes no autograd to know those of responses; and the weights of
        responses, or None where their tokens differ.

        Args: tabulated: are those of responses enough? Otherwise both are wanted.
        """
        known = self._weights(evidence) if self.agreed else None
        if known is not None and known.shape[-1] == 1 and tabulated and not isinstance(evidence.branches, TreeBranches):
            return None, known[..., 0]
        weights = self._of_tokens(evidence, worlds, known)
        return weights, self._seen(evidence, weights)

    def of_tokens(self, evidence: Evidence, worlds: tuple[int, ...]) -> Float[Tensor, "*worlds B T"]:
        """The weights of tokens alone."""
        return self._of_tokens(evidence, worlds, self._weights(evidence) if self.agreed else None)

    def _of_tokens(self, evidence: Evidence, worlds: tuple[int, ...], known: Tensor | None) -> Tensor:
        if known is None:
            return token_weights(self.estimator, evidence, self.enumeration, worlds)
        return torch.where(evidence.rollouts.mask, known, 0.0)

    def _seen(self, evidence: Evidence, weights: Float[Tensor, "*worlds B T"]) -> Float[Tensor, "W B"] | None:
        """The weight of every response where each of its tokens has the same; None: some differ."""
        if weights.dim() != 3 or not isinstance(evidence.rollouts, TreeRollouts):
            return None
        if self.possible and not self.agreed:
            known = self._weights(evidence)
            self.agreed = known is not None and torch.allclose(
                torch.where(evidence.rollouts.mask, known, 0.0), weights, rtol=1e-14, atol=0.0
            )
            self.possible = self.agreed
        return response_weights(weights, evidence.rollouts, self.enumeration)

    def _weights(self, evidence: Evidence) -> Float[Tensor, "W B T"] | None:
        """By the known derivative; one for all tokens where `advantages` has one."""
        rollouts, estimator = evidence.rollouts, self.estimator
        # A mask that `collect` changed may say that tokens of a response have no weight.
        if not (isinstance(rollouts, TreeRollouts) and rollouts.as_drawn):
            return None
        advantage = estimator.advantages(evidence)
        if advantage.shape not in ((*rollouts.leaf.shape, 1), (*rollouts.leaf.shape, self.enumeration.tree.horizon)):
            return None
        rows, constant = rollouts.leaf.shape[-1], estimator.reduction_constant or 1
        # In the order of the backward pass, so that the last bits are the same.
        share = {
            "sum": lambda: 1 / rows,
            "sequence_mean": lambda: ((1 / rows) / rollouts.length.double())[..., None],
            "token_mean": lambda: 1 / rollouts.length.sum(-1).double()[..., None, None],
            "constant": lambda: 1 / constant / rows,
        }[estimator.reduction]()
        known = advantage.detach().double() * share
        # What `advantages` says of padding is nobody's weight.
        said = known if known.shape[-1] == 1 else torch.where(rollouts.mask, known, 0.0)
        return known if torch.isfinite(said.sum()) else None


def look(whole: WholeResponses, sampler: WorldSampler, on_policy: bool | None = None, check: bool = False) -> Seen:
    """What the estimator makes of the sampler's worlds.

    Args:
        on_policy: is it the policy itself that draws? None: to be found out.
        check: see `check_worlds`; of the first worlds only.
    """
    e, meter = sampler.enumeration, Meter(sampler)
    evidence = whole.estimator.collect(meter)
    rollouts, drawn = evidence.rollouts, meter.responses
    assert drawn is not None
    weights, of_responses = whole.either(evidence, sampler.weight.shape)
    if check:
        assert weights is not None, "autograd has seen none before"
        check_worlds(whole.estimator, evidence, weights, e)
    if on_policy is None:
        # Whoever draws from the policy itself gets the enumeration's own table of log-probabilities.
        on_policy = torch.equal(drawn.logp, of_rows(e.leaf_logp(), drawn))
    kept = torch.ones_like(sampler.weight) if sampler.kept is None else sampler.kept.double()
    if of_responses is not None:
        return Seen(rollouts, None, of_responses * kept[:, None], kept, on_policy, on_policy and rollouts is drawn)
    assert weights is not None
    return Seen(rollouts, weights * kept[:, None, None], None, kept, on_policy, on_policy and rollouts is drawn)


def _responses(rollouts: Rollouts, enumeration: Enumeration) -> Int[Tensor, "W B"]:
    """The number of every response among those to all prompts."""
    assert isinstance(rollouts, TreeRollouts)
    if enumeration.n_prompts == 1:
        return rollouts.leaf
    return rollouts.which_prompt * enumeration.tree.n_leaves + rollouts.leaf


def response_weights(
    weights: Float[Tensor, "W B T"], rollouts: TreeRollouts, enumeration: Enumeration
) -> Float[Tensor, "W B"] | None:
    """The weight of every response, if each token that the policy chose has it, to the last bit (whatever the rollouts'
    own mask says); None: some differ."""
    for some in (slice(FEW), slice(None)):  # most that differ do so at once
        here, first = weights[some], weights[some, :, 0]
        if not torch.equal(here, torch.where(enumeration.mask[rollouts.leaf[some]], first[..., None], 0.0)):
            return None
    return weights[..., 0]


def spread(by_response: Float[Tensor, " R"], enumeration: Enumeration) -> Float[Tensor, " E"]:
    """What responses (prompt by prompt) have, on the edge of each of their tokens."""
    e = enumeration
    of_tokens = torch.where(e.mask, by_response.view(e.n_prompts, -1, 1), 0.0)
    return torch.zeros(e.n_edges, dtype=torch.float64).index_add_(0, e.edge.flatten(), of_tokens.flatten())


def response_scores(enumeration: Enumeration) -> Float[Tensor, "R parameters"]:
    """∇log π(W | prompt) of every response to every prompt."""
    e = enumeration
    rows = (e.edge.flatten(0, 1), e.mask.repeat(e.n_prompts, 1))
    own = torch.zeros(len(rows[0]), e.n_edges, dtype=torch.float64).scatter_add_(1, rows[0], rows[1].double())
    return own @ e.scores


def response_gram(enumeration: Enumeration) -> Float[Tensor, "R R"]:
    """Inner products of all of them."""
    shared = enumeration.shared
    if response_gram not in shared:
        scores = response_scores(enumeration)
        shared[response_gram] = scores @ scores.T
    return shared[response_gram]


def response_norms(
    weights: Float[Tensor, "W B"], response: Int[Tensor, "W B"], gram: Float[Tensor, "R R"]
) -> Float[Tensor, " W"]:
    """|Σ weight s(response)|² of every world."""
    norms, table = torch.zeros(len(weights), dtype=torch.float64), gram.flatten()
    a, r = weights.T.contiguous(), response.T.contiguous()
    for k in range(len(a)):
        row = r[k] * len(gram)
        for j in range(k):
            norms.addcmul_(a[k] * a[j], table.index_select(0, row + r[j]), value=2)
        norms.addcmul_(a[k] * a[k], table.index_select(0, row + r[k]))
    return norms
