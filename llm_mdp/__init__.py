"""LLM-MDP: the gradient check for reinforcement learning on language models."""

__version__ = "0.1.0"
