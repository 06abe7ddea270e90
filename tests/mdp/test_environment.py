"""An environment that draws some of the tokens: what is exact stays exact, and what cannot have one says so."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict, read_instance, write_instance
from llm_mdp.exact.instances import InstanceError, random_instance
from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.optima import NotAPolicy, dpo_minimiser, process_model, regularised_optimum
from llm_mdp.exact.tree_gradient import exact_gradient, node_logits
from llm_mdp.mdp.environment import Environment
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp_envs.tasks.synthetic import TokenMDPTask

TALK = random_instance(3, 4, gamma=0.8, n_prompts=2, environment_at=(1, 3), seed=1)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([(1,), (2,), (1, 2), (1, 3)]), st.none() | st.integers(0, 2), st.integers(0, 99))
def test_probabilities_sum_to_one_and_j_is_the_expected_reward(at, eos, seed):
    instance = random_instance(3, 4, eos=eos, gamma=0.7, n_prompts=2, environment_at=at, seed=seed)
    e = Enumeration(instance.mdp, instance.policy)
    torch.testing.assert_close(e.probability.sum(-1), torch.ones(2, dtype=torch.float64))
    expected = float(instance.mdp.prompt_probability @ (e.probability * e.response_reward).sum(-1))
    assert abs(e.values.J - expected) < 1e-12
    length = float(instance.mdp.prompt_probability @ (e.probability * e.length).sum(-1))
    assert e.expected_length == pytest.approx(length, abs=1e-12)


def test_the_gradient_is_a_finite_difference_and_0_on_the_environment_s_nodes():
    mdp, policy = TALK.mdp, TALK.policy
    assert isinstance(policy, TabularPolicy)
    J, gradient = exact_gradient(policy, mdp)
    assert not gradient[1].any() and not gradient[3].any() and gradient[2].any()
    step = 1e-6
    for level, parameter in enumerate(policy.levels):
        place = (1, 2, parameter.shape[-1] - 1)
        moved = TabularPolicy(mdp.tree, mdp.prompt_tokens, [each.detach().clone() for each in policy.levels])
        with torch.no_grad():
            moved.levels[level][place] += step
        assert (exact_gradient(moved, mdp)[0] - J) / step == pytest.approx(float(gradient[level][place]), abs=1e-5)


def test_scores_of_what_the_environment_draws_are_zero():
    e = Enumeration(TALK.mdp, NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)))
    drawn = (e.tokens >= 0) & ~e.mask
    assert drawn.any() and not e.scores[e.edge[:, drawn]].any()
    assert e.scores[e.edge[:, e.mask]].abs().sum(-1).min() > 0


def test_rewards_of_the_environment_s_tokens_count():
    e = Enumeration(TALK.mdp, TALK.policy)
    assert e.hidden_reward[:, (e.tokens >= 0) & ~e.mask].abs().min() > 0
    total = (e.hidden_reward * TALK.mdp.discount).sum(-1)
    torch.testing.assert_close(total, e.response_reward)


def test_who_ends_a_response_is_known():
    e = Enumeration(TALK.mdp, TALK.policy)
    ends = {tuple(row[row >= 0].tolist()): Finish(int(finish)) for row, finish in zip(e.tokens, e.finish)}
    assert ends[(0,)] == Finish.EOS
    assert ends[(1, 0)] == Finish.ENVIRONMENT
    assert ends[(1, 2, 0)] == Finish.EOS
    assert ends[(1, 2, 1, 0)] == Finish.ENVIRONMENT
    assert ends[(1, 2, 1, 1)] == Finish.HORIZON


def test_files_say_where_the_environment_draws_and_come_back(tmp_path):
    write_instance(TALK, tmp_path / "talk.json")
    back = read_instance(tmp_path / "talk.json")
    assert back.mdp.environment is not None and back.mdp.environment.at == (1, 3)
    for one, other in zip(node_logits(TALK.policy, TALK.mdp), node_logits(back.policy, back.mdp)):
        assert torch.equal(one, other)
    assert exact_gradient(back.policy, back.mdp)[0] == exact_gradient(TALK.policy, TALK.mdp)[0]
    assert "environment_at" not in instance_to_dict(random_instance(3, 2))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([0], "environment_at holds 0, the beginning of the response; .*list it among the prompts"),
        ([4], r"environment_at holds 4; it must be a number of tokens .*1 … 3\."),
        ([True], "environment_at holds True"),
        ([1, 1], r"environment_at is \[1, 1\]; name every place once\."),
        (1, r"environment_at is 1; it must be a list .*such as \[1\]\."),
    ],
)
def test_wrong_places_are_explained(at, message):
    with pytest.raises(InstanceError, match=message):
        instance_from_dict(instance_to_dict(TALK) | {"environment_at": at})


def test_an_environment_over_another_tree_is_refused():
    small = Environment.random(random_instance(3, 3).mdp.tree, 1, (1,), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"environment.logits\[1\] has shape \(1, 3, 2\); .* \(2, 3, 2\) here"):
        replace(TALK.mdp, environment=small)
    with pytest.raises(ValueError, match=r"environment.logits\[1\] holds a number that is not finite"):
        replace(TALK.mdp, environment=Environment({1: torch.full((2, 3, 2), torch.nan)}))


def test_what_has_no_environment_says_so():
    e = Enumeration(TALK.mdp, TALK.reference)
    with pytest.raises(NotAPolicy, match="would change what the environment says"):
        dpo_minimiser(e, 1.0)
    with pytest.raises(NotAPolicy, match="would change what the environment says"):
        process_model(e, TALK.reference, 1.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    environment = Environment.random(TALK.mdp.tree, 1, (1,), generator)
    mdp = TokenMDP(3, 0, 4, NgramReward.random(3, 1, generator), environment=environment)
    with pytest.raises(ValueError, match=r"an environment draws the tokens after \[1\] others; the n-gram recursion"):
        ngram_gradient(NgramPolicy.random(3, 1, generator), mdp)
    with pytest.raises(ValueError, match="this task has no turns"):
        TokenMDPTask(mdp)


def test_the_regularised_optimum_leaves_the_environment_alone_and_is_stationary():
    """∇(J - β KL) is 0 there: no policy next to it is better."""
    beta, mdp = 0.6, TALK.mdp
    best = regularised_optimum(mdp, TALK.reference, beta)
    e = Enumeration(mdp, best)
    ratio = torch.where(e.mask, e.leaf_logp() - e.leaf_logp_of(TALK.reference), 0.0).sum(-1)
    weight = (mdp.prompt_probability[:, None] * e.probability * (e.response_reward - beta * ratio))[..., None]
    by_edge = torch.zeros(e.n_edges, dtype=torch.float64).index_add(
        0, e.edge.flatten(), (weight * e.mask).expand(e.edge.shape).flatten()
    )
    assert (by_edge @ e.scores).norm() < 1e-12
    assert exact_gradient(best, mdp)[1][0].norm() > 1e-3
