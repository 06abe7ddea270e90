"""Temporary: this module is llm_mdp_agents.trainer now; import from there."""
from llm_mdp_agents.trainer import *  # noqa: F403
from llm_mdp_agents.trainer import NonFinite, TrainConfig, Trainer, default_learning_rate, describe  # noqa: F401
