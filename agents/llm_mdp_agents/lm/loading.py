"""Policies from Hugging Face names, folders, GGUF files and configs; adapters; writing models back."""

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp_agents.lm.policy import LanguageModelPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("float64", "float32", "bfloat16", "float16")
OWN = "llm_mdp"
"""Entry of a model's config.json that holds what a policy knows and its model does not."""


@dataclass(frozen=True)
class LoRAOptions:
    """Low-rank adapters (Hu et al. 2021): W + (alpha / rank) B A; W stays as it is. Their dropout is 0."""

    rank: int = 16
    """Columns of B and rows of A."""
    alpha: float = 32.0
    """Numerator of the scale."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers, by the end of their names; "all-linear": every linear layer but the head."""


def load_policy(
    model: str | Path | dict,
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    device: str = "cpu",
    lora: LoRAOptions | None = None,
    gradient_checkpointing: bool = False,
    temperature: float = 1.0,
    token_subset: Iterable[int] | None = None,
    seed: int = 0,
) -> LanguageModelPolicy:
    """A causal language model as a policy.

    Args:
        model: a Hugging Face name or folder (of a model or of peft adapters), a `.gguf` file, or a config (a dict with
            `model_type` or its `.json` file), which is initialised at random.
        tokenizer: limits the policy to the tokens that it has (models often have more rows); None: the whole
            vocabulary.
        dtype: of the weights: float64, float32, bfloat16 or float16.
        lora: train adapters only.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        temperature: see `LanguageModelPolicy`.
        token_subset: the only tokens that it may draw, end tokens among them; all others have probability 0, in
            sampling and in scoring. None: those that it was saved with, if any, else all.
        seed: of everything initialised at random; the global generator is left as it was.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if lora is not None and lora.rank < 1:
        raise ValueError(f"lora.rank is {lora.rank}; it must be at least 1.")
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        causal_lm: Any = _causal_lm(model).to(getattr(torch, dtype))
        if lora is not None:
            causal_lm = _adapted(causal_lm, lora)
    if gradient_checkpointing:
        base = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
        # Its name in older versions is the other one.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    own = getattr(causal_lm.config, OWN, {})
    rows = causal_lm.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {str(model)!s:.200} {rows:,}; use the model's "
            f"own tokenizer, or give the model rows for new tokens (resize_token_embeddings) and save it."
        )
    vocab_size = own.get("vocab_size", rows) if tokenizer is None else len(tokenizer)
    policy = LanguageModelPolicy(causal_lm.to(device), vocab_size, own.get("begin"), temperature)
    if (subset := own.get("token_subset") if token_subset is None else token_subset) is not None:
        policy.token_subset = TokenSubset(subset, vocab_size)
    return policy


def small_transformer(
    vocab_size: int,
    length: int,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    seed: int = 0,
    dtype: str = "float32",
) -> LanguageModelPolicy:
    """A randomly initialised Llama for tasks with their own token ids, with one more token that begins every text.

    Args: length: longest prompt plus response. width: of the hidden states. seed: the global generator is left as it
        was.
    """
    if width % (2 * heads):
        raise ValueError(f"width is {width} with {heads} heads; it must be a multiple of {2 * heads}, two for each.")
    config = {
        "model_type": "llama", "vocab_size": vocab_size + 1, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": length + 1,
        "bos_token_id": vocab_size, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
        OWN: {"begin": vocab_size, "vocab_size": vocab_size},
    }  # fmt: skip
    return load_policy(config, dtype=dtype, seed=seed)


def tokenizer_of(model: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face name, a folder or a `.gguf` file."""
    from transformers import AutoTokenizer

    if (path := Path(model)).suffix == ".gguf":
        return AutoTokenizer.from_pretrained(existing(path).parent, gguf_file=path.name)
    return AutoTokenizer.from_pretrained(model)


def save_model(policy: LanguageModelPolicy, folder: str | Path, *, merge: bool = True) -> None:
    """Write the model (safetensors and config) for `load_policy` and for `from_pretrained`.

    Args: merge: add adapters to the weights that they adapt; False: write the adapters alone, as peft does.
    """
    model, causal_lm = policy.model, policy.causal_lm
    if (options := getattr(causal_lm, "generation_config", None)) is not None:
        try:
            options.validate(strict=True)
        except ValueError:
            # Some models come with options of sampling and without sampling, which is read but not written.
            options.do_sample = True
    own: dict[str, Any] = {"begin": policy.begin, "vocab_size": policy.vocab_size}
    if isinstance(policy.token_subset, TokenSubset):
        own["token_subset"] = list(policy.token_subset.tokens)
    setattr(causal_lm.config, OWN, own)
    if model is not causal_lm and merge:
        # Merging changes the weights, and training may go on.
        model = deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)


def _causal_lm(model: str | Path | dict) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(model, dict) or Path(model).suffix == ".json":
        config = model if isinstance(model, dict) else json.loads(existing(Path(model)).read_text())
        if "model_type" not in config:
            raise ValueError(
                'the config of the model has no "model_type"; name the architecture there, for example "llama".'
            )
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    path = Path(model)
    if path.suffix == ".gguf":
        return _clean(
            AutoModelForCausalLM.from_pretrained(existing(path).parent, gguf_file=path.name, dtype=torch.float32)
        )
    if path.is_absolute() or str(model).startswith("."):
        existing(path)
    if (path / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(model, is_trainable=True)
    return AutoModelForCausalLM.from_pretrained(model)


def _clean(model: Any) -> Any:
    """The same weights in a model that knows nothing of quantisation: one that came from a GGUF file can be neither
    trained nor saved."""
    from transformers import AutoModelForCausalLM

    config = deepcopy(model.config)
    del config.quantization_config
    clean = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    clean.load_state_dict(model.state_dict())
    clean.generation_config = model.generation_config
    return clean


def _adapted(model: Any, lora: LoRAOptions) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ValueError("the model's folder holds adapters already; load it with lora=None, or save it merged first.")
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    scale: Any = lora.alpha  # peft asks for a whole number and divides whatever comes
    options = LoraConfig(r=lora.rank, lora_alpha=scale, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")
    return get_peft_model(model, options)


def existing(path: Path) -> Path:
    """The path; ValueError if there is nothing."""
    if not path.exists():
        raise ValueError(f"there is no {path}; give a Hugging Face name, an existing folder or file, or a config.")
    return path
