"""Token MDPs as tasks: every way of scoring agrees with the MDP; the diagnostics separate what they say they separate,
exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import GRPO, PPO, REINFORCE, RLOO
from llm_mdp.exact.instances import InstanceError, random_instance
from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp_envs import TokenVectorEnv
from llm_mdp_envs.tasks import synthetic
from llm_mdp_envs.tasks.diagnostics import Credit, Forked, LengthBias, Needle, RareSuccess
from llm_mdp_envs.tasks.synthetic import Ngram, Tabular, TokenMDPTask, instance, optimum
from tests.strategies import REWARDS, padded, plain_responses, token_mdps

DIAGNOSTICS = (Needle, Credit, Forked, LengthBias, RareSuccess)

# --- scores are those of the MDP ---


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_way_of_scoring_gives_the_mdps_reward(name, data):
    """All complete responses to all prompts, against RM computed response by response: by response, by context, and
    computed."""
    mdp = data.draw(token_mdps(rewards=(name,)))
    by_response, by_context, computed = TokenMDPTask(mdp), TokenMDPTask(mdp), TokenMDPTask(mdp)
    by_context._leaf_table = computed._leaf_table = computed._markov_table = None
    responses = padded(plain_responses(mdp.tree), mdp.horizon)
    for number, prompt in enumerate(mdp.prompt_tokens):
        expected = mdp.response_reward(prompt.expand(len(responses), -1), responses, responses >= 0)
        tokens, secrets = responses.numpy(), np.full((len(responses), 1), number)
        hidden = mdp.hidden_reward(prompt.expand(len(responses), -1), responses, responses >= 0)
        questions = [by_response.from_prompt(tuple(token for token in prompt.tolist() if token >= 0))] * len(responses)
        known = by_response.token_rewards(questions, tokens, tokens >= 0)
        np.testing.assert_allclose(known, hidden, rtol=0, atol=1e-12)
        for task in (by_response, by_context, computed):
            np.testing.assert_allclose(
                task.score_rows(secrets, tokens, tokens >= 0).reward, expected, rtol=0, atol=1e-12
            )


@pytest.mark.parametrize(
    "task", [Ngram(vocab_size=5, horizon=30, gamma=0.9), Ngram(vocab_size=3, horizon=40, order=2, eos=None)]
)
def test_long_responses_are_scored_by_context(task):
    env = TokenVectorEnv(task, 50)
    env.reset(seed=0)
    rows = np.random.default_rng(0).integers(task.vocab_size, size=(50, task.horizon))
    if task.eos is not None:
        rows[(np.cumsum(rows == task.eos, axis=1) - (rows == task.eos)) > 0] = -1
    tokens = torch.from_numpy(rows)
    expected = task.mdp.response_reward(torch.empty(50, 0, dtype=torch.int64), tokens, tokens >= 0)
    assert task._leaf_table is None and task._markov_table is not None
    scored = env.replay([task.question(np.random.default_rng(0))] * 50, rows).reward
    np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-12)


def test_what_fits_in_no_table_is_computed(monkeypatch):
    task = Ngram(vocab_size=4, horizon=5)
    monkeypatch.setattr(synthetic, "LARGEST_TABLE", 10)
    assert task._leaf_table is None and task._markov_table is None
    tokens = np.array([[1, 2, 0, -1, -1]])
    table = task.mdp.token_reward.table
    expected = float(table[4, 1] + table[1, 2] + table[2, 0])
    assert task.score_rows(np.array([[0]]), tokens, tokens >= 0).reward[0] == pytest.approx(expected, abs=1e-12)


# --- tabular, n-gram ---


def test_tabular_is_the_random_instance_of_its_seed():
    ours = Tabular(vocab_size=3, horizon=3, eos=1, gamma=0.9, n_prompts=2, seed=5).mdp
    theirs = random_instance(3, 3, eos=1, gamma=0.9, n_prompts=2, seed=5).mdp
    assert ours.prompts == theirs.prompts and (ours.eos, ours.gamma) == (1, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(ours.token_reward.table, theirs.token_reward.table))


def test_prompts_are_drawn_by_their_probabilities():
    task = Tabular(n_prompts=3, vocab_size=3)
    secrets = task.draw(np.random.default_rng(0), 60_000)
    np.testing.assert_allclose(np.bincount(secrets[:, 0]) / 60_000, [1 / 6, 2 / 6, 3 / 6], atol=0.01)
    assert task.prompts(secrets[:5]).tolist() == secrets[:5].tolist()


def test_the_optimum_is_the_best_responses_reward():
    task = Tabular(vocab_size=3, horizon=3, n_prompts=2, gamma=0.7)
    mdp = task.mdp
    best = [
        max(
            mdp.response_reward(prompt, torch.tensor(one), torch.ones(len(one), dtype=torch.bool))
            for one in plain_responses(mdp.tree)
        )
        for prompt in mdp.prompt_tokens
    ]
    assert optimum(task) == pytest.approx(float(best[0] / 3 + best[1] * 2 / 3))
    with pytest.raises(ValueError, match=r"Ngram has .* responses, too many to list"):
        optimum(Ngram())


@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_dynamic_programming_agrees_with_all_responses(order, eos):
    """And, of the uniform policy, with the n-gram programme. The same task, without its table of responses, must say
    the same; prompts count as what stands before."""
    reward = NgramReward.random(3, order, torch.Generator().manual_seed(order))
    prompts = (Prompt((2,), 0.25), Prompt((0, 1), 0.75))
    mdp = TokenMDP(3, eos, 4, reward, 0.5, prompts)
    listed, programmed = TokenMDPTask(mdp), TokenMDPTask(mdp)
    programmed._leaf_table = None
    assert programmed.best_reward() == pytest.approx(listed.best_reward()) == pytest.approx(optimum(listed))
    uniform, _ = ngram_gradient(NgramPolicy(torch.zeros(1, 1, 3), 0), mdp)
    assert programmed.random_reward() == pytest.approx(uniform) == pytest.approx(listed.random_reward())
    assert listed.random_reward() < listed.best_reward()


def test_best_and_random_rewards_of_the_diagnostics_by_hand():
    assert [task.best_reward() for task in (Needle(), Credit(), LengthBias(), RareSuccess())] == [1, 1, 1, 1]
    assert Forked(height=7.0).best_reward() == pytest.approx(7 + 3)
    assert Needle(vocab_size=8).random_reward() == pytest.approx(1 / 8)
    assert RareSuccess(vocab_size=4, horizon=5).random_reward() == pytest.approx(4**-5)
    assert Forked(vocab_size=4, horizon=4, height=7.0).random_reward() == pytest.approx(7 / 2 + 3 / 4)


def test_simulated_rewards_have_the_exact_mean():
    """Uniform actions in the environment against J of the uniform policy, by the n-gram programme."""
    task = Ngram(vocab_size=6, horizon=20)
    env = TokenVectorEnv(task, 4000)
    env.reset(seed=0)
    rng, total, going = np.random.default_rng(0), np.zeros(4000), np.ones(4000, dtype=bool)
    while going.any():
        _, reward, terminated, _, _ = env.step(rng.integers(6, size=4000))
        total += reward * going
        going &= ~terminated
    J, _ = ngram_gradient(NgramPolicy(torch.zeros(1, 7, 6), 1), task.mdp)
    assert abs(total.mean() - J) < 4 * total.std() / np.sqrt(4000)


# --- diagnostics ---


def problem(task) -> Problem:
    """At the uniform policy, where everything is known."""
    flat = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator(), scale=0.0)
    return Problem(replace(instance(task), policy=flat))


@pytest.mark.parametrize("make", [*DIAGNOSTICS, Tabular])
def test_a_task_is_a_verification_problem(make):
    small = {"vocab_size": 3, "horizon": 3}
    one = Problem(instance(make(**small), seed=3))
    assert exact_certificate(RLOO(group_size=2), one.enumeration, one.target("reward")).verdict == "unbiased"


@pytest.mark.parametrize("make", DIAGNOSTICS)
def test_diagnostics_say_in_four_lines_what_they_separate(make):
    lines = make.__doc__.split("\n\n")[0].splitlines()
    assert len(lines) == 4 and lines[1].strip().startswith("Separates ") and make.separates


@pytest.mark.parametrize(
    ("task", "best", "uniform"),
    [
        (Needle(vocab_size=5, horizon=3), 1, 1 / 5),
        (Credit(vocab_size=4, horizon=4), 1, 0),
        (Forked(vocab_size=4, horizon=4, height=7), 10, 3.5 + 3 / 4),
        (LengthBias(vocab_size=4, horizon=4), 1, 1 / 4),
        (RareSuccess(vocab_size=3, horizon=4), 1, 1 / 81),
    ],
)
def test_best_and_uniform_rewards(task, best, uniform):
    assert optimum(task) == pytest.approx(best)
    assert exact_gradient(problem(task).instance.policy, task.mdp)[0] == pytest.approx(uniform)


@pytest.mark.parametrize("make", DIAGNOSTICS)
def test_seeds_choose_what_is_rewarded(make):
    def rewards(seed):
        task = make(vocab_size=4, horizon=3, seed=seed)
        leaves = task.mdp.tree.leaves.numpy()
        return task.score_rows(np.zeros((len(leaves), 1), dtype=int), leaves, leaves >= 0).reward

    assert (rewards(1) == rewards(1)).all() and len({rewards(seed).tobytes() for seed in range(8)}) > 1


def spread(task, estimator) -> float:
    """tr Cov of one response's gradient, at the uniform policy."""
    one = problem(task)
    return exact_moments(estimator(one), one.enumeration).trace_covariance


