"""A batch as a trainer holds it: plain tensors under the field's names, no worlds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence

PARTS = ("reference_logp", "value", "greedy_reward")
"""What is collected for functions that read it."""


class Needs(Exception):
    """A function reads an optional part of the batch that was not collected; its name is the only argument."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B responses, K to each of P prompts, the rows of one prompt adjacent."""

    logp: Float[Tensor, "B T"]
    """log π of every token; 0 where mask is False. It requires grad where a loss is asked for."""
    old_logp: Float[Tensor, "B T"]
    """The same of the policy that drew them; equal at the first update. Without grad."""
    mask: Bool[Tensor, "B T"]
    """True where the policy chose the token, the end token included."""
    tokens: Int[Tensor, "B T"]
    """PAD (-1) after the end."""
    response_reward: Float[Tensor, " B"]
    token_reward: Float[Tensor, "B T"]
    """response_reward at the last token of the mask, 0 elsewhere."""
    group: Int[Tensor, " B"]
    """The number of the prompt's group, 0 … P - 1."""
    finish: Int[Tensor, " B"]
    """An `evidence.Finish`: 0 by its end token, 1 cut off at the horizon, 2 ended by the environment."""
    prompt_length: Int[Tensor, " B"]
    group_size: int
    """K."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Those of `PARTS` that were collected; read them as attributes."""

    @property
    def reference_logp(self) -> Float[Tensor, "B T"]:
        """log of the reference policy for the same tokens."""
        return self._part("reference_logp")

    @property
    def value(self) -> Float[Tensor, "B T1"]:
        """A critic's value of the prefix before step t, t = 0 … T; 0 from the end of the response on."""
        return self._part("value")

    @property
    def greedy_reward(self) -> Float[Tensor, " B"]:
        """Reward of the greedy response to the row's prompt."""
        return self._part("greedy_reward")

    @property
    def uid(self) -> np.ndarray:
        """`group` as strings, in an array of objects."""
        return np.array([str(number) for number in self.group.tolist()], dtype=object)

    def _part(self, name: str) -> Tensor:
        if name not in self.parts:
            raise Needs(name)
        return self.parts[name]

    def rows(self, first: int, last: int) -> "Batch":
        """Copies of the rows first … last - 1, their groups counted from 0."""
        picked = {name: tensor[first:last].clone() for name, tensor in self._tensors().items()}
        picked["group"] -= int(self.group[first])
        return replace(self, **picked, parts={name: part[first:last].clone() for name, part in self.parts.items()})

    def worlds(self, rows: int) -> Iterator["Batch"]:
        """So many rows at a time (fewer in the last), each with groups counted from 0. What is changed in one shows in
        no other."""
        names, tensors = zip(*(self._tensors() | {"group": self.group % (rows // self.group_size)}).items())
        parts = [part.split(rows) for part in self.parts.values()]
        for number, each in enumerate(zip(*(tensor.split(rows) for tensor in tensors))):
            # Copies: autograd takes a change of one slice in place for a change of all.
            given = {name: tensor.clone() for name, tensor in zip(names, each)}
            world = {name: part[number].clone() for name, part in zip(self.parts, parts)}
            yield Batch(**given, group_size=self.group_size, parts=world)

    def _tensors(self) -> dict[str, Tensor]:
        every = [each.name for each in fields(self)]
        return {name: value for name in every if isinstance(value := getattr(self, name), Tensor)}


def batch_of(evidence: Evidence, logp: Float[Tensor, "*worlds B T"], group_size: int) -> Batch:
    """All rows of all worlds as one batch of copies, every group of every world with a number of its own."""
    worlds, rollouts = logp.shape[:-2], evidence.rollouts
    rows = prod(worlds) * logp.shape[-2]

    def flat(tensor: Tensor, trailing: int = 1) -> Tensor:
        own = tensor.shape[-trailing:]
        return tensor.expand(*worlds, *own).reshape(rows, *own[1:]).clone()

    mask, reward = flat(rollouts.mask, 2), flat(evidence.response_reward)
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    parts = {
        name: flat(part, 2) for name in ("reference_logp", "value") if (part := getattr(evidence, name)) is not None
    }
    if evidence.branches is not None:
        greedy = torch.zeros(*evidence.branches.reward.shape[:-1], logp.shape[-2], dtype=reward.dtype)
        parts["greedy_reward"] = flat(greedy.index_add(-1, evidence.branches.row, evidence.branches.reward))
    return Batch(
        logp=flat(logp, 2),
        old_logp=flat(rollouts.logp, 2),
        mask=mask,
        tokens=flat(rollouts.tokens, 2),
        response_reward=reward,
        token_reward=torch.where(last, reward[:, None], 0.0),
        group=torch.arange(rows // group_size).repeat_interleave(group_size),
        finish=flat(rollouts.finish),
        prompt_length=flat((rollouts.prompt != PAD).sum(-1)),
        group_size=group_size,
        parts=parts,
    )
