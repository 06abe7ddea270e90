"""Tasks of ours in TRL's GRPOTrainer: `rollout_func`, rewards and data set of any task, of one turn or several.

    rollouts = rollout_of(GuessNumber(highest=10))
    GRPOTrainer(model, reward_funcs=rollouts.reward, rollout_func=rollouts, train_dataset=rollouts.dataset(), …)

Tokens are the task's, exactly: nothing is decoded and encoded again.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from llm_mdp.own import UsageError
from llm_mdp_agents.action_masks import task_mask
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_envs.task import Task


def rollout_of(task: Task, questions: int = 256, seed: int = 0, begin: int | None = None) -> "TaskRollouts":
    """What TRL needs to train on a task.

    Args:
        questions: that are asked, again and again.
        seed: of the questions and of the policy's tokens.
        begin: token id before every prompt; None: nothing is put there, so that no prompt may be empty.

    Raises:
        UsageError: a task with action masks, which TRL does not know when it scores; an empty prompt.
    """
    if task_mask(task) is not None:
        raise UsageError(
            f"{type(task).__name__} forbids tokens, and TRL scores responses as if all were allowed; train it with "
            "`llm-mdp train`."
        )
    return TaskRollouts(task, questions, seed, begin)


class TaskRollouts:
    """A `rollout_func`: responses to the questions that TRL asks for by their numbers, drawn by the model that trains.

    Its output has, beside what TRL wants, env_mask (1 where the policy wrote the token), task_reward and finish.
    """

    def __init__(self, task: Task, questions: int, seed: int, begin: int | None):
        self.task, self.begin = task, begin
        self.generator, asked = streams([seed])
        self.questions = task.questions(asked, questions)
        if begin is None and any(not question.prompt for question in self.questions):
            raise UsageError(f"a prompt of {type(task).__name__} is empty; give begin, the id of a token before it.")

    def dataset(self) -> Any:
        """The numbers of the questions, as TRL's data set."""
        from datasets import Dataset

        return Dataset.from_dict({"prompt": [str(number) for number in range(len(self.questions))]})

    def reward(self, task_reward: Sequence[float], **_: Any) -> list[float]:
        """TRL's reward function: what the task said when the response was drawn."""
        return list(task_reward)

    def tokenizer(self) -> Any:
        """One word a token of the task, as many as the task has: decoding is for people only."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(
            models.WordLevel({str(token): token for token in range(self.task.vocab_size)}, unk_token="0")
        )
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        last = str(self.task.vocab_size - 1 if self.task.eos is None else self.task.eos)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=last, pad_token=last, padding_side="left")

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Each question as often as it comes, which is num_generations times in a row."""
        numbers, sizes = zip(*((int(number), len(list(rows))) for number, rows in groupby(prompts)))
        if len(set(sizes)) > 1:
            raise UsageError(f"questions come {sizes} times in a row; TRL's batches should hold whole groups.")
        model = trainer.accelerator.unwrap_model(trainer.model)
        rows = model.get_input_embeddings().weight.shape[0]
        if rows != self.task.vocab_size:
            raise UsageError(
                f"the model has {rows} tokens and {type(self.task).__name__} {self.task.vocab_size}; TRL scores "
                "responses among all of the model's, so make them equal."
            )
        was = model.training
        policy = LanguageModelPolicy(model, rows, self.begin, temperature=trainer.temperature)
        try:
            return self._drawn(policy, [self.questions[number] for number in numbers], sizes[0])
        finally:
            model.train(was)

    def _drawn(self, policy: LanguageModelPolicy, asked: list[Any], group_size: int) -> dict[str, list[Any]]:
        sampler = TaskSampler(
            policy, self.task, self.generator, np.random.default_rng(0), len(asked), ask=lambda *_: asked
        )
        with torch.no_grad():
            rollouts = sampler.rollouts(group_size)
        lengths = (rollouts.tokens >= 0).sum(-1).tolist()

        def cut(values: torch.Tensor) -> list[list[Any]]:
            return [row[:length] for row, length in zip(values.tolist(), lengths)]

        first = [] if self.begin is None else [self.begin]
        return {
            "prompt_ids": [[*first, *question.prompt] for question in asked for _ in range(group_size)],
            "completion_ids": cut(rollouts.tokens),
            "logprobs": cut(rollouts.logp),
            "env_mask": cut(rollouts.mask.long()),
            "task_reward": sampler.response_reward(rollouts).tolist(),
            "finish": rollouts.finish.tolist(),
        }
