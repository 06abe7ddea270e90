"""The estimator: three methods, and what all have in common.

`collect` has all the randomness and no gradient, `advantages` turns evidence into one weight a token, `loss` is
differentiated by `logp` and sees no model. Index from the right: evidence may carry a leading dimension of worlds.
"""

from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.objectives import Reduction, clipped_surrogate, policy_gradient
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.sampler import Sampler


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

    def displacement(self, first_update: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"] | None:
        """Where the loss is differentiated: this far from the policy that drew the evidence, given the estimate that
        the evidence gives there. None: where it was drawn, as all do but second epochs."""
        return None
