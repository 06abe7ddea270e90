"""docs/performance.md from the results of the last runs: `python benchmarks/performance_report.py`, a part of `make
docs`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import SCRIPTS as BENCH
from performance_goals import Found, goals, power, seconds_of, seconds_of_products
from tables import table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
HEAD = """# What things cost, and what they could cost

<!-- Written by `python benchmarks/performance_report.py` from benchmarks/results/*.json. -->

Figures are CPU time of one thread unless they say otherwise. Absolute figures are of the machine that is named beside
them, which was shared with other work at times; ratios are of one run, whose sides took turns. A *limit* is what the
same machine did at the same time where nothing was in the way: the faster of torch's and oneDNN's matrix products, a
copy in memory, a bare loop. `make bench` makes figures of your own machine; [Benchmarks](../benchmarks/README.md) has
what is no matter of speed.
"""
MANY = 2**16
"""Environments from which on a step may touch more memory than a processor keeps at hand."""
SLOWER = 1.5
"""Times as long as the fastest, for one of them."""
SCRIPTS = {
    "tree_dp": "tree_dp.py", "startup": "startup.py", "lm_rate": "lm_rate.py", "env_rate": "env_rate.py",
    "sampled_rate": "sampled_rate.py", "peers": "peers/compare.py", "engines": "engines.py FOLDER",
    "growth": "growth.py", "bench": "bench.py", "sandbox_rate": "sandbox_rate.py",
    "branching": "branching.py", "trepo_cost": "trepo_cost.py", "pilot_cost": "pilot_cost.py", "sb3": "sb3.py",
    "turns": "turns.py",
}  # fmt: skip


def main() -> None:
    paths = {name: HERE / "results" / f"{name}.json" for name in SCRIPTS}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"Written to {PAGE}")


def page(found: Found) -> str:
    """The whole page."""
    return "\n".join([HEAD, goals_part(found), limits_part(found), growth_part(found), bench_part(found)])


def command(name: str) -> str:
    return f"`python benchmarks/{SCRIPTS[name]}`"


def origin(name: str, result: dict[str, Any]) -> str:
    """Command, commit, versions, processor, a line."""
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    cores = f"{result['cores']} cores" + (f", {words}" if (words := processor_of(result)) else "")
    return f"{command(name)} (commit {result['commit'][:7]}; {versions}; {cores})"


def processor_of(result: dict[str, Any]) -> str | None:
    """Its name; two families of one maker may share it, so family and model are said where they are known."""
    found = result.get("processor")
    if not isinstance(found, dict):
        return found
    return f"{found['model name']}, family {found['cpu family']}, model {found['model']}"


# --- goals ------------------------------------------------------------------------------------------------------------


def goals_part(found: Found) -> str:
    rows, missed = [], []
    for goal in goals(found):
        verdict = {True: "met", False: "**missed**", None: "not measured"}[goal.met]
        value = "–" if goal.value is None else f"{goal.value:.2f}{goal.unit}"
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g}{goal.unit}"
        by = f"{command(goal.source)}, {found[goal.source]['commit'][:7]}" if goal.source in found else "–"
        rows.append([goal.words, bound, value, verdict, by])
        if goal.met is False and goal.because:
            missed.append(f"- {goal.words}: {goal.because}.")
    count = [row[3] for row in rows]
    left = count.count("not measured")
    words = (
        f"{count.count('met')} of {len(rows)} goals are met and {count.count('**missed**')} missed"
        f"{f', {left} not measured' if left else ''}; the last column has the command and the commit that it ran "
        "at, which knows nothing of what changed since. Tests hold what no stopwatch can: `verify` loads neither sympy "
        "nor torch._dynamo nor transformers, and the fast paths draw the tokens of the plain one."
    )
    header = ["goal", "bound", "measured", "", "by"]
    why = ["", "Why:", "", *missed] if missed else []
    return "\n".join(["## Goals", "", words, "", table(header, rows), *why, ""])


# --- limits -----------------------------------------------------------------------------------------------------------


def limits_part(found: Found) -> str:
    """Every figure with the limit and the peer of its own run."""
    rows = [[work, *cells, command(name)] for name, work, *cells in beside_limits(found)]
    header = ["work", "takes", "limit", "times its limit", "peer", "by"]
    lines = ["## Beside limits and peers", "", table(header, rows), ""]
    if limits := found.get("lm_rate", {}).get("limits"):
        several = ", ".join(f"{limits[key]:.0f} {unit}" for key, unit in UNITS.items() if key in limits)
        lines += [f"The processor's own rates in {origin('lm_rate', found['lm_rate'])}: {several}.", ""]
    return "\n".join(lines)


UNITS = {
    "torch_32": "GFLOP/s (torch, 32 rows)", "onednn_32": "GFLOP/s (oneDNN, 32 rows)",
    "torch_1024": "GFLOP/s (torch, 1,024 rows)", "onednn_1024": "GFLOP/s (oneDNN, 1,024 rows)",
    "float64_1024": "GFLOP/s (float64)", "read_gb_per_s": "GB/s (sum)", "copy_gb_per_s": "GB/s (copy)",
    "random_m_per_s": "million random numbers a second",
}  # fmt: skip


def beside_limits(found: Found) -> Iterator[tuple[str, ...]]:
    """Name of the results, work, figure, limit, their ratio, peer."""
    for row in found.get("tree_dp", {}).get("tree", ()):
        ours, copy, peer = (row[f"{name}_ms"] / 1e3 for name in ("tree_gradient", "copy_new", "autograd"))
        work = f"exact gradient, {row['leaves']:,} responses"
        yield "tree_dp", work, *against(ours, copy, "a copy of the logits"), f"autograd: {peer / ours:.1f} x our time"
    median = found.get("startup", {}).get("median", {})
    for name in ("verify --quick", "verify"):
        if name in median:
            cells = against(median[name], median["import torch"], "`import torch`")
            yield "startup", f"`llm-mdp {name}`", *cells, "–"
    yield from of_models(found.get("lm_rate", {}))
    for row in found.get("env_rate", {}).get("rates", ()):
        ours, bare = (1 / row[f"{name}_steps_per_second"] for name in ("environment", "bare"))
        peer = f"CartPole: {row['faster_than_cartpole']:.2f} x our time"
        yield "env_rate", f"a step of one environment, {row['task']}", *against(ours, bare, "the loop by hand"), peer
    sampled = found.get("sampled_rate", {})
    for run in sampled.get("runs", ()):
        for row in run["rows"][1:]:
            ended = "end token" if run["eos"] is not None else "no end token"
            work = f"a response, sampled, {row['name']}, {ended}, {row['responses'] / 1e6:g} M"
            rate = sampled.get("limits", {}).get("random_m_per_s")
            cells = against(1 / row["responses_per_second"], rate and 1 / rate / 1e6, "a random number")
            yield "sampled_rate", work, *cells, f"numpy loop of REINFORCE: {row['per_numpy_loop']:.2f} x our time"
    for row in found.get("sandbox_rate", {}).get("backends", ()):
        if "program_cpu_ms" in row and row["backend"] != "auto":
            own, feeding = row["program_cpu_ms"] / 1e3, row["feeding_cpu_ms"] / 1e3
            yield (
                "sandbox_rate",
                f"a program, {row['backend']}",
                *against(own + feeding, own, "the program itself"),
                "–",
            )
    if engines := found.get("engines", {}):
        ours, theirs = (engines["engines"][name]["seconds"] for name in ("hf", "vllm"))
        cells = against(ours, seconds_of_products(engines), "its products at the best rates")
        yield (
            "engines",
            "1,024 tokens drawn, 32 prompts of 32, SmolLM2",
            *cells,
            f"vLLM: {theirs / ours:.2f} x our time",
        )
    for setting in found.get("peers", {}).get("settings", ()):
        seconds = {row["contender"]: row["cpu_seconds"] for row in setting["rows"]}
        ours = seconds["our_grpo"]
        named = {"straight_loop": "loop by hand", "trl_grpo": "TRL"}
        peer = ", ".join(f"{words}: {seconds[name] / ours:.1f} x our time" for name, words in named.items())
        yield "peers", f"a GRPO step, prompts of {setting['prompt_length']}, 1 M weights", *against(ours), peer


def of_models(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    limits = result.get("limits", {})
    for name, rows, words in (
        ("grpo_step_prompts_of_8", "1024", "a GRPO step, prompts of 8"),
        ("grpo_step_prompts_of_256", "1024", "a GRPO step, prompts of 256"),
        ("draw_32_rows", "32", "1,024 tokens drawn, 32 rows"),
        ("draw_8_of_4_prompts_of_256", "32", "32 responses of 16 to 4 prompts of 256"),
    ):
        if name not in result:
            continue
        row = result[name]
        ours = 1024 / row["fast"] if name == "draw_32_rows" else row["fast"]
        limit = row["gflop"] / limits[f"gemm_{rows}"] if "gflop" in row else None
        cells = against(ours, limit, f"its products at the best rate, {rows} rows")
        work = f"{words}, {result['layers']} layers of SmolLM2's"
        yield "lm_rate", work, *cells, f"without fast paths: {row['ratio']:.2f} x our time"


def against(ours: float, limit: float | None = None, of: str = "") -> tuple[str, str, str]:
    if limit is None:
        return duration(ours), "–", "–"
    return duration(ours), f"{duration(limit)}: {of}", f"{ours / limit:.1f}"


def duration(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds * 1e9:.3g}\N{NO-BREAK SPACE}ns"


# --- growth -----------------------------------------------------------------------------------------------------------


def growth_part(found: Found) -> str:
    if (growth := found.get("growth")) is None:
        return ""
    rows = []
    for curve in growth["curves"]:
        known = seconds_of(growth, curve["name"])
        shown = ", ".join(f"{size:,}: {duration(each)}" for size, each in known.items())
        last = f"{power(dict(list(known.items())[-2:])):.2f}" if len(known) > 1 else "–"
        rows.append(
            [f"{curve['name']} ({curve['fixed']})", shown, last, " ".join(ends(curve["points"])) or "none up to here"]
        )
    words = (
        f"{origin('growth', growth)}: the work, one size at a time; a whole `llm-mdp verify` with its start "
        f"({growth['start']:.1f} s), a GRPO step of 8 prompts on a Llama of one million weights, a step of all "
        "environments. The power is that of the size by which the last interval grew. A curve ends where the product "
        f"refuses, or where a point would take over {growth['seconds']:g} s of CPU time."
        + (f" {growth['processes']} processes measured these, some at the same time." if "processes" in growth else "")
    )
    picture = "![How work grows with one size](figures/growth.svg)"
    header = ["what grows", "takes", "power", "first cliff, and what the user reads there"]
    return "\n".join(["## Growth", "", words, "", table(header, rows).replace("---:", "---"), "", picture, ""])


def ends(points: list[dict[str, Any]]) -> Iterator[str]:
    """What happens at the end of a curve, sentences."""
    known = [each for each in points if "kind" not in each]
    of_each = [each["seconds"] / each["size"] for each in known]
    slower = [size for size, one in enumerate(of_each) if one > SLOWER * min(of_each[: size + 1])]
    if slower and known[-1]["size"] > MANY:
        size = known[slower[0]]["size"]
        yield f"From {size:,} on each takes longer: their memory is beyond the processor's cache. Nothing is said."
    forecasts = [each for each in points if each.get("kind") == "forecast"]
    for each in points:
        if each in forecasts[:1]:
            yield f"{each['size']:,}: after {each['until']:.1f} s it says “{each['said']}”"
        elif each.get("kind") == "refused":
            of_rows = f" ({each['rows']} rows)" if "rows" in each else ""
            yield f"{each['size']:,}: “{each['said']}”{of_rows}"
        elif each.get("kind") == "stopped":
            yield f"{each['size']:,}: stopped after {each['until']:.0f} s; nothing was said."
        elif each.get("kind") == "not measured":
            yield f"None up to here; {each['size']:,} would take about {duration(each['expected'])} and was not tried."


# --- make bench -------------------------------------------------------------------------------------------------------


def bench_part(found: Found) -> str:
    rows = []
    for name in BENCH:
        took = found.get(name, {}).get("took_cpu_seconds")
        rows.append([f"`{name}.py`", "–" if took is None else f"{took:.0f} s"])
    words = (
        "CPU time of each script of `make bench`, as its last run says (–: it ran before results said so). Beside TRL: "
        "`make peers`; whether intervals hold: `make coverage`."
    )
    return "\n".join(["## make bench", "", words, "", table(["script", "CPU time"], rows), ""])


if __name__ == "__main__":
    main()
