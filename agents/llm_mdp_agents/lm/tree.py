"""All prefixes of a tree of responses in one row of a language model: the prompt, then every prefix's last token once,
each seeing its own ancestors alone, at the position that it has in its text.

What a model says after a prefix is then the same as where it reads that prefix by itself, at a small share of the cost:
the 111 prefixes of ten digits and an end token to three tokens are one text of 110 tokens and the prompt.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.tree import PAD, PrefixTree
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp_agents.lm.packing import Reading
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.lm.precision import kept_double


@dataclass(frozen=True)
class TreeReading(Reading):
    """Rows of prefixes that see their ancestors."""

    seen: Bool[Tensor, "G S S"] = field(kw_only=True)

    def attention(self) -> Bool[Tensor, "G 1 S S"]:
        return self.seen[:, None]


@dataclass(frozen=True)
class TreeLogp:
    """What a model says at every prefix of a tree, level by level as `PrefixTree` numbers them."""

    logp: Float[Tensor, "P M V"]
    """log π(w | prefix) over the tokens of the subset alone, renormalised; differentiable, on the model's device."""
    covered: Float[Tensor, "P M"]
    """The share of probability that the model gives to the subset after each prefix, in [0, 1]; no gradient."""


class PackedTree:
    """The tree of responses of a policy that is restricted to a few tokens.

    Args:
        policy: with a `token_subset` (`LanguageModelPolicy(tokens=…)`) and no other mask.
        prompts: in the model's tokens, PAD on the left.
        eos: the model's token that ends a response, one of the subset; None: only the horizon does.
        horizon: T ≥ 1, most tokens of a response.
        most_nodes: prefixes that share a row; a larger tree takes several, each with the ancestors of its prefixes.

    Raises:
        ValueError: if the policy is not restricted, or obeys a task's masks; if its model does not attend to all that a
            mask lets through (a sliding window, recurrent layers, biases by distance), or reads no texts that long.
    """

    def __init__(
        self,
        policy: LanguageModelPolicy,
        prompts: Int[Tensor, "P L"],
        eos: int | None,
        horizon: int,
        most_nodes: int = 1024,
    ):
        if not isinstance(policy.token_subset, TokenSubset):
            raise ValueError("the policy may draw every token; restrict it, LanguageModelPolicy(…, tokens=[…]).")
        if policy.action_mask is not None:
            raise ValueError("the policy obeys the action mask of a task; a tree has the same tokens everywhere.")
        self.policy, self.tokens = policy, policy.token_subset.tokens
        if eos is not None and eos not in self.tokens:
            raise ValueError(f"eos is {eos}, which is not among the tokens of the subset, {list(self.tokens)!s:.200}.")
        self.tree = PrefixTree(len(self.tokens), None if eos is None else self.tokens.index(eos), horizon)
        self.prompts, self.eos, self.most_nodes = prompts, eos, most_nodes
        self.lead = policy.lead(prompts)
        policy.check_length(int((self.lead != PAD).sum(-1).max()) + horizon - 1)
        if not policy.full_attention:
            raise ValueError(
                f"{type(policy.causal_lm).__name__} does not attend to all that a mask lets through, at the positions "
                f"that it is told (a sliding window, recurrent layers, biases by distance, or an attention kernel "
                f"without masks), so that its tree cannot be read in one row; use a model with full attention, with "
                f"the kernel sdpa or eager."
            )

    def logp(self) -> TreeLogp:
        """Every prefix read in packed rows, with a graph if gradients are on."""
        order = torch.cat([part.places for part in self.rows]).argsort()
        logp, covered = zip(*map(self.read, self.rows))
        shape = (len(self.lead), self.tree.n_nodes)
        return TreeLogp(*(torch.cat(each)[order.to(each[0].device)].unflatten(0, shape) for each in (logp, covered)))

    def read(self, part: "Part") -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"]]:
        """log-probabilities over the subset, and the share that it has, of the prefixes of a part."""
        policy = self.policy
        with kept_double(policy.causal_lm.dtype):
            states, head = policy.read(part.reading)
            logits = policy.scores(head(states))
            chosen = logits[:, list(self.tokens)]
            with torch.no_grad():
                covered = (chosen.logsumexp(-1) - logits.logsumexp(-1)).exp()
            return chosen.log_softmax(-1), covered

    @cached_property
    def rows(self) -> list["Part"]:
        """Every prompt's tree, in one row where it fits."""
        return [
            _part(lead[lead != PAD], number * self.tree.n_nodes, nodes, self._ancestors, self._last_token, self._depth)
            for number, lead in enumerate(self.lead)
            for nodes in self._order.split(self.most_nodes)
        ]

    @cached_property
    def _depth(self) -> Int[Tensor, " M"]:
        sizes = torch.tensor(self.tree.level_sizes)
        return torch.arange(self.tree.horizon).repeat_interleave(sizes)

    @cached_property
    def _last_token(self) -> Int[Tensor, " M"]:
        """The model's token that every prefix ends with; PAD for the empty one."""
        prefixes = [self.tree.level_prefixes(level) for level in range(1, self.tree.horizon)]
        last = torch.cat([torch.tensor([PAD]), *(level[:, -1] for level in prefixes)])
        return torch.where(last == PAD, PAD, torch.tensor(self.tokens)[last.clamp(min=0)])

    @cached_property
    def _ancestors(self) -> Int[Tensor, "M T"]:
        """Column l: the node of the first l tokens of every prefix, itself included; the empty one from its end on."""
        n, offset = self.tree.branching, self.tree.level_offset
        index = torch.arange(self.tree.n_nodes) - offset[self._depth]
        columns = [offset[level] + index % n**level for level in range(self.tree.horizon)]
        return torch.where(torch.arange(self.tree.horizon) <= self._depth[:, None], torch.stack(columns, -1), 0)

    @cached_property
    def _order(self) -> Int[Tensor, " M"]:
        """The nodes with those of one subtree beside each other: by the tokens of their prefixes, from the first."""
        key = torch.zeros(self.tree.n_nodes, dtype=torch.int64)
        for level in range(1, self.tree.horizon):
            rank = self._ancestors[:, level] // max(1, self.tree.branching ** (level - 1))
            key = key * (2 * self.tree.n_nodes + 2) + torch.where(self._depth >= level, rank + 1, 0)
        return key.argsort(stable=True)


@dataclass(frozen=True)
class Part:
    """Some prefixes of one prompt, in one row."""

    places: Int[Tensor, " N"]
    """p · M + node of each prefix."""
    reading: TreeReading


def _part(
    lead: Int[Tensor, " L"],
    first: int,
    nodes: Int[Tensor, " N"],
    ancestors: Int[Tensor, "M T"],
    last_token: Int[Tensor, " M"],
    depth: Int[Tensor, " M"],
) -> Part:
    """The row of these nodes and of their ancestors."""
    written = ancestors[nodes].unique()
    written = written[written != 0]
    start, columns = len(lead), len(lead) + len(written)
    column = torch.full((len(depth),), -1)
    column[written] = start + torch.arange(len(written))
    column[0] = start - 1
    text = torch.cat([lead, last_token[written]])
    position = torch.cat([torch.arange(start), start - 1 + depth[written]])
    seen = torch.zeros(columns, columns, dtype=torch.bool)
    seen[:, :start] = torch.ones(columns, start, dtype=torch.bool).tril()
    # An ancestor that is the empty prefix stands for the last token of the prompt, which all see anyway.
    seen[column[written][:, None], column[ancestors[written]]] = True
    return Part(first + nodes, TreeReading(text[None], column[nodes], position[None], seen=seen[None]))
