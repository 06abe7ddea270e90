"""Is the ratio of the first update 1? Tried at the start of every run, on some of the responses that it draws anyway.

A model that draws from one distribution and is scored in another (positions that depend on the length, states that read
padding, kernels that ignore the mask) learns from ratios that mean nothing, without a word.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.sampling.evidence import Evidence, Rollouts, take_rows
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.optimizers import HALF

ROWS = 8
"""Responses that are scored again."""
LARGEST = 1e-4
"""Most that the log-probability of a token may differ, in 32 bits and more."""
LARGEST_MEAN = 0.06
"""Most that it may differ in the mean, in 16 bits, where drawing and scoring round apart."""


class FirstRatio(ValueError):
    """Responses are drawn from one distribution and scored in another."""


def is_half(policy: Policy) -> bool:
    """Are there weights of 16 bits?"""
    return isinstance(policy, nn.Module) and any(each.dtype in HALF for each in policy.parameters())


def check_first_ratio(
    evidence: Evidence, score: Callable[[Rollouts], Float[Tensor, "B T"]], half: bool, drawn: Float[Tensor, "B T"]
) -> None:
    """Raise FirstRatio where the ratio π(scored) / π(drawn) of the first responses is not 1 up to rounding.

    Args:
        evidence: the first batch.
        score: log-probabilities of responses, as training takes them.
        half: whether the policy has weights of 16 bits.
        drawn: log-probabilities of the batch as they were drawn.
    """
    # Some from either end: the first prompts, and a prompt that is not padded as they are.
    number = len(evidence.response_reward)
    rows = torch.arange(number) if number <= ROWS else torch.cat([torch.arange(ROWS - 1), torch.tensor([number - 1])])
    rollouts = take_rows(evidence, rows).rollouts
    difference = (score(rollouts) - drawn[rows])[rollouts.mask].abs()
    if not len(difference):
        return
    largest, mean = float(difference.max()), float(difference.mean())
    if (mean <= LARGEST_MEAN) if half else (largest <= LARGEST):
        return
    limit = f"{LARGEST_MEAN} in the mean, in 16 bits" if half else f"{LARGEST}, in 32 bits"
    raise FirstRatio(
        f"the policy draws from one distribution and is scored in another: the log-probabilities of "
        f"{len(difference)} drawn tokens, scored again, differ by {mean:.2g} in the mean and {largest:.2g} at most "
        f"(allowed: {limit}), so the ratio of the first update is not 1, and nothing was trained. Choose another "
        f"attention kernel or model, or say float32 where it was 16 bits."
    )
