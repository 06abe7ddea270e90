"""The n-gram dynamic programme against enumeration of all responses, closed forms, and the slope of J where no tree
fits."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.exact import ngram_gradient as ngram
from llm_mdp.exact import tree_gradient as exact
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.ngram_gradient import (
    expected_length,
    ngram_critic,
    ngram_gradient,
    ngram_score_sums,
    reward_moments,
    with_expected_length,
)
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.hidden_rewards import (
    LengthCost,
    LexicalReward,
    NgramReward,
    PositionReward,
    PotentialReward,
    ScaledReward,
    SparseReward,
    SumReward,
)
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.sampling.policies import NgramPolicy, TabularValue, logp_of


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def worlds(draw):
    """A token MDP with a mix of Markov rewards, one of which asks for the end of the response, and an n-gram policy."""
    vocab_size, horizon = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    eos = draw(st.sampled_from([None, *range(vocab_size)]))
    gamma = draw(st.sampled_from([1.0, 0.9, 0.3]))
    generator = seeded(draw(st.integers(0, 2**31)))
    parts = (
        NgramReward.random(vocab_size, draw(st.integers(0, 2)), generator),
        ScaledReward(0.5, PotentialReward(normal(generator, vocab_size + 1), gamma=0.6)),
        PositionReward(normal(generator, horizon, vocab_size)),
    )
    reward = SumReward(parts[: draw(st.integers(1, 3))])
    prompts = draw(st.sampled_from([(Prompt(),), (Prompt((1,), 0.3), Prompt((0, 1), 0.5), Prompt((0, 0, 1), 0.2))]))
    mdp = TokenMDP(vocab_size, eos, horizon, reward, gamma, prompts)
    tables = draw(st.sampled_from([None, 2, horizon]))
    return mdp, NgramPolicy.random(vocab_size, draw(st.integers(0, 3)), generator, horizon=tables)


def every_response(mdp):
    """Every response to every prompt: prompt (P, N, L), tokens and mask (P, N, T)."""
    tokens = mdp.tree.leaves.expand(len(mdp.prompts), -1, -1)
    return mdp.prompt_tokens[:, None].expand(-1, tokens.shape[1], -1), tokens, tokens != -1


@settings(deadline=None, max_examples=80)
@given(worlds())
def test_gradient_is_that_of_enumeration(drawn):
    mdp, policy = drawn
    prompt, tokens, mask = every_response(mdp)
    probability = logp_of(policy, prompt, tokens, mask).sum(-1).exp()
    expected_J = (mdp.prompt_probability * (probability * mdp.response_reward(prompt, tokens, mask)).sum(-1)).sum()
    (expected,) = torch.autograd.grad(expected_J, [policy.table])
    J, grad = ngram_gradient(policy, mdp)
    assert pytest.approx(expected_J.item(), rel=1e-10, abs=1e-13) == J
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)
    length = (mdp.prompt_probability * (probability * mask.sum(-1)).sum(-1)).sum().item()
    assert expected_length(policy, mdp) == pytest.approx(length)


def test_tree_and_chain_agree_where_exact_gradient_changes_over(monkeypatch):
    generator = seeded(1)
    mdp = TokenMDP(3, 1, 6, NgramReward.random(3, 2, generator), 0.9, (Prompt((2,), 0.5), Prompt((0,), 0.5)))
    policy = NgramPolicy.random(3, 1, generator)
    J, (grad,) = exact_gradient(policy, mdp)
    monkeypatch.setattr(exact, "TREE_WORTH_AVOIDING", 1)
    chain_J, (chain_grad,) = exact_gradient(policy, mdp)
    assert pytest.approx(J, rel=1e-12) == chain_J
    torch.testing.assert_close(chain_grad, grad)
    assert not torch.equal(chain_grad, grad), "both went the same way; this test compares nothing"


def test_a_reward_of_one_token_of_a_memoryless_policy():
    """Every one of T tokens earns weight[w]: J = T π·weight, ∂J/∂logit_w = T π_w (weight_w - π·weight)."""
    weights, horizon = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64), 200
    mdp = TokenMDP(3, None, horizon, LexicalReward(weights))
    policy = NgramPolicy(torch.tensor([[[0.3, 0.1, -0.4]]]), order=0)
    pi = torch.tensor([0.3, 0.1, -0.4], dtype=torch.float32).to(torch.float64).softmax(0)
    J, grad = ngram_gradient(policy, mdp)
    mean = float(pi @ weights)
    assert pytest.approx(horizon * mean) == J
    torch.testing.assert_close(grad[0, 0], horizon * pi * (weights - mean))


def test_expected_length_is_that_of_a_geometric_distribution():
    stop = 0.01
    table = torch.tensor([[[stop, 0.6, 0.39]]], dtype=torch.float64).log()
    mdp = TokenMDP(3, 0, 1000, LengthCost(0.1), gamma=0.5)
    assert expected_length(NgramPolicy(table, order=0), mdp) == pytest.approx((1 - (1 - stop) ** 1000) / stop)


def test_a_thousand_steps_over_64_tokens_agree_with_the_slope_of_J():
    generator = seeded(2)
    mdp = TokenMDP(64, 5, 1000, NgramReward.random(64, 1, generator), gamma=0.999, prompts=(Prompt((3,)),))
    policy = NgramPolicy.random(64, 1, generator)
    _, grad = ngram_gradient(policy, mdp)
    direction, step = normal(generator, *grad.shape), 1e-4
    sides = [
        ngram_gradient(NgramPolicy(policy.table.detach() + sign * step * direction, 1), mdp)[0] for sign in (1, -1)
    ]
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx((grad * direction).sum().item(), rel=1e-6)


def test_the_table_stays_as_it_was():
    generator = seeded(3)
    mdp = TokenMDP(3, 0, 5, NgramReward.random(3, 1, generator))
    policy = NgramPolicy.random(3, 2, generator, horizon=5)
    before = policy.table.detach().clone()
    _, grad = ngram_gradient(policy, mdp)
    grad.zero_()
    assert torch.equal(policy.table.detach(), before)
    assert not grad.requires_grad


def test_what_does_not_fit_is_refused_in_words():
    generator = seeded(4)
    markov = NgramReward.random(3, 1, generator)
    with pytest.raises(ValueError, match="SparseReward depends on the whole prefix"):
        ngram_gradient(NgramPolicy.random(3, 1, generator), TokenMDP(3, 0, 3, SparseReward({(1,): 1.0})))
    with pytest.raises(ValueError, match=r"262,144 contexts.*lower order"):
        ngram_gradient(NgramPolicy.random(3, 9, generator, scale=0.0), TokenMDP(3, 0, 1000, markov))
    with pytest.raises(ValueError, match="The policy has 4 tokens, the token MDP 3"):
        ngram_gradient(NgramPolicy.random(4, 1, generator), TokenMDP(3, 0, 3, markov))
    for function in (ngram_gradient, ngram_critic, reward_moments, expected_length):
        with pytest.raises(ValueError, match="J is nan"):
            function(NgramPolicy(torch.full((1, 4, 3), float("nan")), 1), TokenMDP(3, 0, 3, markov))


# --- values and moments ---


@settings(deadline=None, max_examples=80)
@given(worlds())
def test_the_critic_is_that_of_the_tree(drawn):
    mdp, policy = drawn
    prompt, tokens, mask = every_response(mdp)
    tree = Enumeration(mdp, policy)
    expected = TabularValue(tree.tree, mdp.prompt_tokens, tree.values.U)(prompt, tokens, mask)
    critic = ngram_critic(policy, mdp)
    torch.testing.assert_close(critic(prompt, tokens, mask), expected, rtol=1e-10, atol=1e-12)
    again = pickle.loads(pickle.dumps(critic))(prompt[:, -1], tokens[:, -1], mask[:, -1])
    torch.testing.assert_close(again, expected[:, -1], rtol=1e-10, atol=1e-12)


def test_the_critic_of_a_memoryless_policy_after_a_thousand_tokens():
    """What the tokens so far have earned, and a geometric series of means for the others."""
    weights, gamma, horizon = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64), 0.999, 1000
    mdp = TokenMDP(3, None, horizon, LexicalReward(weights), gamma)
    policy = NgramPolicy.random(3, 0, seeded(5))
    mean = float(policy.table[0, 0].detach().softmax(-1) @ weights)
    drawn = policy.sample(mdp.prompt_tokens, 1, eos=None, horizon=horizon, generator=seeded(6))
    value = ngram_critic(policy, mdp)(drawn.prompt, drawn.tokens, drawn.mask)[0].tolist()
    collected = 0.0
    for t, token in enumerate(drawn.tokens[0].tolist()):
        assert value[t] == pytest.approx(collected + mean * (gamma**t - gamma**horizon) / (1 - gamma))
        collected += gamma**t * float(weights[token])
    assert value[horizon] == 0, "0 from the end on"


@pytest.mark.slow
def test_a_critic_errs_by_what_stands_before_the_token_alone():
    generator = seeded(7)
    mdp = TokenMDP(3, 0, 400, NgramReward.random(3, 2, generator), 0.9, (Prompt((1,), 0.5), Prompt((2, 2), 0.5)))
    policy = with_expected_length(NgramPolicy.random(3, 1, generator), mdp, 300)
    drawn = policy.sample(mdp.prompt_tokens, 50, eos=0, horizon=400, generator=generator)
    response = (drawn.prompt, drawn.tokens, drawn.mask)
    exact_value, wrong = ngram_critic(policy, mdp)(*response), ngram_critic(policy, mdp, error=0.2, seed=3)(*response)
    error = wrong - exact_value
    found = {}
    text = torch.cat([drawn.prompt, drawn.tokens], dim=-1).tolist()
    for row, step in drawn.mask.nonzero().tolist():
        context = (step, *text[row][step : step + 2])
        assert found.setdefault(context, float(error[row, step])) == pytest.approx(float(error[row, step]), abs=1e-9)
    assert len(found) > 1000, "steps and contexts that were seen"
    numbers = torch.tensor(list(found.values()))
    assert (float(numbers.std()), float(numbers.mean())) == (pytest.approx(0.2, rel=0.1), pytest.approx(0, abs=0.03))
    assert len(set(numbers.tolist())) == len(numbers), "one number each"
    assert error[:, :-1][~drawn.mask].abs().sum() == 0 and error[:, -1].abs().sum() == 0
    assert torch.equal(wrong, ngram_critic(policy, mdp, error=0.2, seed=3)(*response))
    assert not torch.equal(wrong, ngram_critic(policy, mdp, error=0.2, seed=4)(*response))


@settings(deadline=None, max_examples=80)
@given(worlds())
def test_moments_of_the_reward_are_those_of_all_responses(drawn):
    mdp, policy = drawn
    prompt, tokens, mask = every_response(mdp)
    chance = mdp.prompt_probability[:, None] * logp_of(policy, prompt, tokens, mask).sum(-1).exp().detach()
    reward = mdp.response_reward(prompt, tokens, mask)
    expected = float((chance * reward).sum())
    mean, variance = reward_moments(policy, mdp)
    assert mean == pytest.approx(expected, rel=1e-10, abs=1e-13)
    assert variance == pytest.approx(float((chance * (reward - expected).square()).sum()), rel=1e-9, abs=1e-13)


def test_a_small_variance_beside_a_large_mean_is_not_lost():
    """A thousand independent tokens, worth a million each and a thousandth more or less."""
    extra = torch.tensor([0.0, 1e-3, -1e-3], dtype=torch.float64)
    policy = NgramPolicy.random(3, 0, seeded(8))
    pi = policy.table[0, 0].detach().softmax(-1)
    variance = 1000 * float(pi @ (extra - pi @ extra).square())
    mean, found = reward_moments(policy, TokenMDP(3, None, 1000, LexicalReward(1e6 + extra)))
    # V is good to 1e-7 of 1e9, the deviations to 1e-4 of themselves; E RM² - (E RM)² would be off by a hundred.
    assert (mean, found) == (pytest.approx(1e9), pytest.approx(variance, rel=1e-3))


# --- lengths ---


@settings(deadline=None, max_examples=30)
@given(worlds().filter(lambda drawn: drawn[0].eos is not None and drawn[0].horizon > 1), st.floats(0.02, 0.98))
def test_a_policy_gets_the_length_asked_for(drawn, fraction):
    mdp, policy = drawn
    length = 1 + fraction * (mdp.horizon - 1)
    changed = with_expected_length(policy, mdp, length)
    prompt, tokens, mask = every_response(mdp)
    chance = mdp.prompt_probability[:, None] * logp_of(changed, prompt, tokens, mask).sum(-1).exp().detach()
    assert float((chance * mask.sum(-1)).sum()) == pytest.approx(length, rel=1e-8)
    moved = (changed.table - policy.table).detach()
    going_on = torch.arange(mdp.vocab_size) != mdp.eos
    assert moved[..., going_on].abs().max() == 0
    assert float(moved[..., mdp.eos].max() - moved[..., mdp.eos].min()) < 1e-12, "one constant"


def test_lengths_that_cannot_be_had_are_refused_in_words():
    policy = NgramPolicy.random(3, 1, seeded(9))
    mdp = TokenMDP(3, 0, 5, LengthCost())
    for length in (1, 5, 0.5, float("nan")):
        with pytest.raises(
            ValueError, match=rf"length is {length}; it must be above 1 and below the horizon of 5 tokens"
        ):
            with_expected_length(policy, mdp, length)
    with pytest.raises(ValueError, match="no end token, so every response has 5 tokens"):
        with_expected_length(policy, TokenMDP(3, None, 5, LengthCost()), 3)
    with pytest.raises(ValueError, match="The policy has 3 tokens, the token MDP 5"):
        with_expected_length(policy, TokenMDP(5, 4, 5, LengthCost()), 3)
    never = policy.table.detach().clone()
    never[0, :, 0] = -torch.inf
    with pytest.raises(ValueError, match="no constant makes 3 tokens the expected length"):
        with_expected_length(NgramPolicy(never, 1), mdp, 3)


# --- sums of scores ---


@settings(deadline=None, max_examples=60)
@given(worlds(), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**31))
def test_sums_of_scores_are_gradients_of_weighted_log_probabilities(drawn, groups, at_once, seed):
    mdp, policy = drawn
    generator = seeded(seed)
    rollouts = policy.sample(mdp.prompt_tokens, 6, eos=mdp.eos, horizon=mdp.horizon, generator=generator)
    logp = logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask)
    weights = normal(generator, *logp.shape) * rollouts.mask * (torch.rand(logp.shape, generator=generator) < 0.8)
    # The last group has at least one row, so the number of sums is known; others may have none.
    group = torch.randint(groups, (len(logp),), generator=generator).index_fill(0, torch.tensor([2]), groups - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "TOKENS_AT_ONCE", at_once)
        found = ngram_score_sums(policy, rollouts.prompt, rollouts.tokens, weights, group)
    assert found.shape == (groups, policy.table.numel())
    assert not found.requires_grad
    for number in range(groups):
        total = (weights * logp)[group == number].sum()
        (expected,) = torch.autograd.grad(total, [policy.table], retain_graph=True)
        torch.testing.assert_close(found[number], expected.flatten(), rtol=1e-10, atol=1e-12)


def test_weights_on_what_is_no_token_are_refused():
    policy, prompt, group = NgramPolicy.random(3, 1, seeded(10)), torch.tensor([[1]]), torch.tensor([0])
    weights = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    for tokens in ([1, 0, -1], [1, 3, 0]):
        with pytest.raises(ValueError, match=r"outside the vocabulary 0 … 2 has a weight; give padding the weight 0"):
            ngram_score_sums(policy, prompt, torch.tensor([tokens]), weights, group)


@pytest.mark.parametrize("error", [-0.1, float("nan"), float("inf")])
def test_errors_of_a_critic_that_are_no_standard_deviation(error):
    generator = seeded(11)
    mdp = TokenMDP(3, 0, 3, NgramReward.random(3, 1, generator))
    with pytest.raises(
        ValueError, match=rf"error is {error}; the standard deviation .* must be a number of at least 0"
    ):
        ngram_critic(NgramPolicy.random(3, 1, generator), mdp, error)
