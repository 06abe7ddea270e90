"""What was sampled, and nothing else: the only things that an estimator may see.

Dimensions, always in this order: worlds `...`, rows B (P prompts × K responses, rows of one prompt adjacent), time T.
Training has no world dimension; exact verification has one world for every outcome. Code that indexes from the right
serves both.
"""

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD


class Finish(IntEnum):
    """Why a response ended. Never guessed from padding."""

    EOS = 0
    HORIZON = 1
    ENVIRONMENT = 2


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses."""

    prompt: Int[Tensor, "*worlds B L"]
    """Prompt tokens, PAD on the left."""
    tokens: Int[Tensor, "*worlds B T"]
    """Response tokens, PAD after the end."""
    mask: Bool[Tensor, "*worlds B T"]
    """True where the policy chose the token, the end token included; False on padding and on what an environment
    wrote."""
    logp: Float[Tensor, "*worlds B T"]
    """log-probability under the distribution that was actually sampled (temperature included); 0 where mask is
    False."""
    finish: Int[Tensor, "*worlds B"]
    """A `Finish`."""

    @property
    def length(self) -> Int[Tensor, "*worlds B"]:
        """Number of policy tokens, the end token included."""
        return self.mask.sum(-1)


@dataclass(frozen=True)
class Branches:
    """Extra responses drawn afresh from prefixes of the rollouts, as one flat list: entry f continues `row[f]` before
    `step[f]`."""

    row: Int[Tensor, " F"]
    step: Int[Tensor, " F"]
    """0-based: the branch keeps tokens[:step] and draws everything from `step` on."""
    reward: Float[Tensor, "*worlds F"]
    """Response-level reward of the branch. Arbitrary where the response ended before `step`."""
    tokens: Float[Tensor, "*worlds F"] | None = None
    """Tokens drawn for each (their expectation where `reward` is one), 0 where the response ended before `step`; None:
    not counted."""


@dataclass(frozen=True)
class Evidence:
    """All that an estimator may see. Optional parts are there if its `collect` asked for them."""

    rollouts: Rollouts
    response_reward: Float[Tensor, "*worlds B"]
    """RM(W): the reward of each whole response."""
    token_reward: Float[Tensor, "*worlds B T"] | None = None
    """Token rewards that somebody assigned (a credit model, or the verifier's own)."""
    value: Float[Tensor, "*worlds B T1"] | None = None
    """A critic's value of the prefix before step t, t = 0 … T; 0 from the end of the response on."""
    branches: Branches | None = None
    reference_logp: Float[Tensor, "*worlds B T"] | None = None
    """log-probability of the same tokens under a fixed reference policy."""


_TRAILING = {"finish": 1, "leaf": 1, "response_reward": 1, "which_prompt": 1}
"""Dimensions from the rows on: (B,) for these, (B, something) for every other tensor."""


def take_rows(evidence: Evidence, rows: Int[Tensor, " N"]) -> Evidence:
    """The evidence of the rows with these numbers, in this order."""

    def pick(name: str, tensor: Tensor) -> Tensor:
        return tensor.index_select(-_TRAILING.get(name, 2), rows)

    branches = evidence.branches
    if branches is not None:
        if branches.reward.dim() > 1:
            raise ValueError(
                "the rows of worlds that have branches cannot be chosen; choose among rows before branching."
            )
        place = torch.full((len(evidence.response_reward),), -1).index_copy(0, rows, torch.arange(len(rows)))
        kept = place[branches.row] >= 0
        branches = replace(
            _each_branch(branches, lambda tensor: tensor[kept]), row=place[branches.row[kept]], step=branches.step[kept]
        )
    return replace(_each_tensor(evidence, pick), branches=branches)


def take_world(evidence: Evidence, world: int) -> Evidence:
    """The evidence of one world, as a trainer would see it: without the world dimension."""
    taken = _each_tensor(evidence, lambda name, tensor: tensor[world])
    return replace(taken, branches=evidence.branches and _each_branch(evidence.branches, lambda tensor: tensor[world]))


def as_worlds(evidence: Evidence, group_size: int) -> Evidence:
    """The groups of one batch, of group_size rows each, as worlds: every group by itself, as verification sees it.

    Branches become one list for all worlds: draw m from before step t of response k, in the order in which they were
    drawn; where a world has no draws from there, `reward` and `tokens` are 0.

    Raises:
        ValueError: if two groups have different numbers of draws from the same place, which one list cannot hold.
    """
    rows = len(evidence.response_reward)

    def split(name: str, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (rows // group_size, group_size))

    branches = evidence.branches
    if branches is not None:
        key = torch.stack([branches.row % group_size, branches.step, occurrence(branches)])
        (row, step, _), which = key.unique(dim=1, return_inverse=True)
        place = (branches.row // group_size, which)
        drawn = torch.zeros(rows // group_size, len(row), dtype=torch.bool).index_put(place, torch.tensor(True))
        same = (row[1:] == row[:-1]) & (step[1:] == step[:-1])
        if bool((drawn[:, 1:] != drawn[:, :-1])[:, same].any()):
            raise ValueError(
                "some groups have more branches from a place than others; draw the same number from every boundary."
            )

        def spread(values: Tensor) -> Tensor:
            return torch.zeros(rows // group_size, len(row), dtype=values.dtype).index_put(place, values)

        branches = replace(_each_branch(branches, spread), row=row, step=step)
    return replace(_each_tensor(evidence, split), branches=branches)


def occurrence(branches: Branches) -> Int[Tensor, " F"]:
    """0, 1, 2, … among the branches from the same place, in their order."""
    place = branches.row * (int(branches.step.max()) + 1 if len(branches.step) else 1) + branches.step
    order = place.argsort(stable=True)
    first = torch.searchsorted(place[order], place[order])
    return torch.empty_like(place).index_copy(0, order, torch.arange(len(place)) - first)


def _each_branch(branches: Branches, function) -> Branches:
    """function(tensor) applied to what there is one of for every branch, `row` and `step` excepted."""
    tokens = None if branches.tokens is None else function(branches.tokens)
    return replace(branches, reward=function(branches.reward), tokens=tokens)


def _each_tensor(evidence: Evidence, function) -> Evidence:
    """function(name, tensor) applied to every tensor but the branches'."""
    parts = {f.name: getattr(evidence.rollouts, f.name) for f in fields(evidence.rollouts)}
    rollouts = replace(evidence.rollouts, **{name: function(name, tensor) for name, tensor in parts.items()})
    names = [f.name for f in fields(evidence) if isinstance(getattr(evidence, f.name), Tensor)]
    return replace(evidence, rollouts=rollouts, **{name: function(name, getattr(evidence, name)) for name in names})


def join(parts: list[Evidence]) -> Evidence:
    """The rows of several batches of one horizon as one batch, prompts padded to the longest; for groups of processes
    that share a loss.

    Raises:
        ValueError: without a batch, for worlds, and if some batches have a part (values, branches, …) that others lack.
    """
    if not parts:
        raise ValueError("there is no batch to join; give at least one.")
    optional = [f.name for f in fields(Evidence) if f.name != "rollouts"]
    present = [[name for name in optional if getattr(part, name) is not None] for part in parts]
    for number, (names, part) in enumerate(zip(present, parts)):
        if names != present[0]:
            raise ValueError(
                f"batch {number} has {', '.join(names)}, and batch 0 {', '.join(present[0])}; join batches of one "
                f"estimator."
            )
        if part.response_reward.dim() != 1:
            raise ValueError(f"batch {number} has a dimension of worlds; join batches of one world, see take_world.")
    width = max(part.rollouts.prompt.shape[-1] for part in parts)
    firsts = torch.tensor([0] + [len(part.response_reward) for part in parts]).cumsum(0).tolist()

    def together(name: str, first: Tensor) -> Tensor:
        tensors = [getattr(part if hasattr(part, name) else part.rollouts, name) for part in parts]
        if name == "prompt":
            tensors = [pad(tensor, (width - tensor.shape[-1], 0), value=PAD) for tensor in tensors]
        return torch.cat(tensors)

    joined = _each_tensor(parts[0], together)
    drawn = [part.branches for part in parts if part.branches is not None]
    if not drawn:
        return joined
    row, step = (
        torch.cat([each.row + first for each, first in zip(drawn, firsts)]),
        torch.cat([each.step for each in drawn]),
    )
    counted = [each.tokens for each in drawn if each.tokens is not None]
    tokens = torch.cat(counted) if len(counted) == len(drawn) else None
    return replace(
        joined,
        branches=replace(
            drawn[0], row=row, step=step, reward=torch.cat([each.reward for each in drawn]), tokens=tokens
        ),
    )
