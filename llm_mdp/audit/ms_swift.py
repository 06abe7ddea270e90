"""ms-swift: advantages and loss of its GRPO trainer.

Called are the library's own `GRPOTrainer._compute_advantages` and `_compute_loss_and_metrics`.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Library, Setting
from llm_mdp.audit.single_modules import import_alone
from llm_mdp.sampling.evidence import Finish

_TRAINERS = "swift.rlhf_trainers"
MODULES = (f"{_TRAINERS}.grpo_trainer",)
SHELLS = ("swift", _TRAINERS, "swift.rl_core")
STAND_INS = (
    "trl",
    "vllm",
    "swift.dataset",
    "swift.rewards",
    "swift.rl_core.data",
    "swift.rl_core.grpo_algorithm",
    "swift.sequence_parallel",
    "swift.template",
    "swift.trainers",
    "swift.utils",
    f"{_TRAINERS}.arguments",
    f"{_TRAINERS}.gkd_helpers",
    f"{_TRAINERS}.rollout_mixin",
    f"{_TRAINERS}.utils",
)
DEFAULTS: dict[str, Any] = {
    "advantage_estimator": "grpo",
    "scale_rewards": "group",
    "kl_in_reward": False,
    "beta": 0.04,
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "real_tau": 0.5,
    "fipo_gamma": 2 ** (-1 / 32.0),
    "fipo_clip_range": 0.2,
    "fipo_clip_high_only": True,
    "fipo_safety_threshold": 4.0,
    "overlong_filter": False,
}
"""What `_prepare_algorithm_params` takes from the arguments, at their defaults (rlhf_trainers/args_mixin.py)."""


@cache
def modules() -> SimpleNamespace:
    """A private copy of the library's module."""
    (trainer,) = import_alone("swift", MODULES, STAND_INS, SHELLS)
    trainer.gather = trainer.gather_object = lambda value: value
    return SimpleNamespace(trainer=trainer)


def trainer_of(batch: Batch, options: Mapping[str, Any]) -> SimpleNamespace:
    """What the two methods read of a trainer with these options."""
    owner = modules().trainer.GRPOTrainer
    made = SimpleNamespace(
        **{**DEFAULTS, **options},
        args=SimpleNamespace(delta=None, gradient_accumulation_steps=1),
        accelerator=SimpleNamespace(num_processes=1, gather_for_metrics=lambda value: value),
        model=SimpleNamespace(training=True),
        num_generations=batch.group_size,
        max_completion_length=batch.mask.shape[-1],
        reward_weights=torch.ones(1),
        reward_func_names=["reward"],
        dynamic_num_samples=False,
        compute_entropy=False,
        rollout_importance_sampling_mode=None,
        log_rollout_offpolicy_metrics=False,
        disable_rollout_importance_sampling=True,
        off_policy_sequence_mask_delta=None,
        sdar_loss_coef=0.0,
        chord_sft_iterator=None,
        current_gradient_accumulation_steps=1,
        model_accepts_loss_kwargs=False,
        compute_loss_func=None,
        _has_teacher=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _logs=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logp, None),
    )
    for name in ("_compute_fipo_influence", "_undo_gradient_accumulation_scaling"):
        setattr(made, name, partial(getattr(owner, name), made))
    return made


