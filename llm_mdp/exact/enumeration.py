"""Every response of a small token MDP under one policy, with its probability, reward and scores."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_mdp.exact.tree_gradient import TreeValues, node_logits, tree_values
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import AtTemperature, Greedy, Policy, TabularValue, ended_by, finish_of, logp_of

MAX_LEAVES = 200_000
MAX_EDGES = 6_000
FEW_EDGES = 320
"""Scores up to which loading what vectorises them takes longer than one after the other."""
WHATEVER_THE_POLICY = (
    *("mdp", "tree", "tokens", "mask", "length", "finish", "prompt", "node", "edge", "first_leaf"),
    *("response_reward", "hidden_reward"),
)
"""What of an enumeration says nothing about its policy."""


class TooLarge(ValueError):
    """Exact computation would need too many worlds; the message names the number and the remedy."""


class Enumeration:
    """All complete responses W of a TokenMDP, P prompts × N leaves in lexicographic order, with their probabilities,
    RM(W) and scores.

    An *edge* is one (prompt, prefix, token): row e of the score matrix is ∇log π(token | prefix), 0 where the
    environment draws the token. `mask`, `length` and `leaf_logp` are about the policy's tokens alone.

    Raises:
        TooLarge: more than MAX_LEAVES responses.
    """

    edge: Int[Tensor, "P N T"]

    def __init__(self, mdp: TokenMDP, policy: Policy):
        tree = mdp.tree
        if tree.n_leaves * len(mdp.prompts) > MAX_LEAVES:
            raise TooLarge(
                f"{tree.n_leaves * len(mdp.prompts):,} responses (vocab_size {tree.vocab_size}, horizon "
                f"{tree.horizon}) are too many to "
                f"enumerate (at most {MAX_LEAVES:,}); take a smaller vocabulary or horizon."
            )
        self.mdp, self.tree = mdp, tree
        self.tokens = tree.leaves
        written = self.tokens >= 0
        self.mask = written & mdp.policy_steps
        self.length = self.mask.sum(-1)
        self.finish = ended_by(finish_of(self.tokens, mdp.eos), self.tokens, mdp.policy_steps)
        self.prompt = mdp.prompt_tokens
        self.node = tree.node_index(self.tokens)
        edge = torch.where(written, self.node * tree.vocab_size + self.tokens, 0)
        self.edge = edge + torch.arange(self.n_prompts)[:, None, None] * (tree.n_nodes * tree.vocab_size)
        self.first_leaf = tree.first_leaf(self.tokens)
        self._follow(policy)

    def _follow(self, policy: Policy) -> None:
        self.policy = policy
        with torch.no_grad():
            self.logits = [level.detach() for level in node_logits(policy, self.mdp)]
        self._tempered: dict[float, Enumeration] = {1.0: self}
        self.shared: dict[Any, Any] = {}
        """What is computed once for all estimators that are asked under this policy."""

    def under(self, policy: Policy) -> "Enumeration":
        """The same responses under another policy: rewards, and how the tree is numbered, are not computed again."""
        other = object.__new__(type(self))
        other.__dict__.update({name: self.__dict__[name] for name in WHATEVER_THE_POLICY if name in self.__dict__})
        other._follow(policy)
        return other

    @property
    def n_prompts(self) -> int:
        return len(self.prompt)

    @cached_property
    def exact_u(self) -> TabularValue:
        """U(p) = E[RM(W) | W starts with p] as a critic."""
        return TabularValue(self.tree, self.prompt, self.values.U)

    @property
    def expected_length(self) -> float:
        """E[tokens that the policy draws for a response], in tokens."""
        return float(self.mdp.prompt_probability @ self.remaining[0][:, 0])

    @property
    def n_edges(self) -> int:
        return self.n_prompts * self.tree.n_nodes * self.tree.vocab_size

    @cached_property
    def values(self) -> TreeValues:
        """Exact V, Q, U and Var(RM | prefix) of every prefix."""
        return tree_values(self.mdp, self.logits, self.mdp.token_reward.levels(self.tree, self.prompt))

    @cached_property
    def remaining(self) -> list[Float[Tensor, "P N"]]:
        """Expected number of tokens that the policy draws after every prefix, the end token included: V for a reward of
        1 a token."""
        ones = [torch.full_like(level, float(own)) for level, own in zip(self.logits, self.mdp.policy_steps)]
        return tree_values(replace(self.mdp, gamma=1.0), self.logits, ones).V

    @cached_property
    def edge_logits(self) -> Float[Tensor, "P M V"]:
        """One row a node, nodes level by level."""
        return torch.cat([level.transpose(1, 2) for level in self.logits], dim=1)

    def edge_logp(self) -> Float[Tensor, "E"]:
        """log-probability of every edge; of the environment's too."""
        return self.edge_logits.log_softmax(-1).flatten()

    def leaf_logp(self, temperature: float = 1.0) -> Float[Tensor, "P N T"]:
        """log π of every policy token of every response, 0 where the policy drew none."""
        return self.at_temperature(temperature)._leaf_logp

    @cached_property
    def _leaf_logp(self) -> Float[Tensor, "P N T"]:
        return torch.where(self.mask, self._written_logp, 0.0)

    def leaf_logp_of(self, policy: Policy, temperature: float = 1.0) -> Float[Tensor, "P N T"]:
        """log-probability of every policy token of every response under another policy, 0 elsewhere."""
        return self._per_leaf(lambda prompt, tokens, mask: logp_of(policy, prompt, tokens, mask, temperature))

    @cached_property
    def _written_logp(self) -> Float[Tensor, "P N T"]:
        return torch.where(self.tokens >= 0, self.edge_logp()[self.edge], 0.0)

    def written_logp(self, temperature: float = 1.0) -> Float[Tensor, "P N T"]:
        """log-probability of every token of every response, whoever drew it, 0 after its end."""
        return self.at_temperature(temperature)._written_logp

    @cached_property
    def reply_logp(self) -> Float[Tensor, "P N"]:
        """log-probability of what the environment drew in every response; 0 without one."""
        return torch.where(self.mask, 0.0, self._written_logp).sum(-1)

    @cached_property
    def probability(self) -> Float[Tensor, "P N"]:
        """P(W | prompt) = π(W | prompt), times what the environment contributes."""
        return self._written_logp.sum(-1).exp()

    def at_temperature(self, temperature: float) -> "Enumeration":
        """The same responses under the policy at another temperature, 0 for the most probable token at every step. The
        environment has no temperature."""
        if temperature not in self._tempered:
            policy = AtTemperature(self.policy, temperature) if temperature else Greedy(self.policy)
            self._tempered[temperature] = self.under(policy)
        return self._tempered[temperature]

    def _per_leaf(self, function) -> Tensor:
        """function(prompt, tokens, mask) of every response, stacked over prompts."""
        with torch.no_grad():
            return torch.stack(
                [function(p.expand(len(self.tokens), -1), self.tokens, self.mask) for p in self.prompt]
            ).to(torch.float64)

    @cached_property
    def response_reward(self) -> Float[Tensor, "P N"]:
        return self._per_leaf(self.mdp.response_reward)

    @cached_property
    def hidden_reward(self) -> Float[Tensor, "P N T"]:
        return self._per_leaf(self.mdp.hidden_reward)

    @cached_property
    def greedy_leaf(self) -> Int[Tensor, "P N T"]:
        """The leaf reached from the prefix of every token by the most probable tokens (ties: the lowest token id)."""
        best = self.edge_logits.argmax(-1)
        prompts = torch.arange(self.n_prompts)[:, None, None]
        start = torch.arange(self.tree.horizon)
        leaf = self.first_leaf[:, :-1].expand(self.n_prompts, -1, -1).clone()
        for step in range(self.tree.horizon):
            token = best[prompts, self.node[leaf][..., step]]
            alive = (start <= step) & (self.tokens[leaf][..., step] >= 0)
            leaf = torch.where(alive, leaf + self.tree.first_leaf_by_token[step, token], leaf)
        return leaf

    @cached_property
    def scores(self) -> Float[Tensor, "E parameters"]:
        """∇log π of every edge by the policy's parameters, in the order of `policy.parameters()`.

        Raises:
            TooLarge: more than MAX_EDGES edges.
        """
        if self.n_edges > MAX_EDGES:
            raise TooLarge(
                f"{self.n_edges:,} (prefix, token) pairs are too many for the score matrix (at most {MAX_EDGES:,}); "
                "take a smaller instance."
            )
        return scores_of(self.policy, self.mdp)

    @cached_property
    def sparse_scores(self) -> Float[Tensor, "E parameters"]:
        """`scores`, as a sparse tensor where almost all are 0 (those of tables)."""
        sparse = self.scores.count_nonzero() < 0.05 * self.scores.numel()
        return self.scores.to_sparse().coalesce() if sparse else self.scores

    @cached_property
    def gram(self) -> Float[Tensor, "E E"]:
        """Inner products of all scores."""
        return self.scores @ self.scores.T


