"""The token MDP: generating a response token by token, with a hidden reward for every token and one observed reward at
the end."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.environment import Environment, check_environment, policy_steps
from llm_mdp.mdp.hidden_rewards import HiddenReward
from llm_mdp.mdp.tree import PAD, PrefixTree, pad_prompts


@dataclass(frozen=True)
class Prompt:
    """A prompt w₀ and how often it is asked."""

    tokens: tuple[int, ...] = ()
    probability: float = 1.0


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """Token MDP (the paper, §2.1): state = prompt + response so far, action = next token, transition = append, which is
    deterministic unless there is an `environment` that draws tokens between the policy's.

    A response ends at `eos` or after `horizon` tokens; both are termination. The hidden token reward r(W₀,ₜ₋₁, wₜ) is
    seen by the verifier only; an agent sees the response-level reward

        RM(W) = Σₜ γᵗ⁻¹ r(W₀,ₜ₋₁, wₜ)                                    (the paper, Theorem 1)

    Args:
        vocab_size: V ≥ 2.
        eos: the token that ends a response, 0 … V-1, or None when only the horizon does.
        horizon: T ≥ 1, the longest response in tokens.
        token_reward: a `HiddenReward`.
        gamma: discount in (0, 1].
        prompts: distinct prompts with probabilities that sum to 1.
        environment: who draws which tokens besides the policy; None: nobody.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    vocab_size: int
    eos: int | None
    horizon: int
    token_reward: HiddenReward = field(repr=False)
    gamma: float = 1.0
    prompts: tuple[Prompt, ...] = (Prompt(),)
    environment: Environment | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_shape(self.vocab_size, self.eos, self.horizon, self.gamma)
        check_prompts(self.prompts, self.vocab_size)
        if self.environment is not None:
            check_environment(self.environment, self.tree, len(self.prompts))

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree(self.vocab_size, self.eos, self.horizon)

    @cached_property
    def prompt_tokens(self) -> Int[Tensor, "P L"]:
        return pad_prompts([prompt.tokens for prompt in self.prompts])

    @cached_property
    def prompt_probability(self) -> Float[Tensor, " P"]:
        return torch.tensor([prompt.probability for prompt in self.prompts], dtype=torch.float64)

    @cached_property
    def policy_steps(self) -> Bool[Tensor, " T"]:
        """True where the policy draws the token, False where the environment does."""
        return policy_steps(self.horizon, self.environment)

    @property
    def longest(self) -> int:
        """The most tokens that the policy draws for one response: the horizon, less what the environment draws."""
        return int(self.policy_steps.sum())

    @cached_property
    def discount(self) -> Float[Tensor, " T"]:
        """γᵗ⁻¹ for t = 1 … T."""
        return self.gamma ** torch.arange(self.horizon, dtype=torch.float64)

    def hidden_reward(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T"]:
        """r(W₀,ₜ₋₁, wₜ), 0 where mask is False, unless an environment drew the token: its tokens have rewards, too. For
        the verifier and for comparison runs; no agent may see it."""
        return self.token_reward(prompt, tokens, mask if self.environment is None else tokens != PAD)

    def response_reward(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch"]:
        """RM(W) = Σₜ γᵗ⁻¹ rₜ."""
        return (self.hidden_reward(prompt, tokens, mask) * self.discount[: tokens.shape[-1]]).sum(-1)


def check_shape(vocab_size: int, eos: int | None, horizon: int, gamma: float) -> None:
    """Raise ValueError, in words, if a token MDP cannot have these numbers."""
    if not _whole(vocab_size) or vocab_size < 2:
        raise ValueError(f"vocab_size is {vocab_size!r}; it must be a whole number of at least 2.")
    if not _whole(horizon) or horizon < 1:
        raise ValueError(f"horizon is {horizon!r}; it must be a whole number of at least 1.")
    if eos is not None and (not _whole(eos) or not 0 <= eos < vocab_size):
        raise ValueError(
            f"eos is {eos!r}, outside the vocabulary 0 … {vocab_size - 1}; use one of these tokens or None."
        )
    if not isinstance(gamma, int | float) or isinstance(gamma, bool) or not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma!r}; the discount must be a number in (0, 1].")


def check_prompts(prompts: tuple[Prompt, ...], vocab_size: int) -> None:
    """Raise ValueError, in words, if these are not distinct prompts with probabilities that sum to 1."""
    if not prompts:
        raise ValueError("prompts is empty; give at least one Prompt (Prompt() is the empty one).")
    for number, prompt in enumerate(prompts):
        for token in prompt.tokens:
            if not _whole(token) or not 0 <= token < vocab_size:
                raise ValueError(
                    f"prompts[{number}] holds the token {token!r}, outside the vocabulary 0 … {vocab_size - 1}."
                )
        if (
            not isinstance(prompt.probability, int | float)
            or isinstance(prompt.probability, bool)
            or not 0 < prompt.probability <= 1
        ):
            raise ValueError(f"prompts[{number}] has probability {prompt.probability!r}; it must be in (0, 1].")
    if len({prompt.tokens for prompt in prompts}) < len(prompts):
        raise ValueError("two prompts have the same tokens; merge them into one and add their probabilities.")
    total = math.fsum(prompt.probability for prompt in prompts)
    if abs(total - 1) > 1e-9:
        raise ValueError(f"the prompts' probabilities sum to {total!r}; they must sum to 1.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
