"""Do the intervals of `llm-mdp variance` hold as often as they say? Many seeds against the exact figures.

    python benchmarks/coverage_variance.py               # 200 seeds, minutes; results and the table of docs/variance.md
    python benchmarks/coverage_variance.py --seeds 20 --scenario rare --output /tmp/some.json

On small token MDPs every figure is known exactly; estimators are then measured as if it were not. A run either shows
intervals, or says "too few successes" and shows none. A *miss* is an interval that does not hold the truth; a *false
answer* is a sentence that is not so: a verdict, or that one estimator makes less progress than the recommended one.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import write_results

from llm_mdp.estimators.algorithms import GRPO, RLOO, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.exact.instances import random_instance, stream
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.variance.benches import TreeBench, make_bench
from llm_mdp.variance.grid import Candidate
from llm_mdp.variance.measurement import AT_BUDGET, FIGURES, Measurement, exact_measurement
from llm_mdp.variance.sampled import sampled_measurement, tree_estimates
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.study import make_document, plan_of

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "coverage_variance.json", HERE.parent / "docs" / "variance.md"
BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"
BUDGET = 2000.0
ALL = (*FIGURES, *AT_BUDGET)
NOMINAL = 0.95

Measure = Callable[[TreeBench, int, int], Measurement]
"""Of a bench, so many draws with this seed."""


@dataclass(frozen=True)
class Scenario:
    """What is measured, how, and with how many draws."""

    words: str
    setting: Setting
    estimator: Estimator
    draws: tuple[int, ...]
    known: Any = None
    """What a theorem says of it."""
    paired: bool = False
    """As on a task: ∇J and the largest gradient are unknown, and RLOO on the same draws stands in."""
    heavy: bool = False
    """Rewards with a heavy tail in place of the setting's."""

    @functools.cached_property
    def bench(self) -> TreeBench:
        bench = make_bench(self.setting)
        assert isinstance(bench, TreeBench)
        return TreeBench(with_heavy_rewards(self.setting)) if self.heavy else bench

    def measure(self, draws: int, seed: int) -> Measurement:
        e = self.bench.enumeration
        estimates = tree_estimates(self.estimator, e, draws, seed)
        if not self.paired:
            return sampled_measurement(estimates, self.bench.target, seed=seed, known=self.known)
        reference = tree_estimates(RLOO(self.estimator.group_size), e, draws, seed)
        blind, other = (replace(each, largest=None) for each in (estimates, reference))
        return sampled_measurement(blind, reference=other, seed=seed, known=self.known)


def with_heavy_rewards(setting: Setting):
    """The fifth power of a normal number for every token: a few responses are worth hundreds of times the others."""
    instance = random_instance(setting.vocab_size, setting.horizon, n_prompts=setting.prompts, seed=setting.seed)
    tree, prompts, generator = instance.mdp.tree, instance.mdp.prompt_tokens, stream(setting.seed, "heavy")
    shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
    levels = [torch.randn(shape, generator=generator, dtype=torch.float64) ** 5 for shape in shapes]
    return replace(instance, mdp=replace(instance.mdp, token_reward=TableReward(tree, prompts, levels)))


def rare(success: float) -> Setting:
    return Setting(rewards="outcome", success=success, seed=2)


