"""Hypothesis strategies that the tests share: small token MDPs, policies and instances.

Hypothesis draws the shapes and integer seeds; every number comes from a generator with such a seed. So an example
shrinks to the smallest shape that fails, and the same example always has the same numbers.
"""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.hidden_rewards import (
    EndReward,
    HiddenReward,
    LastTokenReward,
    LengthCost,
    LexicalReward,
    NgramReward,
    PositionReward,
    PotentialReward,
    ScaledReward,
    SparseReward,
    SumReward,
    TableReward,
)
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PAD, PrefixTree, pad_prompts
from llm_mdp.sampling.policies import NgramPolicy, Policy, TabularPolicy, TabularValue

SMALL_VOCAB, SMALL_HORIZON = 4, 4
GAMMAS = (1.0, 0.9, 0.5)

MakeReward = Callable[[PrefixTree, Tensor, float, torch.Generator], HiddenReward]
"""(tree, prompts (P, L), gamma, generator) -> a hidden reward with random numbers."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _odd_length_score(prompt: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """A response-level score that is no sum of token weights: (length mod 2) × (sum of tokens) + a constant of the
    prompt."""
    length = mask.sum(-1)
    return (length % 2) * torch.where(mask, tokens, 0).sum(-1).to(torch.float64) + 0.25 * prompt.clamp(min=0).sum(-1)


def _sparse(tree: PrefixTree, prompts: Tensor, gamma: float, generator: torch.Generator) -> HiddenReward:
    length = int(torch.randint(1, tree.horizon + 1, (1,), generator=generator))
    reached = tuple(torch.randint(tree.vocab_size, (length,), generator=generator).tolist())
    return SparseReward({reached: 1.5, (tree.vocab_size - 1,): -0.5})


REWARDS: dict[str, MakeReward] = {
    "table": lambda tree, prompts, gamma, generator: TableReward.random(tree, prompts, generator),
    "bigram": lambda tree, prompts, gamma, generator: NgramReward.random(tree.vocab_size, 1, generator),
    "trigram": lambda tree, prompts, gamma, generator: NgramReward.random(tree.vocab_size, 2, generator),
    "lexical": lambda tree, prompts, gamma, generator: LexicalReward(normal(generator, tree.vocab_size)),
    "position": lambda tree, prompts, gamma, generator: PositionReward(
        normal(generator, tree.horizon, tree.vocab_size)
    ),
    "length": lambda tree, prompts, gamma, generator: LengthCost(0.3),
    "sparse": _sparse,
    "potential": lambda tree, prompts, gamma, generator: PotentialReward(normal(generator, tree.vocab_size + 1), gamma),
    "end": lambda tree, prompts, gamma, generator: EndReward(NgramReward.random(tree.vocab_size, 1, generator)),
    "last token": lambda tree, prompts, gamma, generator: LastTokenReward(_odd_length_score, gamma),
    "scaled": lambda tree, prompts, gamma, generator: ScaledReward(
        -0.7, NgramReward.random(tree.vocab_size, 1, generator)
    ),
    "sum": lambda tree, prompts, gamma, generator: SumReward(
        (TableReward.random(tree, prompts, generator), LengthCost(0.2), LastTokenReward(_odd_length_score, gamma))
    ),
}
"""One maker for every hidden reward in the library."""

ASKS_IF_LAST = ("potential", "end", "last token", "sum")
"""The rewards of a token that depend on whether the response ends there, which the horizon or the end token decides."""


def generators() -> st.SearchStrategy[torch.Generator]:
    return st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def trees(draw: st.DrawFn, max_vocab: int = SMALL_VOCAB, max_horizon: int = SMALL_HORIZON) -> PrefixTree:
    """V 2 … 4, T 1 … 4, the end token anywhere or None."""
    vocab_size = draw(st.integers(2, max_vocab))
    eos = draw(st.none() | st.integers(0, vocab_size - 1))
    return PrefixTree(vocab_size, eos, draw(st.integers(1, max_horizon)))


@st.composite
def prompts(draw: st.DrawFn, vocab_size: int, max_prompts: int = 2) -> tuple[Prompt, ...]:
    """One or two distinct prompts, of different lengths too, with unequal probabilities."""
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=2).map(tuple)
    chosen = draw(st.lists(tokens, min_size=1, max_size=max_prompts, unique=True))
    total = sum(range(1, len(chosen) + 1))
    return tuple(Prompt(tokens, (k + 1) / total) for k, tokens in enumerate(chosen))


@st.composite
def token_mdps(
    draw: st.DrawFn,
    max_vocab: int = SMALL_VOCAB,
    max_horizon: int = SMALL_HORIZON,
    max_prompts: int = 2,
    gammas: tuple[float, ...] = GAMMAS,
    rewards: tuple[str, ...] = ("table",),
) -> TokenMDP:
    """A small token MDP; `rewards` are names in `REWARDS`."""
    tree = draw(trees(max_vocab, max_horizon))
    asked = draw(prompts(tree.vocab_size, max_prompts))
    gamma = draw(st.sampled_from(gammas))
    make = REWARDS[draw(st.sampled_from(rewards))]
    reward = make(tree, pad_prompts([prompt.tokens for prompt in asked]), gamma, draw(generators()))
    return TokenMDP(tree.vocab_size, tree.eos, tree.horizon, reward, gamma, asked)


@st.composite
def policies(draw: st.DrawFn, mdp: TokenMDP, kinds: tuple[str, ...] = ("table", "n-gram")) -> Policy:
    """A policy for `mdp`: a table, or n-grams of order 0 … 2 with or without steps."""
    kind, generator = draw(st.sampled_from(kinds)), draw(generators())
    if kind == "table":
        return TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator)
    horizon = draw(st.sampled_from([None, mdp.horizon]))
    return NgramPolicy.random(mdp.vocab_size, draw(st.integers(0, 2)), generator, horizon=horizon)


@st.composite
def instances(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("table",), rewards: tuple[str, ...] = ("table",), **shape: int
) -> Instance:
    """A whole instance; `shape` as for `token_mdps`."""
    mdp = draw(token_mdps(rewards=rewards, **shape))
    generator = draw(generators())
    reference = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator)
    value = TabularValue.random(mdp.tree, mdp.prompt_tokens, generator)
    return Instance(mdp, draw(policies(mdp, kinds)), reference, value)


def plain_responses(tree: PrefixTree) -> list[tuple[int, ...]]:
    """All complete responses in lexicographic order, by recursion in plain Python."""

    def below(prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        if len(prefix) == tree.horizon or (prefix and prefix[-1] == tree.eos):
            return [prefix]
        return [response for token in range(tree.vocab_size) for response in below((*prefix, token))]

    return below(())


def padded(responses: list[tuple[int, ...]], horizon: int) -> Tensor:
    """Responses as one tensor (N, T), PAD after their end."""
    return torch.tensor([[*response, *[PAD] * (horizon - len(response))] for response in responses])


def greedy_responses(policy: Policy, mdp: TokenMDP, prompt: Tensor, prefix: Tensor) -> Tensor:
    """The responses completed by the most probable tokens."""
    shape = {"eos": mdp.eos, "horizon": mdp.horizon, "generator": torch.Generator()}
    return policy.sample(prompt, 1, prefix=prefix, greedy=True, **shape).tokens
