"""Drawing worlds for a sampled certificate, and what is kept of them: sums, whatever the number of worlds.

Every world gives Z = kept · (g - ∇J) - c. Here c = Σ c(W₀,ₜ₋₁) ∇log π(wₜ | W₀,ₜ₋₁), a baseline of the prefix alone, has
expectation zero where the policy itself draws (Lemma 2), so E Z is the bias, and less noisy without what a baseline
removes. c(prefix) is the mean weight of the tokens after that prefix
(each counted with |∇log π|², which makes |Z| smallest), over all responses where they are enumerated and
over draws of their own, made beforehand, where they are not; 0 where another policy or temperature draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import Groups, all_groups
from llm_mdp.exact.worlds import ExactSampler, TreeBranches, TreeSampler
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.intervals import Squares
from llm_mdp.verify.moments import displaced_gradients, updates_first
from llm_mdp.verify.score_products import node_gram, score_squares, squares
from llm_mdp.verify.weight_sums import Means, Seen, WholeResponses, look

CHUNK = 20_000
"""Groups that are in memory at one time."""
PILOT = 0.1
"""Draws for the baseline, as a part of the others (and at most one chunk)."""
MEASURED = 100_000
"""Draws of which |Z| is measured, and not only the mean of Z."""
PAIRS = 2_000_000
"""Pairs of tokens, in all draws together, whose scores are multiplied for that; so fewer draws of long groups."""
TRIED = 256
"""Responses that the search for the longest Z tries, divided by the size of a group."""


@dataclass(frozen=True)
class Draws:
    """What was seen of independent worlds."""

    count: int
    """n, worlds."""
    kept: float
    """Fraction of them that the estimator kept."""
    mean: Float[Tensor, " parameters"]
    """Mean of kept · g - c."""
    square: float
    """Mean of |g|² over those kept (over some of them, as `along` and `across`)."""
    trace: float
    """Of the covariance of their g."""
    nonzero: int
    """How many kept worlds had a gradient that is not zero."""
    along: Squares
    """Of the part of Z along the target."""
    across: Squares
    """Of the part perpendicular to it."""
    longest: float
    """The largest |Z| of all worlds that can occur, see `draw`."""


def draw(
    estimator: Estimator, enumeration: Enumeration, target: Float[Tensor, " parameters"], worlds: int, seed: int
) -> Draws:
    """`worlds` independent worlds.

    Estimators of one response without branches are drawn as multinomial counts of the enumerated responses: the
    distribution is that of a loop over samples, at a cost that does not grow with their number, and `longest` is exact.

    For groups and branches it is searched for: every response with its likes and with the most extreme others, then by
    exchanging the responses of the longest groups one by one, branch rewards at both ends of the rewards of the
    instance; and it is no less than what was drawn. The search finds the maximum wherever all groups can be tried, but
    is no proof.

    Raises:
        NothingKept: the estimator left out all of them.
    """
    view = _View(enumeration, target)
    if updates_first(estimator):
        gradients, chance = displaced_gradients(estimator, enumeration)
        square = gradients.square().sum(-1)
        return _counted((gradients,) * 2, gradients @ view.unit, (square,) * 2, chance, worlds, seed, view)
    if _is_count(estimator, enumeration):
        return _responses(estimator, view, worlds, seed)
    return _drawn(estimator, view, worlds, seed)


def pull_back(weights: Float[Tensor, "batches E"], enumeration: Enumeration) -> Float[Tensor, "batches parameters"]:
    """Σ weight ∇log π over the edges."""
    return (enumeration.sparse_scores.T @ weights.T).T


class _View:
    """A target, and the lengths of sums of scores."""

    def __init__(self, enumeration: Enumeration, target: Float[Tensor, " parameters"]):
        self.enumeration = enumeration
        self.size = float(target.norm())
        self.unit = target / self.size if self.size > 0 else target
        self.edge_along = enumeration.sparse_scores @ self.unit

    def dense(self, edge: Int[Tensor, "W n"]) -> bool:
        """Are sums over all edges quicker than inner products of pairs of tokens?"""
        return self.enumeration.scores.numel() <= 100 * edge.shape[1] ** 2

    def squares(self, weights: list[Float[Tensor, "W n"]], edge: Int[Tensor, "W n"]) -> list[Float[Tensor, " W"]]:
        """|Σ weight ∇log π(edge)|² of every world, for each of several weights of the same edges."""
        scores = self.enumeration.scores
        if node_gram(self.enumeration) is None and self.dense(edge):
            sums = [torch.zeros(len(edge), len(scores), dtype=torch.float64).scatter_add_(1, edge, w) for w in weights]
            return [(each @ scores).square().sum(-1) for each in sums]
        return squares(weights, edge, self.enumeration)

    def z_squares(self, along: Tensor, square: Tensor, kept: Tensor | float) -> tuple[Tensor, Tensor]:
        """The squares of Z's parts along the target and across it, from those of kept · g - c."""
        return (along - kept * self.size).square(), (square - along.square()).clamp(min=0)


