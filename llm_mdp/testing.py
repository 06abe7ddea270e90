"""Unit tests for policy gradients: `assert_unbiased(mine)` fails with the reason why.

    from llm_mdp.testing import assert_unbiased

    def test_my_advantages():
        assert_unbiased(my_advantages, group_size=4)

Works in any test runner; with pytest it is also a fixture of the same name (`llm_mdp.pytest_plugin`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from llm_mdp.audit.certify import certify
from llm_mdp.audit.problems import instances as instances_of_the_audit
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import Instance
from llm_mdp.verify.certificate import UNBIASED, WORST_FIRST, Certificate
from llm_mdp.verify.certify import Certified
from llm_mdp.verify.diagnosis import diagnose
from llm_mdp.verify.weights import EstimatorError


def assert_unbiased(
    estimator: Estimator | Callable[..., Any] | str,
    *,
    up_to_scale: bool = False,
    target: str = "reward",
    tolerance: float = UNBIASED,
    group_size: int | None = None,
    prompts: int = 1,
    instances: Mapping[str, Instance] | None = None,
    report: Callable[[str, Certificate], None] = lambda name, found: None,
) -> None:
    """Assert that the expected gradient is the true one, exactly, on every instance; some seconds at K = 3.

    Args:
        estimator: all that `certify` takes: an estimator, a function of rewards (P, K) or of a batch, a name of the
            catalogue, FILE.py:NAME.
        up_to_scale: the right direction is enough; a learning rate undoes the rest.
        target: what the gradient should be that of, see `certify`.
        tolerance: largest relative bias, in [1e-9, 1); with `up_to_scale` largest sine of the angle to the true one.
        group_size: K, responses to a prompt; None: the estimator's own, 3 for a function.
        prompts: P, prompts whose groups are in one update.
        instances: by name; None: those of the audit, on which biases show (`audit.problems`).
        report: called with the name of every instance and its certificate.

    Raises:
        AssertionError: it is not; the message has the figures of every instance, what causes the bias and what repairs
            it. Also, in one sentence, where it is malformed: it mixes prompts, or gives two answers to the same
            samples.
        ValueError: for a target, tolerance, group size or instance that is none.
        TooLarge: if there are too many groups to enumerate; a smaller `group_size` remains.
    """
    __tracebackhide__ = True
    if not UNBIASED <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; it must be at least {UNBIASED:g} and below 1.")
    tried = instances_of_the_audit() if instances is None else instances
    if not isinstance(tried, Mapping):
        raise ValueError(
            f"instances is a {type(tried).__name__}; give a dict, such as {{'mine': random_instance(3, 3)}}."
        )
    if not tried:
        raise ValueError("instances is empty; give at least one, such as {'mine': random_instance(3, 3)}.")
    certificates = {}
    for name, instance in tried.items():
        try:
            found = certify(estimator, instance, target, group_size=group_size, prompts=prompts)
        except EstimatorError as error:
            raise AssertionError(str(error)) from None
        report(name, found)
        certificates[name] = found
    wrong = [name for name, found in certificates.items() if not accepted(found, up_to_scale, tolerance)]
    if wrong:
        worst = min(wrong, key=lambda name: WORST_FIRST.index(certificates[name].verdict))
        raise AssertionError(message(certificates, worst, up_to_scale, target, tolerance))


def accepted(found: Certificate, up_to_scale: bool = False, tolerance: float = UNBIASED) -> bool:
    """Is it unbiased (or proportional, where that is enough), or within the tolerance?"""
    if found.verdict == "unbiased" or (up_to_scale and found.verdict == "proportional"):
        return True
    error = found.sine if up_to_scale else found.relative_bias
    return tolerance > UNBIASED and error is not None and error <= tolerance


def message(certificates: Mapping[str, Certified], wrong: str, up_to_scale: bool, target: str, tolerance: float) -> str:
    """What was asserted, what was found on every instance, and on one where it is wrong why, and the repair."""
    found = certificates[wrong]
    name, size = found.claim.id, found.claim.build(found.problem).group_size
    asked = "unbiased up to scale" if up_to_scale else "unbiased"
    within = f" within {tolerance:g}" if tolerance > UNBIASED else ""
    batch = f", P = {found.problem.prompts}" if found.problem.prompts > 1 else ""
    lines = [f"{name} is not {asked}{within} (gradient of {target}, K = {size}{batch}):"]
    lines += [f"  {place}: {each}" for place, each in certificates.items()]
    if not up_to_scale and all(accepted(each, True, tolerance) for each in certificates.values()):
        lines.append("The direction is right: up_to_scale=True accepts it, if a learning rate may undo the scale.")
    if said := why(found, target):
        lines += ["Why, by showing it other rewards, lengths and continuations:", *(f"  - {line}" for line in said)]
    return "\n".join(lines)


def why(found: Certified, target: str) -> list[str]:
    """The diagnosis in lines: what causes the bias, found by intervention, what repairs it, a small counter-example;
    nothing where there is none (it is of ∇J, and of single prompts)."""
    if found.verdict not in ("biased", "proportional") or target != "reward" or found.problem.prompts > 1:
        return []
    try:
        diagnosis = diagnose(found.claim.build(found.problem), found.problem.instance)
    except (TooLarge, EstimatorError) as error:
        return [f"not diagnosed: {error}"]
    return diagnosis.lines
