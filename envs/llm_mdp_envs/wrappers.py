"""Token environments for Stable-Baselines3, whose networks take vectors of numbers, not token ids.

env = OneHot(gym.make("llm_mdp/Tabular-v0"))
stable_baselines3.PPO("MlpPolicy", env)                       # or sb3_contrib.MaskablePPO, which calls
env.action_masks()
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from llm_mdp_envs.arguments import shown
from llm_mdp_envs.token_env import TokenEnv


def one_hot(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(..., L) tokens as (..., L · V) float32: at every place 1 for its token, all 0 on padding (-1)."""
    hot = np.asarray(tokens)[..., None] == np.arange(vocab_size)
    return hot.reshape(*hot.shape[:-2], -1).astype(np.float32)


class OneHot(gymnasium.ObservationWrapper[np.ndarray, int, np.ndarray], RecordConstructorArgs):
    """Observations as one flat vector: (prompt_length + horizon) · V numbers, 0 or 1.

    Raises:
        TypeError: the environment is no `TokenEnv`.
    """

    def __init__(self, env: gymnasium.Env):
        tokens = env.unwrapped if isinstance(env, gymnasium.Env) else env
        if not isinstance(tokens, TokenEnv):
            raise TypeError(
                f"OneHot wraps token environments, such as gym.make('llm_mdp/Tabular-v0'); this is {shown(tokens)}."
            )
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.tokens, self.vocab_size = tokens, tokens.task.vocab_size
        length = tokens.task.prompt_length + tokens.task.horizon
        self.observation_space = spaces.Box(0, 1, (length * self.vocab_size,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return one_hot(observation, self.vocab_size)

    def action_masks(self) -> np.ndarray:
        """(V,) int8, 1 where a token is allowed next."""
        return self.tokens.action_masks()
