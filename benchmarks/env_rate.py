"""Steps a second of the vectorised token environment, beside Gymnasium's vectorised CartPole and a bare numpy loop, in
one run.

    python benchmarks/env_rate.py
    python benchmarks/env_rate.py --num-envs 256 --seconds 1

The bare loop does by hand what the environment does for this one task: append a token, detect the end, look up the
reward, begin the next episode, return an observation of its own; before anything is timed, both are compared on the
same actions, array by array. Contenders take turns, block by block, and their CPU time of one thread is taken; a rate
is the median of its blocks, a ratio the median of the ratios of neighbouring blocks. Prints a table and writes
benchmarks/results/env_rate.json.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from machine import write_results
from rich.console import Console
from rich.table import Table

from llm_mdp_envs import TokenVectorEnv

RESULTS = Path(__file__).parent / "results" / "env_rate.json"
STEPS = 200
"""Steps of one block."""

TOKEN_ENVS = {
    "Tabular": ("llm_mdp/Tabular-v0", {}),
    "Tabular, 8 tokens x 6 steps": ("llm_mdp/Tabular-v0", {"vocab_size": 8, "horizon": 6}),
    "Ngram": ("llm_mdp/Ngram-v0", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds for each contender, about")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    n = arguments.num_envs
    rows = []
    for name, (id, kwargs) in TOKEN_ENVS.items():
        env, bare = gym.make_vec(id, num_envs=n, **kwargs), bare_loop(id, kwargs, n)
        compare(env, bare)
        cartpole = gym.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point")
        cartpole.reset(seed=0)
        vocab_size = env.single_action_space.n
        contenders = {
            "environment": (env.step, actions(n, vocab_size)),
            "bare": (bare, actions(n, vocab_size)),
            "cartpole": (cartpole.step, actions(n, 2)),
        }
        rows.append({"task": name, **measure(contenders, n, arguments.seconds)})
    show(rows, n)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_results(arguments.output, ("numpy", "gymnasium"), {"num_envs": n, "rates": rows})
    Console().print(f"Written to {arguments.output}")


def bare_loop(id: str, kwargs: dict, n: int) -> Callable[[np.ndarray], tuple]:
    """The loop that one would write by hand for this task; its reward table comes from the task's MDP."""
    task = gym.make(id, **kwargs).unwrapped.task
    lookup = dense_lookup(task) if id == "llm_mdp/Tabular-v0" else bigram_lookup(task)
    eos, horizon = task.eos, task.horizon
    tokens, length, over, rows = (
        np.full((n, horizon), -1),
        np.zeros(n, dtype=np.int64),
        np.zeros(n, dtype=bool),
        np.arange(n),
    )

    def step(action: np.ndarray) -> tuple:
        nonlocal over
        tokens[over] = -1
        length[over] = 0
        tokens[rows, length] = np.where(over, -1, action)
        length[:] += ~over
        terminated = ((action == eos) | (length == horizon)) & ~over
        reward = np.zeros(n)
        reward[terminated] = lookup(tokens[terminated])
        over = terminated
        return tokens.copy(), reward, terminated.copy()

    return step


def dense_lookup(task) -> Callable[[np.ndarray], np.ndarray]:
    """Rewards of complete responses in one array with an axis a step; index -1 is its last entry, for padding."""
    leaves = task.mdp.tree.leaves.numpy()
    table = np.zeros((task.vocab_size + 1,) * task.horizon)
    table[tuple(leaves.T)] = task.score_rows(np.zeros((len(leaves), 1), dtype=np.int64), leaves, leaves >= 0).reward
    return lambda tokens: table[tuple(tokens.T)]


def bigram_lookup(task) -> Callable[[np.ndarray], np.ndarray]:
    """Sums of rewards of neighbouring tokens (order 1, no discount); the last row is for no token before, the last
    column for padding."""
    table = np.pad(task.mdp.token_reward.table.numpy(), ((0, 0), (0, 1)))

    def lookup(tokens: np.ndarray) -> np.ndarray:
        before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return table[before, tokens].sum(1)

    return lookup


def compare(env: TokenVectorEnv, bare: Callable[[np.ndarray], tuple]) -> None:
    """Stop unless both return the same observations, rewards and ends."""
    env.reset(seed=0)
    for action in actions(env.num_envs, env.single_action_space.n):
        observation, reward, terminated, _, _ = env.step(action)
        for ours, theirs in zip((observation, reward, terminated), bare(action)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def actions(n: int, n_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n_tokens, size=(STEPS, n))


def measure(contenders: dict[str, tuple[Callable, np.ndarray]], n: int, seconds: float) -> dict:
    """Rates in steps of single environments a second of CPU time, and ratios to the two others."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step, action in contenders.values():
        block(step, action)
    while min(sum(one) for one in times.values()) < seconds:
        for name, (step, action) in contenders.items():
            times[name].append(block(step, action))
    ours = times["environment"]
    ratio = {other: statistics.median(b / a for a, b in zip(ours, times[other])) for other in ("bare", "cartpole")}
    rates = {f"{name}_steps_per_second": STEPS * n / statistics.median(one) for name, one in times.items()}
    return rates | {
        "slower_than_bare": 1 / ratio["bare"],
        "faster_than_cartpole": ratio["cartpole"],
        "blocks": len(times["bare"]),
    }


def block(step: Callable, action: np.ndarray) -> float:
    start = time.process_time()
    for one in action:
        step(one)
    return time.process_time() - start


def show(rows: list[dict], n: int) -> None:
    table = Table(title=f"million steps a CPU-second, {n:,} environments")
    for name in ("task", "environment", "bare loop", "CartPole", "slower than bare", "faster than CartPole"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in rows:
        rates = [f"{row[f'{name}_steps_per_second'] / 1e6:.1f}" for name in ("environment", "bare", "cartpole")]
        table.add_row(row["task"], *rates, f"{row['slower_than_bare']:.2f}x", f"{row['faster_than_cartpole']:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
