"""The picture of the whole project: every agent on every small environment and diagnostic, at equal generated tokens.

    python benchmarks/zoo.py                 # what is missing; at most 90 minutes on two cores
    python benchmarks/zoo.py --quick         # a fiftieth of the tokens, one seed, into --output: does it run?

A cell is one run: an agent with its default options, one environment, one seed. All agents have the same number of
generated tokens there, those of critics', reward models' and preference models' preparation and of branches included,
in batches of the same size; an agent that needs more tokens for a prompt asks fewer prompts. Its figure is the share
of the way:

    share = (RM after - RM before) / (best RM - RM before)

RM is exact on token MDPs, else the mean of 1,000 responses at temperature 1; best is computed by the task. What is
shown is the mean over seeds with its 95 % interval (Student's t).

Before the first cell, the script writes down which cells will fail, and why: by the certificate of the agent's defaults
or by what the environment was built to separate (`PREDICTED_TO_FAIL`). A cell fails if its interval lies below three
quarters of what the column's best agent reached, does not fail if it lies above, and is undecided else. The tokens of a
column were set after trial runs, mostly of rloo, so that the plainest agent comes far: after one of five agents,
Needle's were raised from 30,000 to 80,000 and RareSuccess's lowered from 100,000 to 60,000, where agents that are
marked to fail had learned. One trial of six columns was seen whole. Ngram's were cut to a third with its batch, where
critics took 180 CPU-seconds a cell. The predictions were not touched then; two reasons on Arithmetic come from
learning.json.

Every finished cell is a row of benchmarks/results/zoo.json: a killed script goes on where it was, in another clone too.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from machine import finished, recorded_in, write_results
from zoo_report import share_of

from llm_mdp.exact.ngram_gradient import reward_moments
from llm_mdp.sampling.policies import NgramPolicy, Policy
from llm_mdp_agents.base import AgentConfig
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.evaluation import expected_reward
from llm_mdp_agents.training.trainer import NonFinite, TrainConfig, Trainer
from llm_mdp_agents.training.warm_start import warm_start
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.registry import ENTRIES, make_task
from llm_mdp_envs.task import Task
from llm_mdp_envs.tasks.arithmetic import Arithmetic

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo.json"
SEEDS, EVAL_RESPONSES, QUICK = 3, 1000, 50
COSTED = 256
"""Responses on which it is measured what a prompt costs. With four, a seed whose four were short got batches four times
as large, and so few updates (8 instead of 34) that PPO and its kin seemed to fail."""
OWN_SEED = 1000
"""Of the responses that are judged; no run is trained with it."""


@dataclass(frozen=True)
class Setting:
    """A column: an environment and how long agents have for it."""

    tokens: int
    """Generated in all."""
    batch: int
    """Generated for one update."""
    arguments: dict[str, Any]
    learning_rate: float
    warm_start: int = 0
    """Supervised batches, the same ones for all agents."""


TABLE = 0.05
SETTINGS = {
    "Tabular": Setting(40_000, 600, {}, TABLE),
    "Ngram": Setting(500_000, 5_000, {}, TABLE),
    "Needle": Setting(80_000, 600, {}, TABLE),
    "Credit": Setting(30_000, 600, {}, TABLE),
    "Forked": Setting(40_000, 600, {}, TABLE),
    "LengthBias": Setting(30_000, 600, {}, TABLE),
    "RareSuccess": Setting(60_000, 1_000, {}, TABLE),
    "Arithmetic": Setting(150_000, 2_500, {"digits": 1}, 1e-3, warm_start=60),
    "Consultation": Setting(150_000, 2_500, {"restricted": True}, 2e-3),
    "GuessNumber": Setting(150_000, 2_500, {"highest": 10, "max_turns": 4}, 2e-3),
}
"""Columns, in the order of the registry."""

OPTIONS: dict[str, dict[str, Any]] = {"rto": {"dpo_batches": 20}}
"""Where an agent's defaults would spend all tokens before its first update."""

