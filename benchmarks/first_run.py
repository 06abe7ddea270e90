"""The run that a newcomer makes: GRPO on the default sums with SmolLM2-135M-Instruct, no option, in three kinds of
weights.

    python benchmarks/first_run.py          # three runs, one after the other: about 35 minutes on two idle cores

Each is the command as a user would type it, in a process of its own. The greedy score is that on 64 questions that
training never asks, before and after, with its 95 % interval. Finished runs are files in runs/first_run, so a killed
script goes on with the next one; benchmarks/results/first_run.json has them all.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import write_results
from smollm2 import smollm2

from llm_mdp.files import write_text

HERE = Path(__file__).parent
RESULTS, FOLDER = HERE / "results" / "first_run.json", HERE.parent / "runs" / "first_run"
KINDS = {"float32": (), "bfloat16": ("--dtype", "bfloat16"), "LoRA": ("--lora-rank", "16")}
EVALUATED = ("reward", "greedy_reward")


def command_of(kind: str, model: str) -> list[str]:
    return ["llm-mdp", "train", "grpo", "llm_mdp/ReasoningGym-v0", "--model", model, *KINDS[kind]]


def run(kind: str) -> dict[str, Any]:
    """The command, and what it took."""
    begun, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = command_of(kind, str(smollm2()))
    subprocess.run(
        [sys.executable, "-m", "llm_mdp.cli", *command[1:], "--runs", str(FOLDER), "--name", kind], check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    return gathered(FOLDER / kind, kind, (time.monotonic() - begun) / 60, cpu / 60)


def gathered(folder: Path, kind: str, minutes: float, cpu_minutes: float) -> dict[str, Any]:
    """What a finished run wrote, as one row of the results."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [
        {"step": each["step"]}
        | {name: [each[f"eval/{name}{end}"] for end in ("", "_low", "_high")] for name in EVALUATED}
        for each in metrics
        if "eval/greedy_reward" in each
    ]
    return {
        "kind": kind, "command": " ".join(command_of(kind, "FOLDER")), "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_minutes, 1), "tokens": sum(each.get("tokens", 0) for each in metrics),
        "held_out": bool(metrics[0]["eval/held_out"]), "curve": curve,
    }  # fmt: skip


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in KINDS:
        finished = FOLDER / f"{kind}.json"
        if not finished.exists():
            write_text(finished, json.dumps(run(kind)) + "\n")
        rows.append(json.loads(finished.read_text()))
        document = {"command": "python benchmarks/first_run.py", "model": "SmolLM2-135M-Instruct", "runs": rows}
        write_results(RESULTS, ("torch", "transformers"), document)


if __name__ == "__main__":
    main()
