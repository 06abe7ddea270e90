"""The pilot of a budget: what it may cost, what it says, and what becomes of its draws."""

import math

import pytest
import torch

from llm_mdp.estimators.algorithms import RLOO, TRePO
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.sampling.shared_draws import SharedDraws
from llm_mdp.variance.allocation import Split
from llm_mdp_agents import pilot
from llm_mdp_agents.measuring import PILOT_BRANCHES
from llm_mdp_agents.pilot import (
    DRAWN,
    LEAST_PROMPTS,
    LOOKED_AT,
    MENUS,
    Pilot,
    Waiting,
    _with_first_batch,
    packed,
    planned,
    run_pilot,
    unpacked,
)
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.trepo import TRePOAgent, TRePOConfig
from llm_mdp_envs.tasks.diagnostics import Credit, Needle
from llm_mdp_envs.tasks.synthetic import Ngram, TokenMDPTask


def uniform(task: TokenMDPTask) -> TabularPolicy:
    return TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator(), scale=0.0)


def sampler(task: TokenMDPTask, policy=None, seed: int = 0) -> TaskSampler:
    return TaskSampler(policy or uniform(task), task, *streams([seed, 7]))


def tried(task: TokenMDPTask, most_tokens: float, budget: float = 400.0, **options) -> tuple[Pilot, TaskSampler]:
    source = sampler(task)
    options = {"most_prompts": 32, "most_tokens": most_tokens, **options}
    return run_pilot(budget, source.policy, source, task.horizon, **options), source


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [3e3, 1e4, 4e4, 2e5])
def test_a_pilot_draws_no_more_than_it_may(most):
    found, source = tried(Credit(2, 6), most)
    assert source.cost.tokens <= found.tokens <= most


def test_the_cost_of_a_prompt_is_worked_out_by_hand():
    """Horizon 4, the short menu: cuts (), (2), (1, 2, 3); branches from before tokens 2, 3, 4 with 3, 2, 1 to come.
    Every one of four segments of a response has a pass back through that response and its prompt of 10."""
    drawn = 8 * (4 + PILOT_BRANCHES * (3 + 2 + 1))
    backward = 8 * 4 * (4 + 10)
    assert MENUS[1].cost(torch.tensor([4, 4]), 10.0, 4) == drawn + backward / 2


def test_what_a_pilot_draws_is_what_its_menu_says(monkeypatch):
    """All responses have six tokens, so what is expected is what comes."""
    task = Credit(2, 6)
    _, source = tried(task, math.inf)
    monkeypatch.setattr(pilot, "BACKWARD", 0.0)
    assert source.cost.tokens == 32 * MENUS[0].cost(torch.tensor([6]), 0.0, 6)


def test_where_not_everything_can_be_tried_less_is():
    source = sampler(Credit(2, 6))
    everything, few = (menu.cost(torch.tensor([6]), 6.0, 6) for menu in MENUS)
    assert planned(source, 6, 32, 32 * everything)[:3] == (MENUS[0], 32, 0.0) and source.cost.tokens == 0
    menu, prompts, spent, length = planned(source, 6, 32, 14 * few)
    assert (menu, spent, length) == (MENUS[1], LOOKED_AT * DRAWN * 6, 6.0) and LEAST_PROMPTS <= prompts <= 32
    assert planned(source, 6, 32, LEAST_PROMPTS * few / 4)[0] is None


def test_a_pilot_stops_where_its_batches_cost_more_than_was_expected(monkeypatch):
    """32 prompts were planned, and there are tokens for 6."""
    monkeypatch.setattr(pilot, "planned", lambda *given: (MENUS[1], 32, 0.0, 6.0))
    most, heard = 6.5 * MENUS[1].cost(torch.tensor([6]), 0.0, 6), []
    found, _ = tried(Credit(2, 6), most, prompts_at_once=2, report=lambda done, total: heard.append((done, total)))
    assert found.tried == 6 and found.tokens <= most and heard == [(2, 32), (4, 32), (6, 32)]


@pytest.mark.parametrize("budget, size, prompts", [(400.0, 8, 8), (60.0, 4, 2), (30.0, 2, 2)])
def test_without_a_pilot_a_budget_is_spent_on_responses(budget, size, prompts):
    found, source = tried(Credit(2, 6), 50.0, budget)
    assert (found.split, found.prompts) == (Split(size, (), 0.0), prompts) and source.cost.tokens == found.tokens == 0
    assert found.words == (
        f"{prompts} prompts x {size} responses, no branches (RLOO), without a pilot, for 8 prompts of one cost more "
        "than the 50 tokens that it may (option pilot_share)"
    )
    with pytest.raises(ValueError, match=r"a budget of 11 tokens is too small: the cheapest group costs 12\.0 tokens"):
        tried(Credit(2, 6), 50.0, 11.0)


def test_where_no_reward_differs_a_budget_is_spent_on_responses():
    """A needle that nobody finds in 16 responses."""
    found, _ = tried(Needle(16, 4), math.inf, 512.0, most_prompts=2)
    assert found.split == Split(8, (), 0.0) and found.prompts == 512 // 32
    assert "for no two of the 8 responses to any of 2 prompts of a pilot differ in reward" in found.words


# --- the first batch --------------------------------------------------------------------------------------------------


def waiting_for(split: Split, samples: int, prompts: int = 100):
    task = Credit(2, 6)
    source = sampler(task)
    source.prompts_per_batch = 3
    draws = [SharedDraws(source, DRAWN), SharedDraws(source, DRAWN)]
    return _with_first_batch(Pilot(split, samples, prompts, "chosen"), draws), draws, source


