"""Rewards and games that exist elsewhere, as tasks; and our tasks as rewards and environments elsewhere.

One file a library:

- `TRLReward`: any TRL reward function, or several; `RewardFunctions`: those in files, by their names;
- `VerlReward`: any verl `compute_score`;
- `CallableReward`: any function of two texts;
- `as_trl_reward`, `trl_rows`: a task as a TRL reward function, with the rows to train on;
- `TextGame`: games in words, of GEM (`gem_game`), TextArena (`textarena_game`) or your own;
- `trl_environment`, `trl_environment_rows`: a conversation as an `environment_factory` of TRL, with its rows;
- `verifiers_task`: a taskset or an environment of verifiers as a task (`VerifiersTask`, `VerifiersConversation`);
- `verifiers_classes`: a conversation as a taskset and an environment of verifiers.

reasoning-gym's data sets have a task of their own, `tasks.reasoning.ReasoningGym`. What these functions do with hostile
text is their own affair: they run in this process, without a time limit.
"""

from llm_mdp_envs.adapters.functions import CallableReward
from llm_mdp_envs.adapters.games import Game, TextGame, gem_game, textarena_game
from llm_mdp_envs.adapters.named import RewardFunctions
from llm_mdp_envs.adapters.rows import RowTask, name_of
from llm_mdp_envs.adapters.trl import TRLReward, as_trl_reward, pad_responses, text_of, trl_rows
from llm_mdp_envs.adapters.trl_environments import trl_environment, trl_environment_rows
from llm_mdp_envs.adapters.verifiers import verifiers_classes
from llm_mdp_envs.adapters.verifiers_in import VerifiersConversation, VerifiersTask, verifiers_task
from llm_mdp_envs.adapters.verl import VerlReward

__all__ = [
    "CallableReward",
    "Game",
    "RewardFunctions",
    "RowTask",
    "TRLReward",
    "TextGame",
    "VerifiersConversation",
    "VerifiersTask",
    "VerlReward",
    "as_trl_reward",
    "gem_game",
    "name_of",
    "pad_responses",
    "text_of",
    "textarena_game",
    "trl_environment",
    "trl_environment_rows",
    "trl_rows",
    "verifiers_classes",
    "verifiers_task",
]
