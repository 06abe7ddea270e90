"""Exact J, ∇J, values and variances of a token MDP, by dynamic programming on its tree of responses, level by level.

Level l is one array (P, V, nˡ): prompt, next token, prefix (see `tree.py`). The children of a whole level by one token
are one contiguous block of the next level, so a step of the recursion is a few whole-array operations and no index is
gathered.

With l = |p|, pw the prefix p followed by token w, and everything 0 beyond the end of a response:

    V(p)    = Σ_w π(w|p) Q(p, w),   Q(p, w) = r(p, w) + γ V(pw)          expected discounted future reward
    U(p)    = (reward collected in p) + γˡ V(p) = E[RM(W) | W starts with p]
    ∂J/∂logit(p, w) = P(prompt) P(p | prompt) γˡ π(w|p) (Q(p, w) - V(p))     (the paper, Lemma 1 and 2, for a softmax)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.exact.ngram_gradient import finite, ngram_gradient
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.policies import NgramPolicy, Policy, TabularPolicy

LARGEST_TREE = 2**27
"""Most numbers in one table over the tree (1 GiB); a gradient needs three such tables."""

TREE_WORTH_AVOIDING = 100_000
"""Leaves above which a policy and a reward that look back a few tokens only are left to `ngram.py`."""

BLOCK = 2**16
"""Numbers handled at a time on a long level: two buffers of this size stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class TreeValues:
    """What there is to know about every prefix p and every edge (p, w) of the tree, level by level; see
    `tree_values`."""

    logp: list[Float[Tensor, "P V N"]]
    """log π(w | p)."""
    reach: list[Float[Tensor, "P N"]]
    """P(p | prompt), the probability that a response begins with p."""
    V: list[Float[Tensor, "P N"]]
    """Expected discounted future reward, in units of the step after p."""
    Q: list[Float[Tensor, "P V N"]]
    """r(p, w) + γ V(pw)."""
    collected: list[Float[Tensor, "P N"]]
    """Σ γᵗ⁻¹ rₜ over the tokens of p."""
    U: list[Float[Tensor, "P N"]]
    """E[RM(W) | W starts with p]."""
    U_edge: list[Float[Tensor, "P V N"]]
    """E[RM(W) | W starts with pw]; RM(W) where w ends the response."""
    variance: list[Float[Tensor, "P N"]]
    """Var(RM(W) | W starts with p)."""
    J: float
    """Σ P(prompt) U(prompt)."""


def node_logits(policy: Policy, mdp: TokenMDP) -> list[Float[Tensor, "P V N"]]:
    """Logits of a policy at every non-terminal prefix, float64, differentiable with respect to its parameters; where
    the environment draws the next token, those of the environment.

    Returns:
        One tensor (P, V, nˡ) a level; of a `TabularPolicy`, its own parameters (no copy) unless some tokens are
        forbidden: these have -inf.

    Raises:
        ValueError: if the tree is too large for memory, or the policy is a table over another tree or other prompts, or
        not on the CPU.
    """
    tree, replies = mdp.tree, {} if mdp.environment is None else mdp.environment.logits
    if isinstance(policy, TabularPolicy):
        if policy.tree != tree or not torch.equal(policy.prompts, mdp.prompt_tokens):
            raise ValueError(
                f"This table was made for {policy.tree} and its prompts, not for those of {mdp}; make a new one."
            )
        if any(level.device.type != "cpu" for level in policy.levels):
            raise ValueError(
                f"This table is on {policy.levels[0].device}, and exact figures are computed on the CPU: move it "
                f"there, policy.cpu()."
            )
        if not policy.is_masked:
            return [replies.get(number, level) for number, level in enumerate(policy.levels)]
    _check_size(mdp, numbers_per_edge=mdp.horizon)
    return [replies[n] if n in replies else _level_logits(policy, mdp, n) for n in range(mdp.horizon)]


def _level_logits(policy: Policy, mdp: TokenMDP, level: int) -> Float[Tensor, "P V N"]:
    """The policy's logits after every prefix of one length. The last token it is given is a filler: logits look back
    only."""
    prefixes, prompts = mdp.tree.level_prefixes(level), mdp.prompt_tokens
    tokens = nn.functional.pad(prefixes, (0, 1), value=mdp.tree.continuing[0])
    logits = policy.logits(prompts.repeat_interleave(len(prefixes), dim=0), tokens.repeat(len(prompts), 1))[:, -1]
    return logits.to("cpu", torch.float64).reshape(len(prompts), len(prefixes), mdp.vocab_size).transpose(1, 2)


