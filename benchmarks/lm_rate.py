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
from time import thread_time

import numpy as np
import torch
from machine import processor, write_results
from torch.nn.functional import linear

from llm_mdp_agents.lm import generation, products
from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent
from llm_mdp_envs.task import Question, Scores, Task

RESULTS = Path(__file__).parent / "results" / "lm_rate.json"
VOCAB_SIZE, WIDTH, HEADS, K = 49_152, 576, 9, 8


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


def least(times: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Least CPU seconds of each, taking turns; each once before."""
    best = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way()
    for _ in range(times):
        for name, way in ways.items():
            begun = thread_time()
            way()
            best[name] = min(best[name], thread_time() - begun)
    return best


@torch.no_grad()
def limits() -> dict[str, float]:
    """GFLOP/s of both products at 32 rows (weights beyond the cache) and at 1,024, GB/s of a copy."""
    head, square, few, many = (torch.randn(rows, WIDTH) for rows in (2**15, 1536, 32, 1024))
    ready, source, target = products.packed(head), torch.zeros(2**26), torch.zeros(2**26)
    seconds = least(
        5, mkl_32=lambda: linear(few, head), onednn_32=lambda: products.by_onednn(few, ready),
        mkl_1024=lambda: linear(many, square), onednn_1024=lambda: products.by_onednn(many, square),
        copy=lambda: target.copy_(source),
    )  # fmt: skip
    work = {"32": 2 * 32 * head.numel(), "1024": 2 * 1024 * square.numel()}
    rates = {name: work[name.split("_")[1]] / each / 1e9 for name, each in seconds.items() if name != "copy"}
    return rates | {"copy_gb_per_s": 2 * source.nbytes / seconds["copy"] / 1e9}


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

    same = float((draw("off")() == draw("both")()).float().mean())  # pyright: ignore
    seconds = least(times, plain=draw("off"), fast=draw("both"))
    return {name: 32 * 32 / each for name, each in seconds.items()} | {"same_tokens": same, **ratio(seconds)}


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
    return seconds | ratio(seconds)


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
    return seconds | ratio(seconds)


def ratio(seconds: dict[str, float]) -> dict[str, float]:
    return {"ratio": seconds["plain"] / seconds["fast"]}


if __name__ == "__main__":
    main()
