"""The tree of responses: how prefixes and complete responses of a token MDP are numbered. Geometry only, no
probabilities.

A prefix of length l has no end token in it, so level l holds nˡ prefixes, n = V - 1 (n = V when no token ends a
response). Two numberings, both closed forms:

- *prefix index* within level l: Σₛ rank(wₛ) nˢ, rank = position among the tokens that do not end. The last token is the
  most significant digit, so the children of level l by token a are one contiguous block of level l + 1 (fast
  level-by-level dynamic programming, "action-major").
- *leaf index*: lexicographic, so the complete responses below a prefix are contiguous (fast branching from any prefix).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

PAD = -1
"""Fills `tokens` after the end of a response and `prompt` before its beginning."""
MANY_PROMPTS = 32
"""More prompts than this are looked up by numbers that stand for them, not compared one by one."""


@dataclass(frozen=True)
class PrefixTree:
    """Shape of the tree of responses over `vocab_size` tokens, ended by `eos` (None: by nothing) or by `horizon`
    tokens."""

    vocab_size: int
    eos: int | None
    horizon: int

    @cached_property
    def branching(self) -> int:
        """n, the number of tokens that do not end a response."""
        return self.vocab_size if self.eos is None else self.vocab_size - 1

    @cached_property
    def level_sizes(self) -> list[int]:
        """Number of prefixes of length 0 … T-1."""
        return [self.branching**level for level in range(self.horizon)]

    @cached_property
    def n_nodes(self) -> int:
        """Number of non-terminal prefixes."""
        return sum(self.level_sizes)

    @cached_property
    def level_offset(self) -> Int[Tensor, " T"]:
        """Number of nodes on shorter levels; node = level_offset[l] + prefix index."""
        return torch.tensor([0, *self.level_sizes[:-1]]).cumsum(0)

    @cached_property
    def subtree_leaves(self) -> list[int]:
        """Complete responses below a prefix of length 0 … T (a complete one counts itself)."""
        leaves = [1]
        for _ in range(self.horizon):
            leaves.append(self.branching * leaves[-1] + (self.eos is not None))
        return leaves[::-1]

    @cached_property
    def n_leaves(self) -> int:
        return self.subtree_leaves[0]

    @cached_property
    def continuing(self) -> list[int]:
        """The tokens that do not end a response, in order."""
        return [token for token in range(self.vocab_size) if token != self.eos]

    def rank(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Position among the continuing tokens; 0 for the end token and padding, which no prefix contains."""
        rank = tokens.clamp(min=0)
        if self.eos is not None:
            rank = torch.where(tokens > self.eos, tokens - 1, rank)
            rank = torch.where(tokens == self.eos, torch.zeros_like(rank), rank)
        return rank

    def prefix_index(self, tokens: Int[Tensor, "*batch T"]) -> Int[Tensor, "*batch T"]:
        """Index, within level t, of the prefix before step t (0-based). Arbitrary but in range after the end."""
        place = torch.tensor([self.branching**t for t in range(tokens.shape[-1])])
        digits = self.rank(tokens) * place
        return digits.cumsum(-1) - digits

    def node_index(self, tokens: Int[Tensor, "*batch T"]) -> Int[Tensor, "*batch T"]:
        """Number of the prefix before step t among all nodes, level by level."""
        return self.prefix_index(tokens) + self.level_offset[: tokens.shape[-1]]

    def level_prefixes(self, level: int) -> Int[Tensor, "N level"]:
        """All prefixes of one length, in prefix-index order."""
        index = torch.arange(self.branching**level)
        place = torch.tensor([self.branching**t for t in range(level)], dtype=torch.int64)
        return (
            torch.tensor(self.continuing)[(index[:, None] // place) % max(self.branching, 1)]
            if level
            else index[:, None][:, :0]
        )

    @cached_property
    def leaves(self) -> Int[Tensor, "N T"]:
        """All complete responses in lexicographic order, padded after their end."""
        index = torch.arange(self.n_leaves)
        tokens = torch.full((self.n_leaves, self.horizon), PAD)
        alive = torch.ones(self.n_leaves, dtype=torch.bool)
        for step in range(self.horizon):
            first = self.first_leaf_by_token[step]
            token = torch.searchsorted(first, index, right=True) - 1
            tokens[:, step] = torch.where(alive, token, PAD)
            index = index - first[token]
            alive = alive & (token != (-2 if self.eos is None else self.eos))
            index = torch.where(alive, index, 0)
        return tokens

    @cached_property
    def first_leaf_by_token(self) -> Int[Tensor, "T V"]:
        """How many leaves of the subtree at step t come before the ones that go on with token w."""
        below = torch.tensor(self.subtree_leaves[1:])[:, None].expand(self.horizon, self.vocab_size).clone()
        if self.eos is not None:
            below[:, self.eos] = 1
        return below.cumsum(1) - below

    def first_leaf(self, tokens: Int[Tensor, "*batch T"]) -> Int[Tensor, "*batch T1"]:
        """Index of the first leaf below the prefix before step t, t = 0 … T; at the end, the leaf of the response
        itself."""
        steps = torch.arange(tokens.shape[-1])
        offset = torch.where(tokens >= 0, self.first_leaf_by_token[steps, tokens.clamp(min=0)], 0)
        return torch.cat([torch.zeros_like(offset[..., :1]), offset.cumsum(-1)], dim=-1)


def prompt_index(prompt: Int[Tensor, "*batch L"], prompts: Int[Tensor, "P L"]) -> Int[Tensor, "*batch"]:
    """Which of `prompts` each row is. Raises ValueError for a prompt that is not among them."""
    base, length = int(prompts.max()) + 2 if prompts.numel() else 2, prompts.shape[-1]
    if len(prompts) > MANY_PROMPTS and base**length < 2**62:
        places = base ** torch.arange(length)
        code, order = ((prompts + 1) * places).sum(-1).sort()
        index = order[torch.searchsorted(code, ((prompt + 1) * places).sum(-1)).clamp(max=len(prompts) - 1)]
        found = (prompts[index] == prompt).all(-1)
    else:
        equal = (prompt[..., None, :] == prompts).all(-1)
        index, found = equal.to(torch.int8).argmax(-1), equal.any(-1)
    if not bool(found.all()):
        raise ValueError("A prompt is not among the prompts of this table; use the prompts of the same TokenMDP.")
    return index


def pad_prompts(prompts: list[tuple[int, ...]]) -> Int[Tensor, "P L"]:
    """Prompts of different lengths as one tensor, padded on the left."""
    width = max((len(prompt) for prompt in prompts), default=0)
    rows = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(prompts), width)


def context(
    prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], order: int
) -> Int[Tensor, "*batch T order"]:
    """The last `order` tokens before each step, prompt included, oldest first; PAD where there are fewer."""
    lead = torch.full((*tokens.shape[:-1], order), PAD)
    prompt = prompt.expand(*tokens.shape[:-1], prompt.shape[-1])
    text = torch.cat([lead, prompt, tokens[..., :-1]], dim=-1)
    start = prompt.shape[-1]
    return text[..., start:].unfold(-1, order, 1)[..., : tokens.shape[-1], :] if order else tokens[..., None][..., :0]


def context_code(window: Int[Tensor, "*batch order"], vocab_size: int) -> Int[Tensor, "*batch"]:
    """A context as one number in base V + 1, the newest token least significant; PAD is the digit V."""
    code = torch.zeros(window.shape[:-1], dtype=torch.int64)
    for position in range(window.shape[-1]):
        digit = torch.where(window[..., position] == PAD, vocab_size, window[..., position])
        code = code * (vocab_size + 1) + digit
    return code


def gather_levels(
    levels: list[Float[Tensor, "P ..."]], prompt: Int[Tensor, "*batch"], index: Int[Tensor, "*batch T"]
) -> list[Tensor]:
    """One entry a step of a table kept level by level, prefixes on the last axis: levels[t][prompt, …, index[t]]."""
    return [level[prompt, ..., index[..., t]] for t, level in enumerate(levels[: index.shape[-1]])]
