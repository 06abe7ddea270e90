"""One contender of this repository's environment: `python our_side.py CONTENDER SETTING` prints one line of JSON.
Started by compare.py."""

import itertools
import sys

import numpy as np
import straight_loop
import torch
from setting import (
    GROUP_SIZE,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    NEW_TOKENS,
    PROMPTS,
    SEED,
    SETTINGS,
    VOCAB_SIZE,
    Meter,
    build_model,
    build_prompts,
)

from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent
from llm_mdp_agents.zoo.rloo import RLOOAgent
from llm_mdp_envs.task import Question, Scores, Task


class Prompts(Task):
    """The setting's prompts in turn, every response of full length, the setting's reward."""

    vocab_size, eos, horizon, separates = VOCAB_SIZE, None, NEW_TOKENS, ""

    def __init__(self, prompts: torch.Tensor, meter: Meter):
        self.prompt_length, self.meter = prompts.shape[1], meter
        self.turn = itertools.cycle([Question(tuple(prompt)) for prompt in prompts.tolist()])

    def question(self, generator: np.random.Generator) -> Question:
        return next(self.turn)

    def score(self, questions, tokens, mask) -> Scores:
        return Scores(np.array(self.meter.responses(tokens.tolist())))


def train(config, agent):
    """One of our agents, by the trainer that everybody uses."""

    def run(model: torch.nn.Module, prompts: torch.Tensor, steps: int, meter: Meter) -> None:
        policy, task = LanguageModelPolicy(model, VOCAB_SIZE, begin=None), Prompts(prompts, meter)
        policy.fast_matmul = "auto"  # as `load_policy` and the command line set it
        options = TrainConfig(
            steps=steps, prompts_per_step=PROMPTS, learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM,
            signal_every=0, seed=SEED, micro_batch=128,
        )  # fmt: skip
        trainer = Trainer(agent(config, policy, task), task, policy, options)
        meter.start()
        for _ in range(steps):
            trainer.step()
            meter.step()

    return run


CONTENDERS = {
    "straight_loop": straight_loop.train,
    "our_grpo": train(GRPOAgent.Config(group_size=GROUP_SIZE, reduction="token_mean"), GRPOAgent),
    "our_rloo": train(RLOOAgent.Config(group_size=GROUP_SIZE, clip_low=0.2), RLOOAgent),
}
"""Each is a function of (model, prompts, steps, meter). GRPO with TRL's default reduction, every token of the batch
alike."""


def main() -> None:
    contender, setting = CONTENDERS[sys.argv[1]], SETTINGS[sys.argv[2]]
    torch.set_num_threads(1)
    model = build_model()
    meter = Meter(model)
    contender(model, build_prompts(setting.prompt_length), setting.steps + 1, meter)
    print(meter.report())


if __name__ == "__main__":
    main()
