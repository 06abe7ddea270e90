"""What every biased row of the ledger costs: prices at equal KL on 60 random tables of two kinds (docs/price.md).

    python benchmarks/prices.py                       # all rows; rows that are there already are left alone
    python benchmarks/prices.py grpo token-mean       # these again
    python benchmarks/prices.py --summary             # the correlations alone, from what is there

Writes llm_mdp/verify/typical_prices.json, which the ledger shows, after every row: it can be stopped and goes on. In
the end the table of docs/price.md.
A row is computed where its bias can show: at V = T = 3 and γ = 1, else with γ = 0.9, at T = 4, or in a conversation.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.claims import CLAIMS, Claim
from llm_mdp.verify.price import has_room, price, prices, without_price
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.typical_price import FILE, KINDS, typical_of

DOCS = Path(__file__).parents[1] / "docs" / "price.md"
BEGIN, END = "<!-- prices:begin -->", "<!-- prices:end -->"
LEDGER = Path(__file__).parent / "results" / "ledger.json"
INSTANCES = 60
COSTLY = {"prime": 3}
"""Rows of which fewer instances are computed: its model is fitted anew at every step, and none comes to rest."""
SUCCESS = 0.3
"""Of right-or-wrong rewards."""
SETTINGS: dict[str, dict[str, Any]] = {
    "V = T = 3": {"vocab_size": 3, "horizon": 3},
    "V = T = 3, γ = 0.9": {"vocab_size": 3, "horizon": 3, "gamma": 0.9},
    "V = 3, T = 4": {"vocab_size": 3, "horizon": 4},
    "V = T = 3, a reply after the first token": {"vocab_size": 3, "horizon": 3, "environment_at": (1,)},
}
FIRST = ("V = T = 3", "token")
HIDDEN = "its bias does not show on tables of three tokens"
RESAMPLES = 10_000
FEWEST = 10
"""Prices that a mean, and rows that a correlation, is computed of."""


@cache
def problems(setting: str, kind: str) -> list[Problem]:
    """The first random tables, by their seeds, that have something to lose."""
    found, seed = [], 0
    while len(found) < INSTANCES:
        success = SUCCESS if kind == "outcome" else None
        problem = Problem(random_instance(**SETTINGS[setting], seed=seed, success=success, name=f"seed {seed}"))
        found += [problem] if has_room(problem) else []
        seed += 1
    return found


def biased_rows() -> set[str]:
    """The rows that are biased on one of the instances of the ledger."""
    runs = json.loads(LEDGER.read_text(encoding="utf-8"))["instances"]
    return {name for run in runs for name, row in run["claims"].items() if row["verdict"] == "biased"}


def certificate(claim: Claim, problem: Problem) -> Certificate:
    return exact_certificate(
        claim.build(problem), problem.enumeration, problem.target(claim.target), problem.magnitude(claim.target),
        method="groups",
    )  # fmt: skip


def setting_of(claim: Claim) -> str | None:
    """The first setting in which the row is biased on one of three instances of real rewards."""
    for setting in SETTINGS:
        if any(certificate(claim, problem).verdict == "biased" for problem in problems(setting, "token")[:3]):
            return setting
    return None


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the means of samples drawn from these with replacement."""
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(draws.mean(1), (0.025, 0.975))
    return float(low), float(high)


def measured(claim: Claim, setting: str, kind: str) -> dict[str, Any]:
    """Typical and largest price of a row, why there is none elsewhere, and its certificates at the start."""
    chosen = problems(setting, kind)[: COSTLY.get(claim.id, INSTANCES)]
    found = [price(claim, problem) for problem in chosen] if claim.id in COSTLY else prices(claim, chosen)
    missed = Counter((each.reason or "").split(", at ")[0] for each in found if each.value is None)
    result: dict[str, Any] = {"instances": len(chosen), "missed": dict(missed)}
    certificates = [certificate(claim, problem) for problem in chosen]
    result["one_minus_cosine"] = float(np.mean([1 - (each.cosine or 0.0) for each in certificates]))
    result["relative_bias"] = float(np.mean([each.relative_bias or 0.0 for each in certificates]))
    priced = [(each.value, problem.instance.name) for each, problem in zip(found, chosen) if each.value is not None]
    result["priced"] = len(priced)
    if len(priced) >= FEWEST:
        values = np.array([value for value, _ in priced])
        worst = int(values.argmax())
        result |= {"typical": float(values.mean()), "interval": interval(values)}
        result |= {"worst": float(values[worst]), "worst_instance": priced[worst][1]}
    return result