@torch.no_grad()
def tree_values(
    mdp: TokenMDP, logits_levels: list[Float[Tensor, "P V N"]], reward_levels: list[Float[Tensor, "P V N"]]
) -> TreeValues:
    """Values, reach probabilities and variances of the whole tree.

    The variance comes from the law of total variance, a sum of non-negative terms, never from E[RM²] - E[RM]²:

        Var(p) = Σ_w π(w|p) [Var(pw) + (U(pw) - U(p))²]

    Args:
        logits_levels: `node_logits(policy, mdp)`.
        reward_levels: `mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)`.

    Raises:
        ValueError: if a level has another shape than (P, V, nˡ), or J is not finite.
    """
    _check_levels(mdp, logits_levels, "logits_levels")
    _check_levels(mdp, reward_levels, "reward_levels")
    tree, discount = mdp.tree, mdp.discount.tolist()
    logp = [level.to(torch.float64).log_softmax(1) for level in logits_levels]
    pi = [level.exp() for level in logp]

    start = torch.ones(len(mdp.prompts), 1, dtype=torch.float64)
    reach, collected = [start], [torch.zeros_like(start)]
    for level in range(mdp.horizon - 1):
        reach.append(_to_children(tree, reach[level][:, None] * pi[level]))
        collected.append(_to_children(tree, collected[level][:, None] + discount[level] * reward_levels[level]))

    V, Q, U, U_edge, variance = [], [], [], [], []
    for level in reversed(range(mdp.horizon)):
        Q.append(reward_levels[level] + mdp.gamma * _of_children(tree, V, pi[level]))
        V.append((pi[level] * Q[-1]).sum(1))
        U.append(collected[level] + discount[level] * V[-1])
        U_edge.append(collected[level][:, None] + discount[level] * Q[-1])
        spread = (U_edge[-1] - U[-1][:, None]).square()
        variance.append((pi[level] * (_of_children(tree, variance, spread) + spread)).sum(1))

    J = finite(float(mdp.prompt_probability @ V[-1][:, 0]))
    return TreeValues(logp, reach, V[::-1], Q[::-1], collected, U[::-1], U_edge[::-1], variance[::-1], J)


def _to_children(tree: PrefixTree, edges: Float[Tensor, "P V N"]) -> Float[Tensor, "P N1"]:
    """The edges that do not end, as the prefixes of the next level."""
    return edges[:, tree.continuing].flatten(1)


def _of_children(
    tree: PrefixTree, done: list[Float[Tensor, "P N1"]], like: Float[Tensor, "P V N"]
) -> Float[Tensor, "P V N"]:
    """The newest entry of `done`, which belongs to the prefixes of the next level, by edges; 0 where the response
    ends."""
    edges = torch.zeros_like(like)
    if done:
        edges[:, tree.continuing] = done[-1].unflatten(1, (tree.branching, -1))
    return edges


def optimal_baseline(
    mdp: TokenMDP, values: TreeValues, score_norm2: list[Float[Tensor, "P V N"]] | None = None
) -> list[Float[Tensor, "P N"]]:
    """The baseline of every state that makes the variance of Σₜ (U(W₀,ₜ) - b) ∇log π smallest.

        b(p) = E[X₁ |X₂|²] / E|X₂|²,   X₁ = U(W₀,ₜ),  X₂ = ∇log π(wₜ | p)          (the paper, proof of Theorem 2)

    Args:
        values: `tree_values` of the policy.
        score_norm2: |X₂|² of every edge; by default that of a table of logits, |e_w - π|² = 1 - 2 π_w + Σ π².

    Returns:
        b level by level; U(p) where the score is 0 for every token that can be drawn, as any baseline will do there.

    Raises:
        ValueError: if a level of `score_norm2` has another shape than (P, V, nˡ).
    """
    pi = [logp.exp() for logp in values.logp]
    if score_norm2 is None:
        score_norm2 = [(1 - 2 * p + p.square().sum(1, keepdim=True)).clamp(min=0) for p in pi]
    _check_levels(mdp, score_norm2, "score_norm2")
    baseline = []
    for level, p in enumerate(pi):
        weight = p * score_norm2[level]
        total = weight.sum(1)
        # Deviations from U, so that a nearly constant U keeps its digits.
        deviation = (weight * (values.U_edge[level] - values.U[level][:, None])).sum(1)
        baseline.append(values.U[level] + torch.where(total > 0, deviation / total, 0.0))
    return baseline


