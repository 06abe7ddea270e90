"""`certify`: one estimator, one instance, one certificate."""

from dataclasses import dataclass, field, replace
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import find_entry
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.own import is_own
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.check import check_estimator, check_interface, load_estimator, with_group_size
from llm_mdp.verify.claims import Claim, always
from llm_mdp.verify.ledger import named_claim
from llm_mdp.verify.price import Price, price
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import parse_target
from llm_mdp.verify.weights import EstimatorError


def certify(
    estimator: Estimator | str,
    instance: Instance | None = None,
    target: str = "reward",
    *,
    group_size: int | None = None,
    method: str = "auto",
    prompts: int = 1,
) -> "Certified":
    """The exact certificate: is E g, the expected gradient that the estimator gives, the true policy gradient?

        print(certify(RLOO(group_size=3)))            # unbiased: relative bias below 1e-09, scale 1, cosine 1

    Args:
        estimator: an object, a name of the catalogue ("grpo"), or FILE.py:CLASS.
        instance: what to certify it on; None: a random token MDP, V = 3, T = 4, γ = 0.9, where biases show.
        target: what the gradient should be that of, an expression of `targets.TERMS`: "reward" for ∇J, "kl" for
            -∇KL(π ‖ reference), "reward - 0.3 kl", "max of K", …; K is the estimator's group size.
        group_size: K, responses to a prompt; None: the estimator's own, 3 for a name of the catalogue.
        method: "groups", "classes" or "auto", see `exact_certificate`.
        prompts: P ≥ 1, prompts whose groups are in one update.

    Raises:
        EstimatorError: if the estimator could not be verified: it mixes worlds or prompts, gives two answers, …
        TooLarge: if there are too many outcomes to enumerate; a smaller instance or group size remains.
        UsageError: if there is no estimator of this name.
        ValueError: for another target, or no instance.
    """
    parse_target(target)
    if instance is not None and not isinstance(instance, Instance):
        raise ValueError(f"instance is {instance!r}; give random_instance(…) or read_instance(FILE).")
    problem = Problem(random_instance(3, 4, gamma=0.9) if instance is None else instance)
    if group_size is not None and group_size > 1:
        problem = replace(problem, group_size=group_size)
    found = estimator
    if isinstance(found, str):
        found = load_estimator(found, group_size) if is_own(found) else problem.make(find_entry(found))
    if not isinstance(found, type) and not hasattr(found, "collect") and callable(found):
        raise EstimatorError(f"{found!r} is a function; llm_mdp.certify takes functions as well.")
    if group_size is not None and not isinstance(estimator, str):
        found = _of_size(found, group_size)
    check_estimator(found, problem.enumeration)
    if found.group_size > 1:
        problem = replace(problem, group_size=found.group_size)
    certificate = certified(found, problem, target, method=method, prompts=prompts)
    # A name of the catalogue is made anew at every policy that it leads to; an object is what it is.
    if isinstance(estimator, str) and not is_own(estimator):
        return replace(certificate, claim=replace(named_claim(find_entry(estimator)), target=target))
    return certificate


def certified(
    estimator: Estimator, problem: Problem, target: str, *, name: str = "", method: str = "auto", prompts: int = 1
) -> "Certified":
    """The certificate of an estimator that was checked already, on a problem.

    Args: name: what it is called; by default its class.
    """
    certificate = exact_certificate(
        estimator,
        problem.enumeration,
        problem.target(target),
        problem.magnitude(target),
        method=method,
        prompts=prompts,
    )
    name = name or type(estimator).__name__
    claim = Claim(name, "yours", "", name, always("report"), "", target=target, estimator=estimator)
    return Certified(**vars(certificate), claim=claim, problem=replace(problem, prompts=prompts))


@dataclass(frozen=True, kw_only=True, repr=False)
class Certified(Certificate):
    """A certificate that remembers what it is of, and names it in a notebook (see `Certificate`)."""

    claim: Claim = field(repr=False, compare=False)
    problem: Problem = field(repr=False, compare=False)

    def price(self) -> Price:
        """What following the estimator costs from this instance's policy on (`docs/price.md`): the share lost of the
        reward that the true gradient gains with the same KL, or the reason why there is no such figure.

            print(certify("token-mean", random_instance(3, 3)).price())
        """
        return price(self.claim, self.problem)

    def _of(self) -> dict[str, Any]:
        size = getattr(self.claim.estimator, "group_size", self.problem.group_size)
        prompts = {"P": self.problem.prompts} if self.problem.prompts > 1 else {}
        return {"estimator": self.claim.id, "target": self.claim.target, "K": size} | prompts


def _of_size(estimator: Any, group_size: int) -> Any:
    check_interface(estimator)
    changed = with_group_size(estimator, group_size)
    if changed is None:
        raise EstimatorError(
            f"{type(estimator).__name__} draws {estimator.group_size} responses to a prompt and cannot be given "
            f"{group_size}; leave group_size out, or make it a field of a dataclass."
        )
    return changed
