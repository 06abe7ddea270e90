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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.classes.batch_draws import BatchDraws
from llm_mdp.verify.classes.batch_sufficiency import Table, find_sums
from llm_mdp.verify.classes.calls import Subject
from llm_mdp.verify.classes.convolution import CHUNK
from llm_mdp.verify.classes.partition import Partition, partition
from llm_mdp.verify.geometry import Geometry, geometry_of
from llm_mdp.verify.method import Method
from llm_mdp.verify.moments import Moments


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
    return _moments(find_sums(subject, partitions, prompts, torch.Generator().manual_seed(0)), geometry_of(enumeration))


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
