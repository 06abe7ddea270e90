"""Functions as estimators: the catalogue's certificates come out again, however a function is written."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp import GRPO, PPO, RLOO, EstimatorError, ReMax, random_instance
from llm_mdp.audit.adapter import advantages_of, loss_of, rewards_of
from llm_mdp.audit.certify import certificate_of
from llm_mdp.audit.problems import problems
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from tests.audit.functions import (
    RLOO_VARIANTS,
    gae,
    grpo,
    grpo_with_items,
    k1_in_reward,
    remax,
    rewards_in_place,
    rloo,
    surrogate,
    token_mean,
    token_mean_in_place,
    token_mean_with_items,
)

TINY = Problem(random_instance(2, 2, seed=1), group_size=2)
PROBLEM = Problem(random_instance(3, 3, seed=1), group_size=2)
RIGHT_OR_WRONG = problems(2)["right-or-wrong"]


def same(found, estimator, problem=PROBLEM, prompts: int = 1) -> bool:
    expected = exact_certificate(estimator, problem.enumeration, problem.target(), prompts=prompts)
    assert found.verdict == expected.verdict
    for figure in ("relative_bias", "scale", "cosine", "trace_covariance"):
        assert getattr(found, figure) == pytest.approx(getattr(expected, figure), rel=1e-9, abs=1e-9), figure
    return True


@pytest.mark.parametrize("function", RLOO_VARIANTS)
@pytest.mark.parametrize("problem", [PROBLEM, RIGHT_OR_WRONG], ids=["dense", "right-or-wrong"])
def test_rloo_however_it_is_written(function, problem):
    estimator = advantages_of(function, problem)
    assert estimator.together
    assert same(certificate_of(estimator, problem), RLOO(group_size=2), problem)


@pytest.mark.parametrize("function", [grpo, grpo_with_items])
def test_grpo(function):
    assert same(certificate_of(advantages_of(function, PROBLEM), PROBLEM), GRPO(group_size=2))


def test_grpo_as_a_loss():
    estimator = loss_of(surrogate, PROBLEM)
    assert estimator.together
    assert same(certificate_of(estimator, PROBLEM), GRPO(group_size=2, reduction="sequence_mean", clip_low=0.2))


@pytest.mark.parametrize("function", [token_mean, token_mean_with_items, token_mean_in_place, rewards_in_place])
def test_a_mean_over_the_batch_is_asked_for_world_by_world(function):
    estimator = loss_of(function, PROBLEM)
    assert not estimator.together
    assert same(certificate_of(estimator, PROBLEM), RLOO(group_size=2, reduction="token_mean"))


def test_several_prompts_in_one_update():
    ours = RLOO(group_size=2, reduction="token_mean")
    assert same(certificate_of(loss_of(token_mean, TINY), TINY, prompts=3), ours, TINY, prompts=3)
    assert same(certificate_of(advantages_of(grpo, TINY), TINY, prompts=3), GRPO(group_size=2), TINY, prompts=3)


def test_optional_parts_are_collected_when_they_are_read():
    estimator = advantages_of(remax, PROBLEM, group_size=1)
    assert estimator.needs == ("greedy_reward",)
    assert same(certificate_of(estimator, PROBLEM), ReMax(group_size=1))
    estimator = advantages_of(gae, PROBLEM, group_size=1)
    assert estimator.needs == ("value",)
    assert same(certificate_of(estimator, PROBLEM), PPO(group_size=1, critic=PROBLEM.instance.value, lam=0.6))
    assert advantages_of(rloo, PROBLEM).needs == ()


def test_a_part_that_is_rarely_read_is_collected_when_it_is():
    rare = PROBLEM.enumeration.response_reward.min()

    def rarely(batch):
        advantage = batch.response_reward.clone()
        if len(advantage) == 2 and bool((advantage == rare).any()):
            advantage -= batch.value[:, 0]
        return advantage

    estimator = replace(advantages_of(rarely, PROBLEM), together=False, needs=())
    assert certificate_of(estimator, PROBLEM).verdict == "biased"


def test_calls_are_of_some_thousand_rows(monkeypatch):
    monkeypatch.setattr("llm_mdp.audit.adapter.ROWS", 70)
    seen = []

    def counted(batch):
        seen.append(len(batch.logp))
        assert batch.group.tolist() == [row // 2 for row in range(len(batch.logp))]
        return grpo(batch)

    estimator = advantages_of(counted, PROBLEM)
    assert same(certificate_of(estimator, PROBLEM), GRPO(group_size=2))
    assert estimator.together and max(seen) == 70 and 120 * 2 % 70 in seen


def test_a_kl_in_the_reward_is_exact():
    estimator = advantages_of(k1_in_reward, PROBLEM)
    assert estimator.needs == ("reference_logp",)
    assert certificate_of(estimator, PROBLEM, "reward - 0.7 kl").verdict == "unbiased"
    assert certificate_of(estimator, PROBLEM).verdict == "biased"


def test_a_function_of_rewards():
    def centred(rewards):
        return rewards - rewards.mean(-1, keepdim=True)

    found = certificate_of(rewards_of(centred, PROBLEM), PROBLEM)
    assert found.verdict == "proportional" and found.scale == pytest.approx(0.5, rel=1e-12)


def test_coupling_over_the_batch_is_found():
    def over_everything(rewards):
        return rewards - rewards.mean()

    estimator = rewards_of(over_everything, PROBLEM)
    assert not estimator.together
    assert certificate_of(estimator, PROBLEM).scale == pytest.approx(0.5, rel=1e-12)


def test_coupling_that_only_equal_responses_show_is_found():
    """Groups without signal are left out of the mean: the others count for more."""

    def without_dead_groups(batch):
        reward = batch.response_reward.view(-1, batch.group_size)
        alive = reward.std(-1) > 0
        kept = max(int(alive.sum()), 1)
        return rloo(batch) * alive.repeat_interleave(batch.group_size) * len(alive) / kept

    assert not advantages_of(without_dead_groups, PROBLEM, group_size=4).together


@pytest.mark.parametrize(
    "problem, maximum",
    [(name, "length") for name in problems()] + [("dense", "reward"), ("dense", "lowest"), ("two-prompts", "reward")],
)
def test_a_maximum_over_the_batch_is_coupling(problem, maximum):
    """As a constant divisor that is the longest response of a micro-batch. (Where rewards are right or wrong, a group
    that lacks one of the two has no signal, so their maximum shows nothing.)"""

    def divided(batch):
        reward = batch.response_reward
        largest = {"length": batch.mask.sum(-1).max(), "reward": reward.max() + 9, "lowest": 9 - reward.min()}[maximum]
        return rloo(batch) / largest

    assert not advantages_of(divided, problems()[problem]).together


def draw_torch():
    return torch.rand(())


def draw_numpy():
    return np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("draw", [draw_torch, draw_numpy, random.random])
def test_hidden_randomness_is_refused_in_words(draw):
    states = torch.get_rng_state(), random.getstate()

    def noisy(batch):
        return batch.response_reward * (1 + draw())

    with pytest.raises(EstimatorError, match=r"^noisy gave two answers to the same batch; it draws random numbers"):
        advantages_of(noisy, PROBLEM)
    if draw is not draw_torch:
        assert torch.equal(states[0], torch.get_rng_state())
    if draw is not random.random:
        assert states[1] == random.getstate()


def test_memory_is_refused_in_words():
    seen = []

    def moving_mean(batch):
        seen.append(float(batch.response_reward.mean()))
        return batch.response_reward - sum(seen) / len(seen)

    with pytest.raises(EstimatorError, match=r"^moving_mean gave two answers .* or remembers earlier calls"):
        advantages_of(moving_mean, PROBLEM)


def test_a_seed_of_its_own_is_no_hidden_randomness():
    def seeded(batch):
        generator = torch.Generator().manual_seed(0)
        return batch.response_reward + torch.rand(1, generator=generator)

    assert certificate_of(advantages_of(seeded, PROBLEM), PROBLEM).verdict == "unbiased"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: loss_of(lambda batch: batch.logp.detach().sum(), PROBLEM, name="f"), "does not depend on batch.logp"),
        (lambda: loss_of(lambda batch: batch.logp.sum(-1), PROBLEM, name="f"), r"f returned a tensor of shape \(2,\)"),
        (lambda: loss_of(lambda batch: 0.5, PROBLEM, name="f"), r"f returned 0\.5; a loss is a tensor"),
        (lambda: loss_of(lambda batch: (batch.logp.sum(), {}), PROBLEM, name="f"), "f returned a tuple; a loss is"),
        (lambda: loss_of(lambda batch: (batch.logp * 0).sqrt().sum(), PROBLEM, name="f"), "f: .* is not finite"),
        (lambda: advantages_of(lambda batch: batch.logp[:, :2], PROBLEM, name="f"), "f returned a tensor of shape"),
        (lambda: advantages_of(lambda batch: None, PROBLEM, name="f"), "f returned None for B = "),
        (lambda: advantages_of(lambda batch: batch.uid, PROBLEM, name="f"), "f returned an array of shape .* object"),
        (lambda: rewards_of(lambda rewards: rewards.mean(-1), PROBLEM, name="f"), r"for rewards of shape \(P, K\) = "),
        (lambda: rewards_of(lambda rewards: rewards / 0, PROBLEM, name="f"), "f gives (nan|-?inf) for the rewards "),
        (lambda: rewards_of(lambda rewards: rewards / rewards.std(-1, keepdim=True), PROBLEM, name="f"),
         r"f gives -?inf for the rewards \[(-?[\d.]+), \1\] of a group; look for a division by a zero std"),
    ],
)  # fmt: skip
def test_what_is_no_estimator_is_said_in_one_sentence(make, sentence):
    with pytest.raises(EstimatorError, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


@settings(max_examples=12)
@given(
    power=st.sampled_from([1, 2]),
    scale=st.floats(0.1, 4).map(lambda x: round(x, 3)),
    baseline=st.sampled_from(["none", "mean", "others", "largest", "batch"]),
    divide=st.booleans(),
)
def test_any_function_of_rewards_has_the_same_certificate_in_one_call_and_in_many(power, scale, baseline, divide):
    def function(rewards):
        shaped = scale * rewards**power
        base = {
            "none": torch.zeros(()),
            "mean": shaped.mean(-1, keepdim=True),
            "others": shaped.flip(-1),
            "largest": shaped.amax(-1, keepdim=True),
            "batch": shaped.mean(),
        }[baseline]
        shaped = shaped - base
        return shaped / (1 + rewards.std(-1, keepdim=True)) if divide else shaped

    estimator = rewards_of(function, TINY)
    assert estimator.together == (baseline != "batch")
    one, many = (
        certificate_of(replace(estimator, together=together), TINY) for together in (estimator.together, False)
    )
    assert one.verdict == many.verdict
    assert one.relative_bias == pytest.approx(many.relative_bias, rel=1e-9, abs=1e-9)
    assert one.trace_covariance == pytest.approx(many.trace_covariance, rel=1e-9)
    if power == 1 and not divide and baseline in ("none", "others"):
        assert one.verdict == ("unbiased" if scale == 1 else "proportional")
