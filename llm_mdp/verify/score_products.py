"""Inner products of the scores of single tokens, and lengths of sums of them, where most are known to be 0."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration

AT_ONCE = 1_000_000
"""Pairs of tokens that are looked up together: what is made of them fits in a processor's cache."""


def score_squares(enumeration: Enumeration) -> Float[Tensor, " E"]:
    """|∇log π|² of every edge."""
    shared, scores = enumeration.shared, enumeration.scores
    if score_squares not in shared:
        shared[score_squares] = torch.einsum("ep,ep->e", scores, scores)
    return shared[score_squares]


def node_gram(enumeration: Enumeration) -> Float[Tensor, "E V"] | None:
    """Inner products of the scores of every edge with those of all tokens after the same prefix; None where scores
    after different prefixes are not all perpendicular (only those of tables are)."""
    shared = enumeration.shared
    if node_gram not in shared:
        shared[node_gram] = _node_gram(enumeration)
    return shared[node_gram]


def _node_gram(enumeration: Enumeration) -> Float[Tensor, "E V"] | None:
    scores, vocab_size = enumeration.sparse_scores, enumeration.tree.vocab_size
    if not scores.is_sparse:
        return None
    edge, parameter = scores.indices()
    node, token, parameters = edge // vocab_size, edge % vocab_size, scores.shape[1]
    of = torch.zeros(parameters, dtype=torch.int64)
    of[parameter] = node
    if not torch.equal(of[parameter], node):
        return None  # a parameter of several prefixes
    values = torch.zeros(parameters, vocab_size, dtype=torch.float64)
    values[parameter, token] = scores.values()
    table = torch.zeros(len(scores) // vocab_size, vocab_size, vocab_size, dtype=torch.float64)
    return table.index_add_(0, of, values[:, :, None] * values[:, None, :]).flatten(0, 1)


def squares_by_node(
    weights: list[Float[Tensor, "W n"]], edge: Int[Tensor, "W n"], table: Float[Tensor, "E V"], horizon: int
) -> list[Float[Tensor, " W"]]:
    """|Σ weight ∇log π(edge)|² of every world by a `node_gram`, for each of several weights of the same edges; n tokens
    are those of n / T responses. Only tokens of one step can come after the same prefix."""
    vocab_size, responses = table.shape[1], edge.shape[1] // horizon
    # Steps first: what is gathered then lies together.
    edge = edge.unflatten(-1, (responses, horizon)).permute(1, 2, 0)
    weights = [each.unflatten(-1, (responses, horizon)).permute(1, 2, 0) for each in weights]
    squares = [torch.zeros(edge.shape[-1], dtype=torch.float64) for _ in weights]
    flat, size = table.flatten(), max(1, AT_ONCE // (responses * horizon))
    for some in torch.arange(edge.shape[-1]).split(size):
        rows = slice(int(some[0]), int(some[-1]) + 1)
        e, few = edge[..., rows].contiguous(), [each[..., rows].contiguous() for each in weights]
        node = e // vocab_size
        token, begin = e - node * vocab_size, e * vocab_size
        for k in range(responses):
            for j in range(k + 1):
                product = flat.index_select(0, (begin[k] + token[j]).flatten()).view_as(e[k])
                if j < k:
                    product = torch.where(node[k] == node[j], 2 * product, 0.0)
                for square, weight in zip(squares, few):
                    square[rows] += (weight[k] * weight[j] * product).sum(0)
    return squares


def squares(
    weights: list[Float[Tensor, "W n"]], edge: Int[Tensor, "W n"], enumeration: Enumeration
) -> list[Float[Tensor, " W"]]:
    """|Σ weight ∇log π(edge)|² of every world, for each of several weights of the same edges."""
    if (table := node_gram(enumeration)) is not None:
        return squares_by_node(weights, edge, table, enumeration.tree.horizon)
    gram, parts = enumeration.gram, []
    for rows in torch.arange(len(edge)).split(max(1, AT_ONCE // edge.shape[1] ** 2)):
        products = gram[edge[rows, :, None], edge[rows, None, :]]
        parts.append([torch.einsum("wi,wij,wj->w", each[rows], products, each[rows]) for each in weights])
    return [torch.cat(each) for each in zip(*parts)]
