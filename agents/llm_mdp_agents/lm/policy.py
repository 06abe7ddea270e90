"""A Hugging Face causal language model as a `Policy`: what tables do for the exact ledger, this does for everything
else.

`logits` is the plain way, kept for exact verification. `logp` is what training differentiates: a prompt that several
responses share is read once, only policy tokens go through the head, and the head goes in chunks. `sample` and `branch`
keep what the model remembers of a text (generation.py). What a model can do of this it is tried on (architecture.py);
what it cannot, it does the plain way. All tensors that come and go are on the CPU, wherever the model is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import PolicyModule, prefixes_of, token_logp
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp_agents.lm import generation, packing
from llm_mdp_agents.lm.architecture import (
    Abilities,
    attends_to_all,
    longest_text,
    try_out,
)
from llm_mdp_agents.lm.fixed_width import FixedWidth
from llm_mdp_agents.lm.packing import Reading, cheapest_reading, lead_of, plain_reading
from llm_mdp_agents.lm.products import FastMatmul, choose, chosen
from llm_mdp_agents.lm.shared_prompts import can_share

LOGIT_BYTES, ACCELERATOR_LOGIT_BYTES = 64 * 2**20, 2**30
"""Most memory of logits that `logp` keeps for the backward pass, on the CPU and elsewhere; beyond it they are computed
again there, chunk by chunk."""


class LanguageModelPolicy(PolicyModule):
    """π(wₜ | W₀,ₜ₋₁) from a causal language model. Its dropout is removed: a policy is one distribution, in training
    too.

    Args:
        model: any `transformers` causal LM, with or without peft adapters.
        vocab_size: tokens that may be generated, the first ones of the model's vocabulary.
        begin: token put before the prompt, so that even an empty prompt has a first state; None: nothing is put there.
        temperature: divides all logits, those that are sampled from and those that are scored; the temperature of a
            call comes on top.
        tokens: the only ones that it ever draws, with their probabilities renormalised: its `token_subset`. None: all.

    Raises:
        ValueError: a vocabulary larger than the model's, a temperature that is not positive, a token that is not in the
        vocabulary; later, an empty prompt without `begin`.
    """

    kind = "transformer"
    model: Any
    decode: Literal["growing", "static"] = "growing"
    """How keys and values are kept while it draws: with room for the next tokens, or at a fixed width, for a compiled
    step (`fixed_width`)."""
    _abilities: Abilities | None = None
    _fixed_width: FixedWidth | None = None
    _shares_prompts: bool | None = None

    def __init__(
        self,
        model: Any,
        vocab_size: int,
        begin: int | None,
        temperature: float = 1.0,
        tokens: Iterable[int] | None = None,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be above 0.")
        rows = model.get_input_embeddings().weight.shape[0]
        if not 0 < vocab_size <= rows:
            raise ValueError(f"vocab_size is {vocab_size}; it must be 1 … {rows}, the vocabulary of the model.")
        _remove_dropout(model)
        self.model, self.vocab_size, self.begin, self.temperature = model.eval(), vocab_size, begin, temperature
        if tokens is not None:
            self.token_subset = TokenSubset(tokens, vocab_size)

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

    @property
    def abilities(self) -> Abilities:
        """What the model was seen to do when it was first asked for (`architecture.try_out`).

        Raises:
            ValueError: if its tokens see later ones, or it reads no plain text.
        """
        if self._abilities is None:
            self._abilities = try_out(self.causal_lm, self.vocab_size, self.device)
        return self._abilities

    @property
    def fast_matmul(self) -> FastMatmul:
        """Whether large matrix products are oneDNN's (`lm.products`); it may be set, to "auto" too."""
        return chosen(self.model)

    @fast_matmul.setter
    def fast_matmul(self, choice: FastMatmul) -> None:
        choose(self.model, choice)

    @property
    def linear_head(self) -> bool:
        """Is head(body(x)) all that the model does? (Some scale or cap their logits afterwards.)"""
        return self.abilities.linear_head

    @property
    def full_attention(self) -> bool:
        """Does every layer attend to all that the mask lets through, at the positions it is told? Others read
        everything anew for a branch or a turn."""
        return self.abilities.packs and attends_to_all(self.causal_lm)

    @property
    def fixed_width(self) -> FixedWidth | None:
        """Makes memories of a fixed width; None: they grow.

        Raises:
            ValueError: if this model's cannot have one, or nothing here compiles.
        """
        if self.decode == "growing":
            return None
        if self._fixed_width is None:
            self._fixed_width = FixedWidth(self)
        return self._fixed_width

    def __getstate__(self) -> dict[str, Any]:
        """A copy compiles a step of its own."""
        return self.__dict__ | {"_fixed_width": None}

    @property
    def shares_prompts(self) -> bool:
        """Can rows read on after one copy of the prompt that they share?"""
        if self._shares_prompts is None:
            self._shares_prompts = can_share(self)
        return self._shares_prompts

    @property
    def _attends_in_parts(self) -> bool:
        """May prompts and responses attend apart in a packed row? Layers that compute again for the gradient would do
        it by another attention."""
        return self.device.type == "cpu" and not any(_recomputed(self.causal_lm)) and self.shares_prompts

    @cached_property
    def _longest(self) -> tuple[float, str]:
        return longest_text(self.causal_lm)

    def check_length(self, length: int) -> None:
        """Can texts of this many tokens be read, whatever is beside them?

        Args: length: of a prompt (with `begin`, if there is one) and its response together.

        Raises:
            ValueError: beyond what the model has positions for, or where they begin to depend on the whole text.
        """
        longest, why = self._longest
        if length > longest:
            raise ValueError(
                f"a prompt and its response have up to {length:,} tokens and {type(self.causal_lm).__name__} reads "
                f"{int(longest):,}: {why}; shorten the prompts or the horizon, or use another model."
            )

    def lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """What is read before the response: the prompt with `begin` right before it, so that the state before step 0 is
        never padding."""
        if self.begin is None and (prompt.shape[-1] == 0 or bool((prompt[:, -1] == PAD).any())):
            raise ValueError("a prompt is empty; give it at least one token, or the policy a `begin` token.")
        return lead_of(prompt, self.begin)

    def scores(self, logits: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch V"]:
        """The model's logits as this policy's: of its tokens only, at its temperature, at least in float32."""
        logits = logits[..., : self.vocab_size]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self.temperature == 1 else logits / self.temperature

    def logits(self, prompt, tokens):
        shape = tokens.shape
        prompt = prompt.expand(*shape[:-1], prompt.shape[-1]).flatten(0, -2)
        tokens = tokens.reshape(-1, shape[-1])
        states, head = self._states(self.lead(prompt), tokens, torch.ones_like(tokens, dtype=torch.bool), packed=False)
        return self.scores(head(states)).reshape(*shape, self.vocab_size).cpu()

    def next_logits(self, prompt, tokens, row, step):
        states, head = self._states(
            self.lead(prompt[row]), tokens[row], torch.arange(tokens.shape[1]) == step[:, None], packed=False
        )
        return self.scores(head(states))

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
        chosen = tokens[mask].to(self.device, non_blocking=True)
        # Before layers are set to recompute: then they keep nothing of what they read.
        abilities = self.abilities
        with recomputing(self.causal_lm):
            states, head = self._states(lead, tokens, mask, packed=abilities.packs)

        def score(
            states: Float[Tensor, "N H"], chosen: Int[Tensor, " N"], places: Int[Tensor, "N 2"]
        ) -> Float[Tensor, " N"]:
            logits = self.constrained(self.scores(head(states)), prompt, tokens, *places.unbind(1))
            return token_logp(logits, chosen, torch.ones_like(chosen, dtype=torch.bool), temperature)

        most = LOGIT_BYTES if states.device.type == "cpu" else ACCELERATOR_LOGIT_BYTES
        chunk = max(1, most // (self.vocab_size * max(4, states.element_size())))
        if len(states) > chunk:
            parts = zip(states.split(chunk), chosen.split(chunk), places.split(chunk))
            logp = torch.cat(
                [checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
            )
        else:
            logp = score(states, chosen, places)
        return torch.zeros(mask.shape, dtype=logp.dtype).masked_scatter(mask, logp.cpu()).reshape(shape)

    def _states(
        self, lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], packed: bool = True
    ) -> tuple[Float[Tensor, "N H"], Callable[[Tensor], Tensor]]:
        """What the model knows before every policy token, and what makes logits of it: for models whose head is more
        than a linear layer these are the logits already.

        Args: packed: may responses share a row?
        """
        reading = plain_reading(lead, tokens, mask)
        self.check_length(reading.text.shape[1])
        if packed and self.full_attention:
            reading = cheapest_reading(reading, lead, tokens, mask, self.causal_lm, lambda: self._attends_in_parts)
        return self.read(reading)

    def read(self, reading: Reading) -> tuple[Float[Tensor, "N H"], Callable[[Tensor], Tensor]]:
        """`_states` of texts that are laid out already."""
        linear_head = self.abilities.linear_head
        body = self.causal_lm.base_model if linear_head else self.causal_lm
        head = self.causal_lm.get_output_embeddings() if linear_head else nn.Identity()
        return packing.read(self.causal_lm, body, reading), head

    def sample(self, prompt, n, *, eos, horizon, generator, temperature=1.0, prefix=None, greedy=False, stop=()):
        """`Policy.sample`; every distinct prompt is read once, by models that can go on from what they kept of it."""
        options = {
            "eos": eos, "horizon": horizon, "generator": generator, "temperature": temperature, "prefix": prefix,
            "greedy": greedy, "stop": stop,
        }  # fmt: skip
        self.check_length(int((self.lead(prompt) != PAD).sum(-1).max()) + horizon - 1)
        if self.abilities.keeps == "nothing":
            return super().sample(prompt, n, **options)
        return generation.sample(self, prompt, n, **options)

    def branch(self, prompt, tokens, row, step, samples, **options):
        """`branch_of`; every response is read once, however many branches it has. Models with a sliding window or other
        layers that do not attend to everything, or with a head that is more than a linear layer, read each prefix."""
        if self.full_attention and self.linear_head:
            return generation.branch(self, prompt, tokens, row, step, samples, **options)
        return self.sample(prompt[row], samples, prefix=prefixes_of(tokens, row, step), **options)

    def conversation(self) -> generation.Conversation | None:
        """Drawing turn by turn, with what was read kept between the turns; None: every turn is read anew."""
        return generation.Conversation(self) if self.full_attention and self.linear_head else None


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Hugging Face recomputes activations in train mode only: its layers are in that mode here, and nothing inside them
    is."""
    layers = list(_recomputed(model))
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False


def _recomputed(model: nn.Module) -> Iterator[GradientCheckpointingLayer]:
    """The layers whose activations are computed again."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            yield module


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
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config).double()
    return LanguageModelPolicy(model, vocab_size, begin=vocab_size)
