"""The estimators that agents train with: REINFORCE, RLOO, ReMax, GRPO, PPO, VinePPO, TRePO, MA-RLHF.

One currency: credit -> values -> returns -> objective. Those whose credit comes from another model are in
`learned_credit`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators import credit, values
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import Boundary, EveryNTokens
from llm_mdp.estimators.returns import gae, interpolate
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic
from llm_mdp.sampling.sampler import check_temperatures


@dataclass(frozen=True)
class REINFORCE(Estimator):
    """Aₜ = RM(W) - b, b a constant such as a running mean of earlier rewards (Corollary 1, Eq. 27). Claim: `reinforce`,
    unbiased."""

    baseline: float = 0.0

    def advantages(self, evidence):
        return (evidence.response_reward - self.baseline)[..., None]


@dataclass(frozen=True)
class RLOO(Estimator):
    """Aₖ = rₖ - mean of the other K - 1 (Eq. 36-37). Claims: `rloo` unbiased; `paper=True`, Eq. 36 as printed,
    `rloo-eq36`."""

    group_size: int = 4
    paper: bool = False

    def advantages(self, evidence):
        baseline = values.paper_leave_one_out if self.paper else values.leave_one_out
        reward = evidence.response_reward
        return (reward - baseline(reward, self.group_size))[..., None]


@dataclass(frozen=True)
class ReMax(Estimator):
    """A = RM(W) - RM(greedy response to the same prompt) (Eq. 38-39). Claim: `remax`, unbiased."""

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        branches = sampler.branches(rollouts, first_token(rollouts.mask), (0.0,))
        return Evidence(rollouts, sampler.response_reward(rollouts), branches=branches)

    def advantages(self, evidence):
        assert evidence.branches is not None
        greedy = values.branch_mean(evidence.branches, evidence.rollouts).sum(-1)
        return (evidence.response_reward - greedy)[..., None]


@dataclass(frozen=True)
class GRPO(Estimator):
    """Aₖ = (rₖ - mean r) / (std r + eps) over the group (Eq. 34-35), ddof 1.

    Claims: `grpo` biased; `scale_by_std=False`: `grpo-mean`, (K-1)/K times the gradient; with reduction
    "sequence_mean": `grpo-length`; without std and with reduction "constant": `dr-grpo`.
    """

    group_size: int = 8
    scale_by_std: bool = True
    eps: float = 1e-4

    def advantages(self, evidence):
        reward = evidence.response_reward
        advantage = values.centred(reward, self.group_size)
        if self.scale_by_std:
            advantage = advantage / (values.group_std(reward, self.group_size) + self.eps)
        return advantage[..., None]


@dataclass(frozen=True)
class PPO(Estimator):
    """GAE(λ) over a critic, RM(W) on the last token (Eq. 32-33). Claims: `gae-exact-*`, `gae-wrong-*`,
    `gae-discounted`."""

    critic: Critic | None = None
    lam: float = 0.95
    gamma: float = 1.0

    def collect(self, sampler):
        if self.critic is None:
            raise ValueError(
                f"{type(self).__name__} needs a critic; give `critic=`, a function of (prompt, tokens, mask)."
            )
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts), value=sampler.value(self.critic, rollouts))

    def advantages(self, evidence):
        assert evidence.value is not None
        mask = evidence.rollouts.mask
        token_reward = credit.terminal(evidence.response_reward, mask)
        return gae(token_reward, evidence.value, mask, lam=self.lam, gamma=self.gamma)


@dataclass(frozen=True)
class VinePPO(Estimator):
    """Values of segment starts by fresh branches instead of a critic, segment-constant advantages (Kazemnejad et al.
    2024).

        Âₛ = v̂(next start) - v̂(start),   v̂ = mean RM of the branches,   v̂(end) = RM(W)

    λ > 0 gives GAE(λ) over segments. Claim: `vineppo`, unbiased while `boundary` is a stopping rule.
    """

    boundary: Boundary = EveryNTokens(2)
    temperatures: tuple[float, ...] = (1.0,) * 9
    """Of the branches from each boundary: (1.0,) * M are M draws of the policy's own, (0.0,) is the greedy one. At any
    temperature but 1 the values are those of another policy."""
    lam: float = 0.0
    group_baseline: bool = False
    """The value of the prompt is the mean reward of the other responses to it, as in `RLOO`, and costs no branches;
    without later boundaries this is RLOO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperatures(self.temperatures)
        if self.group_baseline and self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}, but group_baseline=True needs other responses; make it 2 or more."
            )

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        boundary = self.boundary(rollouts)
        if self.group_baseline:
            boundary = boundary & ~first_token(rollouts.mask)
        branches = sampler.branches(rollouts, boundary, self.temperatures)
        return Evidence(rollouts, sampler.response_reward(rollouts), branches=branches)

    def advantages(self, evidence):
        return segment_advantages(evidence, self._branch_value(evidence), self.boundary, self.lam)

    def _branch_value(self, evidence):
        """Branch means, but for the prompt's if there is a better way."""
        assert evidence.branches is not None
        value, of_prompt = values.branch_mean(evidence.branches, evidence.rollouts), self.value_of_prompt(evidence)
        if of_prompt is None:
            return value
        return torch.cat(
            [torch.where(first_token(evidence.rollouts.mask), of_prompt, value[..., :-1]), value[..., -1:]], dim=-1
        )

    def value_of_prompt(self, evidence: Evidence) -> Float[Tensor, "*worlds B 1"] | None:
        """The prompt's value where no branches were drawn for it; None: they were."""
        return (
            values.leave_one_out(evidence.response_reward, self.group_size)[..., None] if self.group_baseline else None
        )