def ranks(values: np.ndarray) -> np.ndarray:
    """Their places in order, the mean place where several are equal."""
    order = values.argsort()
    places = np.empty(len(values))
    places[order] = np.arange(len(values))
    _, which = np.unique(values, return_inverse=True)
    return (np.bincount(which, places) / np.bincount(which))[which]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def correlations(rows: dict[str, Any]) -> dict[str, Any]:
    """Spearman's rank correlation over the rows, and 95 % of those of rows drawn with replacement."""
    generator, result = np.random.default_rng(0), {}
    for kind in KINDS:
        known = [row[kind] for row in rows.values() if "typical" in row.get(kind, {})]
        if len(known) < FEWEST:
            continue
        columns = {name: np.array([row[name] for row in known]) for name in ("typical", *FIGURES)}
        for name in FIGURES:
            draws = [generator.integers(len(known), size=len(known)) for _ in range(2_000)]
            spread = [spearman(columns["typical"][draw], columns[name][draw]) for draw in draws]
            low, high = np.nanquantile(spread, (0.025, 0.975))
            value = spearman(columns["typical"], columns[name])
            result[f"{kind} {name}"] = {"spearman": value, "interval": [float(low), float(high)], "rows": len(known)}
    return result


FIGURES = ("one_minus_cosine", "relative_bias")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prices of the biased rows of the ledger.")
    parser.add_argument("rows", nargs="*", help="ids of claims; default: all that are not there yet")
    parser.add_argument("--summary", action="store_true", help="compute the correlations alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"rows": {}}
    rows, biased = results["rows"], biased_rows()
    for claim in CLAIMS:
        asked = claim.id in options.rows if options.rows else claim.id not in rows
        if options.summary or not asked or claim.id not in biased:
            continue
        begun, reason = time.perf_counter(), without_price(claim, problems(*FIRST)[0])
        setting = setting_of(claim) if reason is None else None
        if setting is None:
            rows[claim.id] = {"setting": None, "reason": reason or HIDDEN}
        else:
            rows[claim.id] = {"setting": setting} | {kind: measured(claim, setting, kind) for kind in KINDS}
            rows[claim.id]["seconds"] = round(time.perf_counter() - begun, 1)
        print(claim.id, json.dumps(rows[claim.id]), flush=True)
        write(results)
    results["correlations"] = correlations(rows)
    write(results)
    text = DOCS.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}", encoding="utf-8")


def markdown(results: dict[str, Any]) -> str:
    """All rows as a table, and the correlations in a sentence."""
    head = [
        "row",
        "instances",
        *(f"{KINDS[kind]}: typical" for kind in KINDS),
        *(f"worst of {INSTANCES}" for _ in KINDS),
    ]
    lines = [head, ["---", "---", *["---:"] * 4]]
    for name, row in results["rows"].items():
        if row["setting"] is None:
            lines.append([f"`{name}`", "", row["reason"], "", "", ""])
            continue
        both = [typical_of(row[kind]) for kind in KINDS]
        worst = ["" if each.worst is None else f"{each.worst:.2g}" for each in both]
        lines.append([f"`{name}`", row["setting"], *(each.text for each in both), *worst])
    found = results["correlations"]
    said = [
        f"{KINDS[kind]}: {word} {each['spearman']:.2f} [{each['interval'][0]:.2f}, {each['interval'][1]:.2f}] "
        f"({each['rows']} rows)"
        for kind in KINDS
        for name, word in (("one_minus_cosine", "1 - cosine"), ("relative_bias", "relative bias"))
        if (each := found.get(f"{kind} {name}"))
    ]
    intro = (
        f"Generated by `{results['command']}` (commit {results['commit'][:7]}), K = {results['group_size']}; in "
        f"brackets 95 % intervals of the mean over the instances."
    )
    rank = f"Spearman's rank correlation of the typical price over the rows: {'; '.join(said)}."
    return "\n\n".join([intro, rank, "\n".join(f"| {' | '.join(line)} |" for line in lines)])


def write(results: dict[str, Any]) -> None:
    order = {claim.id: place for place, claim in enumerate(CLAIMS)}
    rows = dict(sorted(results["rows"].items(), key=lambda row: order.get(row[0], -1)))
    stamp = {"command": "python benchmarks/prices.py", "success": SUCCESS, "group_size": Problem.group_size}
    content = {**results, **machine("torch", "numpy"), **stamp, "rows": rows}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
