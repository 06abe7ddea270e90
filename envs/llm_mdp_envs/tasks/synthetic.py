"""Token MDPs of the core as tasks: their hidden rewards, gradients and values are known exactly, so agents can be
measured against them.

`task.mdp` is for verifiers: `instance(task)` makes the verification problem that `llm_mdp.verify.problem.Problem`
takes.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from llm_mdp.exact.instances import Instance, check_size, random_instance
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP, check_shape
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import TabularPolicy, TabularValue
from llm_mdp_envs.arguments import MOST_TOKENS, check_finite, check_seed, check_whole, shown
from llm_mdp_envs.array_task import ArrayTask
from llm_mdp_envs.task import Question, Scores

LARGEST_TABLE = 10_000_000
"""Most numbers that a table of rewards may take to make."""
MOST_PROMPTS = 1_000
"""Of a random token MDP; the memory to make one grows with their square."""
MOST_ORDER = 16
"""Even two tokens make too large a table beyond it; checked before the table's size is computed."""


class TokenMDPTask(ArrayTask):
    """Any `llm_mdp.mdp.token_mdp.TokenMDP`: a question is one of its prompts, the reward RM(W) = Σₜ γᵗ⁻¹ rₜ, the token
    rewards stay hidden.

    Questions are rows (n, 1): the number of the prompt. Responses are scored by look-up where a table fits in memory.
    """

    separates: ClassVar[str] = "whatever the token MDP at hand was made for"

    def __init__(self, mdp: TokenMDP):
        if not isinstance(mdp, TokenMDP):
            raise ValueError(f"mdp is {shown(mdp)}; it must be a TokenMDP.")
        if mdp.environment is not None:
            raise ValueError(
                f"an environment draws the tokens after {list(mdp.environment.at)} others, and this task has no turns; "
                "leave the environment out, or write a task with `reply` (envs/llm_mdp_envs/turns.py)."
            )
        self.mdp: TokenMDP = mdp  # pyright: ignore[reportIncompatibleVariableOverride]
        self.vocab_size, self.eos, self.horizon = mdp.vocab_size, mdp.eos, mdp.horizon
        self.prompt_length = mdp.prompt_tokens.shape[1]

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        if len(self.mdp.prompts) == 1:
            return np.zeros((n, 1), dtype=np.int64)
        return generator.choice(len(self.mdp.prompts), size=(n, 1), p=self._probability)

    def prompts(self, secrets: np.ndarray) -> np.ndarray:
        return self._prompts[secrets[:, 0]]

    def from_prompt(self, tokens: tuple[int, ...]) -> Question:
        """The question with this prompt; ValueError if the MDP has no such prompt."""
        for number, prompt in enumerate(self.mdp.prompts):
            if prompt.tokens == tokens:
                return Question(tokens, (number,))
        known = [list(prompt.tokens) for prompt in self.mdp.prompts[:5]]
        raise ValueError(
            f"the prompt {list(tokens)} is not among the {len(self.mdp.prompts)} of this task, such as {known}."
        )

    def score_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> Scores:
        if (leaves := self._leaf_table) is not None:
            return Scores(self._leaf_rewards(*leaves, secrets[:, 0], tokens))
        if (table := self._markov_table) is not None:
            return Scores(self._markov_rewards(*table, secrets[:, 0], tokens))
        prompt = torch.from_numpy(self._prompts[secrets[:, 0]])
        return Scores(self.mdp.response_reward(prompt, torch.from_numpy(tokens), torch.from_numpy(mask)).numpy())

    def token_reward_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        prompt = torch.from_numpy(self._prompts[secrets[:, 0]])
        return self.mdp.hidden_reward(prompt, torch.from_numpy(tokens), torch.from_numpy(mask)).numpy()

    def best_reward(self) -> float | None:
        """Σ P(prompt) maxᵂ RM(W), exact: over all responses where they can be listed, else by dynamic programming over
        the tokens that the hidden reward looks back on. None: it looks back too far."""
        if (leaves := self._leaf_table) is not None:
            return float(leaves[1].reshape(len(self._prompts), -1).max(1) @ self._probability)
        return self._backwards(lambda values: values.max(1))

    def random_reward(self) -> float | None:
        """E[RM(W)] of the policy to which all tokens are equally likely, exact; computed as `best_reward` is."""
        if (leaves := self._leaf_table) is not None:
            length = (self.mdp.tree.leaves != PAD).sum(1).numpy()
            return float(
                leaves[1].reshape(len(self._prompts), -1) @ float(self.vocab_size) ** -length @ self._probability
            )
        return self._backwards(lambda values: values.mean(1))

    def _backwards(self, choose: Callable[[np.ndarray], np.ndarray]) -> float | None:
        """The value of the prompts where `choose` makes one value out of those (contexts, V) of all tokens."""
        if self._markov_table is None:
            return None
        (order, table), width = self._markov_table, self.vocab_size + 1
        context = np.arange(width**order)
        after = (context[:, None] * width + np.arange(1, width)) % len(context)
        rewards = table.reshape(self.horizon, 2, len(context), width)[..., 1:]
        value = np.zeros(len(context))
        for step in reversed(range(self.horizon)):
            values = rewards[step, 1] if step == self.horizon - 1 else rewards[step, 0] + value[after]
            if self.eos is not None:
                values = np.where(np.arange(self.vocab_size) == self.eos, rewards[step, 1], values)
            value = choose(values)
        text = np.concatenate([np.full((len(self._prompts), order), PAD), self._prompts], axis=1) + 1
        begin = text[:, text.shape[1] - order :] @ (width ** np.arange(order - 1, -1, -1))
        return float(value[begin] @ self._probability)

    # RM(W) comes from the MDP in every case; where memory allows it is tabulated once, by response or by context, and
    # then looked up.

    def _leaf_rewards(
        self, offset: np.ndarray, rewards: np.ndarray, prompt: np.ndarray, tokens: np.ndarray
    ) -> np.ndarray:
        leaf = offset[tokens + np.arange(tokens.shape[1]) * (self.vocab_size + 1) + 1].sum(1)
        return rewards[prompt * (len(rewards) // len(self._prompts)) + leaf]

    @cached_property
    def _leaf_table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What each token adds to the leaf index, flat (T · (V+1),) with padding first, and RM of all leaves, flat (P ·
        leaves,)."""
        tree, n_prompts = self.mdp.tree, len(self.mdp.prompts)
        if (self.horizon - 1) * math.log(tree.branching) > math.log(LARGEST_TABLE):  # too many to count
            return None
        if tree.n_leaves * self.horizon * n_prompts > LARGEST_TABLE:
            return None
        offset = np.pad(tree.first_leaf_by_token.numpy(), ((0, 0), (1, 0))).reshape(-1)
        leaves = tree.leaves.expand(n_prompts, -1, -1)
        prompts = self.mdp.prompt_tokens[:, None].expand(-1, tree.n_leaves, -1)
        return offset, self.mdp.response_reward(prompts, leaves, leaves != PAD).reshape(-1).numpy()

    def _markov_rewards(self, order: int, table: np.ndarray, prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        n, steps = tokens.shape
        width, entries = self.vocab_size + 1, (self.vocab_size + 1) ** (order + 1)
        text = tokens
        if order:
            before = np.concatenate([np.full((n, order), PAD), self._prompts[prompt]], axis=1)
            text = np.concatenate([before[:, before.shape[1] - order :], tokens], axis=1)
        # Most responses end long before the horizon, so what they are worth is looked up for their tokens alone.
        there = np.flatnonzero(tokens != PAD)
        row = there // steps
        place = there + (row + 1) * order
        # Tables count tokens from 1.
        entry = (there - row * steps) * (2 * entries) + sum(width**back for back in range(order + 1))
        for back in range(order + 1):
            entry += text.take(place - back) * width**back
        entry[np.flatnonzero(row[1:] != row[:-1])] += entries  # the last of each response
        entry[-1:] += entries
        return np.bincount(row, table.take(entry), n)

    @cached_property
    def _markov_table(self) -> tuple[int, np.ndarray] | None:
        """The order, and γᵗ⁻¹ r by step, whether it is the last, and the last order + 1 tokens plus one (0: nothing
        there), flat; None if too large."""
        reward: Any = self.mdp.token_reward
        order, width = reward.order, self.vocab_size + 1
        if order is None or self.horizon * 2 * width ** (order + 1) > LARGEST_TABLE:
            return None
        shape = (self.horizon, 2, *(width,) * (order + 1))
        step, last, *text = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
        window = torch.stack(text[:order], dim=-1) - 1 if order else torch.empty((*shape, 0), dtype=torch.int64)
        token = text[order] - 1
        values = self.mdp.discount.view(-1, *(1,) * (order + 2)) * reward.local(
            window, token.clamp(min=0), step, last == 1
        )
        return order, torch.where(token == PAD, 0.0, values).reshape(-1).numpy()

    @cached_property
    def _probability(self) -> np.ndarray:
        return self.mdp.prompt_probability.numpy()

    @cached_property
    def _prompts(self) -> np.ndarray:
        return self.mdp.prompt_tokens.numpy()


class Tabular(TokenMDPTask):
    """A random number for every prefix and next token: nothing generalises, every state counts.

    Args:
        vocab_size, horizon, eos, gamma: as in `TokenMDP`.
        n_prompts: how many prompts; one is the empty one.
        seed: of the hidden rewards; the same as in `llm_mdp.exact.instances.random_instance`.

    Raises:
        ValueError: naming the argument, or if the tree is too large to list (then use `Ngram`).
    """

    separates: ClassVar[str] = "biased from unbiased estimators; every prefix has a hidden reward of its own"

    def __init__(
        self,
        vocab_size: int = 4,
        horizon: int = 4,
        eos: int | None = 0,
        gamma: float = 1.0,
        n_prompts: int = 1,
        seed: int = 0,
    ):
        vocab_size, eos, horizon, gamma = check_sizes(vocab_size, eos, horizon, gamma)
        n_prompts, seed = check_whole("n_prompts", n_prompts, 1, MOST_PROMPTS), check_seed(seed)
        super().__init__(random_instance(vocab_size, horizon, eos=eos, gamma=gamma, n_prompts=n_prompts, seed=seed).mdp)


class Ngram(TokenMDPTask):
    """A random number for every token and the `order` tokens before it: long responses, exact gradients all the same
    (`llm_mdp.exact.ngram_gradient`).

    Args:
        vocab_size, horizon, eos, gamma: as in `TokenMDP`.
        order: how many tokens back the hidden reward looks, 0 or more; its table has (V+1)^order rows.
        seed: of the hidden rewards.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates: ClassVar[str] = "estimators by variance on long responses; exact gradients at any horizon"

    def __init__(
        self,
        vocab_size: int = 16,
        horizon: int = 64,
        eos: int | None = 0,
        gamma: float = 1.0,
        order: int = 1,
        seed: int = 0,
    ):
        vocab_size, eos, horizon, gamma = check_sizes(vocab_size, eos, horizon, gamma)
        order, seed = check_whole("order", order), check_seed(seed)
        if order > MOST_ORDER or (vocab_size + 1) ** order * vocab_size > LARGEST_TABLE:
            raise ValueError(
                f"order is {shown(order)}, which over {vocab_size} tokens makes too large a table of rewards; use a "
                f"lower one, or a smaller vocab_size."
            )
        reward = NgramReward.random(vocab_size, order, torch.Generator().manual_seed(seed))
        super().__init__(TokenMDP(vocab_size, eos, horizon, reward, gamma, (Prompt(),)))


def instance(task: TokenMDPTask, seed: int = 0) -> Instance:
    """The verification problem of a task: its MDP with a random policy, reference policy and wrong critic (standard
    normal).

    Raises:
        InstanceError: if the tree has too many nodes to list; make the task with a smaller vocabulary or horizon.
    """
    if not isinstance(task, TokenMDPTask):
        raise ValueError(f"the task is {shown(task)}; it must be a token MDP's, such as Tabular().")
    mdp, generator = task.mdp, torch.Generator().manual_seed(check_seed(seed))
    check_size(mdp.tree, len(mdp.prompts))
    policy = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator)
    reference = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator)
    value = TabularValue.random(mdp.tree, mdp.prompt_tokens, generator)
    return Instance(mdp, policy, reference, value, type(task).__name__)


