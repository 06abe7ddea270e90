"""Exact J and ∇J at horizons where no tree fits in memory, for policies and hidden rewards that look back a few tokens only.

All prefixes of one length with the same last k tokens (k = the longer of the two orders, at least 1) have the same future, so
the state is (step, context), not the prefix. With c the context before step t, c w the one after token w, and 0 after the end:

    backward    V_t(c) = Σ_w π_t(w|c) Q_t(c, w),   Q_t(c, w) = r_t(c, w) + γ V_{t+1}(c w)
    forward     d_{t+1}(c') = Σ_{(c, w) → c'} d_t(c) π_t(w|c),   d_0 = the prompts
    gradient    ∂J/∂logit_t(c, w) = γᵗ d_t(c) π_t(w|c) (Q_t(c, w) - V_t(c)),   summed over what shares the parameter

Contexts are numbered as in `tree.context_code`: c w drops the most significant digit of c and appends w, so both directions are
reshapes, c = (oldest, rest) and c w = (rest, w).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.hidden_rewards import LengthCost, MarkovReward
from llm_mdp.mdp import TokenMDP
from llm_mdp.policies import NgramPolicy
from llm_mdp.tree import PAD, context, context_code

LARGEST_TABLE = 2**25
"""Most numbers in one table over contexts and tokens, or over steps and contexts (256 MiB)."""


@dataclass(frozen=True, eq=False)
class _Chain:
    """The token MDP as a Markov chain over contexts."""

    mdp: TokenMDP
    reward: MarkovReward
    table: Float[Tensor, "S C V"]
    order: int

    @cached_property
    def vocab_size(self) -> int:
        return self.mdp.vocab_size

    @cached_property
    def rest(self) -> int:
        """Contexts that are one token shorter."""
        return (self.vocab_size + 1) ** (self.order - 1)

    @cached_property
    def continuing(self) -> Float[Tensor, " V"]:
        """1 for tokens that do not end a response."""
        token = torch.arange(self.vocab_size)
        return (token != (PAD if self.mdp.eos is None else self.mdp.eos)).to(torch.float64)

    @cached_property
    def window(self) -> Int[Tensor, "C V order"]:
        """What the reward sees of every context, the same for every next token."""
        code = torch.arange((self.vocab_size + 1) ** self.order)[:, None]
        place = (self.vocab_size + 1) ** torch.arange(self.reward.order).flip(0)
        digit = code // place % (self.vocab_size + 1)
        window = torch.where(digit == self.vocab_size, PAD, digit)
        return window[:, None].expand(-1, self.vocab_size, -1)

    def start(self) -> Float[Tensor, " C"]:
        """d₀: how often each context is that of a prompt."""
        prompts = self.mdp.prompt_tokens
        window = context(prompts, torch.zeros(len(prompts), 1, dtype=torch.int64), self.order)[:, 0]
        code = context_code(window, self.vocab_size)
        return torch.zeros(len(self.window), dtype=torch.float64).index_add(0, code, self.mdp.prompt_probability)

    def pi(self, step: int) -> Float[Tensor, "C V"]:
        """π_t(w|c); a policy whose memory is shorter than c has the same row for many c."""
        rows = self.table[min(step, len(self.table) - 1)].softmax(-1)
        return rows.repeat(len(self.window) // len(rows), 1)

    def action_value(self, step: int, value_after: Float[Tensor, " C"]) -> Float[Tensor, "C V"]:
        """Q_t(c, w)."""
        token = torch.arange(self.vocab_size).expand(self.window.shape[:-1])
        last = (self.continuing[token] == 0) | (step == self.mdp.horizon - 1)
        reward = self.reward.local(self.window, token, torch.full_like(token, step), last)
        ahead = value_after.view(self.rest, self.vocab_size + 1)[:, :-1] * self.continuing
        return (reward.view(-1, self.rest, self.vocab_size) + self.mdp.gamma * ahead).flatten(0, 1)

    def values(self) -> Float[Tensor, "T1 C"]:
        """V_t(c), t = 0 … T."""
        value = torch.zeros(self.mdp.horizon + 1, len(self.window), dtype=torch.float64)
        for step in reversed(range(self.mdp.horizon)):
            value[step] = (self.pi(step) * self.action_value(step, value[step + 1])).sum(-1)
        return value

    def forward(self, visits: Float[Tensor, "C V"]) -> Float[Tensor, " C"]:
        """d_{t+1} from d_t(c) π_t(w|c)."""
        arrived = (visits * self.continuing).view(-1, self.rest, self.vocab_size).sum(0)
        return torch.nn.functional.pad(arrived, (0, 1)).flatten()


@torch.no_grad()
def ngram_gradient(policy: NgramPolicy, mdp: TokenMDP) -> tuple[float, Float[Tensor, "S C V"]]:
    """J and dJ/dtable, in time proportional to horizon × contexts × vocabulary. Memory: one value for every step and context.

    Args:
        policy: its table may have one row set for all steps or one for each (steps beyond the last share the last).
        mdp: with a hidden reward of finite `order`.

    Returns:
        J = Σ P(prompt) V₀(prompt), and a gradient of the shape of `policy.table`.

    Raises:
        ValueError: if the reward looks back at the whole prefix, the policy has another vocabulary, there are more contexts
            than memory can hold, or J is not finite.
    """
    chain = _chain(policy, mdp)
    value, visits = chain.values(), chain.start()
    J = finite(float(visits @ value[0]))
    grad = torch.zeros_like(chain.table)
    for step, discount in enumerate(mdp.discount.tolist()):
        edges = visits[:, None] * chain.pi(step)
        advantage = chain.action_value(step, value[step + 1]) - value[step][:, None]
        shared = (discount * edges * advantage).view(-1, *grad.shape[1:]).sum(0)
        grad[min(step, len(grad) - 1)] += shared
        visits = chain.forward(edges)
    return J, grad


def expected_length(policy: NgramPolicy, mdp: TokenMDP) -> float:
    """Expected number of response tokens, the end token included: J for a reward of 1 a token."""
    return ngram_gradient(policy, replace(mdp, token_reward=LengthCost(-1.0), gamma=1.0))[0]


def finite(J: float) -> float:
    """J, or ValueError if it is not finite: one bad logit or reward that can be reached makes it so."""
    if not math.isfinite(J):
        raise ValueError(f"J is {J}: some logits or rewards are not finite; look for them in the policy and the hidden reward.")
    return J


def _chain(policy: NgramPolicy, mdp: TokenMDP) -> _Chain:
    """The chain, or ValueError if there is none of a size that memory can hold."""
    reward = mdp.token_reward
    if reward.order is None or not hasattr(reward, "local"):
        raise ValueError(f"{type(reward).__name__} depends on the whole prefix; use a hidden reward with a finite order.")
    if policy.vocab_size != mdp.vocab_size:
        raise ValueError(f"The policy has {policy.vocab_size} tokens, the token MDP {mdp.vocab_size}; make one for this MDP.")
    order = max(policy.order, reward.order, 1)
    contexts = (mdp.vocab_size + 1) ** order
    if contexts * max(mdp.vocab_size, mdp.horizon + 1) > LARGEST_TABLE:
        raise ValueError(
            f"Looking back {order} tokens over a vocabulary of {mdp.vocab_size} makes {contexts:,} contexts at each of "
            f"{mdp.horizon} steps, too many for memory; use a policy and a hidden reward of lower order."
        )
    return _Chain(mdp, reward, policy.table, order)  # pyright: ignore[reportArgumentType]
