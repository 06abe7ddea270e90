"""Advantages as OpenRLHF's experience maker computes them, and the loss as its actor's trainer does.

Both are the library's own methods, `RemoteExperienceMaker.make_experience` and `compute_advantages_and_returns`, and
`ActorPPOTrainer.training_step`. What stands in for the cluster: models whose log-probabilities and values are already
known, a `ray` that hands on what it is given, and a strategy that keeps the loss instead of going backward.
"""

import logging
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.single_modules import import_alone
from llm_mdp.sampling.evidence import Finish

MODULES = (
    "openrlhf.trainer.ppo_utils.experience_maker",
    "openrlhf.trainer.ppo_utils.experience",
    "openrlhf.trainer.ray.ppo_actor",
    "openrlhf.trainer.ppo_utils.length_penalty",
    "openrlhf.utils.config",
)
STAND_INS = (
    "ray",
    "vllm",
    "deepspeed",
    "openrlhf.models.actor",
    "openrlhf.models.model",
    "openrlhf.trainer.ray.launcher",
    "openrlhf.trainer.ray.vllm_engine",
    "openrlhf.utils.deepspeed",
    "openrlhf.utils.math_utils",
    "openrlhf.utils.vlm_utils",
)
DEFAULTS: dict[str, Any] = {
    "algo.advantage.estimator": "gae",
    "algo.advantage.gamma": 1.0,
    "algo.advantage.lambd": 1.0,
    "algo.advantage.no_std_norm": False,
    "algo.advantage.is_correction_level": "off",
    "algo.advantage.is_correction_mode": "mask",
    "algo.advantage.is_correction_gating": "ratio",
    "algo.advantage.is_correction_threshold": [0.5, 5.0],
    "algo.kl.init_coef": 0.01,
    "algo.kl.estimator": "k1",
    "algo.kl.use_loss": False,
    "algo.kl.unbiased_gradient": False,
    "actor.policy_loss_type": "ppo",
    "actor.loss_agg_mode": "token-mean",
    "actor.eps_clip_low_high": (0.2, 0.2),
    "actor.dual_clip": None,
    "actor.aux_loss_coef": 0.0,
    "actor.entropy_coef": None,
    "reward.clip_range": (-10, 10),
    "reward.overlong_buffer_len": None,
    "reward.overlong_penalty_factor": 1.0,
    "reward.stop_properly_penalty_coef": None,
    "rollout.n_samples_per_prompt": 1,
    "rollout.max_new_tokens": None,
    "train.max_epochs": 1,
    "train.dynamic_batch_enable": False,
    "train.colocate_all": False,
    "train.colocate_actor_ref": False,
    "train.colocate_critic_reward": False,
    "train.async_enable": False,
    "ds.packing_samples": False,
    "ds.ring_attn_size": 1,
    "ds.tensor_parallel_size": 1,
    "vllm.sync_backend": "nccl",
}
"""The options that the two methods read, as the command line spells them, at its defaults (cli/train_ppo_ray.py)."""


@cache
def modules() -> SimpleNamespace:
    """Private copies of the library's modules, without its cluster."""
    maker, experience, actor, penalty, config = import_alone("openrlhf", MODULES, STAND_INS)
    maker.ray = SimpleNamespace(get=lambda value: value, put=lambda value: value)
    for talking in (maker, penalty):
        talking.logger.setLevel(logging.ERROR)
    actor.NaiveReplayBuffer = lambda *_: None
    actor.torch_dist_barrier_and_cuda_sync = lambda: None
    return SimpleNamespace(maker=maker, experience=experience, actor=actor, config=config)


def arguments(options: Mapping[str, Any], batch: Batch) -> SimpleNamespace:
    """The trainer's arguments: defaults, these options, and the sizes of the batch."""
    sizes = {"rollout.n_samples_per_prompt": batch.group_size, "rollout.max_new_tokens": batch.mask.shape[-1]}
    return modules().config.hierarchize(SimpleNamespace(**{**DEFAULTS, **sizes, **options}))


class _Group:
    """Models on a cluster, all of which answer with this tensor."""

    def __init__(self, answer: Tensor):
        self.answer = answer

    def async_run_method_batch(self, **_) -> list[list[Tensor]]:
        return [[self.answer]]


def experience_of(batch: Batch, args: SimpleNamespace) -> Any:
    """The experience that the library makes of a batch: KL, shaped rewards, advantages."""
    of = modules()
    made = of.experience.Experience(
        sequences=batch.tokens,
        attention_mask=batch.mask.long(),
        action_mask=batch.mask,
        rollout_log_probs=batch.old_logp,
        rewards=batch.response_reward.clone(),
        response_length=batch.mask.sum(-1),
        truncated=batch.finish == int(Finish.HORIZON),
        total_length=batch.mask.sum(-1) + batch.prompt_length,
        index=list(range(len(batch.mask))),
        info={},
    )
    reference = _Group(batch.reference_logp) if args.algo.kl.init_coef > 0 else None
    critic = _Group(batch.value[:, :-1]) if args.algo.advantage.estimator == "gae" else None
    make = of.maker.RemoteExperienceMaker(
        _Group(batch.old_logp),
        critic,
        None,
        reference,
        SimpleNamespace(value=args.algo.kl.init_coef),
        SimpleNamespace(args=args),
        None,
    )
    return make.compute_advantages_and_returns(make.make_experience([made]))[0]


def loss(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """What `ActorPPOTrainer.training_step` would go backward from, on the whole batch at once."""
    args = arguments(options, batch)
    experience, kept = experience_of(batch, args), []
    strategy = SimpleNamespace(
        args=args,
        ring_attn_group=None,
        backward=lambda each, *_: kept.append(each),
        optimizer_step=lambda *_, **__: None,
        get_grad_norm=lambda *_: 0.0,
    )
    trainer = modules().actor.ActorPPOTrainer(
        strategy,
        _Actor(batch.logp),
        ema_model=None,
        actor_optim=None,
        actor_scheduler=SimpleNamespace(get_last_lr=lambda: [0.0]),
    )
    trainer.training_step(experience, args.algo.kl.init_coef, step=0)
    return kept[0]


class _Actor:
    """A model whose log-probabilities are already known."""

    def __init__(self, logp: Tensor):
        self.logp = logp

    def train(self) -> None:
        pass

    def __call__(self, *_, **__) -> tuple[Tensor, SimpleNamespace]:
        return self.logp, SimpleNamespace()


def advantages(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """The advantages; where KL is a loss, less β times its derivative by every token's log-probability."""
    args = arguments(options, batch)
    advantage = experience_of(batch, args).advantages
    if not (args.algo.kl.use_loss and args.algo.kl.init_coef > 0):
        return advantage
    with torch.enable_grad():
        logp = batch.old_logp.clone().requires_grad_()
        kl = modules().actor.compute_approx_kl(
            logp,
            batch.reference_logp,
            log_probs_old=batch.old_logp,
            kl_estimator=args.algo.kl.estimator,
            unbiased_gradient=args.algo.kl.unbiased_gradient,
        )
        (slope,) = torch.autograd.grad(kl.sum(), logp)
    return advantage - args.algo.kl.init_coef * slope