def shared_baseline(one: Problem) -> REINFORCE:
    """The best that a baseline of the prompt can be, about."""
    return REINFORCE(baseline=one.gradient[0])


def own_values(one: Problem) -> PPO:
    """Values of prefixes, exact."""
    return PPO(critic=one.exact_u, lam=0.0)


def test_needle_noise_grows_with_the_horizon():
    ratio = [spread(Needle(4, T), shared_baseline) / spread(Needle(4, T), own_values) for T in (2, 4)]
    assert ratio[0] > 1.5 and ratio[1] > 1.5 * ratio[0]
    gradient = problem(Needle(4, 3)).gradient[1]
    assert (
        all(float(level.detach().abs().max()) < 1e-15 for level in gradient[:-1])
        and float(gradient[-1].detach().abs().max()) > 0
    )


def test_credit_separates_values_of_prefixes_from_one_reward_for_all():
    assert spread(Credit(2, 8), own_values) == 0 and spread(Credit(2, 8), shared_baseline) == pytest.approx(7 / 2)
    ratio = [spread(Credit(4, T), shared_baseline) / spread(Credit(4, T), own_values) for T in (2, 5)]
    assert ratio[0] > 1.5 and ratio[1] > 2 * ratio[0]
    assert all(float(level.detach().abs().max()) < 1e-15 for level in problem(Credit(2, 5)).gradient[1][1:])


