"""Attention of several rows over one copy of the keys and values of the prompt that they share.

A row's query sees the columns of its prompt and those that came after it in its own row; both have scores of their own
and one softmax:

    softmax([q Pᵀ, q Kᵀ] / √d) [V_P; V_K]

The queries of all rows of a prompt are one matrix for its part, so that the prompt's keys are read once a step instead
of once a row, and need not be copied. Rows need not be adjacent, nor prompts have equally many of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache

from llm_mdp_agents.lm.architecture import (
    ROUNDING,
    ROUNDING_16_BITS,
    arguments_of,
    empty_cache,
    forward,
    longest_text,
    positions,
    take_rows,
)
from llm_mdp_agents.lm.reader import Reader

NAME = "llm_mdp_shared_prompts"
FROM = 64
"""Columns of the prompts from which on it pays: below, the copies are small and one kernel does it all."""
SHARED = -1
"""The owner of a prompt's columns in packed rows."""
Attention = Callable[[Any, Tensor, Tensor, Tensor, float], Tensor]
"""Of a layer, its queries, keys, values and what scores are multiplied by: (N, q, H, d)."""
KNOWN = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "output_attentions", "output_router_logits",
         "cache_position"}  # fmt: skip
"""What attention may be told without attending otherwise."""


@dataclass(frozen=True)
class Groups:
    """Which prompt each row belongs to."""

    group: Int[Tensor, " N"]
    count: int
    """Prompts, G."""

    @cached_property
    def slot(self) -> Int[Tensor, " N"]:
        """The number of a row among those of its prompt."""
        order = self.group.argsort(stable=True)
        sizes = self.group.bincount(minlength=self.count)
        number = torch.arange(len(self.group), device=self.group.device) - (sizes.cumsum(0) - sizes)[self.group[order]]
        return torch.empty_like(number).scatter_(0, order, number)

    @cached_property
    def most(self) -> int:
        """Rows of the prompt that has most, M."""
        return int(self.group.bincount(minlength=self.count).max())

    def together(self, rows: Tensor) -> Tensor:
        """(N, h, q, x) as (G, h, M q, x), with zeros where a prompt has fewer rows."""
        full = rows.new_zeros(self.count, self.most, *rows.shape[1:])
        full = full.index_put((self.group, self.slot), rows)
        return full.transpose(1, 2).flatten(2, 3)

    def apart(self, full: Tensor) -> Tensor:
        """Back again."""
        return full.unflatten(2, (self.most, -1)).transpose(1, 2)[self.group, self.slot]


def attend(
    query: Float[Tensor, "N H q d"],
    own: tuple[Float[Tensor, "N h t d"], Float[Tensor, "N h t d"]],
    prompt: tuple[Float[Tensor, "G h L d"], Float[Tensor, "G h L d"]],
    own_seen: Bool[Tensor, "N q t"],
    prompt_seen: Bool[Tensor, "G L"],
    groups: Groups,
    scaling: float,
) -> Float[Tensor, "N q H d"]:
    """What the rows see; several queries share a head of keys where H is a multiple of h."""
    heads, each = own[0].shape[1], query.shape[1] // own[0].shape[1]
    rows = query.unflatten(1, (heads, each)).flatten(2, 3) * scaling  # (N, h, H/h q, d)
    there = (groups.together(rows) @ prompt[0].transpose(2, 3)).masked_fill(~prompt_seen[:, None, None], -torch.inf)
    here = (rows @ own[0].transpose(2, 3)).unflatten(2, (each, -1)).masked_fill(~own_seen[:, None, None], -torch.inf)
    weight = torch.cat([groups.apart(there), here.flatten(2, 3)], dim=-1).softmax(-1)
    there, here = weight.split([prompt[0].shape[2], own[0].shape[2]], dim=-1)
    found = groups.apart(groups.together(there) @ prompt[1]) + here @ own[1]
    return found.unflatten(2, (each, -1)).flatten(1, 2).transpose(1, 2)


@dataclass
class SharedPrompts:
    """Keys and values of prompts, once each, and those of the rows after them, which get a column with every token: a
    `Memory`."""

    policy: Reader
    layers: list[tuple[Tensor, Tensor]]
    """Of the prompts."""
    prompt_seen: Bool[Tensor, "G L"]
    group: Int[Tensor, " N"]
    shrinks = True

    def __post_init__(self) -> None:
        self.cache: Cache = empty_cache(self.policy.causal_lm, packs=True)
        self.seen = self.prompt_seen.new_zeros(len(self.group), 0)
        self._groups = Groups(self.group, len(self.prompt_seen))

    def read(self, newest: Int[Tensor, "N 1"], alive: Bool[Tensor, " N"]) -> Float[Tensor, "N V"]:
        self.seen = torch.cat([self.seen, alive[:, None]], dim=1)
        model, groups = self.policy.causal_lm, self._groups
        position = (self.prompt_seen.sum(-1)[groups.group] + self.seen.sum(-1) - 1)[:, None]

        def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            # Who has ended may see nothing; what comes out is not looked at, but must be a number.
            prompt = self.layers[module.layer_idx]
            return attend(query, (key, value), prompt, self.seen[:, None], self.prompt_seen, groups, scaling)

        with attending(model, attention):
            output = forward(model, arguments_of(model), newest, position=position, cache=self.cache, last=True)
        return self.policy.scores(output.logits[:, -1])

    def take(self, rows: Int[Tensor, " n"]) -> None:
        self.seen, self.group = self.seen[rows], self.group[rows]
        left = self.group.unique()
        if len(left) < len(self.prompt_seen):
            # Prompts whose rows have all left are read no more.
            self.group, self.prompt_seen = torch.searchsorted(left, self.group), self.prompt_seen[left]
            self.layers = [(keys[left], values[left]) for keys, values in self.layers]
        self._groups = Groups(self.group, len(self.prompt_seen))
        if self.seen.shape[1]:
            take_rows(self.cache, rows)


