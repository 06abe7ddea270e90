"""A Hugging Face causal language model as a `Policy`: what tables do for the exact ledger, this does for everything
else.

`logits` is the plain way, kept for exact verification. `logp` is what training differentiates: a prompt that several
responses share is read once, only policy tokens go through the head, and the head goes in chunks. `sample` and `branch`
keep the keys and values of what was read (generation.py). All tensors that come and go are on the CPU, wherever the
model is.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import PolicyModule, prefixes_of, token_logp
from llm_mdp_agents.lm import generation

LOGIT_BYTES = 64 * 2**20
"""Most memory of logits that `logp` keeps for the backward pass; beyond it they are computed again there, chunk by
chunk."""


class LanguageModelPolicy(PolicyModule):
    """π(wₜ | W₀,ₜ₋₁) from a causal language model. Its dropout is removed: a policy is one distribution, in training
    too.

    Args:
        model: any `transformers` causal LM, with or without peft adapters.
        vocab_size: tokens that may be generated, the first ones of the model's vocabulary.
        begin: token put before the prompt, so that even an empty prompt has a first state; None: nothing is put there.
        temperature: divides all logits, those that are sampled from and those that are scored; the temperature of a
            call comes on top.

    Raises:
        ValueError: a vocabulary larger than the model's, a temperature that is not positive; later, an empty prompt
        without `begin`.
    """

    kind = "transformer"
    model: Any

    def __init__(self, model: Any, vocab_size: int, begin: int | None, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be above 0.")
        rows = model.get_input_embeddings().weight.shape[0]
        if not 0 < vocab_size <= rows:
            raise ValueError(f"vocab_size is {vocab_size}; it must be 1 … {rows}, the vocabulary of the model.")
        _remove_dropout(model)
        self.model, self.vocab_size, self.begin, self.temperature = model.eval(), vocab_size, begin, temperature

    def train(self, mode: bool = True):
        """Stays in evaluation mode: the ratio of the first update must be exactly 1."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model, without peft's wrapper around it; its layers are the adapted ones."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def linear_head(self) -> bool:
        """Is head(body(x)) all that the model does? (Some scale or cap their logits afterwards.) Tried on two tokens,
        bit by bit."""
        head = self.causal_lm.get_output_embeddings()
        if head is None or self.causal_lm.base_model is self.causal_lm:
            return False
        with torch.no_grad():
            text = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
            hidden = self.causal_lm.base_model(input_ids=text, use_cache=False)[0]
            return torch.equal(head(hidden), self.model(input_ids=text, use_cache=False).logits)

    @property
    def full_attention(self) -> bool:
        """Does every layer attend to all that the mask lets through, at the positions it is told? False for sliding
        windows, recurrent layers, biases by distance and attention kernels without masks: these models read everything
        anew."""
        config = self.causal_lm.config.get_text_config(decoder=True)
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        return (
            set(kinds) == {"full_attention"}
            and getattr(config, "sliding_window", None) is None
            and getattr(config, "attention_chunk_size", None) is None
            and config._attn_implementation in ("eager", "sdpa")
            and getattr(self.causal_lm, "_supports_attention_backend", False)
            and "position_ids" in inspect.signature(self.causal_lm.forward).parameters
        )

    def lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """What is read before the response: the prompt with `begin` right before it, so that the state before step 0 is
        never padding."""
        if self.begin is None:
            if prompt.shape[-1] == 0 or bool((prompt[:, -1] == PAD).any()):
                raise ValueError("a prompt is empty; give it at least one token, or the policy a `begin` token.")
            return prompt
        lead = pad(prompt, (1, 0), value=PAD)
        begins = (lead == PAD) & (pad(lead[:, 1:], (0, 1)) != PAD)
        return torch.where(begins, self.begin, lead)

    def scores(self, logits: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch V"]:
        """The model's logits as this policy's: of its tokens only, at its temperature, at least in float32."""
        logits = logits[..., : self.vocab_size]
        return (logits if logits.dtype == torch.float64 else logits.float()) / self.temperature

    def logits(self, prompt, tokens):
        shape = tokens.shape
        lead = self.lead(prompt.expand(*shape[:-1], prompt.shape[-1]).flatten(0, -2))
        # Positions count real tokens, and no real token attends to padding.
        text = torch.cat([lead, tokens.reshape(-1, shape[-1])[:, :-1]], dim=1).to(self.device)
        attention = text != PAD
        position = (attention.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=text.clamp(min=0), attention_mask=attention.long(), position_ids=position, use_cache=False
        )
        return self.scores(output.logits[:, -shape[-1] :]).reshape(*shape, self.vocab_size).cpu()

    def logp(
        self,
        prompt: Int[Tensor, "*batch L"],
        tokens: Int[Tensor, "*batch T"],
        mask: Bool[Tensor, "*batch T"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "*batch T"]:
        """`token_logp` of the `logits`, differentiable, for less: adjacent rows of the same prompt read it together
        where that is cheaper, and only policy tokens (mask True) have logits, at most `LOGIT_BYTES` of them at a
        time."""
        shape, length = tokens.shape, tokens.shape[-1]
        tokens, mask = tokens.reshape(-1, length), mask.reshape(-1, length)
        prompt = prompt.expand(*shape[:-1], prompt.shape[-1]).reshape(len(tokens), prompt.shape[-1])
        lead = self.lead(prompt)
        places = mask.nonzero()
        chosen = tokens[mask].to(self.device)
        with _recomputing(self.causal_lm):
            states, head = self._states(lead, tokens, mask)

        def score(
            states: Float[Tensor, "N H"], chosen: Int[Tensor, " N"], places: Int[Tensor, "N 2"]
        ) -> Float[Tensor, " N"]:
            logits = self.constrained(self.scores(head(states)), prompt, tokens, *places.unbind(1))
            return token_logp(logits, chosen, torch.ones_like(chosen, dtype=torch.bool), temperature)

        chunk = max(1, LOGIT_BYTES // (self.vocab_size * max(4, states.element_size())))
        if len(states) > chunk:
            parts = zip(states.split(chunk), chosen.split(chunk), places.split(chunk))
            logp = torch.cat(
                [checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            )
        else:
            logp = score(states, chosen, places)
        return torch.zeros(mask.shape, dtype=logp.dtype).masked_scatter(mask, logp.cpu()).reshape(shape)

    def _states(
        self, lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "N H"], Callable[[Tensor], Tensor]]:
        """What the model knows before every policy token, and what makes logits of it: for models whose head is more
        than a linear layer these are the logits already."""
        reading = plain_reading(lead, tokens, mask)
        if self.full_attention:
            width = self.causal_lm.config.get_text_config(decoder=True).hidden_size
            reading = min(reading, packed_reading(lead, tokens, mask), key=lambda reading: reading.cost(width))
        body = self.causal_lm.base_model if self.linear_head else self.causal_lm
        text, position = reading.text.to(self.device), reading.position.to(self.device)
        attention = reading.attention().to(self.device)
        if attention.dim() == 4:
            attention = torch.zeros(attention.shape, dtype=self.causal_lm.dtype, device=self.device).masked_fill(
                ~attention, -torch.inf
            )
        output = body(input_ids=text.clamp(min=0), attention_mask=attention, position_ids=position, use_cache=False)[0]
        states = output.flatten(0, 1)[reading.state.to(self.device)]
        return states, self.causal_lm.get_output_embeddings() if self.linear_head else nn.Identity()

    def sample(self, prompt, n, *, eos, horizon, generator, temperature=1.0, prefix=None, greedy=False, stop=()):
        """`Policy.sample`; every distinct prompt is read once."""
        return generation.sample(
            self,
            prompt,
            n,
            eos=eos,
            horizon=horizon,
            generator=generator,
            temperature=temperature,
            prefix=prefix,
            greedy=greedy,
            stop=stop,
        )

    def branch(self, prompt, tokens, row, step, samples, **options):
        """`branch_of`; every response is read once, however many branches it has. Models with a sliding window or other
        layers that do not attend to everything, or with a head that is more than a linear layer, read each prefix."""
        if self.full_attention and self.linear_head:
            return generation.branch(self, prompt, tokens, row, step, samples, **options)
        return self.sample(prompt[row], samples, prefix=prefixes_of(tokens, row, step), **options)

    def conversation(self) -> generation.Conversation | None:
        """Drawing turn by turn, with what was read kept between the turns; None: every turn is read anew."""
        return generation.Conversation(self) if self.full_attention and self.linear_head else None


SHARED, UNUSED = -1, -2
"""Owners of columns that belong to no single response."""


@dataclass(frozen=True)
class Reading:
    """Texts as a model reads them, and where in them the state before each policy token is."""

    text: Int[Tensor, "G S"]
    """PAD where there is no token."""
    position: Int[Tensor, "G S"]
    state: Int[Tensor, " N"]
    """Column in the flattened text, for every policy token, row by row."""
    owner: Int[Tensor, "G S"] | None = None
    """The response that a column belongs to, SHARED for prompts, UNUSED for padding; None: one response a row."""

    def attention(self) -> Bool[Tensor, "G S"] | Bool[Tensor, "G 1 S S"]:
        """Real tokens; or, where responses share a row, which column sees which: earlier ones of the prompt and of its
        own response."""
        if self.owner is None:
            return self.text != PAD
        seen = (self.owner[:, :, None] == self.owner[:, None, :]) | (self.owner == SHARED)[:, None, :]
        return seen.tril()[:, None]

    def cost(self, width: int) -> int:
        """Multiplications and additions of one layer, about: 24 h² a token and 4 h a pair of tokens."""
        rows, columns = self.text.shape
        return rows * columns * (24 * width**2 + columns * 4 * width)


def plain_reading(lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Reading:
    """One row a response, its prompt before it, up to the last policy token of all, which need not be read."""
    columns = lead.shape[1] + int((mask * torch.arange(mask.shape[1])).max())
    text = torch.cat([lead, tokens], dim=1)[:, :columns]
    row, step = mask.nonzero().unbind(1)
    return Reading(text, ((text != PAD).cumsum(-1) - 1).clamp(min=0), row * columns + lead.shape[1] - 1 + step)


def packed_reading(lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Reading:
    """One row a run of equal prompts: the prompt, then all responses to it side by side, positions starting again after
    the prompt."""
    first = torch.ones(len(lead), dtype=torch.bool)
    first[1:] = (lead[1:] != lead[:-1]).any(-1)
    group, lead = first.cumsum(0) - 1, lead[first]
    step = torch.arange(tokens.shape[1])
    length = (mask * step).amax(-1)
    before = length.cumsum(0) - length
    start = lead.shape[1] + before - before[first][group]
    columns = int((start + length).max())

    text, owner = (torch.full((len(lead), columns), fill) for fill in (PAD, UNUSED))
    text[:, : lead.shape[1]], owner[:, : lead.shape[1]] = lead, torch.where(lead == PAD, UNUSED, SHARED)
    position = ((text != PAD).cumsum(-1) - 1).clamp(min=0)
    row, read = (step < length[:, None]).nonzero().unbind(1)
    place = group[row], start[row] + read
    position[place] = position[group[row], -1] + 1 + read
    text[place], owner[place] = tokens[row, read], row

    row, chosen = mask.nonzero().unbind(1)
    state = group[row] * columns + torch.where(chosen == 0, lead.shape[1] - 1, start[row] + chosen - 1)
    return Reading(text, position, state, owner)


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Hugging Face recomputes activations in train mode only: its layers are in that mode here, and nothing inside them
    is."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False


def _remove_dropout(model: nn.Module) -> None:
    """Modules and probabilities alike: some layers draw by a number of their own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def tiny_transformer(
    vocab_size: int, length: int, seed: int = 0, width: int = 8, layers: int = 1
) -> LanguageModelPolicy:
    """A randomly initialised GPT-2 in float64, built from a config (nothing is downloaded), small enough for exact
    verification.

    Args: length: longest prompt plus response. seed: of the initialisation; the global generator is left as it was.
    """
    config = GPT2Config(
        vocab_size=vocab_size + 1,
        n_positions=length + 1,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=vocab_size,
        eos_token_id=None,
        initializer_range=0.5,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).double()
    return LanguageModelPolicy(model, vocab_size, begin=vocab_size)
