"""Exact moments by the method that fits: groups one by one where they are few, else classes of responses."""

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.verify.method import METHODS
from llm_mdp.verify.moments import Moments, exact_moments


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
    return exact_moments(estimator, enumeration)