def attention_of(owner: Int[Tensor, "G S"]) -> Attention:
    """Attention in packed rows (`packing.Reading`): prompts among themselves by the causal kernel, every response to
    its prompt and itself by `attend`; pairs that do not see each other are not computed. Differentiable.

    Args: owner: of each column; those of prompts come first.
    """
    columns = int((owner == SHARED).any(0).sum())
    group, column = (owner >= 0).nonzero().unbind(1)
    _, row, size = owner[group, column].unique(return_inverse=True, return_counts=True)
    start = size.cumsum(0) - size
    step = torch.arange(len(row), device=owner.device) - start[row]
    longest = int(size.max()) if len(size) else 0
    groups, prompt_seen = Groups(group[start], len(owner)), owner[:, :columns] == SHARED
    count = torch.arange(longest, device=owner.device)
    own_seen = (count[:, None] >= count) & (count < size[:, None])[:, None]

    def rows_of(part: Float[Tensor, "G h S d"]) -> Float[Tensor, "R h W d"]:
        rows = part.new_zeros(len(size), longest, part.shape[1], part.shape[3])
        return rows.index_put((row, step), part.transpose(1, 2)[group, column]).transpose(1, 2)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        prompt = key[:, :, :columns], value[:, :, :columns]
        keys, values = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in prompt)
        first = scaled_dot_product_attention(query[:, :, :columns], keys, values, is_causal=True, scale=scaling)
        found = query.new_zeros(len(owner), owner.shape[1] - columns, query.shape[1], value.shape[3])
        if longest:
            own = rows_of(key), rows_of(value)
            rows = attend(rows_of(query), own, prompt, own_seen, prompt_seen, groups, scaling)
            found = found.index_put((group, column - columns), rows[row, step])
        return torch.cat([first.transpose(1, 2), found], dim=1)

    return attention


_ATTENTION: ContextVar[Attention] = ContextVar("attention")


def _shared(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls an attention."""
    odd = [name for name, value in options.items() if name not in KNOWN and value is not None]
    if odd or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(odd) or 'a mask'} of the model's own.")
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _ATTENTION.get()(module, query, key, value, scaling), None


AttentionInterface.register(NAME, _shared)
AttentionMaskInterface.register(NAME, lambda *arguments, **options: None)


@contextmanager
def attending(model: Any, attention: Attention) -> Iterator[None]:
    """Inside, the layers of the model attend by this function of (module, query, key, value, scaling)."""
    config = model.config.get_text_config(decoder=True)
    before, token = config._attn_implementation, _ATTENTION.set(attention)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _ATTENTION.reset(token)


@torch.no_grad()
def can_share(policy: Reader) -> bool:
    """Does this model read on after a prompt that its rows share as it reads each row alone? Tried on three short
    texts of arbitrary tokens, two of one prompt and one of a shorter; models whose attention has more to it than a
    softmax do not."""
    model, device = policy.causal_lm, policy.device
    if not policy.full_attention or longest_text(model)[0] < 6:
        return False
    takes, generator = arguments_of(model), torch.Generator().manual_seed(0)
    text = torch.randint(policy.vocab_size, (3, 6), generator=generator)
    text[1, :4] = text[0, :4]
    seen = torch.tensor([[True] * 4, [False] * 2 + [True] * 2])
    prompts = torch.stack([text[0, :4], text[2, :4].roll(2)])
    text, seen, prompts = text.to(device), seen.to(device), prompts.to(device)
    group, rows, order, column = torch.tensor([[0, 0, 1], [0, 1, 2], [2, 0, 1], [4, 4, 2]], device=device)
    off = []
    try:
        whole, cache = policy.scores(forward(model, takes, text).logits), empty_cache(model, packs=True)
        forward(model, takes, prompts, mask=seen.long(), position=positions(seen), cache=cache)
        layers: Any = cache.layers
        memory = SharedPrompts(policy, [(each.keys, each.values) for each in layers], seen, group)
        for _ in range(2):
            wanted = whole[rows, column]
            found = memory.read(text[rows, column][:, None], torch.ones_like(rows, dtype=torch.bool))
            off.append((found - wanted).square().mean(-1).sqrt() / wanted.std(-1, correction=0).clamp(min=1e-30))
            memory.take(order)
            rows, column = rows[order], column[order] + 1
    except Exception:
        return False
    return bool((torch.stack(off) <= ROUNDING.get(model.dtype, ROUNDING_16_BITS)).all())
