"""Another policy that draws the responses: every sampler asks it in place of its own, or says why it cannot."""

import re
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler, TreeSampler
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Greedy, NgramPolicy, TabularPolicy, logp_of
from llm_mdp.sampling.sampler import PolicySampler, Sampler
from llm_mdp.sampling.shared_draws import Meter, SameRollouts, SharedDraws
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import TokenMDPTask

INSTANCE = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=5)
MDP = INSTANCE.mdp
OTHER = TabularPolicy.random(MDP.tree, MDP.prompt_tokens, torch.Generator().manual_seed(9))
ENUMERATION = Enumeration(MDP, INSTANCE.policy)
UNDER_OTHER = Enumeration(MDP, OTHER)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(rollouts: Rollouts) -> Tensor:
    """How often each response to each prompt was drawn, (P, N)."""
    tokens, prompt = rollouts.tokens.reshape(-1, MDP.horizon), rollouts.prompt.reshape(-1, rollouts.prompt.shape[-1])
    same = (tokens[:, None] == ENUMERATION.tokens).all(-1).double()
    asked = (prompt[:, None] == MDP.prompt_tokens).all(-1).double()
    return asked.T @ same / asked.sum(0)[:, None]


SAMPLERS = {
    "policy": lambda: PolicySampler(INSTANCE.policy, MDP, generator(), 4000),
    "task": lambda: TaskSampler(INSTANCE.policy, TokenMDPTask(MDP), generator(), np.random.default_rng(0), 4000),
    "tree": lambda: TreeSampler(ENUMERATION, 4000, generator()),
    "metered": lambda: Meter(PolicySampler(INSTANCE.policy, MDP, generator(), 4000)),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_responses_come_as_often_as_the_other_policy_draws_them(name, temperature):
    rollouts = cast(Sampler, SAMPLERS[name]()).rollouts(2, temperature, OTHER)
    expected = UNDER_OTHER.at_temperature(temperature).probability
    noise = (expected * (1 - expected) / 2000).sqrt()
    assert bool(((shares(rollouts) - expected).abs() < 5 * noise + 1e-9).all())
    own = ENUMERATION.at_temperature(temperature).probability
    assert bool(((shares(rollouts) - own).abs() > 10 * noise).any()), "and not as the sampler's own"


@pytest.mark.parametrize("name", SAMPLERS)
def test_their_probabilities_are_those_of_who_drew_them(name):
    rollouts = cast(Sampler, SAMPLERS[name]()).rollouts(1, 1.0, OTHER)
    assert_close(rollouts.logp, logp_of(OTHER, rollouts.prompt, rollouts.tokens, rollouts.mask).detach())


def test_every_outcome_has_the_probability_that_the_other_policy_gives_it():
    groups = list(all_groups(ENUMERATION, 1))
    samplers = [ExactSampler(ENUMERATION, chunk) for chunk in groups]
    rollouts = [sampler.rollouts(1, 1.0, OTHER) for sampler in samplers]
    weight = torch.cat([sampler.weight for sampler in samplers])
    expected = (MDP.prompt_probability[:, None] * UNDER_OTHER.probability).flatten()
    assert_close(weight, expected)
    assert_close(torch.cat([each.logp for each in rollouts])[:, 0], UNDER_OTHER.leaf_logp().flatten(0, 1))


def test_branches_are_still_the_policys_own():
    """What is estimated from a prefix is the value of the policy that is differentiated."""
    sampler = ExactSampler(ENUMERATION, next(all_groups(ENUMERATION, 1)))
    rollouts = sampler.rollouts(1, 1.0, OTHER)
    branches = sampler.branches(rollouts, rollouts.mask)
    plain = ExactSampler(ENUMERATION, next(all_groups(ENUMERATION, 1)))
    own = plain.rollouts(1)
    assert_close(branches.reward, plain.branches(own, own.mask).reward)


def test_in_a_conversation_every_turn_is_the_other_policys():
    """A policy that always guesses the same number does so turn after turn."""
    task = GuessNumber(highest=5, max_turns=4)
    zero = torch.zeros(1, 1, task.vocab_size)
    always = Greedy(NgramPolicy(zero.index_fill(2, torch.tensor([2]), 1.0), order=0))
    sampler = TaskSampler(NgramPolicy(zero, order=0), task, generator(), np.random.default_rng(0), 20)
    rollouts = sampler.rollouts(1, 1.0, always)
    assert bool((rollouts.tokens[rollouts.mask] == 2).all())
    assert int(rollouts.mask.sum()) > len(rollouts.mask), "some conversations have several turns"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda source: SharedDraws(source, 2),
            "the batch was drawn by the policy itself, and this estimator asks for those of another policy "
            "(`behaviour`); measure it on its own.",
        ),
        (
            lambda source: SameRollouts(source, batch := source.rollouts(2), source.response_reward(batch), 2),
            "all estimators look at the same responses of the policy itself, and this estimator asks for those of "
            "another policy (`behaviour`); leave it out.",
        ),
    ],
    ids=["shared draws", "same rollouts"],
)
def test_what_was_drawn_before_cannot_be_drawn_by_another(make, sentence):
    source = make(PolicySampler(INSTANCE.policy, MDP, generator(), 3))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        source.rollouts(2, 1.0, OTHER)
    assert len(source.rollouts(2).tokens) == 6
