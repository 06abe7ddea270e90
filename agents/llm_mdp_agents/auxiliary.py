"""Agents with a critic or a reward model: how these are fitted, and what is said of them.

How much a model explains of the rewards R, from its values V before they were fitted to them:

    1 - Var(R - V) / Var(R)       1: all of it, 0: nothing, as a constant; below 0: V adds noise
"""

import math
import warnings
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.sampler import BatchSampler
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import SequenceScorer, scorer


@dataclass(frozen=True)
class CriticConfig(AgentConfig):
    """Options of agents with a learned critic."""

    critic: str | None = None
    """A sequence classifier with one label to start from; None: the policy's own body with a new head (tables: a small
    transformer)."""
    critic_learning_rate: float | None = None
    """Of AdamW; None: 1e-3 for small critics; 1e-4 for LoRA; 1e-5 for other large ones. A new head on a large body
    learns ten times as fast as the body, but as fast as adapters."""
    critic_epochs: int = 1
    """Passes over each batch."""
    critic_warm_up: int = 10
    """Batches on which the critic is trained before the policy's first update."""
    lam: float = 0.95
    """λ of GAE. With a learned critic only 1 is unbiased (claims gae-wrong-*)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("critic_learning_rate", self.critic_learning_rate)
        check_counts(critic_epochs=self.critic_epochs, critic_warm_up=self.critic_warm_up)
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam is {self.lam}; it must be in [0, 1].")


@dataclass(frozen=True)
class RewardModelConfig(AgentConfig):
    """Options of agents that look into a reward model."""

    reward_model: str | None = None
    """A trained sequence classifier with one label, left as it is; None: a new one, fitted to the rewards as they
    come."""
    reward_model_learning_rate: float | None = None
    """Of AdamW; None: as `critic_learning_rate`."""
    reward_model_warm_up: int = 10
    """Batches on which a new one is fitted before the policy's first update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("reward_model_learning_rate", self.reward_model_learning_rate)
        check_counts(reward_model_warm_up=self.reward_model_warm_up)


CriticOptions = TypeVar("CriticOptions", bound=CriticConfig)
RewardModelOptions = TypeVar("RewardModelOptions", bound=RewardModelConfig)


def check_rate(name: str, rate: float | None) -> None:
    """Raise ValueError for a learning rate that is none."""
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"{name} is {rate}; it must be above 0, or None for one by the model's size.")


def check_counts(**counts: int) -> None:
    """Raise ValueError for a negative number of anything."""
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is {count}; it must be at least 0.")


