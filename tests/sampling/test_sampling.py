"""`PolicySampler`: what it draws, what it keeps, and that every estimator's training step averages to what verification
says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.algorithms import RLOO, ReMax, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.estimators.practices import ZeroStdFiltered
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy, logp_of
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.claims import CLAIMS, Claim
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients
from tests.strategies import greedy_responses, policies, token_mdps

INSTANCE = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3)
ENUMERATION = Enumeration(INSTANCE.mdp, INSTANCE.policy)


def sampler(seed: int = 0, prompts: int = 1, instance=INSTANCE) -> PolicySampler:
    return PolicySampler(instance.policy, instance.mdp, torch.Generator().manual_seed(seed), prompts)


def chosen_rows(rows: list[list[int]], prompt: int = 0) -> Rollouts:
    """Given responses to one prompt of the instance."""
    tokens = torch.tensor(rows)
    prompts = INSTANCE.mdp.prompt_tokens[prompt].expand(len(rows), -1)
    return Rollouts(
        prompts, tokens, tokens != PAD, torch.zeros(tokens.shape).double(), torch.zeros(len(rows), dtype=torch.int64)
    )


# --- what is drawn ---


def test_prompts_come_by_their_probabilities_in_whole_groups():
    drawn = sampler(prompts=6000).rollouts(group_size=2)
    first = (drawn.prompt == INSTANCE.mdp.prompt_tokens[0]).all(-1).unflatten(0, (-1, 2))
    assert torch.equal(first[:, 0], first[:, 1]), "rows of one prompt are adjacent"
    expected = INSTANCE.mdp.prompts[0].probability
    assert abs(float(first[:, 0].double().mean()) - expected) < 4 * (expected * (1 - expected) / 6000) ** 0.5


def test_rewards_are_those_of_the_mdp():
    source = sampler(prompts=20)
    drawn = source.rollouts(2)
    hidden = source.hidden_reward(drawn)
    assert torch.equal(hidden, INSTANCE.mdp.hidden_reward(drawn.prompt, drawn.tokens, drawn.mask))
    discounted = [sum(0.9**t * r for t, r in enumerate(row)) for row in hidden.tolist()]
    assert source.response_reward(drawn).tolist() == pytest.approx(discounted)


def test_logp_and_values_carry_no_gradient():
    source = sampler(prompts=5)
    drawn = source.rollouts(1)
    scored = source.logp(INSTANCE.reference, drawn)
    assert not scored.requires_grad
    assert torch.equal(scored, logp_of(INSTANCE.reference, drawn.prompt, drawn.tokens, drawn.mask))
    critic = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))
    assert not source.value(lambda prompt, tokens, mask: critic.logits(prompt, tokens)[..., 0], drawn).requires_grad


@pytest.mark.parametrize("prompt", [0, 1])
def test_branches_keep_the_prefix_and_average_to_its_value(prompt):
    """Mean and variance of many branches from every prefix of three responses, one of them over after two tokens."""
    rollouts, draws = chosen_rows([[1, 2, 1], [2, 0, PAD], [1, 1, 2]], prompt), 4000
    branches = sampler().branches(rollouts, rollouts.mask, (1.0,) * draws)
    assert branches.reward.dtype == torch.float64
    places = list(zip(branches.row.tolist(), branches.step.tolist()))
    assert sorted(set(places)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    levels = INSTANCE.mdp.tree.prefix_index(rollouts.tokens)
    for row, step in set(places):
        drawn = branches.reward[(branches.row == row) & (branches.step == step)]
        assert len(drawn) == draws
        index = levels[row, step]
        mean, variance = ENUMERATION.values.U[step][prompt, index], ENUMERATION.values.variance[step][prompt, index]
        assert abs(float(drawn.mean() - mean)) < 4 * float(variance / draws) ** 0.5
        possible = {
            ENUMERATION.response_reward[prompt, leaf].item()
            for leaf, tokens in enumerate(ENUMERATION.tokens.tolist())
            if tokens[:step] == rollouts.tokens[row, :step].tolist()
        }
        assert all(min(abs(x - r) for r in possible) < 1e-12 for x in drawn.unique().tolist()), "the prefix was kept"


def test_branches_are_drawn_afresh_from_the_sampler_s_generator():
    """Two rows of one prefix, two calls, two seeds: never the same draws; the same seed gives them again."""
    rollouts = chosen_rows([[1, 2, 1], [1, 2, 1]])
    source, first = sampler(0), torch.tensor([[True, False, False]] * 2)
    one, two = (source.branches(rollouts, first, (1.0,) * 20).reward for _ in range(2))
    assert not torch.equal(one[:20], one[20:]) and not torch.equal(one, two)
    assert torch.equal(sampler(0).branches(rollouts, first, (1.0,) * 20).reward, one)
    assert not torch.equal(sampler(1).branches(rollouts, first, (1.0,) * 20).reward, one)


def test_branches_only_where_there_is_a_boundary_and_a_token():
    rollouts = chosen_rows([[1, 2, 1], [0, PAD, PAD]])
    branches = sampler().branches(rollouts, torch.tensor([[False, True, False], [False, True, True]]), (1.0,) * 3)
    assert (branches.row.tolist(), branches.step.tolist()) == ([0, 0, 0], [1, 1, 1])


def test_temperature_0_is_one_greedy_branch_from_every_place():
    rollouts = chosen_rows([[1, 2, 1]])
    branches = sampler().branches(rollouts, rollouts.mask, (0.0,))
    assert branches.step.tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=60)
@given(token_mdps(), st.data())
def test_greedy_responses_are_a_loop_of_argmax(mdp, data):
    """From every non-terminal prefix of one level; rounded logits make ties, which the lowest token wins."""
    policy = data.draw(policies(mdp))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.round_()
    level = data.draw(st.integers(0, mdp.horizon - 1))
    prompt = data.draw(st.integers(0, len(mdp.prompts) - 1))
    prefixes = mdp.tree.level_prefixes(level)
    prompts = mdp.prompt_tokens[prompt].expand(len(prefixes), -1)
    found = greedy_responses(policy, mdp, prompts, prefixes)
    for row, prefix in enumerate(prefixes.tolist()):
        response = prefix
        while len(response) < mdp.horizon and (len(response) == level or response[-1] != mdp.eos):
            logits = policy.logits(prompts[:1], torch.tensor([[*response, PAD]]))[0, len(response)].tolist()
            response = [*response, logits.index(max(logits))]
        assert found[row].tolist() == response + [PAD] * (mdp.horizon - len(response))


def test_the_same_seed_gives_the_same_evidence():
    def run(seed: int) -> Evidence:
        return TRePO(group_size=2).collect(sampler(seed, prompts=4))

    one, again, other = run(0), run(0), run(1)
    assert torch.equal(one.rollouts.tokens, again.rollouts.tokens) and torch.equal(
        one.branches.reward, again.branches.reward
    )
    assert not torch.equal(one.response_reward, other.response_reward)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    TRePO().collect(sampler(prompts=3))
    assert torch.equal(torch.get_rng_state(), state)


# --- what is kept ---


def test_keep_drops_whole_groups_with_their_branches():
    source = sampler(prompts=3)
    rollouts = source.rollouts(2)
    boundary = EveryNTokens(1)(rollouts)
    evidence = Evidence(
        rollouts, source.response_reward(rollouts), branches=source.branches(rollouts, boundary, (1.0,) * 2)
    )
    kept = source.keep(evidence, torch.tensor([True, False, True]))
    rows = [0, 1, 4, 5]
    assert torch.equal(kept.rollouts.tokens, rollouts.tokens[rows])
    assert torch.equal(kept.rollouts.finish, rollouts.finish[rows])
    assert torch.equal(kept.response_reward, evidence.response_reward[rows])

    def listed(branches, row: int) -> list[tuple[int, float]]:
        here = branches.row == row
        return list(zip(branches.step[here].tolist(), branches.reward[here].tolist()))

    for new, old in enumerate(rows):
        assert listed(kept.branches, new) == listed(evidence.branches, old)
    assert len(kept.branches.row) == sum(len(listed(evidence.branches, row)) for row in rows)


def test_groups_of_equal_rewards_are_left_out():
    evidence = ZeroStdFiltered(group_size=2).collect(sampler(prompts=50))
    pairs = evidence.response_reward.unflatten(0, (-1, 2))
    assert 0 < len(pairs) < 50
    assert (pairs[:, 0] != pairs[:, 1]).all()


# --- training is verification with another sampler ---


PROBLEM = Problem(INSTANCE)


def divides_by_the_batch(estimator: Estimator) -> bool:
    """By something of all that is in the batch: certificates of such are for batches of one group."""
    return getattr(estimator, "whole_batch", False) or estimator.reduction == "token_mean"


def mean_gradient(estimator: Estimator, source: PolicySampler) -> Tensor:
    evidence = estimator.collect(source)
    rollouts = evidence.rollouts
    loss = estimator.loss(logp_of(INSTANCE.policy, rollouts.prompt, rollouts.tokens, rollouts.mask), evidence)
    parameters = list(INSTANCE.policy.parameters())
    return flatten_gradients(torch.autograd.grad(-loss, parameters), parameters)


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if claim.entry and claim.id != "ppo-second-epoch"], ids=lambda claim: claim.id
)
def test_a_training_step_averages_to_the_verified_expectation(claim: Claim):
    """|ḡ - E g|² / (tr Cov / n) is 1 on average; a wrong weight, sign or prefix makes it tens or hundreds."""
    estimator = claim.build(PROBLEM)
    moments = exact_moments(estimator, PROBLEM.enumeration)
    if divides_by_the_batch(estimator):
        groups, source = 400, sampler(1, prompts=1)
        mean = torch.stack([mean_gradient(estimator, source) for _ in range(groups)]).mean(0)
    else:
        groups = 3000
        mean = mean_gradient(estimator, sampler(1, prompts=groups))
    assert float((mean - moments.mean).square().sum()) < 5 * moments.trace_covariance / groups
    assert moments.trace_covariance > 0


def test_a_group_of_one_is_refused_in_words():
    with pytest.raises(ValueError, match="group_size is 1; a group baseline needs at least 2 responses"):
        mean_gradient(RLOO(group_size=1), sampler())


def test_remax_subtracts_the_reward_of_one_greedy_response_a_prompt():
    source = sampler(prompts=10)
    evidence = ReMax().collect(source)
    nothing = torch.empty((10, 0), dtype=torch.int64)
    tokens = greedy_responses(INSTANCE.policy, INSTANCE.mdp, evidence.rollouts.prompt, nothing)
    greedy = INSTANCE.mdp.response_reward(evidence.rollouts.prompt, tokens, tokens != PAD)
    expected = (evidence.response_reward - greedy)[:, None]
    torch.testing.assert_close(ReMax().advantages(evidence), expected, rtol=1e-12, atol=1e-12)


def test_finish_says_why_a_response_ended():
    drawn = sampler(prompts=100).rollouts(1)
    ended = (drawn.tokens == INSTANCE.mdp.eos).any(-1)
    assert torch.equal(drawn.finish == Finish.EOS, ended) and ended.any() and not ended.all()


def test_temperature_sharpens_what_is_drawn():
    """Frequencies of the first token at temperature 0.25 against softmax(4 × logits)."""
    instance = random_instance(3, 1, seed=5)
    assert isinstance(instance.policy, TabularPolicy)
    drawn = sampler(prompts=1, instance=instance).rollouts(5000, temperature=0.25)
    expected = (4 * instance.policy.levels[0][0, :, 0].detach()).softmax(-1)
    found = torch.bincount(drawn.tokens[:, 0], minlength=3) / 5000
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 5000).sqrt() + 1e-9).all()