def optimum(task: TokenMDPTask) -> float:
    """Σ P(prompt) maxᵂ RM(W), the most that any policy can earn.

    Raises:
        ValueError: if there are too many responses to list.
    """
    if task._leaf_table is None:
        leaves = f"{task.mdp.tree.n_leaves:.2g}"
        raise ValueError(
            f"{type(task).__name__} has {leaves} responses, too many to list; make it with a smaller vocabulary or "
            f"horizon."
        )
    best = task.best_reward()
    assert best is not None
    return best


def check_sizes(
    vocab_size: int, eos: int | None, horizon: int, gamma: float = 1.0
) -> tuple[int, int | None, int, float]:
    """The four as Python's numbers; ValueError unless `check_shape` takes them and arrays of this many tokens can be
    made."""
    vocab_size = check_whole("vocab_size", vocab_size, 2, LARGEST_TABLE)
    horizon = check_whole("horizon", horizon, 1, MOST_TOKENS)
    if eos is not None and (eos := check_whole("eos", eos)) >= vocab_size:
        raise ValueError(
            f"eos is {shown(eos)}, outside the vocabulary 0 … {vocab_size - 1}; use one of these tokens or None."
        )
    gamma = check_finite("gamma", gamma, most=1, above=0)
    check_shape(vocab_size, eos, horizon, gamma)
    return vocab_size, eos, horizon, gamma