class WithCritic(Agent[CriticOptions]):
    """Base of agents with a learned value of every prefix: regression on RM(W), the return of the zero-reward
    reading.

    Metrics: `critic/loss`, the mean squared error over the policy's tokens, and `critic/explained_variance`, both
    before the batch was learned from.
    """

    def build(self) -> None:
        model = scorer(self.policy, self.task, self.seed, self.config.critic)
        self.add_model("critic", model, self.config.critic_learning_rate)

    def prepare(self, sampler: BatchSampler) -> None:
        """The critic's first batches. Warns where it then explains less than nothing of the rewards."""
        batches, late = self.config.critic_warm_up, []
        for number in range(batches):
            evidence = self.collect(sampler)
            value = self._learn(evidence)[1]
            self.report("critic", number + 1, batches)
            # The first values are those of a critic that has seen nothing.
            if value is not None and number >= batches - max(batches // 5, 1):
                late.append((value, evidence))
        _warn_of_critic(late)

    def fit(self, evidence: Evidence) -> dict[str, float]:
        loss, value = self._learn(evidence)
        if value is None:
            return {}
        mask = evidence.rollouts.mask
        reward = evidence.response_reward[:, None].expand(mask.shape)
        return {"critic/loss": loss, "critic/explained_variance": explained_variance(value[mask], reward[mask])}

    def _learn(self, evidence: Evidence) -> tuple[float, Float[Tensor, "B T"] | None]:
        """Loss and values before the first pass over a batch; no values if there is none."""
        critic, rollouts = self.models["critic"], evidence.rollouts

        def outputs(rows: Tensor) -> Tensor:
            return critic(rollouts.prompt[rows], rollouts.tokens[rows], rollouts.mask[rows])[..., :-1]

        def loss(value: Tensor) -> Tensor:
            error = torch.where(rollouts.mask, value - evidence.response_reward[:, None], 0.0)
            return (error**2).sum() / rollouts.mask.sum()

        passes = [
            self.optimize("critic", outputs, loss, len(rollouts.tokens)) for _ in range(self.config.critic_epochs)
        ]
        return passes[0] if passes else (0.0, None)


class WithRewardModel(Agent[RewardModelOptions]):
    """Base of agents with a model of RM(W), fitted to the environment's rewards of whole responses.

    Metrics: `reward_model/loss`, the mean squared error over the responses, and `reward_model/explained_variance`, both
    before the batch was learned from.
    """

    def build(self) -> None:
        given = self.config.reward_model
        model = scorer(self.policy, self.task, self.seed, given, trained=given is None, what="reward_model")
        if given is None:
            self.add_model("reward_model", model, self.config.reward_model_learning_rate)
        else:
            self.models["reward_model"] = model.requires_grad_(False)

    def prepare(self, sampler: BatchSampler) -> None:
        batches = 0 if self.config.reward_model else self.config.reward_model_warm_up
        for number in range(batches):
            self.fit(self.collect(sampler))
            self.report("reward model", number + 1, batches)

    def fit(self, evidence: Evidence) -> dict[str, float]:
        if self.config.reward_model:
            return {}
        model, rollouts, reward = self.models["reward_model"], evidence.rollouts, evidence.response_reward
        assert isinstance(model, SequenceScorer)
        loss, score = self.optimize(
            "reward_model",
            lambda rows: model.final(rollouts.prompt[rows], rollouts.tokens[rows]),
            lambda score: ((score - reward) ** 2).mean(),
            len(reward),
        )
        return {"reward_model/loss": loss, "reward_model/explained_variance": explained_variance(score, reward)}


def explained_variance(value: Float[Tensor, " N"], reward: Float[Tensor, " N"]) -> float:
    """1 - Var(R - V) / Var(R); 0 where all rewards are equal, for there is nothing to explain."""
    variance = float(reward.var(correction=0)) if len(reward) else 0.0
    # Equal rewards have a mean that is rounded, and a variance of that size.
    if variance <= 1e-20 * float(reward.abs().max() if len(reward) else 0) ** 2:
        return 0.0
    return 1 - float((reward - value).var(correction=0)) / variance


def ranked_alike(score: Float[Tensor, " B"], reward: Float[Tensor, " B"], group_size: int) -> float | None:
    """Of the pairs of responses to one prompt with different rewards, the share of which the better one has the higher
    score, an equal score counting half; None: there is no such pair."""
    better = (groups := reward.unflatten(0, (-1, group_size)))[:, :, None] > groups[:, None, :]
    scores = score.unflatten(0, (-1, group_size))
    ahead = (scores[:, :, None] - scores[:, None, :])[better]
    return float((ahead > 0).double().mean() + 0.5 * (ahead == 0).double().mean()) if len(ahead) else None


def _warn_of_critic(batches: list[tuple[Float[Tensor, "B T"], Evidence]]) -> None:
    """UserWarning where the values of these batches explain less than nothing of their rewards, and not by chance: two
    standard errors, by responses, below."""
    value = [each[evidence.rollouts.mask] for each, evidence in batches]
    reward = [
        evidence.response_reward[:, None].expand(each.shape)[evidence.rollouts.mask] for each, evidence in batches
    ]
    if not value:
        return
    flat_value, flat_reward = torch.cat(value), torch.cat(reward)
    explained = explained_variance(flat_value, flat_reward)
    error = flat_reward - flat_value
    gain = (flat_reward - flat_reward.mean()) ** 2 - (error - error.mean()) ** 2
    owner = torch.repeat_interleave(torch.cat([evidence.rollouts.mask.sum(-1) for _, evidence in batches]))
    by_response = torch.zeros(int(owner.max()) + 1, dtype=gain.dtype).index_add(0, owner, gain)
    spread = float(by_response.std() / len(by_response) ** 0.5) if len(by_response) > 1 else math.inf
    if explained < 0 and float(by_response.mean()) < -2 * spread:
        warnings.warn(
            f"after its warm-up the critic explains {explained:.2f} of the variance of the rewards, less than a "
            f"constant would, so its values add noise to the advantages: lower critic_learning_rate, raise "
            f"critic_warm_up, or train with an agent that needs no critic, such as rloo.",
            stacklevel=2,
        )
