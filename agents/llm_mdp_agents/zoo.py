"""The zoo: every agent by its name."""

from llm_mdp_agents.abc import ABC
from llm_mdp_agents.base import Agent
from llm_mdp_agents.dpo import DPO
from llm_mdp_agents.grpo import GRPO
from llm_mdp_agents.iterative_dpo import IterativeDPO
from llm_mdp_agents.ma_rlhf import MARLHF
from llm_mdp_agents.ppo import PPO
from llm_mdp_agents.prime import PRIME
from llm_mdp_agents.r3hf import R3HF
from llm_mdp_agents.reinforce import REINFORCE
from llm_mdp_agents.remax import ReMax
from llm_mdp_agents.rloo import RLOO
from llm_mdp_agents.rto import RTO
from llm_mdp_agents.trepo import TRePO
from llm_mdp_agents.vineppo import VinePPO

AGENTS: dict[str, type[Agent]] = {
    agent.name: agent
    for agent in (REINFORCE, RLOO, ReMax, GRPO, PPO, VinePPO, TRePO, MARLHF, DPO, IterativeDPO, RTO, ABC, R3HF, PRIME)
}
"""In the paper's order."""
