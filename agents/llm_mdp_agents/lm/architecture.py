"""What a causal language model can do, tried out on a few tokens rather than looked up by its name.

Scoring needs one thing of a model: that no token sees a later one. Texts then begin in the first column, what follows a
shorter one is not seen, and every model reads every row as it reads it alone: attention, recurrent or both, whatever
its positions are. Drawing needs more, because it keeps what was read (`Abilities.keeps`), and so does a row that
several responses share (`Abilities.packs`). A model that cannot do these does without them; one that cannot even do the
first is refused.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

CACHE_NAMES = ("past_key_values", "cache", "cache_params")
"""What models call what they keep."""

SPARE = 64
"""Columns that a cache grows by, at least."""

TRIED, TRIED_STATES = (5, 1), (8, 3)
"""Tokens of the longer text that a model is tried on, and how many of them are read one by one: of attention alone, and
of layers with states, which some compute otherwise when they go on."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}

ROUNDING = {torch.float64: 3e-5, torch.float32: 3e-5}
"""Largest difference of two right ways to read, as a share of the spread of the logits (many float64 models have norms
in float32)."""
ROUNDING_16_BITS = 0.05
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What configurations call the experts that a router chooses among."""


@dataclass(frozen=True)
class Abilities:
    """What a model was seen to do."""

    linear_head: bool
    """Is head(body(x)) all that it does? (Some scale or cap their logits afterwards.) Equal bit by bit."""
    keeps: Literal["ragged", "even", "nothing"]
    """Rows that it can go on with from what it kept of them: of any lengths, padded on the left; of one length, without
    a mask; none, so that every token is drawn after reading everything anew."""
    packs: bool
    """Does it attend to all that a mask lets through, at the positions it is told, whatever columns are between?"""
    column_bytes: int
    """Memory of the keys and values of one token."""


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

    def reorder_cache(self, beam_idx: Int[Tensor, " N"]) -> None:
        assert self.room is not None
        end, (keys, values) = self.get_seq_length(), (part.index_select(0, beam_idx) for part in self.room)
        self.room = (keys, values)
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]


def _wider(part: Tensor, used: int, columns: int) -> Tensor:
    """The first `used` columns, with room for more after them."""
    wider = part.new_empty(*part.shape[:-2], columns, part.shape[-1])
    wider[..., :used, :] = part[..., :used, :]
    return wider


def empty_cache(causal_lm: Any, packs: bool) -> Cache:
    """Where a model keeps what it reads."""
    return Cache(layer_class_to_replicate=GrowingLayer) if packs else DynamicCache(config=causal_lm.config)


def forward(
    model: Any,
    takes: frozenset[str],
    text: Int[Tensor, "B S"],
    *,
    mask: Tensor | None = None,
    position: Int[Tensor, "B S"] | None = None,
    cache: Cache | None = None,
    last: bool = False,
) -> Any:
    """One forward pass.

    Args:
        model: a causal LM, or its body.
        takes: the names of its arguments (`arguments_of`): what it has no argument for is left out.
        mask: which columns may be seen, or which column sees which; None: every column sees itself and all before it,
            as `position` None means that columns are counted.
        cache: what was read before, and gets what is read now.
        last: logits of the last column alone, where the model can.
    """
    options: dict[str, Any] = {"attention_mask": mask, "position_ids": position}
    # Losses of routers, which some configurations ask for, are made of a whole text.
    options["output_router_logits"] = False
    options = {name: value for name, value in options.items() if value is not None and name in takes}
    if cache is not None:
        options[next(name for name in CACHE_NAMES if name in takes)] = cache
    if last and "logits_to_keep" in takes:
        options["logits_to_keep"] = 1
    return model(input_ids=text.clamp(min=0), use_cache=cache is not None, **options)


def arguments_of(model: Any) -> frozenset[str]:
    """The names of what a model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def take_rows(cache: Any, rows: Int[Tensor, " N"]) -> None:
    """Keep these rows of what was read, in this order."""
    cache.reorder_cache(rows)


