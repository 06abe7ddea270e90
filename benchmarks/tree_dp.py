"""How long the exact gradient takes: the tree's dynamic programme against a copy of the same bytes and against
autograd.

    python benchmarks/tree_dp.py                         # 8 tokens x 6 steps, 8 tokens x 8 steps (16.7 M responses)
    python benchmarks/tree_dp.py --size 8,6 --size 4,10

Prints a table and writes benchmarks/results/tree_dp.json. CPU time of one thread, best of many repetitions; all
float64, no end token, one prompt. Two copies of the logits are timed: into new memory, which is what any function that
returns new arrays pays for, and into memory that was written before; ratios to a copy mean something for sizes beyond
the cache only. Memory is the peak of `tree_gradient`, inputs included, as a multiple of its inputs.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import write_results
from rich.console import Console
from rich.table import Table

from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.tree_gradient import tree_gradient
from llm_mdp.mdp.hidden_rewards import NgramReward, TableReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy

RESULTS = Path(__file__).parent / "results" / "tree_dp.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", action="append", type=size, metavar="V,T", help="tokens, steps; may be given several times"
    )
    parser.add_argument(
        "--repetitions", type=int, default=5, help="at least so many, and at least half a second of them"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    trees = [measure_tree(*one, arguments.repetitions) for one in arguments.size or [(8, 6), (8, 8)]]
    chain = measure_chain(64, 1000, arguments.repetitions)
    show(trees, chain)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_results(
        arguments.output, ("numpy", "torch"), {"threads": torch.get_num_threads(), "tree": trees, "ngram": chain}
    )
    Console().print(f"Written to {arguments.output}")


def size(text: str) -> tuple[int, int]:
    vocab_size, horizon = text.split(",")
    return int(vocab_size), int(horizon)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays up to 16 MiB, as it does in any program that has freed one so
    large.

    Without this the smallest size would time page faults, of whichever contender happens to free the top of the heap.
    """
    np.ones(2**21)


def measure_tree(vocab_size: int, horizon: int, repetitions: int) -> dict:
    """Times, in ms, of a random table of logits on a random table of rewards."""
    generator = torch.Generator().manual_seed(0)
    tree, prompts = PrefixTree(vocab_size, None, horizon), torch.zeros(1, 0, dtype=torch.int64)
    reward = TableReward.random(tree, prompts, generator)
    mdp = TokenMDP(vocab_size, None, horizon, reward)
    policy = TabularPolicy.random(tree, prompts, generator)
    logits = [level.detach() for level in policy.levels]
    arrays = [level.numpy() for level in logits]
    before = [array.copy() for array in arrays]

    copy_new = cpu_ms(lambda: [array.copy() for array in arrays], repetitions)
    copy = cpu_ms(lambda: [np.copyto(old, array) for old, array in zip(before, arrays)], repetitions)
    programme = cpu_ms(lambda: tree_gradient(mdp, logits, reward.table), repetitions)
    autograd = cpu_ms(lambda: level_product(list(policy.levels), reward.table), repetitions)

    J, grads = tree_gradient(mdp, logits, reward.table)
    expected_J, expected = level_product(list(policy.levels), reward.table)
    inputs = 2 * sum(array.nbytes for array in arrays)
    return {
        "vocab_size": vocab_size,
        "horizon": horizon,
        "leaves": tree.n_leaves,
        "copy_new_ms": copy_new,
        "copy_ms": copy,
        "tree_gradient_ms": programme,
        "autograd_ms": autograd,
        "per_copy_new": programme / copy_new,
        "per_copy": programme / copy,
        "autograd_per_tree_gradient": autograd / programme,
        "peak_memory_per_input": (inputs + peak_bytes(lambda: tree_gradient(mdp, logits, reward.table))) / inputs,
        "difference_in_J": abs(J - expected_J),
        "largest_difference": max((a - b).abs().max().item() for a, b in zip(grads, expected)),
    }


def level_product(levels: list[torch.Tensor], rewards: list[torch.Tensor]) -> tuple[float, tuple[torch.Tensor, ...]]:
    """The plain way: probabilities of levels as products, J = Σ P(prefix) π r, then autograd; for no end token and γ =
    1."""
    reach, J = torch.ones(1, 1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for level, reward in zip(levels, rewards):
        edges = reach[:, None] * level.softmax(1)
        J = J + (edges * reward).sum()
        reach = edges.flatten(1)
    return J.item(), torch.autograd.grad(J, levels)


def measure_chain(vocab_size: int, horizon: int, repetitions: int) -> dict:
    """Time, in ms, of the n-gram dynamic programme of order 1."""
    generator = torch.Generator().manual_seed(0)
    mdp = TokenMDP(vocab_size, 0, horizon, NgramReward.random(vocab_size, 1, generator))
    policy = NgramPolicy.random(vocab_size, 1, generator)
    milliseconds = cpu_ms(lambda: ngram_gradient(policy, mdp), repetitions)
    return {"vocab_size": vocab_size, "horizon": horizon, "order": 1, "ngram_gradient_ms": milliseconds}


def cpu_ms(function: Callable[[], object], repetitions: int) -> float:
    """CPU time of the fastest repetition, after one that is not counted."""
    function()
    times: list[float] = []
    while len(times) < repetitions or sum(times) < 0.5:
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory that numpy and Python held at once on top of what was there before, results included."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def show(trees: list[dict], chain: dict) -> None:
    table = Table(title="exact gradient on the tree, CPU ms of one thread", caption="copy: into new memory (into old)")
    names = "V, T, responses, copy, tree_gradient, × copy, autograd, × tree_gradient, memory / inputs, max difference"
    for name in names.split(", "):
        table.add_column(name, justify="right")
    for row in trees:
        table.add_row(
            str(row["vocab_size"]),
            str(row["horizon"]),
            f"{row['leaves']:,}",
            f"{row['copy_new_ms']:.2f} ({row['copy_ms']:.2f})",
            f"{row['tree_gradient_ms']:.2f}",
            f"{row['per_copy_new']:.1f} ({row['per_copy']:.1f})",
            f"{row['autograd_ms']:.1f}",
            f"{row['autograd_per_tree_gradient']:.1f}",
            f"{row['peak_memory_per_input']:.2f}",
            f"{row['largest_difference']:.0e}",
        )
    Console().print(table)
    milliseconds = chain["ngram_gradient_ms"]
    Console().print(
        f"n-gram programme, order 1, V = {chain['vocab_size']}, T = {chain['horizon']}: {milliseconds:.0f} ms"
    )


if __name__ == "__main__":
    main()
