"""How critics, reward models and copies of the policy are fitted beside it, and what is said of them."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from llm_mdp.sampling.policies import PolicyModule, TabularPolicy
from llm_mdp_agents import models
from llm_mdp_agents.auxiliary import explained_variance, ranked_alike
from llm_mdp_agents.base import Agent
from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.lm.policy import LanguageModelPolicy, tiny_transformer
from llm_mdp_agents.models import SequenceScorer
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import Tabular

TASK = Tabular(vocab_size=4, horizon=4, n_prompts=3, seed=1)
FITTED = {
    "ppo": ("critic", {"group_size": 2, "critic_warm_up": 2}),
    "ma-rlhf": ("critic", {"group_size": 2, "critic_warm_up": 2}),
    "abc": ("reward_model", {"group_size": 2, "reward_model_warm_up": 2}),
    "r3hf": ("reward_model", {"group_size": 2, "reward_model_warm_up": 2}),
    "prime": ("process_model", {"group_size": 2, "threshold": 0.0}),
    "rto": ("dpo", {"group_size": 2, "dpo_batches": 2}),
}
"""Agents that train a model beside the policy, its name, and options that make it short."""


def table() -> TabularPolicy:
    return TabularPolicy.random(TASK.mdp.tree, TASK.mdp.prompt_tokens, torch.Generator().manual_seed(0))


def make(name: str, policy: Any = None, task: Any = TASK, **options) -> Agent:
    """With values that are not all 0, so that there is something to differentiate by every weight."""
    agent = AGENTS[name](AGENTS[name].Config(**(FITTED[name][1] | options)), policy or table(), task, 0)
    for model in agent.models.values():
        if isinstance(model, SequenceScorer):
            nn.init.normal_(next(model.head.parameters()), generator=torch.Generator().manual_seed(1))
    return agent


def source(agent: Agent, prompts: int = 3, seed: int = 0) -> TaskSampler:
    return TaskSampler(agent.behaviour, agent.task, *streams([seed]), prompts, agent.rows_at_once)


def gradients_of(agent: Agent, name: str) -> list[list[Tensor]]:
    """Filled with the gradient of every step that the model takes."""
    optimizer, kept = agent.optimizers[name], []
    step = optimizer.step

    def watched() -> None:
        kept.append([each.grad.clone() for each in optimizer.parameters if each.grad is not None])
        step()

    optimizer.step = watched
    return kept


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "transformer", "turns"])
@pytest.mark.parametrize("name", FITTED)
def test_parts_of_a_batch_never_change_the_gradient(name, kind):
    """Parts of unequal size (6 rows in fours, in fives), pairs cut apart (one row), tokens of the environment."""
    task = GuessNumber(highest=4, max_turns=2) if kind == "turns" else TASK
    found = {}
    for rows in (None, 4, 5, 1):
        policy = table() if kind == "table" else tiny_transformer(task.vocab_size, task.prompt_length + task.horizon, 2)
        agent = make(name, policy, task)
        agent.rows_at_once = rows
        kept = gradients_of(agent, FITTED[name][0])
        if name == "rto":
            agent.prepare(source(agent))
        else:
            agent.fit(agent.collect(source(agent)))
        found[rows] = kept[0]
    assert max(float(each.abs().max()) for each in found[None]) > 1e-6
    for rows in (4, 5, 1):
        assert len(found[rows]) == len(found[None])
        for mine, theirs in zip(found[rows], found[None]):
            assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FITTED)
def test_no_model_reads_more_rows_at_once_than_the_trainer_is_told(name, monkeypatch):
    policy = tiny_transformer(TASK.vocab_size, TASK.prompt_length + TASK.horizon)
    agent = make(name, policy)
    trainer = Trainer(agent, TASK, policy, TrainConfig(prompts_per_step=4, micro_batch=3, signal_every=0))
    sizes: list[int] = []
    scores, states = SequenceScorer._scores, LanguageModelPolicy._states

    def watched_scores(self, prompt, tokens, wanted):
        sizes.append(len(tokens))
        return scores(self, prompt, tokens, wanted)

    def watched_states(self, lead, tokens, *rest, **options):
        sizes.append(len(tokens))
        return states(self, lead, tokens, *rest, **options)

    monkeypatch.setattr(SequenceScorer, "_scores", watched_scores)
    monkeypatch.setattr(LanguageModelPolicy, "_states", watched_states)
    trainer.prepare()
    trainer.step()
    assert sizes and max(sizes) == 3


# --- what is said of them ---------------------------------------------------------------------------------------------


def test_explained_variance_by_hand():
    reward = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert explained_variance(reward.clone(), reward) == 1
    assert explained_variance(reward + 5, reward) == 1, "a constant is no matter of variance"
    assert explained_variance(torch.full_like(reward, 0.3), reward) == pytest.approx(0)
    assert explained_variance(reward / 2, reward) == pytest.approx(0.75)
    assert explained_variance(-reward, reward) == pytest.approx(-3)
    for equal in (0.0, 0.1, 1e6):
        rewards = torch.full((7,), equal, dtype=torch.float64)
        assert explained_variance(torch.randn(7, generator=torch.Generator()).double(), rewards) == 0


def test_pairs_that_are_ranked_alike_by_hand():
    reward = torch.tensor([1.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    score = torch.tensor([0.5, 0.1, 0.9, 3.0, 4.0, 5.0])
    assert ranked_alike(score, reward, 3) == 0.5, "1 > 0 twice, ranked right once; the others are equal"
    assert ranked_alike(torch.zeros(6), reward, 3) == 0.5
    assert ranked_alike(reward, reward, 2) == 1.0 and ranked_alike(-reward, reward, 2) == 0.0
    assert ranked_alike(score, reward, 1) is None and ranked_alike(score, torch.ones(6), 3) is None


SAID = {
    "ppo": {"critic/loss", "critic/explained_variance"},
    "ma-rlhf": {"critic/loss", "critic/explained_variance"},
    "abc": {"reward_model/loss", "reward_model/explained_variance"},
    "r3hf": {"reward_model/loss", "reward_model/explained_variance"},
    "prime": {"process_model/loss", "process_model/accuracy"},
    "rto": {"dpo/nats_per_token", "dpo/accuracy"},
}


@pytest.mark.parametrize("name", FITTED)
def test_metrics_tell_how_the_models_do_and_preparing_tells_how_far_it_is(name):
    agent = make(name)
    trainer = Trainer(agent, TASK, agent.policy, TrainConfig(prompts_per_step=16, signal_every=0))
    told: list[tuple[str, int, int]] = []
    agent.report = lambda *progress: told.append(progress)
    trainer.prepare()
    assert [each[1:] for each in told] == ([] if name == "prime" else [(1, 2), (2, 2)])
    metrics = trainer.step()
    assert {each for each in metrics if "/" in each} == SAID[name]
    assert all(math.isfinite(metrics[each]) for each in SAID[name])


def test_losses_and_explained_variance_are_of_the_values_before_the_batch_was_learned_from():
    agent = make("ppo")
    evidence = agent.collect(source(agent, 20))
    mask, reward = evidence.rollouts.mask, evidence.response_reward
    assert evidence.value is not None
    value = evidence.value[:, :-1]
    errors = [(float(value[row, t]) - float(reward[row]), float(reward[row])) for row, t in mask.nonzero().tolist()]
    error, rewards = (torch.tensor(each, dtype=torch.float64) for each in zip(*errors))
    said = agent.fit(evidence)
    assert said["critic/loss"] == pytest.approx(float(error.square().mean()), rel=1e-9)
    assert said["critic/explained_variance"] == pytest.approx(1 - float(error.var() / rewards.var()), rel=1e-6)
    assert agent.fit(evidence)["critic/loss"] < said["critic/loss"]


def test_an_implicit_reward_is_scored_by_what_it_says_of_outcomes():
    agent = make("prime")
    evidence = agent.collect(source(agent, 20))
    success = evidence.response_reward > 0
    assert 0 < success.double().mean() < 1
    assert agent.fit(evidence)["process_model/accuracy"] == pytest.approx(1 - float(success.double().mean()))


# --- critics that harm ------------------------------------------------------------------------------------------------


def test_a_critic_that_explains_less_than_nothing_is_told_of():
    agent = make("ppo", critic_learning_rate=3.0, critic_warm_up=12)
    with pytest.warns(
        UserWarning, match=r"^after its warm-up the critic explains -[\d.]+ of the variance of the rewards"
    ):
        agent.prepare(source(agent, 16))


@pytest.mark.parametrize("batches", [0, 1, 2, 15])
def test_a_critic_that_learns_is_not_told_of(batches):
    agent = make("ppo", critic_warm_up=batches)
    nn.init.zeros_(next(agent.models["critic"].head.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.prepare(source(agent, 16))


# --- precision and numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "r3hf", "prime", "rto"])
def test_models_of_16_bits_learn_in_32(name):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 8, "pad_token_id": None, "eos_token_id": None, **shape}
    policy = load_policy(config | {"llm_mdp": {"begin": 7, "vocab_size": 4}}, dtype="bfloat16")
    rate = {"ppo": "critic_learning_rate", "r3hf": "reward_model_learning_rate"}
    options = {rate[name]: 1e-5} if name in rate else {f"{'process' if name == 'prime' else 'dpo'}_learning_rate": 1e-5}
    agent = make(name, policy, **options)
    model, optimizer = agent.models[FITTED[name][0]], agent.optimizers[FITTED[name][0]]
    body = [each for key, each in model.named_parameters() if not key.startswith("head")]
    assert {each.dtype for each in body} == {torch.bfloat16}
    before = [each.clone() for each in optimizer.masters.state()]
    assert len(before) == len(body)
    if name == "rto":
        agent.prepare(source(agent, 8))
    for _ in range(4):
        agent.fit(agent.collect(source(agent, 8)))
    moved = [float((now != then).double().mean()) for now, then in zip(optimizer.masters.state(), before)]
    # What no text holds gets no gradient.
    assert sum(share > 0.9 for share in moved) >= len(moved) - 2
    for mine, master in zip(body, optimizer.masters.state()):
        assert master.dtype == torch.float32 and torch.equal(mine, master.to(torch.bfloat16))
    moments = [each for state in optimizer.torch.state.values() for each in state.values() if each.dim()]
    assert moments and all(each.dtype == torch.float32 for each in moments)


def test_numbers_that_are_not_finite_leave_the_critic_as_it_was():
    from dataclasses import replace

    agent = make("ppo")
    evidence = agent.collect(source(agent))
    reward = evidence.response_reward.clone()
    reward[1] = math.nan
    before = {name: each.clone() for name, each in agent.models["critic"].state_dict().items()}
    with pytest.raises(ValueError, match=r"the loss of the critic is nan .*; lower its learning rate, or look for"):
        agent.fit(replace(evidence, response_reward=reward))
    assert all(torch.equal(each, before[name]) for name, each in agent.models["critic"].state_dict().items())


BAD = [
    ("ppo", {"critic_learning_rate": 0.0}, r"critic_learning_rate is 0\.0; it must be above 0, or None for one by the"),
    ("ma-rlhf", {"critic_learning_rate": math.inf}, r"critic_learning_rate is inf; it must be above 0"),
    ("abc", {"reward_model_learning_rate": -1.0}, r"reward_model_learning_rate is -1\.0; it must be above 0"),
    ("prime", {"process_learning_rate": math.nan}, r"process_learning_rate is nan; it must be above 0"),
    ("rto", {"dpo_learning_rate": -0.1}, r"dpo_learning_rate is -0\.1; it must be above 0"),
    ("rto", {"dpo_batches": -1}, r"dpo_batches is -1; it must be at least 0\."),
    ("ppo", {"critic_warm_up": -3}, r"critic_warm_up is -3; it must be at least 0\."),
    ("ppo", {"critic_epochs": -1}, r"critic_epochs is -1; it must be at least 0\."),
    ("r3hf", {"reward_model_warm_up": -2}, r"reward_model_warm_up is -2; it must be at least 0\."),
]


@pytest.mark.parametrize("name, options, message", BAD, ids=[f"{name} {options}" for name, options, _ in BAD])
def test_bad_options_are_refused_in_a_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_a_critic_that_is_never_fitted_says_nothing():
    agent = make("ppo", critic_epochs=0, critic_warm_up=1)
    agent.prepare(source(agent))
    assert agent.fit(agent.collect(source(agent))) == {}
    assert isinstance(agent.policy, PolicyModule)


def test_a_large_dpo_model_learns_at_a_tenth_of_a_policy_s_rate(monkeypatch):
    policy = tiny_transformer(TASK.vocab_size, TASK.prompt_length + TASK.horizon)
    rates = []
    for largest in (models.LARGE, 100):
        monkeypatch.setattr(models, "LARGE", largest)
        for options in ({}, {"dpo_learning_rate": 3e-4}):
            rates.append(make("rto", policy, **options).optimizers["dpo"].torch.param_groups[0]["lr"])
    assert rates == [2e-4, 3e-4, pytest.approx(1e-6), 3e-4]
