"""Mean and spread of an update that holds the groups of n prompts, by classes of responses.

The weights of a response of class c and prompt x depend on a, what the others of its group add up to, and on
Ω = Σ θ(s_g) over all groups (`pools`), R_m the law of Ω over m groups and ρ_x that of prompts:

    E g    = n K Σ_x ρ_x Σ_c q_c Σ_{a, θ, Ω} P(a, θ | c) R_{n-1}(Ω - θ) Σ_t w_t(c, a, Ω) y_ct
    E |g|² = one response with itself, by S_c[t, t'] = E[<s_t, s_t'> | c]
           + two of one group:   n K (K-1) Σ_x ρ_x Σ_cd q_c q_d Σ_τ P_{K-2}(τ) Σ_Ω R_{n-1}(Ω - θ) w_c w_d <y_c, y_d>
           + two of two groups:  n (n-1) Σ_Ω Σ_θθ' R_{n-2}(Ω - θ - θ') <G(θ, Ω), G(θ', Ω)>,
             G(θ, Ω) = K Σ_x ρ_x Σ_c q_c Σ_a P(a, θ | c) Σ_t w_t(c, a, Ω) y_ct

with y_ct = E[s_t | c], s_t the score of token t. P(a, θ | c) is the law, given an own response, of what the others of
the group add up to and of the group's θ; where groups are left out, it and R are of groups that are kept.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.verify.classes.batch_draws import BatchDraws
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import CHUNK
from llm_mdp.verify.classes.partition import Partition, partition
from llm_mdp.verify.classes.pools import OWN, POOLS, Own, Pool
from llm_mdp.verify.classes.representatives import HOWS
from llm_mdp.verify.classes.sufficiency import AGREE, FIRST, MAX_ENTRIES, UNITS
from llm_mdp.verify.geometry import Geometry, geometry_of
from llm_mdp.verify.method import Method
from llm_mdp.verify.moments import Moments
from llm_mdp.verify.weights import QUIET

TRIED = 6_000
"""Batches on which sums must hold, fewer where they are large."""
MAX_PRODUCTS = 2e10
"""Values of Ω times squared number of kinds of groups times directions of scores."""


def batch_class_moments(estimator: Estimator, enumeration: Enumeration, prompts: int) -> Moments:
    """Mean and trace of the covariance of updates of `prompts` ≥ 2 groups that lose none of them. What they cost is not
    counted, nor how many are kept.

    Raises:
        Refused: if the weights depend on more than classes say.
        TooLarge: if what they depend on takes too many values.
        NothingKept: if it leaves out every group.
    """
    subject = Subject(estimator, enumeration)
    partitions = [partition(enumeration, prompt, law) for prompt, law in enumerate(subject.law)]
    return _moments(_find(subject, partitions, prompts, torch.Generator().manual_seed(0)), geometry_of(enumeration))


# --- what the weights depend on ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """All weights of a batch's responses."""

    draws: BatchDraws
    words: str
    weights: Float[Tensor, "who omega T"]
    loud: Float[Tensor, "who omega"] | None
    """1 where a group that holds this response has a weight other than 0; None: that depends on more."""
    tries: int


def _find(subject: Subject, partitions: list[Partition], number: int, generator: torch.Generator) -> Table:
    """The cheapest sums that are not refused, and all weights by them."""
    reasons: list[Exception] = []
    owns = (True,) if _own_matters(subject, partitions, number, generator) else (False, True)
    for deciding in (("rewards",), ("classes",)) if _drops(subject, partitions, generator) else (None,):
        for by_leaf in owns:
            for pool in POOLS:
                given = {"deciding": deciding, "by_leaf": by_leaf, "generator": generator}
                try:
                    if not _pool_holds(BatchDraws(subject, partitions, OWN[0], pool, number, **given)):
                        continue
                    for own in OWN:
                        draws = BatchDraws(subject, partitions, own, pool, number, **given)
                        if _looks_sufficient(draws) and (table := _table(draws, own, pool)) is not None:
                            return table
                except (Refused, TooLarge) as error:
                    reasons.append(error)
    large = [error for error in reasons if isinstance(error, TooLarge)]
    if large:
        raise TooLarge(
            f"its weights depend on much of the batch, and {large[0]}, are too many to go through"
        ) from large[0]
    if reasons:
        raise reasons[-1]
    raise Refused("its weights depend on more of the batch than rewards, lengths and finishes of its groups")


