"""How often the intervals of sampled certificates contain the truth, and how often their verdicts are false: many
seeds, each compared with the exact certificate.

    python benchmarks/coverage.py                        # 200 seeds, some minutes on two cores
    python benchmarks/coverage.py --seeds 20
    python benchmarks/coverage.py --tables               # the tables alone, from the results of the last run

Prints a line when a row is done, writes benchmarks/results/coverage.json and the tables of docs/certificates.md. The
instances: an ordinary one (what `verify --quick` checks), one with little discount, where what is biased is so by one
hundredth, a peaked policy (logits six times as large), one response of 127 that alone is rewarded and has a probability
of 4.6e-5, and ordinary rewards beside one response of probability 1e-4 whose reward is 1,000.

A verdict is false if it says *unbiased* or *proportional* of what is off by more than 3 %, the tolerance of these
words, or *biased* of what is exactly unbiased or proportional.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import math
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from machine import write_results

from llm_mdp.cli.verify import VerifyArguments, find_instances
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.mdp.hidden_rewards import SparseReward, SumReward
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.certificate import WITHIN, Certificate, exact_certificate
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate

RESULTS = Path(__file__).parent / "results" / "coverage.json"
DOCS = Path(__file__).parents[1] / "docs" / "certificates.md"
BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"
CONFIDENCE = 0.99
LEDGER = 1 - 0.01 / 110
"""Of each certificate, for 110 of them to hold together with 99 %."""
BY_ID = {claim.id: claim for claim in CLAIMS}
SETTLED = "theorems that are unbiased"


@dataclass(frozen=True)
class Row:
    """One estimator on one instance at one number of responses."""

    instance: str
    claim: str
    responses: int
    seeds: int
    confidence: float = CONFIDENCE


ROWS = [
    *(("ordinary", claim) for claim in ("reinforce", "rloo", "trepo", "grpo-length", "kl-k2-loss")),
    *(("ordinary", claim) for claim in ("rloo-eq36", "grpo-mean", "dr-grpo")),
    *(("little discount", claim) for claim in ("remark-3-undiscounted", "abc-return-to-go")),
    *(("peaked", claim) for claim in ("reinforce", "rloo", "grpo-mean", "grpo")),
    *(("rare", claim) for claim in ("reinforce", "rloo", "grpo-mean", "zero-std-filtered")),
    *(("heavy tail", claim) for claim in ("reinforce", "rloo", "grpo-mean")),
]
COUNTED = ("reinforce", "remark-3-undiscounted", "abc-return-to-go", "kl-k2-loss")
"""Those of one response, whose cost does not grow with the number of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the tables of the last run and measure nothing")
    arguments = parser.parse_args()
    if arguments.tables:
        write_docs(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    rows = [
        Row(instance, claim, responses, arguments.seeds)
        for instance, claim in ROWS
        for responses in ((2_000, 30_000, 1_000_000, 100_000_000) if claim in COUNTED else (2_000, 30_000))
    ]
    power = [
        *(Row("ordinary", claim, 30_000, arguments.seeds, LEDGER) for claim in ("grpo-length", "kl-k2-loss")),
        Row("ordinary", SETTLED, 1_000_000, max(arguments.seeds // 10, 1), LEDGER),
    ]
    start = time.time()
    with ProcessPoolExecutor(arguments.processes) as pool:
        found = list(_reported(pool.map(measure, [*rows, *power]), len(rows) + len(power), start))
    results = {"seeds": arguments.seeds, "rows": found[: len(rows)], "power": found[len(rows) :]}
    write_results(arguments.output, ("numpy", "torch"), results)
    if arguments.output == RESULTS:
        write_docs(json.loads(RESULTS.read_text(encoding="utf-8")))
    print(f"Written to {arguments.output} after {time.time() - start:.0f} s")


def _reported(results, count: int, start: float):
    for number, result in enumerate(results, 1):
        print(f"{number}/{count} {time.time() - start:4.0f} s  {' '.join(map(str, result.values()))}", flush=True)
        yield result


# --- instances --------------------------------------------------------------------------------------------------------


@cache
def problem(name: str) -> Problem:
    torch.set_num_threads(1)
    return Problem(INSTANCES[name]())


def ordinary() -> Instance:
    return find_instances(VerifyArguments(quick=True))[0]


def little_discount() -> Instance:
    return random_instance(3, 4, gamma=0.98, seed=0)


def peaked() -> Instance:
    instance = random_instance(3, 4, gamma=0.9, seed=0)
    policy = instance.policy
    assert isinstance(policy, TabularPolicy)
    levels = [6 * level.detach() for level in policy.levels]
    return replace(instance, policy=TabularPolicy(policy.tree, policy.prompts, levels))


def rare() -> Instance:
    instance = random_instance(3, 6, seed=0)
    return replace(instance, mdp=replace(instance.mdp, token_reward=one_response(instance, 4.6e-5, 1.0)))


def heavy_tail() -> Instance:
    instance = random_instance(3, 6, seed=0)
    reward = SumReward((instance.mdp.token_reward, one_response(instance, 1e-4, 1_000.0)))
    return replace(instance, mdp=replace(instance.mdp, token_reward=reward))


def one_response(instance: Instance, probability: float, reward: float) -> SparseReward:
    """A reward for the response whose probability is closest to this one."""
    e = Problem(instance).enumeration
    leaf = int((e.probability[0].log() - math.log(probability)).abs().argmin())
    return SparseReward({tuple(token for token in e.tokens[leaf].tolist() if token >= 0): reward})


INSTANCES = {
    "ordinary": ordinary,
    "little discount": little_discount,
    "peaked": peaked,
    "rare": rare,
    "heavy tail": heavy_tail,
}


# --- rows -------------------------------------------------------------------------------------------------------------


def measure(row: Row) -> dict:
    """How often each interval held, how often all three did, and what the verdicts were."""
    p = problem(row.instance)
    claims = [BY_ID[row.claim]] if row.claim in BY_ID else unbiased_theorems(p)
    verdicts, covered, false, tried, bound = Counter(), [0, 0, 0, 0], 0, 0, 0.0
    truth = exact(row.instance, claims[0].id)
    for claim in claims:
        estimator, target, magnitude = claim.build(p), p.target(claim.target), p.magnitude(claim.target)
        truth = exact(row.instance, claim.id)
        for seed in range(row.seeds):
            tried += 1
            try:
                found = sampled_certificate(
                    estimator,
                    p.enumeration,
                    target,
                    row.responses,
                    magnitude=magnitude,
                    seed=seed,
                    confidence=row.confidence,
                )
            except NothingKept:
                verdicts["nothing kept"] += 1
                covered = [number + 1 for number in covered]
                continue
            held = contains(found, truth)
            covered = [number + held for number, held in zip(covered, (*held, all(held)))]
            verdicts[found.verdict] += 1
            false += is_false(found.verdict, truth)
            bound = max(bound, found.bound or 0.0)
    return {
        "instance": row.instance,
        "claim": row.claim,
        "responses": row.responses,
        "confidence": row.confidence,
        "tried": tried,
        "truth": truth.verdict,
        "relative_bias": truth.relative_bias,
        "scale": truth.scale,
        "cosine": truth.cosine,
        "covered": dict(zip(("bias", "scale", "cosine", "all"), covered)),
        "verdicts": dict(verdicts),
        "false": false,
        "largest_bound": bound,
    }


@cache
def exact(instance: str, id: str) -> Certificate:
    p, claim = problem(instance), BY_ID[id]
    return exact_certificate(claim.build(p), p.enumeration, p.target(claim.target), p.magnitude(claim.target))


def unbiased_theorems(p: Problem) -> list:
    """What the ledger's theorems say is unbiased here."""
    return [
        claim for claim in CLAIMS if claim.group == "theorems" and not claim.figure and claim.expected(p) == "unbiased"
    ]


def contains(found: Certificate, truth: Certificate) -> tuple[bool, bool, bool]:
    """Do the intervals for bias, scale and cosine contain the exact figures? Nothing said is nothing false."""
    pairs = (
        (found.bias_interval, truth.relative_bias),
        (found.scale_interval, truth.scale),
        (found.cosine_interval, truth.cosine),
    )
    bias, scale, cosine = (
        interval is None or interval[0] - 1e-9 <= (figure or 0.0) <= interval[1] + 1e-9 for interval, figure in pairs
    )
    return bias, scale, cosine


def is_false(verdict: str, truth: Certificate) -> bool:
    bias, cosine = truth.relative_bias or 0.0, truth.cosine or 0.0
    if verdict == "unbiased":
        return bias > WITHIN
    if verdict == "proportional":
        return not cosine > 0 or math.sqrt(max(1 / cosine**2 - 1, 0.0)) > WITHIN
    return verdict == "biased" and truth.verdict in ("unbiased", "proportional")


# --- tables -----------------------------------------------------------------------------------------------------------


def write_docs(results: dict) -> None:
    """The tables between the two markers of docs/certificates.md."""
    text = DOCS.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{DOCS} needs the lines {BEGIN} and {END} once each; the tables go between them.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}", encoding="utf-8")


def tables(results: dict) -> str:
    rows, power = results["rows"], results["power"]
    tried, false = sum(row["tried"] for row in rows), sum(row["false"] for row in rows)
    held = sum(row["covered"]["all"] for row in rows)
    words = (
        f"Generated by `python benchmarks/coverage.py` (commit {results['commit'][:7]}): {results['seeds']} seeds a "
        f"row at {100 * CONFIDENCE:g} % confidence. Of {tried:,} certificates {tried - held:,} had an interval that "
        f"did not contain the exact figure ({percent(tried - held, tried)}), and {false:,} had a false verdict "
        f"({percent(false, tried)}); in brackets a 95 % interval (Clopper and Pearson) of what happens in the long "
        f"run. Of {results['seeds']} alone, none is {percent(0, results['seeds'])}. "
        "The last column is of the interval, and the number of responses, where it held least often; where nothing "
        "was said (*nothing kept*), nothing was false."
    )
    sizes = sorted({row["responses"] for row in rows})
    head = ["instance", "estimator", "truth", *(f"{size:,} responses" for size in sizes), "false", "held at least"]
    lines = [head, ["---"] * (3 + len(sizes)) + ["---:", "---:"]]
    for place in dict.fromkeys((row["instance"], row["claim"]) for row in rows):
        members = {row["responses"]: row for row in rows if (row["instance"], row["claim"]) == place}
        every = list(members.values())
        least = min(min(row["covered"].values()) for row in every)
        lines.append(
            [
                *place,
                truth_text(every[0]),
                *(said(members[size]) if size in members else "" for size in sizes),
                f"{sum(row['false'] for row in every)} of {sum(row['tried'] for row in every):,}",
                f"{least} of {every[0]['tried']}",
            ]
        )
    strong = [
        f"- {row['claim']}, {row['responses']:,} responses: {said(row)} of {row['tried']:,} certificates; the largest "
        f"upper bound of the relative bias was {row['largest_bound']:.3f}"
        for row in power
    ]
    intro = (
        f"What is decided at the confidence of the command line ({100 * LEDGER:.4f} % each, 99 % for 110 rows "
        "together), on the ordinary instance:"
    )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([words, table, intro, "\n".join(strong)])


def said(row: dict) -> str:
    """How often each verdict was given."""
    return ", ".join(f"{verdict} {count}" for verdict, count in sorted(row["verdicts"].items()))


def truth_text(row: dict) -> str:
    if row["truth"] == "unbiased":
        return "unbiased"
    if row["truth"] == "proportional":
        return f"proportional, scale {row['scale']:.3f}"
    return f"biased, {row['relative_bias']:.3f}, cosine {row['cosine']:.4f}"


def percent(count: int, tried: int) -> str:
    low, high = binomial_interval(count, tried)
    return f"{100 * count / tried:.2g} % [{100 * low:.2g}, {100 * high:.2g}]"


def binomial_interval(count: int, tried: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's, by bisection of the binomial distribution."""
    tail = (1 - confidence) / 2

    def at_most(number: int, chance: float) -> float:
        logs = (
            math.lgamma(tried + 1)
            - math.lgamma(k + 1)
            - math.lgamma(tried - k + 1)
            + k * math.log(chance)
            + (tried - k) * math.log1p(-chance)
            for k in range(number + 1)
        )
        return math.fsum(map(math.exp, logs))

    def root(number: int, goal: float) -> float:
        low, high = 1e-12, 1 - 1e-12
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(number, middle) > goal else (low, middle)
        return high

    return (0.0 if count == 0 else root(count - 1, 1 - tail)), (1.0 if count == tried else root(count, tail))


if __name__ == "__main__":
    main()
