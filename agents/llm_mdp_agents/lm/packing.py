"""How texts are laid out for a language model: one response a row, or all responses to a prompt in one."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD
from llm_mdp_agents.lm.architecture import arguments_of, forward, mask_of, positions
from llm_mdp_agents.lm.shared_prompts import SHARED, attending, attention_of

UNUSED = -2
"""The owner of columns that nobody uses."""


CAUSAL, MASKED = 0.9, 1.6
"""What a pair of columns costs where each sees all before it, and where a mask says so, with its gradient, beside as
many multiplications of a product: measured on a CPU, where kernels of attention are slower, and compute half of the
first alone."""
PARTS, PAIRS = 5.0, 250
"""The same where prompts and responses attend in two parts (`shared_prompts.attention_of`), with nothing computed for
pairs that do not see each other, but weights kept for the gradient; the most such pairs a column of text, so that they
take at most a third of the memory of a layer's other activations."""
PARTS_FROM = 512
"""Columns of prompts from which on that is done: below, a mask was seen to cost the same, and less memory."""
MULTIPLE = 16
"""Attention kernels of accelerators take masks whose columns are a multiple of this as they are."""


@dataclass(frozen=True)
class Reading:
    """Texts as a model reads them, and where in them the state before each policy token is."""

    text: Int[Tensor, "G S"]
    """PAD where there is no token."""
    state: Int[Tensor, " N"]
    """Column in the flattened text, for every policy token, row by row."""
    position: Int[Tensor, "G S"] | None = None
    """None: columns are counted."""
    owner: Int[Tensor, "G S"] | None = None
    """The response that a column belongs to, SHARED for prompts, UNUSED for padding; None: one response a row, from the
    first column on."""
    in_parts: bool = False
    """Whether a mask says who sees whom, or prompts and responses attend apart."""

    def on(self, device: torch.device) -> "Reading":
        """The same there; on accelerators texts that need a mask get a convenient width."""
        parts: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        missing = -self.text.shape[1] % MULTIPLE if self.owner is not None and device.type != "cpu" else 0
        if missing:
            row, column = self.state // self.text.shape[1], self.state % self.text.shape[1]
            parts["state"] = row * (self.text.shape[1] + missing) + column
            for name, fill in (("text", PAD), ("position", 0), ("owner", UNUSED)):
                parts[name] = pad(parts[name], (0, missing), value=fill)
        for name, part in parts.items():
            parts[name] = part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
        return type(self)(**parts)

    def attention(self) -> Bool[Tensor, "G 1 S S"] | None:
        """Which column sees which: earlier ones of the prompt and of its own response. None: all earlier ones."""
        if self.owner is None:
            return None
        seen = (self.owner[:, :, None] == self.owner[:, None, :]) | (self.owner == SHARED)[:, None, :]
        return seen.tril()[:, None]

    def cost(self, width: int) -> float:
        """Multiplications and additions of one layer, about: 24 h² a token and 4 h a pair of tokens."""
        rows, columns = self.text.shape
        pairs = rows * columns**2 * (CAUSAL if self.owner is None else MASKED)
        if self.in_parts:
            pairs = rows * self.prompt_columns**2 * CAUSAL + self.response_pairs * PARTS
        return rows * columns * 24 * width**2 + pairs * 4 * width

    @property
    def prompt_columns(self) -> int:
        """Of the longest prompt that responses share; they are the first ones."""
        return 0 if self.owner is None else int((self.owner == SHARED).any(0).sum())

    @property
    def response_pairs(self) -> int:
        """Pairs of a response's column and one that it may see, where all responses are as long as the longest."""
        if self.owner is None or not bool((self.owner >= 0).any()):
            return 0
        size = self.owner[self.owner >= 0].unique(return_counts=True)[1]
        return len(size) * int(size.max()) * (self.prompt_columns + int(size.max()))