SHARED = Setting(policy="ngram", vocab_size=3, horizon=3, seed=4)
SLIGHT = Setting(vocab_size=3, horizon=3, seed=4)
BRANCHING = TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,), group_baseline=True, lam=0.5)
SCENARIOS = {
    "unbiased": Scenario("RLOO, not said to be unbiased", Setting(seed=1), RLOO(2), (300, 2000)),
    "known": Scenario("RLOO, known to be unbiased", Setting(seed=1), RLOO(2), (300, 2000), "unbiased"),
    "branches": Scenario("TRePO", Setting(vocab_size=3, horizon=3, seed=1), BRANCHING, (300, 2000), "unbiased"),
    "proportional": Scenario("GRPO without std", Setting(seed=1), GRPO(2, scale_by_std=False), (300, 2000)),
    "slightly biased": Scenario("GRPO of 3, cosine 0.978", SLIGHT, GRPO(3), (300, 2000)),
    "biased": Scenario("GRPO of 2, cosine 0.919", Setting(seed=2), GRPO(2), (300, 2000)),
    "peaked": Scenario("GRPO, entropy 0.3", Setting(entropy=0.3, seed=3), GRPO(2), (300, 2000)),
    "more peaked": Scenario("RLOO, entropy 0.1", Setting(entropy=0.1, seed=3), RLOO(2), (300, 2000), "unbiased"),
    "rare 5 %": Scenario("RLOO, 1 of 20 is right", rare(0.05), RLOO(2), (300, 1000, 3000), "unbiased"),
    "rare 1 %": Scenario("RLOO, 1 of 100 is right", rare(0.01), RLOO(2), (300, 1000, 3000), "unbiased"),
    "rare 0.1 %": Scenario("RLOO, 1 of 1,000 is right", rare(0.001), RLOO(2), (300, 3000), "unbiased"),
    "rare, biased": Scenario("GRPO, 1 of 20 is right", rare(0.05), GRPO(2), (300, 1000, 3000)),
    "heavy tail": Scenario("GRPO without std, heavy rewards", Setting(seed=5), GRPO(2, scale_by_std=False), (300, 2000),
                           heavy=True),
    "as on a task": Scenario("GRPO, RLOO stands in", SHARED, GRPO(3), (300, 2000), paired=True),
    "rare task": Scenario("RLOO by itself, 1 of 20", rare(0.05), RLOO(2), (300, 1000), "unbiased", paired=True),
}  # fmt: skip
CONTENDERS = ("reinforce", "reinforce-mean", "rloo", "grpo", "remax", "vineppo")
"""Whose order is told by sampled figures in the check of answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--scenario", action="append", help="part of a name; may be given several times")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name for name in SCENARIOS if any(part in name for part in arguments.scenario or [""])]
    rows = [
        told(coverage(name, draws, arguments.seeds)) for name in wanted for draws in SCENARIOS[name].draws
    ]  # fmt: skip
    answers = [told(false_answers(draws, arguments.seeds)) for draws in ((300, 2000) if not arguments.scenario else ())]
    write_results(arguments.output, ("numpy", "torch"), {"seeds": arguments.seeds, "rows": rows, "answers": answers})
    if arguments.output == RESULTS:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows, answers, arguments.seeds)}\n{END}{after}", encoding="utf-8")
    print(f"Written to {arguments.output}")


def coverage(name: str, draws: int, seeds: int) -> dict[str, Any]:
    """How often each figure's interval held the truth, over the runs that showed one."""
    scenario, start = SCENARIOS[name], time.perf_counter()
    bench = scenario.bench
    truth = exact_measurement(scenario.estimator, bench.enumeration, bench.target)
    held, shown, false = dict.fromkeys(ALL, 0), 0, 0
    for seed in range(seeds):
        found = scenario.measure(draws, seed)
        false += found.verdict not in ("undecided", truth.verdict)
        if found.too_few is not None:
            continue
        shown += 1
        for figure in ALL:
            value, ends = truth.spread.figure(figure, BUDGET), found.interval(figure, BUDGET)
            assert ends is not None
            # Rounding: figures that are 0 or 1 by theorem have intervals of one point.
            held[figure] += ends[0] - 1e-9 <= value <= ends[1] + 1e-9
    return {
        "scenario": name, "words": scenario.words, "draws": draws, "shown": shown, "too_few": seeds - shown,
        "held": held, "most_missed": shown - min(held.values()), "truth": truth.verdict, "false_verdicts": false,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def false_answers(draws: int, seeds: int) -> dict[str, Any]:
    """Six estimators, all sampled, on one setting: how often an answer was given, and how often it was not so."""
    start, setting = time.perf_counter(), Setting(rewards="outcome", success=0.3, prompts=2, seed=6)
    bench = make_bench(setting)
    assert isinstance(bench, TreeBench)
    options: dict[str, dict[str, Any]] = {
        "rloo": {"group_size": 2}, "grpo": {"group_size": 2}, "vineppo": {"positions": 2, "branches": 1},
    }  # fmt: skip
    listed = [Candidate(name, options.get(name, {})) for name in CONTENDERS]
    built = {each.label: each.build(bench.given) for each in listed}
    truth = {
        label: exact_measurement(each, bench.enumeration, bench.target).spread.progress(BUDGET)
        for label, each in built.items()
    }
    plan, settled, wrong, wrong_answers = plan_of(setting, listed, draws, 0), 0, 0, 0
    for seed in range(seeds):
        results = [bench.facts()]
        for place, each in enumerate(built.values()):
            estimates = tree_estimates(each, bench.enumeration, draws, 1000 * seed + place)
            known = listed[place].proved
            results.append(sampled_measurement(estimates, bench.target, seed=seed, known=known).document())
        (compared,) = make_document([plan], results, BUDGET, seed)["settings"]
        best = next(row["label"] for row in compared["rows"] if row["behind"] == [0.0, 0.0])
        behind = [row["label"] for row in compared["rows"] if row["behind"] and row["behind"][0] > 0]
        settled += len(behind)
        false = sum(truth[label] >= truth[best] for label in behind)
        wrong += false
        wrong_answers += false > 0
    return {
        "draws": draws, "estimators": len(listed), "said_behind": settled, "wrong": wrong,
        "wrong_answers": wrong_answers, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def told(row: dict[str, Any]) -> dict[str, Any]:
    """Printed as it is finished."""
    print({name: value for name, value in row.items() if name not in ("held", "words")}, flush=True)
    return row


def table(rows: list[dict[str, Any]], answers: list[dict[str, Any]], seeds: int) -> str:
    """For docs/variance.md."""
    lines = [
        f"`python benchmarks/coverage_variance.py`: {seeds} seeds each, nominal {NOMINAL:.0%}. *Held*: how many of the "
        f"runs that showed intervals held the truth, for the worst of {len(ALL)} figures; *misses*: of all runs.\n",
        "| scenario | what | draws | too few | shown | held, worst figure | misses | false verdicts |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        least = f"{1 - row['most_missed'] / row['shown']:.1%}" if row["shown"] else "–"
        lines.append(
            f"| {row['scenario']} | {row['words']} | {row['draws']:,} | {row['too_few']} | {row['shown']} | {least} "
            f"| {row['most_missed'] / seeds:.1%} | {row['false_verdicts']} |"
        )
    for each in answers:
        lines.append(
            f"\nAnswers with {each['draws']:,} draws for each of {each['estimators']} estimators: another was said "
            f"{each['said_behind']} times to make less progress than the one that was recommended, {each['wrong']} "
            f"times wrongly, in {each['wrong_answers']} of {seeds} answers."
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
