"""The estimators that `llm-mdp variance` compares, by name, and the grid of their options.

A candidate is a name with options, plain enough for JSON; `build` makes the core estimator of it. Options: `group_size`
K; `positions` |D|, boundaries in a response of full length, evenly spaced; `branches` M from each; `lam` λ;
`critic_error` σ, what a critic is off by.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from llm_mdp.estimators.algorithms import GRPO, MARLHF, PPO, REINFORCE, RLOO, Estimator, ReMax, TRePO, VinePPO, ramp
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.estimators.theorems import Theorem1, Theorem2, WithBaseline
from llm_mdp.sampling.policies import Critic


@dataclass(frozen=True)
class Setup:
    """What a setting knows that estimators are made from."""

    horizon: int
    J: float | None = None
    """The expected reward, for a converged running mean; None: not known."""
    critic: Callable[[float], Critic] | None = None
    """U(W₀,ₜ) with an error of standard deviation σ, in standard deviations of RM; None: nobody knows U here."""
    optimal_baseline: Critic | None = None
    """`exact.optimal_baseline` as a critic; None: not known."""


class NeedsExactValues(ValueError):
    """A candidate wants what only small token MDPs know."""


Known = Literal["unbiased", "proportional"]


def _unbiased(**options: Any) -> Known:
    return "unbiased"


def _by_critic(*, lam: float, critic_error: float, **options: Any) -> Known | None:
    return "unbiased" if lam == 1 or critic_error == 0 else None


@dataclass(frozen=True)
class Kind:
    """One name."""

    make: Callable[..., Estimator]
    """(setup, **options) -> estimator."""
    words: str
    options: tuple[str, ...] = ()
    lams: tuple[float, ...] = ()
    """λ to try, if nobody says what."""
    known: Callable[..., Known | None] = lambda **options: None
    """(**options) -> what the ledger says of it on every instance; None: that depends."""
    given_values: bool = False
    """Does it use values of states that it was given, and whose price is not counted?"""


def _boundary(setup: Setup, positions: int) -> AtSteps:
    return AtSteps(tuple(part * setup.horizon // positions for part in range(positions)))


def _critic(setup: Setup, critic_error: float = 0.0) -> Critic:
    if setup.critic is None:
        raise NeedsExactValues(
            "a critic's values are known on token MDPs only; leave out ppo, ma-rlhf and the theorems here."
        )
    return setup.critic(critic_error)


def _trepo(setup: Setup, group_size: int, positions: int, branches: int, lam: float) -> Estimator:
    return TRePO(
        group_size,
        boundary=_boundary(setup, positions),
        temperatures=(1.0,) * branches,
        lam=lam,
        group_baseline=group_size > 1,
    )


def _trepo_paper(setup: Setup, positions: int, branches: int) -> Estimator:
    return TRePO(
        boundary=_boundary(setup, positions),
        pooled=True,
        interpolated=True,
        temperatures=ramp(branches),
    )


def _optimal(setup: Setup) -> Estimator:
    if setup.optimal_baseline is None:
        raise NeedsExactValues(
            "the optimal baseline is known on small token MDPs only; leave theorem-2-optimal out here."
        )
    return WithBaseline(critic=_critic(setup), baseline=setup.optimal_baseline)


ORACLE: dict[str, Any] = {"known": _unbiased, "given_values": True}

KINDS: dict[str, Kind] = {
    "reinforce": Kind(lambda setup: REINFORCE(), "RM(W), no baseline", known=_unbiased),
    "reinforce-mean": Kind(
        lambda setup: REINFORCE(baseline=setup.J or 0.0),
        "RM(W) less its expectation, what a running mean becomes: one shared baseline",
        known=_unbiased,
    ),
    "rloo": Kind(
        lambda setup, group_size: RLOO(group_size=group_size),
        "RM less the mean of the others",
        ("group_size",),
        known=_unbiased,
    ),
    "remax": Kind(lambda setup: ReMax(), "RM less that of the greedy response", known=_unbiased),
    "grpo": Kind(
        lambda setup, group_size: GRPO(group_size=group_size), "(RM - mean) / std of the group", ("group_size",)
    ),
    "dr-grpo": Kind(
        lambda setup, group_size: GRPO(
            group_size=group_size, scale_by_std=False, reduction="constant", reduction_constant=setup.horizon
        ),
        "RM - mean of the group, over the horizon",
        ("group_size",),
        known=lambda **options: "proportional",
    ),
    "grpo-length": Kind(
        lambda setup, group_size: GRPO(group_size=group_size, reduction="sequence_mean"),
        "grpo over the response's own length",
        ("group_size",),
    ),
    "ppo": Kind(
        lambda setup, lam, critic_error: PPO(critic=_critic(setup, critic_error), lam=lam),
        "GAE(λ) with a critic off by σ",
        ("lam", "critic_error"),
        (0.0, 0.95, 1.0),
        _by_critic,
        True,
    ),
    "ma-rlhf": Kind(
        lambda setup, positions, lam, critic_error: MARLHF(
            critic=_critic(setup, critic_error), boundary=_boundary(setup, positions), lam=lam
        ),
        "GAE(λ) over macro actions with a critic off by σ",
        ("positions", "lam", "critic_error"),
        (0.95,),
        _by_critic,
        True,
    ),
    "vineppo": Kind(
        lambda setup, positions, branches: VinePPO(
            boundary=_boundary(setup, positions), temperatures=(1.0,) * branches
        ),
        "differences of branch means",
        ("positions", "branches"),
        known=_unbiased,
    ),
    "trepo": Kind(
        _trepo,
        "the same with GAE(λ); from K = 2 on the prompt's value is the mean of the other responses",
        ("group_size", "positions", "branches", "lam"),
        (0.0, 0.5),
        _unbiased,
    ),
    "trepo-paper": Kind(
        _trepo_paper, "Algorithm 1 as printed: pooled, interpolated, temperatures from 0", ("positions", "branches")
    ),
    "theorem-1": Kind(lambda setup: Theorem1(critic=_critic(setup)), "U(W₀,ₜ) itself, exactly", **ORACLE),
    "theorem-2": Kind(
        lambda setup: Theorem2(critic=_critic(setup)), "U(W₀,ₜ) - U(W₀,ₜ₋₁), exactly: many draws everywhere", **ORACLE
    ),
    "theorem-2-optimal": Kind(_optimal, "U(W₀,ₜ) less the optimal baseline of the state, exactly", **ORACLE),
    "value-baseline": Kind(
        lambda setup: PPO(critic=_critic(setup), lam=1.0), "RM less the exact value of the state", **ORACLE
    ),
}

DEFAULT = ("reinforce", "reinforce-mean", "rloo", "remax", "grpo", "dr-grpo", "ppo", "vineppo", "trepo", "trepo-paper")
"""What `llm-mdp variance` compares when nobody says what."""
SHORT = {"group_size": "K", "positions": "D", "branches": "M", "lam": "λ", "critic_error": "σ"}


LIMITS = (
    ("group_sizes", 1, None),
    ("positions", 1, None),
    ("branches", 1, None),
    ("lams", 0, 1),
    ("critic_errors", 0, None),
)
"""Least and largest value of each option of a grid."""


@dataclass(frozen=True)
class Grid:
    """Values of the options; a name that has an option is tried with each."""

    group_sizes: tuple[int, ...] = (2, 4, 8)
    """K, responses to a prompt."""
    positions: tuple[int, ...] = (2, 4)
    """|D|, boundaries in a response of full length."""
    branches: tuple[int, ...] = (1, 4)
    """M, from each boundary."""
    lams: tuple[float, ...] | None = None
    """λ; None: 0, 0.95 and 1 for PPO, 0 and 0.5 for TRePO."""
    critic_errors: tuple[float, ...] = (0.0, 0.5)
    """What a critic is off by, in standard deviations of the reward."""

    def __post_init__(self) -> None:
        for name, least, most in LIMITS:
            values = getattr(self, name)
            for value in values or ():
                if not value >= least or not value <= (math.inf if most is None else most):
                    limits = f"at least {least}" if most is None else f"in [{least}, {most}]"
                    raise ValueError(f"--{name.replace('_', '-')} has {value}; each must be {limits}.")
            if values == ():
                raise ValueError(f"--{name.replace('_', '-')} is empty; give at least one value.")

    def values(self, kind: Kind, option: str) -> Sequence[Any]:
        """What to try of an option."""
        if option == "lam":
            return kind.lams if self.lams is None else self.lams
        given = {
            "group_size": self.group_sizes,
            "positions": self.positions,
            "branches": self.branches,
            "critic_error": self.critic_errors,
        }
        return given[option]


@dataclass(frozen=True)
class Candidate:
    """A name with options."""

    name: str
    """One of `KINDS`, or FILE.py:CLASS."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`trepo K=4 D=2 M=1 λ=0.5`."""
        name = self.name.rpartition(":")[2] or self.name
        return " ".join([name, *(f"{SHORT[option]}={value:g}" for option, value in self.options.items())])

    @property
    def given_values(self) -> bool:
        """Does it use exact values (or values with an error) that somebody gave it for nothing?"""
        return self.name in KINDS and KINDS[self.name].given_values

    @property
    def known(self) -> Known | None:
        """What is true of it on every instance; None: that depends on the instance, or nobody knows."""
        return KINDS[self.name].known(**self.options) if self.name in KINDS else None

    def build(self, setup: Setup, load: Callable[[str], Estimator] | None = None) -> Estimator:
        """The estimator.

        Args: load: makes an estimator of FILE.py:CLASS.

        Raises:
            NeedsExactValues: for critics where U is not known.
            ValueError: options that the estimator refuses.
        """
        if self.name in KINDS:
            return KINDS[self.name].make(setup, **self.options)
        if load is None:
            raise ValueError(f"there is no estimator {self.name!r}; choose one of {', '.join(KINDS)}.")
        return load(self.name)


