"""Tokenizers as families of models have them, small, made here; and their chat templates."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_mdp_envs.tokenizers import byte_tokenizer

SPACE = "\u2581"
CORPUS = ["def add(x, y):\n    return x + y\n", "Say kiwi. Say plum. The answer is 18 eggs.\n\nWhy? 日本語 é 😀"] * 5
LLAMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = '<<SYS>>\n' + messages[0].content + "
    "'\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% else %}{% set told = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (told if loop.first else '') + m.content.strip() + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > last.user %}"
    "{{ '<think>\n' + (m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '') + "
    "'\n</think>\n\n' }}{% endif %}{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '<｜User｜>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


def _sentence_piece(normalizer: Any, pre_tokenizer: Any, decoder: Any, words: tuple[str, ...] = ()) -> Any:
    """Spaces are letters, and other characters are bytes."""
    letters = [*map(chr, range(33, 127)), SPACE, 2 * SPACE, 4 * SPACE, "Th", "The", SPACE + "T", SPACE + "The"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    merges = [(SPACE, SPACE), (2 * SPACE, 2 * SPACE), ("T", "h"), ("Th", "e"), (SPACE, "T"), (SPACE, "The")]
    vocabulary = {text: number for number, text in enumerate(texts)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    first = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*first, *decoder])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_2() -> Any:
    """A space before every text and after every special token; decoding drops the first space."""
    spaces = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer = _sentence_piece(spaces, None, [decoders.Strip(" ", 1, 0)])
    tokenizer.chat_template = LLAMA_2
    return tokenizer


def phi_3() -> Any:
    """Llama 2's, with control tokens that take in the spaces after them; turns end with another token than texts."""
    tokenizer = llama_2()
    tokens = [
        AddedToken(f"<|{name}|>", special=True, rstrip=True, normalized=False)
        for name in ("user", "assistant", "system", "end")
    ]
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": tokens})
    tokenizer.chat_template = PHI_3
    return tokenizer


def mistral() -> Any:
    """A space before the first text only."""
    spaces = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    tokenizer = _sentence_piece(None, spaces, [decoders.Strip(" ", 1, 0)])
    tokenizer.chat_template = MISTRAL
    return tokenizer


def gemma() -> Any:
    """No spaces of its own; runs of spaces and lines are added tokens; no system messages."""
    tokenizer = _sentence_piece(normalizers.Replace(" ", SPACE), None, [], ("\n",))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken(2 * SPACE, normalized=False)])
    tokenizer.chat_template = GEMMA
    return tokenizer


def t5() -> Any:
    """A unigram model in whose vocabulary control tokens are words, with an end after every text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([*CORPUS, "what </s> means <o> w", "hello world"], trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def gpt_2() -> Any:
    """Bytes in pieces; padding is the end token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token=end, pad_token=end)


def qwen_3() -> Any:
    """GPT-2's, with <think> as an ordinary added token and a template that writes and cuts thoughts."""
    tokenizer = gpt_2()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN_3
    return tokenizer


def r1() -> Any:
    """DeepSeek R1's form: the header of the answer opens the thoughts."""
    tokenizer = gpt_2()
    named = {"eos_token": "<｜end▁of▁sentence｜>", "bos_token": "<｜begin▁of▁sentence｜>"}
    tokenizer.add_special_tokens({**named, "additional_special_tokens": ["<｜User｜>", "<｜Assistant｜>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = R1
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "Llama 2": llama_2, "Phi 3": phi_3, "Mistral": mistral, "Gemma": gemma, "GPT-2": gpt_2, "Qwen 3": qwen_3, "R1": r1,
    "bytes": byte_tokenizer,
}  # fmt: skip
CHATS = [name for name, make in KINDS.items() if name != "GPT-2"]
