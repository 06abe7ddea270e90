"""Counter-examples: as small as they can be, found again with the same seed, and none where there is none."""

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp import Problem, random_instance
from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import Instance
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.counterexamples import TABLES, counter_example, shrunk, smallest_instance, visible
from llm_mdp.verify.ledger import claim_row

CLAIM = {claim.id: claim for claim in CLAIMS}


def rewards_differ(instance: Instance) -> bool:
    """A cheap thing to be shown: three responses of different rewards."""
    return len(Problem(instance).enumeration.response_reward.unique()) >= 3


def flat(entry: list | float) -> list[float]:
    return entry if isinstance(entry, list) else [entry]


def numbers(content: dict, tables: tuple[str, ...] = TABLES) -> list[float]:
    return [number for node in content["nodes"] for key in tables for number in flat(node[key])]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), horizon=st.integers(2, 3))
def test_no_number_of_a_shrunk_instance_can_be_zero_as_well(seed, horizon):
    content = instance_to_dict(shrunk(random_instance(2, horizon, seed=seed), rewards_differ))
    assert rewards_differ(instance_from_dict(content))
    assert all(number == int(number) and abs(number) < 4 for number in numbers(content))
    assert not any(numbers(content, ("value", "reference_logits", "logits")))
    for place, entry in product(range(len(content["nodes"])), range(2)):
        poorer = json.loads(json.dumps(content))
        poorer["nodes"][place]["token_reward"][entry] = 0.0
        assert poorer == content or not rewards_differ(instance_from_dict(poorer))


def test_the_smallest_shape_that_shows_it_is_taken():
    found = smallest_instance(rewards_differ)
    assert found is not None and (found.mdp.vocab_size, found.mdp.horizon, found.mdp.gamma) == (2, 2, 1.0)
    assert smallest_instance(lambda instance: False, tries=2) is None
    asked = []
    smallest_instance(lambda instance: bool(asked.append(instance.mdp.horizon)), shapes=((2, 3, 1.0),), tries=5)
    assert asked == [3] * 5


@pytest.mark.parametrize(("claim", "verdict"), [("rloo-eq36", "proportional"), ("abc-return-to-go", "biased")])
def test_a_counter_example_shows_the_verdict_as_expected_and_is_found_again(claim, verdict):
    found = counter_example(CLAIM[claim], verdict)
    assert found is not None
    row = claim_row(CLAIM[claim], Problem(found), sampled=None, seed=0, confidence=0.99)
    assert row["verdict"] == verdict and row["holds"] and row["relative_bias"] > 0.05
    again = counter_example(CLAIM[claim], verdict)
    assert again is not None and instance_to_dict(again) == instance_to_dict(found)
    assert sum(map(bool, numbers(instance_to_dict(found)))) <= 2


def test_what_nobody_could_see_is_no_counter_example():
    shown = {"verdict": "biased", "relative_bias": 0.3, "cosine": 0.99}
    assert visible(shown)
    assert not visible(shown | {"cosine": 0.9999}) and not visible(shown | {"relative_bias": 0.01})
    assert visible(shown | {"verdict": "proportional", "cosine": 1.0})
    assert visible({"verdict": "fails", "relative_bias": None}) and not visible(shown | {"relative_bias": None})
    for claim_id in ("grpo", "trepo-eq31"):
        found = counter_example(CLAIM[claim_id], "biased")
        assert found is not None
        assert visible(claim_row(CLAIM[claim_id], Problem(found), sampled=None, seed=0, confidence=0.99))


def test_a_theorem_has_no_counter_example():
    assert counter_example(CLAIM["corollary-1"], "biased") is None
