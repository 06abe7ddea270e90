"""Responses per CPU-second of sampled certificates against a hand-vectorised numpy REINFORCE loop.

    python benchmarks/sampled_rate.py                    # 4 tokens x 6 steps, with and without an end token; 1 M and 10
    M responses python benchmarks/sampled_rate.py --size 3,4 --responses 200000

Prints a table and writes benchmarks/results/sampled_rate.json. CPU time of one thread, best of several rounds in which
the contenders take turns; float64, one prompt. The numpy loop is what one would write by hand to estimate ∇J of a table
of logits: ancestral sampling from cumulative tables, many responses at a time, and one accumulation of RM(W) ∇log π(W)
for all of them. It computes a mean and nothing else; a certificate also has an error, a bound and a verdict. Without an
end token every response has all T tokens; with one the loop gains from short responses. Goals: estimators of one
response at least as fast as the loop, groups at 1.2 times of it.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from limits import limits
from machine import write_results
from rich.console import Console
from rich.table import Table

from llm_mdp.estimators.algorithms import REINFORCE, RLOO, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate

RESULTS = Path(__file__).parent / "results" / "sampled_rate.json"
CHUNK = 20_000
"""Responses that the numpy loop draws at a time; from 2,000 to 200,000 it is about as fast."""

LOOP = "numpy loop, REINFORCE"


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[int], float]
    """Draw so many responses; returns |estimate - ∇J| / |∇J|."""
    responses: int
    goal: float | None
    """Least rate, as a multiple of the numpy loop's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=size, default=(4, 6), metavar="V,T", help="tokens, steps")
    parser.add_argument("--responses", type=int, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for eos in (0, None):
        instance = random_instance(*arguments.size, eos=eos, seed=0)
        rows = measure(contenders(instance, arguments.responses or [1_000_000, 10_000_000]), arguments.rounds)
        show(rows, instance)
        shape = {"vocab_size": arguments.size[0], "horizon": arguments.size[1], "eos": eos}
        runs.append({**shape, "mean_length": mean_length(instance), "rows": rows})
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"threads": torch.get_num_threads(), "limits": limits(), "runs": runs}
    write_results(arguments.output, ("numpy", "torch"), results)
    Console().print(f"Written to {arguments.output}")


def size(text: str) -> tuple[int, int]:
    vocab_size, horizon = text.split(",")
    return int(vocab_size), int(horizon)


def mean_length(instance: Instance) -> float:
    e = Problem(instance).enumeration
    return float((e.probability * e.mask.sum(-1)).sum())


def contenders(instance: Instance, sizes: list[int]) -> list[Contender]:
    """The loop first. Every estimator with the fewest responses; those of one response and of three with all numbers of
    them."""
    problem = Problem(instance)
    target = problem.target("reward")
    loop = NumpyLoop(instance)

    def by_hand(responses: int) -> float:
        return float(
            np.linalg.norm(loop.gradient(responses, np.random.default_rng(0)) - target.numpy()) / target.norm()
        )

    def certificate(estimator: Estimator) -> Callable[[int], float]:
        return lambda responses: (
            sampled_certificate(estimator, problem.enumeration, target, responses).relative_bias or 0.0
        )

    few = sizes[0]
    return [
        Contender(LOOP, by_hand, few, None),
        *(Contender("reinforce", certificate(REINFORCE()), responses, 1.0) for responses in sizes),
        *(Contender("rloo, K = 3", certificate(RLOO(group_size=3)), responses, 1.2) for responses in sizes),
        Contender("rloo, K = 8", certificate(RLOO(group_size=8)), few, 1.2),
        Contender("trepo", certificate(TRePO()), few, None),
    ]


def measure(all_contenders: list[Contender], rounds: int) -> list[dict]:
    """Best of all rounds, each of which times every contender once: a busy machine slows them all."""
    best = [math.inf] * len(all_contenders)
    errors = [contender.run(10_000) for contender in all_contenders]  # makes the tables that later calls share
    for _ in range(rounds):
        for number, contender in enumerate(all_contenders):
            start = time.process_time()
            errors[number] = contender.run(contender.responses)
            best[number] = min(best[number], time.process_time() - start)
    rates = [contender.responses / seconds for contender, seconds in zip(all_contenders, best)]
    return [
        {
            "name": contender.name,
            "responses": contender.responses,
            "cpu_seconds": seconds,
            "responses_per_second": rate,
            "per_numpy_loop": rate / rates[0],
            "goal_per_numpy_loop": contender.goal,
            "relative_error": error,
        }
        for contender, seconds, rate, error in zip(all_contenders, best, rates, errors)
    ]


