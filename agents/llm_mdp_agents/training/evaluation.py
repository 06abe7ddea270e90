"""How good a policy is: rewards on fixed questions, drawn and greedy; on small token MDPs the expectation itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm_mdp.exact.tree_gradient import node_logits, tree_values
from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.graded import columns, facts, graded
from llm_mdp_agents.training.mean_intervals import mean_interval
from llm_mdp_agents.training.questions import EvalQuestions, eval_questions
from llm_mdp_envs.episode import FINISH
from llm_mdp_envs.task import Task

EXACT_UP_TO = 20_000
"""Responses to all prompts together up to which the expected reward is computed rather than estimated."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    figures: dict[str, float]
    """Metrics, see `evaluation`."""
    samples: list[dict[str, Any]]
    """The first responses: prompt, response, reward, finish (one of `FINISH`), and the task's parts and details."""


def evaluate(policy: Policy, task: Task, prompts: int = 256, seed: int = 0) -> dict[str, float]:
    """The figures of `evaluation` on the questions that a run with this seed would be evaluated on.

    Args:
        prompts: how many questions at most.
        seed: of the questions and the draws; the same seed asks the same questions.

    Raises:
        ValueError: if there are no prompts, or the seed is no seed.
    """
    if prompts < 1:
        raise ValueError(f"prompts is {prompts}; an evaluation asks at least 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    return evaluation(policy, eval_questions(task, prompts, seed), seed).figures


@torch.no_grad()
def evaluation(policy: Policy, asked: EvalQuestions, seed: int = 0, shown: int = 0) -> Evaluation:
    """One response to every question, and the greedy response to every different one:

    - eval/reward: mean reward at temperature 1; eval/greedy_reward: of greedy responses; each with eval/…_low and
      …_high, an interval that holds with probability 0.95 over questions and draws (`mean_interval`; left out where it
      is undecided). A question that was drawn twice counts twice in the means, and once in the greedy interval.
    - eval/exact_reward: E RM where it can be computed.
    - eval/length, eval/truncated: tokens, and the share that the horizon cut.
    - eval/part/…, eval/detail/…: what the task says besides (`graded`).
    - eval/prompts: different questions; eval/held_out: 1 if training asks none of them, else 0.

    Args:
        seed: of the draws.
        shown: how many responses to give back in words.
    """
    task, number = asked.task, len(asked.questions)
    generator = torch.Generator().manual_seed(seed)
    sampler = TaskSampler(
        policy, task, generator, np.random.default_rng(0), number, ask=lambda _, n: list(asked.questions)
    )
    rollouts = sampler.rollouts(1)
    reward = sampler.response_reward(rollouts)
    known = columns(sampler.scores)
    once = asked.once()
    first = rollouts.mask & (rollouts.mask.cumsum(-1) == 1)
    first[~torch.isin(torch.arange(number), torch.tensor(list(once)))] = False
    greedy = sampler.branches(rollouts, first, (0.0,))
    mean = float(np.average(greedy.reward.numpy(), weights=[once[row] for row in greedy.row.tolist()]))
    figures = {
        **_with_interval("eval/reward", float(reward.mean()), reward.numpy(), task),
        **_with_interval("eval/greedy_reward", mean, greedy.reward.numpy(), task),
        "eval/length": float(rollouts.length.double().mean()),
        "eval/truncated": float((rollouts.finish == Finish.HORIZON).double().mean()),
        "eval/prompts": len(once),
        "eval/held_out": float(asked.held_out),
        **graded(known, "eval/"),
    }
    mdp = task.mdp
    if mdp is not None and mdp.tree.n_leaves * len(mdp.prompts) <= EXACT_UP_TO:
        figures["eval/exact_reward"] = expected_reward(policy, mdp)
    samples = [
        {
            "prompt": task.decode(asked.questions[row].prompt),
            "response": task.decode([token for token in rollouts.tokens[row].tolist() if token >= 0]),
            "reward": float(reward[row]),
            "finish": FINISH[int(rollouts.finish[row])],
            **facts(known, row),
        }
        for row in range(min(shown, number))
    ]
    return Evaluation(figures, samples)


@torch.no_grad()
def expected_reward(policy: Policy, mdp: Any) -> float:
    """E RM(W), exactly."""
    values = tree_values(mdp, node_logits(policy, mdp), mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens))
    return float(mdp.prompt_probability @ values.U[0][:, 0])


def _with_interval(name: str, mean: float, rewards: np.ndarray, task: Task) -> dict[str, float]:
    """The mean, and the edges of its interval."""
    edges = mean_interval(rewards, task.reward_range)
    if edges is None:
        return {name: mean}
    return {name: mean, f"{name}_low": min(edges[0], mean), f"{name}_high": max(edges[1], mean)}
