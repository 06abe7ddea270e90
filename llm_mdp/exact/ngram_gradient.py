"""Exact J, ∇J, U and Var RM at horizons where no tree fits in memory, for policies and hidden rewards that look back a
few tokens only.

All prefixes of one length with the same last k tokens (k = the longer of the two orders, at least 1) have the same
future, so the state is (step, context), not the prefix. With c the context before step t, c w the one after token w,
and 0 after the end:

    backward    V_t(c) = Σ_w π_t(w|c) Q_t(c, w),   Q_t(c, w) = r_t(c, w) + γ V_{t+1}(c w)
    forward     d_{t+1}(c') = Σ_{(c, w) → c'} d_t(c) π_t(w|c),   d_0 = the prompts
    spread      S_t(c) = Σ_w π_t(w|c) [γ² S_{t+1}(c w) + (Q_t(c, w) - V_t(c))²],   the variance of what V_t is the mean
    of gradient    ∂J/∂logit_t(c, w) = γᵗ d_t(c) π_t(w|c) (Q_t(c, w) - V_t(c)),   summed over what shares the parameter

Contexts are numbered as in `tree.context_code`: c w drops the most significant digit of c and appends w, so both
directions are reshapes, c = (oldest, rest) and c w = (rest, w).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.mdp.hidden_rewards import LengthCost, MarkovReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD, context, context_code
from llm_mdp.sampling.policies import NgramPolicy

LARGEST_TABLE = 2**25
"""Most numbers in one table over contexts and tokens, or over steps and contexts (256 MiB)."""

TOKENS_AT_ONCE = 2**20
"""Tokens whose contexts are computed together: a few arrays of 8 MiB."""

DECIDED = 40.0
"""A difference of logits that leaves the lesser token a probability of 4e-18."""

PRECISION = 1e-10
"""Of a constant added to logits."""


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
        return reward + self.mdp.gamma * self.ahead(value_after)

    def ahead(self, after: Float[Tensor, " C"]) -> Float[Tensor, "C V"]:
        """A number of the contexts at the next step as one of c w; 0 where w ends the response."""
        return (after.view(self.rest, self.vocab_size + 1)[:, :-1] * self.continuing).repeat(self.vocab_size + 1, 1)

    def values(self) -> Float[Tensor, "T1 C"]:
        """V_t(c), t = 0 … T."""
        value = torch.zeros(self.mdp.horizon + 1, len(self.window), dtype=torch.float64)
        for step in reversed(range(self.mdp.horizon)):
            value[step] = (self.pi(step) * self.action_value(step, value[step + 1])).sum(-1)
        return value

    def spread(self, value: Float[Tensor, "T1 C"]) -> Float[Tensor, " C"]:
        """S₀(c), by the law of total variance: a sum of non-negative terms, which loses nothing to cancellation."""
        spread = torch.zeros_like(value[0])
        for step in reversed(range(self.mdp.horizon)):
            surprise = self.action_value(step, value[step + 1]) - value[step][:, None]
            spread = (self.pi(step) * (surprise.square() + self.mdp.gamma**2 * self.ahead(spread))).sum(-1)
        return spread

    def forward(self, visits: Float[Tensor, "C V"]) -> Float[Tensor, " C"]:
        """d_{t+1} from d_t(c) π_t(w|c)."""
        arrived = (visits * self.continuing).view(-1, self.rest, self.vocab_size).sum(0)
        return pad(arrived, (0, 1)).flatten()


@torch.no_grad()
def ngram_gradient(policy: NgramPolicy, mdp: TokenMDP) -> tuple[float, Float[Tensor, "S C V"]]:
    """J and dJ/dtable, in time proportional to horizon × contexts × vocabulary. Memory: one value for every step and
    context.

    Args:
        policy: its table may have one row set for all steps or one for each (steps beyond the last share the last).
        mdp: with a hidden reward of finite `order`.

    Returns:
        J = Σ P(prompt) V₀(prompt), and a gradient of the shape of `policy.table`.

    Raises:
        ValueError: if the reward looks back at the whole prefix, the policy has another vocabulary, there are more
            contexts than memory can hold, or J is not finite.
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


