"""Rewards that are changed before they are used: by length, by a discount at the end, by the temperature of a draw."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import REINFORCE
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.credit import terminal
from llm_mdp.estimators.practices import LengthPenalty, OverlongShaping, Tempered
from llm_mdp.estimators.returns import discounted_to_go
from llm_mdp.estimators.theorems import TerminalDiscounted
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.hidden_rewards import LastTokenReward, LengthCost, SumReward
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem

few = settings(deadline=None, max_examples=20)


@st.composite
def instances(draw, eos: tuple[int | None, ...] = (0, 1, None), gamma: tuple[float, ...] = (1.0, 0.7)) -> Instance:
    shape = {"eos": draw(st.sampled_from(eos)), "gamma": draw(st.sampled_from(gamma))}
    shape |= {"n_prompts": draw(st.integers(1, 2))}
    return random_instance(draw(st.integers(2, 3)), draw(st.integers(1, 4)), **shape, seed=draw(st.integers(0, 2**20)))


def judged(estimator: Estimator, instance: Instance, target: str = "reward"):
    p = Problem(instance)
    return exact_certificate(estimator, p.enumeration, p.target(target), p.magnitude(target))


@few
@given(instances(gamma=(1.0,)))
def test_a_price_for_tokens_is_the_reward_of_another_task(instance):
    """REINFORCE where every token costs 0.1 has the same expected gradient, and is unbiased there."""
    mdp = instance.mdp
    costly = replace(instance, mdp=replace(mdp, token_reward=SumReward((mdp.token_reward, LengthCost(0.1)))))
    here, there = Problem(instance), Problem(costly)
    found = exact_moments(LengthPenalty(), here.enumeration).mean
    torch.testing.assert_close(found, exact_moments(REINFORCE(), there.enumeration).mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, there.target("reward"), rtol=1e-9, atol=1e-12)


@few
@given(instances())
def test_shaped_rewards_are_unbiased_for_what_they_shape(instance):
    overlong = OverlongShaping(horizon=instance.mdp.horizon)
    assert judged(overlong, instance, "reward - overlong").verdict == "unbiased"
    assert judged(LengthPenalty(price=0.3), instance, "reward - 0.3 length").verdict == "unbiased"


def test_the_penalty_close_to_the_cap_by_hand():
    """T = 4: nothing at two tokens, a half at three, one at four."""
    p = Problem(random_instance(2, 4, seed=0))
    shaped, plain = (weights(estimator, p) for estimator in (OverlongShaping(horizon=4), REINFORCE()))
    cost = dict(zip(p.enumeration.length.tolist(), (plain - shaped).tolist()))
    assert cost == pytest.approx({1: 0, 2: 0, 3: 0.5, 4: 1})


def weights(estimator: Estimator, p: Problem) -> torch.Tensor:
    """The weight of the first token of every response to the only prompt."""
    n = p.enumeration.tree.n_leaves
    groups = Groups(torch.zeros(n, dtype=torch.int64), torch.arange(n)[:, None], torch.ones(n, dtype=torch.float64))
    return estimator.advantages(estimator.collect(ExactSampler(p.enumeration, groups)))[:, 0, 0]


# --- the last token's reward where γ < 1 ------------------------------------------------------------------------------


@few
@given(instances(eos=(None,)))
def test_a_discounted_last_reward_shrinks_the_gradient_at_fixed_length(instance):
    """γᵀ⁻¹ once, or twice with γᵗ⁻¹ Gₜ: a constant factor where all responses have T tokens."""
    mdp = instance.mdp
    for discounted, power in ((False, 1), (True, 2)):
        found = judged(TerminalDiscounted(gamma=mdp.gamma, discounted=discounted), instance)
        assert found.verdict in ("unbiased", "proportional")
        assert found.scale == pytest.approx(mdp.gamma ** (power * (mdp.horizon - 1)), rel=1e-9)


class TerminalRepaired(Estimator):
    """RM(W) / γˡᵉⁿ⁻¹ on the last token, γᵗ⁻¹ Gₜ on each."""

    gamma = 0.7

    def advantages(self, evidence):
        reward, mask = evidence.response_reward, evidence.rollouts.mask
        last = reward / self.gamma ** (evidence.rollouts.length - 1).double()
        return discounted_to_go(terminal(last, mask), mask, self.gamma)


@few
@given(instances(gamma=(0.7,)))
def test_the_reward_divided_by_the_discount_is_right(instance):
    assert judged(TerminalRepaired(), instance).verdict == "unbiased"


# --- temperature ------------------------------------------------------------------------------------------------------


def raised(instance: Instance, by: float) -> Instance:
    """The same with a constant on every response."""
    mdp = instance.mdp
    constant = LastTokenReward(lambda prompt, tokens, mask: torch.full(tokens.shape[:-1], by, dtype=torch.float64))
    reward = SumReward((mdp.token_reward, constant))
    return replace(instance, mdp=replace(mdp, token_reward=reward))


def tempered(instance: Instance, centred: bool, temperature: float = 0.6) -> torch.Tensor:
    p = Problem(instance)
    critic = p.given.drawn_value(temperature) if centred else None
    return exact_moments(Tempered(temperature=temperature, critic=critic), p.enumeration).mean


@few
@given(instances(gamma=(1.0,)))
def test_the_level_of_the_reward_counts_in_the_raw_row_and_not_in_the_centred_one(instance):
    higher = raised(instance, 5.0)
    torch.testing.assert_close(tempered(higher, True), tempered(instance, True), rtol=1e-9, atol=1e-11)
    assert float((tempered(higher, False) - tempered(instance, False)).norm()) > 1e-3
    torch.testing.assert_close(tempered(instance, True, 1.0), Problem(instance).target("reward"), rtol=1e-9, atol=1e-12)
