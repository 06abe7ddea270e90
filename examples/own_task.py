"""A task of one's own, stepped and learned: `python examples/own_task.py`, about half a minute.

A task is one class: what is asked, and what an answer is worth. It has no state, so everything else (stepping, many at
once, restarts from any prefix) is made from it.
"""

import numpy as np

from llm_mdp_agents import train
from llm_mdp_envs import Question, Scores, Task, TokenEnv, check_task


class Copy(Task):
    """Repeat the two tokens of the prompt, then stop: a third of the reward for each of the three."""

    separates = "whether a policy reads its prompt"
    vocab_size, eos, horizon, prompt_length = 5, 0, 3, 2

    def question(self, generator):
        prompt = tuple(int(token) for token in generator.integers(1, self.vocab_size, size=2))
        return Question(prompt, secret=(*prompt, self.eos))

    def score(self, questions, tokens, mask):
        right = tokens == np.array([question.secret for question in questions])
        return Scores(right.mean(1))


if __name__ == "__main__":
    check_task(Copy())  # says in words what is wrong with a task, before anybody learns from it

    env = TokenEnv(Copy())  # a Gymnasium environment; the reward comes with the last token
    env.reset(options={"question": Question((3, 1), secret=(3, 1, 0))})
    for token in (3, 1, 0):
        _, reward, terminated, _, _ = env.step(token)
        print(f"token {token}: reward {reward:.2f}{', the end' if terminated else ''}")

    run = train("rloo", Copy(), steps=60, progress=False)  # a small transformer from scratch
    before, after = run.metrics[0], run.metrics[-1]
    print(f"greedy responses before training: {before['eval/greedy_reward']:.2f} right")
    print(f"greedy responses after 60 steps:  {after['eval/greedy_reward']:.2f} right")
    print("On the command line: llm-mdp train rloo examples/own_task.py:Copy --steps 60")