def positions(real: Bool[Tensor, "N S"]) -> Int[Tensor, "N S"]:
    """Positions count real tokens only."""
    return (real.cumsum(-1) - 1).clamp(min=0)


def attends_to_all(causal_lm: Any) -> bool:
    """Does its configuration say that every layer attends to all that the mask lets through, at the positions it is
    told? False for sliding windows, recurrent layers, biases by distance and attention kernels without masks. Windows
    are wider than any text that is worth trying, so that no trial can tell."""
    config = causal_lm.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    narrow = ("sliding_window", "attention_chunk_size", "index_topk")
    return (
        set(kinds) == {"full_attention"}
        and all(getattr(config, name, None) is None for name in narrow)
        and config._attn_implementation in ("eager", "sdpa")
        and getattr(causal_lm, "_supports_attention_backend", False)
        and "position_ids" in arguments_of(causal_lm)
    )


def longest_text(causal_lm: Any) -> tuple[float, str]:
    """The most tokens that a model reads as one distribution, and why no more; infinite where it has no such limit.

    Frequencies of "dynamic" and "longrope" positions depend on the length of the whole text beyond this: a token is
    then drawn at the frequencies of a short text and scored at those of a long one, and rows change one another.
    """
    config = causal_lm.config.get_text_config(decoder=True)
    limits = [(float(rows), f"it has {rows:,} positions") for rows in _position_rows(causal_lm, config)]
    for rope in _ropes(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)):
        kind = rope.get("rope_type", rope.get("type"))
        longest = getattr(config, "max_position_embeddings", None) or math.inf
        if kind == "longrope":
            longest = rope.get("original_max_position_embeddings") or longest
        if kind in ("dynamic", "longrope"):
            why = f'beyond, its positions ("{kind}") depend on the length of the whole text'
            limits.append((float(longest), why))
    return min(limits, default=(math.inf, ""))


def _ropes(parameters: Any) -> Iterator[dict[str, Any]]:
    """Every kind of rotary position in a configuration: one for all layers, or one a kind of layer."""
    if isinstance(parameters, dict):
        if "rope_type" in parameters or "type" in parameters:
            yield parameters
        for value in parameters.values():
            yield from _ropes(value)


def _position_rows(causal_lm: Any, config: Any) -> Iterator[int]:
    """How many positions there are in the tables, learned or computed, that a model looks its positions up in."""
    words = causal_lm.get_input_embeddings()
    for name, module in causal_lm.named_modules():
        if isinstance(module, nn.Embedding) and module is not words and ("position" in name or name.endswith("wpe")):
            # Some tables begin with rows of their own, the one of padding among them.
            before = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - before
    for name, buffer in causal_lm.named_buffers():
        if name.rpartition(".")[2] in ("embed_positions", "pos_encoding"):
            yield len(buffer)
    if hasattr(causal_lm.base_model, "build_mpt_alibi_tensor"):
        yield config.max_seq_len


