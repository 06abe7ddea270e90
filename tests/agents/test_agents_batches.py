"""Every agent's own update of two prompts has an exact certificate, and it is that of all batches."""

import pytest
import torch

from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import TokenMDPTask

PROBLEM = Problem(random_instance(2, 2, gamma=0.9, n_prompts=2, seed=3), group_size=2)
OPTIONS = [(name, {}) for name in AGENTS] + [("grpo", {"variant": "dr-grpo", "reduction": "token_mean"})]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda each: each if isinstance(each, str) else "-".join(each.values())
)
def test_updates_of_two_prompts(name, options):
    kind = AGENTS[name]
    config = kind.Config(**({"group_size": min(kind.Config().group_size, 2)} | options))
    agent = kind(config, PROBLEM.instance.policy, TokenMDPTask(PROBLEM.instance.mdp), 0)
    found, every = moments_by(agent, PROBLEM.enumeration, prompts=2), exact_moments(agent, PROBLEM.enumeration, 2)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found.mean, every.mean, rtol=1e-10, atol=1e-13)
    assert found.root_mean_square == pytest.approx(every.root_mean_square, rel=1e-10, abs=1e-12)
    assert found.method is not None and found.method.apart == (options == {})
