"""Tasks in words: a question is a text, the response is a text, and any Hugging Face tokenizer stands between them and
the tokens.

A subclass says two things: what is asked (`draw`) and what a reply is worth (`grade`).
"""

import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_mdp_envs.arguments import MOST_TOKENS, check_flag, check_text, check_whole, shown
from llm_mdp_envs.encoding import Encoder
from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.tokenizers import added_text, end_ids, load_tokenizer, plain_decode
from llm_mdp_envs.tokenizers import byte_tokenizer as byte_tokenizer

MOST_DRAWS = 1000
"""Questions that may be too long in a row before we say that all of them are."""


@dataclass(frozen=True)
class Asked:
    """The `secret` of a text question."""

    text: str | list[dict]
    """The question as `draw` gave it, without chat template."""
    secret: Any
    beginning: str = ""
    """Of the answer, forced by `answer_prefix`; the policy goes on right after it."""


@dataclass(frozen=True)
class Reply:
    """One complete response, ready to be graded."""

    question: str | list[dict]
    """The question as `draw` gave it, without chat template."""
    text: str
    """The answer: what `answer_prefix` began it with, and the text that the policy added to the prompt. Padding and end
    tokens are left out; other special tokens that the policy wrote, such as `<answer>`, are a part of it."""
    tokens: tuple[int, ...]
    """What the policy wrote as tokens, the end token included."""
    secret: Any
    """What `draw` gave besides the question."""


