"""The estimators that agents train with, in the paper's order: REINFORCE, RLOO, ReMax, GRPO, PPO, VinePPO, TRePO,
MA-RLHF, R3HF, ABC, RTO, DPO, PRIME.

One currency (credit -> values -> returns -> objective), three methods: `collect` has all the randomness and no
gradient, `advantages` turns evidence into one weight a token, `loss` is differentiated by `logp` and sees no model.
Index from the right: evidence may carry a leading dimension of worlds.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.estimators import credit, values
from llm_mdp.estimators.boundaries import Boundary, EveryNTokens
from llm_mdp.estimators.objectives import (
    Reduction,
    clipped_surrogate,
    dpo_loss,
    policy_gradient,
    preference_probability,
)
from llm_mdp.estimators.returns import gae, interpolate, return_to_go
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic, Policy
from llm_mdp.sampling.sampler import Sampler, check_temperatures


@dataclass(frozen=True)
class Estimator:
    """A policy-gradient estimator; subclass it and write `advantages` to bring your own.

    g = (1/K) Σₖ Σₜ Aₖₜ ∇log π(wₖₜ | W₀,ₜ₋₁)             (with the defaults: no clipping, reduction "sum")
    """

    group_size: int = 1
    """K, responses drawn to each prompt."""
    reduction: Reduction = "sum"
    """How tokens become one loss, see `objectives.reduce`."""
    reduction_constant: int | None = None
    """What reduction "constant" divides by, usually the horizon."""
    clip_low: float | None = None
    """ε of the clipped surrogate, below; None: plain policy gradient. The first update is the same with and without."""
    clip_high: float | None = None
    """ε above; None: as below."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(type(self), f.name, f.default) != f.default:
                name = type(self).__name__
                raise TypeError(
                    f"{name} sets {f.name} in a way that dataclasses overlook; put @dataclass(frozen=True) above the "
                    f"class and write "
                    f"`{f.name}: {type(f.default).__name__} = {getattr(type(self), f.name)!r}`."
                )

    def collect(self, sampler: Sampler) -> Evidence:
        """Draw what `advantages` needs. All randomness, no gradient."""
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts))

    def advantages(self, evidence: Evidence) -> Float[Tensor, "*worlds B T"]:
        """One weight for every token (or anything that broadcasts to that)."""
        raise NotImplementedError(
            f"{type(self).__name__} has no `advantages`; return one weight for every token, shape (..., B, T)."
        )

    def loss(self, logp: Float[Tensor, "*worlds B T"], evidence: Evidence) -> Float[Tensor, "*worlds"]:
        """What is minimised; differentiated by logp. No sampling, no model."""
        rollouts, advantage = evidence.rollouts, self.advantages(evidence)
        if self.clip_low is None:
            return policy_gradient(logp, advantage, rollouts.mask, self.reduction, self.reduction_constant)
        clip_high = self.clip_low if self.clip_high is None else self.clip_high
        return clipped_surrogate(
            logp,
            rollouts.logp,
            advantage,
            rollouts.mask,
            self.clip_low,
            clip_high,
            self.reduction,
            self.reduction_constant,
        )


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
        advantage = reward - values.group_mean(reward, self.group_size)
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
        return _segment_advantages(evidence, self._branch_value(evidence), self.boundary, self.lam)

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
        rollouts, value = evidence.rollouts, evidence.value
        boundary = self.boundary(rollouts)
        if self.pooled:
            assert evidence.branches is not None
            value = values.pooled_branches(evidence.branches, evidence.response_reward, rollouts, boundary)
        elif self.critic is None:
            value = self._branch_value(evidence)
        advantage = _segment_advantages(evidence, value, self.boundary, self.lam)
        return interpolate(advantage, boundary, rollouts.mask) if self.interpolated else advantage


@dataclass(frozen=True)
class MARLHF(PPO):
    """Macro actions of several tokens, one value a macro, GAE over macros (Chai et al. 2024). Claim: `ma-rlhf`,
    unbiased."""

    boundary: Boundary = EveryNTokens(2)

    def advantages(self, evidence):
        return _segment_advantages(evidence, evidence.value, self.boundary, self.lam)


