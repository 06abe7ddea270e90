"""What an entry of the catalogue is: a name, words, options, how it is made and of what, and what is proved of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from llm_mdp.estimators.base import Estimator
from llm_mdp.mdp.hidden_rewards import HiddenReward
from llm_mdp.sampling.policies import Critic, Policy


class NeedsExactValues(ValueError):
    """An estimator wants what only small token MDPs know."""


class Given:
    """What estimators are made from beside their options. A place that knows more than this overrides it.

    Args:
        horizon: T ≥ 1, the most tokens that the policy writes in a response.
        gamma: the discount of the token MDP.
        beta: β of DPO, RTO and PRIME.
    """

    def __init__(self, horizon: int, gamma: float = 1.0, beta: float = 0.1):
        self.horizon, self.gamma, self.beta = horizon, gamma, beta

    @property
    def expected_reward(self) -> float | None:
        """J, what a running mean becomes; None: not known."""
        return None

    def critic(self, error: float = 0.0) -> Critic:
        """U(W₀,ₜ), off by `error` standard deviations of RM."""
        _not_known("the exact value U(W₀,ₜ)")

    def drawn_value(self, temperature: float) -> Critic:
        """U(W₀,ₜ) of the policy at a temperature."""
        _not_known("the value of the policy at a temperature")

    @property
    def future_value(self) -> Critic:
        """V(W₀,ₜ), the expected discounted reward from here on."""
        _not_known("the value of a state")

    @property
    def wrong_critic(self) -> Critic:
        """Values that are wrong everywhere."""
        _not_known("a wrong critic")

    @property
    def optimal_baseline(self) -> Critic:
        """The baseline of least variance, state by state."""
        _not_known("the optimal baseline")

    @property
    def reference(self) -> Policy:
        """What KL penalties, DPO and RTO stay close to."""
        _not_known("a reference policy")

    @property
    def behaviour(self) -> Policy:
        """A policy close to the one that is differentiated, which draws in its place: an older one, or the same in
        another engine."""
        _not_known("a policy that draws in place of the one that is differentiated")

    @property
    def dpo_policy(self) -> Policy:
        """π* ∝ ref exp(RM/β)."""
        _not_known("the optimum of DPO")

    @property
    def process_model(self) -> Policy:
        """PRIME's model at its optimum."""
        _not_known("PRIME's process reward model")

    @property
    def median(self) -> float:
        """Of RM(W), what PRIME calls a success."""
        _not_known("the median of the rewards")

    @property
    def token_reward(self) -> HiddenReward:
        """The hidden token rewards."""
        _not_known("the hidden token rewards")


def _not_known(what: str) -> NoReturn:
    raise NeedsExactValues(f"{what} is known on small token MDPs only; leave out the estimators that need it here.")


Proved = Literal["unbiased", "proportional"]


def unbiased(**options: Any) -> Proved:
    return "unbiased"


def proportional(**options: Any) -> Proved:
    return "proportional"


def by_critic(*, lam: float, critic_error: float, **options: Any) -> Proved | None:
    return "unbiased" if lam == 1 or critic_error == 0 else None


def nothing_proved(**options: Any) -> None:
    return None


@dataclass(frozen=True)
class Option:
    """What an option of a named estimator may be."""

    short: str
    """Its letter in labels."""
    words: str
    least: float | None = None
    most: float | None = None

    def allows(self, value: Any) -> bool:
        """Is the value in range? NaN is not."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limits(self) -> str:
        """The range in words."""
        return f"at least {self.least}" if self.most is None else f"in [{self.least}, {self.most}]"


OPTIONS = {
    "group_size": Option("K", "responses to a prompt", 1),
    "boundary": Option("D", "where segments begin"),
    "branches": Option("M", "draws from each boundary", 1),
    "lam": Option("λ", "of GAE over segments", 0, 1),
    "critic_error": Option("σ", "what a critic is off by, in standard deviations of the reward", 0),
}
"""All options that named estimators have; an entry says which of them, and their defaults."""


@dataclass(frozen=True)
class Entry:
    """One name."""

    name: str
    words: str
    """One line."""
    build: Callable[..., Estimator]
    """(given, **options) -> estimator."""
    options: dict[str, Any] = field(default_factory=dict)
    """Which of OPTIONS it has, and their defaults."""
    label: str = ""
    """For people; the name if there is no other."""
    claims: tuple[str, ...] = ()
    """Rows of the ledger that are about it, if there are others than the row of its own name."""
    proved: Callable[..., Proved | None] = nothing_proved
    """(**options) -> what holds of it on every instance; None: that depends."""
    given_values: bool = False
    """Is it made from values or models that somebody gave it, and whose price nobody counts?"""

    def make(self, given: Given, **options: Any) -> Estimator:
        """The estimator.

        Raises:
            NeedsExactValues: if it is made from what is not known here.
            ValueError: for an option that it does not have, or out of range.
        """
        for name, value in options.items():
            if name not in self.options:
                has = f"it has {', '.join(self.options)}" if self.options else "it has none"
                raise ValueError(f"{self.name} has no option {name!r}; {has}.")
            if not OPTIONS[name].allows(value):
                raise ValueError(f"{name} of {self.name} is {value!r}; it must be {OPTIONS[name].limits}.")
        if self.compares and (size := options.get("group_size", 2)) < 2:
            raise ValueError(f"group_size of {self.name} is {size}; it compares responses to a prompt, at least 2.")
        return self.build(given, **(self.options | options))

    @property
    def rows(self) -> tuple[str, ...]:
        """Ids of the rows of the ledger that are about it."""
        return self.claims or (self.name,)

    @property
    def compares(self) -> bool:
        """Does it compare the responses to a prompt, so that there must be two?"""
        return self.options.get("group_size", 1) > 1


K: dict[str, Any] = {"group_size": 4}
"""Options of what compares the responses to a prompt."""
GIVEN: dict[str, Any] = {"given_values": True}
"""Made from values that somebody gave it."""
ORACLE: dict[str, Any] = GIVEN | {"proved": unbiased}
