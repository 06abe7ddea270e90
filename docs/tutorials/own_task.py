# %% [markdown]
# # A task of your own
#
# A task is one class: what is asked, and what an answer is worth. Everything else (a Gymnasium environment, thousands
# of them stepped as arrays, restarts from any prefix, training, evaluation) is made from it. At the end you have
# written one, stepped it, seen what is said when it is wrong, and trained a small transformer on it. Ten minutes of
# reading; ten seconds of a CPU. Here questions and answers are numbers; a task in words is as short:
# [text tasks](../environments.md#text-tasks-questions-and-answers-in-words).

# %%
import matplotlib.pyplot as plt
import numpy as np

from llm_mdp_agents import train
from llm_mdp_envs import Question, Scores, Task, TaskError, TokenEnv, TokenVectorEnv, check_task

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## What is asked, and what an answer is worth
#
# The prompt is a number from 1 to 5; the right answer is the next one (after 5 comes 1), and then the end. Tokens are
# numbers from 0 to `vocab_size` - 1, and here 0 ends a response. What `question` keeps as `secret` is for `score`, and
# nobody sees it.


# %%
class Next(Task):
    """Say the next number, then stop: half of the reward for each."""

    separates = "whether a policy reads its prompt"
    vocab_size, eos, horizon, prompt_length = 6, 0, 2, 1

    def question(self, generator):
        number = int(generator.integers(1, self.vocab_size))
        return Question((number,), secret=(number % 5 + 1, self.eos))

    def score(self, questions, tokens, mask):
        right = tokens == np.array([question.secret for question in questions])
        return Scores(right.mean(1))


check_task(Next())  # says in words what is wrong; here nothing is

# %% [markdown]
# `score` gets many responses at once, as rows of an array: -1 stands after the end, and `mask` says which tokens the
# policy chose. Where a task is wrong, `check_task` says so before anybody learns from it. Here a prompt
# is too long:


# %%
class TooLong(Next):
    def question(self, generator):
        return Question((1, 2), secret=(3, self.eos))


try:
    check_task(TooLong())
except TaskError as error:
    print(error)

# %% [markdown]
# ## Step it
#
# By hand, one token at a time. The observation is the prompt and the response so far; the reward comes at the end.

# %%
env = TokenEnv(Next())
observation, info = env.reset(options={"question": Question((4,), secret=(5, 0))})
print("before:", observation)
for token in (5, 0):
    observation, reward, terminated, truncated, info = env.step(token)
    print(f"token {token}:", observation, "reward", float(reward))

# %% [markdown]
# Ten thousand at once, with random tokens. This is how much nobody has to learn:

# %%
many = TokenVectorEnv(Next(), num_envs=10_000)
many.reset(seed=0)
many.action_space.seed(0)
total, going = np.zeros(10_000), np.ones(10_000, dtype=bool)
while going.any():
    _, reward, terminated, _, _ = many.step(many.action_space.sample())
    total += reward * going
    going &= ~terminated
print(f"mean reward of random responses: {total.mean():.3f} ± {1.96 * total.std() / 100:.3f}")

# %% [markdown]
# ## Train on it
#
# `train` takes the task as it is. `"rloo"` is the agent, and what is trained is a small transformer that knows
# nothing. Every ten steps it is evaluated; in brackets is a 95 % interval.

# %%
run = train(
    "rloo", Next(), "small", steps=60, prompts_per_step=32, learning_rate=1e-3, eval_every=10, eval_prompts=64,
    signal_every=0, progress=False, seed=0,
)  # fmt: skip
evaluations = [each for each in run.metrics if "eval/reward" in each]
for each in evaluations[:: len(evaluations) - 1]:
    low, high = each["eval/reward_low"], each["eval/reward_high"]
    print(f"step {each['step']:2}: reward {each['eval/reward']:.2f} [{low:.2f}, {high:.2f}]", end="")
    print(f", greedy {each['eval/greedy_reward']:.2f}")

# %%
steps = [each["step"] for each in evaluations]
drawn, low, high, greedy = (
    [each[f"eval/{name}"] for each in evaluations] for name in ("reward", "reward_low", "reward_high", "greedy_reward")
)
figure, axes = plt.subplots()
axes.axhline(total.mean(), color="#5a626d", linewidth=1, linestyle=":")
axes.annotate("random tokens", (steps[-1], total.mean()), (0, 4), textcoords="offset points", ha="right", fontsize=9)
axes.fill_between(steps, low, high, alpha=0.2, linewidth=0)
axes.plot(steps, drawn)
axes.annotate(" drawn", (steps[-1], drawn[-1]), va="top", color="C0")
axes.plot(steps, greedy, color="C1")
axes.annotate(" most probable", (steps[-1], greedy[-1]), va="bottom", color="C1")
axes.set(xlabel="steps of 32 prompts, 8 responses each", ylabel="reward a response", ylim=(0, 1.05), xlim=(0, 72))
axes.set_title("A small transformer learns to count (seed 0; band: 95 % interval)")
plt.show()

# %% [markdown]
# ## Next
#
# - From a terminal: put the class into `my_task.py` and say `llm-mdp train rloo my_task.py:Next --steps 60`. Then
#   `llm-mdp eval --run runs/…` and `llm-mdp inspect my_task.py:Next` know it, too.
# - Right answers to begin from (`answers`), forbidden tokens (`action_mask`), token rewards, several turns: what else a
#   task may say stands with its defaults in the [API of `Task`](../api/llm_mdp_envs.md#tasks).
# - The same in words, with the command that trains on it: [a text
#   task](../environments.md#text-tasks-questions-and-answers-in-words). Conversations and tools stand below it.
# - [Train a small language model on sums](language_model_on_sums.md).
