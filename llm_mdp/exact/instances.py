"""Instances: a token MDP with a policy, a reference policy and a critic, small enough to be written down."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.right_or_wrong import outcome_reward
from llm_mdp.mdp.environment import Environment
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP, check_shape
from llm_mdp.mdp.tree import PAD, PrefixTree, pad_prompts
from llm_mdp.sampling.policies import Policy, TabularPolicy, TabularValue

MAX_NODES = 5_000_000
"""No instance has more nodes: beyond this a file is gigabytes long and enumeration is hopeless."""

MAX_TOKENS = 100_000_000
"""Nor is nodes × horizon larger than this, which bounds long, thin trees (two tokens, one of which ends the
response)."""

Node = tuple[int, tuple[int, ...]]
"""Prompt number and prefix."""


class InstanceError(ValueError):
    """An instance, or a file that should hold one, is wrong; the message says where, what and what to do."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One verification problem: everything that decides the figures of a certificate, apart from the estimator.

    Args:
        mdp: the token MDP with its hidden reward.
        policy: π, the policy whose gradient is checked.
        reference: the fixed policy of KL penalties, DPO and RTO.
        value: the *wrong* critic of the claims `gae-wrong-*`, `lemma-2` and `r3hf`.
        name: for reports.
        node_order: all nodes as (prompt number, prefix), in the order in which gradients are flattened.
            Default: prompt by prompt, level by level, each level as `PrefixTree.level_prefixes`.

    Raises:
        InstanceError: if the parts are over different trees or prompts, or node_order is not an order of all nodes.
    """

    mdp: TokenMDP
    policy: Policy
    reference: TabularPolicy
    value: TabularValue
    name: str = ""
    node_order: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        check_size(self.mdp.tree, len(self.mdp.prompts))
        for role in ("policy", "reference", "value"):
            _check_part(self.mdp, role, getattr(self, role))
        every = default_node_order(self.mdp.tree, len(self.mdp.prompts))
        if not self.node_order:
            object.__setattr__(self, "node_order", every)
        elif len(self.node_order) != len(every) or set(self.node_order) != set(every):
            raise InstanceError(f"node_order must hold each of the {len(every)} nodes of {self.mdp.tree} exactly once.")

    @cached_property
    def node_rows(self) -> Int[Tensor, " nodes"]:
        """Where each node of `node_order` stands when all levels are stacked, prompts major within a level."""
        return stacked_rows(self.mdp.tree, len(self.mdp.prompts), self.node_order)


def flatten(instance: Instance, levels: Sequence[Float[Tensor, "P V N"]]) -> Float[Tensor, " entries"]:
    """Something per edge of the tree, such as ∇J by the tabular logits, as one vector: node after node, V entries each.

    Args:
        levels: entry l is (P, V, nˡ), prefixes as in `PrefixTree.prefix_index`.

    Raises:
        ValueError: if the levels do not have these shapes.
    """
    return node_table(instance, levels).reshape(-1)


def default_node_order(tree: PrefixTree, n_prompts: int) -> tuple[Node, ...]:
    """Prompt by prompt, level by level, each level in the order of `PrefixTree.level_prefixes`."""
    prefixes = [tuple(prefix) for level in range(tree.horizon) for prefix in tree.level_prefixes(level).tolist()]
    return tuple((prompt, prefix) for prompt in range(n_prompts) for prefix in prefixes)


def check_size(tree: PrefixTree, n_prompts: int) -> None:
    """Raise InstanceError if there are too many nodes to list (`MAX_NODES`, `MAX_TOKENS`), without counting them
    all."""
    nodes = level = n_prompts
    limit = min(MAX_NODES, MAX_TOKENS // tree.horizon)
    for _ in range(tree.horizon - 1):
        if nodes > limit:
            break
        level *= tree.branching
        nodes += level
    if nodes > limit:
        raise InstanceError(
            f"vocab_size {tree.vocab_size}, horizon {tree.horizon} and {n_prompts} prompt(s) make too large a tree; an "
            f"instance lists every node, at most {MAX_NODES:,} (nodes times horizon: {MAX_TOKENS:,}), so make one of "
            "the three smaller."
        )


def node_table(instance: Instance, levels: Sequence[Float[Tensor, "P W N"]]) -> Float[Tensor, "nodes W"]:
    """Levels as one row a node, in the order of the file."""
    n_prompts, sizes = len(instance.mdp.prompts), instance.mdp.tree.level_sizes
    shapes = [tuple(level.shape) for level in levels]
    expected = [(n_prompts, shapes[0][1] if shapes else 0, size) for size in sizes]
    if shapes != expected:
        raise ValueError(
            f"levels have the shapes {shapes}; this tree needs (prompts, vocabulary, prefixes) = {expected}."
        )
    rows = torch.cat([level.transpose(1, 2).reshape(-1, level.shape[1]) for level in levels])
    return rows[instance.node_rows]


def stacked_rows(tree: PrefixTree, n_prompts: int, nodes: Iterable[Node]) -> Int[Tensor, " nodes"]:
    """The row of every node when the levels are stacked one after the other, each as (prompt, prefix index) rows."""
    nodes = list(nodes)
    prompt = torch.tensor([node[0] for node in nodes])
    length = torch.tensor([len(node[1]) for node in nodes])
    tokens = torch.tensor([[*node[1], *[PAD] * (tree.horizon - len(node[1]))] for node in nodes])
    index = tree.prefix_index(tokens).gather(1, length[:, None])[:, 0]
    return n_prompts * tree.level_offset[length] + prompt * torch.tensor(tree.level_sizes)[length] + index


def _check_part(mdp: TokenMDP, role: str, part: Any) -> None:
    """Raise InstanceError if a policy or value is over another vocabulary, tree or set of prompts than the MDP."""
    if isinstance(part, TabularPolicy | TabularValue):
        if part.tree != mdp.tree or not torch.equal(part.prompts, mdp.prompt_tokens):
            raise InstanceError(
                f"{role} is a table over {part.tree}, not over the tree and prompts of the MDP ({mdp.tree})."
            )
    elif part.vocab_size != mdp.vocab_size:
        raise InstanceError(f"{role} has vocab_size {part.vocab_size}, the MDP {mdp.vocab_size}; they must be equal.")


# --- made at random ---------------------------------------------------------------------------------------------------


def random_instance(
    vocab_size: int = 3,
    horizon: int = 3,
    *,
    eos: int | None = 0,
    gamma: float = 1.0,
    n_prompts: int = 1,
    environment_at: tuple[int, ...] = (),
    success: float | None = None,
    seed: int = 0,
    name: str = "",
) -> Instance:
    """Independent standard normal logits, hidden token rewards, reference logits and values.

    `success` makes rewards right or wrong: RM(W) is 1 for some responses, of about this probability together, and 0 for
    the others (`exact.right_or_wrong`).

    `environment_at` makes a conversation: after so many tokens the next one is drawn by an environment, from standard
    normal logits of its own (`mdp.environment.Environment`). (1, 3) at horizon 5 is three turns of one token.

    One prompt is the empty one. Several are distinct, as short as possible and all of one length, with probabilities
    proportional to 1, 2, 3, …

    Raises:
        ValueError: naming the argument, its value and its range.
    """
    check_shape(vocab_size, eos, horizon, gamma)
    if not isinstance(n_prompts, int) or n_prompts < 1:
        raise InstanceError(f"n_prompts is {n_prompts!r}; it must be a whole number of at least 1.")
    tree = PrefixTree(vocab_size, eos, horizon)
    check_size(tree, n_prompts)
    prompts = _some_prompts(vocab_size, n_prompts)
    tokens = pad_prompts([prompt.tokens for prompt in prompts])
    generator = torch.Generator().manual_seed(seed)
    policy = TabularPolicy.random(tree, tokens, generator)
    reward = TableReward.random(tree, tokens, generator)
    reference = TabularPolicy.random(tree, tokens, generator)
    value = TabularValue.random(tree, tokens, generator)
    environment = Environment.random(tree, n_prompts, environment_at, generator) if environment_at else None
    mdp = TokenMDP(vocab_size, eos, horizon, reward, gamma, prompts, environment)
    if success is not None:
        mdp = replace(mdp, token_reward=outcome_reward(mdp, policy, success, stream(seed, "rewards")))
    return Instance(mdp, policy, reference, value, name)


def _some_prompts(vocab_size: int, number: int) -> tuple[Prompt, ...]:
    length = 0
    while vocab_size**length < number:
        length += 1
    total = number * (number + 1) / 2
    digits = [tuple(k // vocab_size**place % vocab_size for place in reversed(range(length))) for k in range(number)]
    return tuple(Prompt(tokens, (k + 1) / total) for k, tokens in enumerate(digits))


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of one purpose: of a seed, and unlike those that the same seed gives for another."""
    state = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))