WHOLE = "one reward for the whole response, which a uniform policy earns once in 1,024"
PAIRS = "pairs are drawn before training, and hardly one of them holds a success"
FORK = "its baseline belongs to the prompt: off by half the fork's height on either side"
THRESHOLD = "biased: whatever earns more than 0.5 is a success, and the best is no better than that"
BRANCHES = "unbiased, but branches take the tokens of most prompts"
BEGINNING = "biased: it learns from what the policy writes before training, which is hardly ever good"
PREDICTED_TO_FAIL: dict[str, dict[str, str]] = {
    "Tabular": {"prime": THRESHOLD},
    "Ngram": {
        "prime": THRESHOLD,
        "dpo": "biased: it is told which of two responses is better, not by how much",
        "iterative-dpo": "biased: it is told which of two responses is better, not by how much",
        "rto": "biased: its rewards come from a model that is told which response is better, not by how much",
        "vineppo": BRANCHES,
        "trepo": BRANCHES,
    },
    "Forked": {"reinforce": FORK, "rloo": FORK, "remax": FORK, "grpo": FORK, "abc": FORK, "prime": THRESHOLD},
    "RareSuccess": {
        "reinforce": WHOLE,
        "rloo": WHOLE,
        "remax": WHOLE,
        "ppo": WHOLE,
        "ma-rlhf": WHOLE,
        "abc": WHOLE,
        "r3hf": WHOLE,
        "prime": WHOLE,
        "dpo": PAIRS,
        "iterative-dpo": PAIRS,
        "rto": PAIRS,
    },
    "Arithmetic": {
        "prime": THRESHOLD,
        "vineppo": BRANCHES,
        "iterative-dpo": "biased: it drifts with its reference (benchmarks/learning.py saw it)",
        "rto": "biased: it follows the errors of its DPO model (benchmarks/learning.py saw it)",
    },
    "Consultation": {"dpo": BEGINNING, "rto": BEGINNING, "vineppo": BRANCHES},
    "GuessNumber": {"dpo": BEGINNING, "rto": BEGINNING, "vineppo": BRANCHES},
}
"""By environment and agent, written before the first run. Not marked: Needle, Credit (eight steps make one reward for
all tokens slower, no more), LengthBias (what GRPO makes long there, its wrong responses, costs no reward)."""


def task_of(env: str) -> Task:
    entry = next(entry for entry in ENTRIES if entry.id == f"llm_mdp/{env}-v0")
    return make_task(entry.task, **entry.kwargs, **SETTINGS[env].arguments)


def config_of(agent: str) -> AgentConfig:
    return AGENTS[agent].Config(**OPTIONS.get(agent, {}))


