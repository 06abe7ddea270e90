"""tinker-cookbook: advantages as its RL loop prepares them.

Called are the library's own `compute_advantages` and `incorporate_kl_penalty`. The losses themselves run on Tinker's
servers and are in no package: rows are about advantages, under the sum over tokens that Tinker documents.
"""

from collections.abc import Coroutine
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Library, Setting
from llm_mdp.audit.single_modules import import_alone

MODULES = ("tinker_cookbook.rl.data_processing", "tinker_cookbook.rl.metrics")
STAND_INS = (
    "chz",
    "tinker",
    "tinker_cookbook.completers",
    "tinker_cookbook.renderers",
    "tinker_cookbook.rl.types",
    "tinker_cookbook.supervised",
    "tinker_cookbook.utils.cost_estimation",
    "tinker_cookbook.utils.trace",
)


class _Data(SimpleNamespace):
    """A tensor as Tinker sends it."""

    def to_torch(self) -> Tensor:
        return self.tensor


@cache
def modules() -> SimpleNamespace:
    """Private copies of the library's modules, without its service."""
    processing, metrics = import_alone("tinker_cookbook", MODULES, STAND_INS)
    metrics.tinker = SimpleNamespace(TensorData=SimpleNamespace(from_torch=lambda tensor: _Data(tensor=tensor)))
    metrics._full_sequence_inputs = lambda data: data
    metrics.score_sequences = _scored
    return SimpleNamespace(processing=processing, metrics=metrics)


async def _scored(_, data: list[SimpleNamespace]) -> tuple[list[list[float]], None]:
    """log ref of every token, after that of the prompt's first, which is nobody's."""
    return [[0.0, *each.reference] for each in data], None


def _finished(work: Coroutine[Any, Any, Any]) -> None:
    """Runs what never waits."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise RuntimeError("the library waits for a server")


def advantages(batch: Batch, coefficient: float, discount: float) -> Tensor:
    """Advantages of a batch; a response's tokens are one datum."""
    of = modules()
    rewards = batch.response_reward.view(-1, batch.group_size)
    groups = [SimpleNamespace(get_total_rewards=row.tolist) for row in rewards]
    advantage = torch.cat(of.processing.compute_advantages(groups))
    if not coefficient:
        return advantage
    lengths = batch.mask.sum(-1).tolist()
    data = [
        SimpleNamespace(
            reference=batch.reference_logp[row, :length].tolist(),
            loss_fn_inputs={
                "logprobs": _Data(tensor=batch.old_logp[row, :length]),
                "mask": _Data(tensor=torch.ones(length)),
                "advantages": _Data(tensor=advantage[row].expand(length)),
            },
        )
        for row, length in enumerate(lengths)
    ]
    _finished(of.metrics.incorporate_kl_penalty(data, None, coefficient, discount))
    weights = torch.zeros_like(batch.old_logp)
    for row, (each, length) in enumerate(zip(data, lengths)):
        weights[row, :length] = each.loss_fn_inputs["advantages"].to_torch()
    return weights


def _row(coefficient: float, discount: float, name: str, claim: str, place: str, **more: Any) -> Setting:
    return Setting(
        name=name,
        claim=claim,
        place=f"tinker_cookbook/rl/{place}",
        loss=None,
        advantages=partial(advantages, coefficient=coefficient, discount=discount),
        since="0.6.1",
        **more,
    )


def settings() -> list[Setting]:
    """Advantages as they are, and with a KL penalty."""
    modules()
    penalty, place = "kl_penalty_coef=0.3", "metrics.py, incorporate_kl_penalty"
    centred = "rewards alone shrink by (K - 1)/K when they are centred"
    return [
        _row(
            0.0,
            0.0,
            "defaults",
            "advantages centred in their group, not divided by its standard deviation",
            "data_processing.py, compute_advantages",
            is_default=True,
            note="the loss is a sum over tokens on Tinker's servers",
        ),
        _row(
            0.3,
            0.0,
            penalty,
            "a KL penalty against the base model, added to the advantages",
            place,
            target="reward - 0.3 kl",
            note=f"each token carries its own log-ratio only, less the batch's mean; {centred}; no option repairs it: "
            "kl_discount_factor=1 brings later tokens' KL and a term in the length",
        ),
        _row(
            0.3,
            1.0,
            f"{penalty},kl_discount_factor=1.0",
            "the same, summed over later tokens",
            place,
            target="reward - 0.3 kl",
            note=f"the batch's mean is added once for every token to come, which pays for length; {centred}; no option "
            "leaves that mean out",
        ),
    ]


LIBRARY = Library(
    name="tinker",
    distribution="tinker-cookbook",
    versions=">=0.6.1,<0.7",
    install="--no-deps tinker-cookbook==0.6.1",
    settings=settings,
)
