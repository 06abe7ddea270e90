"""Exact moments by the method that fits: groups one by one where they are few, else classes of responses."""

import math

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.worlds import MAX_WORLDS, check_group_size
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.classes.moments import class_moments
from llm_mdp.verify.classes.sufficiency import MAX_ENTRIES
from llm_mdp.verify.method import METHODS
from llm_mdp.verify.moments import Moments, exact_moments

FEW = 20_000
"""Groups, without order, that are taken one by one without asking for anything else."""


def moments_by(estimator: Estimator, enumeration: Enumeration, method: str = "auto", prompts: int = 1) -> Moments:
    """Mean and trace of the covariance of one update of `prompts` groups.

    Args: method: "auto", "groups" or "classes", see `certificate.exact_certificate`.

    Raises:
        TooLarge: if there are too many outcomes, with what remains.
        ValueError: for another method, or no number of prompts.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}.")
    if not isinstance(prompts, int) or isinstance(prompts, bool) or prompts < 1:
        raise ValueError(f"prompts is {prompts!r}; it must be a whole number of at least 1.")
    if prompts > 1:
        raise ValueError(f"prompts is {prompts}; only updates of one prompt can be certified.")
    check_group_size(estimator.group_size)
    groups = enumeration.n_prompts * math.comb(
        enumeration.tree.n_leaves + estimator.group_size - 1, estimator.group_size
    )
    if method == "groups" or (method == "auto" and groups <= FEW):
        return exact_moments(estimator, enumeration)
    possible, most = method == "auto" and groups <= MAX_WORLDS, MAX_ENTRIES
    if possible:
        most = min(groups * estimator.group_size * enumeration.tree.horizon, MAX_ENTRIES)
    try:
        return class_moments(estimator, enumeration, most)
    except Refused as why:
        if possible:
            return exact_moments(estimator, enumeration)
        name = type(estimator).__name__
        raise TooLarge(
            f"{name} cannot be certified by classes of responses, because {why}; "
            + (
                'take method="groups", or --sampled N.'
                if groups <= MAX_WORLDS
                else f"and {_number(groups)} groups are too many to take one by one (at most {MAX_WORLDS:,}): take a "
                "smaller group size or instance, or --sampled N."
            )
        ) from why
    except TooLarge:
        if possible:
            return exact_moments(estimator, enumeration)
        raise


def _number(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"about 10^{math.floor(math.log10(count))}"