@dataclass(frozen=True)
class _Worlds:
    """Token weights of some worlds, and where a baseline may be taken off."""

    weights: Float[Tensor, "W n"]
    edge: Int[Tensor, "W n"]
    own: Bool[Tensor, "W n"]
    """Tokens that the policy drew."""
    kept: Float[Tensor, " W"]

    @classmethod
    def of(cls, seen: Seen, enumeration: Enumeration, worlds: int | None = None) -> "_Worlds":
        """The first so many of them; None: all."""
        return cls(*seen.tokens(enumeration, worlds), seen.kept[:worlds])

    def without(self, baseline: Float[Tensor, " E"]) -> Float[Tensor, "W n"]:
        return self.weights - baseline.index_select(0, self.edge.flatten()).view_as(self.edge) * self.own


def _baseline(weights: Float[Tensor, " E"], own: Float[Tensor, " E"], enumeration: Enumeration) -> Float[Tensor, " E"]:
    """c(prefix) for every edge: the mean weight of the tokens after the prefix, each counted with |∇log π|².

    Args: weights: their sum. own: how many tokens of the policy they belong to.
    """
    vocab_size = enumeration.tree.vocab_size
    sums = (torch.stack([weights, own]) * score_squares(enumeration)).unflatten(-1, (-1, vocab_size)).sum(-1)
    mean = torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1e-300), 0.0)
    return mean.repeat_interleave(vocab_size)


# --- counted ----------------------------------------------------------------------------------------------------------


def _is_count(estimator: Estimator, enumeration: Enumeration) -> bool:
    """One response, nothing drawn besides: what a sample shows is a function of how often each response was drawn."""
    if estimator.group_size > 1:
        return False
    probe = TreeSampler(enumeration, 4, torch.Generator().manual_seed(0))
    estimator.collect(probe)
    return probe.drawn is None and probe.kept is None


def _responses(estimator: Estimator, view: _View, worlds: int, seed: int) -> Draws:
    enumeration, every, chance, whole = view.enumeration, [], [], WholeResponses(estimator, view.enumeration)
    for number, chunk in enumerate(all_groups(enumeration, 1)):
        sampler = ExactSampler(enumeration, chunk)
        every.append(_Worlds.of(look(whole, sampler, check=number == 0), enumeration))
        chance.append(sampler.weight)
    edge, raw, own = (torch.cat([getattr(each, name) for each in every]) for name in ("edge", "weights", "own"))
    sums = torch.zeros(2, enumeration.n_edges, dtype=torch.float64)
    for row, values in zip(sums, (raw * own, own)):
        row.index_add_(0, edge.flatten(), (values * torch.cat(chance)[:, None]).flatten())
    baseline = _baseline(sums[0], sums[1], enumeration)
    weights = torch.cat([each.without(baseline) for each in every])
    place = torch.stack([torch.arange(len(edge))[:, None].expand(edge.shape).flatten(), edge.flatten()])
    tables = [
        torch.sparse_coo_tensor(place, each.flatten(), (len(edge), enumeration.n_edges), check_invariants=False)
        for each in (weights, raw)
    ]
    along, squares = (weights * view.edge_along[edge]).sum(-1), view.squares([weights, raw], edge)
    return _counted(tables, along, squares, torch.cat(chance), worlds, seed, view)


