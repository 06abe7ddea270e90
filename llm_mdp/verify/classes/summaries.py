"""What a group estimator may read of the other responses: sums over them of something that their classes say."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import one_hot

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.classes.partition import Partition

MAX_CLASSES = 4_000
"""Classes that are told apart in a summary."""


@dataclass(frozen=True)
class Summary:
    """σ = Σⱼ φ(cⱼ) over the other responses of a group, cⱼ their classes."""

    words: str
    """What it holds, after "of the others"."""
    of_class: Callable[[Partition], Int[Tensor, "C D"]]
    """φ of every class, whole numbers of at least 0."""


def nothing(classes: Partition) -> Int[Tensor, "C D"]:
    """The weights depend on the own response alone."""
    return torch.zeros(classes.size, 1, dtype=torch.int64)


def rewards(classes: Partition) -> Int[Tensor, "C D"]:
    """How many have each reward but the last, which has the rest."""
    return _by_reward(classes)[:, :-1]


def tokens(classes: Partition) -> Int[Tensor, "C D"]:
    """How many tokens they have in all."""
    return classes.length[:, None]


def rewards_and_tokens(classes: Partition) -> Int[Tensor, "C D"]:
    """How many have each reward, and their tokens in all."""
    return torch.cat([rewards(classes), tokens(classes)], dim=1)


def tokens_by_reward(classes: Partition) -> Int[Tensor, "C D"]:
    """How many have each reward, and how many tokens these have in all."""
    return torch.cat([rewards(classes), _by_reward(classes) * tokens(classes)], dim=1)


def classes_themselves(classes: Partition) -> Int[Tensor, "C D"]:
    """How many are of each class but the last: all that rewards, lengths and finishes say, in whatever order."""
    _check_few(classes)
    return torch.eye(classes.size, dtype=torch.int64)[:, :-1]


def _by_reward(classes: Partition) -> Int[Tensor, "C R"]:
    """1 for the reward of each class."""
    _check_few(classes)
    return one_hot(classes.reward.unique(return_inverse=True)[1])


def _check_few(classes: Partition) -> None:
    if classes.size > MAX_CLASSES:
        raise TooLarge(f"more than {MAX_CLASSES:,} values")


SUMMARIES = (
    Summary("nothing", nothing),
    Summary("the number with each reward", rewards),
    Summary("the tokens", tokens),
    Summary("the number with each reward, and the tokens", rewards_and_tokens),
    Summary("the number with each reward, and its tokens", tokens_by_reward),
    Summary("the number of each reward, length and finish", classes_themselves),
)
"""The cheapest first."""
