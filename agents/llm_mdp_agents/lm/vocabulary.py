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


DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "eos")
"""What --tokens digits stands for."""


def tokens_named(task: Task, words: str) -> tuple[int, ...]:
    """The tokens that a list with commas names: each by its text ("7", " yes") or its number ("id:32"), the task's end
    token by "eos", and the ten digits and that by "digits".

    Raises:
        ValueError: naming the word that is no token, or says one again.
    """
    found: dict[int, str] = {}
    for word in words.split(","):
        for name in DIGITS if word.strip() == "digits" else (word,):
            token = _token_named(task, name)
            if token in found and name != "eos":
                raise ValueError(f"--tokens names the token {token} twice, as {found[token]!r} and {name!r}.")
            found[token] = name
    return tuple(found)


def _token_named(task: Task, name: str) -> int:
    if name.strip() == "eos":
        if task.eos is None:
            raise ValueError("--tokens has eos, and the tokenizer has no end token; leave it out.")
        return task.eos
    if name.strip().startswith("id:"):
        number = name.strip().removeprefix("id:")
        if not number.isdecimal() or int(number) >= task.vocab_size:
            raise ValueError(f"--tokens has {name!r}; a number of a token is id:0 … id:{task.vocab_size - 1}.")
        return int(number)
    known = task.tokenizer.get_vocab() if hasattr(task.tokenizer, "get_vocab") else {}
    written = known[name] if name in known else _written_as_one(task, name)
    if written is None or task.decode([written]) != name:
        raise ValueError(
            f"--tokens has {name!r}, which is not one token of this tokenizer; give texts that are one token each, or "
            f"numbers of tokens, such as id:32, with commas between them."
        )
    return written


def _written_as_one(task: Task, name: str) -> int | None:
    """The token that alone writes this text; None: there is none."""
    if task.tokenizer is None:
        return next((token for token in range(task.vocab_size) if task.decode([token]) == name), None)
    tokens = task.tokenizer.encode(name, add_special_tokens=False)
    return tokens[0] if len(tokens) == 1 else None