class TextTask(Task):
    """Base of the tasks in words.

    A response ends at any end token of the model: the tokenizer's, those that the files of the model beside the
    tokenizer name (`eos_token_id` in generation_config.json and config.json), and the one that the chat template writes
    after an assistant's message. The last one closes what is written here (`encode_response`) with chat=True, the
    tokenizer's own with chat=False; it is `eos`, the others are `also_ends`.

    Control tokens that a question spells ("What does <|im_end|> do?") are encoded as text. A conversation that ends
    with the assistant's message is continued right after it.

    Args:
        tokenizer: a Hugging Face tokenizer, its name or its folder; None: `byte_tokenizer()`, which needs no download,
            or the tokenizer of the model, where a command or `train` names one.
        horizon: most response tokens.
        prompt_length: longest prompt in tokens, template included. Questions that are longer are not asked.
        chat: put the question into the tokenizer's chat template, as one message of the user.
        system: the system message of the chat, if any; "": an empty one, in place of a template's own.
        answer_prefix: how every answer begins, or a function of the question (as `draw` gave it) that says so. The
            policy goes on right after it, and it is a part of the answer that is graded. A conversation that brings the
            beginning of its answer keeps its own, which is a part of the question: what the policy wrote is graded
            alone.
        template_options: what the chat template takes besides the messages, such as {"enable_thinking": False}.

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
        answer_prefix: str | Callable[[Any], str] = "",
        template_options: Mapping[str, Any] | None = None,
    ):
        horizon = check_whole("horizon", horizon, 1, MOST_TOKENS)
        prompt_length = check_whole("prompt_length", prompt_length, 1, MOST_TOKENS)
        chat = check_flag("chat", chat)
        if not (
            isinstance(system, str) and system == ""
        ):  # an empty system message takes the place of a template's own
            check_text("system", system, optional=True)
        if not isinstance(answer_prefix, str) and (not callable(answer_prefix) or isinstance(answer_prefix, type)):
            raise ValueError(f"answer_prefix is {shown(answer_prefix)}; give a text, or a function of the question.")
        if template_options is not None and not (
            isinstance(template_options, Mapping) and all(isinstance(key, str) for key in template_options)
        ):
            raise ValueError(f"template_options is {shown(template_options)}; it must be a dict with names, or None.")
        self.tokenizer = load_tokenizer(tokenizer)
        if chat and not self.tokenizer.chat_template:
            raise ValueError(
                "chat=True, but this tokenizer has no chat template; use chat=False, or set `tokenizer.chat_template` "
                "to a Jinja template."
            )
        if system is not None and not chat:
            raise ValueError(f"system is {shown(system)}, but chat=False writes no messages; use chat=True.")
        self.chat, self.system, self.answer_prefix = chat, system, answer_prefix
        self.encoder = Encoder(self.tokenizer, template_options)
        self.horizon, self.prompt_length, self.vocab_size = horizon, prompt_length, len(self.tokenizer)
        self.eos, self.also_ends = None, ()
        self.end_also(*end_ids(self.tokenizer, self.encoder.end_of_turn))
        if chat:
            self._check_template()

    def end_also(self, *tokens: int) -> None:
        """Let these tokens, too, end a response: end tokens of a model that its tokenizer does not tell of."""
        if self.end_of_turn is not None:
            others = [token for token in tokens if token not in (self.eos, self.end_of_turn)]
            self.also_ends = tuple(dict.fromkeys((*self.also_ends, *others)))
            return
        ends = tuple(dict.fromkeys((*self.ends, *tokens)))
        closing = self.encoder.end_of_turn if self.chat else None
        self.eos = closing if closing in ends else next(iter(ends), None)
        self.also_ends = tuple(token for token in ends if token != self.eos)

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

    def draw_at(self, number: int) -> tuple[str | list[dict], Any]:
        """One of the listed questions, as `draw` gives it; for tasks over a list (`listed`)."""
        raise IndexError(f"{type(self).__name__} has no list of questions.")

    def question_at(self, number: int) -> Question:
        return self.ask(*self.draw_at(number))

    def ask(self, question: str | list[dict], secret: Any = None) -> Question:
        """A question of your own, for `reset(options={"question": …})`; `secret` is what `grade` needs to know, as from
        `draw`."""
        return Question(self.encode_question(question), Asked(question, secret, self.beginning(question)))

    def beginning(self, question: str | list[dict]) -> str:
        """What `answer_prefix` begins the answer to a question with; "" where the question brings a beginning."""
        if not isinstance(question, str) and question[-1].get("role") == "assistant":
            return ""
        if isinstance(prefix := self.answer_prefix, str):
            return prefix
        if not isinstance(text := prefix(question), str):
            raise ValueError(f"answer_prefix gave {text!r:.80} for the question {question!r:.80}; it must give a text.")
        return text

    def encode_question(self, question: str | list[dict]) -> tuple[int, ...]:
        """The prompt's tokens for a question in words, or in messages (which always go through the chat template)."""
        if isinstance(question, str) and not self.chat:
            return self.encoder.question(question, self.beginning(question))
        return self._encode_messages(self.messages(question))

    def messages(self, question: str | list[dict]) -> list[dict]:
        """A question as the messages of a chat: the system message first and the beginning of the answer last, if there
        are any."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        begun = self.beginning(question)
        return [*messages, {"role": "assistant", "content": begun}] if begun else messages

    def encode_response(self, text: str) -> tuple[int, ...]:
        """What the policy would write after a prompt to say this, end token included: for demonstrations and tests."""
        tokens = self.encoder.answer(text)
        return tokens if self.eos is None else (*tokens, self.eos)

    def score(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> Scores:
        return self.grade(self.replies(questions, tokens))

    def replies(self, questions: Sequence[Question], tokens: np.ndarray) -> list[Reply]:
        """Complete responses (N, T), -1 after the end, as `grade` takes them. What stands after the first end token
        counts for nothing."""
        ends, replies = {*self.ends}, []
        for question, row in zip(questions, np.asarray(tokens).tolist()):
            written = [token for token in row if token >= 0]
            end = next((place for place, token in enumerate(written) if token in ends), len(written))
            written = written[: end + 1]
            replies.append(self.reply_to(question, self.response_text(written, question.prompt), written))
        return replies

    @staticmethod
    def reply_to(question: Question, text: str, tokens: Sequence[int] = ()) -> Reply:
        """A reply to a question.

        Args:
            text: what the policy wrote, in words.
        """
        asked = question.secret
        return Reply(asked.text, asked.beginning + text, tuple(tokens), asked.secret)

    def response_text(self, tokens: Sequence[int], prompt: Sequence[int] = ()) -> str:
        """The text that a response adds to its prompt, without padding and end tokens (see `tokenizers.added_text`)."""
        dropped = {*self.ends, *self.turn_ends, getattr(self.tokenizer, "pad_token_id", None)}
        return added_text(self.tokenizer, prompt, [int(token) for token in tokens if token not in dropped])

    def decode(self, tokens: Sequence[int]) -> str:
        return plain_decode(self.tokenizer, [token for token in tokens if token >= 0])

    def _encode_messages(self, messages: list[dict]) -> tuple[int, ...]:
        return self.encoder.messages(messages)

    def _check_template(self) -> None:
        """ValueError if the chat template cannot write a question of this task."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt = self.decode(self._encode_messages([*told, {"role": "user", "content": "QUESTION"}]))
        if "QUESTION" not in prompt or (self.system or "").strip() not in prompt:
            raise ValueError(
                f"the chat template leaves out the {'question' if 'QUESTION' not in prompt else 'system message'}: it "
                f"writes {prompt!r:.200}; set tokenizer.chat_template to another."
            )


def require(module: str, extra: str, purpose: str) -> None:
    """Raise ImportError, in words, if an optional library is missing."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{purpose} needs the package {module}: pip install "llm-mdp[{extra}]"')
