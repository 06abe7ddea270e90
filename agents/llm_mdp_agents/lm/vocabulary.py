"""Do a task and a language model speak the same tokens? Asked before any work starts."""

import json
from pathlib import Path
from typing import Any

from llm_mdp_agents.lm.loading import OWN, existing, tokenizer_of
from llm_mdp_envs.task import Task
from llm_mdp_envs.text import TextTask
from llm_mdp_envs.tokenizers import end_ids

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")
"""One of these is beside a model that has a tokenizer."""


def tokenizer_beside(model: str | Path) -> Any:
    """The tokenizer of a model; None for a folder without one and for a config.json.

    Raises:
        ValueError: if there is no such model.
    """
    path = Path(model)
    if path.is_absolute() or str(model).startswith("."):
        existing(path)
    if path.suffix == ".json" or (path.is_dir() and not any((path / name).exists() for name in FILES)):
        return None
    try:
        return tokenizer_of(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded for the model {str(model)!r}; give its folder, the name of a model that is "
            f"here, or a .gguf file."
        ) from error


def tokenizer_for_words(model: str | Path) -> Any:
    """The tokenizer that tasks in words get with a model; None, the byte tokenizer, for models that were made here or
    are random.

    Raises:
        ValueError: a model from elsewhere has no tokenizer beside it.
    """
    tokenizer, config = tokenizer_beside(model), Path(model) / "config.json"
    made_elsewhere = config.is_file() and OWN not in json.loads(config.read_text(encoding="utf-8"))
    if tokenizer is None and made_elsewhere:
        raise ValueError(
            f"{model} has no tokenizer beside it; name one with --env-args tokenizer=FOLDER, or put its files there."
        )
    return tokenizer


def check_words(task: Task, model: str | Path) -> None:
    """ValueError unless the tokens of a task mean to a model what they mean to the task, as far as its tokenizer tells
    (nothing, for a model without one)."""
    theirs, name = tokenizer_beside(model), type(task).__name__
    if theirs is None:
        return
    if task.tokenizer is None:
        if len(theirs) == task.vocab_size:
            return
        raise ValueError(
            f"{name} has {task.vocab_size:,} tokens of its own, and the {len(theirs):,} tokens of the model {model} "
            f"are words, so they do not belong together; use --model small, or an environment in words such as "
            f"ReasoningGym."
        )
    if not (hasattr(task.tokenizer, "get_vocab") and hasattr(theirs, "get_vocab")):
        return
    small, large = sorted((task.tokenizer.get_vocab(), theirs.get_vocab()), key=len)
    different = next((word for word, token in small.items() if large.get(word) != token), None)
    if different is not None:
        raise ValueError(
            f"the tokenizer of {name} is not that of the model {model}: {different!r} is token {small[different]} of "
            f"one and {large.get(different, 'none')} of the other; give {name} tokenizer={str(model)!r}."
        )


def check_size(task: Task, policy: Any, model: str | Path) -> None:
    """ValueError unless a policy has as many tokens as a task; those that a random model has beyond are never used."""
    own = getattr(policy.causal_lm.config, OWN, {})
    if Path(model).suffix == ".json" and policy.vocab_size > task.vocab_size:
        policy.vocab_size = task.vocab_size
    size = policy.vocab_size
    if task.tokenizer is not None and own and tokenizer_beside(model) is None:
        size = own["vocab_size"]
    if size != task.vocab_size:
        raise ValueError(
            f"the model {model} has {size:,} tokens and {type(task).__name__} {task.vocab_size:,}, so they do not "
            f"belong together; use a model that was made for this environment, --model small, or, for words, the "
            f"model's own tokenizer."
        )


def adopt_ends(task: Task, policy: Any) -> None:
    """Let the end tokens of a model end the responses of a task in words; those that its generation config names."""
    config = getattr(policy.causal_lm, "generation_config", None)
    if config is not None and isinstance(task, TextTask):
        task.end_also(*end_ids(task.tokenizer, config.eos_token_id))
