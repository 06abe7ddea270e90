"""Gymnasium environments of LLM-MDP. The token MDPs themselves are in `llm_mdp.mdp`; none is registered with Gymnasium yet."""
