"""What a row of the ledger is at other group sizes, and in updates of several prompts."""

from dataclasses import dataclass, replace
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.groups import check_groups
from llm_mdp.verify.check import with_group_size
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.problem import Problem

BY_SIZE = ("by_group_size", "by_prompts")
"""Where a row has what it is at several K, and at several P."""
SHARED = ("enumeration", "gradient", "exact_v", "dpo_policy", "median", "process_model")
"""What a problem knows that neither K nor P changes."""


@dataclass(frozen=True)
class Sizes:
    """What a ledger has figures for, beside the problem's own K and P.

    Args:
        group_sizes: every K of a row's `by_group_size`, at the problem's own P; empty: the row has none.
        prompts: every P of its `by_prompts`, at the problem's own K; empty: the row has none.
        method: how exact figures are computed, one of `method.METHODS`.
    """

    group_sizes: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    method: str = "auto"

    def check(self, problem: Problem) -> None:
        """Raise TooLarge before any work if every group shall be tried and there are too many."""
        if self.method == "groups":
            for size in self.group_sizes or (problem.group_size,):
                check_groups(problem.enumeration, size, ordered=False)


ONE_SIZE = Sizes()
"""The problem's own K and P alone."""


def compares(claim: Claim) -> bool:
    """Is it about an estimator that compares the responses of a group, so that it may differ from one K to the next?"""
    if isinstance(claim.estimator, Estimator):
        return claim.estimator.group_size > 1
    return claim.figure is None and claim.entry is not None and claim.entry.compares


def at_sizes(claim: Claim, problem: Problem, group_size: int, prompts: int) -> tuple[Claim, Problem] | None:
    """The claim and the problem at this K and P; None: the user's own class has a group size of its own, and no
    other."""
    if isinstance(claim.estimator, Estimator) and group_size != claim.estimator.group_size:
        own = with_group_size(claim.estimator, group_size)
        if own is None:
            return None
        claim = replace(claim, estimator=own)
    if (group_size, prompts) == (problem.group_size, problem.prompts):
        return claim, problem
    other = replace(problem, group_size=group_size, prompts=prompts)
    # Responses, their scores and the true gradient are the same, and the dearest part of a problem.
    vars(other).update({name: vars(problem)[name] for name in SHARED if name in vars(problem)})
    return claim, other


ENTRY = (
    "verdict", "expected", "holds", "relative_bias", "scale", "cosine", "trace_covariance", "tokens",
    "tokens_to_signal", "kept", "with_signal", "method", "reason", "undecided", "samples", "bound", "confidence",
    "certificate", "needed", "bias_interval", "scale_interval", "cosine_interval", "precision",
)  # fmt: skip
"""What `by_group_size` and `by_prompts` have of a row at one size, where it has it."""


def entry_of(row: dict[str, Any]) -> dict[str, Any]:
    """The part of a row that its size decides; the reason only where it is that nothing was computed."""
    kept = {key: row[key] for key in ENTRY if key in row}
    return kept if row["verdict"] == "not computed" else {key: kept[key] for key in kept if key != "reason"}