@torch.no_grad()
def try_out(causal_lm: Any, vocab_size: int, device: torch.device) -> Abilities:
    """What a model does, seen on two short texts of arbitrary tokens; it costs about as much as drawing five tokens.

    Raises:
        ValueError: if it reads no plain text, or its tokens see later ones.
    """
    name = type(causal_lm).__name__
    kinds = getattr(causal_lm.config.get_text_config(decoder=True), "layer_types", None) or []
    most, steps = TRIED if set(kinds) <= ATTENTION else TRIED_STATES
    length = int(min(most, longest_text(causal_lm)[0]))
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(vocab_size, (2, length), generator=generator)
    # Some models count or mask by their token of padding; a policy may draw it like any other.
    padding = getattr(causal_lm.config.get_text_config(decoder=True), "pad_token_id", None)
    if length > 1 and isinstance(padding, int) and 0 <= padding < vocab_size:
        text[:, 1] = padding
    text = text.to(device)
    with torch.autocast(device.type, enabled=False):
        trial = _Trial(causal_lm, text, steps)
        try:
            whole, linear_head = trial.whole()
            short = trial.beginning()
        except Exception as error:
            raise ValueError(f"{name} reads no plain text ({error!s:.200}); use a causal language model.") from error
        noise = trial.difference(short, whole[1:, : short.shape[1]])
        if noise > 10 * trial.rounding:
            raise ValueError(
                f"the tokens of {name} see later ones, so that it gives no response a probability; use a causal "
                f"language model (one of the family of BERT needs is_decoder=true in its config)."
            )
        trial.rounding = max(trial.rounding, 4 * noise)
        enough = length > steps + 2
        packs = enough and attends_to_all(causal_lm) and trial.does(trial.packs, whole)
        keeps: Literal["ragged", "even", "nothing"] = "nothing"
        if enough:
            if trial.does(trial.ragged, whole, packs):
                keeps = "ragged"
            elif trial.does(trial.even, whole):
                keeps = "even"
    return Abilities(linear_head, keeps, packs and keeps == "ragged", trial.column_bytes)


