"""The agent zoo of LLM-MDP. So far: language models as policies (`lm`)."""
