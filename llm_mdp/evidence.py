"""What was sampled, and nothing else: the only things that an estimator may see.

Dimensions, always in this order: worlds `...`, rows B (P prompts × K responses, rows of one prompt adjacent), time T.
Training has no world dimension; exact verification has one world for every outcome. Code that indexes from the right serves both.
"""

from dataclasses import dataclass
from enum import IntEnum

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Finish(IntEnum):
    """Why a response ended. Never guessed from padding."""

    EOS = 0
    HORIZON = 1
    ENVIRONMENT = 2


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses."""

    prompt: Int[Tensor, "*worlds B L"]
    """Prompt tokens, PAD on the left."""
    tokens: Int[Tensor, "*worlds B T"]
    """Response tokens, PAD after the end."""
    mask: Bool[Tensor, "*worlds B T"]
    """True where the policy chose the token, the end token included; False on padding and on what an environment wrote."""
    logp: Float[Tensor, "*worlds B T"]
    """log-probability under the distribution that was actually sampled (temperature included); 0 where mask is False."""
    finish: Int[Tensor, "*worlds B"]
    """A `Finish`."""

    @property
    def length(self) -> Int[Tensor, "*worlds B"]:
        """Number of policy tokens, the end token included."""
        return self.mask.sum(-1)


@dataclass(frozen=True)
class Branches:
    """Extra responses drawn afresh from prefixes of the rollouts, as one flat list: entry f continues `row[f]` before `step[f]`."""

    row: Int[Tensor, " F"]
    step: Int[Tensor, " F"]
    """0-based: the branch keeps tokens[:step] and draws everything from `step` on."""
    reward: Float[Tensor, "*worlds F"]
    """Response-level reward of the branch. Arbitrary where the response ended before `step`."""
    greedy: bool = False


@dataclass(frozen=True)
class Evidence:
    """All that an estimator may see. Optional parts are there if its `collect` asked for them."""

    rollouts: Rollouts
    response_reward: Float[Tensor, "*worlds B"]
    token_reward: Float[Tensor, "*worlds B T"] | None = None
    """Token rewards that somebody assigned (a credit model, or the verifier's own)."""
    value: Float[Tensor, "*worlds B T1"] | None = None
    """A critic's value of the prefix before step t, t = 0 … T; 0 from the end of the response on."""
    branches: Branches | None = None
    reference_logp: Float[Tensor, "*worlds B T"] | None = None
    """log-probability of the same tokens under a fixed reference policy."""
