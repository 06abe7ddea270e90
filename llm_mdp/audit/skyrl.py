"""SkyRL: its registries of advantage estimators and policy losses, through its trainer and its policy worker.

Called are the library's own `RayPPOTrainer.apply_reward_kl_penalty`, `compute_advantages_and_returns` and
`_normalize_advantages` (which scales advantages so that a sum becomes the reduction that was asked for), and
`PolicyWorkerBase._forward_backward_micro`, whose loss is kept instead of going backward.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Library, Setting
from llm_mdp.audit.single_modules import import_alone
from llm_mdp.verify.weights import EstimatorError

_TRAIN = "skyrl.backends.skyrl_train."
MODULES = (
    "skyrl.train.config.config",
    f"{_TRAIN}utils.ppo_utils",
    "skyrl.train.trainer",
    f"{_TRAIN}workers.worker",
)
STAND_INS = (
    "ray",
    "omegaconf",
    "cloudpickle",
    "skyrl_gym",
    "skyrl.backends.backend",
    "skyrl.env_vars",
    "skyrl.train.config.sft_config",
    "skyrl.train.dataset",
    "skyrl.train.evaluate",
    "skyrl.train.generators",
    "skyrl.train.utils",
    f"{_TRAIN}distributed",
    f"{_TRAIN}inference_servers",
    f"{_TRAIN}training_batch",
    f"{_TRAIN}utils.io",
    f"{_TRAIN}utils.profiler",
    f"{_TRAIN}weight_sync",
    f"{_TRAIN}workers.worker_dispatch",
    f"{_TRAIN}workers.worker_utils",
)


class _WithoutDevice:
    """torch where there is no accelerator: no casts to half precision, no current device."""

    cuda = SimpleNamespace(current_device=lambda: "cpu")

    def autocast(self, **_):
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@cache
def modules() -> SimpleNamespace:
    """Private copies of the library's modules, without its cluster."""
    config, utils, trainer, worker = import_alone("skyrl", MODULES, STAND_INS)
    worker.torch = _WithoutDevice()
    worker.compute_minibatch_rollout_logprob_diff_metrics = lambda *_: {}
    trainer.logger = SimpleNamespace(info=lambda *_: None)
    return SimpleNamespace(config=config, utils=utils, trainer=trainer, worker=worker)


class _Data(dict):
    """A batch by names, with slices of rows and notes: what the trainer reads of its own."""

    def __init__(self, tensors: Mapping[str, Any], metadata: dict[str, Any]):
        super().__init__(tensors)
        self.metadata = metadata

    def __getitem__(self, key: str | slice) -> Any:
        if isinstance(key, slice):
            return _Data({name: each if each is None else each[key] for name, each in self.items()}, self.metadata)
        return super().__getitem__(key)

    def to(self, _: str) -> "_Data":
        return self


def algorithm(options: Mapping[str, Any]) -> Any:
    """`trainer.algorithm` with these options, everything else at its default; those of a part by a dot."""
    made = modules().config.AlgorithmConfig()
    for name, value in options.items():
        part, _, inner = name.partition(".")
        made = replace(made, **{part: replace(getattr(made, part), **{inner: value}) if inner else value})
    return made


def experience_of(batch: Batch, config: Any) -> _Data:
    """Rewards with their penalty, and advantages, before they are scaled for the reduction."""
    penalised = config.use_kl_in_reward
    tensors = {
        "rewards": batch.token_reward,
        "response_mask": batch.mask.double(),
        "loss_mask": batch.mask.double(),
        "action_log_probs": batch.old_logp,
        "base_action_log_probs": batch.reference_logp if penalised or config.use_kl_loss else None,
        "values": batch.value[:, :-1] * batch.mask if config.advantage_estimator == "gae" else None,
    }
    data = _Data(tensors, {"uids": batch.uid, "avg_response_length": 0.0})
    trainer, owner = _trainer(config), modules().trainer.RayPPOTrainer
    if penalised:
        data = owner.apply_reward_kl_penalty(trainer, data)
    return owner.compute_advantages_and_returns(trainer, data)


def _trainer(config: Any) -> SimpleNamespace:
    cfg = SimpleNamespace(
        trainer=SimpleNamespace(algorithm=config, micro_train_batch_size_per_gpu=1),
        generator=SimpleNamespace(step_wise_trajectories=False),
    )
    return SimpleNamespace(cfg=cfg, all_metrics={}, reward_kl_controller=None)


