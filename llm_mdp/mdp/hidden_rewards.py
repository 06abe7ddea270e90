"""The library of hidden token rewards r(W₀,ₜ₋₁, wₜ). Each is a function of the past and the present token, never of the
future.

Rewards that look back at most `order` tokens are *Markov*: they also work in the polynomial-time dynamic programme of
`ngram.py` at horizons where no tree fits in memory. `order = None` says that the whole prefix matters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD, PrefixTree, context, context_code, gather_levels, prompt_index


class HiddenReward(ABC):
    """r(W₀,ₜ₋₁, wₜ) for every token of whole responses at once."""

    order: int | None = None
    """How many tokens before wₜ matter (0: only wₜ and the step); None: all of them."""

    @abstractmethod
    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T"]:
        """Token rewards, 0 where mask is False."""

    def levels(self, tree: PrefixTree, prompts: Int[Tensor, "P L"]) -> list[Float[Tensor, "P V N"]]:
        """The reward of every edge of the tree, level by level: entry l is (P, V, nˡ)."""
        tables = []
        for level, size in enumerate(tree.level_sizes):
            prefixes = tree.level_prefixes(level)[None, None].expand(len(prompts), tree.vocab_size, size, level)
            token = torch.arange(tree.vocab_size)[None, :, None, None].expand(len(prompts), tree.vocab_size, size, 1)
            # Rewards may ask whether a token is the last one, so a token that does not end the response is followed by
            # others.
            ends = token == (PAD if tree.eos is None else tree.eos)
            rest = torch.where(ends, PAD, tree.continuing[0]).expand(*token.shape[:-1], tree.horizon - level - 1)
            tokens = torch.cat([prefixes, token, rest], dim=-1)
            tables.append(self(prompts[:, None, None], tokens, tokens != PAD)[..., level])
        return tables


@dataclass(frozen=True, eq=False)
class TableReward(HiddenReward):
    """One number for every edge of the tree: `levels[l][prompt, token, prefix index]`. What instance files hold."""

    tree: PrefixTree
    prompts: Int[Tensor, "P L"]
    table: list[Float[Tensor, "P V N"]]

    @staticmethod
    def random(
        tree: PrefixTree, prompts: Int[Tensor, "P L"], generator: torch.Generator, scale: float = 1.0
    ) -> "TableReward":
        """Independent normal rewards with standard deviation `scale`."""
        shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
        return TableReward(
            tree, prompts, [scale * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        )

    def __call__(self, prompt, tokens, mask):
        which, index = prompt_index(prompt, self.prompts), self.tree.prefix_index(tokens)
        rows = torch.stack(gather_levels(self.table, which, index), dim=-2)
        return torch.where(mask, rows.gather(-1, tokens.clamp(min=0)[..., None])[..., 0], 0.0)

    def levels(self, tree, prompts):
        if tree != self.tree or not torch.equal(prompts, self.prompts):
            raise ValueError(f"This table was made for {self.tree}, not for {tree}; make a new one.")
        return self.table


class MarkovReward(HiddenReward):
    """A reward that depends on the last `order` tokens, the present token, the step, and whether the response ends
    here."""

    order: int = 0  # pyright: ignore[reportIncompatibleVariableOverride]

    @abstractmethod
    def local(
        self,
        window: Int[Tensor, "*batch order"],
        token: Int[Tensor, "*batch"],
        step: Int[Tensor, "*batch"],
        last: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch"]:
        """Reward of one token. `window` has PAD before the beginning; `step` counts from 0; `last`: the response ends
        here."""

    def __call__(self, prompt, tokens, mask):
        window = context(prompt, tokens, self.order)
        step = torch.arange(tokens.shape[-1]).expand(tokens.shape)
        return torch.where(mask, self.local(window, tokens.clamp(min=0), step, last_token(mask)), 0.0)

    def levels(self, tree, prompts):
        token = torch.arange(tree.vocab_size)[:, None]
        tables = []
        for level, size in enumerate(tree.level_sizes):
            shape = (len(prompts), tree.vocab_size, size)
            before = pad(tree.level_prefixes(level), (0, 1)).expand(len(prompts), -1, -1)
            window = context(prompts[:, None], before, self.order)[:, None, :, -1].expand(*shape, self.order)
            last = (token == (PAD if tree.eos is None else tree.eos)) | (level == tree.horizon - 1)
            tables.append(self.local(window, token.expand(shape), torch.full(shape, level), last.expand(shape)))
        return tables


@dataclass(frozen=True, eq=False)
class NgramReward(MarkovReward):
    """A table over the last `order` tokens and the present one, shape ((V+1)^order, V); see `tree.context_code` for the
    rows."""

    table: Float[Tensor, "C V"]
    order: int = 1

    @staticmethod
    def random(vocab_size: int, order: int, generator: torch.Generator, scale: float = 1.0) -> "NgramReward":
        shape = ((vocab_size + 1) ** order, vocab_size)
        return NgramReward(scale * torch.randn(shape, generator=generator, dtype=torch.float64), order)

    def __post_init__(self) -> None:
        contexts = (self.table.shape[1] + 1) ** self.order
        if len(self.table) != contexts:
            raise ValueError(
                f"table has {len(self.table)} rows; order {self.order} over {self.table.shape[1]} tokens has "
                f"{contexts} contexts."
            )

    def local(self, window, token, step, last):
        return self.table[context_code(window, self.table.shape[1]), token]


@dataclass(frozen=True, eq=False)
class LexicalReward(MarkovReward):
    """One weight for every word, wherever it stands."""

    weights: Float[Tensor, " V"]

    def local(self, window, token, step, last):
        return self.weights[token]


@dataclass(frozen=True, eq=False)
class PositionReward(MarkovReward):
    """One weight for every word at every step, shape (T, V): early and late tokens may differ."""

    weights: Float[Tensor, "T V"]

    def local(self, window, token, step, last):
        return self.weights[step, token]


@dataclass(frozen=True)
class LengthCost(MarkovReward):
    """-cost for every token, the end token included."""

    cost: float = 0.1

    def local(self, window, token, step, last):
        return torch.full(token.shape, -self.cost, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class PotentialReward(MarkovReward):
    """Potential-based shaping: r = γ Φ(p w) - Φ(p), Φ a number for the last token, Φ = 0 at the end (Ng, Harada,
    Russell 1999).

    Its discounted sum telescopes to -Φ(w₀), a constant of the prompt: it changes token rewards but no gradient.
    `potential` has V + 1 entries; the last is for "nothing before".
    """

    potential: Float[Tensor, " V1"]
    gamma: float = 1.0
    order: int = 1

    def local(self, window, token, step, last):
        before = self.potential[torch.where(window[..., -1] == PAD, len(self.potential) - 1, window[..., -1])]
        return self.gamma * torch.where(last, 0.0, self.potential[token]) - before


@dataclass(frozen=True, eq=False)
class EndReward(MarkovReward):
    """Another Markov reward, paid for the last token of a response only: an outcome that depends on how the response
    ends.

    The token carries part / γᵗ⁻¹, so that RM(W) is the part itself, whenever the response ends.
    """

    part: MarkovReward
    gamma: float = 1.0

    @property
    def order(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.part.order

    def local(self, window, token, step, last):
        weight = self.gamma ** -step.to(torch.float64)
        return torch.where(last, self.part.local(window, token, step, last) * weight, 0.0)


@dataclass(frozen=True)
class SparseReward(HiddenReward):
    """A reward for reaching one of a few exact beginnings of a response: {(tokens): reward}, 0 everywhere else."""

    rewards: Mapping[tuple[int, ...], float]

    def __post_init__(self) -> None:
        if () in self.rewards:
            raise ValueError(
                "SparseReward rewards the empty response; a reward belongs to a token, so name at least one."
            )

    def __call__(self, prompt, tokens, mask):
        reward = torch.zeros(tokens.shape, dtype=torch.float64)
        for prefix, value in self.rewards.items():
            if len(prefix) > tokens.shape[-1]:
                continue
            reached = (tokens[..., : len(prefix)] == torch.tensor(prefix)).all(-1)
            reward[..., len(prefix) - 1] += value * reached
        return torch.where(mask, reward, 0.0)


@dataclass(frozen=True)
class LastTokenReward(HiddenReward):
    """A response-level model as a token reward: all of it on the last token (the paper's zero-reward assumption, Remark
    5).

    `score(prompt, tokens, mask) -> (*batch,)` is RM(W); the token carries RM(W) / γᵗ⁻¹, so that the discounted sum is
    RM(W).
    """

    score: Callable[[Tensor, Tensor, Tensor], Tensor]
    gamma: float = 1.0

    def __call__(self, prompt, tokens, mask):
        whole = self.score(prompt, tokens, mask).to(torch.float64)
        weight = self.gamma ** -torch.arange(tokens.shape[-1], dtype=torch.float64)
        return torch.where(last_token(mask), whole[..., None] * weight, 0.0)


@dataclass(frozen=True)
class ScaledReward(HiddenReward):
    """factor × another hidden reward."""

    factor: float
    part: HiddenReward

    @property
    def order(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.part.order

    def __call__(self, prompt, tokens, mask):
        return self.factor * self.part(prompt, tokens, mask)

    def levels(self, tree, prompts):
        return [self.factor * level for level in self.part.levels(tree, prompts)]

    def local(self, window, token, step, last):
        return self.factor * _markov(self.part).local(window, token, step, last)


@dataclass(frozen=True)
class SumReward(HiddenReward):
    """Several hidden rewards added: Remark 5's mix, Eq. 30, of token-level models and (as `LastTokenReward`)
    response-level ones."""

    parts: tuple[HiddenReward, ...]

    @property
    def order(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        orders = [part.order for part in self.parts]
        return None if None in orders else max((order for order in orders if order is not None), default=0)

    def __call__(self, prompt, tokens, mask):
        return torch.stack([part(prompt, tokens, mask) for part in self.parts]).sum(0)

    def levels(self, tree, prompts):
        return [torch.stack(parts).sum(0) for parts in zip(*(part.levels(tree, prompts) for part in self.parts))]

    def local(self, window, token, step, last):
        parts = [_markov(part) for part in self.parts]
        rewards = [part.local(window[..., window.shape[-1] - part.order :], token, step, last) for part in parts]
        return torch.stack(rewards).sum(0)


def _markov(reward: HiddenReward) -> MarkovReward:
    """The reward as one with `local`; the callers have looked at `order`."""
    if not hasattr(reward, "local"):
        raise ValueError(
            f"{type(reward).__name__} depends on the whole prefix; the n-gram engine needs a reward with a finite "
            f"order."
        )
    return reward  # pyright: ignore[reportReturnType]


def last_token(mask: Bool[Tensor, "*batch T"]) -> Bool[Tensor, "*batch T"]:
    """True on the last policy token of every response."""
    later = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (later == 1)
