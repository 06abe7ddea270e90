"""A claim: who says what about which estimator, and the verdict expected (`CLAIMS.md` of the founding documents)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Entry
from llm_mdp.verify.problem import Problem

Group = Literal["theorems", "algorithms", "practices", "yours"]
Finding = Literal["agrees", "misprint", "stronger than stated", "differs", "practice"]
"""What the row says of the paper:

- agrees: the paper says the same, or warns of what the row shows;
- misprint: a slip of the pen, as the text around it or the cited work shows;
- stronger than stated: it is right, and more holds than the paper says (an "≈" is an equality, say);
- differs: it is not so, or not under the conditions that the paper gives;
- practice: the paper does not speak of it.
"""


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    id: str
    group: Group
    statement: str
    source: str
    expect: Callable[[Problem], str]
    """The verdict expected on an instance: unbiased, proportional, biased, holds, or report when none is."""
    reason: str
    repair: str | None = None
    paper: str = ""
    """What the paper says, its own words “quoted”, with the equation; empty for practices of the field."""
    finding: Finding = "practice"
    target: str = "reward"
    """What the expected gradient is compared with, an expression of `targets.TERMS`."""
    estimator: str | Estimator = ""
    """Its name in the catalogue, if that is not the id, or a user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the estimator, where they are not those of its name."""
    figure: Callable[[Problem], dict[str, Any]] | None = None
    """One of `verify.statements`, for a row that is about no estimator: what it shows on a problem."""

    @property
    def entry(self) -> Entry | None:
        """The estimator in the catalogue; None: the claim is a statement, or about a user's own estimator."""
        return None if isinstance(self.estimator, Estimator) else CATALOGUE.get(self.estimator or self.id)

    def build(self, problem: Problem) -> Estimator:
        """The estimator on this problem, its groups of the problem's size.

        Raises:
            ValueError: for a statement, which has a `figure` and no estimator.
        """
        if isinstance(self.estimator, Estimator):
            return self.estimator
        if self.entry is None:
            raise ValueError(f"{self.id} is a statement and has no estimator; ask for its `figure`.")
        return problem.make(self.entry, **self.options)

    def expected(self, problem: Problem) -> str:
        """The verdict expected, "report" where it cannot show on this instance for want of dimensions, rewards or a
        gradient."""
        verdict = self.expect(problem)
        if verdict == "biased" and not problem.generic:
            return "report"
        return verdict if verdict in ("unbiased", "holds") or problem.has_gradient(self.target) else "report"


def always(verdict: str) -> Callable[[Problem], str]:
    return lambda problem: verdict


def biased_from(horizon: int, *, needs_eos: bool = False, otherwise: str = "unbiased") -> Callable[[Problem], str]:
    """Biased from this many tokens of the policy on (if responses may differ in length, where that matters)."""

    def expect(problem: Problem) -> str:
        mdp = problem.instance.mdp
        return "biased" if mdp.longest >= horizon and (mdp.eos is not None or not needs_eos) else otherwise

    return expect


def where_lengths_differ(otherwise: str = "unbiased") -> Callable[[Problem], str]:
    """Biased where one response may be longer than another."""
    return biased_from(2, needs_eos=True, otherwise=otherwise)


def undiscounted(problem: Problem) -> str:
    mdp = problem.instance.mdp
    return "biased" if mdp.gamma < 1 and mdp.longest > 1 else "unbiased"


def discounted_at_the_end(problem: Problem) -> str:
    """A factor γˡᵉⁿ⁻¹ on the reward: biased where lengths differ, a constant factor where they cannot."""
    mdp = problem.instance.mdp
    if mdp.gamma == 1 or mdp.longest == 1:
        return "unbiased"
    return "biased" if mdp.eos is not None else "proportional"


def tempo_difference(factor: float) -> Callable[[Problem], str]:
    """At horizon 1 the prefix's mean is the reward itself, and `factor` times (K-1)/K of the gradient is left."""

    def expect(problem: Problem) -> str:
        if problem.instance.mdp.longest > 1:
            return "biased"
        return "unbiased" if factor * (problem.group_size - 1) == problem.group_size else "proportional"

    return expect


def interpolated_values(problem: Problem) -> str:
    """Segments of 2 tokens: half of the gradient where all have as many."""
    mdp = problem.instance.mdp
    if mdp.longest == 1:
        return "unbiased"
    return "proportional" if mdp.eos is None and mdp.longest % 2 == 0 else "biased"


def fixed_length_shrinks(problem: Problem) -> str:
    """Division by lengths: biased where they differ, a constant factor 1/T where they cannot."""
    mdp = problem.instance.mdp
    if mdp.longest == 1:
        return "unbiased"
    return "biased" if mdp.eos is not None else "proportional"


def rloo_as_printed(problem: Problem) -> str:
    """Scale (K-2)/(K-1): no gradient at all, hence no direction, at K = 2."""
    return "biased" if problem.group_size == 2 else "proportional"
