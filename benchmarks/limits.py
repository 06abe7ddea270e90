"""What the processor can do at most, measured beside what is compared with it: products, memory, random numbers.

    python benchmarks/limits.py     # prints them, a few seconds; other benchmarks write them beside their own figures

CPU time of one thread. A machine that others use, or that slows down when it is warm, changes by half within an hour:
a figure is beside its limit only where both were measured in one run.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Callable
from time import thread_time

import numpy as np
import torch
from torch.nn.functional import linear

from llm_mdp_agents.lm import products

WIDTH = 576
"""Of SmolLM2-135M."""
NUMBERS = 2**26
"""Of an array beyond every cache: 256 MiB of float32."""


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
def limits(times: int = 5) -> dict[str, float]:
    """GFLOP/s of float32 products at 32 rows (weights beyond the cache) and at 1,024, by what plain torch chooses and
    by oneDNN where torch has it (`onednn`), of float64 products; the better of both (`gemm`); GB/s of a sum and of a
    copy (bytes read and written) into memory that was there; millions of random numbers a second, numpy's float64."""
    head, square, few, many = (torch.randn(rows, WIDTH) for rows in (2**15, 1536, 32, 1024))
    source, target, double = torch.zeros(NUMBERS), torch.zeros(NUMBERS), torch.randn(1024, 1024, dtype=torch.float64)
    generator, drawn = np.random.default_rng(0), np.zeros(2**16)
    ways: dict[str, Callable[[], object]] = {
        "torch_32": lambda: linear(few, head),
        "torch_1024": lambda: linear(many, square),
        "float64_1024": lambda: double @ double,
        "copy": lambda: target.copy_(source),
        "read": lambda: source.sum(),
        "random": lambda: generator.random(out=drawn),
    }
    if products.is_right_here():
        ready = products.packed(head)
        ways |= {
            "onednn_32": lambda: products.by_onednn(few, ready),
            "onednn_1024": lambda: products.by_onednn(many, square),
        }
    seconds = least(times, **ways)
    work = {"32": 2 * 32 * head.numel(), "1024": 2 * 1024 * square.numel()}
    floats = {name: each for name, each in seconds.items() if name.startswith(("torch", "onednn"))}
    rates = {name: work[name.split("_")[1]] / each / 1e9 for name, each in floats.items()}
    best = {f"gemm_{rows}": max(rates[name] for name in rates if name.endswith(f"_{rows}")) for rows in work}
    return rates | best | {
        "float64_1024": 2 * 1024**3 / seconds["float64_1024"] / 1e9,
        "read_gb_per_s": source.nbytes / seconds["read"] / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / seconds["copy"] / 1e9,
        "random_m_per_s": drawn.size / seconds["random"] / 1e6,
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: round(value, 1) for name, value in limits().items()}, indent=1))
