"""Gymnasium environments of LLM-MDP. Importing this registers them: `gym.make("llm_mdp/Tabular-v0")`; see
`registry`."""

import warnings

from llm_mdp_envs.array_task import ArrayTask
from llm_mdp_envs.check import check_task
from llm_mdp_envs.registry import Registered, register_all, registered
from llm_mdp_envs.task import Question, Scores, Task, TaskError
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.vector_env import TokenVectorEnv
from llm_mdp_envs.wrappers import OneHot

__all__ = [
    "ArrayTask",
    "OneHot",
    "Question",
    "Registered",
    "Scores",
    "Task",
    "TaskError",
    "TokenEnv",
    "TokenVectorEnv",
    "check_task",
    "register_all",
    "registered",
]

# `python -m llm_mdp_envs.registry` runs a module that this package has imported; harmless, as running it only writes a
# page.
warnings.filterwarnings("ignore", message="'llm_mdp_envs.registry' found in sys.modules", category=RuntimeWarning)

register_all()
