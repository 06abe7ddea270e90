"""What a function sees: plain rows, copies, groups with numbers of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_mdp import RLOO, PolicySampler, ReMax, random_instance
from llm_mdp.audit.adapter import sample_batch
from llm_mdp.audit.batch import Needs, batch_of
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.evidence import take_world
from llm_mdp.verify.problem import Problem

PROBLEM = Problem(random_instance(3, 3, n_prompts=2, environment_at=(), seed=2), group_size=2)


def evidence(estimator, worlds: int, prompts: int):
    e, generator = PROBLEM.enumeration, torch.Generator().manual_seed(0)
    prompt = torch.randint(e.n_prompts, (worlds, prompts), generator=generator)
    leaf = torch.randint(e.tree.n_leaves, (worlds, prompts * 2), generator=generator)
    return estimator.collect(ExactSampler(e, Groups(prompt, leaf, torch.ones(worlds, dtype=torch.float64))))


def test_worlds_become_rows_with_groups_of_their_own():
    seen = evidence(RLOO(group_size=2), worlds=4, prompts=3)
    batch = batch_of(seen, seen.rollouts.logp, 2)
    assert batch.logp.shape == (24, 3) and batch.response_reward.shape == (24,)
    assert batch.group.tolist() == [number for number in range(12) for _ in range(2)]
    assert batch.uid.tolist() == [str(number) for number in batch.group.tolist()] and batch.uid.dtype == object
    for world, alone in enumerate(batch.worlds(6)):
        here = take_world(seen, world)
        assert torch.equal(alone.tokens, here.rollouts.tokens) and torch.equal(alone.finish, here.rollouts.finish)
        assert torch.equal(alone.response_reward, here.response_reward)
        assert torch.equal(alone.group, torch.tensor([0, 0, 1, 1, 2, 2]))
        by_rows = batch.rows(6 * world, 6 * world + 6)
        assert torch.equal(by_rows.group, alone.group) and torch.equal(by_rows.logp, alone.logp)


def test_the_token_reward_is_at_the_last_token_of_the_mask():
    batch = sample_batch(PROBLEM, 40)
    assert torch.equal(batch.token_reward.sum(-1), batch.response_reward)
    last = batch.mask.sum(-1) - 1
    assert torch.equal(batch.token_reward.gather(1, last[:, None])[:, 0], batch.response_reward)
    assert len(last.unique()) > 1


def test_where_an_environment_writes_the_reward_is_on_the_policys_last_token():
    instance = random_instance(2, 4, environment_at=(1, 2), seed=3)
    estimator = RLOO(group_size=3)
    seen = estimator.collect(PolicySampler(instance.policy, instance.mdp, torch.Generator().manual_seed(0), 5))
    batch = batch_of(seen, seen.rollouts.logp, 3)
    assert bool((~batch.mask[:, 1]).all())
    assert bool((batch.token_reward[~batch.mask] == 0).all())
    assert torch.equal(batch.token_reward.sum(-1), batch.response_reward)


def test_a_batch_of_a_trainer_has_no_worlds():
    seen = RLOO(group_size=2).collect(PolicySampler(PROBLEM.instance.policy, PROBLEM.instance.mdp, torch.Generator()))
    batch = batch_of(seen, seen.rollouts.logp, 2)
    assert batch.logp.shape == seen.rollouts.logp.shape and batch.group.tolist() == [0, 0]


def test_greedy_rewards_are_those_of_remax():
    seen = evidence(ReMax(group_size=2), worlds=3, prompts=2)
    batch = batch_of(seen, seen.rollouts.logp, 2)
    expected = seen.response_reward[..., None] - ReMax(group_size=2).advantages(seen)
    assert torch.allclose(batch.greedy_reward, expected.flatten(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("part", ["reference_logp", "value", "greedy_reward"])
def test_what_was_not_collected_is_asked_for_by_name(part):
    with pytest.raises(Needs, match=f"^{part}$"):
        getattr(replace(sample_batch(PROBLEM), parts={}), part)


def test_optional_parts_have_their_shapes():
    batch = sample_batch(PROBLEM)
    rows, width = batch.logp.shape
    assert batch.reference_logp.shape == (rows, width) and batch.value.shape == (rows, width + 1)
    assert batch.greedy_reward.shape == (rows,)


def test_changes_in_one_world_show_in_no_other_and_not_in_the_evidence():
    seen = evidence(RLOO(group_size=2), worlds=3, prompts=1)
    logp = seen.rollouts.logp.clone().requires_grad_()
    reward, before = seen.response_reward.clone(), logp.detach().clone()
    whole = batch_of(seen, logp, 2)
    for number, world in enumerate(whole.worlds(2)):
        assert torch.equal(world.response_reward, reward[number])
        world.response_reward.mul_(0)
        world.logp.mul_(0)
        world.mask.fill_(False)
    assert torch.equal(seen.response_reward, reward) and torch.equal(logp.detach(), before)
    assert np.asarray(whole.tokens).shape == (6, 3)