def loss(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """What the policy worker would go backward from, on the whole batch at once."""
    of, rows, size = modules(), len(batch.mask), batch.group_size
    config = algorithm({"max_seq_len": batch.mask.shape[-1], **options})
    data = experience_of(batch, config)
    prompts = [(first, first + size) for first in range(0, rows, size)]
    data = of.trainer.RayPPOTrainer._normalize_advantages(_trainer(config), data, [(0, rows)], prompts)
    kept: list[Tensor] = []
    worker = SimpleNamespace(
        cfg=SimpleNamespace(algorithm=config),
        model=_Model(batch.logp),
        optimizer=None,
        policy_loss_fn=of.utils.PolicyLossRegistry.get(config.policy_loss_type),
        mesh_rank=SimpleNamespace(dp_size=1),
        scheduler=SimpleNamespace(get_last_lr=lambda: [0.0]),
        strategy=SimpleNamespace(backward=lambda each, *_: kept.append(each)),
    )
    experience = SimpleNamespace(
        sequences=None,
        attention_mask=None,
        pixel_values=None,
        image_grid_thw=None,
        num_actions=batch.mask.shape[-1],
        action_log_probs=batch.old_logp,
        rollout_logprobs=batch.old_logp,
        base_action_log_probs=data["base_action_log_probs"],
        advantages=data["advantages"],
        loss_mask=data["loss_mask"],
        action_mask=data["response_mask"],
        to_device=lambda _: None,
    )
    of.worker.PolicyWorkerBase._forward_backward_micro(worker, experience, 1.0)
    return kept[0]


def loss_without_chance(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """The loss, where two states of the random numbers give the same.

    Raises:
        EstimatorError: they do not.
    """
    with torch.random.fork_rng():
        losses = [_seeded(seed, batch, options) for seed in (0, 1)]
    if batch.logp.requires_grad:
        # By slopes: tokens of one response that are dropped in turn leave the same loss.
        slopes = [torch.autograd.grad(each, batch.logp, retain_graph=True)[0] for each in losses]
        if not all(torch.allclose(each, slopes[0], rtol=1e-12, atol=1e-14) for each in slopes):
            raise EstimatorError("which tokens are dropped is drawn at random inside the loss: no exact expectation")
    return losses[0]


def _seeded(seed: int, batch: Batch, options: Mapping[str, Any]) -> Tensor:
    torch.manual_seed(seed)
    return loss(batch, options)


class _Model:
    """A model whose log-probabilities are already known."""

    def __init__(self, logp: Tensor):
        self.logp = logp

    def train(self) -> None:
        pass

    def __call__(self, *_, **__) -> tuple[Tensor, dict[str, Tensor]]:
        rows, width = self.logp.shape
        return self.logp, {"entropy": torch.zeros(rows, width + 1)}


def advantages(batch: Batch, options: Mapping[str, Any]) -> Tensor:
    """The advantages, before they are scaled for the reduction."""
    return experience_of(batch, algorithm(options))["advantages"]


def _row(
    options: Mapping[str, Any], claim: str, place: str, *, against: str = "", target: str = "reward", **more: Any
) -> Setting:
    name = ",".join(f"{key}={value}" for key, value in options.items())
    options = {"use_kl_loss": False, **options}
    whole = loss_without_chance if options.get("policy_loss_type") == "clip_cov" else loss
    return Setting(
        name=f"{name} ({against})" if against else name,
        claim=claim,
        place=place,
        target=target,
        loss=partial(whole, options=options),
        advantages=partial(advantages, options=options),
        since="0.3.0",
        **more,
    )


UTILS = "skyrl/backends/skyrl_train/utils/ppo_utils.py"
CONFIG = "skyrl/train/config/config.py, AlgorithmConfig"
CONSTANT = {"loss_reduction": "seq_mean_token_sum_norm"}
NO_KL = "use_kl_loss=False unless the row says otherwise"
REPAIR = 'set loss_reduction="seq_mean_token_sum_norm"'
ESTIMATORS = {
    "grpo": ("GRPO: group mean and standard deviation", "set advantage_estimator=rloo, or grpo_norm_by_std=false"),
    "rloo": ("RLOO: each response against the mean of the others", None),
    "gae": ("generalized advantages with a critic, whitened over the batch", None),
    "reinforce++": ("REINFORCE++: returns whitened over the batch", None),
    "maxrl": (
        "MaxRL: centred by the group's mean and divided by it; it aims at a truncated log-likelihood, not the reward",
        "set advantage_estimator=rloo where the mean reward is meant",
    ),
}
LOSSES = {
    "regular": "PPO's clipped surrogate",
    "dual_clip": "PPO with a second clip for negative advantages",
    "gspo": "GSPO in its token form: the ratio of whole responses",
    "cispo": "CISPO: clipped ratios as weights, detached",
    "rollout_is": "importance weights against the engine's log-probabilities, zero outside the clip",
    "clip_cov": "Clip-Cov: some tokens of high covariance are dropped at random",
    "kl_cov": "KL-Cov: a KL penalty on the tokens of highest covariance",
    "sapo": "SAPO: soft gates instead of clips",
    "dppo": "DPPO: tokens are masked by total variation",
    "importance_sampling": "Tinker's importance-weighted policy gradient, summed over tokens",
    "cross_entropy": "a supervised loss, which ignores advantages and rewards",
}
REDUCTIONS = {
    "token_mean": "the mean over the mini-batch's tokens",
    "token_mean_legacy": "the mean over each micro-batch's tokens, averaged; micro-batches of one response here",
    "sequence_mean": "the mean over each response's tokens, averaged over responses",
    "prompt_mean": "the mean over each prompt's tokens, averaged over prompts",
    "seq_mean_token_sum_norm": "Dr. GRPO's: sums over tokens, divided by the batch and a constant length",
}


def settings() -> list[Setting]:
    """Both registries, all reductions, and the penalties."""
    modules()
    default = replace(
        _row(
            {"use_kl_loss": True},
            "GRPO with group standard deviation, a k3 loss (0.001) and the mean over tokens: all defaults",
            f"{CONFIG}, defaults",
            target="reward - 0.001 kl",
            repair=f"set grpo_norm_by_std=false; {REPAIR}; set use_kl_in_reward, kl_estimator_type=k1",
            is_default=True,
        ),
        name="defaults",
    )
    rloo = {"advantage_estimator": "rloo"}
    rows = [
        _row(
            {"advantage_estimator": name, **CONSTANT}, claim, f"{UTILS}, AdvantageEstimator", repair=repair, note=NO_KL
        )
        for name, (claim, repair) in ESTIMATORS.items()
    ]
    rows.append(
        _row(
            {"grpo_norm_by_std": False, **CONSTANT},
            "GRPO without the group's standard deviation: with this reduction Dr. GRPO",
            f"{CONFIG}, grpo_norm_by_std, loss_reduction",
            note=NO_KL,
        )
    )
    rows += [
        _row({"policy_loss_type": name, **rloo, **CONSTANT}, claim, f"{UTILS}, PolicyLossType", note=NO_KL)
        for name, claim in LOSSES.items()
    ]
    rows.append(
        _row(
            {"dppo.dppo_type": "binary_kl", "policy_loss_type": "dppo", **rloo, **CONSTANT},
            "DPPO: tokens are masked by binary KL",
            f"{CONFIG}, dppo",
            note=NO_KL,
        )
    )
    rows += [
        _row({"loss_reduction": name, **rloo}, claim, f"{CONFIG}, loss_reduction", repair=REPAIR, note=NO_KL)
        for name, claim in REDUCTIONS.items()
    ]
    rows.append(
        _row(
            {"advantage_batch_normalize": True, **rloo, **CONSTANT},
            "advantages whitened over the batch",
            "skyrl/train/trainer.py, _normalize_advantages",
            repair="leave advantage_batch_normalize off",
            note="the mean is over padding as well, the variance over tokens; the advantages column is without it",
        )
    )
    return [default, *rows, *_penalties()]


def _penalties() -> list[Setting]:
    rows = []
    for kind in ("k1", "k2", "k3", "abs"):
        shared = {"kl_estimator_type": kind, "advantage_estimator": "rloo", **CONSTANT, "kl_loss_coef": 0.3}
        repair = None if kind == "k1" else "set kl_estimator_type=k1"
        rows.append(
            _row(
                {"use_kl_in_reward": True, **shared},
                f"KL penalty in the reward, by {kind}",
                f"{CONFIG}, use_kl_in_reward",
                target="reward - 0.3 kl",
                repair=repair,
            )
        )
        rows.append(
            _row(
                {"use_kl_loss": True, **shared},
                f"KL penalty as a loss, by {kind}",
                f"{CONFIG}, use_kl_loss",
                target="reward - 0.3 kl",
                repair="set use_kl_loss=false, use_kl_in_reward=true, kl_estimator_type=k1",
                note="the KL loss is a mean over each response's tokens, whatever loss_reduction says "
                "(workers/worker.py, _forward_backward_micro); the advantages column is without it",
            )
        )
    return rows


LIBRARY = Library(
    name="skyrl",
    distribution="skyrl",
    versions=">=0.3,<0.4",
    install="--no-deps skyrl==0.3.0 loguru",
    settings=settings,
)