def identity(env: str, agent: str, seed: int, part: int = 1) -> dict[str, Any]:
    """All that a cell's figures depend on, but the code.

    Args:
        part: of the tokens, one in so many.
    """
    setting = SETTINGS[env]
    return {
        "env": env, "agent": agent, "seed": seed, "tokens": max(setting.tokens // part, 3 * setting.batch // part),
        "batch": max(setting.batch // part, 1), "arguments": setting.arguments, "learning_rate": setting.learning_rate,
        "warm_start": setting.warm_start, "options": OPTIONS.get(agent, {}),
    }  # fmt: skip


def play(cell: dict[str, Any]) -> dict[str, Any]:
    """One run: what the policy earns before and after."""
    torch.set_num_threads(1)
    began, env, seed = time.process_time(), cell["env"], cell["seed"]
    task, config = task_of(env), config_of(cell["agent"])
    policy = build_policy(ModelConfig(), task, seed)
    if cell["warm_start"]:
        warm_start(policy, task, cell["warm_start"], seed)
    options = TrainConfig(
        prompts_per_step=max(1, round(cell["batch"] / tokens_a_prompt(config, policy, task, seed))),
        learning_rate=cell["learning_rate"], seed=seed, signal_every=0,
    )  # fmt: skip
    trainer = Trainer(build_agent(config, policy, task, seed), task, policy, options)
    before, stopped = reward_of(policy, task), None
    try:
        trainer.prepare()
        while trainer.sampler.cost.tokens < cell["tokens"]:
            trainer.step()
    except NonFinite as error:
        stopped = str(error)
    found = {
        "before": before, "after": reward_of(policy, task), "best": best_of(task), "updates": trainer.number,
        "prompts_per_step": options.prompts_per_step, "generated": trainer.sampler.cost.tokens, "stopped": stopped,
        "cpu_seconds": round(time.process_time() - began, 2),
    }  # fmt: skip
    return cell | found


def tokens_a_prompt(config: AgentConfig, policy: Policy, task: Task, seed: int) -> float:
    """What a prompt costs this agent, measured on `COSTED` responses."""
    agent = build_agent(config, policy, task, seed)
    prompts = max(COSTED // agent.group_size, 1)
    sampler = TaskSampler(agent.behaviour, task, agent.generator, np.random.default_rng(seed), prompts)
    agent.collect(sampler)
    return sampler.cost.tokens / prompts


def reward_of(policy: Policy, task: Task) -> float:
    """E RM(W), exact on token MDPs."""
    if task.mdp is not None:
        exact = reward_moments(policy, task.mdp)[0] if isinstance(policy, NgramPolicy) else None
        return expected_reward(policy, task.mdp) if exact is None else exact
    generator = torch.Generator().manual_seed(OWN_SEED)
    sampler = TaskSampler(policy, task, generator, np.random.default_rng(OWN_SEED), EVAL_RESPONSES)
    return float(sampler.response_reward(sampler.rollouts(1)).mean())


def best_of(task: Task) -> float:
    """What the task computes; 1 for right sums, which are worth that."""
    return 1.0 if isinstance(task, Arithmetic) else cast(Any, task).best_reward()


def certified() -> dict[str, dict[str, Any]]:
    """The exact certificate of every agent's options here."""
    rows = {}
    for name, agent in AGENTS.items():
        own = own_certificate(agent, config_of(name))
        found = own.certificate
        rows[name] = {
            "verdict": found.verdict, "relative_bias": found.relative_bias, "cosine": found.cosine, "place": own.place,
        }  # fmt: skip
    return rows


def document(cells: list[dict[str, Any]], certificates: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": " ".join(["python", *sys.argv]), "agents": list(AGENTS), "environments": list(SETTINGS),
        "certificates": certificates, "predicted_to_fail": PREDICTED_TO_FAIL, "cells": cells,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--minutes", type=float, default=90, help="no cell begins later")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the tokens, one seed")
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS), default=list(AGENTS))
    parser.add_argument("--envs", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick and options.output == RESULTS:
        parser.error("--quick needs an --output of its own; the figures of short runs are not the picture.")
    part, seeds = (QUICK, 1) if options.quick else (1, SEEDS)
    # All of a seed first, so that a run that is cut off is a whole picture of fewer seeds.
    wanted = [
        identity(env, agent, seed, part) for seed in range(seeds) for env in options.envs for agent in options.agents
    ]
    recorded = recorded_in(options.output, "cells")
    done = {n: found for n, cell in enumerate(wanted) if (found := finished(cell, recorded))}
    others = [cell for cell in recorded if place_of(cell) not in map(place_of, wanted)]
    certificates = certified()

    def write(cells: list[dict[str, Any]]) -> None:
        write_results(options.output, ("torch", "transformers"), document([*others, *cells], certificates))

    fill(wanted, done, options.jobs, 60 * options.minutes, write)


def place_of(cell: dict[str, Any]) -> tuple[str, str, int]:
    """Where in the picture, and which seed."""
    return cell["env"], cell["agent"], cell["seed"]


def fill(
    wanted: list[dict[str, Any]], done: dict[int, dict[str, Any]], jobs: int, seconds: float,
    write: Callable[[list[dict[str, Any]]], None],
) -> None:  # fmt: skip
    """Run the cells that are missing, and write them all after each."""
    begun = time.monotonic()
    write([done[number] for number in sorted(done)])
    missing = [number for number in range(len(wanted)) if number not in done]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {}
        while missing or waiting:
            while missing and len(waiting) < jobs and time.monotonic() - begun < seconds:
                number = missing.pop(0)
                waiting[pool.submit(play, wanted[number])] = number
            if not waiting:
                print(f"{len(missing)} cells are left; the same command goes on with them.")
                return
            for future in as_completed(list(waiting)):
                number = waiting.pop(future)
                done[number] = found = future.result()
                write([done[number] for number in sorted(done)])
                print(
                    f"{len(done)}/{len(wanted)} {found['env']:<13}{found['agent']:<14}{found['seed']}  share "
                    f"{share_of(found):6.3f}  {found['updates']} updates, {found['generated']:,} tokens, "
                    f"{found['cpu_seconds']:.1f} CPU-s",
                    flush=True,
                )
                break


if __name__ == "__main__":
    main()
