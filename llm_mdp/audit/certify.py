"""`certify` and `diagnose`, for whatever somebody has: an estimator, its name, a function of rewards or of a batch."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from llm_mdp.audit.adapter import (
    FunctionEstimator,
    advantages_of,
    call,
    described,
    loss_of,
    name_of,
    rewards_of,
    sample_batch,
    tensor_of,
)
from llm_mdp.audit.batch import Batch, Needs
from llm_mdp.audit.problems import RIGHT_OR_WRONG, problems
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.mdp.hidden_rewards import HiddenReward
from llm_mdp.own import did_you_mean, is_own, load
from llm_mdp.verify import certify as of_estimators
from llm_mdp.verify.certify import Certified
from llm_mdp.verify.diagnosis import Diagnosis
from llm_mdp.verify.diagnosis import diagnose as of_an_estimator
from llm_mdp.verify.diagnosis.findings import bench
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

REWARDS = ("rewards", "reward")
"""What the parameter of a function of rewards is called."""


def certify(
    estimator: Estimator | Callable[..., Any] | str,
    instance: Instance | None = None,
    target: str = "reward",
    *,
    group_size: int | None = None,
    reward: str | HiddenReward | None = None,
    method: str = "auto",
    prompts: int = 1,
) -> Certified:
    """The exact certificate: is E g, the expected gradient that this gives, the true policy gradient?

        def centred(rewards):                         # (P, K), the rewards of K responses to each of P prompts
            return rewards - rewards.mean(-1, keepdim=True)

        print(certify(centred, group_size=4))         # proportional: scale 0.75
        print(certify(RLOO(group_size=3)))            # unbiased: relative bias below 1e-09, scale 1, cosine 1

    Args:
        estimator: an `Estimator`; a name of the catalogue ("grpo"); FILE.py:NAME of a class or function; or a function
            of `rewards` (P, K), which returns as many advantages, or of a `batch` (`audit.batch.Batch`), which returns
            advantages (B, T) or (B,), or a loss: a scalar that depends on batch.logp. Advantages are taken under the
            sum over tokens and the mean over responses.
        instance: what to certify it on; None: a random token MDP, V = 3, T = 4, γ = 0.9, where biases show.
        target: what the gradient should be that of, an expression of `targets.TERMS`: "reward" for ∇J, "kl" for
            -∇KL(π ‖ reference), "reward - 0.3 kl", "max of K", …; K is the group size.
        group_size: K, responses to a prompt; None: the estimator's own, 3 for a function or a name of the catalogue.
        reward: in place of `instance`: "dense", random ones (what None gives); "right-or-wrong", 0 or 1 (V = 3, T = 3,
            two prompts); or a `HiddenReward` for the default tree.
        method: "groups", "classes" or "auto", see `exact_certificate`.
        prompts: P ≥ 1, prompts whose groups are in one update.

    Raises:
        EstimatorError: if it could not be verified: it raises, gives two answers to the same samples, no finite
            numbers, another shape, mixes worlds or prompts, …
        TooLarge: if there are too many outcomes to enumerate; a smaller instance or group size remains.
        UsageError: if there is no estimator of this name.
        ValueError: for another target, instance or reward.
    """
    instance, estimator = _instance(instance, reward), _loaded(estimator)
    if not is_function(estimator):
        return of_estimators.certify(
            cast(Any, estimator), instance, target, group_size=group_size, method=method, prompts=prompts
        )
    assert callable(estimator)
    size = _size(group_size)
    problem = Problem(instance or default_instance(), max(size, 2))
    adapted = adapt(estimator, problem, group_size=size)
    return certificate_of(adapted, problem, target, method=method, prompts=prompts)


def diagnose(
    estimator: Estimator | Callable[..., Any] | str,
    instance: Instance | None = None,
    *,
    group_size: int | None = None,
    counter_example: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Diagnosis:
    """Why an estimator is biased or merely proportional, found by intervention: it is shown other rewards, other
    lengths and other continuations on an instance small enough to enumerate, and what its weights do then says what is
    wrong. Each repair that is known for what was found is tried, alone and with the others, and certified exactly.

        print(diagnose("my_estimator.py:Mine"))

    Args:
        estimator: an object, FILE.py:NAME of a class or function, or a function as `certify` takes it.
        instance: where it was found biased; None, or one with too many groups: a random one, V = 3, T = 3, γ = 0.9.
        group_size: K, responses to a prompt, of a function, 3 by default; an estimator has its own.
        counter_example: look for the smallest instance with the same verdict, too.
        progress: called with what is done next.

    Raises:
        EstimatorError: if it is no estimator at all, or a function that could not be certified.
        UsageError: if there is no such file, class or function.
        TooLarge: if its groups are too large to enumerate on any instance.
        ValueError: a group size that is none, or is given beside an estimator.
    """
    estimator = _loaded(estimator)
    if not is_function(estimator):
        if group_size is not None:
            raise ValueError(f"group_size is {group_size!r}, but the estimator has its own; leave it out.")
        return of_an_estimator(cast(Any, estimator), instance, counter_example=counter_example, progress=progress)
    assert callable(estimator)
    # Certified first, by which it is found out what it reads, and whether worlds can be together.
    problem = bench(size := _size(group_size), instance)
    adapted = certificate_of(adapt(estimator, problem, group_size=size), problem).claim.estimator
    assert isinstance(adapted, FunctionEstimator)
    found = of_an_estimator(adapted, instance, counter_example=counter_example, progress=progress)
    return replace(found, name=adapted.name)


def _loaded(estimator: Estimator | Callable[..., Any] | str) -> Estimator | Callable[..., Any] | str:
    """The function that FILE.py:NAME names; everything else as it is."""
    if isinstance(estimator, str) and is_own(estimator) and is_function(found := load(estimator)):
        return found
    return estimator


def _size(group_size: int | None) -> int:
    """K of a function.

    Raises:
        ValueError: it is none.
    """
    size = 3 if group_size is None else group_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"group_size is {size!r}; it must be a whole number of at least 1.")
    return size


def certificate_of(
    estimator: FunctionEstimator, problem: Problem, target: str = "reward", *, method: str = "auto", prompts: int = 1
) -> Certified:
    """The certificate of an adapted function on the problem that it was adapted to. Where one call for all worlds turns
    out to mix them after all, they are asked for one by one.

    Raises:
        EstimatorError, TooLarge: as `certify`, with the function's own name.
    """
    try:
        return of_estimators.certified(estimator, problem, target, name=estimator.name, method=method, prompts=prompts)
    except Needs as part:
        more = replace(estimator, needs=(*estimator.needs, str(part)))
        return certificate_of(more, problem, target, method=method, prompts=prompts)
    except EstimatorError as error:
        if estimator.together:
            alone = replace(estimator, together=False)
            return certificate_of(alone, problem, target, method=method, prompts=prompts)
        raise EstimatorError(_by_name(error, estimator)) from error
    except TooLarge as error:
        raise TooLarge(_by_name(error, estimator)) from error


def _by_name(error: Exception, estimator: FunctionEstimator) -> str:
    return str(error).replace(type(estimator).__name__, estimator.name)


def default_instance() -> Instance:
    """Where `certify` looks unless told otherwise."""
    return random_instance(3, 4, gamma=0.9)


def is_function(thing: Any) -> bool:
    """Is this something to call with rewards or a batch, rather than an estimator or a class of them?"""
    return callable(thing) and not isinstance(thing, type) and not hasattr(thing, "collect")


def adapt(function: Callable[..., Any], problem: Problem, *, group_size: int | None = None) -> FunctionEstimator:
    """A function as an estimator. Its parameter says what it reads, and what it returns on a few responses is what it
    gives.

    Args: group_size: K; None: the problem's.

    Raises:
        EstimatorError: it takes something else, or is no estimator, see `adapter.loss_of`.
    """
    name = name_of(function)
    if _reads(function, name) == "rewards":
        return rewards_of(function, problem, name=name, group_size=group_size)
    answer = call(function, sample_batch(problem, group_size), name)
    if isinstance(answer, Tensor) and answer.dim() == 0:
        return loss_of(function, problem, name=name, group_size=group_size)
    if tensor_of(answer) is None:
        raise EstimatorError(
            f"{name} returned {described(answer)}; return advantages of shape (B, T) or (B,), or a loss, a tensor of "
            "one number."
        )
    if isinstance(answer, Tensor) and answer.requires_grad:
        raise EstimatorError(
            f"{name} returned {described(answer)} that is computed from batch.logp; for a loss return its mean or sum, "
            "a tensor of one number; for advantages detach it."
        )
    return advantages_of(function, problem, name=name, group_size=group_size)


def _reads(function: Callable[..., Any], name: str) -> str:
    """ "rewards" or "batch", by the name or annotation of the only parameter that must be given."""
    wanted = "write a function of one parameter, `rewards` (P, K) or `batch`"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise EstimatorError(f"{name} does not say what it takes; {wanted}.") from error
    required = [
        each
        for each in parameters
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    only_named = [each for each in parameters if each.default is each.empty and each.kind is each.KEYWORD_ONLY]
    if len(required) == 1 and not only_named:
        (given,) = required
        if given.name in REWARDS:
            return "rewards"
        if given.name == "batch" or given.annotation is Batch or str(given.annotation).split(".")[-1] == "Batch":
            return "batch"
    names = ", ".join(each.name for each in [*required, *only_named])
    raise EstimatorError(f"{name} takes ({names}); {wanted}.")


def _instance(instance: Instance | None, reward: str | HiddenReward | None) -> Instance | None:
    if reward is None:
        return instance
    if instance is not None:
        raise ValueError("instance and reward were both given; an instance has rewards of its own, so leave one out.")
    if isinstance(reward, HiddenReward):
        default = default_instance()
        try:
            return replace(default, mdp=replace(default.mdp, token_reward=reward))
        except ValueError as error:
            raise ValueError(f"reward does not fit the default tree (vocabulary 3, horizon 4): {error}") from error
    known = {"dense": default_instance, RIGHT_OR_WRONG: lambda: problems()[RIGHT_OR_WRONG].instance}
    if reward not in known:
        otherwise = f"choose one of {', '.join(known)}, or give a HiddenReward"
        raise ValueError(f"reward is {reward!r}; {did_you_mean(str(reward), known, otherwise)}")
    return known[reward]()
