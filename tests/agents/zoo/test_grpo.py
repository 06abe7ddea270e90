"""DAPO's dynamic sampling: a batch is filled up with groups that have signal, and what is estimated stays the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_mdp.estimators.values import has_signal
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.hidden_rewards import LastTokenReward
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent, GRPOConfig
from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.tasks.synthetic import TokenMDPTask


class Coins(Task):
    """One token, 0 or 1. Question number n has signal to give if n is in `right`; else every response is worth 0."""

    vocab_size, eos, horizon, prompt_length = 2, None, 1, 1

    def __init__(self, right):
        self.right, self.asked = right, 0

    def question(self, generator):
        self.asked += 1
        return Question((0,), self.asked - 1)

    def score(self, questions, tokens, mask):
        return Scores(
            np.array([float(row[0] == 1 and self.right(each.secret)) for each, row in zip(questions, tokens)])
        )


def sampler_of(task: Task, policy, prompts: int) -> TaskSampler:
    return TaskSampler(policy, task, torch.Generator().manual_seed(0), np.random.default_rng(0), prompts)


def agent_of(task: Task, policy, **options) -> GRPOAgent:
    return GRPOAgent(GRPOConfig(**({"group_size": 2, "dynamic_sampling": True} | options)), policy, task)


def drawn(task: Coins, prompts: int, monkeypatch, **options):
    """A batch of the agent where both tokens come up in every group, and the secrets of its questions."""
    policy = TabularPolicy.random(
        TokenMDPTask(random_instance(2, 1, eos=None, seed=0).mdp).mdp.tree,
        torch.tensor([[0]]),
        torch.Generator().manual_seed(0),
    )
    agent, source = agent_of(task, policy, **options), sampler_of(task, policy, prompts)
    rollouts = source.rollouts

    def both(group_size, temperature=1.0, behaviour=None):
        found = rollouts(group_size, temperature, behaviour)
        return replace(found, tokens=torch.arange(len(found.tokens))[:, None] % 2)

    monkeypatch.setattr(source, "rollouts", both)
    evidence = agent.collect(source)
    return agent, source, evidence


def test_a_batch_is_filled_with_groups_that_have_signal(monkeypatch):
    """Every third prompt: 6 groups take 18 prompts, in rounds that ask for what is likely to be missing."""
    task = Coins(lambda number: number % 3 == 2)
    agent, source, evidence = drawn(task, 6, monkeypatch)
    assert len(evidence.response_reward) == 12 and bool(has_signal(evidence.response_reward, 2).all())
    secrets = [question.secret for question in source.questions]
    assert secrets == [each for number in (2, 5, 8, 11, 14, 17) for each in (number, number)], "in their order"
    # 6 asked, 2 found; 4 are missing, so 6 (no more than a batch at once), 4 found; 2 are missing, so 6 again.
    assert task.asked == 18 and source.prompts_per_batch == 6
    figures = agent.finish_batch(evidence)
    assert figures == {"refills": 2, "groups_with_signal": 6 / 18, "groups_missing": 0, "groups_left_over": 0}


def test_a_round_asks_for_as_many_prompts_as_are_likely_to_do(monkeypatch):
    task = Coins(lambda number: number % 4 != 3)
    agent, _, evidence = drawn(task, 8, monkeypatch)
    # 6 of 8; 2 are missing, so ⌈2 · 8/6⌉ = 3 more, all of which have some.
    assert task.asked == 11 and len(evidence.response_reward) == 16
    assert agent.told["groups_left_over"] == 1 and agent.told["refills"] == 1


def test_what_is_left_over_or_missing_is_said(monkeypatch):
    task = Coins(lambda number: number == 0 or number >= 8)
    agent, source, evidence = drawn(task, 4, monkeypatch, refill=1)
    assert len(evidence.response_reward) == 2 and task.asked == 8
    assert agent.told == {"refills": 1, "groups_with_signal": 1 / 8, "groups_missing": 3, "groups_left_over": 0}
    task = Coins(lambda number: number in (3, 4, 5, 6, 7))
    agent, source, evidence = drawn(task, 4, monkeypatch)
    assert agent.told == {"refills": 1, "groups_with_signal": 5 / 8, "groups_missing": 0, "groups_left_over": 1}
    assert {question.secret for question in source.questions} == {3, 4, 5, 6}, "the first ones"


def test_without_refills_what_leaves_is_not_made_up_for(monkeypatch):
    task = Coins(lambda number: number == 1)
    agent, _, evidence = drawn(task, 4, monkeypatch, refill=0)
    assert task.asked == 4 and len(evidence.response_reward) == 2 and agent.told["groups_missing"] == 3


def test_a_batch_without_any_signal_is_skipped_and_says_so(monkeypatch):
    task = Coins(lambda number: False)
    with pytest.raises(NothingKept, match=r"none of 20 groups, in 5 rounds, has two different rewards; take an easier"):
        drawn(task, 4, monkeypatch)


@pytest.mark.parametrize("name, value", [("refill", -1), ("overlong_tokens", -2)])
def test_counts_are_at_least_0(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be at least 0\."):
        GRPOConfig(**{name: value})


def rare(seed: int = 2) -> Problem:
    """Rewards of 0 and 1 that are often equal."""
    instance = random_instance(3, 2, n_prompts=2, seed=seed)
    mdp = replace(instance.mdp, token_reward=LastTokenReward(lambda prompt, tokens, mask: (tokens == 1).sum(-1) % 2))
    return Problem(replace(instance, mdp=mdp), group_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("refill", [0, 1, 3])
def test_filling_a_batch_changes_the_noise_and_not_what_is_estimated(refill):
    """The mean gradient over many small batches against the exact expectation of one round, E[g | signal]."""
    p = rare()
    policy = p.instance.policy
    options = {"scale_by_std": False, "reduction": "sum", "clip_low": None, "clip_high": None, "refill": refill}
    agent = agent_of(TokenMDPTask(p.instance.mdp), policy, **options)
    expected = exact_moments(agent, p.enumeration).mean
    source = PolicySampler(policy, p.instance.mdp, torch.Generator().manual_seed(refill), 2)
    gradients, parameters, sizes = [], list(policy.parameters()), set()
    while len(gradients) < 400:
        try:
            evidence = agent.collect(source)
        except NothingKept:
            continue
        rollouts = evidence.rollouts
        sizes.add(len(evidence.response_reward))
        assert bool((rollouts.tokens != PAD).any())
        loss = agent.loss(policy(rollouts.prompt, rollouts.tokens, rollouts.mask), evidence)
        gradients.append(-flatten_gradients(torch.autograd.grad(loss, parameters), parameters))
    each = torch.stack(gradients)
    error = each.std(0) / len(each) ** 0.5
    assert bool(((each.mean(0) - expected).abs() < 4.5 * error + 1e-12).all())
    assert float(expected.norm()) > 10 * float(error.max()) and sizes == {2, 4}


def test_the_trainer_counts_the_tokens_of_all_rounds():
    p = rare()
    task = TokenMDPTask(p.instance.mdp)
    agent = agent_of(task, p.instance.policy)
    trainer = Trainer(agent, task, p.instance.policy, TrainConfig(prompts_per_step=8, signal_every=0))
    before = trainer.sampler.cost.rewards
    figures = trainer.step()
    asked = (trainer.sampler.cost.rewards - before) // 2
    assert figures["refills"] >= 1 and asked > 8 and figures["tokens"] >= 2 * asked
    assert figures["groups_with_signal"] == (8 - figures["groups_missing"] + figures["groups_left_over"]) / asked
