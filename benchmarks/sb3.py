"""What Stable-Baselines3 reaches on token environments, against the exact optimum.

    python benchmarks/sb3.py
    python benchmarks/sb3.py --timesteps 100000 --seed 1

PPO on Tabular (an optimum found by listing every response) and MaskablePPO on one-digit sums (optimum 1), both with
SB3's default hyperparameters but for the rollout length. Rewards are of 2,000 responses drawn from the trained policy
and of the greedy ones. Prints a table and writes benchmarks/results/sb3.json; needs `pip install stable-baselines3
sb3-contrib`.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from machine import write_results
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from llm_mdp_envs import TokenVectorEnv
from llm_mdp_envs.tasks.synthetic import optimum
from llm_mdp_envs.wrappers import OneHot, one_hot

RESULTS = Path(__file__).parent / "results" / "sb3.json"
RESPONSES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=60_000, help="tokens to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = (
        (stable_baselines3.PPO, "llm_mdp/Tabular-v0", {}),
        (sb3_contrib.MaskablePPO, "llm_mdp/Arithmetic-v0", {"digits": 1, "restricted": True}),
    )
    rows = [train(algorithm, id, kwargs, arguments.timesteps, arguments.seed) for algorithm, id, kwargs in runs]
    show(rows)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_results(
        arguments.output,
        ("torch", "gymnasium", "stable-baselines3", "sb3-contrib"),
        {"seed": arguments.seed, "runs": rows},
    )
    Console().print(f"Written to {arguments.output}")


def train(algorithm: type, id: str, kwargs: dict, timesteps: int, seed: int) -> dict:
    """Train and evaluate; rewards per response, time in seconds."""
    venv = make_vec_env(lambda: OneHot(gym.make(id, **kwargs)), n_envs=16, seed=seed)
    model = algorithm("MlpPolicy", venv, n_steps=128, batch_size=256, seed=seed, device="cpu")
    before = mean_reward(model, id, kwargs)
    start = time.perf_counter()
    model.learn(timesteps)
    seconds = time.perf_counter() - start
    task = gym.make(id, **kwargs).unwrapped.task
    return {
        "algorithm": algorithm.__name__,
        "id": id,
        "kwargs": kwargs,
        "timesteps": model.num_timesteps,
        "seconds": seconds,
        "before": before,
        "drawn": mean_reward(model, id, kwargs),
        "greedy": mean_reward(model, id, kwargs, greedy=True),
        "optimum": optimum(task) if task.mdp is not None else 1.0,
    }


def mean_reward(model, id: str, kwargs: dict, greedy: bool = False) -> float:
    """Mean RM(W) of responses to questions drawn with a fixed seed, by the vectorised environment."""
    env = gym.make_vec(id, num_envs=RESPONSES, **kwargs)
    assert isinstance(env, TokenVectorEnv)
    observation, info = env.reset(seed=12345)
    total, going = np.zeros(RESPONSES), np.ones(RESPONSES, dtype=bool)
    while going.any():
        masks = {"action_masks": info["action_mask"]} if isinstance(model, sb3_contrib.MaskablePPO) else {}
        tokens, _ = model.predict(one_hot(observation, env.task.vocab_size), deterministic=greedy, **masks)
        observation, reward, terminated, _, info = env.step(tokens)
        total += reward * going
        going &= ~terminated
    return float(total.mean())


def show(rows: list[dict]) -> None:
    table = Table(title="reward a response")
    for name in ("algorithm", "task", "tokens", "seconds", "before", "drawn", "greedy", "optimum"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = [f"{row[name]:.3f}" for name in ("before", "drawn", "greedy", "optimum")]
        table.add_row(
            row["algorithm"],
            row["id"].removeprefix("llm_mdp/"),
            f"{row['timesteps']:,}",
            f"{row['seconds']:.0f}",
            *figures,
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
