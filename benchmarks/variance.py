"""The paper's claims on variance, put to exact computation, and what estimators make of equal tokens. All of it, about
20 minutes:

    python benchmarks/variance.py typical claims equal-tokens horizons allocation language-model

Finished cells stay in runs/variance-benchmark, so a second call does what is missing. Results go to
benchmarks/results/variance-*.json; `python benchmarks/variance_report.py` writes benchmarks/variance.md and the figures
from them (`make docs` the page alone).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import write_results
from smollm2 import smollm2

from llm_mdp.estimators.algorithms import PPO
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.estimators.theorems import Theorem2, WithBaseline
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.variance.allocation import KnownPrompt, Split, allocate, exact_prices, few_cuts
from llm_mdp.variance.benches import TreeBench, make_bench
from llm_mdp.variance.sampled import sampled_measurement
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.sweep import run_cells
from llm_mdp.verify.moments import exact_moments

HERE = Path(__file__).parent
RESULTS, CELLS = HERE / "results", HERE.parent / "runs" / "variance-benchmark"
VERSIONS = ("torch", "transformers")

INSTANCES = 100
FAMILIES = {"table": 1.0, "peaked table": 4.0, "n-gram": 1.0, "peaked n-gram": 3.0, "transformer": 1.0}
"""Policies of random instances, and the scale of their logits."""
LAMS = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


def claims(jobs: int) -> None:
    """Theorem 2 against one baseline for all steps (Remarks 4 and 7), the "near-optimal" baseline, λ in GAE (Remark 6):
    exact traces."""
    cells = [{"family": family, "seed": seed} for family in FAMILIES for seed in range(INSTANCES)]
    rows = run_cells(traces, cells, folder=CELLS / "claims", jobs=jobs)
    write_results(RESULTS / "variance-claims.json", VERSIONS, {"rows": [cell | row for cell, row in zip(cells, rows)]})


def traces(cell: dict[str, Any]) -> dict[str, Any]:
    """tr Cov of one response's estimate with exact values, on one random instance (3 tokens, horizon 4)."""
    torch.set_num_threads(1)
    bench = instance_of(cell["family"], cell["seed"])
    e, value = bench.enumeration, bench.critic(0.0)
    estimators = {
        "shared": KnownPrompt(boundary=AtSteps(()), critic=value),
        "theorem-2": Theorem2(critic=value),
        "optimal": WithBaseline(critic=value, baseline=bench.optimal_baseline),
        **{f"gae-{lam:g}": PPO(critic=value, lam=lam) for lam in LAMS},
    }
    return {name: exact_moments(estimator, e).trace_covariance for name, estimator in estimators.items()}


def instance_of(family: str, seed: int) -> TreeBench:
    instance, scale = random_instance(3, 4, seed=seed), FAMILIES[family]
    policy: Any = instance.policy
    if family.endswith("table"):
        policy = TabularPolicy(policy.tree, policy.prompts, [scale * level.detach() for level in policy.levels])
    elif family.endswith("n-gram"):
        policy = NgramPolicy.random(3, 1, torch.Generator().manual_seed(seed), scale=scale)
    else:
        from llm_mdp_agents.lm.policy import tiny_transformer

        policy = tiny_transformer(3, 4, seed)
    return TreeBench(replace(instance, policy=policy))


def command(*words: str) -> dict[str, Any]:
    """The document of `llm-mdp variance` with these words."""
    from llm_mdp.cli.variance import variance

    folder = CELLS / words[0]
    variance([*words[1:], "--out", str(folder)])
    document = json.loads((folder / "results.json").read_text())
    return document | {"command": " ".join(["llm-mdp variance", *words[1:]])}


def typical(jobs: int) -> None:
    """`llm-mdp variance` as it comes."""
    write_results(
        RESULTS / "variance-typical.json",
        VERSIONS,
        command("typical", "--jobs", str(jobs)) | {"command": "llm-mdp variance"},
    )


def equal_tokens(jobs: int) -> None:
    """Every practical estimator at its best options, on twelve settings."""
    common = ("--jobs", str(jobs), "--lams", "0", "0.5", "1", "--rewards", "dense", "sparse", "early", "outcome")
    names = ("reinforce-mean", "rloo", "remax", "grpo", "vineppo", "trepo", "trepo-paper", "theorem-2")
    short = command("short", *names, "--policy", "tabular", "transformer", "--prompts", "4", *common)
    long = command("long", *names, "--policy", "ngram", "--vocab", "8", "--horizon", "32", *common)
    write_results(RESULTS / "variance-equal-tokens.json", VERSIONS, {"documents": [short, long]})


def horizons(jobs: int) -> None:
    """Bias and noise against the horizon, n-gram policies, up to 1,000 tokens."""
    names = ("reinforce-mean", "rloo", "grpo", "grpo-length", "remax", "ppo", "vineppo", "trepo", "trepo-paper")
    options = (
        "--group-sizes",
        "4",
        "--positions",
        "4",
        "--branches",
        "1",
        "--lams",
        "0",
        "0.95",
        "1",
        "--estimates",
        "4000",
    )
    chain = ("--policy", "ngram", "--vocab", "8", "--horizon", "10", "30", "100", "300", "1000", "--budget", "20000")
    write_results(
        RESULTS / "variance-horizons.json", VERSIONS, command("horizons", *names, *chain, *options, "--jobs", str(jobs))
    )


BUDGETS = (50, 200, 2000)
TABLES = {
    "dense": Setting(prompts=4, seed=1),
    "outcome": Setting(rewards="outcome", success=0.3, prompts=4, seed=1),
    "early": Setting(rewards="early", prompts=4, seed=1),
    "early, two tokens, horizon 8": Setting(vocab_size=2, horizon=8, rewards="early", seed=1),
}
TASKS = {"llm_mdp/Arithmetic-v0": {"digits": 1}, "llm_mdp/Credit-v0": {"vocab_size": 4, "horizon": 8}}
PILOT, PROMPTS, SAMPLES = 128, 768, (1, 2, 4)


