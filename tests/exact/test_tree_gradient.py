"""The tree's dynamic programme against enumeration of all responses with autograd, finite differences and closed
forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_mdp.exact import tree_gradient as exact
from llm_mdp.exact.tree_gradient import exact_gradient, node_logits, optimal_baseline, tree_gradient, tree_values
from llm_mdp.mdp.hidden_rewards import NgramReward, PotentialReward, SparseReward, SumReward, TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PrefixTree, context, pad_prompts
from llm_mdp.sampling.policies import NgramPolicy, PolicyModule, TabularPolicy, logp_of


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def worlds(draw, max_prompts=3):
    """A token MDP with a random table as its hidden reward, and a random table of logits on the same tree."""
    vocab_size, horizon = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    eos = draw(st.sampled_from([None, *range(vocab_size)]))
    gamma = draw(st.sampled_from([1.0, 0.9, 0.3]))
    n_prompts = draw(st.integers(1, max_prompts))
    return world(vocab_size, eos, horizon, gamma, n_prompts, draw(st.integers(0, 2**31)))


def world(vocab_size, eos, horizon, gamma=1.0, n_prompts=1, seed=0):
    generator = seeded(seed)
    weights = torch.rand(n_prompts, generator=generator, dtype=torch.float64) + 0.1
    prompts = tuple(Prompt((1,) * n, w) for n, w in enumerate((weights / weights.sum()).tolist()))
    tree, tokens = PrefixTree(vocab_size, eos, horizon), pad_prompts([p.tokens for p in prompts])
    mdp = TokenMDP(vocab_size, eos, horizon, TableReward.random(tree, tokens, generator), gamma, prompts)
    return mdp, TabularPolicy.random(tree, tokens, generator)


def responses(mdp):
    """Every prompt with every response: prompt (P, N, L), tokens (P, N, T), mask, RM (P, N)."""
    tokens = mdp.tree.leaves.expand(len(mdp.prompts), -1, -1)
    prompt = mdp.prompt_tokens[:, None].expand(-1, tokens.shape[1], -1)
    return prompt, tokens, tokens != -1, mdp.response_reward(prompt, tokens, tokens != -1)


def enumerated_gradient(policy, mdp):
    """J and its gradient from the probabilities of whole responses and autograd."""
    prompt, tokens, mask, reward = responses(mdp)
    logp = logp_of(policy, prompt, tokens, mask).sum(-1)
    J = (mdp.prompt_probability * (logp.exp() * reward).sum(-1)).sum()
    grads = torch.autograd.grad(J, list(policy.parameters()), allow_unused=True)
    return J.item(), [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters(), grads)]


def reward_levels(mdp):
    return mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)


def values_of(policy, mdp):
    return tree_values(mdp, node_logits(policy, mdp), reward_levels(mdp))


def assert_levels_close(found, expected, **tolerance):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b.detach(), **{"rtol": 1e-9, "atol": 1e-12, **tolerance})


@settings(deadline=None, max_examples=60)
@given(worlds())
def test_tabular_gradient_is_that_of_enumeration(drawn):
    mdp, policy = drawn
    J, grads = exact_gradient(policy, mdp)
    expected_J, expected = enumerated_gradient(policy, mdp)
    assert pytest.approx(expected_J, rel=1e-10, abs=1e-13) == J
    assert_levels_close(grads, expected)


@pytest.mark.parametrize("block", [1, 7, 24])
@pytest.mark.parametrize("eos", [None, 0, 1, 3])
def test_the_gradient_does_not_depend_on_the_block(block, eos, monkeypatch):
    mdp, policy = world(4, eos, 4, gamma=0.9, n_prompts=2)
    monkeypatch.setattr(exact, "BLOCK", block)
    _, grads = exact_gradient(policy, mdp)
    assert_levels_close(grads, enumerated_gradient(policy, mdp)[1])


@settings(deadline=None, max_examples=40)
@given(worlds())
def test_values_are_averages_over_the_responses_below(drawn):
    """Reach, U and the variance of every prefix from the probabilities and rewards of the responses that begin with
    it."""
    mdp, policy = drawn
    values = values_of(policy, mdp)
    prompt, tokens, mask, reward = responses(mdp)
    probability = logp_of(policy, prompt, tokens, mask).sum(-1).exp().detach()
    assert (
        pytest.approx(float(mdp.prompt_probability @ (probability * reward).sum(-1)), rel=1e-10, abs=1e-13) == values.J
    )
    for level in range(mdp.horizon):
        for index, prefix in enumerate(mdp.tree.level_prefixes(level)):
            below = (mdp.tree.leaves[:, :level] == prefix).all(-1)
            weight, rm = probability[:, below], reward[:, below]
            mean = (weight * rm).sum(-1) / weight.sum(-1)
            variance = (weight * (rm - mean[:, None]) ** 2).sum(-1) / weight.sum(-1)
            torch.testing.assert_close(values.reach[level][:, index], weight.sum(-1))
            torch.testing.assert_close(values.U[level][:, index], mean, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(values.variance[level][:, index], variance, rtol=1e-9, atol=1e-12)
            for token in range(mdp.vocab_size):
                longer = below & (mdp.tree.leaves[:, level] == token)
                mean = (probability * reward)[:, longer].sum(-1) / probability[:, longer].sum(-1)
                torch.testing.assert_close(values.U_edge[level][:, token, index], mean, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(worlds())
def test_future_and_past_rewards_add_up_along_every_response(drawn):
    """Along a response: collected is the discounted sum so far, Q its own reward and the discounted V of the next
    prefix."""
    mdp, policy = drawn
    values = values_of(policy, mdp)
    prompt, tokens, mask, _ = responses(mdp)
    reward = mdp.hidden_reward(prompt, tokens, mask)
    index = mdp.tree.prefix_index(tokens)
    for p in range(len(mdp.prompts)):
        for row in range(tokens.shape[1]):
            collected = 0.0
            length = int(mask[p, row].sum())
            for t in range(length):
                node = int(index[p, row, t])
                ahead = values.V[t + 1][p, index[p, row, t + 1]].item() if t + 1 < length else 0.0
                assert values.collected[t][p, node].item() == pytest.approx(collected, abs=1e-12)
                r = reward[p, row, t].item()
                assert values.Q[t][p, tokens[p, row, t], node].item() == pytest.approx(r + mdp.gamma * ahead)
                collected += mdp.gamma**t * r


def test_one_step_is_the_softmax_bandit():
    mdp, policy = world(4, 2, 1)
    _, grads = exact_gradient(policy, mdp)
    reward = reward_levels(mdp)[0][0, :, 0]
    exp = policy.levels[0].detach()[0, :, 0].exp()
    pi = exp / exp.sum()
    expected = torch.stack([pi[w] * (reward[w] - sum(pi[v] * reward[v] for v in range(4))) for w in range(4)])
    torch.testing.assert_close(grads[0][0, :, 0], expected)


def test_uniform_policy_on_a_sparse_reward():
    """Reward 8 for (1, 2) only, V = 4, no end token, γ = 1/2: J = 8/2/16; the gradient lies on the path to it alone."""
    tree = PrefixTree(4, None, 2)
    mdp = TokenMDP(4, None, 2, SparseReward({(1, 2): 8.0}), gamma=0.5)
    J, (first, second) = exact_gradient(TabularPolicy.random(tree, mdp.prompt_tokens, seeded(0), scale=0.0), mdp)
    assert J == 0.25
    assert first[0, :, 0].tolist() == [-1 / 16, 3 / 16, -1 / 16, -1 / 16]
    assert second[0, :, 1].tolist() == [-1 / 16, -1 / 16, 3 / 16, -1 / 16]
    assert second[0, :, [0, 2, 3]].count_nonzero() == 0


def test_huge_logits_make_a_deterministic_policy_without_overflow():
    mdp, policy = world(3, 0, 3)
    with torch.no_grad():
        for level in policy.levels:
            level.mul_(0).sub_(3e4)[:, 2] += 6e4
    J, grads = exact_gradient(policy, mdp)
    path = sum(level[0, 2, index].item() for level, index in zip(reward_levels(mdp), [0, 1, 3]))
    assert pytest.approx(path) == J
    assert all(grad.count_nonzero() == 0 for grad in grads)
    values = values_of(policy, mdp)
    assert values.J == J
    assert values.variance[0].item() == 0
    assert all(torch.equal(b, u) for b, u in zip(optimal_baseline(mdp, values), values.U))


def test_variance_keeps_its_digits_beside_a_large_mean():
    mdp, policy = world(3, None, 3, seed=5)
    shifted = [level + (1e8 if number == 0 else 0) for number, level in enumerate(reward_levels(mdp))]
    far = tree_values(mdp, node_logits(policy, mdp), shifted)
    assert far.variance[0].item() == pytest.approx(values_of(policy, mdp).variance[0].item(), rel=1e-6)


def test_potential_based_shaping_leaves_the_gradient_alone():
    generator = seeded(3)
    base = NgramReward.random(4, 1, generator)
    potential = PotentialReward(torch.randn(5, generator=generator, dtype=torch.float64), gamma=0.8)
    prompts = (Prompt((1,), 0.25), Prompt((2, 3), 0.75))
    plain = TokenMDP(4, 2, 4, base, 0.8, prompts)
    shaped = TokenMDP(4, 2, 4, SumReward((base, potential)), 0.8, prompts)
    policy = TabularPolicy.random(plain.tree, plain.prompt_tokens, generator)
    J, grads = exact_gradient(policy, plain)
    shaped_J, shaped_grads = exact_gradient(policy, shaped)
    assert_levels_close(shaped_grads, grads)
    start = 0.25 * potential.potential[1] + 0.75 * potential.potential[3]
    assert J - shaped_J == pytest.approx(start.item())


def test_inputs_stay_as_they_were():
    mdp, policy = world(4, 1, 3, gamma=0.7, n_prompts=2)
    logits, rewards = [level.detach() for level in policy.levels], reward_levels(mdp)
    before = [level.clone() for level in (*logits, *rewards)]
    _, grads = tree_gradient(mdp, logits, rewards)
    tree_values(mdp, logits, rewards)
    grads[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip((*logits, *rewards), before))


class TinyNetwork(PolicyModule):
    """float32, all parameters shared by all prefixes, one frozen and one without any use."""

    def __init__(self, vocab_size, generator):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Parameter(torch.randn(vocab_size + 1, 3, generator=generator))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.randn(vocab_size, generator=generator), requires_grad=False)
        self.head = nn.Parameter(torch.randn(vocab_size, 3, generator=generator))

    def logits(self, prompt, tokens):
        past = self.embedding[context(prompt, tokens, 6)]
        place = torch.arange(1.0, 7.0)[:, None]
        return (past * place).sum(-2).tanh() @ self.head.T + self.frozen


@settings(deadline=None, max_examples=20)
@given(worlds())
def test_any_other_policy_goes_through_its_logits(drawn):
    mdp, _ = drawn
    policy = TinyNetwork(mdp.vocab_size, seeded(1))
    J, grads = exact_gradient(policy, mdp)
    policy.frozen.requires_grad_(True)
    expected_J, expected = enumerated_gradient(policy, mdp)
    expected[2] = torch.zeros(mdp.vocab_size)
    assert pytest.approx(expected_J, rel=1e-5, abs=1e-6) == J
    assert [grad.dtype for grad in grads] == [torch.float32] * 4
    assert_levels_close(grads, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [False, True])
def test_shared_parameters_of_an_ngram_policy(steps):
    mdp, _ = world(3, 1, 4, gamma=0.9, n_prompts=3)
    policy = NgramPolicy.random(3, 2, seeded(2), horizon=4 if steps else None)
    J, grads = exact_gradient(policy, mdp)
    expected_J, expected = enumerated_gradient(policy, mdp)
    assert pytest.approx(expected_J) == J
    assert_levels_close(grads, expected)


def test_node_logits_of_a_table_are_its_own_parameters():
    mdp, policy = world(3, 0, 3)
    assert all(a is b for a, b in zip(node_logits(policy, mdp), policy.levels))


def test_gradient_is_the_slope_of_J():
    mdp, policy = world(4, 3, 4, gamma=0.9, n_prompts=2, seed=8)
    _, grads = exact_gradient(policy, mdp)
    generator, step = seeded(4), 1e-5
    direction = [torch.randn(level.shape, generator=generator, dtype=torch.float64) for level in policy.levels]

    def J(shift):
        moved = [level.detach() + shift * d for level, d in zip(policy.levels, direction)]
        return tree_gradient(mdp, moved, reward_levels(mdp))[0]

    slope = sum((g * d).sum().item() for g, d in zip(grads, direction))
    assert (J(step) - J(-step)) / (2 * step) == pytest.approx(slope, rel=1e-7)


@settings(deadline=None, max_examples=20)
@given(worlds(), st.integers(0, 2**31))
def test_no_baseline_beats_the_optimal_one(drawn, seed):
    """E|X₁ - b|²|X₂|² at every state, with scores from autograd, is smallest at b."""
    mdp, policy = drawn
    values = values_of(policy, mdp)
    generator = seeded(seed)
    for level, b in enumerate(optimal_baseline(mdp, values)):
        logits = policy.levels[level].detach()
        jacobian = torch.func.jacrev(lambda row: row.log_softmax(0))
        rows = logits.transpose(1, 2).reshape(-1, mdp.vocab_size)
        norm2 = (
            torch.func.vmap(jacobian)(rows).square().sum(-1).reshape(len(logits), -1, mdp.vocab_size).transpose(1, 2)
        )

        def second_moment(baseline, level=level, norm2=norm2, logits=logits):
            return (logits.softmax(1) * norm2 * (values.U_edge[level] - baseline[:, None]) ** 2).sum(1)

        best = second_moment(b)
        other = b + 0.1 * torch.randn(b.shape, generator=generator, dtype=torch.float64)
        assert (best <= second_moment(other) + 1e-12).all()
        assert (best < second_moment(b + 0.1)).all()
        assert (best < second_moment(b - 0.1)).all()


def test_optimal_baseline_with_given_score_norms():
    """If only one token has a score, the best baseline is what that token is worth."""
    mdp, policy = world(3, 0, 3, n_prompts=2)
    values = values_of(policy, mdp)
    norms = [torch.zeros_like(level) for level in values.Q]
    for norm in norms:
        norm[:, 1] = 2.5
    for baseline, worth in zip(optimal_baseline(mdp, values, norms), values.U_edge):
        torch.testing.assert_close(baseline, worth[:, 1])


def test_a_tree_too_large_is_refused_before_it_is_built():
    mdp = TokenMDP(50, 0, 1000, SparseReward({(1, 2): 1.0}))
    with pytest.raises(ValueError, match=r"about 10\^1690 leaves.*NgramPolicy"):
        exact_gradient(NgramPolicy.random(50, 1, seeded(0)), mdp)
    with pytest.raises(ValueError, match="leaves"):
        node_logits(NgramPolicy.random(50, 1, seeded(0)), mdp)


def test_wrong_shapes_and_numbers_are_named():
    mdp, policy = world(3, 0, 3)
    logits, rewards = [level.detach() for level in policy.levels], reward_levels(mdp)
    with pytest.raises(ValueError, match=r"logits_levels\[1\] has shape \(1, 3, 4\)"):
        tree_gradient(mdp, [logits[0], logits[2], logits[2]], rewards)
    with pytest.raises(ValueError, match="reward_levels has 2 levels"):
        tree_values(mdp, logits, rewards[:2])
    with pytest.raises(ValueError, match="score_norm2 has 1 levels"):
        optimal_baseline(mdp, tree_values(mdp, logits, rewards), rewards[:1])
    with pytest.raises(ValueError, match="J is nan"):
        tree_gradient(mdp, [logits[0], logits[1], logits[2] * float("nan")], rewards)
    with pytest.raises(ValueError, match="J is inf"):
        tree_values(mdp, logits, [rewards[0], rewards[1], rewards[2] + float("inf")])
    other_end, _ = world(3, 1, 3)
    other_prompt = TokenMDP(3, 0, 3, mdp.token_reward, prompts=(Prompt((2,)),))
    for other in (other_end, other_prompt):
        with pytest.raises(ValueError, match="make a new one"):
            node_logits(policy, other)
