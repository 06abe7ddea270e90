"""Which tokens a policy may draw next: masks that hold where it samples and where it is scored."""

from collections.abc import Iterable
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llm_mdp.mdp.tree import PAD


class TokenMask(Protocol):
    """The tokens that may come next, a function of what a policy sees: the prompt and the response so far."""

    def __call__(self, prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"]) -> Bool[Tensor, "N W"] | None:
        """True where a token may come next; what is beyond the first W tokens may not. None: every token may, always.

        Args:
            prompt: PAD on the left.
            tokens: responses so far, PAD from their ends on.
        """
        ...


class TokenSubset:
    """The same tokens everywhere.

    Args:
        tokens: that may be drawn; the end token among them, if responses are to end by one.
        vocab_size: of the policy.

    Raises:
        ValueError: if there are none, or one is outside the vocabulary.
    """

    def __init__(self, tokens: Iterable[int], vocab_size: int):
        self.tokens = tuple(sorted(set(tokens)))
        if not self.tokens:
            raise ValueError("token_subset is empty; a policy needs at least one token that it may draw.")
        if wrong := [token for token in self.tokens if not 0 <= token < vocab_size]:
            raise ValueError(f"token_subset has the token {wrong[0]}, outside the vocabulary 0 … {vocab_size - 1}.")
        self.allowed = torch.zeros(vocab_size, dtype=torch.bool)
        self.allowed[list(self.tokens)] = True

    def __call__(self, prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"]) -> Bool[Tensor, "N V"]:
        return self.allowed.expand(len(tokens), -1)


def both(
    one: Bool[Tensor, "N W"] | None, other: Bool[Tensor, "N W2"] | None, vocab_size: int
) -> Bool[Tensor, "N V"] | None:
    """What two masks allow of a vocabulary; None: everything."""
    masks = [_of_width(mask, vocab_size) for mask in (one, other) if mask is not None]
    if len(masks) == 2:
        return masks[0] & masks[1]
    return masks[0] if masks else None


def check_some(
    allowed: Bool[Tensor, "N V"], tokens: Int[Tensor, "B T"], row: Int[Tensor, " N"], step: Int[Tensor, " N"]
) -> None:
    """Raise ValueError if no token is allowed at some (row, step) of the responses."""
    if not bool((some := allowed.any(-1)).all()):
        place = int((~some).nonzero()[0])
        before = [token for token in tokens[row[place], : step[place]].tolist() if token != PAD]
        raise ValueError(
            f"no token is allowed after {before!s:.60}: the model's token_subset and the task's action mask must leave "
            f"at least one."
        )


def _of_width(mask: Bool[Tensor, "N W"], vocab_size: int) -> Bool[Tensor, "N V"]:
    return torch.nn.functional.pad(mask, (0, vocab_size - mask.shape[-1])) if mask.shape[-1] != vocab_size else mask