def _counted(
    tables: Sequence[Float[Tensor, "W n"]],
    along_target: Float[Tensor, " W"],
    squares: Sequence[Float[Tensor, " W"]],
    chance: Float[Tensor, " W"],
    worlds: int,
    seed: int,
    view: _View,
) -> Draws:
    """From the multinomial counts of worlds. `tables`: g - c and g of every world, by parameters or by edges (sparse);
    `squares`: of their lengths."""
    probability = chance.numpy() / float(chance.sum())
    counts = torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).multinomial(worlds, probability))
    part = counts.double() / worlds
    sums = torch.stack([each.T @ part for each in tables])
    mean, raw_mean = pull_back(sums, view.enumeration) if tables[0].is_sparse else sums
    parts = view.z_squares(along_target, squares[0], 1.0)
    along, across = (_squares(float(part @ y), float(part @ y.square()), worlds) for y in parts)
    square = float(part @ squares[1])
    return Draws(
        count=worlds,
        kept=1.0,
        mean=mean,
        square=square,
        trace=max(square - float(raw_mean @ raw_mean), 0.0),
        nonzero=int(counts[squares[1] > 0].sum()),
        along=along,
        across=across,
        longest=math.sqrt(float((parts[0] + parts[1])[chance > 0].max())),
    )


def _squares(mean: float, mean_of_squares: float, count: int) -> Squares:
    return Squares(mean, max(mean_of_squares - mean**2, 0.0), count)


# --- drawn one by one -------------------------------------------------------------------------------------------------


