"""How long commands take to start, beside a bare `import torch`: CPU seconds of whole processes, in turn, in one run.

    python benchmarks/startup.py [--runs 5] [--out benchmarks/results/startup.json]

CPU seconds of the process and its children do not see other programs; wall seconds would. Python's compiled files are
written before the first measured run, as an installed package has them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import processor, write_results

TORCH = ("-c", "import torch")
COMMANDS = {
    "verify --quick": 1.4,
    "verify": 2.0,
    "verify --help": None,
    "train --help": None,
}
"""Times a bare `import torch` that each may take; None: no goal."""
SOON = {"--help": 0.5, "envs": 0.5, "agents": 0.5}
"""CPU seconds that each may take."""


def cpu_seconds(words: tuple[str, ...], env: dict[str, str]) -> float:
    """User and system seconds of one process of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, write, and say what misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="processes of each command, after one that warms up")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/startup.json")
    options = parser.parse_args()
    named = {name: ("-m", "llm_mdp.cli", *name.split()) for name in (*COMMANDS, *SOON)}
    seconds: dict[str, list[float]] = {"import torch": [], **{name: [] for name in named}}
    with tempfile.TemporaryDirectory() as compiled:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": compiled}
        for run in range(options.runs + 1):
            for name, words in {"import torch": TORCH, **named}.items():
                took = cpu_seconds(words, env)
                if run:
                    seconds[name].append(took)
                print(f"{name}: {took:.2f} CPU seconds{'' if run else ' (warming up)'}", flush=True)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    ratio = {name: took / median["import torch"] for name, took in median.items()}
    missed = [
        f"llm-mdp {name}: {ratio[name]:.2f} times a bare import of torch; the goal is {goal}"
        for name, goal in COMMANDS.items()
        if goal is not None and ratio[name] > goal
    ]
    missed += [
        f"llm-mdp {name}: {median[name]:.2f} CPU seconds; the goal is {goal}"
        for name, goal in SOON.items()
        if median[name] > goal
    ]
    results = {
        "processor": processor()["model name"] or "unknown",
        "runs": options.runs,
        "cpu_seconds": seconds,
        "median": median,
    }
    write_results(options.out, ("torch", "numpy"), results | {"times_import_torch": ratio, "missed": missed})
    print(json.dumps({name: round(value, 2) for name, value in ratio.items()}, indent=1))
    print("\n".join(missed) or "every goal is met")


if __name__ == "__main__":
    main()
