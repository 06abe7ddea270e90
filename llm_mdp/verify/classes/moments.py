"""Mean and spread of a group estimator at any group size, from the weights by class and summary.

The weight of token t of response i of class c is w(i, t; σ) = Σ_b α_cb(σ) ψ_cb(i, t), σ the state of the other K - 1.
With y_cb = E[Σ_t ψ_cb(i, t) s_it | c] and S_c[b, b'] = E[<Σ_t ψ_cb s_it, Σ_t ψ_cb' s_it> | c], s_it the scores:

    E g    = K Σ_c q_c Σ_b E_{P_{K-1}}[α_cb] y_cb
    E |g|² = K Σ_c q_c Σ_bb' E_{P_{K-1}}[α_cb α_cb'] S_c[b, b']
           + K (K-1) Σ_cd q_c q_d Σ_bb' E_{τ ~ P_{K-2}}[α_cb(τ + φ_d) α_db'(τ + φ_c)] <y_cb, y_db'>

α is 0 where a group is left out; all is divided by the chance that it is kept.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.classes.calls import Subject
from llm_mdp.verify.classes.convolution import Laws
from llm_mdp.verify.classes.factors import factorise
from llm_mdp.verify.classes.partition import Partition, partition
from llm_mdp.verify.classes.signal import Signal, signal_of
from llm_mdp.verify.classes.sufficiency import MAX_ENTRIES, Sufficient, Table, find_sufficient
from llm_mdp.verify.geometry import Geometry, geometry_of
from llm_mdp.verify.method import Method
from llm_mdp.verify.moments import Moments

MAX_PRODUCTS = 2e10
"""States times squared number of factors, of the covariance between two responses of a group."""
MAX_DIRECTIONS = 200_000_000
"""Factors times edges of one prompt: y_cb of all classes, 1.6 GB."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """What E g and E |g|² of one prompt's groups are made of, whatever the scores are: a table's, a score matrix's, or
    those of a language model, one backward pass each.

        E g    = Σ_i Σ_t mean[i, t] s_it
        E |g|² = Σ_c Σ_bb' within[c][b, b'] S_c[b, b'] + Σ_aa' between[a, a'] <y_a, y_a'>

    a runs over all (c, b), class by class; y_a and S_c are those of the module's docstring, with weights `psi`. Not yet
    divided by the chance that a group is kept.
    """

    classes: Partition
    """The responses i, class by class; `classes.leaf` are their numbers in the enumeration."""
    mean: Float[Tensor, "N T"]
    """K p_i E[w(i, t; σ)]."""
    psi: tuple[Float[Tensor, "B n T"], ...]
    """Of every class: ψ_cb(i, t) of its n responses."""
    within: tuple[Float[Tensor, "B B"], ...]
    """Of every class: K q_c E[α_cb α_cb']."""
    between: Float[Tensor, "A A"]
    """K (K-1) q_c q_d E[α_cb(τ + φ_d) α_db'(τ + φ_c)]."""

    def shares(self, number: int) -> Float[Tensor, " n"]:
        """p_i / q_c of the responses of class c."""
        first = self.classes.first
        chance = self.classes.chance[first[number] : first[number + 1]]
        return chance / chance.sum()

    def leaves(self, number: int) -> Tensor:
        """Numbers of the responses of class c in the enumeration."""
        first = self.classes.first
        return self.classes.leaf[first[number] : first[number + 1]]

    def directions(self, enumeration: Enumeration) -> Float[Tensor, "A E1"]:
        """y_a = Σ_e directions[a, e] s_e, e over the edges of this prompt (its block of `enumeration.edge`).

        Raises:
            TooLarge: more than MAX_DIRECTIONS entries.
        """
        edges = enumeration.n_edges // enumeration.n_prompts
        entries = sum(len(psi) for psi in self.psi) * edges
        if entries > MAX_DIRECTIONS:
            raise TooLarge(
                f"its weights are sums of {sum(len(psi) for psi in self.psi):,} products, over {edges:,} (prefix, "
                f"token) pairs (at most {MAX_DIRECTIONS:,} together)"
            )
        rows = []
        for number, psi in enumerate(self.psi):
            edge = enumeration.edge[0, self.leaves(number)].flatten()
            weight = (self.shares(number)[:, None] * psi).flatten(1)
            rows.append(torch.zeros(len(psi), edges, dtype=torch.float64).index_add_(1, edge, weight))
        return torch.cat(rows)

    def second_moment(self, geometry: Geometry) -> float:
        """E |g|² (unless left out: times the chance that it is kept)."""
        total, e = 0.0, geometry.enumeration
        for number, (psi, within) in enumerate(zip(self.psi, self.within)):
            if len(psi):
                edge = e.edge[self.classes.prompt, self.leaves(number)]
                total += float((within * geometry.within(self.shares(number), edge, psi)).sum())
        if self.between.abs().sum() > 0:
            products = geometry.products(self.classes.prompt, self.directions(e))
            total += float((self.between * products).sum())
        return total


def class_moments(estimator: Estimator, enumeration: Enumeration, most: float = MAX_ENTRIES) -> Moments:
    """Mean and trace of the covariance of the estimator over all its outcomes, by classes.

    Args: most: token weights that may be asked of the estimator, in all.

    Raises:
        Refused: if its weights depend on more than classes say; then groups remain, one by one.
        TooLarge: if classes, or the values of what they depend on, are too many.
        NothingKept: if it leaves out every group.
    """
    subject = Subject(estimator, enumeration)
    partitions = [partition(enumeration, prompt, law) for prompt, law in enumerate(subject.law)]
    sufficient = find_sufficient(subject, partitions, most)
    return moments_from(sufficient, geometry_of(enumeration), subject.precision)


def moments_from(sufficient: Sufficient, geometry: Geometry, precision: str = "float64") -> Moments:
    """Mean and spread from all weights; the scores' inner products are the geometry's."""
    e = geometry.enumeration
    mean = torch.zeros(e.n_edges, dtype=torch.float64)
    second = weights = tokens = rewards = 0.0
    signals = []
    for rho, table in zip(e.mdp.prompt_probability.tolist(), sufficient.tables):
        pieces = pieces_of(table)
        edge = e.edge[pieces.classes.prompt, pieces.classes.leaf]
        mean.index_add_(0, edge.flatten(), rho * pieces.mean.flatten())
        second += rho * pieces.second_moment(geometry)
        size = table.representatives.others + 1
        weights += rho * size * float((table.chance * table.weights.abs().sum(-1)).sum())
        spent = (table.chance[..., None] * table.values[..., -3:-1]).sum((0, 1))
        length = float(table.classes.probability @ table.classes.length.double())
        tokens, rewards = tokens + rho * size * (length + float(spent[0])), rewards + rho * size * (1 + float(spent[1]))
        signals.append((rho, table))
    signal: Signal = signal_of(signals)
    if signal.kept == 0:
        raise NothingKept("the estimator leaves out every outcome of this instance, so it has no expectation.")
    gradient, second = geometry.gradient(mean / signal.kept), second / signal.kept
    states = sum(table.representatives.states for table in sufficient.tables)
    tried = sum(table.tries for table in sufficient.tables)
    return Moments(
        gradient,
        max(second - float(gradient @ gradient), 0.0),
        math.sqrt(max(second, 0.0)),
        tokens=tokens / signal.kept,
        rewards=rewards / signal.kept,
        precision=precision,
        weights=weights / signal.kept,
        kept=signal.kept,
        with_signal=signal.with_signal,
        method=Method("classes", sufficient.summary.words, states, tried),
    )


def pieces_of(table: Table) -> Pieces:
    """The factors of one prompt's weights, and what they are multiplied with. Classes of which the summary says the
    same are one class here.

    Raises:
        TooLarge: more than MAX_PRODUCTS products.
    """
    classes, laws, others = table.classes, table.laws, table.representatives.others
    size, law = others + 1, laws.chances[others]
    average = torch.einsum("s,ust->ut", law, table.weights)
    mean = size * classes.chance[:, None] * (average if table.by_leaf else average[classes.kind])
    merged, order = classes.merged(laws.feature)
    of_unit = laws.feature[classes.kind] if table.by_leaf else laws.feature
    alphas, psis, within, first = [], [], [], merged.first
    for number, q in enumerate(merged.probability):
        units = (of_unit == number).nonzero()[:, 0]
        own = table.weights[units]
        alpha, psi = factorise(own.transpose(0, 1).flatten(1))
        here = order[first[number] : first[number + 1]]
        place = torch.searchsorted(units, here if table.by_leaf else classes.kind[here])
        alphas.append(alpha)
        psis.append(psi.unflatten(1, own.shape[::2])[:, place])
        within.append(size * q * alpha.T @ (law[:, None] * alpha))
    between = _between(laws, others, merged.probability, alphas)
    return Pieces(merged, mean[order], tuple(psis), tuple(within), between)


def _between(
    laws: Laws, others: int, probability: Float[Tensor, " F"], alphas: list[Float[Tensor, "S B"]]
) -> Float[Tensor, "A A"]:
    """K (K-1) q_c q_d E[α_cb(τ + φ_d) α_db'(τ + φ_c)], τ the state of K - 2 others."""
    width = [alpha.shape[1] for alpha in alphas]
    if others == 0 or not sum(width):
        return torch.zeros(sum(width), sum(width), dtype=torch.float64)
    states, law = laws.codes[others - 1], laws.chances[others - 1]
    if len(states) * sum(width) ** 2 > MAX_PRODUCTS:
        raise TooLarge(
            f"its weights are sums of {sum(width):,} products, for each of {len(states):,} values of what they depend "
            "on, too many to be added up two by two"
        )
    last = torch.tensor(width).cumsum(0).tolist()
    following = [laws.find(others, states + code) for code in laws.code]
    total = torch.zeros(sum(width), sum(width), dtype=torch.float64)
    for f, one in enumerate(alphas):
        for g, two in enumerate(alphas[: f + 1]):
            # States whose probability is below the smallest float64 are in no list.
            there = ((following[f] >= 0) & (following[g] >= 0)).double() * law
            left, right = one[following[g].clamp(min=0)], two[following[f].clamp(min=0)]
            block = probability[f] * probability[g] * (left * there[:, None]).T @ right
            rows, columns = slice(last[f] - width[f], last[f]), slice(last[g] - width[g], last[g])
            total[rows, columns] = block
            total[columns, rows] = block.T
    return (others + 1) * others * total