def test_forked_separates_by_the_square_of_its_height():
    after_the_fork = [
        spread(Forked(4, 4, height), shared_baseline) - spread(Forked(4, 4, height), own_values)
        for height in (10.0, 100.0)
    ]
    assert after_the_fork[0] > 0 and 50 < after_the_fork[1] / after_the_fork[0] < 110


def test_length_bias_makes_wrong_answers_long_and_right_ones_short():
    """The mean over a response's tokens moves the end token after a wrong answer down; the exact gradient does not move
    it at all."""
    task = LengthBias(vocab_size=3, horizon=4)
    one = problem(task)
    right = int(task.mdp.token_reward.weights[0].argmax())
    normalised = exact_moments(GRPO(group_size=2, scale_by_std=False, reduction="sequence_mean"), one.enumeration).mean
    end_token_of_level_1 = normalised[3:5]  # prefixes (1) and (2)
    assert end_token_of_level_1[right - 1] > 1e-3 and end_token_of_level_1[2 - right] < -1e-3
    assert float(one.target("reward")[3:].abs().max()) < 1e-15
    assert exact_certificate(RLOO(group_size=2), one.enumeration, one.target("reward")).verdict == "unbiased"


def test_rare_success_inflates_the_rare_group_that_has_one():
    """Its std is about 1/√K, so dividing by it makes the step √K times as long."""
    one = problem(RareSuccess(vocab_size=2, horizon=3))

    def scale(K, by_std):
        return exact_certificate(GRPO(group_size=K, scale_by_std=by_std), one.enumeration, one.target("reward")).scale

    assert [scale(K, True) / scale(K, False) for K in (2, 4)] == pytest.approx([2**0.5, 2], rel=0.15)


def test_tasks_too_large_to_list_are_refused():
    with pytest.raises(InstanceError, match="too large a tree"):
        instance(Ngram())
    with pytest.raises(InstanceError, match="too large a tree"):
        Tabular(vocab_size=50, horizon=10)


BAD = [
    (Tabular, {"vocab_size": 1}, "vocab_size is 1; "),
    (Tabular, {"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    (Tabular, {"seed": 1.5}, "seed is 1.5; "),
    (Tabular, {"n_prompts": 0}, "n_prompts is 0; "),
    (Tabular, {"gamma": 2}, "gamma is 2; "),
    (Ngram, {"horizon": 0}, "horizon is 0; "),
    (Ngram, {"eos": 16}, "eos is 16, outside the vocabulary 0 … 15"),
    (Ngram, {"order": -1}, "order is -1; it must be a whole number of at least 0"),
    (Ngram, {"order": 9}, "order is 9, which over 16 tokens makes too large a table of rewards"),
    (Needle, {"vocab_size": 1}, "vocab_size is 1; "),
    (Credit, {"seed": "x"}, "seed is 'x'; "),
    (Forked, {"horizon": 1}, "horizon is 1; a fork needs a step before it and one after"),
    (Forked, {"height": -1}, "height is -1; it must be a finite number of at least 0"),
    (Forked, {"height": float("nan")}, "height is nan; "),
    (LengthBias, {"vocab_size": 2}, "vocab_size is 2 and horizon 8; "),
    (RareSuccess, {"horizon": 0}, "horizon is 0; "),
]


@pytest.mark.parametrize(("make", "arguments", "message"), BAD)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError) as caught:
        make(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
