"""Counter-examples for a reader: the smallest instance that shows something, in the fewest and roundest numbers."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch

from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import Instance, random_instance, stream
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.problem import Problem

Shape = tuple[int, int, float]
"""V, T, γ."""

SHAPES: tuple[Shape, ...] = (
    *((2, horizon, gamma) for horizon in (1, 2, 3, 4) for gamma in (1.0, 0.5)),
    (3, 2, 1.0),
    (3, 3, 1.0),
    (3, 4, 1.0),
)
"""Where a counter-example is looked for, the smallest first; token 0 ends a response."""
TRIES = 24
"""Instances drawn of each shape."""
VISIBLE = 0.05
"""A bias that a reader is shown is at least this large, in length, and in direction where that is the point."""
TABLES = ("value", "reference_logits", "logits", "token_reward")
"""What a node holds, in the order in which it is simplified: rewards are the last to go."""


def smallest_instance(
    shows: Callable[[Instance], bool], *, shapes: tuple[Shape, ...] = SHAPES, tries: int = TRIES, seed: int = 0
) -> Instance | None:
    """The first instance of small whole numbers that shows it, shrunk; None: none of those drawn does.

    Args:
        shows: is what should be seen to be seen on this instance?
        shapes: tried in this order.
        tries: instances drawn of each shape, every other one with a uniform policy.
        seed: same seed, same instance.
    """
    for shape in shapes:
        for instance in _drawn(shape, tries, seed):
            if shows(instance):
                return shrunk(instance, shows)
    return None


def shrunk(instance: Instance, shows: Callable[[Instance], bool]) -> Instance:
    """The same instance with as many zeros, and as few digits, as still show it: no single number of it can be
    simplified further.

    The policy becomes a table. Whole tables are tried as 0, then those of single nodes, then each number: as 0, as
    whole numbers from 1 up, with one digit.

    Args:
        shows: as in `smallest_instance`; it holds of `instance`.
    """
    content, name = instance_to_dict(instance), instance.name

    def kept(candidate: dict[str, Any]) -> bool:
        return shows(instance_from_dict(candidate, name))

    every = range(len(content["nodes"]))
    for key, places in ((key, places) for key in TABLES for places in (every, *([place] for place in every))):
        candidate = deepcopy(content)
        for node in (candidate["nodes"][place] for place in places):
            node[key] = 0.0 if key == "value" else [0.0] * len(node[key])
        if candidate != content and kept(candidate):
            content = candidate
    changed = True
    while changed:
        changed = False
        for key in TABLES:
            for place, node in enumerate(content["nodes"]):
                for entry in range(1 if key == "value" else len(node[key])):
                    candidate = _simplified(content, key, place, entry, kept)
                    content, changed = candidate or content, changed or candidate is not None
    return instance_from_dict(content, name)


def counter_example(
    claim: Claim, verdict: str, *, group_size: int = 3, beta: float = 0.7, seed: int = 0
) -> Instance | None:
    """The smallest instance found on which a claim of the ledger has this verdict, as expected there, and plainly.

    Args:
        verdict: "biased", "proportional" or "fails".
        group_size: K of the group estimators. beta: β of DPO, RTO and PRIME.
    """

    def shows(instance: Instance) -> bool:
        problem = Problem(instance, group_size, beta)
        row = claim_row(claim, problem, sampled=None, seed=seed, confidence=0.99)
        return row["verdict"] == verdict and row["holds"] is True and visible(row)

    return smallest_instance(shows, seed=seed)


def visible(row: dict[str, Any]) -> bool:
    """Is what a row shows large enough to be seen: its bias, and where the direction is wrong, the angle?"""
    if row["relative_bias"] is None:
        return row["verdict"] == "fails"
    turned = row["cosine"] < (1 - VISIBLE**2) ** 0.5
    return row["relative_bias"] >= VISIBLE and (turned or row["verdict"] == "proportional")


def _drawn(shape: Shape, tries: int, seed: int) -> Iterator[Instance]:
    """Instances of whole numbers: rewards 0 … 3, logits and values -2 … 2."""
    vocab_size, horizon, gamma = shape
    content = instance_to_dict(random_instance(vocab_size, horizon, gamma=gamma))
    generator = stream(seed, f"counter-example {vocab_size} {horizon} {gamma}")

    def whole(low: int, high: int) -> list[float]:
        return torch.randint(low, high + 1, (vocab_size,), generator=generator).double().tolist()

    for place in range(tries):
        for node in content["nodes"]:
            node["token_reward"], node["reference_logits"] = whole(0, 3), whole(-2, 2)
            node["value"] = whole(-2, 2)[0]
            node["logits"] = whole(-2, 2) if place % 2 else [0.0] * vocab_size
        yield instance_from_dict(content, f"V={vocab_size} T={horizon} γ={gamma:g}")


def _simplified(
    content: dict[str, Any], key: str, place: int, entry: int, kept: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    """The content with one number simpler, if that still shows it."""
    node = content["nodes"][place]
    number = node[key] if key == "value" else node[key][entry]
    sign = -1.0 if number < 0 else 1.0
    simpler = [0.0, *(sign * whole for whole in range(1, 4)), float(f"{number:.1g}")]
    if number in simpler:
        simpler = simpler[: simpler.index(number)]
    for value in simpler:
        candidate = deepcopy(content)
        if key == "value":
            candidate["nodes"][place][key] = value
        else:
            candidate["nodes"][place][key][entry] = value
        if kept(candidate):
            return candidate
    return None
