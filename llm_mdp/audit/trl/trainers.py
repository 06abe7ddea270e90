"""TRL: the loss of `GRPOTrainer` and `RLOOTrainer`, and the advantages that they put into a batch.

The trainers are TRL's own, built once an option on a GPT-2 of a few weights that never runs. Three of their methods are
replaced, those that draw responses, read log-probabilities off the model and call reward functions; they answer with
what is in the batch. What turns this into advantages and a loss, `_generate_and_score_completions` and `_compute_loss`,
is TRL's.
"""

import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Finish
from llm_mdp.verify.weights import EstimatorError

GRPO, RLOO = "GRPOTrainer", "RLOOTrainer"
KNOWN = ">=1.16,<1.17"
REPLACED = ("_generate", "_get_per_token_logps_and_entropies", "_calculate_rewards")
OWN = ("_generate_and_score_completions", "_compute_loss")
EOS, PAD, FIRST = 0, 1, 2
"""Ids of the end and of padding; a token w of the batch is w + FIRST."""
PER_TOKEN = 0.1
"""What the second reward function takes for every token, where there are two."""

NO_ENTROPIES = "it reads the entropy of the policy at every prefix, which a batch of responses does not hold"

Options = tuple[tuple[str, Any], ...]


def loss(kind: str, options: Options, batch: Batch) -> Tensor:
    """What the trainer of this name minimises in one update on the batch."""
    trainer = trainer_of(kind, options, batch.group_size, batch.mask.shape[1])
    with holding(trainer, batch, REPLACED):
        return trainer._compute_loss(trainer.model, _scored(trainer, batch))


def advantages(kind: str, options: Options, batch: Batch) -> Tensor:
    """What the trainer of this name puts into its batch as advantages, (B,)."""
    trainer = trainer_of(kind, options, batch.group_size, batch.mask.shape[1])
    with holding(trainer, batch, ("_generate", "_calculate_rewards")):
        return _scored(trainer, batch)["advantages"]


def _scored(trainer: Any, batch: Batch) -> dict[str, Tensor]:
    return trainer._generate_and_score_completions([{"prompt": ""} for _ in batch.response_reward])


@contextmanager
def holding(trainer: Any, batch: Batch, needed: Sequence[str]) -> Iterator[None]:
    """The trainer reads this batch meanwhile, and keeps nothing of it.

    Casts to single precision are not lifted inside, which would take most of the time: of what decides a gradient TRL
    makes none, and a test says so.

    Raises:
        UsageError: if it does not ask for what these methods give.
    """
    trainer.batch, trainer.asked = batch, set()
    try:
        with warnings.catch_warnings(), torch._C.DisableTorchFunction():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, for names that TRL uses
            yield
        if missing := sorted(set(needed) - trainer.asked):
            raise UsageError(f"TRL {version('trl')} made its loss without calling {missing[0]}; {remedy()}")
    finally:
        trainer.batch = None
        trainer._metrics["train"].clear()


def remedy() -> str:
    return f"llm_mdp.audit.trl knows TRL {KNOWN}: pip install --no-deps trl==1.16.0."


@cache
def trainer_of(kind: str, options: Options, group_size: int, horizon: int) -> Any:
    """TRL's trainer of this name with these options of its configuration, and the three methods of `REPLACED` ours."""
    import trl
    from datasets import Dataset

    own_kind, config = getattr(trl, kind), getattr(trl, kind.replace("Trainer", "Config"))
    rewards = _two_rewards if dict(options).get("multi_objective_aggregation") else _one_reward
    with tempfile.TemporaryDirectory() as folder, _quiet():
        model, tokenizer = _tiny(folder)
        trainer = entered(own_kind, rewards)(
            model=model,
            reward_funcs=[_never_called] * (1 + (rewards is _two_rewards)),
            args=config(output_dir=folder, **_arguments(config, group_size, horizon), **dict(options)),
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            processing_class=tokenizer,
        )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def _arguments(config: Any, group_size: int, horizon: int) -> dict[str, Any]:
    """One update on one batch of this machine; the model never runs."""
    names = ("activation_checkpointing", "gradient_checkpointing")  # the second before transformers 5.20
    off = next(name for name in names if name in config.__dataclass_fields__)
    return {
        off: False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": group_size,
        "num_generations": group_size,
        "max_completion_length": horizon,
    }


def entered(kind: type, rewards: Callable[[Batch], Tensor]) -> type:
    """The trainer with `REPLACED` answering from `self.batch`, and noting in `self.asked` that they were called."""

    class Entered(kind):
        batch: Batch
        asked: set[str]

        def _generate(self, prompts: Any) -> tuple[Any, ...]:
            self.asked.add("_generate")
            prompt_ids = [[FIRST] * n for n in self.batch.prompt_length.tolist()]
            ids = completion_ids(self.batch)
            if kind.__name__ == RLOO:
                return prompt_ids, ids, prompts
            return prompt_ids, ids, None, prompts, None, {}, None, []

        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Tensor, mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor, None]:
            self.asked.add("_get_per_token_logps_and_entropies")
            batch = self.batch
            if model is getattr(self, "ref_model", None):
                logp = batch.reference_logp
            else:
                logp = batch.logp if torch.is_grad_enabled() else batch.old_logp
            if getattr(self, "top_entropy_quantile", 1.0) < 1 or getattr(self, "_entropy_bonus_enabled", False):
                raise EstimatorError(NO_ENTROPIES)
            # Where nothing else reads entropies they are only logged.
            return logp[:, :logits_to_keep], torch.zeros_like(batch.old_logp[:, :logits_to_keep]), None

        def _calculate_rewards(self, *_: Any, **__: Any) -> Tensor:
            self.asked.add("_calculate_rewards")
            return rewards(self.batch)

    return Entered


def completion_ids(batch: Batch) -> list[list[int]]:
    """The responses as TRL has them: without padding, EOS last where the policy ended."""
    ended = (batch.finish == Finish.EOS).tolist()
    rows = zip((batch.tokens + FIRST).tolist(), batch.mask.sum(-1).tolist(), ended)
    return [[*ids[: length - 1], EOS if end else ids[length - 1]] for ids, length, end in rows]


def _one_reward(batch: Batch) -> Tensor:
    return batch.response_reward[:, None]


def _two_rewards(batch: Batch) -> Tensor:
    """The reward, and minus `PER_TOKEN` for every token, as two functions would give them."""
    return torch.stack([batch.response_reward, -PER_TOKEN * batch.mask.sum(-1)], 1)


def _never_called(**_: Any) -> list[float]:
    raise UsageError(f"TRL {version('trl')} calls reward functions elsewhere than expected; {remedy()}")


def _tiny(folder: str) -> tuple[Any, Any]:
    """A GPT-2 of a few weights and its tokenizer, saved to a folder, which is where a reference is loaded from."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<eos>": EOS, "<pad>": PAD, "a": FIRST}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    size: dict[str, Any] = {"vocab_size": 4, "n_positions": 8, "n_embd": 2, "n_layer": 1, "n_head": 1}
    config = GPT2Config(**size, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no advice, and the generators of random numbers, which trainers seed when made, are as they were."""
    from transformers.utils import logging as bars

    shown, numbers, arrays = bars.is_progress_bar_enabled(), random.getstate(), np.random.get_state()  # noqa: NPY002
    before = logging.root.manager.disable
    bars.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)  # noqa: NPY002
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()
