"""Policies from Hugging Face names, folders, GGUF files and configs; adapters; writing models back."""

import json
import socket
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.lm.products import FastMatmul
from llm_mdp_envs.text import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("float64", "float32", "bfloat16", "float16")
OWN = "llm_mdp"
"""Entry of a model's config.json that holds what a policy knows and its model does not; beside adapters, which have no
config.json, a file OWN.json."""
ADAPTERS = "adapter_config.json"
"""In a folder of peft adapters."""


@dataclass(frozen=True)
class LoRAOptions:
    """Low-rank adapters (Hu et al. 2021): W + (alpha / rank) B A; W stays as it is. Their dropout is 0."""

    rank: int = 16
    """Columns of B and rows of A."""
    alpha: float = 32.0
    """Numerator of the scale."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which layers, by the last part of their names, such as ("q_proj", "v_proj"); "all-linear": every linear layer but
    the head."""


def load_policy(
    model: str | Path | dict,
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    device: str = "cpu",
    lora: LoRAOptions | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "auto",
    decode: Literal["growing", "static"] = "growing",
    fast_matmul: FastMatmul = "auto",
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
        attention: kernel of the attention, a name that `transformers` knows (sdpa, eager, flash_attention_2 …); "auto":
            its own choice for the model.
        decode: see `LanguageModelPolicy.decode`; "static" is tried on the model at once.
        fast_matmul: whether the large products of a float32 model on the CPU are oneDNN's (`lm.products`); "auto":
            on processors where they are faster.
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
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for what has another name by now.
        warnings.simplefilter("ignore", FutureWarning)
        torch.default_generator.manual_seed(seed)
        causal_lm: Any = _causal_lm(model, getattr(torch, dtype), attention)
        if lora is not None:
            causal_lm = _adapted(causal_lm, lora, base_name(model))
    if gradient_checkpointing:
        base = _plain(causal_lm)
        # Its name in older versions is the other one.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    own = getattr(_plain(causal_lm).config, OWN, {})
    rows = causal_lm.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {str(model)!s:.200} {rows:,}; use the model's "
            f"own tokenizer, or give the model rows for new tokens (resize_token_embeddings) and save it."
        )
    vocab_size = own.get("vocab_size", rows) if tokenizer is None else len(tokenizer)
    subset = own.get("token_subset") if token_subset is None else token_subset
    policy = LanguageModelPolicy(causal_lm.to(device), vocab_size, own.get("begin"), temperature, subset)
    policy.decode, policy.fast_matmul = decode, fast_matmul
    _ = policy.fixed_width  # says now what cannot be
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
    fast_matmul: FastMatmul = "auto",
) -> LanguageModelPolicy:
    """A randomly initialised Llama for tasks with their own token ids, with one more token that begins every text.

    Args: length: longest prompt plus response. width: of the hidden states. seed: the global generator is left as it
        was. fast_matmul: see `load_policy`.
    """
    if width % (2 * heads):
        raise ValueError(f"width is {width} with {heads} heads; it must be a multiple of {2 * heads}, two for each.")
    config = {
        "model_type": "llama", "vocab_size": vocab_size + 1, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": length + 1,
        "bos_token_id": vocab_size, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
        OWN: {"begin": vocab_size, "vocab_size": vocab_size},
    }  # fmt: skip
    return load_policy(config, dtype=dtype, fast_matmul=fast_matmul, seed=seed)