class NumpyLoop:
    """Mean of RM(W) ∇log π(W) over sampled responses, a table of logits, by hand.

    States are numbered level by level as in `PrefixTree`, so that a step of all responses is one look-up in one table:
    cumulative probabilities (states, V), rewards (states, V), the next state (states, V; -1 where the response ends).
    """

    def __init__(self, instance: Instance):
        tree, policy = instance.mdp.tree, instance.policy
        logits = np.concatenate([level[0].detach().numpy().T for level in policy.levels])
        self.pi = np.exp(logits - logits.max(1, keepdims=True))
        self.pi /= self.pi.sum(1, keepdims=True)
        self.cumulative = self.pi.cumsum(1)[:, :-1].copy()
        rewards = instance.mdp.token_reward.levels(tree, instance.mdp.prompt_tokens)
        discounted = [discount * level[0].numpy().T for discount, level in zip(instance.mdp.discount.tolist(), rewards)]
        self.reward = np.concatenate(discounted).ravel()
        self.horizon, self.vocab_size = tree.horizon, tree.vocab_size
        self.following = np.full((tree.n_nodes, tree.vocab_size), -1)
        offset = tree.level_offset.tolist()
        for level in range(tree.horizon - 1):
            prefix = np.arange(tree.level_sizes[level])
            for rank, token in enumerate(tree.continuing):
                self.following[offset[level] + prefix, token] = offset[level + 1] + rank * len(prefix) + prefix
        self.following = self.following.ravel()
        self.order = [(offset[level], size) for level, size in enumerate(tree.level_sizes)]

    def gradient(self, responses: int, generator: np.random.Generator) -> np.ndarray:
        """In the order of the policy's parameters."""
        weight = np.zeros(len(self.reward))
        for start in range(0, responses, CHUNK):
            weight += self._chunk(min(CHUNK, responses - start), generator)
        # ∇log π(w | p) = e_w - π(· | p), so that only the reward that came through each edge has to be counted.
        by_edge = weight.reshape(self.pi.shape)
        by_edge = (by_edge - self.pi * by_edge.sum(1, keepdims=True)) / responses
        return np.concatenate([by_edge[first : first + size].T.ravel() for first, size in self.order])

    def _chunk(self, responses: int, generator: np.random.Generator) -> np.ndarray:
        """Σ RM(W) over the responses that go through each edge."""
        reward, row, node = np.zeros(responses), np.arange(responses), np.zeros(responses, dtype=np.int64)
        rows, edges = [], []
        for _ in range(self.horizon):
            token = (generator.random(len(node))[:, None] > self.cumulative[node]).sum(1)
            edge = node * self.vocab_size + token
            reward[row] += self.reward[edge]
            rows.append(row)
            edges.append(edge)
            node = self.following[edge]
            alive = node >= 0
            row, node = row[alive], node[alive]
        return np.bincount(np.concatenate(edges), reward[np.concatenate(rows)], len(self.reward))


def show(rows: list[dict], instance: Instance) -> None:
    mdp = instance.mdp
    ended = "no end token" if mdp.eos is None else f"mean length {mean_length(instance):.2f}"
    table = Table(
        title=f"V = {mdp.vocab_size}, T = {mdp.horizon}, {mdp.tree.n_leaves:,} responses exist, {ended}; one thread"
    )
    table.add_column("estimator", no_wrap=True)
    for name in ("responses", "M/s", "× loop", "goal", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        goal = row["goal_per_numpy_loop"]
        table.add_row(
            row["name"],
            f"{row['responses']:,}",
            f"{row['responses_per_second'] / 1e6:.2f}",
            f"{row['per_numpy_loop']:.2f}",
            "" if goal is None else f"≥ {goal:.2f}",
            f"{row['relative_error']:.2%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
