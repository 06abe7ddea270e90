"""What a training step of TRePO costs beside PPO and GRPO: peak memory, time, tokens drawn, on one small model.

    python benchmarks/trepo_cost.py                  # five processes of each, a few minutes
    python benchmarks/trepo_cost.py --rounds 2

Writes benchmarks/results/trepo_cost.json, after every round anew. All train the same Llama of 4.2 million parameters on
the same prompts, 4 a step, with responses of 32 tokens that no end token cuts short, by the trainer that everybody
uses; every run is a process of its own, of one thread, and contenders take turns. Two comparisons with GRPO (K = 8):

- the same prompts and responses, PPO and TRePO; TRePO draws branches besides, one from the beginning and one from the
  middle of each response;
- the same number of drawn tokens: TRePO with 2 responses to a prompt, the other's reward as the prompt's value, and 6
  branches from the middle of each.

"TRePO, every token" is Algorithm 1's D = all steps, repaired: one response to a prompt and 2 branches from every token.

Memory is the peak of the process less what it had before the first step; "state" is what training keeps of the models
(weights, gradients, AdamW's moments), computed and not measured. Time is CPU time, user and system, the first step left
out. Means over processes with 95 % intervals (Student's t).
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import write_results
from rich.console import Console

RESULTS = Path(__file__).parent / "results" / "trepo_cost.json"
VOCAB_SIZE, PROMPTS, PROMPT, RESPONSE, GROUP_SIZE = 64, 4, 16, 32, 8
TIMED = 3
"""Steps of a process that are timed; one more comes first."""
CONTENDERS = {
    "grpo": "GRPO",
    "ppo": "PPO, the same responses",
    "trepo-responses": "TRePO, the same responses",
    "trepo-tokens": "TRePO, the same tokens",
    "trepo-every": "TRePO, every token",
}
FIGURES = ("added_memory", "cpu_seconds")
PAPER = "a theoretically grounded method that is simpler than PPO, matches GRPO in memory efficiency"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each contender, at least 2")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--contender", choices=CONTENDERS, help="run this one here and print a line of JSON")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(train(arguments.contender)))
        return
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; an interval needs at least 2 processes.")
    runs: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for number in range(arguments.rounds):
        for name, found in runs.items():
            found.append(start(name))
            Console().print(
                f"round {number + 1} of {arguments.rounds}, {name}: {found[-1]['cpu_seconds']:.2f} CPU-s a step, "
                f"{found[-1]['added_memory'] / 2**20:,.0f} MiB, {found[-1]['tokens']:,} tokens"
            )
        if number:
            rows = [summary(name, found) for name, found in runs.items()]
            work = {
                "prompts": PROMPTS,
                "prompt": PROMPT,
                "response": RESPONSE,
                "group_size": GROUP_SIZE,
                "timed": TIMED,
            }
            document = {"paper": PAPER, "rounds": number + 1, **work, "rows": rows, "runs": runs}
            write_results(arguments.output, ("torch", "transformers"), document)
    Console().print(f"Written to {arguments.output}")


def start(name: str) -> dict[str, Any]:
    """One process. This one stays small (no torch), because on Linux a child's peak memory starts from its parent's.

    Raises: RuntimeError with the end of its error output if it fails.
    """
    command = [sys.executable, __file__, "--contender", name]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and intervals over the processes of one contender; what must be the same in all of them."""
    same = ("tokens", "rewards", "parameters", "trained_parameters", "state", "models", "trained_tokens")
    for key in same:
        if any(run[key] != runs[0][key] for run in runs):
            raise RuntimeError(f"{key} of {name} differs from process to process; the work must be the same.")
    return {
        "contender": name,
        **{key: runs[0][key] for key in same},
        **{key: interval([run[key] for run in runs]) for key in FIGURES},
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval."""
    from scipy import stats

    middle, deviation = statistics.mean(values), statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return middle, middle - half, middle + half


# --- inside the process of one contender ------------------------------------------------------------------------------


def train(name: str) -> dict[str, Any]:
    """A few steps, and what they took."""
    import psutil
    import torch
    from prompts import Prompts

    from llm_mdp_agents.lm.loading import small_transformer
    from llm_mdp_agents.training.train_config import TrainConfig
    from llm_mdp_agents.training.trainer import Trainer
    from llm_mdp_agents.zoo.grpo import GRPOAgent, GRPOConfig
    from llm_mdp_agents.zoo.ppo import PPOAgent, PPOConfig
    from llm_mdp_agents.zoo.trepo import TRePOAgent, TRePOConfig

    torch.set_num_threads(1)
    middle = RESPONSE // 2
    configs: dict[str, Any] = {
        "grpo": GRPOConfig(group_size=GROUP_SIZE),
        "ppo": PPOConfig(group_size=GROUP_SIZE, critic_warm_up=0),
        "trepo-responses": TRePOConfig(group_size=GROUP_SIZE, every=middle, samples=1),
        "trepo-tokens": TRePOConfig(group_size=2, every=middle, samples=6, group_baseline=True),
        "trepo-every": TRePOConfig(group_size=1, every=1, samples=2),
    }
    agents: dict[str, Any] = {"grpo": GRPOAgent, "ppo": PPOAgent}
    policy = small_transformer(VOCAB_SIZE, PROMPT + RESPONSE, width=256, layers=4)
    task = Prompts(VOCAB_SIZE, PROMPT, RESPONSE)
    options = TrainConfig(prompts_per_step=PROMPTS, learning_rate=1e-4, signal_every=0)
    trainer = Trainer(agents.get(name, TRePOAgent)(configs[name], policy, task), task, policy, options)
    before = psutil.Process().memory_info().rss
    cpu, tokens, rewards = [], [], []
    for _ in range(TIMED + 1):
        cpu.append(time.process_time())
        spent = trainer.sampler.cost
        start_tokens, start_rewards = spent.tokens, spent.rewards
        trainer.step()
        tokens.append(spent.tokens - start_tokens)
        rewards.append(spent.rewards - start_rewards)
    cpu.append(time.process_time())
    own = sum(parameter.numel() for parameter in policy.parameters())
    beside = sum(p.numel() for model in trainer.agent.models.values() for p in model.parameters())
    return {
        "added_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "cpu_seconds": (cpu[-1] - cpu[1]) / TIMED,
        "tokens": same_in_all(tokens),
        "rewards": same_in_all(rewards),
        "trained_tokens": PROMPTS * configs[name].group_size * (PROMPT + RESPONSE),
        "parameters": own,
        "trained_parameters": own + beside,
        # Weights, gradients and two moments, four bytes each.
        "state": 16 * (own + beside),
        "models": 1 + len(trainer.agent.models),
    }


def same_in_all(numbers: list[int]) -> int:
    """The number of every step."""
    if len(set(numbers)) > 1:
        raise RuntimeError(f"steps differ in their work: {numbers}.")
    return numbers[0]


if __name__ == "__main__":
    main()