def _drawn(estimator: Estimator, view: _View, worlds: int, seed: int) -> Draws:
    """From drawn worlds, at most `CHUNK` in memory."""
    enumeration, generator = view.enumeration, torch.Generator().manual_seed(seed)

    def some(number: int) -> TreeSampler:
        return TreeSampler(enumeration, min(CHUNK, number), generator)

    whole, trial, every = WholeResponses(estimator, enumeration), Means(enumeration), Means(enumeration)
    first = look(whole, some(math.ceil(PILOT * worlds)), check=True)
    trial.add(first)
    baseline, edge = _baseline(trial.weights, trial.own, enumeration), first.tokens(enumeration, 1)[1]
    measure = min(worlds, MEASURED if view.dense(edge) else max(2_000, PAIRS // edge.shape[1] ** 2))
    raw_sums = torch.zeros(enumeration.n_edges, dtype=torch.float64)
    totals, kept_measured, square, largest, measured = torch.zeros(4, dtype=torch.float64), 0.0, 0.0, 0.0, 0
    for start in range(0, worlds, CHUNK):
        seen = look(whole, some(worlds - start), first.on_policy)
        every.add(seen)
        if measured == measure:
            continue
        each = _Worlds.of(seen, enumeration, measure - measured)
        measured += len(each.kept)
        weights = each.without(baseline)
        long, raw = view.squares([weights, each.weights], each.edge)
        parts = view.z_squares((weights * view.edge_along[each.edge]).sum(-1), long, each.kept)
        totals += torch.stack([power.sum() for y in parts for power in (y, y.square())])
        raw_sums.index_add_(0, each.edge.flatten(), each.weights.flatten())
        square += float(raw.sum())
        kept_measured += float(each.kept.sum())
        largest = max(largest, float((parts[0] + parts[1]).max()))
    sums = torch.stack([every.weights - baseline * every.own, raw_sums])
    kept, nonzero = every.kept, every.nonzero
    if not kept:
        raise NothingKept(
            f"the estimator left out every one of {worlds} groups; draw more responses or another instance."
        )
    along, along_power, across, across_power = (totals / measured).tolist()
    mean, raw_mean = pull_back(sums / torch.tensor([[worlds], [max(kept_measured, 1.0)]]), enumeration)
    square /= max(kept_measured, 1.0)
    return Draws(
        count=worlds,
        kept=kept / worlds,
        mean=mean,
        square=square,
        trace=max(square - float(raw_mean @ raw_mean), 0.0),
        nonzero=nonzero,
        along=_squares(along, along_power, measured),
        across=_squares(across, across_power, measured),
        longest=max(math.sqrt(largest), _longest(whole, view, baseline)),
    )


class _Corners(ExactSampler):
    """Branches have the lowest or the highest reward of the instance, at random."""

    def _branches(self, rollouts, row, step, drawn, temperature):
        rewards = self.enumeration.response_reward
        upper = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        upper[0::8], upper[1::8] = True, False
        reward = torch.where(upper, rewards.max(), rewards.min())
        return TreeBranches(row, step, torch.where(drawn, reward, 0.0), tokens=torch.zeros_like(reward))


def _longest(whole: WholeResponses, view: _View, baseline: Float[Tensor, " E"]) -> float:
    """The largest |Z| that a search over groups of responses finds; see `draw`."""
    enumeration, members, best = view.enumeration, whole.estimator.group_size, 0.0
    corners = 16 if members == 1 else 1

    def lengths(prompt: int, groups: Tensor) -> Tensor:
        groups = groups.repeat_interleave(corners, 0)
        which = torch.full((len(groups),), prompt)
        corner = _Corners(enumeration, Groups(which, groups, torch.ones(len(groups), dtype=torch.float64)))
        worlds = _Worlds.of(look(whole, corner), enumeration)
        weights = worlds.without(baseline)
        along = (weights * view.edge_along[worlds.edge]).sum(-1)
        parts = view.z_squares(along, view.squares([weights], worlds.edge)[0], worlds.kept)
        return (parts[0] + parts[1]).sqrt().unflatten(0, (-1, corners)).amax(-1)

    for prompt in range(enumeration.n_prompts):
        pool, extremes = _extreme_responses(enumeration, prompt, max(TRIED // members, 10))
        alike, few = (each[:, None].expand(-1, members) for each in (pool, extremes))
        groups = torch.cat([alike, _exchanged(alike, 0, extremes), _exchanged(few, 0, pool)])
        before = -1.0
        while (found := lengths(prompt, groups)).max() > before:
            before, top = float(found.max()), groups[found.topk(min(8, len(groups))).indices]
            groups = torch.cat([_exchanged(top, place, pool) for place in range(members)])
        best = max(best, before)
    return best


def _exchanged(groups: Int[Tensor, "G K"], place: int, responses: Int[Tensor, " R"]) -> Int[Tensor, "GR K"]:
    """Every group with each of the responses at this place."""
    changed = groups.repeat_interleave(len(responses), 0)
    changed[:, place] = responses.repeat(len(groups))
    return changed


def _extreme_responses(
    enumeration: Enumeration, prompt: int, number: int
) -> tuple[Int[Tensor, " R"], Int[Tensor, " few"]]:
    """At most `number` responses: those of the highest and lowest rewards, the longest, the likeliest and the least
    likely ones; and the first of each kind."""
    kinds = [
        enumeration.response_reward[prompt],
        -enumeration.response_reward[prompt],
        enumeration.length.double(),
        enumeration.probability[prompt],
        -enumeration.probability[prompt],
    ]
    if enumeration.tree.n_leaves <= number:
        every = torch.arange(enumeration.tree.n_leaves)
    else:
        every = torch.cat([kind.topk(number // len(kinds)).indices for kind in kinds]).unique()
    return every, torch.stack([kind.argmax() for kind in kinds]).unique()
