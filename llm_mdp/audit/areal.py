"""AReaL: advantages as its `PPOActor` computes them, and the loss that it hands to its engine.

Called are the library's own `PPOActor._compute_advantages` (reward scaling and normalisation, KL in the reward, GAE,
normalisation of advantages) and `grpo_loss_fn`. Sequences have one token of a prompt before the response.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Library, Setting
from llm_mdp.audit.single_modules import import_alone

MODULES = ("areal.trainer.ppo.actor", "areal.api.cli_args")
STAND_INS = (
    "einops",
    "hydra",
    "numba",
    "omegaconf",
    "ray",
    "torchdata",
    "uvloop",
    "areal.api.controller_api",
    "areal.api.engine_api",
    "areal.api.scheduler_api",
    "areal.api.workflow_api",
    "areal.engine",
    "areal.experimental",
    "areal.infra",
    "areal.trainer.dpo_trainer",
    "areal.trainer.rl_trainer",
    "areal.trainer.rw_trainer",
    "areal.trainer.sft_trainer",
    "areal.utils.logging",
    "areal.utils.perf_tracer",
    "areal.utils.stats_tracker",
)


@cache
def modules() -> SimpleNamespace:
    """Private copies of the library's modules, without its cluster."""
    actor, config = import_alone("areal", MODULES, STAND_INS)
    return SimpleNamespace(actor=actor, config=config)


def configuration(options: Mapping[str, Any], batch: Batch) -> SimpleNamespace:
    """`PPOActorConfig` at its defaults, with these options; those of a normalisation as a dictionary."""
    of = modules().config
    values: dict[str, Any] = {each.name: each.default for each in fields(of.PPOActorConfig)}
    values |= {"max_new_tokens": batch.mask.shape[-1], **options}
    for name in ("adv_norm", "reward_norm"):
        if values[name] is not None:
            values[name] = of.NormConfig(**{"group_size": batch.group_size, **values[name]})
    return SimpleNamespace(**values)


def experience_of(batch: Batch, config: SimpleNamespace) -> dict[str, Any]:
    """What `PPOActor._compute_advantages` makes of a batch."""
    data: dict[str, Any] = {
        "input_ids": pad(batch.tokens.clamp(min=0), (1, 0)),
        "attention_mask": pad(batch.mask.long(), (1, 0), value=1),
        "loss_mask": pad(batch.mask.long(), (1, 0)),
        "logprobs": pad(batch.old_logp, (1, 0)),
        "rewards": batch.response_reward.clone(),
    }
    if config.with_reference:
        data["ref_logp"] = pad(batch.reference_logp, (0, 1))
    return modules().actor.PPOActor(config, None)._compute_advantages(data)