def _drops(subject: Subject, partitions: list[Partition], generator: torch.Generator) -> bool:
    """Does it leave out groups? Tried on a thousand of each prompt."""
    shape = (500, subject.group_size)
    for number, classes in enumerate(partitions):
        even = torch.randint(len(classes.leaf), shape, generator=generator)
        typical = torch.multinomial(classes.chance, math.prod(shape), replacement=True, generator=generator).view(shape)
        for group in (even, typical, even[:, :1].expand(shape)):
            if not (subject(torch.full((500,), number), classes.leaf[group])[..., -1] > 0).all():
                return True
    return False


def _own_matters(subject: Subject, partitions: list[Partition], number: int, generator: torch.Generator) -> bool:
    """Does another response of the same class have other weights, in the same company?"""
    which = torch.randint(len(partitions), (FIRST, number), generator=generator)
    leaf, changed = torch.zeros(2, FIRST, number, subject.group_size, dtype=torch.int64)
    for prompt, classes in enumerate(partitions):
        here = which == prompt
        place = torch.randint(len(classes.leaf), (int(here.sum()), subject.group_size), generator=generator)
        first, end = classes.first[classes.kind[place]], classes.first[classes.kind[place] + 1]
        other = first + (torch.rand(place.shape, generator=generator) * (end - first)).long()
        leaf[here], changed[here] = classes.leaf[place], classes.leaf[torch.minimum(other, end - 1)]
    group, at = (torch.randint(most, (FIRST,), generator=generator) for most in leaf.shape[1:])
    rows = torch.arange(FIRST)
    another = leaf.clone()
    another[rows, group, at] = changed[rows, group, at]
    own = group * subject.group_size + at
    one, two = (subject(which, each.flatten(1))[rows, own] for each in (leaf, another))
    both = (one[:, -1] > 0) & (two[:, -1] > 0)
    tolerance = _tolerance(subject, partitions, float(one.abs().max()))
    return not bool(_alike(one[both, :-3], two[both, :-3], tolerance).all())


def _pool_holds(draws: BatchDraws) -> bool:
    """Do the weights of a group stay the same when the other groups are drawn anew, with the same sum?"""
    for how in HOWS:
        prompt, position = draws.independent(FIRST, evenly=how != "typical")
        code, kind = draws.codes(prompt, position)
        rest = draws.laws.find(draws.number - 1, code[:, 1:].sum(-1))
        known = (rest >= 0) & (kind >= 0).all(-1)
        prompt, position, kind, rest = prompt[known], position[known], kind[known], rest[known]
        types = draws.others(rest, how)
        others, new = draws.of_types(types, how)
        if how == "coinciding":
            new = torch.where((types == kind[:, :1])[..., None], position[:, :1], new)
        # The own group comes last in the other batch.
        one = draws.ask(prompt, position)[:, 0]
        two = draws.ask(torch.cat([others, prompt[:, :1]], 1), torch.cat([new, position[:, :1]], 1))[:, -1]
        if not _alike(one, two, _tolerance(draws.subject, draws.partitions, float(one.abs().max()))).all():
            return False
    return True


def _looks_sufficient(draws: BatchDraws) -> bool:
    """Do a few hundred batches and as many other ones with the same who and Ω agree?"""
    who, omega = draws.possible().nonzero(as_tuple=True)
    for how in HOWS:
        chosen = torch.randint(len(who), (FIRST,), generator=draws.generator)
        one, two = (_own_rows(draws, who[chosen], omega[chosen], kind) for kind in ("typical", how))
        if not _alike(one, two, _tolerance(draws.subject, draws.partitions, float(one.abs().max()))).all():
            return False
    return True


def _own_rows(draws: BatchDraws, who: Int[Tensor, " R"], omega: Int[Tensor, " R"], how) -> Float[Tensor, "R T"]:
    prompt, position, group, at = draws.draw(who, omega, how)
    return draws.ask(prompt, position)[torch.arange(len(who)), group, at]


