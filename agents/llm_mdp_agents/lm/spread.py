"""tr Cov of an estimator in all parameters of a language model, without its score matrix.

The covariance of the gradient by the logits of a small tree, C = Σ_j f_j f_jᵀ, is known exactly (the second moments of
classes of responses, `verify.classes.moments.Pieces`). In the parameters it is Σ_j |B f_j|², B the backward pass, which
takes as many of them as C has directions. So the few longest f_j are taken one by one, and of the rest random signs are
drawn: E_ε |B Σ_j ε_j f_j|² is its share of the sum, and all the noise of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.moments import Pieces, pieces_of
from llm_mdp.verify.classes.partition import partition
from llm_mdp.verify.classes.sufficiency import find_sufficient
from llm_mdp.verify.geometry import TableGeometry, geometry_of
from llm_mdp.verify.moments import covariance

MOST_EDGES = 3_000
"""(prefix, token) pairs of one prompt whose second moments are decomposed: half a minute of one core."""
MOST_GROUPS = 20_000
"""Groups that are taken one by one where classes do not do."""
REST, MOST_EXACT = 0.06, 8
"""Directions are taken one by one until this share of C is left, at most so many."""
LEAST_PROBES = 6
"""Fewer say too little of their own error."""
CONFIDENCE, NORMAL = 0.95, 2.5758293035489004
"""What is said of an interval, and the normal quantile that it is made with, that of 99 %: squares are skewed, and the
mean of a few of them scatters more than Student's t allows for (a test counts the misses)."""


@dataclass(frozen=True)
class Spread:
    """tr Cov of one estimate in the model's parameters."""

    trace: float
    """What the directions one by one give, and the mean over the probes of the rest."""
    interval: tuple[float, float]
    """Holds it with at least this `confidence`."""
    exact: int
    """Directions that were taken one by one."""
    probes: int
    """0: these are all."""
    confidence: float = CONFIDENCE


class Block(NamedTuple):
    """Some columns of factors, their rows those of the edges from `first` on, and 0 elsewhere."""

    first: int
    columns: Float[Tensor, "R F"]

    def at(self, weights: Float[Tensor, " F"], edges: int) -> Float[Tensor, " E"]:
        """The sum of the columns with these weights."""
        rows = len(self.columns)
        return pad(self.columns @ weights, (self.first, edges - self.first - rows))


def spread(
    factors: list[Block],
    edges: int,
    length_of: Callable[[Float[Tensor, " E"]], float],
    probes: int,
    generator: torch.Generator,
) -> Spread:
    """Σ over all columns f of |B f|².

    Args:
        factors: `covariance_factors`.
        edges: E.
        length_of: |B z|² of a table of derivatives by logits: one backward pass.
        probes: at least LEAST_PROBES.

    Raises:
        ValueError: for fewer.
    """
    if probes < LEAST_PROBES:
        raise ValueError(f"probes is {probes}; an interval needs at least {LEAST_PROBES}.")
    square = torch.cat([block.columns.square().sum(0) for block in factors])
    left = square.clone()
    longest = square.argsort(descending=True, stable=True)
    known, exact = 0.0, 0
    while exact < min(MOST_EXACT, len(square)) and float(left.sum()) > REST * float(square.sum()):
        left[longest[exact]] = 0.0
        alone = torch.zeros_like(square)
        alone[longest[exact]] = 1.0
        known, exact = known + length_of(_at(factors, alone, edges)), exact + 1
    if not bool((left > 0).any()):
        return Spread(known, (known, known), exact, 0)
    signs = torch.randint(2, (probes, len(square)), generator=generator).double() * 2 - 1
    found = [known + length_of(_at(factors, torch.where(left > 0, each, 0.0), edges)) for each in signs]
    values = torch.tensor(found, dtype=torch.float64)
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(probes)
    radius = _student(probes - 1) * error
    return Spread(mean, (max(mean - radius, known), mean + radius), exact, probes)


def _at(factors: list[Block], weights: Float[Tensor, " F"], edges: int) -> Float[Tensor, " E"]:
    parts = weights.split([block.columns.shape[1] for block in factors])
    return torch.stack([block.at(part, edges) for block, part in zip(factors, parts)]).sum(0)