@pytest.mark.parametrize("split", [Split(2, (), 0.0), Split(8, (), 0.0), Split(4, (1, 3), 0.5)], ids=repr)
def test_the_first_batch_holds_every_group_of_the_pilot(split):
    found, draws, source = waiting_for(split, 2)
    evidence, groups = unpacked(found.waiting), 6 * DRAWN // split.group_size
    assert found.words == f"chosen; {groups} groups of the first batch are the pilot's own"
    reward = torch.cat([each.reward for each in draws])
    assert len(evidence.response_reward) == 48 and torch.equal(
        evidence.response_reward.sort().values, reward.sort().values
    )
    assert (evidence.branches is not None) == bool(split.steps)
    # Six prompts come first, each with its first group.
    first = torch.cat(
        [each.batch.tokens.unflatten(0, (3, DRAWN))[:, : split.group_size].flatten(0, 1) for each in draws]
    )
    assert torch.equal(evidence.rollouts.tokens[: 6 * split.group_size], first)
    spent = source.cost.tokens
    again = split.estimator(2).collect(Waiting(source, evidence))
    assert source.cost.tokens == spent and split.estimator(2).advantages(again).shape[0] == 48


def test_no_more_groups_wait_than_were_chosen():
    found, _, _ = waiting_for(Split(2, (), 0.0), 1, prompts=5)
    assert len(unpacked(found.waiting).response_reward) == 10


def test_more_branches_than_were_drawn_cannot_be_used_again():
    found, _, _ = waiting_for(Split(4, (2,), 0.0), PILOT_BRANCHES + 1)
    assert found.waiting == {}
    assert found.words == "chosen; its draws are not used again, for they have 4 branches from a cut and not 5"


def test_what_is_packed_comes_back():
    task = Credit(2, 3)
    source = sampler(task)
    evidence = TRePO(2, temperatures=(1.0,) * 2).collect(source)
    found = unpacked(packed(evidence))
    assert all(torch.equal(a, b) for a, b in zip(packed(evidence).values(), packed(found).values(), strict=True))


# --- in training ------------------------------------------------------------------------------------------------------


def trainer(seed: int = 0, **options) -> Trainer:
    task = Credit(2, 6)
    policy = uniform(task)
    agent = TRePOAgent(TRePOConfig(budget=600.0, pilot_prompts=16, **options), policy, task, seed)
    return Trainer(agent, task, policy, TrainConfig(seed=seed, steps=20_000, signal_every=0))


def test_what_was_chosen_is_said_and_stands_in_the_metrics():
    run = trainer()
    run.prepare()
    (note,) = run.agent.notes
    assert note.startswith("budget chose") and "groups of the first batch are the pilot's own" in note
    first, second = run.step(), run.step()
    assert first["budget/pilot_prompts"] == 16 and first["budget/pilot_tokens"] > 0
    assert first["budget/group_size"] == run.agent.group_size and first["budget/prompts"] == run.agent.prompts
    assert not any(name.startswith("budget/") for name in second)


def test_a_batch_that_waits_goes_on_from_a_checkpoint_before_the_first_step():
    whole = trainer(kl=0.1)
    whole.prepare()
    assert whole.agent.waiting
    tensors, state = whole.state()
    other = trainer(seed=9, kl=0.1)
    other.restore({name: tensor.clone() for name, tensor in tensors.items()}, state)
    for _ in range(3):
        one, two = whole.step(), other.step()
        assert one["reward"] == two["reward"] and one["tokens"] == two["tokens"] and one["kl"] == two["kl"]
    assert whole.agent.waiting == other.agent.waiting == {}
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), other.policy.parameters()))


def test_what_is_missing_of_the_first_batch_is_drawn():
    run = trainer()
    run.prepare()
    agent = run.agent
    size, waiting = agent.group_size, len(agent.waiting["response_reward"])
    agent.numbers["prompts"] = waiting // size + 2
    run.sampler.prompts_per_batch = waiting // size + 2
    evidence = agent.collect(run.sampler)
    assert len(evidence.response_reward) == waiting + 2 * size and run.sampler.prompts_per_batch == waiting // size + 2
    assert agent.loss(evidence.rollouts.logp, evidence).isfinite()


def test_every_process_takes_its_own_part_of_the_first_batch():
    parts = []
    for rank in range(2):
        run = trainer()
        run.prepare()
        agent, half = run.agent, len(run.agent.waiting["response_reward"]) // run.agent.group_size // 2
        before = agent.waiting
        agent.rank, run.sampler.prompts_per_batch = rank, half
        parts.append(agent.collect(run.sampler).rollouts.tokens)
    assert torch.equal(torch.cat(parts), before["tokens"][: 2 * half * agent.group_size])


def test_a_long_horizon_is_tried_with_few_cuts_or_not_at_all():
    """64 tokens, and a share that the full menu would exceed a hundredfold."""
    task = Ngram(vocab_size=4, horizon=64, eos=None)
    policy = NgramPolicy.random(4, 1, torch.Generator().manual_seed(0))
    source = sampler(task, policy)
    found = run_pilot(2000.0, policy, source, 64, most_prompts=16, most_tokens=5000.0)
    assert found.split.estimator(found.samples) == RLOO(8) and source.cost.tokens <= 5000
    assert "without a pilot" in found.words


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan])
def test_a_share_is_above_0(share):
    with pytest.raises(ValueError, match=rf"pilot_share is {share}; it must be above 0\."):
        TRePOConfig(pilot_share=share)
