"""Supervised batches before reinforcement: maximum likelihood on a task's own answers, for policies that begin from
nothing."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.action_masks import mask_policy, task_mask
from llm_mdp_agents.optimizers import OptimizerWithMasters
from llm_mdp_envs.task import Question, Task
from llm_mdp_envs.turns import mask_of

WARM_START = 200
"""Supervised batches for a small transformer from scratch, if nothing else is said."""
ROWS = 128
"""Demonstrations of a batch."""


def has_answers(task: Task) -> bool:
    """Does the task know the right responses? (Arithmetic without a scratchpad does, and conversations with tools.)"""
    return task.answers(task.questions(np.random.default_rng(0), 1)) is not None


def check_answers(task: Task) -> None:
    """Raise ValueError if the task has no answers to learn from."""
    if not has_answers(task):
        raise ValueError(
            f"{type(task).__name__} has no answers to learn from; leave --warm-start out, or begin with a trained "
            f"--model."
        )


def batches_of(asked: int | None, task: Task, model: str | None) -> int:
    """How many supervised batches a policy begins with: as many as are asked for; where nobody says, `WARM_START` for a
    transformer from scratch on a task with answers, else none.

    Args:
        model: what the policy is made from; None: it is there already.

    Raises:
        ValueError: if there cannot be so many.
    """
    if asked is None:
        from_scratch = model in ("auto", "small") and task.mdp is None
        return WARM_START if from_scratch and has_answers(task) else 0
    if asked < 0:
        raise ValueError(f"warm_start is {asked}; it is a number of batches, at least 0.")
    if asked:
        check_answers(task)
    return asked


def warm_up(policy: Policy, task: Task, model: str | None, batches: int | None, seed: int) -> None:
    """Supervised batches as training would begin with.

    Args:
        model: what the policy is made from; None: a run trained it, and it needs none.
        batches: how many; None: as many as training would.

    Raises:
        ValueError: if some are asked for and the task has no answers to learn from.
    """
    if batches := batches_of(batches, task, model):
        warm_start(policy, task, batches, seed)


def demonstrations(task: Task, questions: list[Question]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts (N, L), right responses (N, T), and which of their tokens the policy wrote (N, T): what the environment
    says in a conversation is nothing to learn."""
    number = len(questions)
    answers, right = np.full((number, task.horizon), PAD), task.answers(questions)
    assert right is not None
    answers[:, : right.shape[1]] = right
    mask = answers != PAD
    if task.end_of_turn is not None:
        for row, question in enumerate(questions):
            mask[row, mask[row]] = mask_of(task, question, answers[row, mask[row]])
    return pad_prompts([question.prompt for question in questions]), torch.from_numpy(answers), torch.from_numpy(mask)


def warm_start(
    policy: Policy,
    task: Task,
    batches: int,
    seed: int,
    learning_rate: float = 1e-3,
    progress: Callable[[float], None] = lambda loss: None,
    ask: Callable[[np.random.Generator, int], list[Question]] | None = None,
) -> None:
    """-Σ log π(right token) / number of tokens, AdamW.

    Args:
        ask: the next n questions; None: draws of the task.

    Raises:
        ValueError: if the task has no answers to learn from, or they hold tokens that the policy may not draw.
    """
    check_answers(task)
    assert isinstance(policy, nn.Module)
    mask_policy(policy, task_mask(task))
    optimizer = OptimizerWithMasters([([p for p in policy.parameters() if p.requires_grad], learning_rate)])
    generator = np.random.default_rng([seed, 2])
    for _ in range(batches):
        prompt, tokens, mask = demonstrations(task, (ask or task.questions)(generator, ROWS))
        logp = policy(prompt, tokens, mask)
        if (forbidden := tokens[logp == -torch.inf]).numel():
            raise ValueError(
                f"an answer of {type(task).__name__} holds {task.decode([int(forbidden[0])])!r}, which the policy may "
                f"not draw; allow it in token_subset, or leave the warm start out."
            )
        loss = -logp.sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.take_gradients()
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step()
        progress(float(loss.detach()))
