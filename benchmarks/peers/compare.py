"""TRL's GRPO and RLOO trainers and a loop by hand, on the same tiny Llama, prompts, batch and steps: CPU time and
memory.

    python benchmarks/peers/compare.py                       # both settings; 10 minutes and 10 GB of memory for every
    round of the long one python benchmarks/peers/compare.py --setting short       # prompts of 8 tokens only

64 prompts x 8 responses x 8 tokens a step, prompts of 8 or 256 tokens; one optimiser step a batch, no KL term, no
second pass over a batch. The peer gets an environment of its own (.venv beside this file, made on the first call).
Every run is a fresh process of one thread; contenders take turns; the first step of a run is not timed; figures are
medians over the runs. CPU time is user and system time: pages of large tensors are asked of the kernel anew in every
step. All begin with the same weights and generate the same number of tokens, or the comparison stops. Prints a table
and writes benchmarks/results/peers.json, after every run anew.

TRL's settings are in trl_side.py. `trl_grpo` and `trl_rloo` store activations as the loop does; `trl_grpo_checkpointed`
is TRL's default, which recomputes them. RLOO reads every batch twice, because it computes the old log-probabilities
apart.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from setting import GROUP_SIZE, NEW_TOKENS, PROMPTS, SETTINGS

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "peers.json"
PEER = HERE / ".venv"
PEER_PYTHON = PEER / "bin" / "python"
REQUIREMENTS, CONSTRAINTS = HERE / "requirements.txt", HERE.parents[1] / "constraints.txt"

BASELINE = "straight_loop"
CONTENDERS = {
    "straight_loop": (sys.executable, "our_side.py"),
    "our_grpo": (sys.executable, "our_side.py"),
    "our_rloo": (sys.executable, "our_side.py"),
    "trl_grpo": (PEER_PYTHON, "trl_side.py"),
    "trl_grpo_checkpointed": (PEER_PYTHON, "trl_side.py"),
    "trl_rloo": (PEER_PYTHON, "trl_side.py"),
}
EQUAL = ("parameters", "initial_weights", "tokens_a_step", "threads")
FIGURES = ("cpu_seconds", "system_seconds", "wall_seconds", "tokens_per_cpu_second", "peak_memory", "added_memory")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="may be given several times; default: all")
    parser.add_argument("--rounds", type=int, help="runs of every contender; default: 3 short ones, 2 long ones")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    install_peer()
    runs: dict[str, dict[str, list[dict]]] = {}
    for name in arguments.setting or SETTINGS:
        runs[name] = {contender: [] for contender in CONTENDERS}
        for _ in range(arguments.rounds or SETTINGS[name].rounds):
            for contender, results in runs[name].items():
                results.append(run(contender, name))
                check_equal(runs)
                write(runs, arguments.output)
        show(name, [summary(contender, results) for contender, results in runs[name].items()])
    Console().print(f"Written to {arguments.output}")


def install_peer() -> None:
    """Make the peer's environment, unless it is there and was made from these requirements. torch first: see
    requirements.txt."""
    stamp = PEER / "installed.txt"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return
    Console().print(f"Installing the peer into {PEER} (two minutes, 1.6 GB)")
    venv.create(PEER, clear=True, with_pip=True)
    torch_pin = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    for what in ([torch_pin], ["-r", REQUIREMENTS]):
        subprocess.run([PEER_PYTHON, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *what], check=True)
    stamp.write_text(REQUIREMENTS.read_text())


def run(contender: str, setting: str) -> dict:
    """One process. This one stays small (no torch), because on Linux a child's peak memory starts from its parent's.

    Raises: RuntimeError with the end of its error output if it fails.
    """
    python, script = CONTENDERS[contender]
    command = [str(python), script, contender, setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=os.environ | ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    Console().print(
        f"{setting}, {contender}: {result['cpu_seconds']:.2f} CPU-s a step, {result['peak_memory'] / 2**20:,.0f} MiB"
    )
    return result


def check_equal(runs: dict[str, dict[str, list[dict]]]) -> None:
    """Raises: RuntimeError if two runs differ in their work or in the versions of the libraries that they share."""
    for by_contender in runs.values():
        named = [(contender, result) for contender, results in by_contender.items() for result in results]
        first_name, first = named[0]
        for name, result in named[1:]:
            for key in EQUAL:
                if result[key] != first[key]:
                    raise RuntimeError(
                        f"{key} is {result[key]} in {name} and {first[key]} in {first_name}; the work must be the same."
                    )
            for package in ("torch", "transformers"):
                if result["versions"][package] != first["versions"][package]:
                    raise RuntimeError(
                        f"{name} and {first_name} have different versions of {package}; pin the same in "
                        f"requirements.txt."
                    )


def summary(contender: str, results: list[dict]) -> dict:
    """Medians over the runs."""
    figures = {key: median(result[key] for result in results) for key in FIGURES}
    return {
        "contender": contender,
        "runs": len(results),
        **figures,
        "cpu_seconds_of_runs": [result["cpu_seconds"] for result in results],
    }


def write(runs: dict[str, dict[str, list[dict]]], output: Path) -> None:
    settings = []
    for name, by_contender in runs.items():
        setting = SETTINGS[name]
        shape = {"setting": name, "prompt_length": setting.prompt_length, "timed_steps": setting.steps}
        settings.append(
            {**shape, "rows": [summary(contender, results) for contender, results in by_contender.items() if results]}
        )
    work = {"prompts": PROMPTS, "group_size": GROUP_SIZE, "new_tokens": NEW_TOKENS, "baseline": BASELINE}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**machine(runs), **work, "settings": settings}, indent=2) + "\n")


def machine(runs: dict[str, dict[str, list[dict]]]) -> dict:
    """What the figures depend on."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False)
    results = [result for by_contender in runs.values() for each in by_contender.values() for result in each]
    versions = {name: number for result in results for name, number in result["versions"].items()}
    return {
        "commit": git.stdout.strip() or None,
        "versions": versions,
        "cores": os.cpu_count(),
        "threads": results[0]["threads"],
        "parameters": results[0]["parameters"],
        "machine": platform.machine(),
    }


def show(name: str, rows: list[dict]) -> None:
    base = next(row for row in rows if row["contender"] == BASELINE)
    prompts = f"{PROMPTS} prompts of {SETTINGS[name].prompt_length} tokens"
    table = Table(title=f"{prompts} x {GROUP_SIZE} responses x {NEW_TOKENS} tokens, one thread")
    table.add_column("contender", no_wrap=True)
    for column in ("CPU-s a step", "× loop", "of it system", "tokens / CPU-s", "peak MiB", "added MiB", "× loop"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["contender"],
            f"{row['cpu_seconds']:.2f}",
            f"{row['cpu_seconds'] / base['cpu_seconds']:.2f}",
            f"{row['system_seconds']:.2f}",
            f"{row['tokens_per_cpu_second']:,.0f}",
            f"{row['peak_memory'] / 2**20:,.0f}",
            f"{row['added_memory'] / 2**20:,.0f}",
            f"{row['added_memory'] / base['added_memory']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
