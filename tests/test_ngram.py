"""The n-gram dynamic programme against enumeration of all responses, closed forms, and the slope of J where no tree fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp import exact
from llm_mdp.exact import exact_gradient
from llm_mdp.hidden_rewards import (
    LengthCost,
    LexicalReward,
    NgramReward,
    PositionReward,
    PotentialReward,
    ScaledReward,
    SparseReward,
    SumReward,
)
from llm_mdp.mdp import Prompt, TokenMDP
from llm_mdp.ngram import expected_length, ngram_gradient
from llm_mdp.policies import NgramPolicy, logp_of


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


@settings(deadline=None, max_examples=80)
@given(worlds())
def test_gradient_is_that_of_enumeration(drawn):
    mdp, policy = drawn
    tokens = mdp.tree.leaves.expand(len(mdp.prompts), -1, -1)
    prompt, mask = mdp.prompt_tokens[:, None].expand(-1, tokens.shape[1], -1), tokens != -1
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
    sides = [ngram_gradient(NgramPolicy(policy.table.detach() + sign * step * direction, 1), mdp)[0] for sign in (1, -1)]
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
    with pytest.raises(ValueError, match="J is nan"):
        ngram_gradient(NgramPolicy(torch.full((1, 4, 3), float("nan")), 1), TokenMDP(3, 0, 3, markov))
