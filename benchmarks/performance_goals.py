"""What was set out for, and what the results of the last runs say of it: the goals of docs/performance.md."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench import SCRIPTS as BENCH

AT_MOST_MINUTES = 20
Found = dict[str, dict[str, Any]]
"""Results by the name of their file; of those that are missing, nothing."""


@dataclass(frozen=True)
class Goal:
    """What was set out for, and what came of it."""

    words: str
    source: str
    """Name of the results."""
    value: float | None
    """None: not measured."""
    bound: float
    at_least: bool = False
    unit: str = "\N{NO-BREAK SPACE}x"
    because: str = ""
    """Why it is missed, if it is."""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def goals(found: Found) -> Iterator[Goal]:
    """Every goal that a stored result decides."""
    yield from startup_goals(found.get("startup", {}))
    yield from model_goals(found.get("lm_rate", {}))
    yield from peer_goals(found)
    yield from ledger_goals(found)
    rates = {row["task"]: row for row in found.get("env_rate", {}).get("rates", ())}
    value, because = None, ""
    if rates:
        value, row = rates["Ngram"]["faster_than_cartpole"], rates["Ngram"]
        bare = row["bare_steps_per_second"] / row["cartpole_steps_per_second"]
        because = f"the loop by hand, which has no environment around it, reaches {bare:.2f} x"
    words = "n-gram environments beside CartPole's rate"
    yield Goal(words, "env_rate", value, 0.9, at_least=True, because=because)
    known = seconds_of(found.get("growth", {}), "environments in V")
    value = known[16384] / known[64] if {64, 16384} <= set(known) else None
    yield Goal("a step of 4,096 environments with 16,384 tokens beside one with 64", "growth", value, 2.0)
    pilots = [row["ratio"] for row in found.get("pilot_cost", {}).get("rows", ())]
    words = "TRePO's pilot beside its drawing and 8 T gradients a prompt, the slowest"
    yield Goal(words, "pilot_cost", max(pilots, default=None), 1.5)
    took = [found.get(name, {}).get("took_cpu_seconds") for name in BENCH]
    value = None if None in took else sum(took) / 60
    yield Goal("`make bench`, CPU time of all of it", "bench", value, AT_MOST_MINUTES, unit="\N{NO-BREAK SPACE}min")


def startup_goals(result: dict[str, Any]) -> Iterator[Goal]:
    ratio, median = result.get("times_import_torch", {}), result.get("median", {})
    because = ""
    if "verify --help" in ratio:
        because = f"its start alone (`verify --help`) takes {ratio['verify --help']:.2f} x, its rows the rest"
    for name, bound in (("verify --quick", 1.4), ("verify", 2.0)):
        words = f"`llm-mdp {name}` beside a bare `import torch`"
        yield Goal(words, "startup", ratio.get(name), bound, because=because)
    for name in ("--help", "envs", "agents"):
        yield Goal(f"`llm-mdp {name}`", "startup", median.get(name), 0.5, unit="\N{NO-BREAK SPACE}s")


def model_goals(result: dict[str, Any]) -> Iterator[Goal]:
    """Of oneDNN's products beside torch's."""
    limits = result.get("limits", {})
    because = ""
    if "onednn_32" in limits:
        few, many = (limits[f"onednn_{rows}"] / limits[f"torch_{rows}"] for rows in ("32", "1024"))
        because = (
            f"oneDNN's products are {few:.2f} times as fast as torch's at 32 rows on this processor and {many:.2f} "
            "times at 1,024"
        )
    for name, words, bound in (
        ("draw_32_rows", "drawing 32 rows of SmolLM2's shapes with oneDNN beside without", 1.98),
        ("grpo_step_prompts_of_8", "a GRPO step at prompts of 8, fast paths beside none", 1.3),
        ("grpo_step_prompts_of_256", "the same at prompts of 256", 1.3),
    ):
        yield Goal(words, "lm_rate", result.get(name, {}).get("ratio"), bound, at_least=True, because=because)
    same = result.get("draw_32_rows", {}).get("same_tokens")
    words = "share of the tokens that are the same with oneDNN and without"
    yield Goal(words, "lm_rate", same, 1.0, at_least=True, unit="")


def peer_goals(found: Found) -> Iterator[Goal]:
    settings = {each["setting"]: each for each in found.get("peers", {}).get("settings", ())}
    for name, length, bound in (("short", 8, 0.40), ("long", 256, 0.07)):
        value, because = None, ""
        if name in settings:
            seconds = {row["contender"]: row["cpu_seconds"] for row in settings[name]["rows"]}
            value, loop = (seconds[each] / seconds["trl_grpo"] for each in ("our_grpo", "straight_loop"))
            because = f"a loop by hand, which reads every response with its prompt, takes {loop:.2f} x"
        words = f"a GRPO step beside TRL's without checkpointing, prompts of {length}"
        yield Goal(words, "peers", value, bound, because=because)
    result = found.get("engines", {})
    seconds = {name: each["seconds"] for name, each in result.get("engines", {}).items()}
    value, because = None, ""
    if seconds:
        value = seconds["vllm"] / seconds["hf"]
        theirs, ours = (seconds[name] / seconds_of_products(result) for name in ("vllm", "hf"))
        because = (
            f"vLLM takes {theirs:.2f} times, and we {ours:.2f} times, what the products alone take at the processor's "
            f"best rates; 1.4 times vLLM's rate would be {theirs / 1.4:.2f} times that"
        )
    words = "drawing 32 rows beside vLLM's build for CPUs"
    yield Goal(words, "engines", value, 1.4, at_least=True, because=because)


def seconds_of_products(engines: dict[str, Any]) -> float:
    """Of the model's products for the benchmark's prompts and responses, at the rates of the same run."""
    known, limits = engines["products"], engines["limits"]
    return known["prompt"] / limits["gemm_1024"] + known["response"] / limits["gemm_32"]


def step_products(prompt: int) -> float:
    """Of a prompt that is read once by growth.py's Llama of a million weights, four layers of width 128: two for every
    weight and token, and four for every token, unit and layer with each of the tokens before."""
    weights, layers, width = 1e6, 4, 128
    return prompt * (2 * weights + 4 * layers * width * prompt / 2)


def ledger_goals(found: Found) -> Iterator[Goal]:
    growth = found.get("growth", {})
    known = {size: each for size, each in seconds_of(growth, "a step in prompt").items() if size >= 512}
    slope = power(known) if len(known) > 1 else None
    yield Goal(
        "power of the prompt by which a step grows beyond 512 tokens (“about 1” is read as at most 1.15)",
        "growth",
        slope,
        1.15,
        unit="",
        because=f"its products alone grow by {power({n: step_products(n) for n in known}):.2f}, for the attention of a "
        "token is over all before it"
        if slope
        else "",
    )
    rates = [
        row["per_numpy_loop"]
        for run in found.get("sampled_rate", {}).get("runs", ())
        for row in run["rows"]
        if row["name"].startswith("rloo")
    ]
    words = "sampled certificates of groups beside a numpy loop of single responses, the slowest"
    yield Goal(words, "sampled_rate", min(rates, default=None), 1.2, at_least=True)
    wanted = [each for each in points_of(growth, "verify in V") if each["size"] == 5]
    value = None
    if wanted:
        value = 0.0 if wanted[0].get("kind") == "forecast" else wanted[0]["seconds"] or math.inf
    words = "the ledger at V = 5, T = 4: seconds before it is done, or says how long it will take"
    yield Goal(words, "growth", wanted[0]["until"] if value == 0.0 else value, 20.0, unit="\N{NO-BREAK SPACE}s")


# --- what they are read from ------------------------------------------------------------------------------------------


def points_of(growth: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return next((curve["points"] for curve in growth.get("curves", ()) if curve["name"] == name), [])


def seconds_of(growth: dict[str, Any], name: str) -> dict[int, float]:
    """Of what was done whole: seconds by size."""
    return {each["size"]: each["seconds"] for each in points_of(growth, name) if "kind" not in each}


def power(known: dict[int, float]) -> float:
    """Of the size, by which seconds grow from the first point to the last."""
    (one, before), (two, last) = next(iter(known.items())), list(known.items())[-1]
    return math.log(last / before) / math.log(two / one)
