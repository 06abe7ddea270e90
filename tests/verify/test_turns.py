"""Conversations: an environment draws some of the tokens. The ledger's figures against an independent program, and what
must hold on all of them."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import claim_row, exit_status, run_ledger
from llm_mdp.verify.problem import Problem
from tests.second_opinion_turns import conversation

BY_ID = {claim.id: claim for claim in CLAIMS}
TURNS = [claim.id for claim in CLAIMS if claim.id.startswith("turn-credit")]

CASES = {
    "two turns": {"vocab_size": 3, "horizon": 3, "gamma": 0.9, "environment_at": (1,), "seed": 0},
    "two tokens of the environment": {
        "vocab_size": 2, "horizon": 5, "eos": 1, "gamma": 0.7, "environment_at": (1, 2), "seed": 1,
    },
    "three turns": {"vocab_size": 2, "horizon": 5, "eos": 0, "environment_at": (1, 3), "seed": 2},
    "the environment has the last word": {
        "vocab_size": 2, "horizon": 3, "eos": None, "gamma": 0.8, "environment_at": (2,), "seed": 3,
    },
    "one turn": {"vocab_size": 3, "horizon": 2, "gamma": 0.9, "seed": 4},
}  # fmt: skip
GROUP_SIZE = {"two turns": 2}
"""3 elsewhere."""


def row(id: str, problem: Problem) -> dict:
    return claim_row(BY_ID[id], problem, sampled=None, seed=0, confidence=0.99)


@pytest.mark.parametrize("name", CASES)
def test_figures_of_conversations_agree_with_an_independent_program(name):
    instance = random_instance(**CASES[name])
    problem = Problem(instance, group_size=GROUP_SIZE.get(name, 3))
    opinion = conversation(json.loads(json.dumps(instance_to_dict(instance))), problem.group_size, problem.beta)
    assert problem.gradient[0] == pytest.approx(opinion["J"], abs=1e-12)
    assert run_ledger(problem, [BY_ID["reinforce"]])["gradient"] == pytest.approx(opinion["grad"], abs=1e-12)
    rows = opinion["turns"] | opinion["others"]
    assert set(opinion["turns"]) == set(TURNS)
    for id, expected in rows.items():
        found = row(id, problem)
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-8, abs=1e-9), id


@pytest.mark.parametrize(
    "kind", ["discounted", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("no end token", "two prompts"))]
)
def test_every_row_says_what_theory_expects_of_conversations(kind):
    shape = {
        "discounted": {"vocab_size": 3, "horizon": 3, "gamma": 0.9, "environment_at": (1,)},
        "no end token": {"vocab_size": 2, "horizon": 4, "eos": None, "environment_at": (1, 3)},
        "two prompts": {"vocab_size": 3, "horizon": 3, "gamma": 0.8, "n_prompts": 2, "environment_at": (1,)},
    }[kind]
    document = run_ledger(Problem(random_instance(**shape, seed=6), group_size=2))
    assert exit_status(document) == 0
    silent = {id for id, found in document["claims"].items() if found["verdict"] == "not computed"}
    assert silent == {"prime", "dpo-optimum"}, "these optima are no policies where an environment writes, too"
    assert "environment" in document["claims"]["prime"]["reason"]


def test_turn_rows_have_the_verdicts_of_the_written_table():
    verdicts = {id: row(id, Problem(random_instance(3, 3, gamma=0.9, environment_at=(1,))))["verdict"] for id in TURNS}
    assert verdicts == {
        "turn-credit-response": "unbiased",
        "turn-credit-values": "unbiased",
        "turn-credit-reached": "biased",
        "turn-credit-reached-to-go": "biased",
        "turn-credit-others": "unbiased",
    }


def test_a_mean_over_those_that_reached_a_turn_is_harmless_where_all_do():
    problem = Problem(random_instance(2, 4, eos=None, environment_at=(1,), seed=3))
    assert row("turn-credit-reached-to-go", problem)["verdict"] == "proportional"
    assert row("turn-credit-reached-to-go", problem)["scale"] == pytest.approx(2 / 3)
    assert row("turn-credit-reached", problem)["verdict"] == "biased"


@st.composite
def conversations(draw):
    """One or two of the places after the first token are the environment's."""
    horizon = draw(st.integers(2, 4))
    at = draw(st.sets(st.integers(1, horizon - 1), min_size=1, max_size=2))
    vocab_size = draw(st.integers(2, 3))
    eos = draw(st.none() | st.integers(0, vocab_size - 1))
    shape = {"gamma": draw(st.sampled_from([1.0, 0.7])), "n_prompts": draw(st.integers(1, 2)), "eos": eos}
    seed = draw(st.integers(0, 2**16))
    return random_instance(vocab_size, horizon, **shape, environment_at=tuple(sorted(at)), seed=seed)


ONE_RESPONSE = [
    claim.id for claim in CLAIMS
    if claim.entry and not claim.entry.compares and claim.id != "ppo-second-epoch-new-theta"
]  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_what_is_unbiased_is_so_under_stochastic_transitions(instance):
    problem = Problem(instance, group_size=2)
    assume(problem.has_gradient())
    for id in (*ONE_RESPONSE, "rloo", "turn-credit-others"):
        expected = BY_ID[id].expected(problem)
        if expected in ("unbiased", "proportional"):
            assert row(id, problem)["holds"] is not False, id


def test_the_reference_and_the_critic_of_the_environment_s_nodes_do_not_matter_to_penalties():
    content = instance_to_dict(random_instance(3, 3, environment_at=(1,), seed=5))
    ids = ("kl-k1-reward", "rto", "gae-wrong-0")
    before = [row(id, Problem(instance_from_dict(content))) for id in ids]
    for node in content["nodes"]:
        if len(node["prefix"]) == 1:
            node["reference_logits"], node["value"] = [5.0, -5.0, 0.0], 9.0
    after = [row(id, Problem(instance_from_dict(content))) for id in ids]
    for one, other in zip(before, after):
        assert one["trace_covariance"] == pytest.approx(other["trace_covariance"], rel=1e-12)
        assert one["relative_bias"] == pytest.approx(other["relative_bias"], rel=1e-9, abs=1e-12)
