"""Interventions: the same estimator is shown other rewards, other lengths, other continuations, and what its weights do
then says what is wrong with them. Nothing here knows what the estimator is called or how it is written.

The order matters: a factor of the tokens is looked for with the rewards held fixed, then places without weight, then
what does not depend on the rewards; and each finding is repaired before the next is looked for.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from llm_mdp.verify.diagnosis import reward_looks, token_looks
from llm_mdp.verify.diagnosis.black_box import BlackBox, same
from llm_mdp.verify.diagnosis.subject import Found, Subject


def examine(box: BlackBox) -> list[Found]:
    """All that is found in the weights of an estimator, in the order in which it is repaired."""
    return list(_found(Subject(box)))


LOOKS = (
    token_looks.factors,
    token_looks.without_weight,
    token_looks.offsets,
    reward_looks.sign,
    reward_looks.rewards,
)
"""In this order; each sees the weights with what was found before it repaired."""


def _found(x: Subject) -> Iterator[Found]:
    yield from _drawing(x)
    if x.largest == 0:
        yield Found("no-weight", "every weight is 0, whatever the rewards", "", None)
        return
    if _no_reward(x):
        words = "the weights stay the same when the rewards of all responses change: they are made from something else"
        yield Found("no-reward", words, "", None)
        return
    reached, places = x.reached
    if reached < places:
        words = (
            f"the response's own reward reaches {reached} of {places} places with a weight; values or branches stand in"
        )
        yield Found("stand-ins", f"{words}, and their expectations were not examined", "", None)
        return
    for look in LOOKS:
        for found in look(x):
            yield found
            # Looks at rewards leave out what does not depend on them, repaired or not.
            if found.repair is not None and look is not token_looks.offsets:
                x.weights = found.repair(x.weights)


def _drawing(x: Subject) -> Iterator[Found]:
    """What was asked for in `collect` that is not what the gradient is of."""
    x.box(replace(x.shown, reward=torch.zeros_like(x.shown.reward)))  # are groups of equal rewards left out?
    for asked, (kind, words, remedy) in DRAWING.items():
        if asked in x.box.asked:
            yield Found(kind, words, remedy, None)


DRAWING = {
    "another temperature": (
        "temperature",
        "the responses are drawn at another temperature than the one that is differentiated",
        "draw at temperature 1",
    ),
    "another policy": (
        "other-policy",
        "the responses are drawn by another policy than the one that is differentiated",
        "draw from the policy itself, or weigh by the ratio of the whole response, uncapped",
    ),
    "groups left out": (
        "groups-left-out",
        "some groups are left out of the average",
        "keep every group in the denominator",
    ),
    "a second update": (
        "second-update",
        "the loss is differentiated after an update on the same responses",
        "draw fresh responses for every update",
    ),
}
"""What may be asked of the sampler, and the finding that it is."""


def _no_reward(x: Subject) -> bool:
    other = replace(x.shown, reward=3 * x.shown.reward.flip(0) + 1)
    return same(x.weights(x.shown), x.weights(other))
