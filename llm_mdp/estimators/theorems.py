"""The paper's statements as estimators: exact values and hidden rewards in place of everything a trainer would have to
estimate."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.credit import terminal
from llm_mdp.estimators.returns import discounted_to_go, return_to_go, whiten
from llm_mdp.estimators.values import branch_mean
from llm_mdp.mdp.hidden_rewards import HiddenReward, last_token
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic


@dataclass(frozen=True)
class WithValue(Estimator):
    """Base: evidence with a critic's values and, on request, the hidden token rewards."""

    critic: Critic | None = None
    hidden: bool = False

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(
            rollouts,
            sampler.response_reward(rollouts),
            token_reward=sampler.hidden_reward(rollouts) if self.hidden else None,
            value=sampler.value(self.critic, rollouts) if self.critic else None,
        )


@dataclass(frozen=True)
class Lemma1(WithValue):
    """Aₜ = γᵗ⁻¹ Q(W₀,ₜ₋₁, wₜ), Q = r + γ V, `critic` = V (Eq. 4); `baseline` adds any c(W₀,ₜ₋₁) (Lemma 2)."""

    hidden: bool = True
    gamma: float = 1.0
    baseline: Critic | None = None

    def collect(self, sampler):
        evidence = super().collect(sampler)
        assert evidence.token_reward is not None and evidence.value is not None
        q = evidence.token_reward + self.gamma * evidence.value[..., 1:]
        weight = self.gamma ** torch.arange(q.shape[-1], dtype=q.dtype) * q
        if self.baseline is not None:
            weight = weight + sampler.value(self.baseline, evidence.rollouts)[..., :-1]
        return replace(evidence, token_reward=weight)

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        return evidence.token_reward


@dataclass(frozen=True)
class Theorem1(WithValue):
    """Aₜ = E RM(W^(t+1)) = U(W₀,ₜ), `critic` = U (Eq. 21)."""

    def advantages(self, evidence):
        assert evidence.value is not None
        # The last token that anybody wrote: before an environment's one the prefix has a value, not a reward.
        last = last_token(evidence.rollouts.tokens >= 0)
        return torch.where(last, evidence.response_reward[..., None], evidence.value[..., 1:])


@dataclass(frozen=True)
class Theorem2(Theorem1):
    """Aₜ = U(W₀,ₜ) - U(W₀,ₜ₋₁), `critic` = U (Eq. 28)."""

    def advantages(self, evidence):
        assert evidence.value is not None
        return super().advantages(evidence) - evidence.value[..., :-1]


@dataclass(frozen=True)
class WithBaseline(Theorem1):
    """Aₜ = U(W₀,ₜ) - b(W₀,ₜ₋₁) for any b (Lemma 2), such as the one of Theorem 2's proof, `exact.optimal_baseline`."""

    baseline: Critic | None = None

    def collect(self, sampler):
        assert self.baseline is not None
        evidence = super().collect(sampler)
        return replace(evidence, token_reward=sampler.value(self.baseline, evidence.rollouts)[..., :-1])

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        return super().advantages(evidence) - evidence.token_reward


@dataclass(frozen=True)
class WithGreedyBaseline(Theorem1):
    """Aₜ = U(W₀,ₜ) - U_greedy(W₀,ₜ₋₁): RM of the greedily completed prefix as baseline. Claim: `trepo-greedy-baseline`,
    unbiased."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        return replace(evidence, branches=sampler.branches(evidence.rollouts, evidence.rollouts.mask, (0.0,)))

    def advantages(self, evidence):
        assert evidence.branches is not None
        return super().advantages(evidence) - branch_mean(evidence.branches, evidence.rollouts)[..., :-1]


@dataclass(frozen=True)
class ReturnToGo(WithValue):
    """Aₜ = γᵗ⁻¹ Gₜ of the hidden token rewards (Remark 2); `weighted=False` leaves γᵗ⁻¹ out (Remark 3, Eq. 26)."""

    hidden: bool = True
    gamma: float = 1.0
    weighted: bool = True

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        to_go = discounted_to_go if self.weighted else return_to_go
        # Every step counts, the environment's too: its tokens have rewards, and they take their time.
        every = torch.ones_like(evidence.rollouts.mask)
        return to_go(evidence.token_reward, every, self.gamma)


@dataclass(frozen=True)
class MixedRewards(WithValue):
    """Remark 5, Eq. 30: part of the hidden rewards is observed per token (`token_model`), the rest only as one sum.

    `merged`: all of it in one response-level reward, Aₜ = RM(W). Otherwise Aₜ = γᵗ⁻¹ Gₜ of the token-level part plus
    the whole of the response-level part.
    """

    token_model: HiddenReward | None = None
    gamma: float = 1.0
    merged: bool = True

    def collect(self, sampler):
        evidence = super().collect(sampler)
        rollouts = evidence.rollouts
        assert self.token_model is not None
        return replace(evidence, token_reward=self.token_model(rollouts.prompt, rollouts.tokens, rollouts.mask))

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        per_token, mask = evidence.token_reward, evidence.rollouts.mask
        weight = self.gamma ** torch.arange(per_token.shape[-1], dtype=per_token.dtype)
        token_level = (weight * per_token).sum(-1)
        response_level = evidence.response_reward - token_level
        if self.merged:
            return (response_level + token_level)[..., None]
        return discounted_to_go(per_token, mask, self.gamma) + response_level[..., None]


@dataclass(frozen=True)
class TerminalDiscounted(Estimator):
    """The reward γˡᵉⁿ⁻¹ RM(W) on the last token, as the proof of the Trajectory Policy Gradient Theorem has it where
    γ < 1; Aₜ is its return-to-go, γᵗ⁻¹ Gₜ (`discounted`) or without any discount.

    Claims: `trajectory-gamma`, `trajectory-gamma-discounted`, biased. With RM(W) / γˡᵉⁿ⁻¹ on the last token γᵗ⁻¹ Gₜ is
    RM(W).
    """

    gamma: float = 1.0
    discounted: bool = False

    def advantages(self, evidence):
        reward, mask = evidence.response_reward, evidence.rollouts.mask
        last = terminal(self.gamma ** (evidence.rollouts.length - 1).to(reward.dtype) * reward, mask)
        return discounted_to_go(last, mask, self.gamma) if self.discounted else return_to_go(last, mask)


@dataclass(frozen=True)
class Whitened(Estimator):
    """Remark 4: Aₜ = RM(W), normalised over all tokens of the batch, or over its responses."""

    group_size: int = 4
    over: Literal["tokens", "responses"] = "tokens"

    whole_batch: ClassVar[bool] = True

    def advantages(self, evidence):
        reward, mask = evidence.response_reward[..., None], evidence.rollouts.mask
        if self.over == "responses":
            return whiten(reward, torch.ones_like(reward, dtype=torch.bool))
        return whiten(reward.expand(mask.shape), mask)
