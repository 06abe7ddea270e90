# %% [markdown]
# # Train a small language model on sums
#
# A transformer of two layers, made here with random weights, learns `4+8=` from rewards. At the end you know what a
# run is made of, how to read its figures and its responses, and that what trained it has a certificate. Ten minutes of
# reading; half a minute of a CPU.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import torch

import llm_mdp_envs  # noqa: F401  (registers the environments)
from llm_mdp import RLOO, certify
from llm_mdp_agents import train

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## What is asked
#
# `llm_mdp/Arithmetic-v0` asks sums in characters: a digit is a token. The reward of a response is the share of its
# characters that are right, the end token included, and comes once, at the end. Some characters are forbidden in an
# answer, so that no policy wastes its time on them.

# %%
options = {"digits": 1, "restricted": True}
env = gym.make("llm_mdp/Arithmetic-v0", render_mode="ansi", **options)
observation, info = env.reset(seed=4)
env.action_space.seed(4)
done = False
while not done:
    observation, reward, done, _, info = env.step(env.action_space.sample(info["action_mask"]))
print(env.render(), "reward", round(float(reward), 2))

# %% [markdown]
# ## What will train it
#
# RLOO: each response's reward, less the mean of the other responses to the same prompt. The object that trains is the
# one that is certified:

# %%
estimator = RLOO(group_size=8)
print(certify(RLOO(group_size=3)))

# %% [markdown]
# ## Train
#
# `"small"` is a transformer of width 64 with 16 characters. From nothing, hardly a response would be right, so it
# begins with some batches of right answers (`warm_start`); what comes then are rewards alone. Where a task has
# enough questions, an evaluation asks others than training does; here are a hundred sums, and both ask them all.

# %%
run = train(
    estimator, "llm_mdp/Arithmetic-v0", "small", env_arguments=options, warm_start=100, steps=60, prompts_per_step=64,
    learning_rate=5e-4, eval_every=10, signal_every=0, progress=False, seed=0,
)  # fmt: skip
evaluations = [each for each in run.metrics if "eval/reward" in each]
for each in evaluations[:: len(evaluations) - 1]:
    low, high = each["eval/reward_low"], each["eval/reward_high"]
    print(f"step {each['step']:2}: reward {each['eval/reward']:.2f} [{low:.2f}, {high:.2f}]", end="")
    print(f", greedy {each['eval/greedy_reward']:.2f}")
print(f"questions of an evaluation: {run['eval/prompts']:.0f}")

# %% [markdown]
# In brackets is a 95 % interval of the mean over questions. *Greedy* takes the most probable token at every place. What
# is trained is what is drawn: there the interval after training lies above the one before.

# %%
steps = [each["step"] for each in evaluations]
figure, axes = plt.subplots()
for kind, words, at in (("reward", "drawn", "top"), ("greedy_reward", "most probable", "bottom")):
    values, low, high = ([each[f"eval/{kind}{end}"] for each in evaluations] for end in ("", "_low", "_high"))
    (line,) = axes.plot(steps, values)
    axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.annotate(f" {words}", (steps[-1], values[-1]), color=line.get_color(), va=at)
axes.set(
    xlabel="steps of 64 prompts, 8 responses each", ylabel="share of right characters", xlim=(0, 72), ylim=(0.5, 1.02)
)
axes.set_title("Sums of one digit, rewards alone (seed 0; bands: 95 % over questions)")
plt.show()

# %% [markdown]
# ## Ask it
#
# What was trained is a policy, and draws responses to prompts of tokens; `greedy` takes the most probable ones. A task
# says which tokens end a response, and what they all mean.

# %%
task = run.task
characters = [task.decode([token]) for token in range(task.vocab_size)]
asked = [task.from_prompt(tuple(map(characters.index, text))) for text in ("0+7=", "4+8=", "9+9=", "6+5=")]
prompts = torch.tensor([question.prompt for question in asked])
said = run.policy.sample(
    prompts, 1, eos=task.eos, horizon=task.horizon, generator=torch.Generator().manual_seed(0), greedy=True
)
scores = task.score(asked, said.tokens.numpy(), said.mask.numpy()).reward
for question, tokens, score in zip(asked, said.tokens.tolist(), scores):
    print(task.decode(question.prompt), task.decode(tokens), f"reward {score:.2f}")

# %% [markdown]
# ## Next
#
# - The same from a terminal, with a folder that holds metrics, checkpoints, the model and a page of curves:
#   `llm-mdp train rloo Arithmetic --env-args digits=1 restricted=True --steps 60`. Go on with it, to step 200:
#   `llm-mdp train --resume runs/rloo-arithmetic-1 --steps 200`.
# - A model of your own: `--model FOLDER`, any causal language model of Hugging Face, or a LoRA of it:
#   [training](../training.md).
# - A certificate of the gradient in the model's own parameters: [language models](../language_model_certificates.md).
# - [An agent of your own](own_agent.md), [a task of your own](own_task.md).
