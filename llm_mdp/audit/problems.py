"""What is audited on: three small instances, as some faults show on one of them only."""

from typing import Literal

from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.verify.problem import Problem

RIGHT_OR_WRONG: Literal["right-or-wrong"] = "right-or-wrong"


def instances() -> dict[str, Instance]:
    """Dense random rewards, the same with two prompts, and rewards of 0 or 1 with two prompts."""
    return {
        "dense": random_instance(3, 3, seed=1),
        "two-prompts": random_instance(3, 3, n_prompts=2, seed=2),
        RIGHT_OR_WRONG: random_instance(3, 3, n_prompts=2, success=0.4, seed=5),
    }


def problems(group_size: int = 3) -> dict[str, Problem]:
    """The problems of these instances, for groups of K."""
    return {name: Problem(instance, group_size) for name, instance in instances().items()}
