# %% [markdown]
# # An agent of your own
#
# An estimator is a rule. An *agent* is a rule and what it learns beside the policy: a running mean, a critic, a reward
# model. At the end you have written an agent, seen it checked and certified, and trained with it. Ten minutes of
# reading; ten seconds of a CPU.

# %%
from dataclasses import dataclass

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np

import llm_mdp_envs  # noqa: F401  (registers the environments)
from llm_mdp import Estimator, certify, groups
from llm_mdp_agents import Agent, AgentConfig, ModelConfig, TrainConfig, Trainer, build_policy, check_agent

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## The rule
#
# In small groups the mean of the others is a noisy baseline. The mean of all earlier batches is steady, but the same
# for every prompt. This rule mixes the two:
#
#     A_k = R_k - (1 - share) · mean of the others - share · mean of earlier batches
#
# `advantages` is all of it: one weight for every token of every response.


# %%
@dataclass(frozen=True)
class SteadyBaseline(Estimator):
    share: float = 0.5
    mean: float = 0.0

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)  # (..., prompts, responses)
        others = (reward.sum(-1, keepdim=True) - reward) / (self.group_size - 1)
        return (reward - (1 - self.share) * others - self.share * self.mean).flatten(-2)[..., None]


for mean in (0.0, 0.7, -5.0):
    print(f"mean {mean:4}: {certify(SteadyBaseline(group_size=2, mean=mean))}")

# %% [markdown]
# Unbiased, whatever the mean is: it was learned from earlier batches, so it knows nothing of these responses. A wrong
# mean costs noise, and the certificate says how much. Tokens to signal are the tokens of a batch at which the noise is
# as long as the signal; fewer are better:

# %%
shares = np.linspace(0, 1, 11)
noise = {
    mean: [certify(SteadyBaseline(group_size=2, share=share, mean=mean)).tokens_to_signal for share in shares]
    for mean in (0.0, 0.7, 2.0)
}
figure, axes = plt.subplots()
for mean, values in noise.items():
    (line,) = axes.plot(shares, values)
    axes.annotate(f" mean {mean}", (1, values[-1]), color=line.get_color(), va="center")
axes.set(xlabel="share of the earlier mean", ylabel="tokens to signal", xlim=(0, 1.15), ylim=(0, None))
axes.set_title("Groups of two: what a steady baseline saves (exact, one token MDP)")
plt.show()
best = min((value, share, mean) for mean, values in noise.items() for share, value in zip(shares, values))
print(f"fewest tokens to signal: {best[0]:.1f}, at share {best[1]:.1f} and mean {best[2]}; RLOO: {noise[0.0][0]:.1f}")

# %% [markdown]
# ## The agent
#
# It has options, each of which becomes a flag of `llm-mdp train`; it makes the rule in its present state; and after
# every update it learns. What is in `numbers` is kept in checkpoints.


# %%
@dataclass(frozen=True)
class SteadyConfig(AgentConfig):
    least_group = 2

    share: float = 0.5
    """How much of the baseline comes from earlier batches."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in [0, 1].")


class SteadyRLOO(Agent[SteadyConfig]):
    """RLOO whose baseline remembers."""

    name, paper, claims = "steady-rloo", "a tutorial", ()
    Config = SteadyConfig

    def make_estimator(self):
        return SteadyBaseline(**self.common(), share=self.config.share, mean=self.numbers.get("mean", 0.0))

    def fit(self, evidence):
        before, now = self.numbers.get("mean", 0.0), float(evidence.response_reward.mean())
        self.numbers["mean"] = 0.8 * before + 0.2 * now
        self.estimator = self.make_estimator()
        return {"baseline": before}


check_agent(SteadyRLOO)
print("check_agent: nothing is wrong with it")

# %% [markdown]
# `check_agent` tries what training will do, and says in a sentence what is wrong. This one draws from a generator that
# belongs to nobody, so that no run of it could be repeated:


# %%
class Careless(SteadyRLOO):
    name = "careless"

    def fit(self, evidence):
        return {"luck": float(np.random.random())}  # noqa: NPY002


try:
    check_agent(Careless)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Train with it
#
# The trainer takes an agent, a task and a policy, here a table of logits that begins uniform. Groups of two, 16
# prompts a step, six seeds; share 0 is RLOO.

# %%
task = gym.make("llm_mdp/Tabular-v0").unwrapped.task


def learned(share, seed):
    policy = build_policy(ModelConfig(), task, seed=0)
    agent = SteadyRLOO(SteadyConfig(group_size=2, share=share), policy, task)
    trainer = Trainer(agent, task, policy, TrainConfig(prompts_per_step=16, signal_every=0, seed=seed))
    trainer.prepare()
    rewards = [trainer.evaluate()["eval/exact_reward"]]
    for step in range(1, 61):
        trainer.step()
        if step % 10 == 0:
            rewards.append(trainer.evaluate()["eval/exact_reward"])
    return rewards


curves = {share: np.array([learned(share, seed) for seed in range(6)]) for share in (0.0, 0.5)}
for share, rewards in curves.items():
    last = rewards[:, -1]
    print(f"share {share}: expected reward {rewards[0, 0]:.2f} → {last.mean():.2f}", end="")
    print(f", the six from {last.min():.2f} to {last.max():.2f}")

# %%
figure, axes = plt.subplots()
steps = np.arange(0, 61, 10)
for rewards, name in zip(curves.values(), ("RLOO", "steady-rloo")):
    (line,) = axes.plot(steps, rewards.mean(0))
    axes.fill_between(steps, rewards.min(0), rewards.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    up = rewards[:, -1].mean() == max(each[:, -1].mean() for each in curves.values())
    axes.annotate(f" {name}", (60, rewards[:, -1].mean()), color=line.get_color(), va="bottom" if up else "top")
axes.set(xlabel="steps of 16 prompts, 2 responses each", ylabel="expected reward, exact", xlim=(0, 70))
axes.set_title("Both learn (mean of six seeds; the band holds all six)")
plt.show()

# %% [markdown]
# The expected reward is exact at every point: the task is small enough to list every response. Where the bands
# overlap, six seeds do not tell the two apart.
#
# ## Next
#
# - From a file it trains by FILE.py:CLASS, with its options as flags: `llm-mdp train
#   examples/own_agent.py:SteadyRLOOAgent Tabular --share 0.3`. `llm-mdp agents examples/own_agent.py:SteadyRLOOAgent
#   --certify` computes the certificate of its defaults; in Python it is `train(SteadyRLOOAgent.Config(share=0.3), …)`.
# - In `agents/llm_mdp_agents/zoo/` of a clone it has its own name: `llm-mdp train steady-rloo Tabular`.
# - An agent with a critic or a reward model: `build` makes it, `add_model` has it trained;
#   [ppo.py](../../agents/llm_mdp_agents/zoo/ppo.py) is one.
# - A rule that learns nothing needs no agent: `train(MyEstimator(), …)`. See
#   [certify your estimator](certify_your_estimator.md).
