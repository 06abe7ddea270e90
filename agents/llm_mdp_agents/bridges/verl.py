"""verl with estimators of ours: every name of the catalogue as verl's `llm_mdp_NAME`, by one import.

    VERL_USE_EXTERNAL_MODULES=llm_mdp_agents.bridges.verl python -m verl.trainer.main_ppo … \\
        algorithm.adv_estimator=llm_mdp_rloo actor_rollout_ref.actor.policy_loss.loss_mode=llm_mdp_sum

What verl calls advantages is here minus the derivative of the estimator's loss by every token's log π, on the whole
batch and times its number of responses, so that it holds the estimator's own reduction. The losses are that of one such
weight a token, under sums whatever loss_agg_mode says: `llm_mdp_sum`, and `llm_mdp_clipped` with verl's clip ratios.

verl is asked for its registries and `agg_loss` alone (`verl.trainer.ppo.core_algos`); its trainer was not run here.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import ENTRIES, find_entry
from llm_mdp.estimators.entry import Entry, Given, NeedsExactValues
from llm_mdp.estimators.objectives import clipped_surrogate, policy_gradient
from llm_mdp.own import UsageError, is_own, load
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts
from llm_mdp.verify.check import check_interface, with_group_size
from llm_mdp.verify.weights import loss_weights
from llm_mdp_agents.bridges.one_batch import OneBatch

PREFIX = "llm_mdp_"
OWN = "LLM_MDP_VERL"
"""Environment variable: estimators of yours, FILE.py:CLASS, separated by commas; they become llm_mdp_CLASS."""
SUM = "seq-mean-token-sum"
HAS = "verl hands over rewards, masks and prompts' uids alone; train it with `llm-mdp train`"
PROBE = (2, 4)
"""Prompts and tokens of the batches on which it is tried whether an estimator reads what verl does not hand over."""


def core_algos() -> Any:
    """verl's registries and `agg_loss`."""
    return import_module("verl.trainer.ppo.core_algos")


one_batch = partial(OneBatch, has=HAS, size_option=("rollout.n", "set actor_rollout_ref.rollout.n={}"))
"""(evidence, group_size, name) -> what verl has, as a sampler."""


def handed(
    reward: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], generator: torch.Generator | None = None
) -> Evidence:
    """Rewards and masks as evidence. Tokens, log-probabilities and reasons why responses ended are not known; the ratio
    to the policy that drew them is 1.

    Args: generator: draws what is not known; None: zeros.
    """
    tokens, logp = torch.zeros(mask.shape).long(), torch.zeros(mask.shape, dtype=reward.dtype)
    finish = torch.full(mask.shape[:1], int(Finish.EOS))
    if generator is not None:
        tokens = torch.randint(5, mask.shape, generator=generator)
        logp = -torch.rand(mask.shape, generator=generator, dtype=reward.dtype)
        finish = torch.randint(2, finish.shape, generator=generator)
    return Evidence(Rollouts(tokens[:, :1], tokens, mask, torch.where(mask, logp, 0.0), finish), reward)


def weights(
    estimator: Estimator, evidence: Evidence, group_size: int, name: str, moved: float | Tensor = 0.0
) -> Float[Tensor, "B T"]:
    """-B ∂loss/∂log π of every token, where the policy is the one that drew them.

    Args: moved: what the policy's log π are above those of the one that drew.

    Raises:
        UsageError: the estimator collects what verl does not hand over.
    """
    sampler: Any = one_batch(evidence, group_size, name)
    seen = estimator.collect(sampler)
    return len(evidence.response_reward) * loss_weights(estimator, seen, evidence.rollouts.logp + moved)


def check_expressible(estimator: Estimator, group_size: int, name: str) -> None:
    """Raise UsageError, in one sentence, if an estimator reads what verl does not hand over."""
    check_interface(estimator)
    prompts, horizon = PROBE
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(prompts * group_size, generator=generator, dtype=torch.float64)
    length = torch.arange(len(reward)) % horizon + 1
    mask = torch.arange(horizon) < length[:, None]
    one, two = handed(reward, mask), handed(reward, mask, generator)
    found = weights(estimator, one, group_size, name)
    if not _equal(found, weights(estimator, two, group_size, name)):
        raise UsageError(f"{name} reads tokens, log-probabilities or how responses ended, and {HAS}.")
    moved = 0.3 * torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    if not _equal(found, weights(estimator, one, group_size, name, moved)):
        raise UsageError(
            f"{name} has a loss of its own for policies that have moved since they drew, which in verl the policy loss "
            f"is for: take an estimator of advantages alone, with loss_mode={PREFIX}clipped or one of verl's."
        )


def _equal(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-9, atol=1e-12)


Make = Callable[[int], Estimator]
"""group_size -> estimator."""