def scores_of(policy: Policy, mdp: TokenMDP) -> Float[Tensor, "E parameters"]:
    """∇ log π(w | p) for every prompt, non-terminal prefix p (level by level) and token w.

    A backward pass each where edges are few; beyond FEW_EDGES many in one, vectorised, for which torch loads a
    compiler.
    """
    assert isinstance(policy, nn.Module)
    parameters = list(policy.parameters())
    logits = node_logits(policy, mdp)
    logp = torch.cat([level.log_softmax(1).transpose(1, 2) for level in logits], dim=1).flatten()
    size = 1 if len(logp) <= FEW_EDGES else 256
    rows = []
    for start in range(0, len(logp), size):
        if size == 1:
            gradients = torch.autograd.grad(logp[start], parameters, retain_graph=True, allow_unused=True)
        else:
            chosen = torch.eye(len(logp), dtype=logp.dtype)[start : start + size]
            gradients = torch.autograd.grad(
                logp, parameters, chosen, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        edges = min(size, len(logp) - start)
        flat = [
            torch.zeros(edges, p.numel(), dtype=torch.float64)
            if g is None
            else g.reshape(edges, -1).to("cpu", torch.float64)
            for g, p in zip(gradients, parameters)
        ]
        rows.append(torch.cat(flat, dim=1))
    return torch.cat(rows)