def tokenizer_of(model: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face name, a folder or a `.gguf` file."""
    from transformers import AutoTokenizer

    if (path := Path(model)).suffix == ".gguf":
        require("gguf", "train", f"{path}")
        return AutoTokenizer.from_pretrained(existing(path).parent, gguf_file=path.name)
    return AutoTokenizer.from_pretrained(model, local_files_only=_is_out_of_reach(model))


def _is_out_of_reach(model: str | Path) -> bool:
    """Is this a name, has the hub's host no address here, nor is there a proxy that might know one? Then it is looked
    up among cached models alone: the hub's client would ask again for half a minute, file by file."""
    from huggingface_hub import constants

    if Path(model).exists() or getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def save_model(
    policy: LanguageModelPolicy,
    folder: str | Path,
    *,
    merge: bool = True,
    tokenizer: Any = None,
    ends: Sequence[int] = (),
) -> None:
    """Write the model for `load_policy`, for `from_pretrained` and for servers: weights (safetensors), config, how it
    samples, tokenizer and chat template.

    Args:
        merge: add adapters to the weights that they adapt; False: write the adapters alone, as peft does, where the
            model below has a name to load it by (random weights and GGUF files have none: they are merged).
        tokenizer: of its words; None: it has none.
        ends: tokens that end a response; (): those that the model came with.
    """
    model, causal_lm = policy.model, policy.causal_lm
    own: dict[str, Any] = {"begin": policy.begin, "vocab_size": policy.vocab_size}
    if isinstance(policy.token_subset, TokenSubset):
        own["token_subset"] = list(policy.token_subset.tokens)
    setattr(causal_lm.config, OWN, own)
    causal_lm.generation_config = _as_it_samples(policy, tokenizer, ends)
    alone = not merge and model is not causal_lm and bool(base_of(policy))
    if model is not causal_lm and not alone:
        # Merging changes the weights, and training may go on.
        model = deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)
    if alone:
        causal_lm.generation_config.save_pretrained(folder)
        (Path(folder) / f"{OWN}.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)


def base_name(model: str | Path | dict) -> str | None:
    """By what name `from_pretrained` finds a model from anywhere: a folder in full, or a name of the hub; None: random
    weights and GGUF files have none."""
    if isinstance(model, dict) or Path(model).suffix in (".json", ".gguf"):
        return None
    return str(Path(model).resolve()) if Path(model).exists() else str(model)


def base_of(policy: LanguageModelPolicy) -> str | None:
    """By what name the model below the adapters is found; None: there are no adapters, or it has no such name."""
    if policy.model is policy.causal_lm:
        return None
    name = policy.model.active_peft_config.base_model_name_or_path
    return base_name(name) if name else None


def _plain(model: Any) -> Any:
    """The model below peft's wrapper, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _as_it_samples(policy: LanguageModelPolicy, tokenizer: Any, ends: Sequence[int]) -> Any:
    """How the policy draws, as others read it: its temperature, all tokens, and where it ends."""
    from transformers import GenerationConfig

    config = policy.causal_lm.config.get_text_config(decoder=True)
    given = getattr(policy.causal_lm, "generation_config", None)

    def known(name: str) -> Any:
        places = (given, config, tokenizer) if name != "pad_token_id" else (given, tokenizer, config)
        return next((value for each in places if (value := getattr(each, name, None)) is not None), None)

    eos = list(dict.fromkeys(int(each) for each in ends)) or known("eos_token_id")
    return GenerationConfig(
        bos_token_id=known("bos_token_id") if policy.begin is None else policy.begin,
        eos_token_id=eos[0] if isinstance(eos, list) and len(eos) == 1 else eos,
        pad_token_id=known("pad_token_id"),
        do_sample=True,
        temperature=float(policy.temperature),
        top_k=0,
        top_p=1.0,
    )


def _causal_lm(model: str | Path | dict, dtype: torch.dtype, attention: str) -> Any:
    """A model, or one with adapters, in this precision; adapters on 16 bits stay in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    if isinstance(model, dict) or Path(model).suffix == ".json":
        config = model if isinstance(model, dict) else json.loads(existing(Path(model)).read_text())
        if "model_type" not in config:
            raise ValueError(
                'the config of the model has no "model_type"; name the architecture there, for example "llama".'
            )
        made = AutoConfig.for_model(**config)
        return _with_kernel(
            attention, lambda: AutoModelForCausalLM.from_config(made, dtype=torch.float32, **options)
        ).to(dtype)
    path = Path(model)
    if path.suffix == ".gguf":
        require("gguf", "train", f"{path}")
        folder = existing(path).parent
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32)
        return _with_kernel(attention, lambda: _clean(read, options)).to(dtype)
    if path.is_absolute() or str(model).startswith("."):
        existing(path)
    if (path / ADAPTERS).exists():
        return _with_adapters(path, dtype, attention, options)
    options["local_files_only"] = _is_out_of_reach(model)
    return _with_kernel(attention, lambda: AutoModelForCausalLM.from_pretrained(model, **options)).to(dtype)


