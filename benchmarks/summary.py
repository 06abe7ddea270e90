"""benchmarks/README.md from the results of the last runs: `python benchmarks/summary.py` (the last step of `make bench`)."""

import json
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Benchmarks

<!-- Written by `python benchmarks/summary.py` from benchmarks/results/*.json; run `make bench` for figures of your own machine. -->

Each comparison was made in one run on one machine; ratios travel, absolute figures do not.
"""


def main() -> None:
    sections = [HEAD, tree_dp(load("tree_dp")), sampled_rate(load("sampled_rate")), env_rate(load("env_rate"))]
    sections += [sandbox_rate(load("sandbox_rate")), sb3(load("sb3"))]
    text = "\n".join(sections)
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(f"Written to {HERE / 'README.md'}")


def load(name: str) -> dict:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def section(title: str, command: str, words: str, header: list[str], rows: list[list[str]], result: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"## {title}\n", f"`{command}` (commit {result['commit'][:7]}; {versions}; {result['cores']} cores)\n", f"{words}\n"]
    lines += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def tree_dp(result: dict) -> str:
    rows = [
        [
            f"V = {r['vocab_size']}, T = {r['horizon']}: {r['leaves']:,} leaves",
            f"{r['tree_gradient_ms']:.3g} ms",
            f"{r['per_copy_new']:.2g} x",
            f"{r['per_copy']:.2g} x",
            f"{r['autograd_per_tree_gradient']:.2g} x",
            f"{r['peak_memory_per_input']:.2g} x",
        ]
        for r in result["tree"]
    ]
    chain = result["ngram"]
    words = (
        "Exact gradient by dynamic programming on the tree, one thread, CPU time. A copy of the logits into new memory (the gradient is "
        "new memory too) or into memory that was there; autograd is a plain level-by-level product; memory is the peak over parameters "
        f"plus rewards. The n-gram engine takes {chain['ngram_gradient_ms']:.0f} ms at V = {chain['vocab_size']}, T = {chain['horizon']:,}."
    )
    header = ["tree", "gradient", "of a copy (new)", "of a copy (old)", "autograd takes", "memory"]
    return section("Exact gradients", "python benchmarks/tree_dp.py", words, header, rows, result)


def sampled_rate(result: dict) -> str:
    rows = [
        [
            f"{r['name']}, {'no end token' if run['eos'] is None else 'end token'}",
            f"{r['responses']:,}",
            f"{r['responses_per_second'] / 1e6:.3g} M/s",
            f"{r['per_numpy_loop']:.2f} x",
        ]
        for run in result["runs"]
        for r in run["rows"]
    ]
    first = result["runs"][0]
    words = (
        f"Responses a CPU second of sampled certificates at V = {first['vocab_size']}, T = {first['horizon']}, one thread, beside a "
        "hand-vectorised numpy REINFORCE loop on the same MDP. Estimators of one response are drawn as multinomial counts."
    )
    header = ["estimator", "responses", "rate", "of the loop's"]
    return section("Sampled certificates", "python benchmarks/sampled_rate.py", words, header, rows, result)


def sandbox_rate(result: dict) -> str:
    rows = [[r["backend"], f"{r['programs_per_second']:.0f}", f"{r['program_cpu_ms']:.1f} ms"] for r in result["backends"]]
    words = f"HumanEval programs a second, {result['workers']} workers, warm."
    return section("Sandbox", "python benchmarks/sandbox_rate.py", words, ["backend", "programs a second", "CPU a program"], rows, result)


def env_rate(result: dict) -> str:
    rows = [
        [
            r["task"],
            f"{r['environment_steps_per_second'] / 1e6:.3g} M/s",
            f"{r['faster_than_cartpole']:.2f} x",
            f"{r['slower_than_bare']:.2f} x",
        ]
        for r in result["rates"]
    ]
    words = (
        f"Steps a second of {result['num_envs']:,} environments in one array, beside Gymnasium's own vectorised CartPole and a bare "
        "hand-written loop that does the same observable work."
    )
    header = ["task", "steps", "CartPole's rate", "the bare loop's time"]
    return section("Environments", "python benchmarks/env_rate.py", words, header, rows, result)


def sb3(result: dict) -> str:
    rows = [
        [
            f"{r['algorithm']} on {r['id']}",
            f"{r['timesteps']:,}",
            f"{r['seconds']:.0f} s",
            f"{r['before']:.3f}",
            f"{r['drawn']:.3f}",
            f"{r['greedy']:.3f}",
            f"{r['optimum']:.3f}",
        ]
        for r in result["runs"]
    ]
    words = "Stable-Baselines3 through the wrappers, against the exact optimum."
    header = ["agent", "steps", "time", "before", "drawn", "greedy", "optimum"]
    return section("Stable-Baselines3", "python benchmarks/sb3.py", words, header, rows, result)


if __name__ == "__main__":
    main()
