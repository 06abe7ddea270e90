"""One update as verl's own trainer makes it: penalties in the reward, advantages, loss.

All three are the library's functions: `apply_kl_penalty` and `compute_advantage` of `verl/trainer/ppo/ray_trainer.py`,
which its v1 trainer calls as well, and `ppo_loss` of `verl/workers/utils/losses.py`, which every engine calls with one
micro-batch. Here the whole batch is one micro-batch, on one rank.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.single_modules import import_alone
from llm_mdp.verify.weights import EstimatorError

KNOWN = ">=0.9.1,<0.10"
MODULES = (
    "verl.trainer.ppo.ray_trainer",
    "verl.workers.utils.losses",
    "verl.trainer.config",
    "verl.workers.config",
    "verl.protocol",
    "verl.trainer.distillation.losses",
)
STAND_INS = ("torchdata", "verl.workers.rollout.llm_server")
"""What `ray_trainer` imports to load data and to start servers, and no update uses."""
ONE_REWARD = "score"
"""Under which name GDPO finds the reward."""


class _Wide(TorchFunctionMode):
    """What torch takes from NumPy's single precision (GDPO's rewards) becomes double, as all else in an audit."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        return made.double() if func is torch.tensor and made.dtype == torch.float32 else made


PLUGINS = {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": ""}
"""Environment variables that keep verl from importing what registers other names than its own."""


@contextmanager
def _without_plugins() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in PLUGINS}
    os.environ.update(PLUGINS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def modules() -> SimpleNamespace:
    """The modules of verl that make an update, by their last name; `core` is `core_algos`.

    Raises:
        UsageError: verl is not installed, or laid out in another way.
    """
    with _without_plugins():
        trainer, losses, algorithm, workers, protocol, distillation = import_alone("verl", MODULES, STAND_INS)
    return SimpleNamespace(
        trainer=trainer,
        losses=losses,
        algorithm=algorithm,
        workers=workers,
        protocol=protocol,
        distillation=distillation,
        core=trainer.core_algos,
    )


def nothing_more(batch: Batch) -> dict[str, Tensor]:
    """No other tensors than those that every batch has."""
    return {}


@dataclass(frozen=True)
class Update:
    """Options of verl, by their names in its configuration; as it sets them, where they are left out."""

    algorithm: dict[str, Any] = field(default_factory=dict)
    """Of `algorithm`."""
    actor: dict[str, Any] = field(default_factory=dict)
    """Of `actor_rollout_ref.actor`."""
    policy_loss: dict[str, Any] = field(default_factory=dict)
    """Of `actor_rollout_ref.actor.policy_loss`."""
    more: Callable[[Batch], dict[str, Tensor]] = nothing_more
    """Tensors that an advantage estimator reads beside those of every batch."""

    def advantages(self, batch: Batch) -> Float[Tensor, "B T"]:
        """What `compute_advantage` gives, after `apply_kl_penalty` where it is asked for."""
        data = self._scored(batch)
        with _Wide():
            return self._advantages(data, batch.group_size)

    def _advantages(self, data: Any, group_size: int) -> Float[Tensor, "B T"]:
        verl, options = modules(), self.algorithm_config
        if options.use_kl_in_reward:
            control = verl.core.get_kl_controller(options.kl_ctrl)
            data, _ = verl.trainer.apply_kl_penalty(data, control, kl_penalty=options.kl_penalty)
        else:
            data.batch["token_level_rewards"] = data.batch["token_level_scores"]
        data = verl.trainer.compute_advantage(
            data,
            adv_estimator=options.adv_estimator,
            gamma=options.gamma,
            lam=options.lam,
            num_repeat=group_size,
            norm_adv_by_std_in_grpo=options.norm_adv_by_std_in_grpo,
            config=options,
        )
        return data.batch["advantages"]

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """What `ppo_loss` gives for these advantages.

        Raises:
            EstimatorError: it draws random numbers.
        """
        before = torch.get_rng_state()
        loss, _ = modules().losses.ppo_loss(self.actor_config, *self._micro_batch(batch))
        # Two calls would differ only on batches where the draw matters, which few are.
        if not torch.equal(before, torch.get_rng_state()):
            raise EstimatorError(
                f"loss_mode={self.actor_config.policy_loss.loss_mode} draws random numbers of its own, so it has no "
                "exact expectation."
            )
        return loss

    @cached_property
    def algorithm_config(self) -> Any:
        verl = modules().algorithm
        options = dict(self.algorithm)
        if "kl_ctrl" in options:
            options["kl_ctrl"] = verl.KLControlConfig(**options["kl_ctrl"])
        return verl.AlgoConfig(gdpo_reward_keys=[ONE_REWARD], **options)

    @cached_property
    def actor_config(self) -> Any:
        verl = modules().workers
        options = dict(self.policy_loss)
        if "rollout_correction" in options:
            correction = modules().algorithm.RolloutCorrectionConfig
            options["rollout_correction"] = correction(**options["rollout_correction"])
        loss = verl.PolicyLossConfig(**options)
        return verl.ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=loss, **self.actor
        )

    def _scored(self, batch: Batch) -> Any:
        """The rollouts with their rewards, padded as the trainer pads them before it computes advantages."""
        mask = batch.mask.long()
        tensors = {
            "response_mask": mask,
            "token_level_scores": batch.token_reward.clone(),
            "old_log_probs": batch.old_logp,
            "prompts": torch.zeros_like(mask[:, :1]),
            "responses": batch.tokens,
            "attention_mask": torch.cat([torch.ones_like(mask[:, :1]), mask], 1),
        }
        if self.algorithm_config.use_kl_in_reward:
            tensors["ref_log_prob"] = batch.reference_logp
        if self.algorithm_config.adv_estimator == "gae":
            tensors["values"] = batch.value[:, :-1]
        if self.algorithm_config.adv_estimator == "remax":
            tensors["reward_baselines"] = batch.greedy_reward
        words = {"uid": batch.uid, ONE_REWARD: batch.response_reward.numpy()}
        return modules().protocol.DataProto.from_dict(tensors=tensors | self.more(batch), non_tensors=words)

    def _micro_batch(self, batch: Batch) -> tuple[dict[str, Tensor], Any]:
        """What comes out of the model, flat and a token ahead of the responses; and these, padded to the longest, which
        is what `ppo_loss` makes of the responses without padding that trainer v1 hands it."""
        rows, width = batch.mask.shape
        length = (batch.mask * torch.arange(1, width + 1)).amax(-1)
        longest = int(length.max())
        sequence = torch.arange(longest + 1) <= length[:, None]
        tensors = {
            "prompts": torch.zeros(rows, 1),
            "responses": batch.tokens[:, :longest],
            "attention_mask": sequence.long(),
            "response_mask": batch.mask[:, :longest],
            "old_log_probs": batch.old_logp[:, :longest],
            "advantages": self.advantages(batch)[:, :longest].detach(),
        }
        if self.actor_config.use_kl_loss:
            tensors["ref_log_prob"] = batch.reference_logp[:, :longest]
        counts = {"dp_size": 1, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": rows}
        data = modules().losses.tu.get_tensordict(tensors, counts)
        ahead = torch.cat([batch.logp, torch.zeros(rows, 1)], 1)
        return {"log_probs": ahead[:, : longest + 1][sequence]}, data
