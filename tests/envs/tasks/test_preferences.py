"""Preference pairs: label frequencies against the Bradley-Terry model, exactly and on real rollouts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_mdp.estimators.objectives import dpo_loss, preference_probability
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PrefixTree, pad_prompts
from llm_mdp.sampling.policies import TabularPolicy, logp_of
from llm_mdp_envs.adapters import CallableReward
from llm_mdp_envs.tasks.preferences import label_pairs, preferences_of_policy, preferences_of_task

N = 200_000
THREES = torch.zeros(2, 3, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mdp():
    prompts = (Prompt((0,), 0.3), Prompt((1, 2), 0.7))
    tree, padded = PrefixTree(3, 2, 2), pad_prompts([prompt.tokens for prompt in prompts])
    return TokenMDP(3, 2, 2, TableReward.random(tree, padded, generator(1)), prompts=prompts)


@pytest.fixture(scope="module")
def policy(mdp):
    return TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator(2))


def leaf_index(mdp, tokens):
    return (tokens[:, None] == mdp.tree.leaves).all(-1).int().argmax(-1)


def chi_square(counts: torch.Tensor, probability: torch.Tensor) -> float:
    """(χ² - degrees of freedom) / its standard deviation: about normal, so below 5 unless the probabilities are
    wrong."""
    expected = probability * counts.sum()
    assert bool((counts[expected == 0] == 0).all())
    seen = expected > 0
    freedom = float(seen.sum() - 1)
    statistic = float(((counts[seen] - expected[seen]) ** 2 / expected[seen]).sum())
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_pairs_of_a_policy_have_their_exact_probabilities(mdp, policy, temperature):
    """P(prompt, chosen, rejected) = p(prompt) · 2 π(W) π(W') σ((RM(W) - RM(W'))/τ), all cells at once."""
    pairs = preferences_of_policy(mdp, policy, N, generator(3), temperature=temperature)
    leaves = mdp.tree.leaves
    exact = []
    for prompt, probability in zip(mdp.prompt_tokens, mdp.prompt_probability):
        rows = prompt.expand(len(leaves), -1)
        pi = logp_of(policy, rows, leaves, leaves >= 0).sum(-1).exp()
        reward = mdp.response_reward(rows, leaves, leaves >= 0)
        wins = 1 / (1 + ((reward[None, :] - reward[:, None]) / temperature).exp())
        exact.append(probability * 2 * pi[:, None] * pi[None, :] * wins)
    exact = torch.stack(exact).detach()
    assert float(exact.sum()) == pytest.approx(1.0)
    which = (pairs.prompt[:, None] == mdp.prompt_tokens).all(-1).int().argmax(-1)
    chosen, rejected = leaf_index(mdp, pairs.chosen), leaf_index(mdp, pairs.rejected)
    code = (which * len(leaves) + chosen) * len(leaves) + rejected
    counts = torch.bincount(code, minlength=exact.numel()).double()
    assert chi_square(counts, exact.flatten()) < 5
    swapped = exact.transpose(1, 2).flatten()
    assert chi_square(counts, swapped) > 100  # the test would notice labels the wrong way round
    assert torch.equal(pairs.chosen_mask, pairs.chosen >= 0) and torch.equal(pairs.rejected_mask, pairs.rejected >= 0)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.1, 10))
def test_one_of_two_wins(reward, other, temperature):
    both = torch.tensor([reward, other], dtype=torch.float64)
    probability = preference_probability(both, both.flip(0), temperature)
    assert float(probability.sum()) == pytest.approx(1.0)
    assert float(probability[0]) == pytest.approx(1 / (1 + np.exp(-(reward - other) / temperature)), rel=1e-9)


def test_equal_responses_are_kept_and_far_rewards_decide():
    tokens = torch.tensor([[[0, 1], [0, 1]], [[0, 1], [1, -1]]])
    pairs = label_pairs(torch.zeros(2, 1), tokens, tokens >= 0, torch.tensor([[1.0, 1.0], [0.0, 900.0]]), generator())
    assert len(pairs) == 2 and torch.equal(pairs.chosen[0], pairs.rejected[0])
    assert pairs.chosen[1].tolist() == [1, -1] and pairs.chosen_mask[1].tolist() == [True, False]
    assert len(pairs.take(torch.tensor([1]))) == 1 and pairs.take(torch.tensor([1])).rejected.tolist() == [[0, 1]]


def test_the_generator_decides_everything(mdp, policy):
    first, second, third = (preferences_of_policy(mdp, policy, 50, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.chosen, second.chosen) and torch.equal(first.rejected, second.rejected)
    assert not torch.equal(first.chosen, third.chosen)


def test_pairs_of_a_task():
    task = CallableReward(lambda prompt, response: float(response.count("a")), ["short", "a longer one"])
    draw = np.random.default_rng(0)
    questions = [task.question(draw) for _ in range(4)] * 500
    rows = [[*b"aa", 256, -1], [*b"bbb", 256]]
    tokens = torch.tensor([rows if number % 2 else rows[::-1] for number in range(2000)])
    pairs = preferences_of_task(task, questions, tokens, generator(1), temperature=2.0)
    won = (pairs.chosen[:, 0] == ord("a")).double().mean()
    probability = 1 / (1 + np.exp(-2.0 / 2.0))
    assert abs(float(won) - probability) < 5 * (probability * (1 - probability) / 2000) ** 0.5
    assert [tuple(row[row >= 0].tolist()) for row in pairs.prompt[:4]] == [
        question.prompt for question in questions[:4]
    ]
    assert torch.equal(pairs.chosen_mask, pairs.chosen >= 0)


def test_dpo_on_these_pairs_finds_its_closed_form():
    """The pairs serve their purpose: minimising the DPO loss on them gives ref exp(RM/β)/Z, up to noise in the
    labels."""
    tree, prompts, beta = PrefixTree(2, None, 2), pad_prompts([()]), 1.0
    mdp = TokenMDP(2, None, 2, TableReward.random(tree, prompts, generator(7)))
    reference, policy = (TabularPolicy.random(tree, prompts, generator(8), scale=0.3) for _ in range(2))
    pairs = preferences_of_policy(mdp, reference, N, generator(9))
    code = leaf_index(mdp, pairs.chosen) * 4 + leaf_index(mdp, pairs.rejected)
    weight = torch.bincount(code, minlength=16).double().reshape(4, 4) / N
    leaves, rows = tree.leaves, prompts.expand(4, 0)
    reference_logp = logp_of(reference, rows, leaves, leaves >= 0).sum(-1).detach()
    optimiser = torch.optim.LBFGS(policy.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        ratio = logp_of(policy, rows, leaves, leaves >= 0).sum(-1) - reference_logp
        value = (weight * dpo_loss(ratio[:, None], ratio[None, :], beta)).sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = Enumeration(mdp, policy).leaf_logp().sum(-1).flatten().detach()
    unnormalised = reference_logp + mdp.response_reward(rows, leaves, leaves >= 0) / beta
    assert float((found - (unnormalised - unnormalised.logsumexp(0))).abs().max()) < 0.03
    assert float((found - reference_logp).abs().max()) > 0.2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: preference_probability(torch.ones(2), torch.ones(2), 0.0), "temperature is 0.0; it must be above 0"),
        (
            lambda: preference_probability(torch.tensor([1.0, float("nan")]), torch.ones(2)),
            "reward of response 1 is nan",
        ),
        (
            lambda: label_pairs(torch.zeros(2, 1), THREES, THREES, torch.zeros(2, 2), generator()),
            "do not fit 2 prompts",
        ),
        (
            lambda: preferences_of_task(CallableReward(len, ["a"]), [], THREES, generator()),
            "shape \\(2, 3, 1\\) for 0 questions",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_pairs(mdp, policy):
    with pytest.raises(ValueError, match="n is 0; draw at least 1 pair"):
        preferences_of_policy(mdp, policy, 0, generator())
