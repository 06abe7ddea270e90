"""Token environments under Stable-Baselines3: one-hot observations, action masks, and training that gets somewhere."""

import gymnasium as gym
import numpy as np
import pytest

import llm_mdp_envs  # noqa: F401
from llm_mdp_envs.tasks.synthetic import optimum
from llm_mdp_envs.wrappers import OneHot, one_hot


def test_one_hot_by_hand():
    assert one_hot(np.array([[2, -1], [0, 1]]), 3).tolist() == [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0]]


def test_observations_are_decodable():
    """Nothing is lost: tokens and padding can be read back."""
    env = OneHot(gym.make("llm_mdp/Arithmetic-v0"))
    observation, _ = env.reset(seed=0)
    for action in (3, 5, 15):
        assert observation in env.observation_space and observation.dtype == np.float32
        rows = observation.reshape(-1, 16)
        tokens = np.where(rows.any(1), rows.argmax(1), -1)
        np.testing.assert_array_equal(tokens, env.unwrapped._observation())
        observation, *_ = env.step(action)


def test_action_masks_pass_through():
    env = OneHot(gym.make("llm_mdp/Arithmetic-v0", restricted=True))
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(env.action_masks(), info["action_mask"])
    assert 0 < env.action_masks().sum() < 16


def test_the_spec_makes_the_same_environment_again():
    env = OneHot(gym.make("llm_mdp/Tabular-v0", vocab_size=3))
    again = gym.make(env.spec)
    assert isinstance(again, OneHot) and again.observation_space == env.observation_space


def test_other_environments_are_refused():
    with pytest.raises(TypeError, match="OneHot wraps token environments"):
        OneHot(gym.make("CartPole-v1"))


def test_masked_actions_are_never_drawn():
    """MaskablePPO finds `action_masks` through the wrappers; a forbidden token would raise."""
    contrib = pytest.importorskip("sb3_contrib")
    env = OneHot(gym.make("llm_mdp/Arithmetic-v0", digits=1, restricted=True))
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu")
    model.learn(256)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "MaskablePPO"])
@pytest.mark.parametrize(
    ("id", "arguments", "share"),
    [("llm_mdp/Tabular-v0", {}, 0.9), ("llm_mdp/Arithmetic-v0", {"digits": 1, "restricted": True}, 0.4)],
)
def test_training_gets_somewhere(algorithm, id, arguments, share):
    """Mean reward of drawn responses after 40,000 tokens, as a share of the optimum."""
    sb3, contrib = pytest.importorskip("stable_baselines3"), pytest.importorskip("sb3_contrib")
    from stable_baselines3.common.env_util import make_vec_env

    if algorithm == "PPO":
        arguments = {name: value for name, value in arguments.items() if name != "restricted"}
    venv = make_vec_env(lambda: OneHot(gym.make(id, **arguments)), n_envs=16, seed=0)
    model = {"PPO": sb3.PPO, "MaskablePPO": contrib.MaskablePPO}[algorithm]
    model = model("MlpPolicy", venv, n_steps=128, batch_size=256, seed=0, device="cpu").learn(40_000)
    recent = [episode["r"] for episode in model.ep_info_buffer]
    task = gym.make(id, **arguments).unwrapped.task
    best = optimum(task) if task.mdp is not None else 1.0
    assert np.mean(recent) > share * best


@pytest.mark.slow
def test_stable_baselines_makes_and_learns_by_id():
    """It asks every environment for render_mode="rgb_array" first."""
    sb3 = pytest.importorskip("stable_baselines3", reason='needs stable-baselines3: pip install "llm-mdp[sb3]"')
    from stable_baselines3.common.env_util import make_vec_env

    with pytest.warns(UserWarning, match="render_mode is 'rgb_array'"):
        env = make_vec_env("llm_mdp/Tabular-v0", n_envs=2, seed=0, wrapper_class=OneHot)
    assert env.render_mode is None
    sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0).learn(32)
    assert len(env.reset()) == 2