def _with_kernel(attention: str, make: Callable[[], Any]) -> Any:
    """What `make` gives; ValueError that names the kernel where the model or this machine does not have it."""
    try:
        return make()
    except (ValueError, ImportError) as error:
        if attention == "auto" or not any(word in str(error).lower() for word in ("attention", "attn", "kernel")):
            raise
        raise ValueError(
            f"attention is {attention!r}, which this model cannot have here ({' '.join(str(error).split()):.300}); "
            f"choose sdpa, eager or auto."
        ) from error


def _with_adapters(folder: Path, dtype: torch.dtype, attention: str, options: dict[str, Any]) -> Any:
    """The model that a folder of adapters names, with them.

    Raises:
        ValueError: if that model is not where the folder says.
    """
    require("peft", "train", f"{folder}, which holds adapters,")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    name = json.loads((folder / ADAPTERS).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    if not name or (Path(name).is_absolute() and not Path(name).exists()):
        raise ValueError(
            f"{folder} holds adapters of the model {name or 'without a name'}, which is not there; put it back, or "
            f"write its place into base_model_name_or_path of {folder / ADAPTERS}."
        )
    options = options | {"local_files_only": _is_out_of_reach(name)}
    base = _with_kernel(attention, lambda: AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options))
    if (folder / "tokenizer_config.json").exists():
        # Adapters may come with rows for new tokens.
        words = len(AutoTokenizer.from_pretrained(folder))
        if words > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(words)
    adapted: Any = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    adapted.active_peft_config.base_model_name_or_path = base_name(name)
    if dtype == torch.float64:
        adapted = adapted.to(dtype)
    causal_lm = adapted.get_base_model()
    if (own := folder / f"{OWN}.json").exists():
        setattr(causal_lm.config, OWN, json.loads(own.read_text(encoding="utf-8")))
    if (folder / "generation_config.json").exists():
        causal_lm.generation_config = GenerationConfig.from_pretrained(folder)
    return adapted


def _clean(model: Any, options: dict[str, Any]) -> Any:
    """The same weights in a model that knows nothing of quantisation: one that came from a GGUF file can be neither
    trained nor saved."""
    from transformers import AutoModelForCausalLM

    config = deepcopy(model.config)
    del config.quantization_config
    clean = AutoModelForCausalLM.from_config(config, dtype=model.dtype, **options)
    clean.load_state_dict(model.state_dict())
    clean.generation_config = model.generation_config
    return clean


def _adapted(model: Any, lora: LoRAOptions, base: str | None = None) -> Any:
    """The model with new adapters, which name the model that they belong to.

    Raises:
        ValueError: if it has adapters already, or no such layers.
    """
    require("peft", "train", "LoRA")
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ValueError("the model's folder holds adapters already; load it with lora=None, or save it merged first.")
    modules: Any = lora.target_modules
    if not isinstance(modules, str):
        modules = list(modules)
        ends = {name.rpartition(".")[2] for name, each in model.named_modules() if hasattr(each, "weight")}
        for name in modules:
            if name.rpartition(".")[2] not in ends:
                raise ValueError(
                    f"lora_targets has {name!r}, and no layer of the model is called that; it has "
                    f"{', '.join(sorted(ends))}."
                )
    # peft, and who reads its files, ask for a whole number and divide whatever comes.
    scale: Any = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    options = LoraConfig(r=lora.rank, lora_alpha=scale, lora_dropout=0.0, target_modules=modules, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, options)
    adapted.active_peft_config.base_model_name_or_path = base
    return adapted


def existing(path: Path) -> Path:
    """The path; ValueError if there is nothing."""
    if not path.exists():
        raise ValueError(f"there is no {path}; give a Hugging Face name, an existing folder or file, or a config.")
    return path
