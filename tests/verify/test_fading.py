"""What is said of a bias over the size of the batch, and what is not."""

import math

import pytest

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.fading import fading, over_prompts
from llm_mdp.verify.problem import Problem

CLAIM = {claim.id: claim for claim in CLAIMS}
PROBLEM = Problem(random_instance(2, 2, seed=1, success=0.3), group_size=2)


def of_sines(sines: dict[int, float]) -> dict[int, Certificate]:
    return {p: Certificate("biased", 0.5, 0.6, math.sqrt(1 - sine**2), 1.0) for p, sine in sines.items()}


def test_a_power_is_found_with_its_rate():
    found = fading(of_sines({p: 0.2 * p**-0.5 for p in (1, 2, 4, 8)}))
    assert (
        found.kind == "falls"
        and found.rate == pytest.approx(0.5, abs=1e-4)
        and found.words().startswith("falls like P^-0.50")
    )
    assert found.error == pytest.approx(0.0, abs=1e-4)


def test_a_limit_is_found():
    found = fading(of_sines({p: 0.1 + 0.05 / p for p in (1, 2, 4, 8, 16)}))
    assert found.kind == "stays" and found.limit == pytest.approx(0.1, rel=0.01)
    assert fading(of_sines(dict.fromkeys((1, 2, 4), 0.3)), "direction").kind == "stays"


@pytest.mark.parametrize(
    "sines",
    [
        {1: 0.3, 2: 0.2},
        {1: 0.3, 2: 0.1, 4: 0.3},
        {1: 0.1, 2: 0.09, 4: 0.06, 8: 0.034},
        {1: 0.01, 2: 0.02, 4: 0.04},
        {1: 1e-7, 2: 5e-8, 4: 2e-8},
    ],
    ids=["two sizes", "up and down", "not yet a power", "grows", "not resolved"],
)
def test_what_the_sizes_do_not_say_is_undecided(sines):
    found = fading(of_sines(sines))
    assert found.kind == "undecided" and found.reason in found.words()


def test_an_unknown_figure_is_undecided_and_a_direction_that_is_right_is_zero():
    unknown = of_sines({1: 0.1, 2: 0.1}) | {4: Certificate("undecided", None, None, None, None, reason="rounding")}
    assert fading(unknown).kind == "undecided" and "4" in fading(unknown).reason
    right = {p: Certificate("proportional", 0.5, 0.5, 1.0, 1.0) for p in (1, 2, 4)}
    assert fading(right).kind == "none" and fading(right, "bias").kind == "stays"


@pytest.mark.parametrize(
    ("id", "direction", "bias"),
    [
        ("rloo", "none", "none"),
        ("length-normalised-loo", "stays", "stays"),
        ("token-mean-loo", "falls", "stays"),
        ("remark-4-batch", "falls", "stays"),
    ],
)
def test_statistics_of_the_batch_die_with_it_and_those_of_a_response_stay(id, direction, bias):
    certificates = over_prompts(CLAIM[id].build(PROBLEM), PROBLEM, (1, 2, 4, 8, 16))
    assert list(certificates) == [1, 2, 4, 8, 16]
    found = fading(certificates)
    assert (found.kind, fading(certificates, "bias").kind) == (direction, bias)
    if direction == "falls":
        assert found.rate == pytest.approx(1.0, abs=0.1)


def test_whitening_over_64_responses_is_nearly_right_and_falls_like_one_over_n():
    """Remark 4's normalisation over a batch of N = P K: in the direction its error is gone with large batches, and at
    one prompt it makes no difference how N is made up."""

    def at(group_size: int, prompts: int = 1) -> Certificate:
        problem = Problem(PROBLEM.instance, group_size)
        estimator = CLAIM["remark-4-batch"].build(problem)
        target, size = problem.target("reward"), problem.magnitude("reward")
        return exact_certificate(estimator, problem.enumeration, target, size, prompts=prompts)

    by_size = {size: at(size) for size in (4, 8, 16, 32, 64)}
    found = fading(by_size)
    assert found.kind == "falls" and found.rate == pytest.approx(1.0, abs=0.1)
    assert found.values[-1] < found.values[0] / 10
    for group_size, prompts in ((4, 4), (8, 8)):
        one, other = by_size[group_size * prompts], at(group_size, prompts)
        for name in ("scale", "cosine", "relative_bias", "trace_covariance"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9), name


def test_numbers_of_prompts_that_are_too_many_are_left_out():
    problem = Problem(random_instance(3, 2, seed=1), group_size=3)
    estimator = CLAIM["reinforce++"].build(problem)
    assert list(over_prompts(estimator, problem, (1, 64))) == [1]
    with pytest.raises(TooLarge):
        over_prompts(estimator, problem, (64,))