def loss(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """What its engine would go backward from, on the whole batch at once."""
    config = configuration(options, batch)
    names = ("eps_clip", "eps_clip_higher", "c_clip", "rejection_sampling", "m2_threshold", "use_sapo_loss")
    return modules().actor.grpo_loss_fn(
        pad(batch.logp, (0, 1)),
        torch.zeros_like(pad(batch.old_logp, (0, 1))),
        experience_of(batch, config),
        importance_sampling_level=config.importance_sampling_level,
        **{name: getattr(config, name) for name in names},
    )


def advantages(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """The advantages of the response's tokens."""
    config = configuration(options, batch)
    return experience_of(batch, config)["advantages"][:, : batch.mask.shape[-1]]


def _row(name: str, options: Mapping[str, Any], claim: str, place: str, **more: Any) -> Setting:
    options = {"kl_ctl": 0.0, "with_reference": False, **options}
    return Setting(
        name=name,
        claim=claim,
        place=place,
        loss=partial(loss, options=options),
        advantages=partial(advantages, options=options),
        since="1.0.4",
        **more,
    )


CONFIG = "areal/api/cli_args.py, PPOActorConfig"
NORM = "areal/api/cli_args.py, NormConfig"
TOKENS = "the loss is a mean over tokens: no constant divisor is offered, what is left dies with the batch"
ONE_OUT = {"mean_level": "group", "mean_leave1out": True, "std_level": None}
GROUP = {"mean_level": "group", "std_level": None}


def settings() -> list[Setting]:
    """Normalisations of rewards and of advantages, KL, losses."""
    modules()
    return [
        _row(
            "defaults",
            {"kl_ctl": 0.1},
            "PPO without critic or normalisation; kl_ctl = 0.1 is a KL coefficient",
            f"{CONFIG}, defaults",
            target="reward",
            repair="set kl_ctl=0 where there is no reference model",
            is_default=True,
            note=f"without a reference model the penalty is on log π itself, an entropy bonus; {TOKENS}",
        ),
        _row(
            "kl_ctl=0.1 (without a reference, against an entropy bonus)",
            {"kl_ctl": 0.1},
            "kl_ctl is a KL coefficient",
            f"{CONFIG}, kl_ctl",
            target="reward + 0.1 entropy",
            repair="set kl_ctl=0 where there is no reference model",
            note="advantages alone: exactly the gradient of the reward plus 0.1 of the entropy of responses",
        ),
        _row("kl_ctl=0", {}, "PPO on the plain reward", f"{CONFIG}, kl_ctl", note=TOKENS),
        *_normalised(),
        *_penalties(),
        *_losses(),
    ]


def _normalised() -> list[Setting]:
    batch = {"mean_level": "batch", "std_level": "batch"}
    grpo = {"mean_level": "group", "std_level": "group"}
    return [
        _row(
            "reward_norm=group mean, leave one out",
            {"reward_norm": ONE_OUT},
            "rewards less the mean of the others of their group (RLOO)",
            f"{NORM}, mean_leave1out",
            note=TOKENS,
        ),
        _row(
            "adv_norm=group mean, leave one out",
            {"adv_norm": ONE_OUT},
            "advantages less a leave-one-out mean of their group",
            f"{NORM}, mean_leave1out",
            repair="set mean_leave1out in reward_norm, where one response is left out",
            note="one token is left out, and its siblings of the same response stay in its baseline",
        ),
        _row(
            "reward_norm=group mean",
            {"reward_norm": GROUP},
            "rewards less their group's mean (Dr. GRPO)",
            f"{NORM}, mean_level",
            note=TOKENS,
        ),
        _row(
            "reward_norm=group mean and std",
            {"reward_norm": grpo},
            "rewards normalised in their group (GRPO)",
            f"{NORM}, std_level",
            repair="set std_level=null",
        ),
        _row(
            "adv_norm=group mean",
            {"adv_norm": GROUP},
            "advantages less their group's mean over tokens",
            f"{NORM}, mean_level",
            repair="set mean_level in reward_norm",
            note="the mean over tokens weighs long responses more",
        ),
        _row(
            "reward_norm=batch mean and std",
            {"reward_norm": batch},
            "rewards normalised over the batch",
            f"{NORM}, defaults",
            repair="set std_level=null, mean_level=group, mean_leave1out=true in reward_norm",
        ),
        _row(
            "adv_norm=batch mean and std",
            {"adv_norm": batch},
            "advantages normalised over the batch's tokens",
            f"{NORM}, defaults",
            repair="leave adv_norm out",
        ),
    ]


def _penalties() -> list[Setting]:
    kl = [
        _row(
            f"kl_estimator={kind},kl_ctl=0.3",
            {"kl_ctl": 0.3, "kl_estimator": kind, "with_reference": True, "reward_norm": ONE_OUT},
            f"KL penalty in the reward by {kind}, token by token",
            f"{CONFIG}, kl_estimator",
            target="reward - 0.3 kl",
            repair=None if kind == "k1" else "set kl_estimator=k1",
            note="with reward_norm leave one out and a reference model" + (f"; {TOKENS}" if kind == "k1" else ""),
        )
        for kind in ("k1", "k2", "k3")
    ]
    centred = _row(
        "kl_ctl=0.3,reward_norm=group mean",
        {"kl_ctl": 0.3, "with_reference": True, "reward_norm": GROUP},
        "Dr. GRPO with a KL penalty in the reward",
        f"{CONFIG}, kl_ctl, reward_norm",
        target="reward - 0.3 kl",
        repair="set mean_leave1out=true in reward_norm",
        note="the penalty comes after the normalisation, which shrinks rewards alone by (K - 1)/K",
    )
    return [
        *kl,
        centred,
        _row(
            "mask_no_eos_with_zero=True",
            {"mask_no_eos_with_zero": True, "reward_norm": ONE_OUT},
            "truncated responses are masked and excluded from training",
            f"{CONFIG}, mask_no_eos_with_zero",
            repair="leave mask_no_eos_with_zero off",
            note="their reward becomes 0 after normalisation, their tokens stay in the loss; every response as wide as "
            "the batch counts as truncated, ended or not",
        ),
        _row(
            "overlong_reward_penalty=True",
            {"overlong_reward_penalty": True, "overlong_tokens": 2, "overlong_penalty_factor": 1.0},
            "DAPO's overlong penalty over the last two tokens",
            f"{CONFIG}, overlong_reward_penalty",
            target="reward - overlong",
            note=TOKENS,
        ),
    ]


def _losses() -> list[Setting]:
    rloo = {"reward_norm": ONE_OUT}
    loss_file = "areal/utils/functional/functional.py"
    return [
        _row(
            "importance_sampling_level=sequence",
            {"importance_sampling_level": "sequence", **rloo},
            "GSPO: ratios of whole responses, the geometric mean over tokens",
            f"{CONFIG}, importance_sampling_level",
            note=f"each response's mean ratio is counted once a token: sums in effect; {TOKENS}",
        ),
        _row(
            "use_sapo_loss=True",
            {"use_sapo_loss": True, **rloo},
            "SAPO: soft gates instead of clips",
            f"{loss_file}, sapo_loss_fn",
            note=f"SAPO's own mean over each response is not kept; {TOKENS}",
        ),
        _row("c_clip=3.0", {"c_clip": 3.0, **rloo}, "dual clip", f"{CONFIG}, c_clip", note=TOKENS),
        _row(
            "gae_lambda=0.9",
            {"gae_lambda": 0.9, **rloo},
            "generalized advantages with λ = 0.9; here without a critic",
            f"{CONFIG}, gae_lambda",
            repair="leave gae_lambda at 1 without a critic",
        ),
        _row(
            "discount=0.9",
            {"discount": 0.9, **rloo},
            "returns discounted by 0.9",
            f"{CONFIG}, discount",
            repair="leave discount at 1",
            note="judged by the gradient of the reward that is not discounted",
        ),
    ]


LIBRARY = Library(
    name="areal",
    distribution="areal",
    versions=">=1.0.4,<1.1",
    install="--no-deps areal==1.0.4",
    settings=settings,
)
