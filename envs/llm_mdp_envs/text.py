"""Tasks in words: a question is a text, the response is a text, and any Hugging Face tokenizer stands between them and
the tokens.

A subclass says two things: what is asked (`draw`) and what a reply is worth (`grade`).
"""

import importlib.util
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mdp_envs.task import Question, Scores, Task

MOST_DRAWS = 1000
"""Questions that may be too long in a row before we say that all of them are."""


@dataclass(frozen=True)
class Asked:
    """The `secret` of a text question."""

    text: str | list[dict]
    """The question as `draw` gave it, without chat template."""
    secret: Any


@dataclass(frozen=True)
class Reply:
    """One complete response, ready to be graded."""

    question: str | list[dict]
    """The question as `draw` gave it, without chat template."""
    text: str
    """What the policy wrote, special tokens left out."""
    tokens: tuple[int, ...]
    """The same as tokens, the end token included."""
    secret: Any
    """What `draw` gave besides the question."""


class TextTask(Task):
    """Base of the tasks in words.

    Args:
        tokenizer: a Hugging Face tokenizer, its name or its folder; None: `byte_tokenizer()`, which needs no download.
        horizon: most response tokens.
        prompt_length: longest prompt in tokens, template included. Questions that are longer are not asked.
        chat: put the question into the tokenizer's chat template, as one message of the user.
        system: the system message of the chat, if any.

    Raises:
        ValueError: naming the argument, its value and the remedy.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        horizon: int = 256,
        prompt_length: int = 1024,
        chat: bool = False,
        system: str | None = None,
    ):
        for name, value in (("horizon", horizon), ("prompt_length", prompt_length)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of tokens, at least 1.")
        self.tokenizer = load_tokenizer(tokenizer)
        if chat and not self.tokenizer.chat_template:
            raise ValueError(
                "chat=True, but this tokenizer has no chat template; use chat=False, or set `tokenizer.chat_template` "
                "to a Jinja template."
            )
        if system is not None and not chat:
            raise ValueError(f"system is {system!r}, but chat=False writes no messages; use chat=True.")
        self.chat, self.system = chat, system
        self.vocab_size, self.eos = len(self.tokenizer), self.tokenizer.eos_token_id
        self.horizon, self.prompt_length = horizon, prompt_length

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> tuple[str | list[dict], Any]:
        """A question in words, or the messages of a chat ({"role": …, "content": …} each), and what `grade` needs to
        know about it."""

    @abstractmethod
    def grade(self, replies: Sequence[Reply]) -> Scores:
        """What complete replies are worth, in the same order."""

    def question(self, generator: np.random.Generator) -> Question:
        length = 0
        for _ in range(MOST_DRAWS):
            question = self.ask(*self.draw(generator))
            if (length := len(question.prompt)) <= self.prompt_length:
                return question
        raise ValueError(
            f"{MOST_DRAWS} questions in a row were longer than prompt_length = {self.prompt_length} tokens, the last "
            f"with {length}; raise prompt_length or use a tokenizer with a larger vocabulary."
        )

    def ask(self, question: str | list[dict], secret: Any = None) -> Question:
        """A question of your own, for `reset(options={"question": …})`; `secret` is what `grade` needs to know, as from
        `draw`."""
        return Question(self.encode_question(question), Asked(question, secret))

    def encode_question(self, question: str | list[dict]) -> tuple[int, ...]:
        """The prompt's tokens for a question in words, or in messages (which always go through the chat template)."""
        if isinstance(question, str) and not self.chat:
            return self._encode_text(question)
        return self._encode_messages(self.messages(question))

    def messages(self, question: str | list[dict]) -> list[dict]:
        """A question as the messages of a chat, the system message first if there is one."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        told = self.system is None or messages[0]["role"] == "system"
        return messages if told else [{"role": "system", "content": self.system}, *messages]

    def encode_response(self, text: str) -> tuple[int, ...]:
        """A response in words as tokens, end token included: for demonstrations and tests."""
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return tokens if self.eos is None else (*tokens, self.eos)

    def score(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> Scores:
        return self.grade(self.replies(questions, tokens))

    def replies(self, questions: Sequence[Question], tokens: np.ndarray) -> list[Reply]:
        """Complete responses (N, T), -1 after the end, as `grade` takes them."""
        rows = [tuple(int(token) for token in row if token >= 0) for row in np.asarray(tokens)]
        return [self.reply_to(question, self.response_text(row), row) for question, row in zip(questions, rows)]

    @staticmethod
    def reply_to(question: Question, text: str, tokens: Sequence[int] = ()) -> Reply:
        """A reply in words to a question."""
        return Reply(question.secret.text, text, tuple(tokens), question.secret.secret)

    def response_text(self, tokens: Sequence[int]) -> str:
        """What is graded: the response in words, without special tokens and without a tokenizer's cosmetic changes to
        spaces."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([int(token) for token in tokens if token >= 0], clean_up_tokenization_spaces=False)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        tokens = tuple(self.tokenizer.encode(text))
        # Some tokenizers close every text with the end token; a prompt must stay open.
        return tokens[:-1] if tokens and tokens[-1] == self.eos else tokens

    def _encode_messages(self, messages: list[dict], **options: Any) -> tuple[int, ...]:
        """The messages in the chat template with the header of the assistant's next; the options are the template's,
        such as `tools`."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def load_tokenizer(tokenizer: Any = None) -> Any:
    """A tokenizer by object, name or folder; None: the byte tokenizer.

    Raises:
        ValueError: if there is no such tokenizer.
    """
    if tokenizer is None:
        return byte_tokenizer()
    if not isinstance(tokenizer, str | Path):
        if not all(hasattr(tokenizer, name) for name in ("encode", "decode", "eos_token_id")):
            raise ValueError(
                f"tokenizer is {tokenizer!r}; give a Hugging Face tokenizer, its name, its folder, or None."
            )
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded from {str(tokenizer)!r}; give a folder with one, or None for bytes."
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


def require(module: str, extra: str, purpose: str) -> None:
    """Raise ImportError, in words, if an optional library is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{purpose} needs the package {module}: pip install "llm-mdp[{extra}]"')