def advantages(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """One advantage a response."""
    trainer, seen = trainer_of(batch, options), None
    if trainer.kl_in_reward and trainer.beta:
        seen = SimpleNamespace(
            old_per_token_logps=batch.old_logp,
            ref_per_token_logps=batch.reference_logp,
            completion_mask=batch.mask,
        )
    rewards = batch.response_reward[:, None]
    return modules().trainer.GRPOTrainer._compute_advantages(trainer, [], rewards, [{"grpo_batch": seen}])


def loss(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """What its trainer would go backward from, on the whole batch at once."""
    trainer = trainer_of(batch, options)
    as_loss = trainer.beta and not trainer.kl_in_reward
    seen = SimpleNamespace(
        completion_mask=batch.mask,
        truncated_mask=batch.finish == int(Finish.HORIZON),
        advantages=advantages(batch, options)[:, None].expand(batch.mask.shape),
        old_per_token_logps=batch.old_logp,
        rollout_per_token_logps=None,
        ref_per_token_logps=batch.reference_logp if as_loss else None,
        teacher_per_token_logps=None,
        num_items_in_batch=batch.mask.sum(),
    )
    return modules().trainer.GRPOTrainer._compute_loss_and_metrics(trainer, None, {}, seen)[0]


def _row(options: Mapping[str, Any], claim: str, *, place: str = "", target: str = "reward", **more: Any) -> Setting:
    return Setting(
        name=",".join(f"{key}={value}" for key, value in options.items()) or "defaults",
        claim=claim,
        place=place or "swift/rlhf_trainers/args_mixin.py",
        target=target,
        loss=partial(loss, options=options),
        advantages=partial(advantages, options=options),
        since="4.6.0",
        **more,
    )


LOSSES = {
    "grpo": "GRPO: the mean over each response's tokens",
    "bnpo": "the mean over the micro-batch's tokens",
    "dapo": "DAPO: the mean over all tokens of the update",
    "dr_grpo": "Dr. GRPO: sums over tokens, divided by the batch and the longest allowed length",
    "sapo": "SAPO: soft gates instead of clips",
    "fipo": "FIPO: tokens weighed by the KL of later ones",
    "real": "REAL: responses classified as good or bad in their group",
}
REPAIR = "set loss_type=dr_grpo"


def settings() -> list[Setting]:
    """Estimators, scales, losses and penalties."""
    modules()
    constant = {"loss_type": "dr_grpo", "beta": 0.0}
    rloo = {"advantage_estimator": "rloo", "scale_rewards": "none"}
    default = _row(
        {},
        "GRPO with group standard deviation and a k3 loss (β = 0.04): all defaults",
        target="reward - 0.04 kl",
        repair="set advantage_estimator=rloo, which puts k1 into the reward; set loss_type=dr_grpo",
        is_default=True,
    )
    estimators = [
        ({"scale_rewards": "group"}, "GRPO: group mean and standard deviation", "set scale_rewards=none"),
        ({"scale_rewards": "batch"}, "GRPO with the batch's standard deviation", "set scale_rewards=none"),
        ({"scale_rewards": "none"}, "GRPO without a standard deviation: with this loss Dr. GRPO", None),
        (rloo, "RLOO: each response against the mean of the others", None),
        (
            {"advantage_estimator": "reinforce_plus_plus", "scale_rewards": "batch"},
            "REINFORCE++ with a group mean, scaled over the batch",
            "set scale_rewards=none",
        ),
    ]
    penalty = {"beta": 0.3, **rloo, "loss_type": "dr_grpo"}
    cispo = {"loss_type": "cispo", **rloo, "beta": 0.0}
    return [
        default,
        *(_row({**each, **constant}, claim, repair=repair) for each, claim, repair in estimators),
        *(
            _row({"loss_type": name, **rloo, "beta": 0.0}, claim, repair=None if name == "dr_grpo" else REPAIR)
            for name, claim in LOSSES.items()
        ),
        _row(
            cispo,
            "CISPO: clipped ratios as weights, detached",
            repair="set epsilon_high=5",
            note="epsilon_high = 0.2 caps the ratio itself, not its distance from 1: a fifth of every weight is left",
        ),
        _row({**cispo, "epsilon_high": 5.0}, "CISPO with the cap that its paper uses", repair=REPAIR),
        *(
            _row(
                {"importance_sampling_level": level, **rloo, **constant},
                "GSPO: ratios of whole responses" + (", token by token" if level == "sequence_token" else ""),
                note="each response's mean ratio is counted once a token: sums in effect",
            )
            for level in ("sequence", "sequence_token")
        ),
        _row(
            {"kl_in_reward": True, **penalty},
            "KL subtracted from the reward, k1 summed over the response",
            target="reward - 0.3 kl",
        ),
        _row(
            {"kl_in_reward": False, **penalty},
            "KL as a term of the loss, by k3",
            target="reward - 0.3 kl",
            repair="set kl_in_reward=true",
            note="the advantages column is without the penalty",
        ),
        _row(
            {"overlong_filter": True, **rloo, **constant},
            "truncated responses are left out of the loss",
            repair="leave overlong_filter off, or judge it by the reward of responses that end",
            note="their rewards stay in the others' baseline",
        ),
    ]


LIBRARY = Library(
    name="ms-swift",
    distribution="ms-swift",
    versions=">=4.6,<4.7",
    install="--no-deps ms-swift==4.6.0",
    settings=settings,
)
