"""What is lost of what was gained, when an estimator is followed from where the exact gradient led."""

import pytest

from llm_mdp.exact.instances import random_instance, stream
from llm_mdp.verify.adversary.many import Many
from llm_mdp.verify.adversary.search import QUICK, Row, draw
from llm_mdp.verify.adversary.shapes import Numbers, Shape, instance_of
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.drift import drift, drifts

CLAIM = {claim.id: claim for claim in CLAIMS}


def row(name: str, **options) -> Row:
    return Row(CLAIM[name].build, target=CLAIM[name].target, **options)


def one_prompt_long_or_right(reward_long: float):
    """One prompt: to end at once is worth 1, to go on and then end `reward_long`."""
    shape = Shape(prompts=((),), order=None)
    numbers = Numbers.zeros(shape)
    numbers.reward[0, 0, 0] = 1.0
    numbers.reward[0, 1, 0] = reward_long
    return instance_of(shape, numbers, 0)


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_what_is_unbiased_stays_where_the_exact_gradient_led(name):
    found = drift(row(name), one_prompt_long_or_right(1.5))
    assert found.share == pytest.approx(0.0, abs=1e-3)
    assert found.exact == pytest.approx(1.5, abs=0.01)


def test_dividing_by_the_length_unlearns_what_is_long_and_right():
    """RM / len prefers 1 after one token to 1.5 after two, and leaves the better one."""
    found = drift(row("length-normalised"), one_prompt_long_or_right(1.5))
    assert found.exact == pytest.approx(1.5, abs=0.01)
    assert found.later == pytest.approx(1.0, abs=0.05)
    assert found.share is not None and found.share > 0.79
    assert "of what was gained is lost" in str(found)


def test_nothing_is_unlearned_where_the_longer_one_is_better_per_token_too():
    found = drift(row("length-normalised"), one_prompt_long_or_right(2.5))
    assert found.later == pytest.approx(2.5, abs=0.02)


def test_a_penalty_without_a_gradient_is_paid_in_full():
    """k1 as a loss has no expected gradient, so that J is followed alone and J - KL falls."""
    found = drift(row("kl-k1-loss"), one_prompt_long_or_right(2.5))
    assert found.later < found.exact - 0.4


def test_many_at_once_are_each_one():
    shape = Shape(horizon=3)
    numbers = draw(shape, 4, stream(0, "test"))
    claim = CLAIM["token-mean"]
    start, exact, later, _ = drifts(Many(shape, numbers, claim.build), QUICK)
    alone = drifts(Many(shape, numbers[[2]], claim.build), QUICK)
    for together, one in zip((start, exact, later), alone):
        assert float(together[2]) == pytest.approx(float(one), abs=1e-9)


@pytest.mark.slow
def test_a_policy_that_cannot_be_followed_is_refused_in_words():
    from dataclasses import replace

    from llm_mdp_agents.lm.policy import tiny_transformer

    instance = random_instance(3, 3)
    with pytest.raises(ValueError, match="tables, and n-gram tables of one step, can be followed"):
        drift(row("rloo"), replace(instance, policy=tiny_transformer(3, 3, 0)))
