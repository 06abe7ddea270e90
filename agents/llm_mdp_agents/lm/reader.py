"""What drawing asks of a policy that reads with a causal language model."""

from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from llm_mdp_agents.lm.architecture import Abilities


class Memory(Protocol):
    """What is kept of rows that are being drawn."""

    @property
    def cache(self) -> Cache:
        """Keys and values."""
        ...

    @property
    def seen(self) -> Bool[Tensor, "N S"]:
        """The columns that hold a token of the row."""
        ...

    @property
    def shrinks(self) -> bool:
        """Do rows leave when they have ended? Otherwise they stay until all have."""
        ...

    def read(self, newest: Int[Tensor, "N 1"], alive: Bool[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """One more token of each row; the scores of the next. What is read of rows that are not alive is not seen."""
        ...

    def take(self, rows: Int[Tensor, " n"]) -> None:
        """Keep these rows, in this order."""
        ...


Read = tuple[Memory, Float[Tensor, "N V"]]
"""What was read of some rows, and the scores of each one's next token."""


class Widens(Protocol):
    """What makes memories that have a fixed width."""

    def memory(self, cache: Cache, seen: Bool[Tensor, "N S"], most: int) -> Memory:
        """What was read, with room for so many tokens more."""
        ...


class Reader(Protocol):
    """What drawing asks of a policy that reads with a causal language model (`lm.policy.LanguageModelPolicy`)."""

    model: Any
    """A `transformers` causal LM, with or without peft adapters."""
    vocab_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def causal_lm(self) -> Any:
        """The model without adapters' wrapper."""
        ...

    @property
    def abilities(self) -> Abilities:
        """What the model was seen to do."""
        ...

    @property
    def full_attention(self) -> bool:
        """Does every layer attend to all that the mask lets through?"""
        ...

    @property
    def shares_prompts(self) -> bool:
        """Can rows read on after one copy of the prompt that they share?"""
        ...

    @property
    def fixed_width(self) -> Widens | None:
        """Makes memories of a fixed width (`fixed_width.FixedWidth`); None: they grow."""
        ...

    def lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """What is read before the response."""
        ...

    @property
    def is_masked(self) -> bool:
        """Is anything forbidden anywhere?"""
        ...

    def check_length(self, length: int) -> None:
        """ValueError for texts of more tokens than the model reads."""
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
