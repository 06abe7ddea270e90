"""How the work grows with one size at a time, up to the first cliff, and what a user reads there.

    python benchmarks/growth.py                       # all curves, some minutes; results and docs/figures/growth.svg
    python benchmarks/growth.py --quick               # the smallest two points of each curve
    python benchmarks/growth.py --curve "environments in N" --output /tmp/growth.json

A curve has one size that grows, all others stay. A point is CPU time of one thread: of a whole command
(`llm-mdp verify`, its start included), of one training step (the least of two after one that warms up) or of one step
of an environment. A curve ends where the product refuses, or where the next point would take longer than `--seconds`,
by the slope of the last two; a command is stopped after twice that, or when it says beforehand that it will take long,
and what it said is its point. "start" is the CPU time of `llm-mdp verify` of one row on two responses. Writes
benchmarks/results/growth.json after every point anew.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from limits import limits
from machine import processor, write_results
from prompts import Prompts

import llm_mdp_envs  # noqa: F401  (registers its environments)
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.grpo import GRPOAgent, GRPOConfig

RESULTS = Path(__file__).parent / "results" / "growth.json"
STEP = {"prompt": 32, "group_size": 8, "response": 8, "vocabulary": 64}
"""Sizes of a training step that do not grow; 8 prompts."""
PROMPTS = 8
NUM_ENVS = 4096

VERIFY = (sys.executable, "-m", "llm_mdp.cli", "verify")

Point = dict[str, Any]
"""`seconds`: CPU time; None: it was refused or stopped. `said`: what the user reads; `kind`: forecast or refused."""


@dataclass(frozen=True)
class Curve:
    """What is measured at every size, and what stays."""

    name: str
    fixed: str
    sizes: tuple[int, ...]
    measure: Callable[[int, float], Point]
    """Of a size, and the most CPU seconds that it may take."""
    beyond: int | None = None
    """A size that is refused at once, far beyond what can be waited for."""
    tried: bool = False
    """Every size is begun, however long it may take: a command of its own, which is stopped."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curve", action="append", choices=[each.name for each in CURVES], help="default: all")
    parser.add_argument("--seconds", type=float, default=15.0, help="CPU time that a point may take")
    parser.add_argument("--quick", action="store_true", help="two points of each curve, and no figure")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"processor": processor(), "limits": limits(), "seconds": arguments.seconds, "curves": []}
    results["start"], _ = watched([*VERIFY, "reinforce", "--vocab", "2", "--horizon", "1"], 60)
    for curve in CURVES:
        if curve.name in (arguments.curve or [each.name for each in CURVES]):
            found = {"name": curve.name, "fixed": curve.fixed, "points": []}
            results["curves"].append(found)
            for point in points(curve, arguments.seconds, 2 if arguments.quick else None):
                found["points"].append(point)
                print(curve.name, point, flush=True)
                write_results(arguments.output, ("torch", "numpy", "gymnasium", "transformers"), results)
    if not arguments.quick and not arguments.curve:
        from performance_figure import draw

        draw(results)


def points(curve: Curve, most: float, number: int | None = None):
    """Measure one size after the other, until one is refused or the next would take more than `most` seconds."""
    known: list[tuple[int, float]] = []
    for size in curve.sizes[:number]:
        expected = extrapolated(known, size)
        if not curve.tried and expected is not None and expected > most:
            yield {"size": size, "seconds": None, "kind": "not measured", "expected": expected}
            break
        point = {"size": size, **curve.measure(size, most)}
        yield point
        if point.get("kind") in ("refused", "stopped") or ((point["seconds"] or 0) > most and not curve.tried):
            return
        if point["seconds"] is not None:
            known.append((size, point["seconds"]))
    if curve.beyond is not None and number is None:
        yield {"size": curve.beyond, **curve.measure(curve.beyond, most)}


def extrapolated(known: list[tuple[int, float]], size: int) -> float | None:
    """Seconds at a size by the power that the last two points follow, at least linear; None: there are too few."""
    if len(known) < 2:
        return None
    (one, before), (two, last) = known[-2:]
    power = max(1.0, math.log(last / before) / math.log(two / one))
    return last * (size / two) ** power


# --- llm-mdp verify ---------------------------------------------------------------------------------------------------


def verify(option: str, **fixed: int) -> Callable[[int, float], Point]:
    """The whole ledger on one random instance, a process of its own."""

    def measure(size: int, most: float) -> Point:
        sizes = fixed | {option: size}
        words = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.json"
            seconds, said = watched([*VERIFY, *words, "--json", str(path)], 2 * most)
            if said is not None or not path.exists():
                return {"seconds": None, "kind": "forecast" if said else "stopped", "said": said, "until": seconds}
            rows = json.loads(path.read_text())["claims"].values()
        reasons = [row["reason"].removeprefix("not computed: ") for row in rows if row["verdict"] == "not computed"]
        refused = [reason for reason in reasons if "too many" in reason]  # others are not for the size
        return {"seconds": seconds} | ({"kind": "refused", "said": refused[0], "rows": len(refused)} if refused else {})

    return measure