def exact_gradient(policy: Policy, mdp: TokenMDP) -> tuple[float, list[Tensor]]:
    """J and ∇J of any policy: the tree's gradient with respect to the logits, times the Jacobian of the logits.

    An `NgramPolicy` with a reward that looks back a few tokens goes through `ngram.py` where the tree would be large.

    Returns:
        J, and one tensor for every parameter in the order of `policy.parameters()`, of its shape and dtype; 0 for
        parameters that are frozen or do not matter.

    Raises:
        ValueError: if the tree is too large for memory; if a table was made for another tree; if J is not finite.
    """
    if (
        isinstance(policy, NgramPolicy)
        and not policy.is_masked
        and mdp.token_reward.order is not None
        and mdp.tree.n_leaves > TREE_WORTH_AVOIDING
        and mdp.environment is None
    ):
        J, grad = ngram_gradient(policy, mdp)
        return J, [grad]
    _check_size(mdp)
    logits = node_logits(policy, mdp)
    J, grads = tree_gradient(mdp, logits, mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens))
    if isinstance(policy, TabularPolicy):
        return J, grads
    return J, _pull_back(logits, grads, list(policy.parameters()))  # pyright: ignore[reportAttributeAccessIssue]


def _pull_back(logits: list[Tensor], grads: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """Gradient by the parameters from the gradient by the logits."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    outputs = [(level, grad.to(level)) for level, grad in zip(logits, grads) if level.requires_grad]
    found: dict[int, Tensor | None] = {}
    if trained and outputs:
        # Only the slope of this sum is read: itself it is no number where a forbidden token's logit is -inf.
        total = torch.stack([(level * grad).sum() for level, grad in outputs]).sum()
        result = torch.autograd.grad(total, trained, allow_unused=True)
        found = {id(parameter): grad for parameter, grad in zip(trained, result)}
    whole = [found.get(id(parameter)) for parameter in parameters]
    return [torch.zeros_like(parameter) if grad is None else grad for parameter, grad in zip(parameters, whole)]


def tree_gradient(
    mdp: TokenMDP, logits_levels: list[Float[Tensor, "P V N"]], reward_levels: list[Float[Tensor, "P V N"]]
) -> tuple[float, list[Float[Tensor, "P V N"]]]:
    """J and dJ/dlogits at every node, as fast as memory allows: numpy, blocks that fit in cache, one pass over the last
    level.

        dJ/dlogit(p, w) = P(prompt) P(p | prompt) γˡ π(w|p) (Q(p, w) - V(p)),   0 where the environment draws w

    Args:
        logits_levels: `node_logits(policy, mdp)`; not changed.
        reward_levels: `mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)`; not changed.

    Returns:
        J and new tensors (P, V, nˡ), float64; apart from these, memory for about 2/V of their size is used.

    Raises:
        ValueError: if a level has another shape than (P, V, nˡ), or J is not finite.
    """
    _check_levels(mdp, logits_levels, "logits_levels")
    _check_levels(mdp, reward_levels, "reward_levels")
    logits, rewards = _arrays(logits_levels), _arrays(reward_levels)
    grads = [np.empty(level.shape) for level in logits]
    J = 0.0
    for number, prompt in enumerate(mdp.prompts):
        one = [[level[number] for level in levels] for levels in (logits, rewards, grads)]
        J += prompt.probability * _prompt_gradient(mdp, *one, weight=prompt.probability)
    for level in () if mdp.environment is None else mdp.environment.at:
        grads[level][...] = 0.0
    return finite(J), [torch.from_numpy(grad) for grad in grads]


def _prompt_gradient(
    mdp: TokenMDP, logits: list[np.ndarray], rewards: list[np.ndarray], grads: list[np.ndarray], weight: float
) -> float:
    """V(prompt) of one prompt, levels (V, nˡ); fills `grads`, which keeps π of the short levels until their turn
    comes."""
    eos = mdp.vocab_size if mdp.eos is None else mdp.eos
    last, discount = mdp.horizon - 1, mdp.discount.tolist()
    width = min(max(1, BLOCK // mdp.vocab_size), mdp.tree.level_sizes[last])
    buffer, spare = np.empty((2, mdp.vocab_size, width))

    reach = [np.ones(1)]
    for level in range(last):
        below = np.empty((mdp.tree.branching, len(reach[level])))
        for block in _blocks(len(reach[level]), width):
            pi = grads[level][:, block]
            pi /= _exponentials(logits[level][:, block], out=pi)
            np.multiply(pi[:eos], reach[level][block], out=below[:eos, block])
            np.multiply(pi[eos + 1 :], reach[level][block], out=below[eos:, block])
        reach.append(below.reshape(-1))

    value = np.empty(0)
    for level in reversed(range(mdp.horizon)):
        value *= mdp.gamma
        ahead = value.reshape(mdp.tree.branching, -1)
        value = reach.pop()  # block by block, values take the place of reach probabilities that are used up
        for block in _blocks(len(value), width):
            work, product = buffer[:, : block.stop - block.start], spare[:, : block.stop - block.start]
            scale = (weight * discount[level]) * value[block]
            if level == last:
                pi, Q = work, rewards[level][:, block]
                total = _exponentials(logits[level][:, block], out=pi)
            else:
                pi, Q, total = grads[level][:, block], work, 1.0
                Q[...] = rewards[level][:, block]
                Q[:eos] += ahead[:eos, block]
                Q[eos + 1 :] += ahead[eos:, block]
            # On the last level pi is total · π: dividing V and the scale is a pass less than dividing pi.
            V = np.add.reduce(np.multiply(pi, Q, out=product), axis=0, out=value[block])
            V /= total
            advantage = np.subtract(Q, V, out=product)
            pi *= scale / total
            np.multiply(pi, advantage, out=grads[level][:, block])
    return float(value[0])


def _exponentials(logits: np.ndarray, out: np.ndarray) -> np.ndarray:
    """exp(logit - largest logit) of every prefix of a block (V, b) into `out`, and their sums over the tokens."""
    np.copyto(out, logits)  # logits come from far away; a plain copy fetches them fastest
    out -= np.maximum.reduce(out, axis=0)
    return np.add.reduce(np.exp(out, out=out), axis=0)


def _blocks(size: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def _arrays(levels: list[Float[Tensor, "P V N"]]) -> list[np.ndarray]:
    """The same memory as numpy arrays, where it is float64 already."""
    return [level.detach().to(torch.float64).numpy() for level in levels]


def _check_levels(mdp: TokenMDP, levels: list[Float[Tensor, "P V N"]], name: str) -> None:
    """Raise ValueError unless there is one (P, V, nˡ) a level."""
    expected = [(len(mdp.prompts), mdp.vocab_size, size) for size in mdp.tree.level_sizes]
    if len(levels) != mdp.horizon:
        raise ValueError(
            f"{name} has {len(levels)} levels; this token MDP has one for each of its {mdp.horizon} steps."
        )
    for number, (level, shape) in enumerate(zip(levels, expected)):
        if tuple(level.shape) != shape:
            raise ValueError(
                f"{name}[{number}] has shape {tuple(level.shape)}; (prompts, tokens, prefixes) is {shape} here."
            )


def _check_size(mdp: TokenMDP, numbers_per_edge: int = 1) -> None:
    """Raise ValueError if a table over the tree would not fit in memory."""
    numbers = len(mdp.prompts) * mdp.vocab_size * mdp.tree.n_nodes * numbers_per_edge
    if numbers > LARGEST_TREE:
        leaves = mdp.tree.n_leaves
        count = f"{leaves:,}" if leaves < 10**15 else f"about 10^{math.log10(leaves):.0f}"
        raise ValueError(
            f"The tree of {mdp.vocab_size} tokens and {mdp.horizon} steps has {count} leaves for each of "
            f"{len(mdp.prompts)} "
            "prompts, too many for memory; use a smaller vocabulary or horizon, or an NgramPolicy with a Markov hidden "
            "reward, "
            "which needs no tree."
        )
