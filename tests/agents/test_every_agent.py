"""Every agent of the zoo learns: from the uniform policy to at least 95 % of the way to the optimum of its objective,
over three seeds.

The task is `Tabular` with its defaults (four tokens, at most four of them, a random reward for every prefix), the
policy a table, so nothing but the algorithm can be in the way. All runs have 16 prompts a batch (64 for RTO) and AdamW;
the table says the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.optima import regularised_optimum
from llm_mdp.sampling.policies import Policy, TabularPolicy
from llm_mdp_agents.training.evaluation import expected_reward
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular, optimum

SEEDS = (0, 1, 2)
"""Of the task, the draws and the auxiliary models."""

Objective = tuple[Callable[[Policy], float], float]
"""What is maximised, and its largest value."""


def reward(task: Tabular, reference: TabularPolicy) -> Objective:
    """E RM."""
    return lambda policy: expected_reward(policy, task.mdp), optimum(task)


def penalised(beta: float) -> Callable[[Tabular, TabularPolicy], Objective]:
    """E RM - β KL(π ‖ reference)."""

    def objective(task, reference):
        held = Enumeration(task.mdp, reference).leaf_logp().sum(-1)

        def J(policy):
            e = Enumeration(task.mdp, policy)
            return float((e.probability * (e.response_reward - beta * (e.leaf_logp().sum(-1) - held))).sum())

        return J, J(regularised_optimum(task.mdp, reference, beta))

    return objective


def threshold(task: Tabular) -> float:
    """Nine of ten responses of the list are worth at most this."""
    e = Enumeration(task.mdp, uniform(task))
    return float(e.response_reward.quantile(0.9))


def success(task: Tabular, reference: TabularPolicy) -> Objective:
    """P(RM > threshold)."""
    bar = threshold(task)

    def chance(policy):
        e = Enumeration(task.mdp, policy)
        return float((e.probability * (e.response_reward > bar)).sum())

    return chance, 1.0


def uniform(task: Tabular) -> TabularPolicy:
    return TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator(), scale=0.0)


@dataclass(frozen=True)
class Run:
    """How an agent is trained here, and what it must reach."""

    agent: str
    tokens: int
    """Budget: at most so many are generated, preparation and branches included."""
    batches: int = 80
    learning_rate: float = 0.07
    options: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[Tabular, TabularPolicy], Objective] = reward
    prompts: int = 16


RUNS = {
    "reinforce": Run("reinforce", 40_000),
    "rloo": Run("rloo", 40_000),
    "remax": Run("remax", 80_000, options={"group_size": 8}),
    "grpo": Run("grpo", 40_000),
    "grpo dr-grpo": Run("grpo", 40_000, options={"variant": "dr-grpo"}),
    "ppo": Run("ppo", 45_000, options={"group_size": 8}),
    "vineppo": Run("vineppo", 190_000, 110, 0.05, {"group_size": 2}),
    "trepo": Run("trepo", 100_000, options={"group_size": 2, "samples": 4}),
    "ma-rlhf": Run("ma-rlhf", 45_000, options={"group_size": 8}),
    "dpo": Run("dpo", 90_000, 120, 0.1, {"beta": 1.0, "group_size": 16}, penalised(1.0)),
    "iterative-dpo": Run(
        "iterative-dpo", 42_000, 90, 0.1, {"beta": 1.0, "reference": "stays", "group_size": 8}, penalised(1.0)
    ),
    "iterative-dpo, reference moves": Run("iterative-dpo", 40_000, 80, 0.1, {"beta": 0.5, "group_size": 8}),
    "rto": Run("rto", 360_000, 40, 0.1, {"dpo_batches": 800, "dpo_learning_rate": 0.02}, prompts=64),
    "abc": Run("abc", 45_000),
    "r3hf": Run("r3hf", 45_000, options={"group_size": 8}),
    "prime": Run("prime", 40_000, options={"process_learning_rate": 0.01}, objective=success),
    "rloo, kl": Run("rloo", 40_000, options={"kl": 1.0}, objective=penalised(1.0)),
    "trepo, kl": Run("trepo", 200_000, options={"kl": 1.0, "group_size": 4, "samples": 4}, objective=penalised(1.0)),
    "ppo, kl": Run("ppo", 45_000, options={"kl": 1.0, "lam": 1.0, "group_size": 8}, objective=penalised(1.0)),
}

CHEAP = ("reinforce", "rloo", "remax", "grpo", "vineppo", "trepo", "dpo", "iterative-dpo", "prime", "rloo, kl")
"""Runs without a transformer beside the table, which the fast suite trains with one seed."""
CASES = [
    pytest.param(name, seed, marks=[] if seed == SEEDS[0] and name in CHEAP else [pytest.mark.slow])
    for name in RUNS
    for seed in SEEDS
]


def test_every_agent_has_a_run():
    assert {run.agent for run in RUNS.values()} == set(AGENTS)


@pytest.mark.parametrize("name, seed", CASES)
def test_every_agent_reaches_the_optimum_of_its_objective(name, seed):
    run, task = RUNS[name], Tabular(seed=seed)
    policy, reference = uniform(task), uniform(task)
    options = run.options | ({"threshold": threshold(task)} if run.objective is success else {})
    agent = AGENTS[run.agent](AGENTS[run.agent].Config(**options), policy, task, seed)
    config = TrainConfig(prompts_per_step=run.prompts, learning_rate=run.learning_rate, signal_every=0, seed=seed)
    trainer = Trainer(agent, task, policy, config)
    J, best = run.objective(task, reference)
    start = J(policy)
    assert best > start + 0.1
    trainer.prepare()
    assert J(policy) == start, "preparation leaves the policy alone"
    for _ in range(run.batches):
        trainer.step()
    assert (J(policy) - start) / (best - start) >= 0.95
    assert trainer.sampler.cost.tokens <= run.tokens
