# %% [markdown]
# # Stable-Baselines3 on a token environment
#
# The environments are Gymnasium environments in which an action is a token, so agents that know nothing of language
# learn in them. At the end you have trained Stable-Baselines3's PPO on one, held it against an optimum that is known
# exactly, and used a mask where tokens are forbidden. Ten minutes of reading; about 20 seconds of a CPU.
#
# In a clone, it needs `pip install -e ".[sb3]"`.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from llm_mdp_envs import OneHot

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## The environment
#
# In `llm_mdp/Tabular-v0` there are four tokens, and a response has four at most. Every token has a reward, drawn at
# random for every prefix; it stays hidden, and their sum comes at the end. The observation is the tokens so far.

# %%
env = gym.make("llm_mdp/Tabular-v0")
observation, info = env.reset(seed=0)
for token in (2, 1, 0):
    observation, reward, terminated, truncated, info = env.step(token)
    print("token", token, "→ observation", observation, "reward", round(float(reward), 3))

# %% [markdown]
# Networks of Stable-Baselines3 take vectors, not token ids. `OneHot` makes one vector of the observation: at every
# place a 1 for its token.


# %%
def make():
    return OneHot(gym.make("llm_mdp/Tabular-v0"))


print(gym.make("llm_mdp/Tabular-v0").observation_space, "→", make().observation_space)

# %% [markdown]
# ## What can be reached
#
# The task knows its own token MDP: every response can be listed with what it is worth. So the best reward is known,
# and that of a policy to which all tokens are equally likely.

# %%
task = env.unwrapped.task
best, uniform = task.best_reward(), task.random_reward()
print(f"{task.mdp.tree.n_leaves} responses; the best is worth {best:.3f}, and at random one gets {uniform:.3f}")

# %% [markdown]
# ## Train
#
# PPO as it comes, but for shorter rollouts, a larger learning rate and an entropy bonus, which keeps it trying. Rewards
# come at the end only, so γ = λ = 1. Three seeds.

# %%
curves = []
for seed in range(3):
    many = make_vec_env(make, n_envs=16, seed=seed)
    model = PPO(
        "MlpPolicy", many, n_steps=64, batch_size=256, n_epochs=6, learning_rate=1e-3, ent_coef=0.1, gamma=1.0,
        gae_lambda=1.0, seed=seed, device="cpu",
    )  # fmt: skip
    points = [evaluate_policy(model, many, n_eval_episodes=200, deterministic=False)[0]]
    for _ in range(4):
        model.learn(4096, reset_num_timesteps=False)
        points.append(evaluate_policy(model, many, n_eval_episodes=200, deterministic=False)[0])
    curves.append(points)
    print(f"seed {seed}: reward {points[0]:.1f} before, {points[-1]:.1f} after {model.num_timesteps} tokens")

# %%
curves = np.array(curves)
tokens = 4096 * np.arange(5)
figure, axes = plt.subplots()
for level, words in ((best, "the best response"), (uniform, "random tokens")):
    axes.axhline(level, color="#5a626d", linewidth=1, linestyle=":")
    axes.annotate(words, (tokens[-1], level), (0, 3), textcoords="offset points", ha="right", fontsize=9)
axes.fill_between(tokens, curves.min(0), curves.max(0), alpha=0.2, linewidth=0)
axes.plot(tokens, curves.mean(0))
axes.annotate(
    "PPO of Stable-Baselines3", (tokens[2], curves.mean(0)[2]), (8, -12), textcoords="offset points", color="C0"
)
axes.set(xlabel="tokens", ylabel="reward of 200 drawn responses", ylim=(-1.1, 4.1))
axes.set_title("PPO on Tabular-v0 (mean of three seeds; the band holds all three)")
plt.show()

# %% [markdown]
# ## Forbidden tokens
#
# A task may forbid tokens. In one-digit sums with `restricted=True` a response has digits, a minus and an end, no `+`
# or `=`. PPO knows nothing of masks and would be refused such a token; `MaskablePPO` of sb3-contrib asks
# `action_masks`, which `OneHot` answers.


# %%
def make_sums():
    return OneHot(gym.make("llm_mdp/Arithmetic-v0", digits=1, restricted=True))


sums = make_sums()
sums.reset(seed=0)
allowed = np.flatnonzero(sums.action_masks())
print("allowed at first:", sums.unwrapped.task.decode(allowed))

# %%
many = make_vec_env(make_sums, n_envs=16, seed=0)
model = MaskablePPO(
    "MlpPolicy", many, n_steps=64, batch_size=256, learning_rate=1e-3, gamma=1.0, gae_lambda=1.0, seed=0, device="cpu"
)
before = evaluate_masked(model, many, n_eval_episodes=300, deterministic=False)[0]
model.learn(8192)
after = evaluate_masked(model, many, n_eval_episodes=300, deterministic=False)[0]
print(f"share of right characters, one seed: {before:.1f} before, {after:.1f} after {model.num_timesteps} tokens")

# %% [markdown]
# It has begun to learn; with 60,000 tokens it gets to 0.6 ([benchmarks/sb3.py](../../benchmarks/sb3.py)).
#
# ## Next
#
# - Any environment of `llm-mdp envs` in place of these: [environments](../environments.md).
# - The agents that are made for tokens, on the same environment: `llm-mdp train rloo Tabular --steps 100`.
# - [A task of your own](own_task.md) is a Gymnasium environment, too: `OneHot(TokenEnv(MyTask()))`.
