"""Tokenizers: where they come from, one that needs no download, the tokens that end a response, and the text that
tokens add to a prompt."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from llm_mdp_envs.arguments import check_text, shown

LEAST_WINDOW = 4
"""Tokens of a prompt that a response is decoded with, at least: a character of UTF-8 that the prompt leaves unfinished
has at most three bytes there."""
BROKEN = "\ufffd"
"""What decoders write for bytes that are no character."""

_default: ContextVar[Callable[[], Any] | None] = ContextVar("tokenizer of tasks that name none", default=None)


@contextmanager
def default_tokenizer(load: Callable[[], Any]) -> Iterator[None]:
    """Tasks made inside that name no tokenizer get this one in place of the byte tokenizer, whatever their
    constructors look like.

    Args:
        load: called where the first tokenizer is wanted; None from it stands for the byte tokenizer.
    """
    token = _default.set(load)
    try:
        yield
    finally:
        _default.reset(token)


def load_tokenizer(tokenizer: Any = None) -> Any:
    """A tokenizer by object, name or folder; None: the byte tokenizer, or that of `default_tokenizer`.

    Raises:
        ValueError: if there is no such tokenizer.
    """
    if tokenizer is None:
        load = _default.get()
        tokenizer = load() if load else None
    if tokenizer is None:
        return byte_tokenizer()
    if not isinstance(tokenizer, str | Path):
        if isinstance(tokenizer, type) or not all(
            hasattr(tokenizer, name) for name in ("encode", "decode", "eos_token_id")
        ):
            raise ValueError(
                f"tokenizer is {shown(tokenizer)}; give a Hugging Face tokenizer, its name, its folder, or None."
            )
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(check_text("tokenizer", str(tokenizer)))
    except Exception as error:  # of many kinds, for names that can be no folder or no repository
        raise ValueError(
            f"no tokenizer could be loaded from {shown(str(tokenizer))}; give a folder with one, or None for bytes."
        ) from error


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """A tokenizer for any text that needs no download: token = byte, and the end token 256.

    A `transformers.PreTrainedTokenizerFast`: 256 bytes, then `<|end|>` (256, ends a response and a turn), `<|pad|>`
    (257), and `<|system|>`, `<|user|>`, `<|assistant|>` (258 … 260) for its chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_byte_letters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level tokenizers: itself, or the next free one from U+0100
    on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """The tokens that a tokenizer holds apart from its vocabulary of words, special ones among them, by id, as
    `tokenizers.AddedToken`; {} where it cannot say."""
    return getattr(tokenizer, "added_tokens_decoder", {})


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the added tokens, and of those with a part of their own (begin, end, padding, unknown)."""
    return {*added_tokens(tokenizer), *getattr(tokenizer, "all_special_ids", ())}


def plain_decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Tokens as text, special ones too, without a tokenizer's cosmetic changes to spaces."""
    return tokenizer.decode([int(token) for token in tokens], clean_up_tokenization_spaces=False)


def added_text(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens add to a prompt: decode(prompt + tokens) without decode(prompt).

    Decoded alone, some tokenizers drop the first space (Llama 2, Mistral 0.1), and a character whose bytes lie on both
    sides is lost; such a character counts as added. Only the last tokens of the prompt are decoded, as many as are
    needed for the text to begin at a whole character.

    Args:
        prompt: tokens before; () where there are none or they are not known.
        tokens: of one response, without padding.
    """
    window = LEAST_WINDOW
    while True:
        before = list(prompt[-window:])
        text = plain_decode(tokenizer, before) if before else ""
        if len(before) == len(prompt) or not text.startswith(BROKEN):
            break
        window *= 2
    whole, cut = plain_decode(tokenizer, [*before, *tokens]), 0
    if text.endswith(BROKEN):
        # The whole characters of the prompt, should the response complete the last one: some decoders write a run of
        # bytes as broken altogether.
        shorter = (plain_decode(tokenizer, before[:-left]) for left in range(1, min(LEAST_WINDOW, len(before) + 1)))
        text = next((each for each in shorter if _completed(each, whole)), text)
    while cut < min(len(text), len(whole)) and text[cut] == whole[cut]:
        cut += 1
    added = whole[cut:]
    spaced = bool(before) and added.startswith(" ") and before[-1] in special_ids(tokenizer)
    return added[1:] if spaced and _writes_space_after(tokenizer, before[-1]) else added


def _completed(text: str, whole: str) -> bool:
    return not text.endswith(BROKEN) and whole.startswith(text) and not whole[len(text) :].startswith(BROKEN)


def _writes_space_after(tokenizer: Any, token: int) -> bool:
    """Does a tokenizer encode "x" right after this special token with a space that is not there?"""
    special = plain_decode(tokenizer, [token])
    again = plain_decode(tokenizer, tokenizer.encode(f"{special}x", add_special_tokens=False))
    return again == f"{special} x"


def end_ids(tokenizer: Any, *named: Any) -> tuple[int, ...]:
    """All tokens that end a response of a model with this tokenizer: its own end token first, then those that the
    model's generation_config.json and config.json beside the tokenizer name, then `named` ones.

    An id that is no special or added token of the tokenizer is left out: it is a default of a configuration (Llama's
    is 2), not something that this model was taught.

    Args:
        named: an id, several, or None, each.
    """
    known = special_ids(tokenizer)
    found = [*_as_ids(tokenizer.eos_token_id)]
    for ids in (*_ids_beside(tokenizer), *named):
        found += [token for token in _as_ids(ids) if token in known]
    return tuple(dict.fromkeys(found))


def _as_ids(ids: Any) -> list[int]:
    return [] if ids is None else [int(each) for each in (ids if isinstance(ids, list | tuple) else [ids])]


def _ids_beside(tokenizer: Any) -> Iterator[Any]:
    """`eos_token_id` of the files of the model that a tokenizer was loaded with; nothing is downloaded."""
    from transformers.utils.hub import cached_file

    if not (place := str(getattr(tokenizer, "name_or_path", "") or "")):
        return
    for name in ("generation_config.json", "config.json"):
        try:
            file = cached_file(place, name, local_files_only=True)
        except (OSError, ValueError):
            file = None
        if file is None:
            continue
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error}); mend or remove it.") from error
        yield document.get("eos_token_id")
