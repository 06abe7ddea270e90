"""Exact moments by the method that fits: groups one by one where they are few, else classes of responses."""

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import MAX_EDGES, Enumeration, TooLarge
from llm_mdp.exact.groups import MAX_WORLDS, check_group_size, in_words, number_of_groups
from llm_mdp.verify.batches import batch_moments, one_by_one
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.classes.moments import class_moments
from llm_mdp.verify.classes.sufficiency import MAX_ENTRIES
from llm_mdp.verify.method import METHODS
from llm_mdp.verify.moments import Moments, exact_moments

FEW = 50_000
"""Groups, without order, that are taken one by one without asking for anything else."""
OVERHEAD = 4
"""Classes must ask for so many times fewer weights than groups, or groups are taken."""


def moments_by(estimator: Estimator, enumeration: Enumeration, method: str = "auto", prompts: int = 1) -> Moments:
    """Mean and trace of the covariance of one update of `prompts` groups.

    Args: method: "auto", "groups" or "classes", see `certificate.exact_certificate`. Whether classes do is tried on
        thousands of groups, with every response and every two (or some of every two classes) among them. An estimator
        whose weights change in one rarer company alone, such as three given responses, can pass where groups are too
        many for all to be tried; up to `FEW` groups "auto" takes each.

    Raises:
        TooLarge: if there are too many outcomes, with what remains.
        ValueError: for another method, or no number of prompts.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}.")
    if not isinstance(prompts, int) or isinstance(prompts, bool) or prompts < 1:
        raise ValueError(f"prompts is {prompts!r}; it must be a whole number of at least 1.")
    check_group_size(estimator.group_size)
    if prompts > 1:
        return batch_moments(
            estimator, enumeration, prompts, method, lambda: moments_by(estimator, enumeration, method)
        )
    size, leaves = estimator.group_size, enumeration.tree.n_leaves
    groups = number_of_groups(enumeration, size)
    scored = enumeration.n_edges <= MAX_EDGES
    if method == "groups" or (method == "auto" and groups <= FEW and scored):
        return exact_moments(estimator, enumeration)
    possible, most = groups <= MAX_WORLDS and scored, MAX_ENTRIES
    if method == "auto" and possible:
        most = min(groups * size * enumeration.tree.horizon // OVERHEAD, MAX_ENTRIES)
    try:
        return class_moments(estimator, enumeration, most)
    except (Refused, TooLarge) as why:
        by_classes = f"by classes of responses {type(estimator).__name__} cannot be certified: {why}"
        if method == "auto" and possible:
            try:
                return one_by_one(estimator, enumeration, why)
            except TooLarge as error:
                raise TooLarge(f"{by_classes}. One by one, {error}") from why
        if possible:
            raise TooLarge(f'{by_classes}; take method="groups", or --sampled N.') from why
        by_groups = (
            f"{in_words(groups)} groups of {size} out of {leaves:,} responses are too many to take one by one (at most "
            f"{MAX_WORLDS:,})"
            if groups > MAX_WORLDS
            else f"groups one by one need a matrix of {enumeration.n_edges:,} scores (at most {MAX_EDGES:,})"
        )
        raise TooLarge(
            f"{by_groups}, and {by_classes}; take a smaller --group-size, a smaller instance or one with fewer "
            "different rewards, or --sampled N."
        ) from why


def shared_moments(estimator: Estimator, enumeration: Enumeration, method: str = "auto", prompts: int = 1) -> Moments:
    """`moments_by`, computed once for estimators that are equal, as those of several claims are.

    For the catalogue's: of others two may compare as equal and differ in what is no field.
    """
    made, key = enumeration.shared.setdefault(shared_moments, {}), (estimator, method, prompts)
    try:
        known = made.get(key)
    except TypeError:  # a field that cannot be hashed
        return moments_by(estimator, enumeration, method, prompts)
    if known is None:
        known = made[key] = moments_by(estimator, enumeration, method, prompts)
    return known
