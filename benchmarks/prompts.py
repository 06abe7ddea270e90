"""A task for clocks: what it asks and what it rewards are of no matter, only their sizes."""

import numpy as np

from llm_mdp_envs.task import Question, Scores, Task


class Prompts(Task):
    """Random prompts of one length, responses of full length; the reward is the share of even tokens."""

    eos, separates = None, ""

    def __init__(self, vocab_size: int, prompt_length: int, horizon: int):
        self.vocab_size, self.prompt_length, self.horizon = vocab_size, prompt_length, horizon

    def question(self, generator: np.random.Generator) -> Question:
        return Question(tuple(generator.integers(self.vocab_size, size=self.prompt_length).tolist()))

    def score(self, questions, tokens, mask) -> Scores:
        return Scores((np.asarray(tokens) % 2 == 0).mean(1))
