"""Questions and answers in words as tokens: control tokens that a question merely spells are encoded as text, also
inside a chat template, and a conversation that ends with the assistant's message is continued."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from llm_mdp_envs.tokenizers import added_tokens

ROLE = re.compile(r"[\w.-]+")
THINKING = re.compile(r"\s*<think>")
OPENED = re.compile(r"<think>\s*$")
THOUGHTS = ("<think>", "</think>")
PROBE = [{"role": role, "content": f"PROBE-{role}"} for role in ("user", "assistant", "user")]
"""A conversation that every template should write."""
OTHERS = (
    ([*PROBE[:2], {"role": "tool", "content": "x"}, PROBE[0]], False),
    ([{"role": "system", "content": "x"}, PROBE[0]], True),
    (PROBE[:1], True),
)
"""Conversations, with the header of the next turn or without, that some templates refuse."""
SPARE = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xF0100))
"""Code points that are no characters, then private ones: marks that a template lets through."""


class Encoder:
    """What stands between words and the tokens of a tokenizer.

    Control tokens are its special tokens, and those of its other added tokens that its chat template writes. Users,
    systems and tools can only spell them. An assistant, whose words the policy may have written or go on with, writes
    tokens such as <think> and <answer>, and can only spell those that the template puts around messages (`framing`).

    Args:
        tokenizer: a Hugging Face tokenizer.
        template_options: what the chat template takes besides the messages, such as enable_thinking.
    """

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None):
        self.tokenizer, self.template_options = tokenizer, dict(template_options or {})

    # --- what the tokenizer and its template are like ---

    @cached_property
    def control(self) -> tuple[str, ...]:
        """Tokens that a question can only spell, as texts."""
        probes = [self._probe(*each) for each in OTHERS]
        written = "\n".join([_template_of(self.tokenizer), self._framed, *probes])
        contents = {
            token.content
            for token in added_tokens(self.tokenizer).values()
            # An added token of letters or of spaces is a word like any other, wherever the template has it.
            if token.special or (token.content in written and re.search(r"[^\w\s]", token.content))
        }
        return _longest_first({*contents, *getattr(self.tokenizer, "all_special_tokens", ())})

    @cached_property
    def framing(self) -> tuple[str, ...]:
        """Tokens that an answer can only spell, as texts."""
        named = {getattr(self.tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk")}
        written = {token for token in self.control if token in self._framed and token not in THOUGHTS}
        return _longest_first(written | {token for token in self.control if token in named})

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the chat template writes right after an assistant's message; None: it writes another text."""
        after = self._framed.rpartition(PROBE[1]["content"])[2].lstrip()
        found = re.match(_any_of(self.control), after) if after and self.control else None
        return None if found is None else self._id(found[0])

    @cached_property
    def unknown(self) -> int | None:
        return getattr(self.tokenizer, "unk_token_id", None)

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(map(self._id, self.control))

    @cached_property
    def _stands_alone(self) -> bool:
        """Is a text after a special token encoded as it is alone?"""
        if not self.control:
            return False
        after = self._encode(f"{self.control[0]}x")
        return after[1:] == self._encode("x")

    @cached_property
    def _framed(self) -> str:
        return self._probe(PROBE, False)

    def _probe(self, messages: Sequence[Mapping], more: bool) -> str:
        """A conversation as the template writes it; "" if there is no template for it."""
        if not _template_of(self.tokenizer):
            return ""
        try:
            return self._render(messages, more)
        except ValueError:
            return ""

    # --- encoding ---

    def question(self, text: str, beginning: str = "") -> tuple[int, ...]:
        """The prompt for a text without a chat, and the beginning of its answer."""
        mark = _spare(text, beginning)
        marked = _marked(text, self.control, mark) + _marked(beginning, self.framing, mark)
        if mark not in marked:
            tokens = tuple(self.tokenizer.encode(text + beginning))
            # Some tokenizers close every text with the end token; a prompt must stay open.
            tokens = tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens
            return self._checked(tokens, [*self._found(text + beginning), *self._around[0], *self._around[1]])
        return (*self._around[0], *self._encode_marked(marked, mark))

    def answer(self, text: str) -> tuple[int, ...]:
        """An answer in words, as what stands after a prompt; without an end token."""
        mark = _spare(text)
        marked = _marked(text, self.framing, mark)
        return self._encode_marked(marked, mark, inside=True)

    def messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> tuple[int, ...]:
        """The prompt for a conversation: the header of the assistant's next turn at its end, or, where the assistant
        has the last word, its message without an end.

        Raises:
            ValueError: messages that are none, or that the template refuses or leaves out.
        """
        _check_messages(messages)
        mark, first, last = _spares(3, *_strings(messages))
        marked = [
            {
                key: value if key == "role" else _marked(value, self._spelled_only(message["role"]), mark)
                for key, value in message.items()
            }
            for message in messages
        ]
        if marked[-1]["role"] == "assistant" and _text_of(marked[-1]):
            rendered = self._continued(marked, first, last, tools)
        else:
            rendered = self._render(marked, True, tools)
        return self._encode_marked(rendered, mark)

    def _spelled_only(self, role: str) -> tuple[str, ...]:
        return self.framing if role == "assistant" else self.control

    def _continued(self, messages: list[dict], first: str, last: str, tools: Sequence[Any] | None) -> str:
        """A conversation up to the end of its last message, which the template may have trimmed or moved."""
        *before, message = messages
        text = _text_of(message)
        if THINKING.match(text):
            # Some templates have opened the thoughts already, others close empty ones before a message.
            return OPENED.sub("", self._render(before, True, tools)) + text
        rendered = self._render([*before, {**message, "content": f"{first}{text}{last}"}], False, tools)
        end = rendered.find(last)
        beginning = rendered[:end].replace(first, "")
        if end < 0 or rendered.count(last) > 1 or not beginning.endswith(text):
            raise ValueError(
                f"the chat template leaves out a part of the assistant's last message, {text!r:.60}, so the policy "
                f"cannot go on with it; change that message, or set tokenizer.chat_template."
            )
        return beginning

    def _render(self, messages: Sequence[Mapping], more: bool, tools: Sequence[Any] | None = None) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                tokenize=False,
                add_generation_prompt=more,
                **self.template_options,
            )
        except Exception as error:  # templates raise errors of many kinds
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ValueError(
                f"the chat template refuses a conversation of {roles}: {' '.join(str(error).split())!s:.200}; give it "
                f"other messages, or set tokenizer.chat_template."
            ) from error

    def _encode(self, text: str, as_text: bool = False) -> list[int]:
        # Not every tokenizer has the option, and only a text that spells a control token needs it.
        options = {"split_special_tokens": True} if as_text else {}
        return list(self.tokenizer.encode(text, add_special_tokens=False, **options))

    def _encode_inside(self, text: str, as_text: bool = False) -> list[int]:
        """A text that stands after another: without the space that some tokenizers put before every text."""
        line, tokens = self._encode("\n"), self._encode(f"\n{text}", as_text)
        return tokens[len(line) :] if tokens[: len(line)] == line else self._encode(text, as_text)

    def _encode_marked(self, text: str, mark: str, inside: bool = False) -> tuple[int, ...]:
        """A text in which a mark stands inside each token that is merely spelled."""
        first = self._encode_inside if inside else self._encode
        if mark not in text:
            return self._checked(first(text), self._found(text))
        # A piece after the first one follows a control token.
        later = self._encode if self._stands_alone else self._encode_inside
        pieces = re.split(f"({_any_of(self.control)})", text)
        runs: list[tuple[str, bool]] = []
        for number, piece in enumerate(pieces):
            if mark in piece:
                runs.append((self._trimmed(pieces, number).replace(mark, ""), True))
            elif runs and not runs[-1][1]:
                runs[-1] = (runs[-1][0] + piece, False)
            else:
                runs.append((piece, False))
        tokens: list[int] = []
        for number, (piece, as_text) in enumerate(runs):
            encoded = (later if number else first)(piece, as_text)
            tokens += self._encode_apart(piece) if as_text and self._controls(encoded) else encoded
        return self._checked(tokens, self._found(pieces[1::2]))

    def _trimmed(self, pieces: list[str], number: int) -> str:
        """A piece of text without the spaces that the tokens beside it take in."""
        known, piece = {token.content: token for token in added_tokens(self.tokenizer).values()}, pieces[number]
        before = known.get(pieces[number - 1]) if number else None
        after = known.get(pieces[number + 1]) if number + 1 < len(pieces) else None
        piece = piece.lstrip() if before is not None and before.rstrip else piece
        return piece.rstrip() if after is not None and after.lstrip else piece

    def _encode_apart(self, text: str) -> list[int]:
        """A text in whose spelled tokens the first letter is encoded apart, for tokenizers that find a control token in
        plain text."""
        broken = re.split(f"(?<=.)(?={_any_of([token[1:] for token in self.control if token[1:]])})", text)
        encoders = [self._encode, *[self._encode_inside] * len(broken)]
        return [token for part, encode in zip(broken, encoders) for token in encode(part, True)]

    def _found(self, written: str | Sequence[str]) -> list[int]:
        """The control tokens that stand in a text."""
        if isinstance(written, str):
            written = re.findall(_any_of(self.control), written) if self.control else ()
        return [self._id(token) for token in written]

    def _controls(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token in self._control_ids and token != self.unknown]

    def _checked(self, tokens: Sequence[int], meant: Sequence[int]) -> tuple[int, ...]:
        """The tokens; ValueError if they hold other control tokens than those that are meant."""
        if more := Counter(self._controls(tokens)) - Counter(meant):
            name = self.tokenizer.decode([next(iter(more))])
            raise ValueError(
                f"the tokenizer makes its control token {name} of plain text, so it would end or begin something that "
                f"the text only spells; use another tokenizer, or leave {name} out of the text."
            )
        return tuple(tokens)

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts before and after every text."""
        plain, whole = self._encode("x"), list(self.tokenizer.encode("x"))
        start = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)
        return tuple(whole[:start]), tuple(whole[start + len(plain) :])

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f'the conversation is {messages!r:.80}; it must be a list of {{"role": …, "content": …}}.')
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            raise ValueError(
                f"message {number} of the conversation is {message!r:.80}; it must be a mapping whose role is one "
                f"word, such as 'user'."
            )


def _text_of(message: Mapping[str, Any]) -> str:
    """The content of a message, whole or in parts, as one text; "" if it calls tools or says nothing."""
    content = message.get("content")
    if message.get("tool_calls") or not content:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") if isinstance(part, Mapping) else str(part) for part in content)


def _template_of(tokenizer: Any) -> str:
    """The text of a tokenizer's chat template, of all of them if it has several."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else "\n".join(map(str, template.values()))


def _marked(value: Any, tokens: Sequence[str], mark: str) -> Any:
    """The value with a mark inside each of these tokens that a text in it spells."""
    if isinstance(value, str):
        spelled = re.compile(_any_of(tokens)) if tokens else None
        return value if spelled is None else spelled.sub(lambda found: found[0][0] + mark + found[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _marked(each, tokens, mark) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(each, tokens, mark) for each in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _spares(number: int, *texts: str) -> list[str]:
    """Marks that none of these texts holds."""
    used = set().union(*texts) if texts else set()
    return [each for each in map(chr, SPARE) if each not in used][:number]


def _spare(*texts: str) -> str:
    return _spares(1, *texts)[0]


def _any_of(tokens: Sequence[str]) -> str:
    return "|".join(map(re.escape, tokens))


def _longest_first(tokens: set[str]) -> tuple[str, ...]:
    return tuple(sorted(tokens, key=lambda token: (-len(token), token)))