@dataclass(frozen=True)
class TokenCredit(Estimator):
    """Base of the estimators that spread the reward over tokens: Aₜ = Σₖ≥ₜ rₖ, less a baseline if there is one."""

    group_baseline: bool = False
    """Subtract the mean of the other responses' Σₜ rₜ: less variance, no bias, as in `RLOO`."""

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        return self._less_baseline(return_to_go(evidence.token_reward, evidence.rollouts.mask), evidence)

    def _less_baseline(self, advantage, evidence):
        if not self.group_baseline:
            return advantage
        return advantage - values.leave_one_out(evidence.token_reward.sum(-1), self.group_size)[..., None]


@dataclass(frozen=True)
class R3HF(TokenCredit):
    """rₜ = RM(sₜ₊₁) - RM(sₜ) on partial responses, summed from t on (Eq. 43). Claim: `r3hf`, unbiased.

    `prefix_score` scores the prefix before each step; the final score is RM(W) itself.
    """

    prefix_score: Critic | None = None

    def collect(self, sampler):
        if self.prefix_score is None:
            raise ValueError(
                "R3HF needs a score of partial responses; give `prefix_score=`, a function of (prompt, tokens, mask)."
            )
        rollouts = sampler.rollouts(self.group_size)
        reward = sampler.response_reward(rollouts)
        score = sampler.value(self.prefix_score, rollouts)
        return Evidence(rollouts, reward, token_reward=credit.prefix_difference(score, reward, rollouts.mask))


@dataclass(frozen=True)
class ABC(TokenCredit):
    """rₜ = aₜ RM(W), aₜ the reward model's attention over the response (Eq. 42).

    `attention` gives aₜ (None: uniform). Claims: summed over the whole response `abc-full-sum`, unbiased;
    `to_go=True`, summed from t on as in the original, `abc-return-to-go`, biased.
    """

    attention: Critic | None = None
    beta: float = 1.0
    to_go: bool = False

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        reward, mask = sampler.response_reward(rollouts), rollouts.mask
        weights = (
            mask.to(torch.float64) if self.attention is None else sampler.value(self.attention, rollouts)[..., :-1]
        )
        return Evidence(rollouts, reward, token_reward=credit.attention_shares(reward, weights, mask, self.beta))

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        if self.to_go:
            return super().advantages(evidence)
        return self._less_baseline(evidence.token_reward.sum(-1, keepdim=True), evidence)


@dataclass(frozen=True)
class RTO(TokenCredit):
    """rₜ = β log(π_DPO / π_ref) of a model trained by DPO, summed from t on (Eq. 41 as the original has it).

    Claims: `rto` unbiased at the DPO optimum, where the rewards sum to RM(W) minus a constant of the prompt;
    `paper=True`, rₜ = π_DPO / π_ref as printed, `rto-eq41`, biased.
    """

    dpo_policy: Policy | None = None
    reference: Policy | None = None
    beta: float = 0.05
    paper: bool = False

    def collect(self, sampler):
        if self.dpo_policy is None or self.reference is None:
            raise ValueError(
                "RTO needs the model trained by DPO and its reference; give `dpo_policy=` and `reference=`."
            )
        rollouts = sampler.rollouts(self.group_size)
        logp, reference_logp = sampler.logp(self.dpo_policy, rollouts), sampler.logp(self.reference, rollouts)
        if self.paper:
            token_reward = credit.probability_ratio(logp, reference_logp, rollouts.mask)
        else:
            token_reward = credit.implicit(logp, reference_logp, rollouts.mask, self.beta)
        return Evidence(rollouts, sampler.response_reward(rollouts), token_reward=token_reward)


