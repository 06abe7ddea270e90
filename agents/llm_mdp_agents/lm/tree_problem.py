"""Questions of a task to a language model that is restricted to a few tokens, as a problem that can be enumerated.

Its table of logits is what the model says at every prefix (`tree.PackedTree`), in float64; its rewards are what the
task gives every complete response. Whatever holds of an estimator on that table holds for every way to parametrise it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.exact.enumeration import MAX_LEAVES, TooLarge
from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PAD, PrefixTree, pad_prompts
from llm_mdp.sampling.policies import TabularPolicy, TabularValue
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.action_masks import task_mask
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.lm.tree import PackedTree, TreeLogp
from llm_mdp_envs.task import Question, Task
from llm_mdp_envs.text import Asked


@dataclass(frozen=True, eq=False)
class ModelProblem:
    """A language model on some questions, restricted to a few tokens."""

    problem: Problem
    """The table over the subset: token w of it is the w-th of `packed.tokens`."""
    packed: PackedTree
    covered: Float[Tensor, "P M"]
    """See `TreeLogp.covered`."""
    questions: tuple[str, ...]
    """What is asked, in words, and how the answer begins."""
    words: tuple[str, ...]
    """Every token of the subset as a text."""

    def at_group_size(self, group_size: int) -> Problem:
        """The problem with groups of this size; what is enumerated is shared."""
        if group_size not in self._sized:
            self._sized[group_size] = other = replace(self.problem, group_size=group_size)
            vars(other)["enumeration"] = self.problem.enumeration
        return self._sized[group_size]

    @cached_property
    def _sized(self) -> dict[int, Problem]:
        return {self.problem.group_size: self.problem}

    def covered_by_step(self) -> list[float]:
        """The share of the model's probability that the subset has at each step 1 … T: the mean over the prefixes that
        the restricted policy visits, in [0, 1]."""
        e = self.problem.enumeration
        reach = torch.cat(e.values.reach, dim=1) * e.mdp.prompt_probability[:, None]
        shares = (reach * self.covered).split(e.tree.level_sizes, dim=1)
        return [float(a.sum() / b.sum()) for a, b in zip(shares, reach.split(e.tree.level_sizes, dim=1))]


def model_problem(
    policy: LanguageModelPolicy,
    task: Task,
    questions: Sequence[Question],
    horizon: int,
    *,
    group_size: int = 3,
    beta: float = 0.7,
) -> ModelProblem:
    """The questions, asked equally often, to a policy that is restricted to a few tokens.

    The reference of KL penalties is the policy itself, as at the start of training; the wrong critic says 0.

    Args:
        policy: with a `token_subset` (`LanguageModelPolicy(tokens=…)`).
        horizon: T, at most the task's; a response ends at an end token of the task that is in the subset, or there.
        group_size: K ≥ 2 of the group estimators.

    Raises:
        TooLarge: more than MAX_LEAVES responses, before the model is read.
        ValueError: if two questions have the same prompt, the task has turns or masks, the horizon is longer than the
            task's, or the tree cannot be read (`PackedTree`).
    """
    name = type(task).__name__
    if task.max_turns > 1 or task.turn_ends:
        raise ValueError(f"{name} is a conversation of several turns; choose a task of one.")
    if task_mask(task) is not None:
        raise ValueError(f"{name} forbids tokens by an action mask of its own; choose a task without one.")
    if not 1 <= horizon <= task.horizon:
        raise ValueError(f"the horizon is {horizon}; {name} has responses of 1 … {task.horizon} tokens.")
    if len({question.prompt for question in questions}) < len(questions):
        raise ValueError("two questions have the same prompt; ask each once.")
    prompts = pad_prompts([question.prompt for question in questions])
    packed = PackedTree(policy, prompts, _end(policy, task), horizon)
    if packed.tree.n_leaves * len(questions) > MAX_LEAVES:
        raise TooLarge(
            f"{packed.tree.n_leaves * len(questions):,} responses ({len(packed.tokens)} tokens, horizon {horizon}, "
            f"{len(questions)} prompts) are too many to enumerate (at most {MAX_LEAVES:,}); take fewer tokens, fewer "
            f"prompts or a shorter horizon."
        )
    with torch.no_grad():
        found = packed.logp()
    instance = _instance(packed.tree, found, _rewards(packed, task, questions))
    asked = tuple(_in_words(task, question) for question in questions)
    words = tuple(task.decode([token]) for token in packed.tokens)
    return ModelProblem(Problem(instance, group_size, beta), packed, found.covered.double().cpu(), asked, words)


def _in_words(task: Task, question: Question) -> str:
    asked = question.secret
    if not isinstance(asked, Asked):
        return task.decode(question.prompt)
    text = asked.text if isinstance(asked.text, str) else str(asked.text[-1].get("content"))
    return f"{text} → {asked.beginning!r}" if asked.beginning else text


def _end(policy: LanguageModelPolicy, task: Task) -> int | None:
    """The task's end token that the policy may draw.

    Raises:
        ValueError: if there are several.
    """
    tokens = getattr(policy.token_subset, "tokens", ())
    ends = [token for token in task.ends if token in tokens]
    if len(ends) > 1:
        raise ValueError(f"{len(ends)} end tokens are in the subset, {ends}; keep one of them.")
    return ends[0] if ends else None


def _rewards(packed: PackedTree, task: Task, questions: Sequence[Question]) -> Float[Tensor, "P N"]:
    """What every complete response to every question is worth."""
    leaves = packed.tree.leaves
    written = torch.where(leaves == PAD, PAD, torch.tensor(packed.tokens)[leaves.clamp(min=0)])
    tokens = np.full((len(written), task.horizon), PAD, dtype=np.int64)
    tokens[:, : written.shape[1]] = written.numpy()
    return torch.stack(
        [
            torch.from_numpy(task.score([each] * len(tokens), tokens, tokens != PAD).reward).double()
            for each in questions
        ]
    )


def _instance(tree: PrefixTree, found: TreeLogp, reward: Float[Tensor, "P N"]) -> Instance:
    """The table of what the model says, and the rewards at the ends of the responses."""
    number, logp = len(reward), found.logp.detach().double().cpu()
    width = 0
    while tree.vocab_size**width < number:
        width += 1
    labels = [tuple(k // tree.vocab_size**place % tree.vocab_size for place in range(width)) for k in range(number)]
    prompts = tuple(Prompt(label, 1 / number) for label in labels)
    asked = pad_prompts(labels)
    levels = [level.transpose(1, 2).contiguous() for level in logp.split(tree.level_sizes, dim=1)]
    table = [torch.zeros_like(level) for level in levels]
    leaves = tree.leaves
    last = (leaves != PAD).sum(-1) - 1
    index, token = (each.gather(1, last[:, None])[:, 0] for each in (tree.prefix_index(leaves), leaves))
    for level, rewards in enumerate(table):
        here = last == level
        rewards[:, token[here], index[here]] = reward[:, here]
    mdp = TokenMDP(tree.vocab_size, tree.eos, tree.horizon, TableReward(tree, asked, table), prompts=prompts)
    value = TabularValue(tree, asked, [torch.zeros(number, size, dtype=torch.float64) for size in tree.level_sizes])
    policy, reference = (TabularPolicy(tree, asked, levels) for _ in range(2))
    return Instance(mdp, policy, reference, value, "language model")