def lead_of(prompt: Int[Tensor, "B L"], begin: int | None) -> Int[Tensor, "B L1"]:
    """What is read before a response: the prompt, with the token `begin` right before it if there is one, so that the
    state before step 0 is never padding."""
    if begin is None:
        return prompt
    lead = pad(prompt, (1, 0), value=PAD)
    begins = (lead == PAD) & (pad(lead[:, 1:], (0, 1)) != PAD)
    return torch.where(begins, begin, lead)


def plain_reading(lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Reading:
    """One row a response, from the first column on: its prompt, and its tokens up to the last of the policy, which need
    not be read. What stands after a text is not seen by it."""
    step = torch.arange(tokens.shape[1])
    needed = torch.where(step < (mask * step).amax(-1, keepdim=True), tokens, PAD)
    text = torch.cat([lead, needed], dim=1)
    text = text.gather(1, (text == PAD).long().argsort(dim=1, stable=True))
    text = text[:, : int((text != PAD).sum(-1).max())]
    row, step = mask.nonzero().unbind(1)
    before = (lead != PAD).sum(-1)[row] - 1 + step
    return Reading(text, row * text.shape[1] + before.clamp(max=text.shape[1] - 1))


def packed_reading(lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Reading:
    """One row a run of equal prompts: the prompt, then all responses to it side by side, positions starting again after
    the prompt."""
    first = torch.ones(len(lead), dtype=torch.bool)
    first[1:] = (lead[1:] != lead[:-1]).any(-1)
    group, lead = first.cumsum(0) - 1, lead[first]
    # Prompts from the first column on, so that causal attention reads them as they are.
    lead = lead.gather(1, (lead == PAD).long().argsort(dim=1, stable=True))
    last = (lead != PAD).sum(-1) - 1
    step = torch.arange(tokens.shape[1])
    length = (mask * step).amax(-1)
    before = length.cumsum(0) - length
    start = lead.shape[1] + before - before[first][group]
    columns = int((start + length).max())

    text, owner = (torch.full((len(lead), columns), fill) for fill in (PAD, UNUSED))
    text[:, : lead.shape[1]], owner[:, : lead.shape[1]] = lead, torch.where(lead == PAD, UNUSED, SHARED)
    position = positions(text != PAD)
    row, column = (step < length[:, None]).nonzero().unbind(1)
    place = group[row], start[row] + column
    position[place] = position[group[row], -1] + 1 + column
    text[place], owner[place] = tokens[row, column], row

    row, chosen = mask.nonzero().unbind(1)
    state = group[row] * columns + torch.where(chosen == 0, last[group[row]], start[row] + chosen - 1)
    return Reading(text, state, position, owner)


def cheapest_reading(
    plain: Reading, lead: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], model: Any,
    attends_in_parts: Callable[[], bool] = lambda: False,
) -> Reading:  # fmt: skip
    """The `plain_reading` of these texts, or their `packed_reading` where this model reads it for less.

    Args: attends_in_parts: may prompts and responses attend apart? Asked where it would be worth it.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    packed = packed_reading(lead, tokens, mask)
    ways = [plain, packed]
    few = packed.response_pairs <= PAIRS * packed.text.numel()
    if packed.prompt_columns >= PARTS_FROM and few and attends_in_parts():
        ways.append(replace(packed, in_parts=True))
    return min(ways, key=lambda way: way.cost(width))


def read(model: Any, body: Any, reading: Reading) -> Float[Tensor, "N H"]:
    """What a model's body, or a model, says before every policy token of these texts.

    Args: model: whose configuration the attention of the body follows.
    """
    reading = reading.on(next(body.parameters()).device)
    takes, text, position = arguments_of(body), reading.text, reading.position
    if reading.in_parts and reading.owner is not None:
        with attending(model, attention_of(reading.owner)):
            output = forward(body, takes, text, position=position)[0]
    else:
        attention = reading.attention()
        mask = None if attention is None else mask_of(model, attention)
        output = forward(body, takes, text, mask=mask, position=position)[0]
    return output.flatten(0, 1)[reading.state]
