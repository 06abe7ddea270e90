"""Sampling from a language model with its keys and values kept: prompts are read once, whatever is drawn after them,
and so are the turns of a conversation.

The tokens are those of `PolicyModule.sample`, which reads everything anew for every token: same steps, same draws in
the same order, on every device. Rows that together would keep more than `CACHE_BYTES`, or rows of several lengths where
a model keeps rows of one length only, are drawn in parts, one after the other: the same parts for the same rows, but
other tokens than if they were drawn at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Ends, as_tensor, finish_of, is_end, prefixes_of
from llm_mdp_agents.lm.architecture import arguments_of, empty_cache, forward, positions, take_rows
from llm_mdp_agents.lm.drawing import Drawing
from llm_mdp_agents.lm.products import packing
from llm_mdp_agents.lm.reader import Memory, Read, Reader
from llm_mdp_agents.lm.shared_prompts import FROM, SharedPrompts

CACHE_BYTES, SHARE_OF_DEVICE = 2 * 2**30, 1 / 4
"""Most memory of keys and values of rows that are drawn at once, on the CPU, and as a share of an accelerator's."""


@dataclass(frozen=True)
class Kept:
    """What was read of some rows, for the next turn."""

    row: Int[Tensor, " N"]
    """Their numbers in the conversation."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values, (N, heads, S, width) each."""
    seen: Bool[Tensor, "N S"]
    """The columns that hold a token of the row."""


@dataclass
class Growing:
    """Keys and values that get a column with every token, of rows that leave when they have ended: a `Memory`."""

    policy: Reader
    cache: Cache
    seen: Bool[Tensor, "N S"]
    shrinks = True

    def read(self, newest: Int[Tensor, "N 1"], alive: Bool[Tensor, " N"]) -> Float[Tensor, "N V"]:
        self.seen = torch.cat([self.seen, alive[:, None]], dim=1)
        return _read(self.policy, newest, self.seen, self.cache)

    def take(self, rows: Int[Tensor, " n"]) -> None:
        self.seen = self.seen[rows]
        take_rows(self.cache, rows)


class Conversation:
    """Several responses to several prompts, turn by turn; between the turns keys and values are kept. For models with
    full attention.

    First `sample` or `branch`, as of a policy; then `go_on`, as often as there are turns.
    """

    def __init__(self, policy: Reader):
        self.policy = policy
        self._kept: list[Kept] = []

    def sample(self, prompt, n, **options) -> Rollouts:
        """`Policy.sample`."""
        return sample(self.policy, prompt, n, keep=self._kept, **options)

    def branch(self, prompt, tokens, row, step, samples, **options) -> Rollouts:
        """`branch_of`."""
        return branch(self.policy, prompt, tokens, row, step, samples, keep=self._kept, **options)

    def go_on(
        self, row: Int[Tensor, " N"], prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"], **options: Any
    ) -> Rollouts:
        """`Policy.sample` of one response from each prefix `tokens`, reading only what is new of it.

        Args:
            row: which rows of the first draw these are, ascending; the others are forgotten.
            prompt: theirs.
            tokens: what the first draw had of them, and what came after it.
        """
        policy, kept = self.policy, self._kept
        self._kept = []

        def read(rows: Int[Tensor, " N"], most: int) -> Read:
            cache, seen = _together(policy, kept, row[rows])
            kept.clear()
            text = torch.cat([policy.lead(prompt[rows]), tokens[rows]], dim=1)
            text = text.gather(1, (text == PAD).long().argsort(dim=1, stable=True)).to(policy.device)
            old, whole = seen.sum(-1, keepdim=True), (text != PAD).sum(-1, keepdim=True)
            # What is new of every row ends in the last column.
            place = whole + torch.arange(-int((whole - old).max()), 0, device=policy.device)
            new = place >= old
            seen = torch.cat([seen, new], dim=1)
            logits = _read(policy, text.gather(1, place.clamp(min=0)), seen, cache)
            return _memory(policy, cache, seen, most), logits

        return _complete(policy, prompt, tokens, read, keep=self._kept, names=row, **options)


