"""The smallest example of a row that is not what it is called: rewards, log-probabilities, what comes out, what was
promised."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from llm_mdp.audit.adapter import FunctionEstimator
from llm_mdp.exact.instance_files import instance_to_dict
from llm_mdp.exact.instances import Instance, flatten
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.counterexamples import Shape, smallest_instance
from llm_mdp.verify.problem import Problem

SHAPES: tuple[Shape, ...] = ((2, 1, 1.0), (2, 2, 1.0), (2, 3, 1.0), (3, 2, 1.0))
"""V, T, γ that are tried; a trainer's batch has no discount."""
TRIES = 6
"""Instances drawn of each shape."""
VISIBLE = 0.05
"""The bias of an example is at least this large, in direction too."""
GROUP_SIZES = (2, 3)
"""K that are tried, the smallest that shows it is kept."""


def minimal_example(estimator: FunctionEstimator, target: str = "reward") -> dict[str, Any] | None:
    """The smallest instance of whole numbers on which the estimator is biased, as a reader sees it; None: none was
    found.

    Returns:
        {"words", "group_size", "responses": {"head", "lines"}, "gradients": {"head", "lines"}, "instance"}, the cells
        as texts; `instance` as `instance_from_dict` reads it.
    """
    for size in GROUP_SIZES:
        sized = replace(estimator, group_size=size)
        instance = smallest_instance(
            lambda found, sized=sized: _shows(sized, found, target), shapes=SHAPES, tries=TRIES
        )
        if instance is not None:
            return written(sized, instance, target)
    return None


def at(estimator: FunctionEstimator, instance: Instance) -> tuple[FunctionEstimator, Problem]:
    """The estimator with the reference policy and the critic of an instance, and the problem there."""
    there = replace(estimator, reference=instance.reference, critic=instance.value)
    return there, Problem(instance, max(estimator.group_size, 2))


def certified(estimator: FunctionEstimator, instance: Instance, target: str) -> Certificate | None:
    """Its certificate there; None: it has none."""
    there, problem = at(estimator, instance)
    try:
        return exact_certificate(there, problem.enumeration, problem.target(target), problem.magnitude(target))
    except (ValueError, RuntimeError):  # a std of equal rewards that is divided by, say
        return None


def _shows(estimator: FunctionEstimator, instance: Instance, target: str) -> bool:
    seen = certified(estimator, instance, target)
    if seen is None or seen.verdict != "biased" or seen.relative_bias is None or seen.cosine is None:
        return False
    return seen.relative_bias > VISIBLE and seen.cosine < (1 - VISIBLE**2) ** 0.5


def written(estimator: FunctionEstimator, instance: Instance, target: str) -> dict[str, Any]:
    """The example in words and two tables: the responses, and both gradients by the logits."""
    there, problem = at(estimator, instance)
    certificate = certified(estimator, instance, target)
    mdp = instance.mdp
    size = f"V = {mdp.vocab_size}, T = {mdp.horizon}, K = {estimator.group_size}"
    policy = instance.policy
    assert isinstance(policy, TabularPolicy)
    mean = moments_by(there, problem.enumeration).mean
    names = "∇J" if target == "reward" else f"∇({target})"
    return {
        "words": f"{size}: {certificate}",
        "group_size": estimator.group_size,
        "responses": _responses(problem, with_reference="kl" in target),
        "gradients": {
            "head": ["logit of", "what comes out", f"what the name promises, {names}"],
            "lines": _logits(instance, [_by_node(instance, policy, each) for each in (mean, problem.target(target))]),
        },
        "instance": instance_to_dict(instance),
    }


def _responses(problem: Problem, with_reference: bool) -> dict[str, Any]:
    """Each response with its reward and log-probability, and that of the reference where it matters."""
    e = problem.enumeration
    logp, reference = e.leaf_logp()[0].sum(-1), e.leaf_logp_of(problem.instance.reference)[0].sum(-1)
    head = ["response", "reward", "log π", *(["log reference"] if with_reference else [])]
    lines = []
    for leaf, tokens in enumerate(e.tokens.tolist()):
        figures = [e.response_reward[0, leaf], logp[leaf], *([reference[leaf]] if with_reference else [])]
        named = [_name(token, problem.instance) for token in tokens if token != PAD]
        lines.append([" ".join(named), *(_short(float(figure)) for figure in figures)])
    return {"head": head, "lines": lines}


def _logits(instance: Instance, columns: list[Tensor]) -> list[list[str]]:
    """A line for the logit of every token after every prefix that some column is not zero at."""
    places = [
        f"{_name(token, instance)} {_after(prefix, instance)}"
        for _, prefix in instance.node_order
        for token in range(instance.mdp.vocab_size)
    ]
    return [
        [place, *(_short(float(column[row])) for column in columns)]
        for row, place in enumerate(places)
        if any(abs(float(column[row])) > 1e-12 for column in columns)
    ]


def _by_node(instance: Instance, policy: TabularPolicy, vector: Tensor) -> Tensor:
    """A vector in the order of the policy's parameters as one of nodes, V entries each."""
    levels = vector.split([level.numel() for level in policy.levels])
    return flatten(instance, [part.view_as(level) for part, level in zip(levels, policy.levels)])


def _name(token: int, instance: Instance) -> str:
    return "end" if token == instance.mdp.eos else "abcdefgh"[token - 1] if token else "z"


def _after(prefix: tuple[int, ...], instance: Instance) -> str:
    return f"after {' '.join(_name(token, instance) for token in prefix)}" if prefix else "first"


def _short(value: float) -> str:
    return "0" if abs(value) < 5e-13 else f"{value:.4g}"
