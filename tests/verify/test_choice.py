"""Moments that several claims share."""

from dataclasses import dataclass

import pytest

from llm_mdp.estimators.algorithms import REINFORCE, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify import choice
from llm_mdp.verify.choice import moments_by, shared_moments
from llm_mdp.verify.claims import Claim, always
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.problem import Problem


def test_equal_estimators_are_certified_once(monkeypatch):
    enumeration, counted = Problem(random_instance(3, 3)).enumeration, []
    exact = choice.exact_moments
    monkeypatch.setattr(choice, "exact_moments", lambda *given: counted.append(given) or exact(*given))
    once, again = (shared_moments(RLOO(group_size=2), enumeration) for _ in range(2))
    assert again is once and len(counted) == 1
    expected = moments_by(RLOO(group_size=2), enumeration)
    assert once.trace_covariance == pytest.approx(expected.trace_covariance, rel=1e-12)
    others = [shared_moments(each, enumeration) for each in (RLOO(group_size=3), REINFORCE(), REINFORCE(baseline=1.0))]
    assert len({each.trace_covariance for each in (once, *others)}) == 4


@dataclass(frozen=True)
class Scaled(Estimator):
    """An estimator with a number that is no field: two compare as equal."""

    def times(self, factor):
        object.__setattr__(self, "factor", factor)
        return self

    def advantages(self, evidence):
        return self.factor * evidence.response_reward[..., None]


def test_users_estimators_that_only_look_equal_are_certified_each():
    problem = Problem(random_instance(3, 3))
    assert Scaled().times(1.0) == Scaled().times(2.0)
    rows = [
        claim_row(
            Claim("Scaled", "yours", "", "", always("unbiased"), "", estimator=Scaled().times(factor)),
            problem,
            sampled=None,
            seed=0,
            confidence=0.99,
        )
        for factor in (1.0, 2.0)
    ]
    assert [row["verdict"] for row in rows] == ["unbiased", "proportional"]
