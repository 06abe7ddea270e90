"""Weights from the others of a group: what must cancel, what must telescope, and hand examples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators import values
from llm_mdp.estimators.algorithms import GRPO, REINFORCE, RLOO
from llm_mdp.estimators.group_credit import OPO, TEMPO, PassAtK, REINFORCEPlusPlus
from llm_mdp.estimators.theorems import Whitened
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import edges, token_weights
from tests.strategies import normal

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def rewards(seed: int, prompts: int, group_size: int) -> torch.Tensor:
    return normal(torch.Generator().manual_seed(seed), prompts * group_size)


# --- hand examples ----------------------------------------------------------------------------------------------------


def test_the_mean_by_length_by_hand():
    reward, length = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64), torch.tensor([1, 2, 5])
    own = values.length_weighted_mean(reward, length, 3, own=True)
    others = values.length_weighted_mean(reward, length, 3, own=False)
    assert own.tolist() == pytest.approx([19 / 8] * 3)
    assert others.tolist() == pytest.approx([18 / 7, 11 / 6, 9 / 3])


def test_the_lead_of_the_best_by_hand():
    reward = torch.tensor([1.0, 4.0, 2.5, 3.0, 3.0, 0.0], dtype=torch.float64)
    assert values.lead_of_best(reward, 3).tolist() == [0, 1.5, 0, 0, 0, 0], "two best responses lead by nothing"


def test_prefix_values_of_a_group_by_hand():
    """Two prompts with the same texts: they do not meet."""
    text = [[1, 1, 0], [1, 0, PAD], [2, 0, PAD]]
    reward = torch.tensor([6.0, 2.0, 1.0, 0.0, 0.0, 3.0], dtype=torch.float64)
    value = values.group_prefix_value(reward, torch.tensor(text + text), 3)
    assert value.tolist() == [[3, 4, 6, 6], [3, 4, 2, 2], [3, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 3, 3, 3]]


@pytest.mark.parametrize("function", [values.centred, values.lead_of_best])
def test_a_group_of_one_is_refused(function):
    with pytest.raises(ValueError, match="group_size is 1; a group baseline needs at least 2 responses"):
        function(torch.zeros(4), 1)


def test_equal_rewards_that_differ_by_rounding_have_no_advantage():
    """One of these means differs from its rewards in the last digit; a division by the std must not show it."""
    reward = 1e6 * torch.tensor([0.1 + 0.2, 0.3, 0.3, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert float((reward[:3] - values.group_mean(reward, 3)[:3]).abs().max()) > 0
    centred = values.centred(reward, 3)
    assert centred[:3].tolist() == [0, 0, 0] and float(centred[3:].sum().abs()) < 1e-6 < float(centred[5])


# --- what must hold ---------------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 3), st.integers(2, 4), seeds)
def test_by_length_weights_cancel_and_equal_lengths_make_a_plain_mean(prompts, group_size, seed):
    reward = rewards(seed, prompts, group_size)
    length = torch.randint(1, 9, reward.shape, generator=torch.Generator().manual_seed(seed))
    left = reward - values.length_weighted_mean(reward, length, group_size, own=True)
    assert float((length * left).unflatten(-1, (-1, group_size)).sum(-1).abs().max()) < 1e-9
    same = torch.full_like(length, 5)
    for own, plain in ((True, values.group_mean), (False, values.leave_one_out)):
        baseline = values.length_weighted_mean(reward, same, group_size, own=own)
        torch.testing.assert_close(baseline, plain(reward, group_size))


@few
@given(st.integers(1, 3), st.integers(2, 5), seeds)
def test_the_lead_is_what_the_maximum_loses_without_a_response(prompts, group_size, seed):
    reward = rewards(seed, prompts, group_size).mul(3).round().div(3)  # ties are common
    lead = values.lead_of_best(reward, group_size).unflatten(-1, (-1, group_size)).tolist()
    for group, found in zip(reward.unflatten(-1, (-1, group_size)).tolist(), lead, strict=True):
        without = [max(group) - max(group[:k] + group[k + 1 :]) for k in range(group_size)]
        assert found == pytest.approx(without)


@few
@given(st.sampled_from([(2, 3, 0), (3, 2, 0), (2, 3, None)]), st.integers(2, 3), seeds)
def test_tempo_sums_to_the_reward_less_the_mean(shape, group_size, seed):
    """The differences telescope, for the first value is the mean of the group and the last the reward itself."""
    vocab_size, horizon, eos = shape
    instance = random_instance(vocab_size, horizon, eos=eos, seed=seed % 2**20)
    e = Enumeration(instance.mdp, instance.policy)
    leaf = torch.randint(e.tree.n_leaves, (50, group_size), generator=torch.Generator().manual_seed(seed))
    evidence = drawn(e, leaf)
    total = torch.where(evidence.rollouts.mask, TEMPO(group_size, td_only=True).advantages(evidence), 0.0).sum(-1)
    torch.testing.assert_close(
        total, evidence.response_reward - values.group_mean(evidence.response_reward, group_size)
    )


@few
@given(st.integers(2, 4), st.integers(1, 2), st.sampled_from([0, None]), seeds)
def test_pass_at_k_is_one_kth_of_the_gradient_of_the_best(group_size, n_prompts, eos, seed):
    p = Problem(random_instance(2, 3, eos=eos, n_prompts=n_prompts, seed=seed % 2**20), group_size=group_size)
    found = exact_certificate(PassAtK(group_size), p.enumeration, p.target("max of K"))
    assert found.verdict == "proportional" and found.scale == pytest.approx(1 / group_size, rel=1e-9)


def test_opo_and_tempo_at_fixed_length_and_one_step():
    flat = Problem(random_instance(3, 2, eos=None))
    found = exact_certificate(OPO(3), flat.enumeration, flat.target("reward"))
    assert found.verdict == "proportional" and found.scale == pytest.approx(2 / 3, rel=1e-9)
    short = Problem(random_instance(3, 1))
    for td_only, scale in ((True, 1 / 2), (False, 1)):
        found = exact_certificate(TEMPO(2, td_only=td_only), short.enumeration, short.target("reward"))
        assert found.scale == pytest.approx(scale, rel=1e-9)


# --- reductions: what a larger group mends and what it does not -------------------------------------------------------


def test_dividing_by_length_points_the_same_wrong_way_at_every_group_size():
    """With a leave-one-out baseline the expectation does not know the size of the group."""
    p = Problem(random_instance(3, 3, seed=4))
    means = [exact_moments(RLOO(size, reduction="sequence_mean"), p.enumeration).mean for size in (2, 3, 4)]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=1e-9, atol=1e-12)
    assert exact_certificate(RLOO(3, reduction="sequence_mean"), p.enumeration, p.target("reward")).verdict == "biased"


def test_the_mean_over_tokens_turns_back_as_the_group_grows_if_there_is_a_baseline():
    p = Problem(random_instance(2, 3, seed=0))
    turned = [error(RLOO(size, reduction="token_mean"), p) for size in (2, 4, 7)]
    assert turned == sorted(turned, reverse=True) and turned[-1] < turned[0] / 2 and turned[-1] > 1e-6
    assert error(REINFORCE(4, reduction="token_mean"), p) > 3 * turned[1], "the raw reward is another matter"


# --- batches ----------------------------------------------------------------------------------------------------------


def error(estimator, p: Problem) -> float:
    """sin of the angle between E g and ∇J: what no learning rate repairs."""
    cosine = exact_certificate(estimator, p.enumeration, p.target("reward")).cosine
    assert cosine is not None and cosine > 0
    return (1 - cosine**2) ** 0.5


@pytest.mark.parametrize("over", ["tokens", "responses"])
def test_the_error_of_batch_normalisation_falls_like_one_over_n(over):
    """Remark 4 at one prompt: N times the error settles."""
    p = Problem(random_instance(2, 2, seed=1))
    scaled = [size * error(Whitened(size, over=over), p) for size in (3, 6, 12)]
    assert scaled[2] == pytest.approx(scaled[1], rel=0.2) and scaled[2] > 0.05


def test_the_error_of_a_std_of_its_own_for_every_prompt_stays():
    """Two prompts with rewards of different spread: each has unit variance afterwards, however large the group."""
    p = Problem(random_instance(2, 2, n_prompts=2, seed=3))
    at_3, at_6, at_12 = (error(GRPO(size), p) for size in (3, 6, 12))
    assert at_12 > 0.7 * at_3 and at_12 == pytest.approx(at_6, rel=0.2)


def drawn(e: Enumeration, leaf: torch.Tensor) -> Evidence:
    """Responses of the only prompt, one row of leaves a world."""
    chance = torch.ones(len(leaf), dtype=torch.float64)
    sampler = ExactSampler(e, Groups(torch.zeros(len(leaf), dtype=torch.int64), leaf, chance))
    rollouts = sampler.rollouts(leaf.shape[-1])
    return Evidence(rollouts, sampler.response_reward(rollouts))


def test_reinforce_plus_plus_gets_better_with_more_prompts_in_the_batch():
    """A batch of P groups of 2, the same prompt each time, whose group mean is subtracted before all are normalised: P
    times the error settles."""
    p = Problem(random_instance(2, 2, seed=1))
    e, target = p.enumeration, p.target("reward")
    scaled = []
    for prompts in (3, 4, 5):
        leaf = torch.cartesian_prod(*[torch.arange(e.tree.n_leaves)] * (2 * prompts))
        evidence, weight = drawn(e, leaf), e.probability[0][leaf].prod(-1)
        given_by = token_weights(REINFORCEPlusPlus(2), evidence, e, (len(leaf),))
        mean = torch.zeros(e.n_edges, dtype=torch.float64)
        mean.index_add_(0, edges(evidence, e).flatten(), (weight[:, None, None] * given_by).flatten())
        gradient = e.scores.T @ mean
        cosine = float(gradient @ target / gradient.norm() / target.norm())
        scaled.append(prompts * (1 - cosine**2) ** 0.5)
    assert scaled == pytest.approx([scaled[0]] * 3, rel=0.05) and scaled[0] > 0.5
