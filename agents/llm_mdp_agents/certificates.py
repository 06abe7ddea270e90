"""The certificate of an agent's own default configuration, as it trains: its group size, clip and reduction, with the
critics and reward models that it has after `prepare`."""

import math
from dataclasses import dataclass, replace

import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import Instance, random_instance, stream
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.method import MethodName
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_envs.tasks.synthetic import TokenMDPTask

SHAPES = ((3, 4), (3, 3), (3, 2), (2, 2))
"""V and T of the token MDPs that are tried, the largest first; γ = 0.9, two prompts."""
MOST_GROUPS = 20_000
"""Groups of responses up to which these are taken one by one: a second or so."""


@dataclass(frozen=True)
class OwnCertificate:
    """What was found about an agent, and on what."""

    certificate: Certificate
    vocab_size: int
    horizon: int
    group_size: int
    counted: bool = False
    """Are rewards whole numbers from 0 to T, so that large groups fall into classes?"""

    @property
    def place(self) -> str:
        """Where it was computed: a random token MDP of this shape."""
        rewards = f", rewards of 0 to {self.horizon}" if self.counted else ""
        return f"V={self.vocab_size} T={self.horizon} K={self.group_size}{rewards}"


def own_certificate(kind: type[Agent], config: AgentConfig | None = None, seed: int = 0) -> OwnCertificate:
    """The exact certificate of an agent with its default options (or these) against ∇J.

    On the largest shape, with random rewards of tokens; where this has too many groups of the agent's size, with
    rewards that take few values, if the agent's weights depend on classes of responses alone; else on a smaller shape.

    Args: seed: of the token MDP, of auxiliary models and of what they are fitted to.

    Raises:
        TooLarge: if even the smallest token MDP has too many outcomes for the group size.
    """
    config = kind.Config() if config is None else config
    if groups(*SHAPES[0], config.group_size) > MOST_GROUPS:
        try:
            return _certified(kind, config, seed, SHAPES[0], "classes")
        except (TooLarge, Refused):
            pass
    shape = next((shape for shape in SHAPES if groups(*shape, config.group_size) <= MOST_GROUPS), SHAPES[-1])
    return _certified(kind, config, seed, shape, "groups")


def _certified(
    kind: type[Agent], config: AgentConfig, seed: int, shape: tuple[int, int], method: MethodName
) -> OwnCertificate:
    instance = random_instance(*shape, gamma=0.9, n_prompts=2, seed=seed)
    if method == "classes":
        instance = replace(instance, mdp=replace(instance.mdp, token_reward=counted_reward(instance.mdp, seed)))
    problem = Problem(instance)
    agent = prepared(kind, config, instance, seed)
    # Before training, whoever draws has the weights of the policy that trains: one enumeration serves both.
    target, magnitude = problem.target("reward"), problem.magnitude("reward")
    found = exact_certificate(agent, problem.enumeration, target, magnitude, method=method)
    return OwnCertificate(found, *shape, agent.group_size, method == "classes")


def prepared(kind: type[Agent], config: AgentConfig, instance: Instance, seed: int = 0) -> Estimator:
    """An agent before its first update of an instance's policy, with the models that it has after `prepare`."""
    agent = kind(config, instance.policy, TokenMDPTask(instance.mdp), seed)
    agent.prepare(
        PolicySampler(agent.behaviour, instance.mdp, torch.Generator().manual_seed(seed), prompts_per_batch=64)
    )
    # An Agent has an estimator's three methods, which is all that verification asks for.
    return agent  # pyright: ignore[reportReturnType]


def counted_reward(mdp: TokenMDP, seed: int) -> TableReward:
    """Tokens of which a random half is worth 1 at its place, discount and all: RM(W) is how many of them are in W."""
    generator = stream(seed, "counted rewards")
    levels = [
        mdp.gamma**-level
        * torch.randint(2, (len(mdp.prompts), mdp.tree.vocab_size, size), generator=generator).double()
        for level, size in enumerate(mdp.tree.level_sizes)
    ]
    return TableReward(mdp.tree, mdp.prompt_tokens, levels)


def groups(vocab_size: int, horizon: int, group_size: int) -> int:
    """Unordered groups of responses to one prompt of such an instance."""
    return math.comb(PrefixTree(vocab_size, 0, horizon).n_leaves + group_size - 1, group_size)