def _together(policy: Reader, kept: list[Kept], row: Int[Tensor, " N"]) -> tuple[Cache, Bool[Tensor, "N S"]]:
    """One cache of these rows: of each its own columns, from the left."""
    length = torch.zeros(len(row), dtype=torch.int64)
    for part in kept:
        length[torch.isin(row, part.row)] = part.seen.sum(-1).cpu()[torch.isin(part.row, row)]
    columns, cache = int(length.max()), empty_cache(policy.causal_lm, packs=True)
    for number in range(len(kept[0].layers)):
        joined = [each.new_zeros(len(row), each.shape[1], columns, each.shape[3]) for each in kept[0].layers[number]]
        for part in kept:
            chosen = torch.isin(part.row, row).nonzero()[:, 0].to(policy.device)
            to = torch.isin(row, part.row).nonzero()[:, 0].to(policy.device)
            # Where a row has fewer columns, unseen ones follow.
            order = (~part.seen[chosen]).long().argsort(dim=1, stable=True)[:, None, :columns, None]
            for whole, own in zip(joined, part.layers[number]):
                whole[to, :, : order.shape[2]] = own[chosen].take_along_dim(order, dim=2)
        keys, values = joined
        cache.update(keys, values, number)
    return cache, torch.arange(columns, device=policy.device) < length.to(policy.device)[:, None]


