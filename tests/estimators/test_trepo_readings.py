"""Readings of Algorithm 1: how much of the gradient of each step is left, in closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import TRePO, ramp
from llm_mdp.estimators.boundaries import AtSteps, EveryNTokens
from llm_mdp.estimators.trepo_readings import InterpolatedValues, PooledDraws, RandomStep
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**20)


def by_step(p: Problem, gradient: torch.Tensor) -> list[torch.Tensor]:
    """A gradient by the logits of a table, one vector a step."""
    assert isinstance(p.instance.policy, TabularPolicy)
    return list(gradient.split([level.numel() for level in p.instance.policy.levels]))


@few
@given(st.integers(2, 3), st.integers(1, 4), st.sampled_from([1.0, 0.8]), st.integers(1, 3), st.booleans(), seeds)
def test_pooling_leaves_a_fixed_part_of_each_step_at_fixed_length(vocab_size, horizon, gamma, draws, own, seed):
    """Theorem. Let all responses have T tokens, M draws a step. Ū of step t + 1 has the whole signal of wₜ. Of Ū of
    step t the M draws of step t itself have none, the others all of it: with W among them M of (T - t + 1) M + 1 have
    none, without W M of (T - t + 1) M. The difference is what is left of the gradient."""
    p = Problem(random_instance(vocab_size, horizon, eos=None, gamma=gamma, seed=seed))
    kind = TRePO if own else PooledDraws
    mean = exact_moments(kind(temperatures=(1.0,) * draws, pooled=True), p.enumeration).mean
    for t, (found, true) in enumerate(zip(by_step(p, mean), by_step(p, p.target("reward")), strict=True), start=1):
        left = draws / ((horizon - t + 1) * draws + own)
        torch.testing.assert_close(found, left * true, rtol=1e-9, atol=1e-12)


@few
@given(st.integers(1, 3), st.integers(1, 2), seeds)
def test_interpolated_values_leave_one_over_the_length_of_segments(n, segments, seed):
    p = Problem(random_instance(2, n * segments, eos=None, seed=seed))
    found = exact_certificate(
        InterpolatedValues(boundary=EveryNTokens(n), critic=p.exact_u), p.enumeration, p.target("reward")
    )
    assert found.verdict in ("proportional", "unbiased") and found.scale == pytest.approx(1 / n, rel=1e-9)


def test_interpolated_values_of_one_response_by_hand():
    """D = {1, 3}, four tokens and then three: the last segment has two tokens or one."""
    p = Problem(random_instance(2, 4, seed=2))
    e = p.enumeration
    cut, whole = (
        torch.where(e.mask, kind(boundary=EveryNTokens(2), critic=p.exact_u).advantages(evidence(p))[0], 0.0)
        for kind in (InterpolatedValues, TRePO)
    )
    four, three = e.length == 4, e.length == 3
    torch.testing.assert_close(2 * cut[four], whole[four])
    torch.testing.assert_close(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64) * cut[three], whole[three])
    assert int(four.sum()) > 0 and int(three.sum()) > 0


def evidence(p: Problem):
    """All responses to the only prompt as one batch, with their exact values."""
    n = p.enumeration.tree.n_leaves
    groups = Groups(torch.zeros(1, dtype=torch.int64), torch.arange(n)[None], torch.ones(1, dtype=torch.float64))
    return TRePO(group_size=n, critic=p.exact_u).collect(ExactSampler(p.enumeration, groups))


@few
@given(st.integers(2, 3), st.integers(1, 4), st.sampled_from([0, 1, None]), st.integers(1, 2), seeds)
def test_a_step_drawn_in_advance_is_as_good_as_any_chosen_one(vocab_size, horizon, eos, n_prompts, seed):
    """Unbiased, and the mean of TRePO over the steps that may be drawn."""
    p = Problem(random_instance(vocab_size, horizon, eos=eos, n_prompts=n_prompts, seed=seed))
    found = exact_certificate(RandomStep(critic=p.exact_u, horizon=horizon), p.enumeration, p.target("reward"))
    assert found.verdict == "unbiased"
    single = evidence(p)
    each = [TRePO(boundary=AtSteps((step,)), critic=p.exact_u).advantages(single) for step in range(horizon)]
    mean = RandomStep(critic=p.exact_u, horizon=horizon).advantages(single)
    torch.testing.assert_close(mean, torch.stack(each).mean(0), rtol=1e-12, atol=1e-12)


@few
@given(st.integers(2, 3), seeds)
def test_a_step_of_the_response_shows_from_horizon_3_on(vocab_size, seed):
    """Two tokens or one: wherever the step is, the first token's weight has the same expectation. From three tokens on
    the number of steps to draw from tells how the response went on."""
    for horizon, verdict in ((2, "unbiased"), (3, "biased")):
        p = Problem(random_instance(vocab_size, horizon, seed=seed))
        estimator = RandomStep(critic=p.exact_u, horizon=horizon, of_response=True)
        assert exact_certificate(estimator, p.enumeration, p.target("reward")).verdict == verdict


def test_where_steps_of_the_response_are_drawn_all_have_equal_chances():
    """Weights of a three-token response, from those with the step at each of its places."""
    p = Problem(random_instance(2, 4, seed=3))
    row = int((p.enumeration.length == 3).nonzero()[0])
    single = evidence(p)
    each = [TRePO(boundary=AtSteps((step,)), critic=p.exact_u).advantages(single)[0, row] for step in range(3)]
    found = RandomStep(critic=p.exact_u, horizon=4, of_response=True).advantages(single)[0, row]
    torch.testing.assert_close(found, torch.stack(each).mean(0))


def test_a_ramp_of_temperatures_is_the_mean_of_its_values():
    """The expected gradient is linear in the values: that of the ramp is the mean over its temperatures."""
    p = Problem(random_instance(3, 3, gamma=0.9, seed=5))
    each = [exact_moments(TRePO(temperatures=(temperature,)), p.enumeration).mean for temperature in ramp(4)]
    together = exact_moments(TRePO(temperatures=ramp(4)), p.enumeration).mean
    torch.testing.assert_close(together, torch.stack(each).mean(0), rtol=1e-10, atol=1e-13)
    assert float((each[0] - each[-1]).norm()) > 1e-2 * float(together.norm())


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_algorithm_1_with_one_boundary_only_shrinks(branches):
    """At horizon 2 D is {1}: nothing to interpolate, and W is one of M + 1 in the prompt's value."""
    p = Problem(random_instance(3, 2, seed=6))
    printed = TRePO(boundary=EveryNTokens(2), temperatures=ramp(branches), pooled=True, interpolated=True)
    found = exact_certificate(printed, p.enumeration, p.target("reward"))
    assert found.verdict == "proportional" and found.scale == pytest.approx(branches / (branches + 1), rel=1e-9)
