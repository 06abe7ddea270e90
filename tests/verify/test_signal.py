"""Tokens to signal: the same for estimators that differ in scale alone, and undefined where there is no signal."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp import GRPO, RLOO, Problem, random_instance
from llm_mdp.variance.measurement import exact_measurement
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.ledger import claim_row, find_claims
from llm_mdp.verify.signal import tokens_to_signal


def rows(problem: Problem, *ids: str) -> list[dict]:
    return [claim_row(claim, problem, sampled=None, seed=0, confidence=0.99) for claim in find_claims(ids)]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), horizon=st.integers(1, 3), gamma=st.sampled_from([1.0, 0.8]))
def test_estimators_that_differ_in_scale_alone_need_the_same_tokens(seed, horizon, gamma):
    """As covariances go, one ninth of a gradient would look 81 times better."""
    problem = Problem(random_instance(2, horizon, gamma=gamma, seed=seed))
    found = rows(problem, "rloo", "grpo-mean", "dr-grpo")
    needed = [row["tokens_to_signal"] for row in found]
    assert needed == pytest.approx([needed[0]] * 3, rel=1e-6)
    assert found[2]["trace_covariance"] == pytest.approx(found[0]["trace_covariance"] * (2 / 3 / horizon) ** 2)


def test_the_ledger_and_the_variance_command_say_the_same():
    problem = Problem(random_instance(3, 3, seed=4))
    for estimator in (RLOO(group_size=3), GRPO(group_size=3)):
        certificate = exact_certificate(estimator, problem.enumeration, problem.target("reward"))
        measured = exact_measurement(estimator, problem.enumeration, problem.target("reward"))
        assert certificate.tokens_to_signal == pytest.approx(measured.spread.tokens_to_signal, rel=1e-9)
        assert certificate.tokens == measured.spread.tokens


def test_at_the_tokens_to_signal_the_noise_of_a_batch_is_as_large_as_the_gradient():
    problem = Problem(random_instance(3, 3, gamma=0.9, seed=2))
    size = float(problem.target("reward").square().sum())
    for row in rows(problem, "rloo", "trepo", "reinforce"):
        estimates = row["tokens_to_signal"] / row["tokens"]
        assert row["trace_covariance"] / estimates == pytest.approx(size, rel=1e-9)


def test_without_a_gradient_or_without_a_count_of_tokens_nothing_is_said():
    penalty, epoch, optimum = rows(Problem(random_instance()), "kl-k1-loss", "ppo-second-epoch", "dpo-optimum")
    assert penalty["tokens_to_signal"] is None and penalty["tokens"] > 1
    assert epoch["tokens_to_signal"] is None and epoch["tokens"] is None
    assert optimum["tokens_to_signal"] is None
    assert math.isinf(tokens_to_signal(1.0, 3.0, 0.0)) and math.isinf(tokens_to_signal(1.0, 3.0, -0.1))
