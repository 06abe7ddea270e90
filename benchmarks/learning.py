"""The paper's question, put to training: is one reward for a whole response enough, and which agent makes the most of a
token?

A small transformer (supervised warm start, the same for all) learns one-digit sums by reinforcement.

    python benchmarks/learning.py rewards      # the same agent sees every token's reward, their sum, or right / wrong
    python benchmarks/learning.py agents       # all agents, at equal generated tokens and equal number of updates
    python benchmarks/learning.py preferences  # PPO beside DPO and iterative DPO where every step counts (§5.1)
    python benchmarks/learning.py bias         # biased estimators beside their repair on a table: where each leads

Finished runs are kept in benchmarks/results/learning.json; a second call does only what is missing.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results

from llm_mdp.estimators.learned_credit import TokenCredit
from llm_mdp.estimators.returns import return_to_go
from llm_mdp.estimators.values import leave_one_out
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.adversary.search import Row, careful_paths
from llm_mdp.verify.claims import CLAIMS
from llm_mdp_agents.base import AgentConfig
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.evaluation import evaluate
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.training.warm_start import warm_start
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.synthetic import Tabular

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "learning.json"
DIGITS, UPDATES, TOKENS_PER_UPDATE, WARM_START, LEARNING_RATE, PROMPTS = 1, 100, 2500, 60, 1e-3, 256
SEEDS = {"rewards": 5, "agents": 3, "preferences": 3, "bias": 5}


TABULAR, TEMPERED = "tabular", "temperature-mismatch"
TABLE: dict[str, Any] = {"vocab_size": 3, "horizon": 3, "seed": 4}
"""Of the tables of seeds 0 to 39 the first on which all three biased estimators end below the exact gradient when they
are followed exactly."""
TABLE_UPDATES = 300


@dataclass(frozen=True)
class TokenRewards(TokenCredit):
    """What an agent could do that saw every token's reward: Aₜ = Σₖ≥ₜ rₖ less the mean of the other responses' from the
    same step on."""

    group_size: int = 8

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        return Evidence(rollouts, sampler.response_reward(rollouts), token_reward=sampler.hidden_reward(rollouts))

    def advantages(self, evidence):
        to_go = return_to_go(evidence.token_reward, evidence.rollouts.mask)
        return to_go - leave_one_out(to_go.transpose(-1, -2), self.group_size).transpose(-1, -2)


OPTIONS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1, "preference_temperature": 0.2},
    "iterative-dpo": {"beta": 0.1, "preference_temperature": 0.2, "refresh": 20},
    "rto": {"beta": 0.2, "dpo_batches": 60, "dpo_learning_rate": 1e-3, "kl": 0.2},
    "prime": {"threshold": 0.99, "process_learning_rate": 1e-4},
}
"""Where the defaults do not fit rewards in [0, 1]."""


def config_of(agent: str) -> AgentConfig | TokenCredit:
    if agent == "token rewards":
        return TokenRewards()
    name, _, variant = agent.partition(" ")
    if variant == "budget":  # a pilot batch decides how a batch's tokens are split
        return AGENTS[name].Config(budget=float(TOKENS_PER_UPDATE))
    options = OPTIONS.get(name, {}) | ({"variant": variant} if variant else {})
    return AGENTS[name].Config(**options)


def cells() -> dict[str, list[tuple[str, str]]]:
    """(agent, reward) of each run."""
    zoo = [*AGENTS, "grpo dr-grpo", "grpo dapo", "trepo paper", "trepo budget"]
    return {
        "rewards": [("token rewards", "sum"), ("rloo", "sum"), ("rloo", "outcome")],
        "agents": [(name, "sum") for name in zoo],
        "bias": [(name, TABULAR) for name in ("reinforce", "length-normalised", "masked-truncated", TEMPERED)],
        "preferences": [(name, "outcome") for name in ("ppo", "dpo", "iterative-dpo")],
    }


def learn(agent: str, reward: str, seed: int) -> dict[str, Any]:
    """One run: how right the policy is after how many generated tokens."""
    if reward == TABULAR:
        return learn_table(agent, seed)
    task = Arithmetic(digits=DIGITS, reward=reward)
    policy = build_policy(ModelConfig("small"), task, seed)
    warm_start(policy, task, WARM_START, seed)
    config = config_of(agent)
    prompts = (
        None
        if agent == "trepo budget"
        else max(2, round(TOKENS_PER_UPDATE / tokens_a_prompt(config, policy, task, seed)))
    )
    options = TrainConfig(
        steps=UPDATES,
        prompts_per_step=prompts,
        learning_rate=LEARNING_RATE,
        warm_up_steps=10,
        seed=seed,
        signal_every=0,
    )
    trainer = Trainer(build_agent(config, policy, task, seed), task, policy, options)
    trainer.prepare()
    curve = []
    while trainer.number < UPDATES:
        if trainer.number % 10 == 0:
            curve.append(point(trainer))
        trainer.step()
    curve.append(point(trainer))
    prompts = trainer.sampler.prompts_per_batch
    return {"agent": agent, "reward": reward, "seed": seed, "prompts_per_step": prompts, "curve": curve}


def learn_table(agent: str, seed: int) -> dict[str, Any]:
    """One run on a table, from the uniform policy, by plain stochastic gradients: exact J after how many updates."""
    task = Tabular(**TABLE)
    policy = build_policy(ModelConfig("tabular"), task, seed)
    options = TrainConfig(
        steps=TABLE_UPDATES,
        prompts_per_step=128,
        optimizer="SGD",
        learning_rate=0.5,
        max_grad_norm=1e9,
        seed=seed,
        signal_every=0,
    )
    trainer = Trainer(build_agent(agent, policy, task, seed), task, policy, options)
    trainer.prepare()
    curve = []
    while trainer.number <= TABLE_UPDATES:
        if trainer.number % 10 == 0:
            curve.append({"updates": trainer.number, "J": exact_gradient(trainer.policy, task.mdp)[0]})
        if trainer.number == TABLE_UPDATES:
            break
        trainer.step()
    return {"agent": agent, "reward": TABULAR, "seed": seed, "table": TABLE, "curve": curve}


def exact_end(agent: str) -> float:
    """J where the estimator leads from the uniform policy when E g is followed."""
    instance = random_instance(**TABLE)
    start = TabularPolicy.random(instance.mdp.tree, instance.mdp.prompt_tokens, torch.Generator(), 0.0)
    claim = next(claim for claim in CLAIMS if claim.id == agent)
    both = careful_paths(Row(claim.build), replace(instance, policy=start))
    return float(both.figures(both.row.end).J)


def tokens_a_prompt(config: Any, policy: Any, task: Arithmetic, seed: int) -> float:
    """What a prompt costs this agent, measured on a few."""
    agent = build_agent(config, policy, task, seed)
    sampler = TaskSampler(agent.behaviour, task, agent.generator, np.random.default_rng(seed), 16)
    agent.collect(sampler)
    return sampler.cost.tokens / 16


def point(trainer: Trainer) -> dict[str, float]:
    """The share of right sums and of right digits, drawn and greedy; tokens so far, those of the preparation
    included."""
    figures: dict[str, float] = {"tokens": trainer.sampler.cost.tokens, "rewards": trainer.sampler.cost.rewards}
    for reward in ("outcome", "sum"):
        found = evaluate(trainer.policy, Arithmetic(digits=DIGITS, reward=reward), PROMPTS, 1000)
        figures |= {f"{reward}": found["eval/reward"], f"{reward}_greedy": found["eval/greedy_reward"]}
    return figures


def known() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SEEDS, nargs="+")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    done = known()
    keys = {(run["agent"], run["reward"], run["seed"]) for run in done}
    wanted = [(*cell, seed) for what in arguments.what for seed in range(SEEDS[what]) for cell in cells()[what]]
    missing = [cell for cell in dict.fromkeys(wanted) if cell not in keys]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for run in pool.map(learn, *zip(*missing)) if missing else ():
            done.append(run)
            setting = {
                "digits": DIGITS,
                "updates": UPDATES,
                "tokens_per_update": TOKENS_PER_UPDATE,
                "learning_rate": LEARNING_RATE,
            }
            write_results(RESULTS, ("torch", "transformers"), {**setting, "runs": done})
            last = run["curve"][-1]
            if "J" in last:
                print(f"{run['agent']:<24}{run['seed']}  J {last['J']:.3f}", flush=True)
                continue
            print(
                f"{run['agent']:<16}{run['reward']:<9}{run['seed']}  sums {last['outcome']:.3f}  digits "
                f"{last['sum']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