def _student(freedom: int) -> float:
    """The quantile of Student's t at the upper end of an interval, by its expansion in 1 / degrees of freedom (Fisher
    and Cornish 1960): to 2 in a thousand from 5 on."""
    z = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def covariance_factors(estimator: Estimator, enumeration: Enumeration) -> list[Block]:
    """Columns f with Σ f fᵀ = the covariance of the estimator's gradient by a table's logits, edges as in
    `Enumeration.edge`.

    Raises:
        TooLarge: if the tree has too many edges, or classes do not do and groups are too many; the message says which.
    """
    edges = enumeration.n_edges // enumeration.n_prompts
    if edges > MOST_EDGES:
        raise TooLarge(f"{edges:,} (prefix, token) pairs a prompt are too many for tr Cov (at most {MOST_EDGES:,})")
    try:
        return _by_classes(estimator, enumeration)
    except Refused as why:
        groups = enumeration.n_prompts * enumeration.tree.n_leaves**estimator.group_size
        if groups > MOST_GROUPS:
            raise TooLarge(f"tr Cov cannot be had by classes of responses, because {why}") from why
    return [Block(0, _root(_by_edge(covariance(estimator, enumeration), enumeration)))]


def _by_classes(estimator: Estimator, enumeration: Enumeration) -> list[Block]:
    """Within every prompt, and between them."""
    e, geometry = enumeration, geometry_of(enumeration)
    assert isinstance(geometry, TableGeometry)
    subject = Subject(estimator, e)
    sufficient = find_sufficient(subject, [partition(e, prompt, law) for prompt, law in enumerate(subject.law)])
    kept = [float((table.chance * table.kept).sum()) for table in sufficient.tables]
    share = e.mdp.prompt_probability * torch.tensor(kept, dtype=torch.float64)
    share /= share.sum()
    edges = e.n_edges // e.n_prompts
    within, means = [], []
    for prompt, (table, chance, rho) in enumerate(zip(sufficient.tables, kept, share.tolist())):
        here = slice(prompt * edges, (prompt + 1) * edges)
        if rho == 0:
            continue
        pieces, pi = pieces_of(table), geometry.pi[prompt]
        weight = torch.zeros(edges, dtype=torch.float64)
        weight.index_add_(0, e.edge[0, pieces.classes.leaf].flatten(), pieces.mean.flatten())
        mean = _by_logit(weight[None], pi)[0] / chance
        second = _by_logit(_by_logit(_second_moment(pieces, e), pi).T, pi) / chance
        within.append(Block(here.start, math.sqrt(rho) * _root(second - torch.outer(mean, mean))))
        means.append(torch.zeros(e.n_edges, dtype=torch.float64))
        means[-1][here] = mean
    if len(means) == 1:
        return within
    share, table = share[share > 0], torch.stack(means)
    return [*within, Block(0, (share.sqrt()[:, None] * (table - share @ table)).T)]


def _second_moment(pieces: Pieces, enumeration: Enumeration) -> Float[Tensor, "E1 E1"]:
    """E of the outer product of a group's edge weights with themselves, less than 1 where groups are left out."""
    directions = pieces.directions(enumeration)
    total = directions.T @ pieces.between @ directions
    for number, (psi, within) in enumerate(zip(pieces.psi, pieces.within)):
        if len(psi):
            edge = enumeration.edge[0, pieces.leaves(number)]
            block = torch.einsum("n,bnt,bc,cns->nts", pieces.shares(number), psi, within, psi)
            where = edge[:, :, None].expand(block.shape), edge[:, None, :].expand(block.shape)
            total.index_put_(where, block, accumulate=True)
    return total


def _by_logit(rows: Float[Tensor, "R E1"], pi: Float[Tensor, "M V"]) -> Float[Tensor, "R E1"]:
    """Weights of edges as derivatives by logits, node by node."""
    nodes = rows.unflatten(1, pi.shape)
    return (nodes - pi * nodes.sum(-1, keepdim=True)).flatten(1)


def _by_edge(matrix: Float[Tensor, "E E"], enumeration: Enumeration) -> Float[Tensor, "E E"]:
    """From the order of a table's parameters to that of edges."""
    place, sizes = torch.arange(len(matrix)), enumeration.tree.level_sizes
    shapes = [(enumeration.n_prompts, enumeration.tree.vocab_size, size) for size in sizes]
    parts = [part.view(shape) for part, shape in zip(place.split([math.prod(shape) for shape in shapes]), shapes)]
    order = torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten()
    return matrix[order][:, order]


def _root(matrix: Float[Tensor, "E E"]) -> Float[Tensor, "E F"]:
    """F with F Fᵀ = a positive semidefinite matrix, orthogonal columns."""
    value, vector = torch.linalg.eigh((matrix + matrix.T) / 2)
    real = value > 1e-14 * value.abs().max()
    return vector[:, real] * value[real].sqrt()