def advantage_of(make: Make, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """What verl calls: (token_level_rewards, response_mask, index, …) -> (advantages, returns), both (B, T).

    Args: name: for sentences.
    """

    @cache
    def checked(group_size: int) -> Estimator:
        estimator = make(group_size)
        check_expressible(estimator, group_size, name)
        return estimator

    def advantage(
        token_level_rewards: Float[Tensor, "B T"],
        response_mask: Tensor,
        index: np.ndarray | None = None,
        config: Any = None,
        **rest: Any,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        order, group_size = by_prompt(index, name)
        mask = response_mask.bool()
        reward = torch.where(mask, token_level_rewards, 0.0).sum(-1).detach().cpu().double()
        evidence = handed(reward[order], mask.cpu()[order])
        found = torch.zeros(mask.shape, dtype=torch.float64)
        found[order] = weights(checked(group_size), evidence, group_size, name)
        found = found.to(token_level_rewards)
        return found, found.clone()

    return advantage


def by_prompt(index: np.ndarray | None, name: str) -> tuple[Tensor, int]:
    """Rows in the order of their prompts, and how many each prompt has.

    Raises:
        UsageError: there are no uids, or groups of different sizes.
    """
    if index is None:
        raise UsageError(f"{name} compares the responses to a prompt, and verl handed over no uid.")
    _, group, sizes = np.unique(np.asarray(index, dtype=str), return_inverse=True, return_counts=True)
    if len(set(sizes.tolist())) != 1:
        raise UsageError(
            f"{name} wants as many responses to every prompt, and verl's groups have {min(sizes)} to {max(sizes)}; one "
            "output a session, and no filter that leaves out single responses."
        )
    return torch.from_numpy(np.argsort(group, kind="stable")), int(sizes[0])


def of_entry(entry: Entry) -> Make:
    """The estimator of a name of the catalogue at any size of groups.

    Raises (when it makes one):
        UsageError: it needs what only small token MDPs know, or the horizon, which verl does not hand over.
    """

    def make(group_size: int) -> Estimator:
        groups = {"group_size": group_size} if entry.compares else {}
        try:
            one, two = (entry.make(Given(horizon), **groups) for horizon in (7, 11))
        except NeedsExactValues as why:
            raise UsageError(f"{entry.name} cannot be trained in verl: {why}") from why
        if one != two:
            raise UsageError(
                f"{entry.name} reads the horizon, which verl does not hand over; register an estimator that has yours: "
                'register(GRPO(reduction="constant", reduction_constant=1024), "mine") of llm_mdp_agents.bridges.verl.'
            )
        return one

    return make


def of_own(estimator: Estimator, name: str) -> Make:
    """An estimator of somebody's at any size of groups."""

    def make(group_size: int) -> Estimator:
        if estimator.group_size == group_size:
            return estimator
        changed = with_group_size(estimator, group_size)
        if changed is None:
            raise UsageError(f"{name} has groups of {estimator.group_size}, and rollout.n is {group_size}.")
        return changed

    return make


# --- losses -----------------------------------------------------------------------------------------------------------


def summed(per_token: Float[Tensor, "B T"], response_mask: Tensor, config: Any) -> Float[Tensor, ""]:
    """verl's sum over tokens and mean over the responses of the whole batch, from one micro-batch of it."""
    return core_algos().agg_loss(per_token, response_mask, SUM, **config.global_batch_info)


def each_token(tensor: Tensor) -> Float[Tensor, "B T 1 1"]:
    """Every token as a world with one response of one token, which our losses keep apart."""
    return tensor[..., None, None]


def sum_loss(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, **rest: Any):
    """-A log π, the policy gradient without a ratio."""
    terms = policy_gradient(each_token(log_prob), each_token(advantages), each_token(response_mask.bool()))
    return _weighted(terms, response_mask, **rest)


def clipped_loss(old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, **rest: Any):
    """-min(ρA, clip(ρ, 1 - clip_ratio_low, 1 + clip_ratio_high) A)."""
    config = rest["config"]
    low, high = (
        config.clip_ratio if each is None else each for each in (config.clip_ratio_low, config.clip_ratio_high)
    )
    new, old, advantage, mask = map(each_token, (log_prob, old_log_prob, advantages, response_mask.bool()))
    return _weighted(clipped_surrogate(new, old, advantage, mask, low, high), response_mask, **rest)


def _weighted(
    terms: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = SUM,
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Any]]:
    if rollout_is_weights is not None:
        terms = terms * rollout_is_weights
    return summed(terms, response_mask, config), {}


LOSSES = {f"{PREFIX}sum": sum_loss, f"{PREFIX}clipped": clipped_loss}


# --- registration -----------------------------------------------------------------------------------------------------


def register(estimator: Estimator | str, name: str | None = None) -> str:
    """One more advantage estimator of verl, llm_mdp_NAME.

    Args:
        estimator: an object, a name of the catalogue, or FILE.py:CLASS.
        name: after the prefix; None: that of the catalogue, or of the class.

    Returns: what to give as algorithm.adv_estimator.

    Raises:
        UsageError: there is no estimator of this name.
    """
    if isinstance(estimator, str) and not is_own(estimator):
        entry = find_entry(estimator)
        make, plain = of_entry(entry), plain_name(entry.name)
    else:
        found = load(estimator) if isinstance(estimator, str) else estimator
        found = found() if isinstance(found, type) else found
        make, plain = of_own(found, type(found).__name__), type(found).__name__
    called = PREFIX + (plain if name is None else name)
    # Again is no error: a module may be imported twice, once by name and once as an entry point.
    core_algos().ADV_ESTIMATOR_REGISTRY[called] = advantage_of(make, called)
    return called


def plain_name(name: str) -> str:
    """A name of the catalogue without what command lines of verl give a meaning to."""
    return name.replace("+", "p").replace("-", "_").replace(".", "_")


def register_all() -> None:
    """Every name of the catalogue, those of `LLM_MDP_VERL`, and both losses."""
    core_algos().POLICY_LOSS_REGISTRY.update(LOSSES)
    for entry in ENTRIES:
        register(entry.name)
    for place in filter(None, os.environ.get(OWN, "").split(",")):
        register(place.strip())


# verl imports this module by its name and calls nothing of it.
if find_spec("verl") is not None:
    register_all()
