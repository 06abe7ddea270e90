"""torchtune: what its PPO recipe does with a batch.

Called are the library's own `get_rewards_ppo`, `estimate_advantages` and `PPOLoss`, in the order of
`recipes/ppo_full_finetune_single_device.py`. Its GRPO recipe is not in the package: `torchtune.dev` is left out of it.
"""

from functools import cache, partial
from types import SimpleNamespace

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Library, Setting
from llm_mdp.audit.single_modules import import_alone

MODULES = ("torchtune.rlhf.rewards", "torchtune.rlhf.loss.ppo")
STAND_INS = ("torchao", "torchtune.modules", "torchtune.generation", "torchtune.training", "torchtune.data")


@cache
def modules() -> SimpleNamespace:
    """Private copies of the library's modules."""
    rewards, ppo = import_alone("torchtune", MODULES, STAND_INS)
    return SimpleNamespace(rewards=rewards, ppo=ppo)


def advantages(batch: Batch, kl_coeff: float, lmbda: float) -> Tensor:
    """The recipe's steps 2 and 3: rewards with their penalty, then advantages, whitened."""
    of, values = modules().rewards, batch.value[:, :-1] * batch.mask
    reference = batch.reference_logp if kl_coeff else batch.old_logp
    last = batch.mask.sum(-1) - 1
    rewards, _, _ = of.get_rewards_ppo(batch.response_reward, batch.old_logp, reference, kl_coeff, last)
    return of.estimate_advantages(values, rewards, 1.0, lmbda, masks=batch.mask)[0]


def loss(batch: Batch, kl_coeff: float, lmbda: float) -> Tensor:
    """`PPOLoss`, the critic's part of which does not depend on log π."""
    advantage, none = advantages(batch, kl_coeff, lmbda), torch.zeros_like(batch.old_logp)
    ppo = modules().ppo.PPOLoss()
    return ppo(batch.old_logp, batch.logp, advantage, none, none, none, batch.mask, batch.mask)[0]


def _row(kl_coeff: float, lmbda: float, claim: str, *, target: str = "reward", is_default: bool = False) -> Setting:
    return Setting(
        name=f"kl_coeff={kl_coeff},lmbda={lmbda}",
        claim=claim,
        place="torchtune/rlhf/rewards.py, estimate_advantages; recipes/configs/mistral/7B_full_ppo_low_memory.yaml",
        target=target,
        loss=partial(loss, kl_coeff=kl_coeff, lmbda=lmbda),
        advantages=partial(advantages, kl_coeff=kl_coeff, lmbda=lmbda),
        since="0.6.1",
        is_default=is_default,
        note="advantages are divided by their standard deviation over the batch's tokens, their mean is put back; no "
        "option leaves this or the mean over tokens out, both shrink with the batch",
    )


def settings() -> list[Setting]:
    """The PPO recipe: as configured, and its parts."""
    modules()
    return [
        _row(0.01, 0.95, "PPO with a k1 penalty in the reward", target="reward - 0.01 kl", is_default=True),
        _row(0.0, 1.0, "PPO's returns less a critic, normalised to lower the variance"),
        _row(0.3, 1.0, "PPO with a k1 penalty in the reward", target="reward - 0.3 kl"),
    ]


LIBRARY = Library(
    name="torchtune",
    distribution="torchtune",
    versions=">=0.6.1,<0.7",
    install="--no-deps torchtune==0.6.1",
    settings=settings,
)
