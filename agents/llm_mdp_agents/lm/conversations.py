"""Who draws the turns of conversations: a policy that keeps what it has read, or any engine, which reads every turn
anew."""

from typing import Any, Protocol

from jaxtyping import Int
from torch import Tensor

from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.lm.engines import Engine, OwnEngine


class Conversation(Protocol):
    """Several responses, turn by turn: first `sample` or `branch`, then `go_on`."""

    def sample(self, prompt: Int[Tensor, "P L"], n: int, **options: Any) -> Rollouts:
        """`Policy.sample`."""
        ...

    def branch(self, prompt, tokens, row, step, samples, **options: Any) -> Rollouts:
        """`branch_of`."""
        ...

    def go_on(
        self, row: Int[Tensor, " N"], prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"], **options: Any
    ) -> Rollouts:
        """`Policy.sample` of one response from each prefix: the next turn of these rows of the first draw."""
        ...


class ReadAnew:
    """Every turn begins with reading all that came before it."""

    def __init__(self, engine: Engine, policy: Policy):
        self.engine, self.policy = engine, policy

    def sample(self, prompt: Int[Tensor, "P L"], n: int, **options: Any) -> Rollouts:
        return self.engine.sample(self.policy, prompt, n, **options)

    def branch(self, prompt, tokens, row, step, samples, **options: Any) -> Rollouts:
        return self.engine.branch(self.policy, prompt, tokens, row, step, samples, **options)

    def go_on(
        self, row: Int[Tensor, " N"], prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"], **options: Any
    ) -> Rollouts:
        return self.engine.sample(self.policy, prompt, 1, prefix=tokens, **options)


def conversation(engine: Engine, policy: Policy, turns: int) -> Conversation:
    """What draws for a policy: it keeps what was read where there are several turns and the policy can."""
    own = getattr(policy, "conversation", None)
    if turns > 1 and own is not None and isinstance(engine, OwnEngine) and (kept := own()) is not None:
        return kept
    return ReadAnew(engine, policy)