class _Trial:
    """Ways to read two texts of one length, (2, S); each says how far it is from reading the `whole` texts."""

    def __init__(self, causal_lm: Any, text: Int[Tensor, "2 S"], steps: int):
        self.model, self.text, self.takes, self.steps = causal_lm, text, arguments_of(causal_lm), steps
        self.rounding = ROUNDING.get(causal_lm.dtype, ROUNDING_16_BITS)
        self.shorter = max(1, text.shape[1] - 2)
        """Tokens of the second text where rows of different lengths are tried."""
        config = causal_lm.config.get_text_config(decoder=True)
        routed = any(getattr(config, name, None) for name in EXPERTS)
        self.flips = causal_lm.dtype not in ROUNDING and routed
        """May a router fall on the other side by rounding alone?"""
        self.column_bytes = 0

    def does(self, way: Any, *arguments: Any) -> bool:
        """Does a model read right in this way? Whatever it raises, it does not."""
        try:
            return way(*arguments) <= self.rounding
        except Exception:
            return False

    def difference(self, one: Float[Tensor, "*N V"], other: Float[Tensor, "*N V"]) -> float:
        """Root of the mean squared difference, as a share of the spread of the logits of the same token: of the worst
        token, or of the median one where some may flip; inf where something is not finite."""
        spread = other.float().std(-1, correction=0).clamp(min=1e-30)
        shares = (one.float() - other.float()).square().mean(-1).sqrt() / spread
        share = float(shares.median() if self.flips else shares.max())
        return share if math.isfinite(share) else math.inf

    def whole(self) -> tuple[Float[Tensor, "2 S V"], bool]:
        """Logits of both texts read at once, and whether a linear head is the last that happens."""
        head, body = self.model.get_output_embeddings(), self.model.base_model
        seen: dict[str, Any] = {}

        def watch_head(module: nn.Module, inputs: Any, output: Any) -> None:
            seen["in"], seen["out"] = inputs[0], output

        def watch_body(module: nn.Module, inputs: Any, output: Any) -> None:
            seen["body"] = output[0]

        watched = [] if head is None or body is self.model else [(head, watch_head), (body, watch_body)]
        hooks = [module.register_forward_hook(watch) for module, watch in watched]
        try:
            logits = self.read(self.text)
        finally:
            for hook in hooks:
                hook.remove()
        linear = set(seen) == {"in", "out", "body"} and torch.equal(seen["out"], logits)
        return logits, linear and torch.equal(seen["in"], seen["body"])

    def beginning(self) -> Float[Tensor, "1 s V"]:
        """Logits of the shorter text alone: those of the `whole` one are the same if no token sees a later one."""
        return self.read(self.text[1:, : self.shorter])

    def packs(self, whole: Float[Tensor, "2 S V"]) -> float:
        """The first text with another response to its first two tokens in between, which it does not see."""
        shared, own = 2, self.text.shape[1] - 2
        text = torch.cat([self.text[:1, :shared], self.text[1:, :2], self.text[:1, shared:]], dim=1)
        count = torch.arange(text.shape[1], device=text.device)
        position = torch.where(count < shared + 2, count, count - 2)[None]
        seen = torch.ones(len(count), len(count), dtype=torch.bool, device=text.device).tril()
        seen[shared + 2 :, shared : shared + 2] = False
        output = forward(self.model, self.takes, text, mask=mask_of(self.model, seen[None, None]), position=position)
        logits = output.logits[:, torch.cat([count[:shared], count[-own:]])]
        return self.difference(logits, whole[:1])

    def ragged(self, whole: Float[Tensor, "2 S V"], holes: bool) -> float:
        """Rows of two lengths, padded on the left, read up to the last tokens of each and then on, one by one, their
        order changed; with `holes`, a column after the beginning of the second text is there and hidden."""
        columns, kept = self.text.shape[1] - self.steps, self.shorter - self.steps
        text = self.text[:, :columns].clone()
        seen = torch.ones_like(text, dtype=torch.bool)
        hole = int(holes)
        place = slice(columns - kept - hole, columns - hole)
        seen[1] = False
        text[1, place], seen[1, place] = self.text[1, :kept], True
        cache = empty_cache(self.model, holes)
        before = self.read(text, mask=seen.long(), position=positions(seen), cache=cache)
        worst = [self.difference(before[0], whole[0, :columns]), self.difference(before[1, place], whole[1, :kept])]
        order = torch.tensor([1, 0], device=text.device)
        self.reorder(cache, order)
        seen = seen[order]
        for step in range(self.steps):
            newest = torch.stack([self.text[1, kept + step], self.text[0, columns + step]])[:, None]
            seen = torch.cat([seen, torch.ones_like(newest, dtype=torch.bool)], dim=1)
            after = self.read(newest, mask=seen.long(), position=seen.sum(-1, keepdim=True) - 1, cache=cache)[:, -1]
            worst.append(self.difference(after, torch.stack([whole[1, kept + step], whole[0, columns + step]])))
        return max(worst)

    def even(self, whole: Float[Tensor, "2 S V"]) -> float:
        """Both texts up to their last tokens, and then on, one by one, their order changed; neither mask nor
        positions."""
        cache, order = empty_cache(self.model, False), torch.tensor([1, 0], device=self.text.device)
        columns = self.text.shape[1] - self.steps
        worst = [self.difference(self.read(self.text[:, :columns], cache=cache), whole[:, :columns])]
        self.reorder(cache, order)
        for place in range(columns, self.text.shape[1]):
            after = self.read(self.text[order, place : place + 1], cache=cache)[:, -1]
            worst.append(self.difference(after, whole[order, place]))
        return max(worst)

    def read(self, text: Int[Tensor, "B s"], **options: Any) -> Float[Tensor, "B s V"]:
        return forward(self.model, self.takes, text, **options).logits

    def reorder(self, cache: Any, order: Int[Tensor, " 2"]) -> None:
        take_rows(cache, order)
        kept = [
            each for layer in cache.layers for each in (getattr(layer, "keys", None), getattr(layer, "values", None))
        ]
        tensors = [each for each in kept if isinstance(each, Tensor)]
        self.column_bytes = sum(each.nbytes for each in tensors) // (2 * (self.text.shape[1] - self.steps))


def mask_of(causal_lm: Any, seen: Bool[Tensor, "B 1 S S"]) -> Tensor:
    """Which column sees which, as the model's attention takes it: as it is, or (the eager one) to be added."""
    if causal_lm.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=causal_lm.dtype, device=seen.device).masked_fill(~seen, -torch.inf)
