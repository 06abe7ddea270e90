"""What other trainers hand over: one batch of responses and their rewards, as a sampler that draws nothing."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Evidence, Rollouts

REFUSED = {
    "branches": "draws branches from prefixes",
    "logp": "reads another policy's log-probabilities",
    "value": "reads a critic",
    "hidden_reward": "reads token rewards",
    "keep": "leaves groups out",
}
"""What a sampler can do that such a batch cannot, in words."""


class OneBatch:
    """A sampler (`llm_mdp.sampling.sampler.Sampler`) that has one batch, and refuses in a sentence what it has not.

    Args:
        name: of the estimator that asks.
        has: what the trainer hands over, and what to do: "TRL's trainer has …; train it with …".
        size_option: the trainer's name of K, and how to set it: ("rollout.n", "set rollout.n={}").
    """

    def __init__(self, evidence: Evidence, group_size: int, name: str, has: str, size_option: tuple[str, str]):
        self.evidence, self.group_size, self.name = evidence, group_size, name
        self.has, self.size_option = has, size_option

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Any = None) -> Rollouts:
        if temperature != 1 or behaviour is not None:
            raise self._refusal("draws from another distribution than the policy's")
        if self.group_size % group_size:
            option, remedy = self.size_option
            raise UsageError(
                f"{self.name} compares {group_size} responses to a prompt, and {option} is {self.group_size}; "
                f"{remedy.format(group_size)}."
            )
        return self.evidence.rollouts

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        return self.evidence.response_reward

    def __getattr__(self, method: str) -> Any:
        if method not in REFUSED:
            raise AttributeError(method)
        raise self._refusal(REFUSED[method])

    def _refusal(self, what: str) -> UsageError:
        return UsageError(f"{self.name} {what}, and {self.has}.")
