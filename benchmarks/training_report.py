"""What docs/training.md says of results, for benchmarks/summary.py."""

from collections.abc import Callable
from pathlib import Path

import smollm2_report
import zoo_report
from tables import table, within

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "training.md"
BEGIN, END = "<!-- training:begin -->", "<!-- training:end -->"
Load = Callable[[str], dict]
"""Reads a file of benchmarks/results by its name."""


def write(load: Load) -> Path:
    """The page, with new tables between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{training(load)}{zoo(load)}\n{END}{after}", encoding="utf-8")
    return PAGE


def first_run(result: dict) -> str:
    """What a newcomer's command comes to, in three kinds of weights."""
    words = (
        f"`{result['command']}`: `{result['runs'][0]['command']}`, FOLDER that of {result['model']}, no other option "
        "but for the kind of weights; rewards on 64 questions that training never asks, with their 95 % intervals; one "
        "seed each, one thread:"
    )
    header = ["weights", "drawn before", "drawn after", "greedy before", "greedy after", "tokens", "CPU-minutes"]
    rows = []
    for run in result["runs"]:
        ends = run["curve"][0], run["curve"][-1]
        shown = [within(end[name], ".2f") for name in ("reward", "greedy_reward") for end in ends]
        rows.append([run["kind"], *shown, f"{run['tokens']:,}", f"{run['cpu_minutes']:.0f}"])
    return "\n".join([words, "", table(header, rows), ""])


def training(load: Load) -> str:
    """The tables of docs/training.md."""
    lines = [first_run(load("first_run"))]
    if (HERE / "results" / "smollm2.json").exists():
        words = (
            f"`{load('smollm2')['command']}`, SmolLM2-135M-Instruct on registered tasks, evaluated on prompts that "
            "training never asks, 95 % intervals over seeds, or over questions where there is one seed; *learned*: the "
            "greedy score rose, by the interval of the seeds' differences, or of one seed because its intervals do "
            "not touch."
        )
        lines += [words, "", smollm2_report.table(load("smollm2")), ""]
    ratios = []
    for setting in load("peers")["settings"]:
        rows = {row["contender"]: row for row in setting["rows"]}
        peer = rows["trl_grpo_checkpointed"]
        ratios.append(
            f"{rows['our_grpo']['cpu_seconds'] / peer['cpu_seconds']:.2f} x the CPU time of TRL's GRPO as it comes "
            f"with prompts of "
            f"{setting['prompt_length']} tokens "
            f"({rows['our_grpo']['cpu_seconds'] / rows['trl_grpo']['cpu_seconds']:.2f} x without its checkpointing)"
        )
    lines += [
        "",
        f"A training step on the same tiny Llama takes {' and '.join(ratios)}: "
        f"[benchmarks](../benchmarks/README.md#beside-trl).",
        "",
    ]
    return "\n".join(lines)


def zoo(load: Load) -> str:
    """Every agent on every small environment, where that was run."""
    if not (HERE / "results" / "zoo.json").exists() or not zoo_report.is_whole(load("zoo")):
        return ""
    words = (
        "`python benchmarks/zoo.py`, the share of the way from the first reward to the best at equal generated tokens, "
        "with its 95 % interval over seeds; what was predicted to fail, by the certificates and by what the "
        "environments were built to separate, was written down first:"
    )
    shown = "![Every agent on every small environment](figures/zoo.svg)"
    return f"\n{words}\n\n{zoo_report.table(load('zoo'))}\n\n{shown}\n"
