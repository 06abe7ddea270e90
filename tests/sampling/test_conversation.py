"""Drawing conversations: the samplers of training and of verification against enumerated probabilities."""

from collections import Counter
from operator import itemgetter

import pytest
import torch

from llm_mdp.estimators.algorithms import ReMax, TRePO
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import TreeSampler
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.moments import covariance, exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import policy_certificate, sampled_certificate
from tests.strategies import greedy_responses

TALK = random_instance(3, 4, gamma=0.8, n_prompts=2, environment_at=(1,), seed=1)
N = 20_000


def enumerated() -> Enumeration:
    return Enumeration(TALK.mdp, TALK.policy)


def drawn(sampler, temperature: float):
    rollouts = sampler.rollouts(1, temperature)
    return rollouts, sampler.response_reward(rollouts)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["token by token", "from the tree"])
def test_conversations_have_their_probabilities(kind, temperature):
    """The environment has no temperature. Counts within five standard deviations."""
    e, generator = enumerated(), torch.Generator().manual_seed(0)
    sampler = PolicySampler(TALK.policy, TALK.mdp, generator, N) if kind == "token by token" else TreeSampler(
        e, N, generator
    )  # fmt: skip
    rollouts, reward = drawn(sampler, temperature)
    tokens, prompt = rollouts.tokens.reshape(N, -1), rollouts.prompt.reshape(N, -1)
    leaf = {tuple(row.tolist()): n for n, row in enumerate(e.tokens)}
    which = [int((e.prompt == row).all(-1).nonzero()) for row in prompt]
    place = [(p, leaf[tuple(row.tolist())]) for p, row in zip(which, tokens)]
    counts, chance = Counter(place), e.at_temperature(temperature).probability
    for p, share in enumerate(TALK.mdp.prompt_probability.tolist()):
        for n in range(e.tree.n_leaves):
            expected = share * float(chance[p, n])
            assert abs(counts[p, n] - N * expected) < 5 * (N * expected * (1 - expected)) ** 0.5 + 5
    p, n = (torch.tensor(each) for each in zip(*place))
    torch.testing.assert_close(reward.flatten(), e.response_reward[p, n])
    torch.testing.assert_close(rollouts.logp.reshape(N, -1), e.leaf_logp(temperature)[p, n])
    assert torch.equal(rollouts.mask.reshape(N, -1), e.mask[n])
    assert torch.equal(rollouts.finish.flatten(), e.finish[n])


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("kind", ["token by token", "from the tree"])
def test_branches_of_conversations_have_the_mean_and_the_tokens_of_their_prefix(kind, temperature):
    """At temperature 0 the policy is greedy, and the environment is not."""
    e, generator = enumerated(), torch.Generator().manual_seed(1)
    if kind == "token by token":
        sampler = PolicySampler(TALK.policy, TALK.mdp, generator, 40)
        rollouts, width = sampler.rollouts(1), 1
    else:
        sampler = TreeSampler(e, 40, generator)
        rollouts, width = sampler.rollouts(1), 40
    draws = 400
    branches = sampler.branches(rollouts, rollouts.mask, (temperature,) * draws)
    assert branches.tokens is not None
    exact = e.at_temperature(temperature)
    for world in range(width):
        here = itemgetter(world if width > 1 else ...)
        rows = [int(row) for row in set(branches.row.tolist())]
        for row in rows[:5]:
            for step in (0, 2):
                chosen = (branches.row == row) & (branches.step == step)
                if not bool(chosen.any()) or not bool(here(rollouts.mask)[row, step]):
                    continue
                tokens, prompt = here(rollouts.tokens)[row], here(rollouts.prompt)[row]
                which = int((e.prompt == prompt).all(-1).nonzero())
                prefix = int(e.tree.prefix_index(tokens)[step])
                mean, variance = (
                    float(levels[step][which, prefix]) for levels in (exact.values.U, exact.values.variance)
                )
                found = here(branches.reward)[chosen]
                assert abs(float(found.mean()) - mean) < 5 * (variance / draws) ** 0.5 + 1e-9
                assert float(found.var()) == pytest.approx(variance, rel=0.5, abs=1e-9)
                length = float(exact.remaining[step][which, prefix])
                assert abs(float(here(branches.tokens)[chosen].mean()) - length) < 5 * (2 / draws**0.5)


def test_a_greedy_response_is_greedy_where_the_policy_writes():
    sampler = PolicySampler(TALK.policy, TALK.mdp, torch.Generator().manual_seed(2), 30)
    rollouts = sampler.rollouts(1)
    row, step = (rollouts.mask & (torch.arange(4) == 2)).nonzero(as_tuple=True)
    reward, tokens = sampler.draw(rollouts, row, step, 1, 0.0)
    ends = greedy_responses(TALK.policy, TALK.mdp, rollouts.prompt[row], rollouts.tokens[row, :2])
    assert len(row) > 5
    torch.testing.assert_close(reward, TALK.mdp.response_reward(rollouts.prompt[row], ends, ends >= 0))
    assert torch.equal(tokens, (ends >= 0).sum(-1) - 2)


def test_the_same_seed_gives_the_same_conversations():
    one, two = (PolicySampler(TALK.policy, TALK.mdp, torch.Generator().manual_seed(3), 50).rollouts(2) for _ in "ab")
    assert torch.equal(one.tokens, two.tokens)


@pytest.mark.parametrize("estimator", [ReMax(), TRePO(temperatures=(1.0,))], ids=["greedy", "branches"])
def test_noise_of_replies_in_branches_is_counted(estimator):
    """Two routes: conditional means with their variances, and every joint outcome of the branches."""
    small = random_instance(2, 3, gamma=0.9, environment_at=(1,), seed=4)
    e = Enumeration(small.mdp, small.policy)
    moments = exact_moments(estimator, e)
    assert moments.branch_noise is not None and moments.branch_noise > 1e-3
    assert moments.trace_covariance == pytest.approx(float(covariance(estimator, e).trace()), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [ReMax(), TRePO(temperatures=(1.0,) * 2)], ids=["greedy", "branches"])
def test_sampled_certificates_of_conversations_are_near_the_exact_ones(estimator):
    problem = Problem(random_instance(3, 3, environment_at=(1,), seed=5))
    exact = exact_moments(estimator, problem.enumeration)
    found = sampled_certificate(estimator, problem.enumeration, problem.target(), 100_000, seed=1)
    assert found.trace_covariance == pytest.approx(exact.trace_covariance, rel=0.25)
    assert found.bias_interval is not None and found.bias_interval[0] < 0.01
    by_token = policy_certificate(
        estimator, problem.instance.policy, problem.instance.mdp, problem.target(), 20_000, seed=1
    )
    assert by_token.trace_covariance == pytest.approx(exact.trace_covariance, rel=0.5)
    assert by_token.bias_interval is not None and by_token.bias_interval[0] < 0.02