@dataclass(frozen=True)
class TRePO(VinePPO):
    """Token-Reinforced Policy Optimization (Algorithm 1), repaired: every boundary has fresh draws of its own.

        Âₛ = Û(next boundary) - Û(boundary),   Û = mean RM of the branches,   Û(end) = RM(W)

    Algorithm 1 as printed differs in two places, each with its certificate: `pooled=True` pools the draws of later
    steps into the value of a step (Eq. 31; `trepo-eq31`), `interpolated=True` gives tokens outside D interpolated
    advantages (`trepo-interpolated`). Both bias the gradient. `critic` replaces the draws by given values, the limit of
    many draws.

    Claims: `trepo`, `trepo-segment`, `trepo-lambda` unbiased; `trepo-own-length` biased, its boundary is no stopping
    rule; `trepo-greedy-values` biased: greedy draws estimate the value of another policy.
    """

    boundary: Boundary = EveryNTokens(1)
    temperatures: tuple[float, ...] = (1.0,) * 4
    pooled: bool = False
    interpolated: bool = False
    critic: Critic | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooled and self.critic is not None:
            raise ValueError("pooled=True pools draws, and critic= does without any; choose one.")
        if self.group_baseline and (self.pooled or self.critic is not None):
            raise ValueError(
                "group_baseline=True takes the place of draws at the prompt; leave pooled= and critic= out."
            )

    def collect(self, sampler):
        if self.critic is None:
            return super().collect(sampler)
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts), value=sampler.value(self.critic, rollouts))

    def advantages(self, evidence):
        rollouts = evidence.rollouts
        value = self._pooled(evidence) if self.pooled else evidence.value
        if value is None:
            value = self._branch_value(evidence)
        advantage = segment_advantages(evidence, value, self.boundary, self.lam)
        return interpolate(advantage, self.boundary(rollouts), rollouts.mask) if self.interpolated else advantage

    def _pooled(self, evidence, own=True):
        """Eq. 31: values that share the draws of later steps, and W itself if `own`."""
        rollouts = evidence.rollouts
        assert evidence.branches is not None
        return values.pooled_branches(
            evidence.branches, evidence.response_reward, rollouts, self.boundary(rollouts), own
        )


@dataclass(frozen=True)
class MARLHF(PPO):
    """Macro actions of several tokens, one value a macro, GAE over macros (Chai et al. 2024). Claim: `ma-rlhf`,
    unbiased."""

    boundary: Boundary = EveryNTokens(2)

    def advantages(self, evidence):
        return segment_advantages(evidence, evidence.value, self.boundary, self.lam)


def ramp(branches: int) -> tuple[float, ...]:
    """Temperatures from 0 to 1 in equal steps, one a branch (the paper, Algorithm 1, line 4)."""
    return tuple(step / max(branches - 1, 1) for step in range(branches))


def first_token(mask: Bool[Tensor, "*worlds B T"]) -> Bool[Tensor, "*worlds B T"]:
    """True at the first policy token of every response."""
    return mask & (mask.cumsum(-1) == 1)


def segment_advantages(
    evidence: Evidence, value: Float[Tensor, "*worlds B T1"] | None, boundary: Boundary, lam: float
) -> Float[Tensor, "*worlds B T"]:
    """GAE(λ) over segments, RM(W) on the last token: with λ = 0, v(next boundary) - v(boundary) on every token between
    them."""
    assert value is not None
    mask = evidence.rollouts.mask
    token_reward = credit.terminal(evidence.response_reward, mask)
    return gae(token_reward, value, mask, lam=lam, boundary=boundary(evidence.rollouts))
