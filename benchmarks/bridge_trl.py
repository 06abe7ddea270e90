"""TRL's GRPOTrainer trains estimators of ours on a game of several turns, and logs what their gradients are worth.

    python benchmarks/bridge_trl.py
    python benchmarks/bridge_trl.py --steps 60 --seed 1

A small GPT-2 learns to guess a number in `llm_mdp_agents.bridges.trl.EstimatorTrainer`, once with RLOO and once with
GRPO. On the first batch of each run the gradient that TRL accumulates over four micro-batches is compared with our own
trainer's on the same responses. Prints a table and writes benchmarks/results/bridge_trl.json; needs TRL. About two
minutes of one core.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
from trl.trainer.grpo_config import GRPOConfig

from llm_mdp.estimators.algorithms import GRPO, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp_agents.base import Plain
from llm_mdp_agents.bridges import trl as bridge
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_envs.tasks.guess_number import GuessNumber

RESULTS = Path(__file__).parent / "results" / "bridge_trl.json"
TASK = GuessNumber(highest=3, max_turns=2)
K, PROMPTS, PARTS = 8, 16, 4
LOGGED = (
    "reward", "groups_with_signal", "signal_to_noise", "cosine_to_rloo", "cosine_to_rloo_low", "cosine_to_rloo_high",
    "tokens_to_signal", "tokens_to_signal_low", "tokens_to_signal_high", "tokens_to_signal_K=2", "tokens_to_signal_K=4",
    "groups_measured",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [run(estimator, arguments.steps, arguments.seed) for estimator in (RLOO(group_size=K), GRPO(group_size=K))]
    show(runs)
    facts = {"seed": arguments.seed, "group_size": K, "prompts": PROMPTS, "micro_batches": PARTS}
    task = {"task": "GuessNumber", "highest": TASK.highest, "max_turns": TASK.max_turns}
    write_results(arguments.output, ("torch", "transformers", "trl"), facts | task | {"runs": runs})
    Console().print(f"Written to {arguments.output}")


def run(estimator: Estimator, steps: int, seed: int) -> dict[str, Any]:
    """A run of TRL's, with its log and the difference of the first gradient."""
    with tempfile.TemporaryDirectory() as folder:
        off = gradient_difference(trainer_of(estimator, steps, seed, folder), estimator)
        trainer = trainer_of(estimator, steps, seed, folder)
        start = time.process_time()
        trainer.train()
        spent = time.process_time() - start
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {
        "estimator": type(estimator).__name__,
        "gradient_difference": off,
        "cpu_seconds": spent,
        "reward_first_5": statistics.fmean(entry["reward"] for entry in log[:5]),
        "reward_last_5": statistics.fmean(entry["reward"] for entry in log[-5:]),
        "log": [{"step": each["step"]} | {name: each[name] for name in LOGGED if name in each} for each in log],
    }


def trainer_of(estimator: Estimator, steps: int, seed: int, folder: str) -> Any:
    torch.manual_seed(seed)
    size: dict[str, Any] = {"vocab_size": TASK.vocab_size, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    rollouts = bridge.rollout_of(TASK, questions=256, seed=seed)
    # The older name is that of transformers before 5.20.
    names = ("activation_checkpointing", "gradient_checkpointing")
    off = {next(name for name in names if name in GRPOConfig.__dataclass_fields__): False}
    arguments: dict[str, Any] = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "seed": seed,
        "num_generations": K, "per_device_train_batch_size": K * PROMPTS // PARTS, "max_steps": steps,
        "gradient_accumulation_steps": PARTS, "max_completion_length": TASK.horizon, "disable_tqdm": True,
        "learning_rate": 3e-3, "lr_scheduler_type": "constant", "logging_steps": 1,
    } | off  # fmt: skip
    trainer = bridge.EstimatorTrainer(
        GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=TASK.eos)),
        reward_funcs=rollouts.reward,
        args=GRPOConfig(**arguments),
        train_dataset=rollouts.dataset(),
        processing_class=rollouts.tokenizer(),
        rollout_func=rollouts,
        estimator=estimator,
        measure_every=2,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def gradient_difference(trainer: Any, estimator: Estimator) -> float:
    """|g - g'| / |g'|: g that TRL accumulates, g' our own trainer's on the same responses."""
    trainer.model.train()
    trainer._prepare_inputs([{"prompt": str(number)} for number in range(PROMPTS) for _ in range(K)])
    for part in trainer._buffered_inputs:
        trainer.compute_loss(trainer.model, part).backward()
    model = trainer.accelerator.unwrap_model(trainer.model)
    theirs = torch.cat([each.grad.flatten() for each in model.parameters()])
    policy = LanguageModelPolicy(model, TASK.vocab_size, None)
    own = Trainer(Plain(estimator, policy, TASK), TASK, policy, TrainConfig(prompts_per_step=PROMPTS))
    evidence, rows = trainer._batch, range(K * PROMPTS)
    weights, _ = own._weights(evidence, rows, True)
    policy.zero_grad()
    own._backward(evidence.rollouts, weights, torch.tensor(rows), True)
    ours = torch.cat([each.grad.flatten() for each in model.parameters()])
    return float((theirs - ours).norm() / ours.norm())


def show(runs: list[dict[str, Any]]) -> None:
    table = Table("estimator", "gradient off by", "reward, first 5 steps", "last 5", "CPU seconds")
    for each in runs:
        rewards = f"{each['reward_first_5']:.3f}", f"{each['reward_last_5']:.3f}"
        table.add_row(each["estimator"], f"{each['gradient_difference']:.1e}", *rewards, f"{each['cpu_seconds']:.0f}")
    Console().print(table)
    for each in runs:
        known = {name: value for entry in each["log"] for name, value in entry.items() if name in LOGGED[1:]}
        said = ", ".join(f"{name} {value:.4g}" for name, value in known.items())
        Console().print(f"{each['estimator']}, the latest of each figure: {said}")


if __name__ == "__main__":
    main()
