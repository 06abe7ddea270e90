"""Sampling from a language model with its keys and values kept: prompts are read once, whatever is drawn after them,
and so are the turns of a conversation.

The tokens are those of `PolicyModule.sample`, which reads everything anew for every token: same steps, same draws in
the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Ends, as_tensor, draw_tokens, finish_of, is_end, prefixes_of

Read = tuple[Cache, Bool[Tensor, "N S"], Float[Tensor, "N V"]]
"""What was read: keys and values, which of their columns each row may see, and the logits of each row's next token."""


class Reader(Protocol):
    """What drawing asks of a policy that reads with a causal language model (`lm.policy.LanguageModelPolicy`)."""

    model: Any
    """A `transformers` causal LM, with or without peft adapters."""

    @property
    def device(self) -> torch.device: ...

    @property
    def causal_lm(self) -> Any:
        """The model without adapters' wrapper."""
        ...

    @property
    def full_attention(self) -> bool:
        """Does every layer attend to all that the mask lets through?"""
        ...

    def lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """What is read before the response."""
        ...

    def scores(self, logits: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch V"]:
        """The model's logits as the policy's, before its masks."""
        ...

    def constrained(
        self,
        logits: Float[Tensor, "N V"],
        prompt: Int[Tensor, "B L"],
        tokens: Int[Tensor, "B T"],
        row: Int[Tensor, " N"],
        step: Int[Tensor, " N"],
    ) -> Float[Tensor, "N V"]:
        """`PolicyModule.constrained`."""
        ...


@dataclass(frozen=True)
class Kept:
    """What was read of some rows, for the next turn."""

    row: Int[Tensor, " N"]
    """Their numbers in the conversation."""
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values, (N, heads, S, width) each."""
    seen: Bool[Tensor, "N S"]
    """The columns that hold a token of the row."""


SPARE = 64
"""Columns that a cache grows by, at least."""


class GrowingLayer(DynamicLayer):
    """Keys and values with room for more, so that a new token does not copy all that came before it."""

    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        keys, values = self.room if self.room is not None else (key_states[..., :0, :], value_states[..., :0, :])
        if end > keys.shape[-2]:
            columns = end + max(SPARE, end // 4)
            keys, values = _wider(keys, start, columns), _wider(values, start, columns)
        keys[..., start:end, :], values[..., start:end, :] = key_states, value_states
        self.room = (keys, values)
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Int[Tensor, " N"]) -> None:
        assert self.room is not None
        end, (keys, values) = self.get_seq_length(), (part.index_select(0, indices) for part in self.room)
        self.room = (keys, values)
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]


def _wider(part: Tensor, used: int, columns: int) -> Tensor:
    """The first `used` columns, with room for more after them."""
    wider = part.new_empty(*part.shape[:-2], columns, part.shape[-1])
    wider[..., :used, :] = part[..., :used, :]
    return wider


def _empty_cache(policy: Reader) -> Cache:
    if policy.full_attention:
        return Cache(layer_class_to_replicate=GrowingLayer)
    return DynamicCache(config=policy.causal_lm.config)


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

        def read(rows: Int[Tensor, " N"]) -> Read:
            cache, seen = _together(policy, kept, row[rows])
            kept.clear()
            text = torch.cat([policy.lead(prompt[rows]), tokens[rows]], dim=1)
            text = text.gather(1, (text == PAD).long().argsort(dim=1, stable=True)).to(policy.device)
            old, whole = seen.sum(-1, keepdim=True), (text != PAD).sum(-1, keepdim=True)
            # What is new of every row ends in the last column.
            place = whole + torch.arange(-int((whole - old).max()), 0, device=policy.device)
            new = place >= old
            seen = torch.cat([seen, new], dim=1)
            output = policy.model(
                input_ids=text.gather(1, place.clamp(min=0)).clamp(min=0), attention_mask=seen.long(),
                position_ids=_positions(seen)[:, -new.shape[1] :], past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            return cache, seen, policy.scores(output.logits[:, -1])

        return _complete(policy, prompt, tokens, read, keep=self._kept, names=row, **options)


def _together(policy: Reader, kept: list[Kept], row: Int[Tensor, " N"]) -> tuple[Cache, Bool[Tensor, "N S"]]:
    """One cache of these rows: of each its own columns, from the left."""
    length = torch.zeros(len(row), dtype=torch.int64)
    for part in kept:
        length[torch.isin(row, part.row)] = part.seen.sum(-1).cpu()[torch.isin(part.row, row)]
    columns, cache = int(length.max()), _empty_cache(policy)
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


def sample(policy: Reader, prompt, n, *, prefix=None, horizon, **options) -> Rollouts:
    """`Policy.sample`."""
    beginning = torch.full((len(prompt), 0), PAD) if prefix is None else prefix

    def read(rows: Int[Tensor, " N"]) -> Read:
        text = torch.cat([policy.lead(prompt), beginning], dim=1)
        # Columns without a token move to the left, so that every row's last token is in the last column.
        text = text.gather(1, (text != PAD).long().argsort(dim=1, stable=True))
        distinct, which = text[rows // n].unique(dim=0, return_inverse=True)
        distinct = distinct[:, (distinct != PAD).any(0)].to(policy.device)
        seen = distinct != PAD
        output = policy.model(
            input_ids=distinct.clamp(min=0), attention_mask=seen.long(), position_ids=_positions(seen),
            past_key_values=_empty_cache(policy), use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache, which = output.past_key_values, which.to(policy.device)
        cache.batch_select_indices(which)
        return cache, seen[which], policy.scores(output.logits[:, -1])[which]

    return _complete(
        policy,
        prompt.repeat_interleave(n, dim=0),
        beginning.repeat_interleave(n, dim=0),
        read,
        horizon=horizon,
        **options,
    )


def branch(policy: Reader, prompt, tokens, row, step, samples, *, horizon, **options) -> Rollouts:
    """`branch_of`: every response is read once, and a branch sees only the columns before its cut.

    Keys carry their positions, so the columns after the cut can stay where they are, hidden.
    """

    def read(rows: Int[Tensor, " N"]) -> Read:
        source, cut = row[rows // samples], step[rows // samples]
        needed, which = source.unique(return_inverse=True)
        lead = policy.lead(prompt[needed])
        text = torch.cat([lead, tokens[needed][:, : int(cut.max())]], dim=1).to(policy.device)
        real, which, last = text != PAD, which.to(policy.device), (lead.shape[1] + cut - 1).to(policy.device)
        output = policy.causal_lm.base_model(
            input_ids=text.clamp(min=0),
            attention_mask=real.long(),
            position_ids=_positions(real),
            past_key_values=_empty_cache(policy),
            use_cache=True,
        )
        logits = policy.scores(policy.causal_lm.get_output_embeddings()(output.last_hidden_state[which, last]))
        cache = output.past_key_values
        cache.batch_select_indices(which)
        return cache, real[which] & (torch.arange(text.shape[1], device=policy.device) <= last[:, None]), logits

    beginning = prefixes_of(tokens, row, step)
    prompt_of = prompt[row].repeat_interleave(samples, dim=0)
    return _complete(policy, prompt_of, beginning.repeat_interleave(samples, dim=0), read, horizon=horizon, **options)


def _positions(real: Bool[Tensor, "N S"]) -> Int[Tensor, "N S"]:
    """Positions count real tokens only."""
    return (real.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def _complete(
    policy: Reader,
    prompt: Int[Tensor, "R L"],
    beginning: Int[Tensor, "R t"],
    read: Callable[[Int[Tensor, " N"]], Read],
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
    go on.

    Args:
        keep: gets what was read, by the rows' names (None: their numbers); last tokens have not been read.
    """
    names = torch.arange(len(prompt)) if names is None else names
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; it must be above 0 (greedy=True instead of 0).")
    length = (beginning != PAD).sum(-1)
    if bool((length > horizon).any()):
        raise ValueError(f"a prefix has {int(length.max())} tokens and the horizon is {horizon}; raise the horizon.")
    tokens = torch.full((len(prompt), horizon), PAD)
    width = min(horizon, beginning.shape[-1])
    tokens[:, :width] = beginning[:, :width]
    logp = torch.zeros(tokens.shape, dtype=torch.float64)
    ends = as_tensor(eos, stop)
    alive = (length < horizon) & ~is_end(tokens, eos).any(-1)
    if not alive.any():
        return Rollouts(prompt, tokens, tokens != PAD, logp, finish_of(tokens, eos))
    batch = alive.nonzero()[:, 0]
    cache, seen, logits = read(batch)
    while alive.any():
        drawn = alive[batch].nonzero()[:, 0]
        row = batch[drawn]
        allowed = policy.constrained(logits[drawn.to(logits.device)], prompt, tokens, row, length[row])
        step_logp = (allowed / temperature).log_softmax(-1)
        token = step_logp.argmax(-1) if greedy else draw_tokens(step_logp, generator)
        chosen = step_logp.gather(-1, token[:, None])[:, 0]
        tokens[row, length[row]] = token.cpu()
        logp[row, length[row]] = chosen.to("cpu", torch.float64)
        length[row] += 1
        alive[row] = ~torch.isin(tokens[row, length[row] - 1], ends) & (length[row] < horizon)
        going = int(alive.sum())
        if going == 0:
            break
        if 2 * going < len(batch):
            if keep is not None:
                left = (~alive[batch]).nonzero()[:, 0]
                there = left.to(policy.device)
                layers = [(keys[there], values[there]) for keys, values in _layers(cache)]
                keep.append(Kept(names[batch[left]], layers, seen[there]))
            kept = alive[batch].nonzero()[:, 0]
            batch, kept = batch[kept], kept.to(policy.device)
            cache.batch_select_indices(kept)
            seen = seen[kept]
        newest = tokens[batch, length[batch] - 1].to(policy.device)[:, None]
        # A row that has ended reads its last token again and again until it leaves the batch; nobody looks at what
        # comes out.
        seen = torch.cat([seen, alive[batch].to(policy.device)[:, None]], dim=1)
        output = policy.model(
            input_ids=newest,
            attention_mask=seen.long(),
            position_ids=seen.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = policy.scores(output.logits[:, -1])
    if keep is not None:
        keep.append(Kept(names[batch], _layers(cache), seen))
    return Rollouts(prompt, tokens, tokens != PAD, logp, finish_of(tokens, eos))


def _layers(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