def _table(draws: BatchDraws, own: Own, pool: Pool) -> Table | None:
    """The weights of every who in every Ω; None if batches are found that have others."""
    subject = draws.subject
    size = max(1, CHUNK // (draws.number * subject.group_size * subject.enumeration.tree.horizon))
    weights, largest = _filled(draws, size, pool)
    most = float(weights.abs().max())
    tolerance, least = _tolerance(subject, draws.partitions, most), most * 2.0**-QUIET
    loud, count = largest > least, max(500, min(TRIED, 50 * size))
    determined = True
    for prompt, position in _company(draws, count):
        for some, rows in zip(prompt.split(size), position.split(size)):
            answers, (who, omega) = draws.ask(some, rows), draws.find(some, rows)
            known = (who >= 0) & (omega >= 0)[:, None, None]
            place = (who.clamp(min=0), omega.clamp(min=0)[:, None, None].expand_as(who))
            if not (_alike(answers, weights[place], tolerance) | ~known).all():
                return None
            heard = answers.abs().amax((-2, -1)) > least
            determined &= bool(((heard[..., None] == loud[place]) | ~known).all())
    words = f"{own.words} in its group, and of the whole batch {pool.words}"
    return Table(draws, words, weights, loud.double() if determined else None, count)


def _filled(
    draws: BatchDraws, size: int, pool: Pool
) -> tuple[Float[Tensor, "who omega T"], Float[Tensor, "who omega"]]:
    """The weights of every who in every Ω, and the largest of its group. Every batch has those of all its responses, so
    few batches have them all."""
    possible, rows = draws.possible(), draws.number * draws.subject.group_size
    horizon = draws.subject.enumeration.tree.horizon
    keys = int(possible.sum())
    entries = max(keys // 4, draws.omegas) * rows * horizon
    if entries > MAX_ENTRIES:
        raise TooLarge(
            f"{pool.words} take {draws.omegas:,} values: {entries:.0e} weights to ask for (at most {MAX_ENTRIES:.0e})"
        )
    weights = torch.zeros(*possible.shape, horizon, dtype=torch.float64)
    largest = torch.zeros(possible.shape, dtype=torch.float64)
    missing = possible.clone()
    while missing.any():
        omega, who = missing.T.nonzero(as_tuple=True)
        order = torch.randperm(len(who), generator=draws.generator)
        order = order[omega[order].argsort(stable=True)]
        first = torch.searchsorted(omega, omega)
        number = torch.searchsorted(omega, omega, right=True) - first
        # One of eight of every Ω, for the others will come with them.
        asked = order[torch.arange(len(order)) - first < (number / 8).ceil()]
        for part in asked.split(size):
            prompt, position, group, at = draws.draw(who[part], omega[part], "quick")
            answers, (here, batch) = draws.ask(prompt, position), draws.find(prompt, position)
            heard = answers.abs().amax((-2, -1))
            known = (here >= 0) & (batch >= 0)[:, None, None]
            place = (here[known], batch[:, None, None].expand_as(here)[known])
            weights[place], largest[place] = answers[known], heard[..., None].expand_as(here)[known]
            missing[place] = False
            # The own one last, for it was asked for: that of another response could be improbable.
            own, row = (who[part], omega[part]), torch.arange(len(part))
            weights[own], largest[own] = answers[row, group, at], heard[row, group]
            missing[own] = False
    return weights, largest


def _company(draws: BatchDraws, count: int):
    """Batches to compare a table with: in every way of drawing, a fifth each."""
    fifth = count // 5 + 1
    who, omega = draws.possible().nonzero(as_tuple=True)
    for how in HOWS:
        chosen = torch.randint(len(who), (fifth,), generator=draws.generator)
        yield draws.draw(who[chosen], omega[chosen], how)[:2]
    for evenly in (False, True):
        yield draws.independent(fifth, evenly)


def _tolerance(subject: Subject, partitions: list[Partition], size: float) -> tuple[float, float]:
    """What weights of the same batch may differ by: a share of their size, and a number."""
    unit = torch.finfo(getattr(torch, subject.precision)).eps
    if unit > 1e-6:
        raise Refused(f"it computes in {subject.precision}, too coarse to tell what its weights depend on")
    share, reward = max(AGREE, UNITS * unit), torch.cat([classes.reward for classes in partitions])
    largest, spread = float(reward.abs().max()), float(reward.max() - reward.min())
    if spread == 0:
        return share, share * size + 1e-12 * largest
    return share, (share + UNITS * torch.finfo(torch.float64).eps * min(largest / spread, 1e9)) * size


def _alike(one: Float[Tensor, "*shape T"], two: Float[Tensor, "*shape T"], tolerance: tuple[float, float]) -> Tensor:
    share, number = tolerance
    return ((one - two).abs() <= share * two.abs() + number).all(-1)


# --- moments ----------------------------------------------------------------------------------------------------------


def _moments(table: Table, geometry: Geometry) -> Moments:
    draws, e = table.draws, geometry.enumeration
    laws, n, size = draws.laws, draws.number, draws.subject.group_size
    following = torch.where(draws.before >= 0, laws.chances[n - 1][draws.before.clamp(min=0)], 0.0)
    mean = torch.zeros(e.n_edges, dtype=torch.float64)
    second = weights = loud = 0.0
    parts = []
    for number, (rho, draw) in enumerate(zip((draws.rho / draws.kept).tolist(), draws.draws)):
        classes, horizon = draw.classes, e.tree.horizon
        rows = slice(draws.first_who[number], draws.first_who[number + 1])
        shape = (draw.units, draws.seens[number], draws.omegas)
        own = table.weights[rows].view(*shape, horizon)
        mass = _mass(draws, number)
        feature = draws.feature_of_unit(number)
        chance = classes.chance if draws.by_leaf else classes.probability
        # P(a, Ω | unit)
        law = (mass @ following.T)[feature]
        average = torch.einsum("uao,uaot->ut", law, own)
        scale = n * size * rho
        edge = e.edge[number, classes.leaf]
        mean.index_add_(0, edge.flatten(), (scale * classes.chance[:, None] * average[draw.unit]).flatten())
        squares = torch.einsum("uao,uaot,uaos->uts", law, own, own)
        second += scale * _with_itself(geometry, classes.chance, edge, squares[draw.unit])
        weights += scale * float(chance @ torch.einsum("uao,uaot->u", law, own.abs()))
        if table.loud is not None:
            loud += rho * float(chance @ torch.einsum("uao,uao->u", law, table.loud[rows].view(shape)))
        directions = _directions(geometry, classes, edge, draws.by_leaf)
        second += scale * (size - 1) * _of_one_group(draws, number, own, following, directions)
        parts.append((rho * size * chance[:, None, None] * mass[feature], own, directions))
    second += n * (n - 1) * _of_two_groups(draws, parts)
    gradient = geometry.gradient(mean)
    return Moments(
        gradient,
        max(second - float(gradient @ gradient), 0.0),
        math.sqrt(max(second, 0.0)),
        precision=draws.subject.precision,
        weights=weights,
        with_signal=None if table.loud is None else min(loud, 1.0),
        method=Method("classes", table.words, draws.omegas * max(draws.seens), table.tries, n),
    )


def _mass(draws: BatchDraws, number: int) -> Float[Tensor, "F a V"]:
    """P(a, θ | own feature) of one prompt."""
    draw, kinds = draws.draws[number], draws.kind_of_rest[number]
    chance = draw.laws.chances[draw.others]
    mass = torch.zeros(len(kinds), draws.seens[number], len(draws.laws.code), dtype=torch.float64)
    for f, kind in enumerate(kinds):
        there = kind >= 0
        mass[f].index_put_((draws.seen[number][there], kind[there]), chance[there], accumulate=True)
    return mass


def _with_itself(
    geometry: Geometry, chance: Float[Tensor, " N"], edge: Int[Tensor, "N T"], squares: Float[Tensor, "N T T"]
) -> float:
    """Σ_i p_i Σ_tt' squares[i, t, t'] <s_it, s_it'>."""
    values, vectors = torch.linalg.eigh(squares)
    roots = (values.clamp(min=0).sqrt()[:, None, :] * vectors).permute(2, 0, 1)
    return float(geometry.within(chance, edge, roots).diagonal().sum())


def _directions(
    geometry: Geometry, classes: Partition, edge: Int[Tensor, "N T"], by_leaf: bool
) -> Float[Tensor, "U T parameters"]:
    """y_ut by the policy's parameters."""
    unit = torch.arange(len(classes.leaf)) if by_leaf else classes.kind
    share = torch.ones_like(classes.chance) if by_leaf else classes.chance / classes.probability[classes.kind]
    units, horizon, mask = int(unit.max()) + 1, edge.shape[1], geometry.enumeration.mask[classes.leaf]
    rows = torch.zeros(units * horizon, geometry.enumeration.n_edges, dtype=torch.float64)
    row = unit[:, None] * horizon + torch.arange(horizon)
    rows.index_put_((row[mask], edge[mask]), share[:, None].expand(edge.shape)[mask], accumulate=True)
    return torch.stack([geometry.gradient(each) for each in rows]).unflatten(0, (units, horizon))


def _of_one_group(
    draws: BatchDraws,
    number: int,
    own: Float[Tensor, "U a omega T"],
    following: Float[Tensor, "omega V"],
    directions: Float[Tensor, "U T parameters"],
) -> float:
    """Σ q q' P_{K-2}(τ) R_{n-1}(Ω - θ) <Σ_t w_t y_t, Σ_t w'_t y'_t> over two responses to one prompt."""
    draw = draws.draws[number]
    laws, others, classes = draw.laws, draw.others, draw.classes
    if others == 0:
        return 0.0
    chance = classes.chance if draws.by_leaf else classes.probability
    feature, products = draws.feature_of_unit(number), torch.einsum("utp,vsp->utvs", directions, directions)
    units = [(feature == f).nonzero()[:, 0] for f in range(len(laws.code))]
    after = laws.find(others, laws.codes[others - 1] + laws.code[:, None])
    total = 0.0
    for f, one in enumerate(units):
        for g, two in enumerate(units[: f + 1]):
            if not (len(one) and len(two)):
                continue
            # Own response of feature f: one of feature g is among its others, and the other way round.
            with_g, with_f = after[g], after[f]
            kind = torch.where(with_g >= 0, draws.kind_of_rest[number][f][with_g.clamp(min=0)], -1)
            there = (kind >= 0) & (with_f >= 0)
            seen = draws.seen[number]
            key = torch.stack([seen[with_g[there]], seen[with_f[there]], kind[there]])
            cases, which = key.unique(dim=1, return_inverse=True)
            mass = torch.zeros(cases.shape[1], dtype=torch.float64).index_add_(
                0, which, laws.chances[others - 1][there]
            )
            known = products[one][:, :, two] * chance[one][:, None, None, None] * chance[two][None, None, :, None]
            for (a, b, v), m in zip(cases.T.tolist(), mass.tolist()):
                left = own[one, a] * following[:, v][:, None]
                block = torch.einsum("uot,vos->utvs", left, own[two, b])
                total += m * float((block * known).sum()) * (1 if f == g else 2)
    return total


def _of_two_groups(draws: BatchDraws, parts) -> float:
    """Σ_Ω Σ_θθ' R_{n-2}(Ω - θ - θ') <G(θ, Ω), G(θ', Ω)>."""
    laws, n, kinds = draws.laws, draws.number, len(draws.laws.code)
    if n == 1:
        return 0.0
    coordinates = _coordinates(torch.cat([directions.flatten(0, 1) for *_, directions in parts]))
    rank = coordinates.shape[1]
    if draws.omegas * kinds**2 * rank > MAX_PRODUCTS:
        raise TooLarge(f"{draws.omegas:,} kinds of batches of {kinds:,} kinds of groups")
    split = [own.shape[0] * own.shape[-1] for _, own, _ in parts]
    there = laws.find(n - 2, laws.codes[n - 1][:, None] - laws.code)
    law = torch.where(there >= 0, laws.chances[n - 2][there.clamp(min=0)], 0.0)
    size, total = max(1, CHUNK // (kinds * max(kinds, rank))), 0.0
    for omega in torch.arange(draws.omegas).split(size):
        gradients = torch.zeros(kinds, len(omega), rank, dtype=torch.float64)
        for (mass, own, _), place in zip(parts, coordinates.split(split)):
            each = torch.einsum("uaot,utr->uaor", own[:, :, omega], place.view(own.shape[0], own.shape[-1], rank))
            gradients += torch.einsum("uav,uaor->vor", mass, each)
        before = draws.before[omega]
        both = torch.where((before >= 0)[..., None], law[before.clamp(min=0)], 0.0)
        by_omega = gradients.transpose(0, 1)
        total += float(((both @ by_omega) * by_omega).sum())
    return total


def _coordinates(directions: Float[Tensor, "A parameters"]) -> Float[Tensor, "A r"]:
    """As many numbers as there are dimensions, with the same inner products."""
    left, values, _ = torch.linalg.svd(directions, full_matrices=False)
    return left * values