@torch.no_grad()
def reward_moments(policy: NgramPolicy, mdp: TokenMDP) -> tuple[float, float]:
    """Mean and variance of RM(W) over prompts and responses, in time proportional to horizon × contexts × vocabulary.

    Raises:
        ValueError: as `ngram_gradient`.
    """
    chain = _chain(policy, mdp)
    value, start = chain.values(), chain.start()
    mean = finite(float(start @ value[0]))
    return mean, float(start @ (chain.spread(value) + (value[0] - mean).square()))


@torch.no_grad()
def expected_length(policy: NgramPolicy, mdp: TokenMDP) -> float:
    """Expected number of response tokens, the end token included: J for a reward of 1 a token."""
    chain = _chain(policy, replace(mdp, token_reward=LengthCost(-1.0), gamma=1.0))
    return finite(float(chain.start() @ chain.values()[0]))


@torch.no_grad()
def with_expected_length(policy: NgramPolicy, mdp: TokenMDP, length: float) -> NgramPolicy:
    """The policy with one constant added to every logit of the end token, such that a response has `length` tokens on
    average.

    Every context ends more often the larger the constant, and goes on to the same tokens otherwise, so the length falls
    with it.

    Args: length: in tokens, the end token included, between 1 and the horizon.

    Raises:
        ValueError: if no constant gives this length, or the policy does not fit the token MDP or memory.
    """
    if mdp.eos is None:
        raise ValueError(
            f"the token MDP has no end token, so every response has {mdp.horizon} tokens; give it one (eos)."
        )
    if not 1 < length < mdp.horizon:
        raise ValueError(f"length is {length!r}; it must be above 1 and below the horizon of {mdp.horizon} tokens.")

    end = (torch.arange(policy.vocab_size) == mdp.eos).to(torch.float64)

    def shifted(constant: float) -> NgramPolicy:
        return NgramPolicy(policy.table + constant * end, policy.order)

    high = DECIDED + 2 * float(policy.table.abs().nan_to_num(posinf=0.0).max())
    low = -high
    if not expected_length(shifted(low), mdp) > length > expected_length(shifted(high), mdp):
        raise ValueError(
            f"no constant makes {length!r} tokens the expected length; the policy has logits that are not finite."
        )
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_length(shifted(middle), mdp) > length else (low, middle)
    return shifted((low + high) / 2)


@dataclass(frozen=True, eq=False)
class NgramCritic:
    """A value of every prefix of any response, at any horizon; see `ngram_critic`."""

    mdp: TokenMDP
    order: int
    ahead: Float[Tensor, "T C"]
    """What is expected after the prefix, by step and context, in units of the first step."""

    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T1"]:
        horizon = tokens.shape[-1]
        code = context_code(context(prompt, tokens, self.order), self.mdp.vocab_size)
        collected = (self.mdp.hidden_reward(prompt, tokens, mask) * self.mdp.discount[:horizon]).cumsum(-1)
        value = pad(collected[..., :-1], (1, 0)) + self.ahead[torch.arange(horizon), code]
        return pad(torch.where(mask, value, 0.0), (0, 1))