def watched(command: list[str], most: float) -> tuple[float, str | None]:
    """CPU seconds of a command, and what it says of the time that it will take, upon which it is stopped.

    Raises: RuntimeError if it fails.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(most), math.ceil(most)))

    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limit, env=dict(os.environ)
    )
    lines: list[str] = []
    said = None
    assert process.stderr is not None
    with process.stderr as errors:
        for line in errors:
            lines.append(line)
            if line.startswith("llm-mdp: ") and "take" in line:
                said = line.removeprefix("llm-mdp: ").strip()
                process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines)[-2000:]}")
    return usage.ru_utime + usage.ru_stime, said


# --- a training step --------------------------------------------------------------------------------------------------


def step(name: str) -> Callable[[int, float], Point]:
    """A GRPO step of a Llama of one million parameters and its vocabulary, as `llm-mdp train` makes it."""

    def measure(size: int, most: float) -> Point:
        sizes = STEP | {name: size}
        task = Prompts(sizes["vocabulary"], sizes["prompt"], sizes["response"])
        policy = small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=128, layers=4)
        options = TrainConfig(steps=4, prompts_per_step=PROMPTS, learning_rate=1e-4, signal_every=0, micro_batch=64)
        trainer = Trainer(GRPOAgent(GRPOConfig(group_size=sizes["group_size"]), policy, task), task, policy, options)
        times = []
        while len(times) < (3 if sum(times) < most / 2 else 2):
            begun = process_time()
            try:
                trainer.step()
            except (ValueError, RuntimeError, MemoryError) as error:
                return {"seconds": None, "kind": "refused", "said": str(error)}
            times.append(process_time() - begun)
        return {"seconds": min(times[1:])}

    return measure


# --- environments -----------------------------------------------------------------------------------------------------


def env(id: str, argument: str) -> Callable[[int, float], Point]:
    """A step of all environments together; `num_envs`, or an argument of the task, grows."""

    def measure(size: int, most: float) -> Point:
        kwargs = {"num_envs": NUM_ENVS, argument: size}
        try:
            many = gym.make_vec(f"llm_mdp/{id}-v0", **kwargs)
        except (ValueError, MemoryError) as error:
            return {"seconds": None, "kind": "refused", "said": str(error)}
        n, vocab_size = kwargs["num_envs"], int(many.single_action_space.n)  # pyright: ignore
        actions = np.random.default_rng(0).integers(vocab_size, size=n)
        many.reset(seed=0)
        # Whole episodes, so that each point has the same share of beginnings and ends.
        horizon = many.task.horizon + 1  # pyright: ignore
        best, spent = math.inf, 0.0
        for _ in range(50):
            begun = process_time()
            for _ in range(horizon):
                many.step(actions)
            took = process_time() - begun
            best, spent = min(best, took / horizon), spent + took
            if spent > most / 8:
                break
        many.close()
        return {"seconds": best}

    return measure


POWERS_OF_4 = tuple(4**k for k in range(11))
"""The next would take 24 GB."""
CURVES = (
    Curve("verify in V", "T = 4, K = 3", (2, 3, 4, 5, 6), verify("vocab", horizon=4), tried=True),
    Curve("verify in T", "V = 3, K = 3", (2, 3, 4, 5, 6, 7, 8), verify("horizon", vocab=3), tried=True),
    Curve("verify in K", "V = 3, T = 4", (2, 3, 4, 5, 6, 7, 8), verify("group-size", vocab=3, horizon=4), tried=True),
    Curve("a step in prompt", "K = 8, 8 tokens, V = 64", (8, 32, 128, 256, 512, 1024, 2048, 4096), step("prompt")),
    Curve("a step in K", "prompts of 32, 8 tokens, V = 64", (2, 4, 8, 16, 32, 64, 128), step("group_size")),
    Curve("a step in response", "prompts of 32, K = 8, V = 64", (4, 8, 16, 32, 64, 128, 256, 512), step("response")),
    Curve(
        "a step in vocabulary",
        "prompts of 32, K = 8, 8 tokens",
        (64, 1024, 4096, 16384, 65536, 131072),
        step("vocabulary"),
    ),
    Curve("environments in N", "n-gram rewards, its defaults", POWERS_OF_4, env("Ngram", "num_envs"), beyond=2**28),
    Curve(
        "environments in V",
        f"Needle, N = {NUM_ENVS:,}",
        (4, 64, 1024, 16384, 262144, 4194304),
        env("Needle", "vocab_size"),
    ),
)


if __name__ == "__main__":
    main()
