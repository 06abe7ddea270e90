"""Groups of responses and batches of groups: how many there are, and all of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import Enumeration, TooLarge

MAX_WORLDS = 20_000_000
MAX_BATCHES = 1_000_000
"""Batches of several prompts that are enumerated."""
MAX_GROUP_SIZE = 10_000
"""Groups of more responses than this are not drawn either."""


@dataclass(frozen=True)
class Groups:
    """A chunk of groups of responses; `weight` times Π π(W_k) is the probability of the group. Of batches of groups,
    `which_prompt` has one entry a group, and `leaf` their responses one group after the other."""

    which_prompt: Int[Tensor, " W"] | Int[Tensor, "W P"]
    leaf: Int[Tensor, "W B"]
    weight: Float[Tensor, " W"]


def all_groups(
    enumeration: Enumeration, group_size: int, ordered: bool = True, chunk: int = 200_000
) -> Iterator[Groups]:
    """Every group of responses to every prompt, in chunks. Unordered groups stand for all their K!/(Π multiplicities!)
    orders.

    Raises:
        TooLarge: more than MAX_WORLDS groups.
    """
    check_groups(enumeration, group_size, ordered)
    n, prompts = enumeration.tree.n_leaves, enumeration.n_prompts
    every = torch.arange(n)
    if group_size == 1:
        groups = every[:, None]
    elif ordered:
        groups = torch.cartesian_prod(*[every] * group_size)
    else:
        groups = multisets(n, group_size)
    for number in range(prompts):
        for part in groups.split(chunk):
            weight = enumeration.mdp.prompt_probability[number].expand(len(part))
            yield Groups(torch.full((len(part),), number), part, weight if ordered else weight * _orders(part))


def multisets(n: int, size: int) -> Int[Tensor, "W size"]:
    """Every choice of `size` of n things without order, repetitions allowed, each row ascending, in lexicographic
    order. (`torch.combinations` fills a table of n^size bits first.)"""
    chosen = torch.arange(n)[:, None]
    for _ in range(size - 1):
        last = chosen[:, -1]
        number = n - last
        begin = number.cumsum(0) - number
        step = torch.arange(int(number.sum())) - begin.repeat_interleave(number)
        follow = last.repeat_interleave(number) + step
        chosen = torch.cat([chosen.repeat_interleave(number, 0), follow[:, None]], 1)
    return chosen


def all_batches(
    enumeration: Enumeration, group_size: int, prompts: int, *, ordered_groups: bool, ordered: bool, chunk: int = 20_000
) -> Iterator[Groups]:
    """Every batch of this many groups, each with a prompt of its own, in chunks. Batches without an order of groups
    stand for all their orders, and so do groups without an order of responses.

    Raises:
        TooLarge: more than MAX_BATCHES batches.
    """
    check_batches(enumeration, group_size, prompts, ordered_groups, ordered)
    parts = list(all_groups(enumeration, group_size, ordered_groups))
    prompt, leaf, weight = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("which_prompt", "leaf", "weight")
    )
    every = torch.arange(len(leaf))
    for first in every:
        if prompts == 1:
            rest = every.new_zeros(1, 0)
        elif ordered:
            rest = torch.cartesian_prod(*[every] * (prompts - 1)).reshape(-1, prompts - 1)
        else:
            rest = first + multisets(len(every) - int(first), prompts - 1)
        for batch in torch.cat([first.expand(len(rest), 1), rest], dim=1).split(chunk):
            orders = torch.ones(len(batch), dtype=torch.float64) if ordered else _orders(batch)
            yield Groups(prompt[batch], leaf[batch].flatten(1), weight[batch].prod(-1) * orders)


def check_batches(enumeration: Enumeration, group_size: int, prompts: int, ordered_groups: bool, ordered: bool) -> None:
    """Raise TooLarge if there are more than MAX_BATCHES batches to enumerate."""
    check_group_size(group_size)
    count = number_of_batches(enumeration, group_size, prompts, ordered_groups, ordered)
    if count > MAX_BATCHES:
        raise TooLarge(
            f"{in_words(count)} batches of {prompts} groups of {group_size} out of {enumeration.tree.n_leaves} "
            f"responses are too many (at most {MAX_BATCHES:,}); take a smaller instance, a smaller --group-size, or "
            "fewer --prompts."
        )


def number_of_batches(
    enumeration: Enumeration, group_size: int, prompts: int, ordered_groups: bool = False, ordered: bool = False
) -> int:
    """How many batches of so many groups there are, with or without an order of groups, and of the responses in
    each."""
    groups = number_of_groups(enumeration, group_size, ordered_groups)
    return groups**prompts if ordered else math.comb(groups + prompts - 1, prompts)


def number_of_groups(enumeration: Enumeration, group_size: int, ordered: bool = False) -> int:
    """How many groups there are to all prompts, with or without an order of their responses."""
    n = enumeration.tree.n_leaves
    return enumeration.n_prompts * (n**group_size if ordered else math.comb(n + group_size - 1, group_size))


def in_words(count: int) -> str:
    """A number that may be astronomical."""
    return f"{count:,}" if count < 10**15 else f"about 10^{math.floor(math.log10(count))}"


def check_groups(enumeration: Enumeration, group_size: int, ordered: bool) -> None:
    """Raise TooLarge if there are more than MAX_WORLDS groups to enumerate."""
    check_group_size(group_size)
    if (count := number_of_groups(enumeration, group_size, ordered)) > MAX_WORLDS:
        raise TooLarge(
            f"{in_words(count)} groups of {group_size} out of {enumeration.tree.n_leaves} responses are too many (at "
            f"most {MAX_WORLDS:,}); take a smaller instance, a smaller --group-size, or --sampled N."
        )


def check_group_size(group_size: int) -> None:
    """Raise TooLarge for more than MAX_GROUP_SIZE responses to a prompt."""
    if group_size > MAX_GROUP_SIZE:
        raise TooLarge(f"group_size is {group_size:,}; it must be at most {MAX_GROUP_SIZE:,}.")


def _orders(sorted_groups: Int[Tensor, "W K"]) -> Float[Tensor, " W"]:
    """K! / Π multiplicities!, one factor a member: its place in the group over its place among its equals, who stand
    side by side."""
    orders = torch.ones(len(sorted_groups), dtype=torch.float64)
    equals = torch.ones(len(sorted_groups), dtype=torch.int64)
    for k in range(1, sorted_groups.shape[-1]):
        equals = (equals + 1).where(sorted_groups[:, k] == sorted_groups[:, k - 1], 1)
        orders = orders * (k + 1) / equals
    return orders