@torch.no_grad()
def ngram_critic(policy: NgramPolicy, mdp: TokenMDP, error: float = 0.0, seed: int = 0) -> NgramCritic:
    """U(p) = E[RM(W) | W starts with p] = (reward collected in p) + γ^|p| V(p) as a critic.

    Args:
        error: standard deviation, in units of RM, of a normal number that is added for every step and context: a critic
            that is wrong, but by the prefix only.
        seed: of these numbers.

    Raises:
        ValueError: as `ngram_gradient`, and if the error is negative or not finite.
    """
    if not (math.isfinite(error) and error >= 0):
        raise ValueError(
            f"error is {error!r}; the standard deviation of a critic's error must be a number of at least 0."
        )
    chain = _chain(policy, mdp)
    value = chain.values()
    finite(float(chain.start() @ value[0]))
    noise = torch.randn(value[:-1].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return NgramCritic(mdp, chain.order, mdp.discount[:, None] * value[:-1] + error * noise)


@torch.no_grad()
def ngram_score_sums(
    policy: NgramPolicy,
    prompt: Int[Tensor, "R L"],
    tokens: Int[Tensor, "R T"],
    weights: Float[Tensor, "R T"],
    group: Int[Tensor, " R"],
) -> Float[Tensor, "N parameters"]:
    """Weighted sums of scores, one a group of rows, without a graph:

        Σ_{r in group} Σ_t weight[r, t] ∂log π(w_{r,t} | c_{r,t}) / ∂logit(s, c, w) = A(s, c, w) - π_s(w|c) Σ_w' A(s, c,
        w')

    with A(s, c, w) the sum of the weights of the tokens w that were drawn in context c of row set s.

    Args:
        weights: 0 where a token does not count, on padding above all; only the others are looked at.
        group: 0 … N-1, which sum every row belongs to.

    Returns:
        The sums in the order of `policy.table.flatten()`. Memory beyond them and the arguments: two numbers for every
        weight that is not 0, and a few for each of `TOKENS_AT_ONCE` tokens.

    Raises:
        ValueError: if a token with a weight is not of the vocabulary, or the policy may draw some tokens only.
    """
    _check_free(policy)
    row, step = weights.nonzero(as_tuple=True)
    counts = torch.zeros(int(group.max()) + 1, *policy.table.shape, dtype=torch.float64)
    for rows, steps in zip(row.split(TOKENS_AT_ONCE), step.split(TOKENS_AT_ONCE)):
        token = tokens[rows, steps]
        if bool(((token < 0) | (token >= policy.vocab_size)).any()):
            raise ValueError(
                f"a token outside the vocabulary 0 … {policy.vocab_size - 1} has a weight; give padding the weight 0."
            )
        place = (group[rows], *policy.table_row(prompt, tokens, rows, steps), token)
        counts.index_put_(place, weights[rows, steps].to(torch.float64), accumulate=True)
    counts.addcmul_(counts.sum(-1, keepdim=True), policy.table.softmax(-1), value=-1)
    return counts.flatten(1)


def finite(J: float) -> float:
    """J, or ValueError if it is not finite: one bad logit or reward that can be reached makes it so."""
    if not math.isfinite(J):
        raise ValueError(
            f"J is {J}: some logits or rewards are not finite; look for them in the policy and the hidden reward."
        )
    return J


def _check_free(policy: NgramPolicy) -> None:
    if policy.is_masked:
        raise ValueError(
            "this policy may draw some tokens only, and the n-gram recursion knows no such masks; take an instance "
            "that is small enough for its tree, or a policy without masks."
        )


def _chain(policy: NgramPolicy, mdp: TokenMDP) -> _Chain:
    """The chain, or ValueError if there is none of a size that memory can hold."""
    reward = mdp.token_reward
    _check_free(policy)
    if mdp.environment is not None:
        raise ValueError(
            f"an environment draws the tokens after {list(mdp.environment.at)} others; the n-gram recursion has none, "
            "so leave the environment out or take an instance that is small enough for its tree."
        )
    if reward.order is None or not hasattr(reward, "local"):
        raise ValueError(
            f"{type(reward).__name__} depends on the whole prefix; use a hidden reward with a finite order."
        )
    if policy.vocab_size != mdp.vocab_size:
        raise ValueError(
            f"The policy has {policy.vocab_size} tokens, the token MDP {mdp.vocab_size}; make one for this MDP."
        )
    order = max(policy.order, reward.order, 1)
    contexts = (mdp.vocab_size + 1) ** order
    if contexts * max(mdp.vocab_size, mdp.horizon + 1) > LARGEST_TABLE:
        raise ValueError(
            f"Looking back {order} tokens over a vocabulary of {mdp.vocab_size} makes {contexts:,} contexts at each of "
            f"{mdp.horizon} steps, too many for memory; use a policy and a hidden reward of lower order."
        )
    return _Chain(mdp, reward, policy.table, order)  # pyright: ignore[reportArgumentType]
