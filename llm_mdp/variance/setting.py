"""Settings: token MDPs and policies that differ along named axes, on which estimators are compared.

A `Setting` is plain JSON; `llm_mdp.variance.benches` makes what is measured on.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from llm_mdp.exact.enumeration import MAX_EDGES
from llm_mdp.mdp.token_mdp import check_shape
from llm_mdp.sampling.policies import PolicyKind

Rewards = Literal["dense", "sparse", "early", "outcome"]
REWARDS: tuple[Rewards, ...] = get_args(Rewards)
POLICIES: tuple[PolicyKind, ...] = get_args(PolicyKind)


@dataclass(frozen=True)
class Setting:
    """One token MDP with a policy.

    Raises:
        ValueError: naming the option, its value and its range, before anything is made.
    """

    policy: PolicyKind = "tabular"
    vocab_size: int = 4
    """V; token 0 ends a response."""
    horizon: int = 4
    """T, longest response."""
    rewards: Rewards = "dense"
    """dense: a random number for every token; sparse: for one in ten; early: in the first quarter only; outcome: 1 or 0
    for a whole response, at its end."""
    success: float | None = None
    """Probability that the policy earns the outcome 1 (about, on a table); None: 0.5."""
    entropy: float | None = None
    """Mean entropy of the policy, nats a token; None: that of standard normal logits."""
    length: float | None = None
    """Expected response length of n-gram policies; None: as it comes, half the horizon beyond 16 tokens."""
    prompts: int = 1
    gamma: float = 1.0
    seed: int = 0
    instance: str | None = None
    """Path of an instance file, in place of all this."""
    name: str = ""
    """For people; changes nothing."""

    def __post_init__(self) -> None:
        if self.instance is not None:
            return
        check_shape(self.vocab_size, 0, self.horizon, self.gamma)
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; choose {', '.join(POLICIES)}.")
        if self.prompts < 1:
            raise ValueError(f"prompts is {self.prompts}; there must be at least 1.")
        if self.policy != "ngram" and self.is_long:
            raise ValueError(
                f"a vocabulary of {self.vocab_size}, a horizon of {self.horizon} and {self.prompts} prompt(s) make "
                f"more than {MAX_EDGES:,} "
                "(prefix, token) pairs, too many to enumerate; make one of them smaller, or take the policy ngram, "
                "which needs no tree."
            )
        if self.rewards not in REWARDS:
            raise ValueError(f"rewards is {self.rewards!r}; choose {', '.join(REWARDS)}.")
        if self.success is not None and (self.rewards != "outcome" or not 0 < self.success < 1):
            raise ValueError(
                f"success is {self.success} with {self.rewards} rewards; it is for outcome rewards, and must be in (0, "
                f"1)."
            )
        if self.success is not None and self.policy == "ngram":
            raise ValueError("success cannot be chosen for n-gram policies; leave it out, or take --policy tabular.")
        if self.entropy is not None and not 0 < self.entropy < math.log(self.vocab_size):
            most = math.log(self.vocab_size)
            raise ValueError(
                f"entropy is {self.entropy}; over {self.vocab_size} tokens it must be between 0 and {most:.3f}."
            )
        if self.length is not None and self.policy != "ngram":
            raise ValueError(f"length is {self.length}; it can be chosen for n-gram policies only.")
        if self.length is not None and not 1 < self.length < self.horizon:
            raise ValueError(
                f"length is {self.length}; an expected length is above 1 and below the horizon of {self.horizon} "
                f"tokens."
            )
        if self.policy == "ngram" and self.prompts > 1:
            raise ValueError(f"prompts is {self.prompts}; n-gram settings have one.")
        if self.entropy is not None and self.policy == "transformer":
            raise ValueError(f"entropy is {self.entropy}; it can be chosen for tables and n-grams only.")

    @property
    def is_long(self) -> bool:
        """More (prefix, token) pairs than a score matrix may have? Counted no further than that."""
        nodes = level = self.prompts
        for _ in range(self.horizon - 1):
            level *= self.vocab_size - 1
            nodes += level
            if nodes * self.vocab_size > MAX_EDGES:
                return True
        return nodes * self.vocab_size > MAX_EDGES

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.instance is not None:
            return f"the instance {self.instance}"
        what = {
            "dense": "a random reward for every token", "sparse": "a reward for one token in ten",
            "early": "rewards in the first quarter only", "outcome": "1 or 0 for a whole response",
        }  # fmt: skip
        kind = {"tabular": "table", "ngram": "n-gram policy", "transformer": "tiny transformer"}[self.policy]
        parts = [what[self.rewards]]
        parts += [f"success about {self.success:g}"] if self.success is not None else []
        parts += [f"{self.vocab_size} tokens", f"horizon {self.horizon}", kind]
        parts += [f"entropy {self.entropy:g}"] if self.entropy is not None else []
        parts += [f"{self.prompts} prompts"] if self.prompts > 1 else []
        parts += [f"γ = {self.gamma:g}"] if self.gamma < 1 else []
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        """As JSON; what changes nothing is left out, so that results are found again."""
        document = {key: value for key, value in asdict(self).items() if key != "name"}
        if self.instance is not None:
            return {"instance": self.instance}
        return document
