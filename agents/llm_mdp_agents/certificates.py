"""The certificate of an agent's own default configuration, as it trains: its group size, clip and reduction, with the
critics and reward models that it has after `prepare`."""

import math
from dataclasses import dataclass

import torch

from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_envs.tasks.synthetic import TokenMDPTask

SHAPES = ((3, 4), (3, 3), (3, 2), (2, 2))
"""V and T of the token MDPs that are tried, the largest first; γ = 0.9, two prompts."""
MOST_GROUPS = 20_000
"""Groups of responses up to which one is taken: a second or so."""


@dataclass(frozen=True)
class OwnCertificate:
    """What was found about an agent, and on what."""

    certificate: Certificate
    vocab_size: int
    horizon: int
    group_size: int

    @property
    def place(self) -> str:
        """Where it was computed: a random token MDP of this shape."""
        return f"V={self.vocab_size} T={self.horizon} K={self.group_size}"


def own_certificate(kind: type[Agent], config: AgentConfig | None = None, seed: int = 0) -> OwnCertificate:
    """The exact certificate of an agent with its default options (or these) against ∇J.

    Args: seed: of the token MDP, of auxiliary models and of what they are fitted to.

    Raises:
        TooLarge: if even the smallest token MDP has too many outcomes for the group size.
    """
    config = kind.Config() if config is None else config
    vocab_size, horizon = next(
        (shape for shape in SHAPES if groups(*shape, config.group_size) <= MOST_GROUPS), SHAPES[-1]
    )
    instance = random_instance(vocab_size, horizon, gamma=0.9, n_prompts=2, seed=seed)
    problem = Problem(instance)
    agent = kind(config, instance.policy, TokenMDPTask(instance.mdp), seed)
    agent.prepare(
        PolicySampler(agent.behaviour, instance.mdp, torch.Generator().manual_seed(seed), prompts_per_batch=64)
    )
    # Before training, whoever draws has the weights of the policy that trains: one enumeration serves both.
    target, magnitude = problem.target("reward"), problem.magnitude("reward")
    # An Agent has an estimator's three methods, which is all that verification asks for.
    found = exact_certificate(agent, problem.enumeration, target, magnitude)  # pyright: ignore[reportArgumentType]
    return OwnCertificate(found, vocab_size, horizon, agent.group_size)


def groups(vocab_size: int, horizon: int, group_size: int) -> int:
    """Unordered groups of responses to one prompt of such an instance."""
    return math.comb(PrefixTree(vocab_size, 0, horizon).n_leaves + group_size - 1, group_size)