def candidates(names: Iterable[str], grid: Grid, horizon: int) -> list[Candidate]:
    """Every name with every combination of its options; positions beyond the horizon are left out, for they are all the
    same.

    Raises:
        ValueError: for a name that nobody knows, or an option out of range for one of the names.
    """
    found: list[Candidate] = []
    for name in dict.fromkeys(names):
        if name not in KINDS:
            if ":" not in name:
                close = difflib.get_close_matches(name, KINDS, n=1)
                hint = (
                    f"did you mean {close[0]}?"
                    if close
                    else f"choose among {', '.join(KINDS)}, or write FILE.py:CLASS."
                )
                raise ValueError(f"there is no estimator {name!r}; {hint}")
            found.append(Candidate(name))
            continue
        kind, before = KINDS[name], len(found)
        for values in product(*(grid.values(kind, option) for option in kind.options)):
            options = dict(zip(kind.options, values))
            if name in ("rloo", "grpo", "dr-grpo", "grpo-length") and options["group_size"] < 2:
                continue
            if "positions" in options:
                options["positions"] = min(options["positions"], horizon)
            found.append(Candidate(name, options))
        if len(found) == before:
            raise ValueError(
                f"{name} compares responses to a prompt, and --group-sizes are {grid.group_sizes}; give one of at "
                f"least 2."
            )
    distinct = [candidate for place, candidate in enumerate(found) if candidate not in found[:place]]
    by_label: dict[str, Candidate] = {}
    for candidate in distinct:
        if (other := by_label.setdefault(candidate.label, candidate)) is not candidate:
            raise ValueError(
                f"{other.name} and {candidate.name} are both called {candidate.label}; rename one of the classes."
            )
    return distinct
