"""How fast a language model draws and trains, with torch's products and oneDNN's, beside what the processor can do.

    python benchmarks/lm_rate.py
    python benchmarks/lm_rate.py --layers 30    # all of SmolLM2-135M's shapes; weights are random

Both sides of every ratio take turns in one process; seconds are CPU seconds of one thread, the least of a few. Writes
benchmarks/results/lm_rate.json with the processor, the rate of both products and the memory's. A few minutes.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from limits import WIDTH, least, limits
from machine import processor, write_results
from torch.utils.flop_counter import FlopCounterMode

from llm_mdp_agents.lm import generation, products
from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent
from llm_mdp_envs.task import Question, Scores, Task

RESULTS = Path(__file__).parent / "results" / "lm_rate.json"
VOCAB_SIZE, HEADS, K = 49_152, 9, 8


class Prompts(Task):
    """Random prompts of one length, responses of 8 tokens; the reward is how many of them are even."""

    vocab_size, eos, horizon, separates = VOCAB_SIZE, None, 8, ""

    def __init__(self, length: int):
        self.prompt_length = length
        drawn = torch.randint(VOCAB_SIZE, (8, length), generator=torch.Generator().manual_seed(0))
        self.turn = itertools.cycle([Question(tuple(prompt)) for prompt in drawn.tolist()])

    def question(self, generator: np.random.Generator) -> Question:
        return next(self.turn)

    def score(self, questions, tokens, mask) -> Scores:
        return Scores((tokens % 2 == 0).sum(1).astype(np.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = {
        "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": WIDTH, "intermediate_size": 1536,
        "num_hidden_layers": arguments.layers, "num_attention_heads": HEADS, "num_key_value_heads": 3,
        "tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    results: dict = {
        "processor": processor() | {"capability": torch.backends.cpu.get_cpu_capability()},
        "layers": arguments.layers,
        "limits": limits(),
    }
    results["choice"] = "on" if products.is_faster_here() else "off"
    parts = {
        "grpo_step_prompts_of_8": lambda: steps(config, 8, arguments.times),
        "draw_32_rows": lambda: drawing(config, arguments.times),
        "draw_8_of_4_prompts_of_256": lambda: shared(config, arguments.times),
        "grpo_step_prompts_of_256": lambda: steps(config, 256, arguments.times),
    }
    for name, measure in parts.items():
        results[name] = measure()
        print(name, results[name], flush=True)
        write_results(arguments.output, ("torch", "transformers"), results)


def gflop(work: Callable[[], object]) -> float:
    """Billions of float operations of products and attention, by the plain way; oneDNN's operators are not counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def drawing(config: dict, times: int) -> dict:
    """Tokens a second, 32 prompts of 32 and 32 new tokens each."""
    policy = load_policy(config)
    prompt = torch.randint(VOCAB_SIZE, (32, 32), generator=torch.Generator().manual_seed(0))

    def draw(choice: products.FastMatmul) -> Callable[[], object]:
        def run() -> object:
            if policy.fast_matmul != choice:
                policy.fast_matmul = choice
            return policy.sample(prompt, 1, eos=None, horizon=32, generator=torch.Generator().manual_seed(1)).tokens

        return run

    same = float((draw("off")() == draw("on")()).float().mean())  # pyright: ignore
    seconds = least(times, plain=draw("off"), fast=draw("on"))
    rates = {name: 32 * 32 / each for name, each in seconds.items()}
    return rates | {"same_tokens": same, "gflop": gflop(draw("off")), **ratio(seconds)}


def shared(config: dict, times: int) -> dict:
    """Seconds of 8 responses of 16 tokens to each of 4 prompts of 256, on copies of the prompts' keys and on one."""
    policy = load_policy(config)
    prompt = torch.randint(VOCAB_SIZE, (4, 256), generator=torch.Generator().manual_seed(0))

    def draw(columns: int) -> Callable[[], object]:
        def run() -> object:
            generation.FROM = columns
            return policy.sample(prompt, 8, eos=None, horizon=16, generator=torch.Generator().manual_seed(1))

        return run

    seconds = least(times, plain=draw(10**9), fast=draw(64))
    policy.fast_matmul = "off"
    return seconds | {"gflop": gflop(draw(64)), **ratio(seconds)}


def steps(config: dict, length: int, times: int) -> dict:
    """Seconds of a GRPO step, 8 prompts and 8 responses of 8 tokens each."""
    trainers = {}
    for name, choice in (("plain", "off"), ("fast", "auto")):
        policy, task = load_policy(config, fast_matmul=choice), Prompts(length)
        options = TrainConfig(steps=100, prompts_per_step=8, learning_rate=1e-6, signal_every=0, seed=0, micro_batch=64)
        agent = GRPOAgent(GRPOAgent.Config(group_size=K), policy, task)
        trainers[name] = Trainer(agent, task, policy, options)

    def step(name: str, columns: int) -> Callable[[], object]:
        def run() -> object:
            generation.FROM = columns
            return trainers[name].step()

        return run

    seconds = least(times, plain=step("plain", 10**9), fast=step("fast", 64))
    return seconds | {"gflop": gflop(step("plain", 64)), **ratio(seconds)}


def ratio(seconds: dict[str, float]) -> dict[str, float]:
    return {"ratio": seconds["plain"] / seconds["fast"]}


if __name__ == "__main__":
    main()
