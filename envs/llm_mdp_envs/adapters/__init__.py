"""Rewards that exist elsewhere, as tasks; and our tasks as rewards elsewhere. One file a library.

- `TRLReward`: any TRL reward function, or several;
- `VerlReward`: any verl `compute_score`;
- `CallableReward`: any function of two texts;
- `as_trl_reward`, `trl_rows`: a task as a TRL reward function, with the rows to train on.

reasoning-gym's data sets have a task of their own, `tasks.reasoning.ReasoningGym`. What these functions do with hostile
text is their own affair: they run in this process, without a time limit.
"""

from llm_mdp_envs.adapters.functions import CallableReward
from llm_mdp_envs.adapters.rows import RowTask, name_of
from llm_mdp_envs.adapters.trl import TRLReward, as_trl_reward, pad_responses, text_of, trl_rows
from llm_mdp_envs.adapters.verl import VerlReward

__all__ = [
    "CallableReward",
    "RowTask",
    "TRLReward",
    "VerlReward",
    "as_trl_reward",
    "name_of",
    "pad_responses",
    "text_of",
    "trl_rows",
]