def allocation(jobs: int) -> None:
    """`allocate` on tables, exactly; and its choice by a pilot batch on tasks with a transformer, held against fresh
    draws."""
    cells = [{"table": name, "name": name} for name in TABLES] + [{"task": name, "name": name} for name in TASKS]
    rows = run_cells(allocated, cells, folder=CELLS / "allocation", jobs=jobs)
    write_results(RESULTS / "variance-allocation.json", VERSIONS, {"pilot": PILOT, "prompts": PROMPTS, "rows": rows})


def allocated(cell: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return table_allocation(cell["table"]) if "table" in cell else task_allocation(cell["task"])


def table_allocation(name: str) -> dict[str, Any]:
    """What exact figures choose for several budgets, beside RLOO at its best group size and TRePO cut at every
    token."""
    setting = TABLES[name]
    bench = make_bench(setting)
    assert isinstance(bench, TreeBench)
    size, prices = float(bench.target @ bench.target), list(exact_prices(bench.enumeration))
    every = [
        price for price in prices if price.split.steps == tuple(range(1, setting.horizon)) and price.split.lam == 0
    ]
    options = {"chosen": prices, "rloo": [price for price in prices if not price.split.steps], "every token": every}
    rows = []
    for budget in BUDGETS:
        found = {}
        for label, listed in options.items():
            try:
                best = allocate(budget, listed, size)
            except ValueError:  # a group of this kind costs more than the budget
                continue
            found[label] = {"words": best.words, "tokens_to_signal": best.tokens_to_signal, "progress": best.progress}
        rows.append({"budget": budget, **found})
    return {"table": name, "words": setting.words, "splits": len(prices), "rows": rows}


def task_allocation(name: str) -> dict[str, Any]:
    """The split that a pilot of 128 prompts chooses, and what every split then costs on other prompts: tokens x trace,
    over the least."""
    from llm_mdp_agents.measuring import Sketch, pilot_allocation, shared_estimates
    from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task
    from llm_mdp_agents.sampler import TaskSampler, streams
    from llm_mdp_agents.training.warm_start import has_answers, warm_start

    task = find_task(name, TASKS[name])
    policy = build_policy(ModelConfig("small"), task, 0)
    if has_answers(task):
        warm_start(policy, task, 60, 0)
    chosen = [
        pilot_allocation(2500, policy, TaskSampler(policy, task, *streams([seed, 1]), PILOT), task.horizon, seed=seed)
        for seed in range(3)
    ]
    cuts = few_cuts(task.horizon)
    splits = [
        Split(size, steps, lam) for size in (2, 4, 8) for steps in cuts for lam in ((0.0, 0.5) if steps else (0.0,))
    ]
    keys = [(split, samples) for split in splits for samples in (SAMPLES if split.steps else (1,))]
    estimators = {str(number): split.estimator(samples) for number, (split, samples) in enumerate(keys)}
    estimates, _ = shared_estimates(
        estimators, policy, TaskSampler(policy, task, *streams([99, 1]), PROMPTS), 8, Sketch(list(policy.parameters()))
    )
    reference = estimates["0"]
    measured = [
        sampled_measurement(estimates[str(number)], reference=reference, known="unbiased")
        for number in range(len(keys))
    ]
    # Trace x tokens is what tells splits apart; paired bootstrap samples of its ratio to the best.
    noise = torch.tensor(
        [[one.trace * one.tokens for one in (each.spread, *each.replicates)] for each in measured], dtype=torch.float64
    )
    best = int(noise[:, 0].argmin())
    ratio = noise / noise[best]

    def figures(number: int) -> dict[str, Any]:
        low, high = ratio[number, 1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        split, samples = keys[number]
        return {
            "group_size": split.group_size, "steps": list(split.steps), "lam": split.lam, "samples": samples,
            "ratio": float(ratio[number, 0]), "interval": [low, high], "tokens": measured[number].spread.tokens,
        }  # fmt: skip

    choices = []
    for one in chosen:
        key = (one.split, min(SAMPLES, key=lambda samples: abs(samples - one.samples)) if one.split.steps else 1)
        choices.append(figures(keys.index(key)) | {"words": one.words})
    return {"task": name, "chosen": choices, "every": [figures(number) for number in range(len(keys))]}


def language_model(jobs: int) -> None:
    """SmolLM2-135M-Instruct on two-digit sums, a few minutes."""
    words = (
        "rloo",
        "grpo",
        "dr-grpo",
        "remax",
        "trepo",
        "--group-sizes",
        "2",
        "4",
        "--positions",
        "2",
        "--branches",
        "1",
        "--lams",
        "0.5",
        "--env",
        f"{HERE / 'smollm2.py'}:Sums",
        "--env-args",
        "horizon=6",
        "chat=True",
        "system=''",
        "--model",
        str(smollm2()),
        "--prompts",
        "48",
        "--budget",
        "500",
    )
    document = command("language-model", *words)
    shown = document["command"].replace(str(HERE.parent) + "/", "").replace(str(smollm2()), "FOLDER")
    write_results(RESULTS / "variance-language-model.json", VERSIONS, document | {"command": shown})


STUDIES = {
    "typical": typical, "claims": claims, "equal-tokens": equal_tokens, "horizons": horizons, "allocation": allocation,
    "language-model": language_model,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", choices=STUDIES, nargs="+")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    for study in arguments.studies:
        STUDIES[study](arguments.jobs)


if __name__ == "__main__":
    main()