@dataclass(frozen=True)
class DPO(Estimator):
    """The loss of preference pairs, two responses to a prompt drawn from the policy that is also the reference (Eq.
    40).

        ℓ = Σ over both orders of P(W ≻ W') [-log σ(β log π(W)/ref(W) - β log π(W')/ref(W'))]

    P(W ≻ W') is `objectives.preference_probability` (Bradley-Terry). Labels are not drawn but averaged over, which is
    the expected loss of drawn ones. Claim: `dpo-optimum`.
    """

    group_size: int = 2
    beta: float = 0.1
    preference_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size % 2:
            raise ValueError(f"group_size is {self.group_size}; preferences come in pairs, so it must be even.")

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts), reference_logp=rollouts.logp)

    def advantages(self, evidence):
        """What the loss weighs log π of a response with, where policy and reference are the same: β (P(it wins) - P(it
        loses))."""
        wins = self._wins(evidence)
        return (self.beta * torch.stack([2 * wins - 1, 1 - 2 * wins], dim=-1)).flatten(-2)[..., None]

    def loss(self, logp, evidence):
        assert evidence.reference_logp is not None
        log_ratio = (logp - evidence.reference_logp).sum(-1).unflatten(-1, (-1, 2))
        first, second, wins = log_ratio[..., 0], log_ratio[..., 1], self._wins(evidence)
        return (wins * dpo_loss(first, second, self.beta) + (1 - wins) * dpo_loss(second, first, self.beta)).mean(-1)

    def _wins(self, evidence):
        """P(the first of each pair wins)."""
        reward = evidence.response_reward.unflatten(-1, (-1, 2))
        return preference_probability(reward[..., 0], reward[..., 1], self.preference_temperature)


@dataclass(frozen=True)
class PRIME(Estimator):
    """Process rewards implicit in a model φ trained online on outcomes, plus a leave-one-out outcome (Eq. 44-45; Cui et
    al. 2025).

        Aₖₜ = Σₛ≥ₜ (q_ks - mean over the other responses of their mean q) + (oₖ - mean of the other o),   q = β
        log(φ/ref)

    The outcome is `response_reward > threshold`. Claim: `prime`, reported.
    """

    group_size: int = 4
    process_model: Policy | None = None
    reference: Policy | None = None
    beta: float = 0.05
    threshold: float = 0.5
    outcome_weight: float = 1.0

    def collect(self, sampler):
        if self.process_model is None or self.reference is None:
            raise ValueError(
                "PRIME needs its process reward model and its reference; give `process_model=` and `reference=`."
            )
        rollouts = sampler.rollouts(self.group_size)
        q = credit.implicit(
            sampler.logp(self.process_model, rollouts), sampler.logp(self.reference, rollouts), rollouts.mask, self.beta
        )
        return Evidence(rollouts, sampler.response_reward(rollouts), token_reward=q)

    def advantages(self, evidence):
        assert evidence.token_reward is not None
        q, mask = evidence.token_reward, evidence.rollouts.mask
        mean_q = q.sum(-1) / mask.sum(-1)
        centred = torch.where(mask, q - values.leave_one_out(mean_q, self.group_size)[..., None], 0.0)
        outcome = (evidence.response_reward > self.threshold).to(q.dtype)
        outcome = outcome - values.leave_one_out(outcome, self.group_size)
        return return_to_go(centred, mask) + self.outcome_weight * outcome[..., None]


def ramp(branches: int) -> tuple[float, ...]:
    """Temperatures from 0 to 1 in equal steps, one a branch (the paper, Algorithm 1, line 4)."""
    return tuple(step / max(branches - 1, 1) for step in range(branches))


def first_token(mask: Bool[Tensor, "*worlds B T"]) -> Bool[Tensor, "*worlds B T"]:
    """True at the first policy token of every response."""
    return mask & (mask.cumsum(-1) == 1)


def _segment_advantages(
    evidence: Evidence, value: Float[Tensor, "*worlds B T1"] | None, boundary: Boundary, lam: float
) -> Float[Tensor, "*worlds B T"]:
    assert value is not None
    mask = evidence.rollouts.mask
    token_reward = credit.terminal(evidence.response_reward, mask)
    return gae(token_reward, value, mask, lam=lam, boundary=boundary(evidence.rollouts))