def sample(policy: Reader, prompt, n, *, prefix=None, horizon, keep=None, **options) -> Rollouts:
    """`Policy.sample`; rows that share a long prompt have one copy of its keys and values, where the model can."""
    beginning = torch.full((len(prompt), 0), PAD) if prefix is None else prefix

    def read(rows: Int[Tensor, " N"], most: int) -> Read:
        text = torch.cat([policy.lead(prompt), beginning], dim=1)
        # Columns without a token move to the left, so that every row's last token is in the last column.
        text = text.gather(1, (text != PAD).long().argsort(dim=1, stable=True))
        distinct, which = text[rows // n].unique(dim=0, return_inverse=True)
        distinct = distinct[:, (distinct != PAD).any(0)].to(policy.device, non_blocking=True)
        # A prompt of few rows takes the room of one of many.
        slots = len(distinct) * int(which.bincount().max())
        seen, which = distinct != PAD, which.to(policy.device, non_blocking=True)
        cache = empty_cache(policy.causal_lm, policy.full_attention)
        logits = _read(policy, distinct, seen, cache)
        several = distinct.shape[1] >= FROM and 2 * len(distinct) <= len(which) >= slots / 2
        if several and keep is None and policy.fixed_width is None and policy.shares_prompts:
            return SharedPrompts(policy, _layers(cache), seen, which), logits[which]
        take_rows(cache, which)
        return _memory(policy, cache, seen[which], most), logits[which]

    return _complete(
        policy,
        prompt.repeat_interleave(n, dim=0),
        beginning.repeat_interleave(n, dim=0),
        read,
        horizon=horizon,
        keep=keep,
        **options,
    )


def branch(policy: Reader, prompt, tokens, row, step, samples, *, horizon, **options) -> Rollouts:
    """`branch_of`: every response is read once, and a branch sees only the columns before its cut.

    Keys carry their positions, so the columns after the cut can stay where they are, hidden.
    """

    def read(rows: Int[Tensor, " N"], most: int) -> Read:
        source, cut = row[rows // samples], step[rows // samples]
        needed, which = source.unique(return_inverse=True)
        lead = policy.lead(prompt[needed])
        text = torch.cat([lead, tokens[needed][:, : int(cut.max())]], dim=1)
        text, which, last = (
            part.to(policy.device, non_blocking=True) for part in (text, which, lead.shape[1] + cut - 1)
        )
        real, cache, body = text != PAD, empty_cache(policy.causal_lm, packs=True), policy.causal_lm.base_model
        hidden = forward(body, arguments_of(body), text, mask=real.long(), position=positions(real), cache=cache)[0]
        logits = policy.scores(policy.causal_lm.get_output_embeddings()(hidden[which, last]))
        take_rows(cache, which)
        seen = real[which] & (torch.arange(text.shape[1], device=policy.device) <= last[:, None])
        return _memory(policy, cache, seen, most), logits

    beginning = prefixes_of(tokens, row, step)
    prompt_of = prompt[row].repeat_interleave(samples, dim=0)
    return _complete(policy, prompt_of, beginning.repeat_interleave(samples, dim=0), read, horizon=horizon, **options)


def _memory(policy: Reader, cache: Cache, seen: Bool[Tensor, "N S"], most: int) -> Memory:
    """What was read of rows, with room for so many tokens more."""
    fixed = policy.fixed_width
    return Growing(policy, cache, seen) if fixed is None else fixed.memory(cache, seen, most)


def _read(policy: Reader, text: Int[Tensor, "N s"], seen: Bool[Tensor, "N S"], cache: Cache) -> Float[Tensor, "N V"]:
    """Read the newest columns, the last s of S; the scores after the last."""
    model, takes = policy.causal_lm, arguments_of(policy.causal_lm)
    if policy.abilities.keeps == "even":
        return policy.scores(forward(model, takes, text, cache=cache, last=True).logits[:, -1])
    mask, step = seen.long(), text.shape[1] == 1
    if step and policy.full_attention and policy.device.type != "cpu" and model.config._attn_implementation == "sdpa":
        # What has every dimension is taken as it is; otherwise the model waits to learn whether all is seen.
        mask = seen[:, None, None, :]
    position = seen.sum(-1, keepdim=True) - 1 if step else positions(seen)[:, -text.shape[1] :]
    output = forward(model, takes, text, mask=mask, position=position, cache=cache, last=True)
    return policy.scores(output.logits[:, -1])


@torch.no_grad()
def _complete(
    policy: Reader,
    prompt: Int[Tensor, "R L"],
    beginning: Int[Tensor, "R t"],
    read: Callable[[Int[Tensor, " N"], int], Read],
    *,
    eos: Ends,
    horizon: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    greedy: bool = False,
    stop: tuple[int, ...] = (),
    keep: list[Kept] | None = None,
    names: Int[Tensor, " R"] | None = None,
) -> Rollouts:
    """Draw tokens after every beginning (PAD on the right) until all rows have ended; `read` is asked for the rows that
    go on, and told how many tokens more they have at most.

    Args:
        keep: gets what was read, by the rows' names (None: their numbers); last tokens have not been read.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; it must be above 0 (greedy=True instead of 0).")
    length = (beginning != PAD).sum(-1)
    if bool((length > horizon).any()):
        raise ValueError(f"a prefix has {int(length.max())} tokens and the horizon is {horizon}; raise the horizon.")
    tokens = torch.full((len(prompt), horizon), PAD)
    width = min(horizon, beginning.shape[-1])
    tokens[:, :width] = beginning[:, :width]
    alive = (length < horizon) & ~is_end(tokens, eos).any(-1)
    rows = alive.nonzero()[:, 0]
    before = (policy.lead(prompt[rows]) != PAD).sum(-1)
    policy.check_length(max(before.tolist(), default=1) + horizon - 1)
    device = policy.device
    drawing = Drawing(
        policy, prompt, tokens.to(device), length.to(device), alive.to(device), as_tensor(eos, stop).to(device),
        generator, temperature, greedy,
    )  # fmt: skip

    def left(rows: Int[Tensor, " n"], place: Int[Tensor, " n"], memory: Memory) -> None:
        if keep is not None:
            layers = [(keys[place], values[place]) for keys, values in _layers(memory.cache)]
            keep.append(Kept(rows if names is None else names[rows], layers, memory.seen[place]))

    # What is kept for the next turn is there together in any case.
    parts = [rows] if keep is not None else _parts(policy, rows, before + length[rows], horizon)
    with packing(policy.model):
        for batch in parts:
            if len(batch):
                most = int((horizon - length[batch]).max())
                memory, logits = read(batch, most)
                drawing.run(batch, most, memory, logits, left)
    tokens, logp = drawing.tokens.cpu(), drawing.logp.cpu()
    return Rollouts(prompt, tokens, tokens != PAD, logp, finish_of(tokens, eos))


def _parts(policy: Reader, rows: Int[Tensor, " N"], text: Int[Tensor, " N"], horizon: int) -> list[Int[Tensor, " n"]]:
    """The rows that are drawn at once: as many as the cache may hold, of one length where the model keeps such alone.

    Args: text: tokens of each row that have been read when its first token is drawn.
    """
    abilities, limit = policy.abilities, CACHE_BYTES
    if policy.device.type == "cuda":
        limit = int(SHARE_OF_DEVICE * torch.cuda.get_device_properties(policy.device).total_memory)
    alike = [rows[text == each] for each in text.unique()] if abilities.keeps == "even" else [rows]
    parts = []
    for group in alike:
        columns = max(text.tolist(), default=0) + horizon
        most = max(1, limit // max(1, abilities.column_bytes * columns))
        parts += group.tensor_split(max(1, -(-len(group) // most)))
    return parts


def _layers(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
