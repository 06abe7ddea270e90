"""Action masks of tasks in policies: what `env.step` refuses is never drawn, and what is drawn is scored as it was."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from llm_mdp.sampling.policies import Policy, PolicyModule, prefixes_of
from llm_mdp_envs.task import PAD, Task

CACHE_BYTES = 64 * 2**20
"""Most memory of the masks that are kept, of tasks that mask one response at a time."""


class TaskMask:
    """A task's action masks as a policy's `TokenMask`. After the end of a response everything is allowed."""

    def __init__(self, task: Task):
        self.task = task
        self._alone = type(task).action_masks is Task.action_masks
        self._kept = lru_cache(max(1, CACHE_BYTES // task.vocab_size))(self._one)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TaskMask":
        return self

    def __call__(self, prompt: Int[Tensor, "N L"], tokens: Int[Tensor, "N T"]) -> Bool[Tensor, "N V"]:
        horizon = self.task.horizon
        written = np.full((len(tokens), horizon), PAD, dtype=np.int64)
        written[:, : tokens.shape[1]] = tokens[:, :horizon].numpy()
        going = (written[:, -1] == PAD) & ~np.isin(written, self.task.ends).any(1)
        masks = np.ones((len(tokens), self.task.vocab_size), dtype=bool)
        if going.any():
            masks[going] = self._masks(prompt.numpy()[going], written[going])
        return torch.from_numpy(masks)

    def _masks(self, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray | bool:
        if not self._alone:
            masks = self.task.action_masks(prompts, tokens)
            return True if masks is None else masks != 0
        return np.array([self._kept(prompt.tobytes(), row.tobytes()) for prompt, row in zip(prompts, tokens)])

    def _one(self, prompt: bytes, tokens: bytes) -> np.ndarray:
        masks = self.task.action_masks(*(np.frombuffer(each, dtype=np.int64)[None] for each in (prompt, tokens)))
        assert masks is not None
        return masks[0] != 0


def task_mask(task: Task) -> TaskMask | None:
    """The task's masks; None: it allows everything."""
    nothing = np.zeros((0, task.prompt_length), dtype=np.int64), np.zeros((0, task.horizon), dtype=np.int64)
    return None if task.action_masks(*nothing) is None else TaskMask(task)


def tokens_written_with(task: Task, characters: str) -> list[int]:
    """The tokens that are written with these characters alone, and the task's end tokens.

    Raises:
        ValueError: if there are none beside the end tokens.
    """
    ends, known = {*task.ends, *task.turn_ends}, set(characters)
    words = (task.decode([token]) for token in range(task.vocab_size))
    found = [token for token, word in enumerate(words) if token in ends or (word and set(word) <= known)]
    if not set(found) - ends:
        raise ValueError(
            f"token_subset is {characters!r}, and {type(task).__name__} has no token that is written with these "
            f"characters alone; give the characters that responses may hold."
        )
    return found


def mask_policy(policy: Policy, mask: TaskMask | None) -> None:
    """Let a policy draw and score what a task allows, and nothing else.

    Raises:
        ValueError: if the policy knows no masks.
    """
    if mask is not None and not isinstance(policy, PolicyModule):
        raise ValueError(
            f"{type(mask.task).__name__} forbids some tokens by its action mask, and {type(policy).__name__} cannot "
            f"obey it; derive it from llm_mdp.sampling.policies.PolicyModule, which does."
        )
    for module in policy.modules() if isinstance(policy, nn.Module) else ():
        if isinstance(module, PolicyModule):
            module.action_mask = mask


def check_drawn(
    policy: Policy, mask: TaskMask, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], drawn: Bool[Tensor, "B T"]
) -> None:
    """Raise ValueError if one of the drawn tokens is forbidden: the policy, or the engine that drew for it, goes its
    own way."""
    vocab_size = mask.task.vocab_size
    for row, step in zip(*(each.split(max(1, CACHE_BYTES // vocab_size)) for each in drawn.nonzero().unbind(1))):
        chosen, allowed = tokens[row, step], mask(prompt[row], prefixes_of(tokens, row, step))
        inside = chosen < vocab_size
        fine = inside & allowed.gather(1, torch.where(inside, chosen, 0)[:, None])[:, 0]
        if not fine.all():
            place = int((~fine).nonzero()[0])
            raise ValueError(
                f"{type(policy).__name__}.sample drew the token {int(chosen[place])} at step {int(step[place])}, which "
                f"the action mask of {type(mask.task).__name__} forbids there; let it call `constrained` on the logits "
                f"that it draws from."
            )


def check_unchanging(mask: TaskMask, engine: str, responses: int = 8) -> None:
    """For engines that are told once a response what is allowed: raise ValueError if a task's mask changes from step to
    step. Tried on responses of tokens drawn at random; `check_drawn` sees the rest."""
    task, generator = mask.task, np.random.default_rng(0)
    for question in task.questions(generator, responses):
        prompt = torch.tensor([question.prompt], dtype=torch.int64)
        tokens = torch.full((1, task.horizon), PAD)
        first = mask(prompt, tokens)
        for step in range(task.horizon - 1):
            tokens[0, step] = int(generator.choice(np.flatnonzero(first[0].numpy())))
            if int(tokens[0, step]) in (*task.ends, *task.turn_ends):
                break
            if not torch.equal(mask(prompt, tokens), first):
                raise ValueError(
                    f"the action mask of {type(task).__name__} changes from step to step, and engine {engine} takes "
                    f"one for a whole response: use engine hf."
                )
