"""Conversations in words, for language models: the policy's turns are tokens of any Hugging Face tokenizer, and what
the environment says goes through the model's chat template.

A subclass says two things: how a conversation begins (`draw`) and what a turn leads to (`respond`). In ten lines:

    class Riddle(TextTurns):
        separates, part_names = "nothing yet", ("right",)

        def draw(self, generator):
            number = int(generator.integers(1, 10))
            return "I think of a number from 1 to 9. Which?", number

        def respond(self, secret, said):
            right = said[-1].strip() == str(secret)
            return Response(None, {"right": 1.0}) if right else Response("No. Try again.")

    task = Riddle("FOLDER OF A MODEL", max_turns=5)
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from llm_mdp_envs.arguments import MOST_TOKENS, MOST_TURNS, check_whole
from llm_mdp_envs.task import PAD, Question, Scores, TaskError
from llm_mdp_envs.text import TextTask
from llm_mdp_envs.turns import JudgedTurns, Turn, mask_of, play, split_turns

MOST_REMEMBERED = 4096
"""Turns whose outcomes a task keeps, so that a conversation that grows is not replayed from its beginning each time."""

LEAST_REPLY = 64
"""A reply that is cut needs some tokens to say so."""


@dataclass(frozen=True)
class Response:
    """What one turn of the policy leads to."""

    reply: str | Sequence[dict] | None
    """What the environment says: a message of the user, or several messages of a chat ({"role": …, "content": …} each,
    roles among `reply_roles`); None: the conversation is over."""
    reward: Mapping[str, float] = field(default_factory=dict)
    """Graded parts of what the turn is worth, by name; those left out are 0."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Figures for people, by name, summed over the turns; those left out are 0."""


class TextTurns(JudgedTurns, TextTask):
    """Base of the conversations in words.

    What the policy samples survives as it is: it is never tokenised again. After each of its turns, which end with any
    end token of the model, the environment appends what the chat template writes between two turns (the line break
    after the end token, the reply with its headers, the header of the next turn); the policy did not choose these
    tokens, so their mask is False. The end of the response (the horizon, or `max_turns`) closes the last turn: what it
    says counts, but it gets no reply.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template, its name or its folder; None: `byte_tokenizer()`.
        max_turns: most turns of the policy.
        horizon: most response tokens, those of the environment included; a reply that would go beyond is cut there.
        reply_length: most tokens of one message of the environment, at least 64, without what the template writes
            around it; a longer text is cut, and says at its end how much of it is shown.
        prompt_length: longest prompt in tokens, template included. Questions that are longer are not asked.
        system: the system message, if any.

    Raises:
        ValueError: naming the argument, its value and the remedy; a chat template that closes turns without an end
            token, or that writes earlier turns anew when later ones follow, so that a conversation cannot be appended
            to.
    """

    detail_names: ClassVar[tuple[str, ...]] = ()
    """Names of all figures in `Response.details`."""
    reply_roles: tuple[str, ...] = ("user",)
    """Roles of the environment's messages."""
    speakers: ClassVar[tuple[str, str]] = ("policy", "environment")

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_turns: int = 8,
        horizon: int = 1024,
        reply_length: int = 256,
        prompt_length: int = 1024,
        system: str | None = None,
    ):
        self.max_turns = check_whole("max_turns", max_turns, 1, MOST_TURNS)
        self.reply_length = check_whole("reply_length", reply_length, LEAST_REPLY, MOST_TOKENS)
        if not getattr(self, "part_names", ()):
            raise TaskError(f'{type(self).__name__} names no reward parts; set part_names, such as ("right",).')
        super().__init__(tokenizer, horizon=horizon, prompt_length=prompt_length, chat=True, system=system)
        self.scaffold = Scaffold(self._encode_messages, self.tokenizer, self.messages("x"), self.reply_roles)
        ends = {*self.ends} - {self.scaffold.end_of_turn}
        self.eos, self.end_of_turn, self.also_ends = None, self.scaffold.end_of_turn, tuple(sorted(ends))
        self._remembered: dict[tuple, tuple[Question, Response, tuple[int, ...] | None]] = {}

    @abstractmethod
    def respond(self, secret: Any, said: Sequence[str]) -> Response:
        """What the policy's latest turn leads to, given all of its turns in words, the latest last.

        A pure function, so that restarts, replays and branches cost nothing.

        Args:
            secret: as `draw` gave it.
        """

    def grade(self, replies):
        """Replies that are one turn each."""
        worth = [self._checked(self.respond(reply.secret, [reply.text])) for reply in replies]
        parts = {name: np.array([float(one.reward.get(name, 0.0)) for one in worth]) for name in self.part_names}
        return Scores(np.sum(list(parts.values()), axis=0), parts)

    def reply(self, question, tokens):
        return self._outcome(question, self._said(question, tokens))[1]

    def score(self, questions, tokens, mask):
        scores = super().score(questions, tokens, mask)
        details = {name: np.zeros(len(questions)) for name in self.detail_names}
        for row, question in enumerate(questions):
            for _, response in self._responses(question, tokens[row], mask[row]):
                for name, value in response.details.items():
                    details[name][row] += value
        return Scores(scores.reward, scores.parts, details)

    def judged(self, question, tokens, mask):
        return [(turn, response.reward) for turn, response in self._responses(question, tokens, mask)]

    def encode_response(self, text: str) -> tuple[int, ...]:
        """One turn in words as tokens, its end token included: for demonstrations and tests."""
        return (*self.encoder.answer(text), self.scaffold.end_of_turn)

    def converse(self, question: Question, said: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The conversation in which the policy says this: tokens (T,) int64 and mask (T,) bool, as `turns.play`."""
        return play(self, question, [self.encode_response(text) for text in said])

    def conversations(self, questions: Sequence[Question], said: Sequence[Sequence[str]]) -> np.ndarray:
        """Conversations in which the policy says this, as `answers` gives them: (N, T) int64, -1 after the end."""
        rows = np.full((len(questions), self.horizon), PAD, dtype=np.int64)
        for row, question in enumerate(questions):
            tokens, _ = self.converse(question, said[row])
            rows[row, : len(tokens)] = tokens
        return rows

    def dialogue(self, question: Question, tokens: Sequence[int]) -> str:
        """The conversation with its speakers, one turn a line, the prompt first."""
        mask = mask_of(self, question, tokens)
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
        lines = [f"{self.speakers[1]}: {self.decode(question.prompt)}"]
        for start, stop in pairwise(edges):
            if stop > start:
                lines.append(f"{self.speakers[0 if mask[start] else 1]}: {self.decode(tokens[start:stop])}")
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered by ids, which mean nothing elsewhere."""
        return {**self.__dict__, "_remembered": {}}

    # --- turn by turn ---

    def _said(self, question: Question, tokens: Sequence[int]) -> tuple[str, ...]:
        """The policy's turns in words, of a response that ends with the end of one."""
        said, start = (), 0
        for place, token in enumerate(tokens):
            if place >= start and token in self.turn_ends:
                said = (*said, self.response_text(tokens[start:place], (*question.prompt, *tokens[:start])))
                if place + 1 < len(tokens):
                    start = place + 1 + len(self._outcome(question, said)[1] or ())
        return said

    def _responses(self, question: Question, tokens: np.ndarray, mask: np.ndarray) -> list[tuple[Turn, Response]]:
        """Every turn of one complete response (T,), and what it led to. What stands after the end of the conversation
        is worth nothing."""
        said, responses = (), []
        for turn in split_turns(tokens, mask, self.turn_ends)[: self.max_turns]:
            start = turn.last + 1 - len(turn.words) - int(tokens[turn.last] in self.turn_ends)
            said = (*said, self.response_text(turn.words, (*question.prompt, *tokens[:start].tolist())))
            responses.append((turn, self._outcome(question, said)[0]))
            if responses[-1][1].reply is None:
                break
        return responses

    def _outcome(self, question: Question, said: tuple[str, ...]) -> tuple[Response, tuple[int, ...] | None]:
        """What the latest turn leads to, and the reply as tokens."""
        # A question that is remembered here stays, so that no other gets its id.
        remembered, key = self._remembered, (id(question), said)
        if key not in remembered:
            response = self._checked(self.respond(question.secret.secret, list(said)))
            if len(remembered) >= MOST_REMEMBERED:
                del remembered[next(iter(remembered))]
            remembered[key] = (question, response, self._encode_reply(response.reply))
        return remembered[key][1:]

    def _encode_reply(self, reply: str | Sequence[dict] | None) -> tuple[int, ...] | None:
        if reply is None:
            return None
        messages = [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply)
        messages = self.as_written([{**each, "content": self._cut(each["content"])} for each in messages])
        for message in messages:
            if message["role"] not in self.reply_roles:
                raise TaskError(
                    f"{type(self).__name__}.respond replied as {message['role']!r}; the roles of this task's replies "
                    f"are {', '.join(self.reply_roles)} (reply_roles)."
                )
        return self.scaffold.encode_reply(messages)

    def as_written(self, messages: Sequence[dict]) -> Sequence[dict]:
        """The environment's messages in the form that the chat template has for them, where that is another."""
        return messages

    def _cut(self, text: str) -> str:
        """The text, or as much of it as `reply_length` allows with a note that it is not all."""

        def shown(characters: int) -> str:
            start = text[:characters]
            space = max(start.rfind(" "), start.rfind("\n"))
            start = start[:space] if space > characters // 2 else start
            return f"{start} … [cut: the first {len(start):,} of {len(text):,} characters]"

        def fits(candidate: str) -> bool:
            ids = self.tokenizer.encode(candidate, add_special_tokens=False, split_special_tokens=True)
            return len(ids) <= self.reply_length

        if fits(text):
            return text
        low, high = 0, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(shown(middle)) else (low, middle)
        return shown(low)

    def _checked(self, response: Any) -> Response:
        """TaskError if `respond` gave something else than it may."""
        where = f"{type(self).__name__}.respond"
        if not isinstance(response, Response):
            raise TaskError(f"{where} gave {response!r:.60}; it must give Response(reply, reward).")
        for kind, given, known in (
            ("reward", response.reward, self.part_names),
            ("details", response.details, self.detail_names),
        ):
            for name, value in given.items():
                if name not in known:
                    attribute = "part_names" if kind == "reward" else "detail_names"
                    raise TaskError(f"{where} gave the {kind} {name!r}, which {attribute} = {known} lacks; add it.")
                if not np.isfinite(value):
                    raise TaskError(f"{where} gave {value} as the {kind} {name!r}; it must be a finite number.")
        for message in [] if response.reply is None or isinstance(response.reply, str) else response.reply:
            texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
            if not all(isinstance(text, str) for text in texts):
                raise TaskError(f'{where} replied {message!r:.60}; a message is {{"role": …, "content": a text}}.')
        return response


PLAIN, THOUGHTFUL = "aye", "<think>\nq\n</think>\n\naye"
"""What the assistant says to find out what a template makes of it."""


class Scaffold:
    """What a chat template writes between two turns of the assistant, found by letting it write short conversations.

    Args:
        encode: messages -> tokens, with the header of the assistant's next turn at the end.
        beginning: messages that a conversation begins with, up to the first turn of the assistant.
        roles: of the messages that follow the assistant's turns.

    Raises:
        ValueError: the template refuses such conversations, closes turns without an end token, or writes earlier turns
            anew when later ones follow.
    """

    def __init__(
        self,
        encode: Callable[[list[dict]], Sequence[int]],
        tokenizer: Any,
        beginning: Sequence[dict],
        roles: Sequence[str],
    ):
        self.encode, self.tokenizer = encode, tokenizer
        self.added = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
        try:
            opened = tuple(encode(list(beginning)))
            self.begun, self.end_of_turn, self.start = self._closed(beginning, opened, roles)
            second = PLAIN if self._text(opened).endswith("</think>") else THOUGHTFUL
            for role in roles:
                self._check_appending(role, second)
        except Exception as error:  # templates raise errors of many kinds
            raise ValueError(
                f"the tokenizer's chat template cannot be appended to turn by turn with replies of the role "
                f"{' or '.join(map(repr, roles))}: {str(error).strip().rstrip('.')}; set tokenizer.chat_template to "
                f"one that only ever adds to what it wrote (TRL's get_training_chat_template has some)."
            ) from error

    def encode_reply(self, messages: Sequence[dict]) -> tuple[int, ...]:
        """What follows the end token of the assistant's turn: these messages, and the header of the next turn."""
        return tuple(self.encode([*self.begun, *messages]))[self.start :]

    def _closed(
        self, beginning: Sequence[dict], opened: tuple[int, ...], roles: Sequence[str]
    ) -> tuple[list[dict], int, int]:
        """A conversation up to a first turn of the assistant, the token that closes this turn, and the place after it.

        The turn is one with thoughts where the header has begun them already.
        """
        wrong = ""
        for said in (PLAIN, THOUGHTFUL):
            begun = [*beginning, {"role": "assistant", "content": said}]
            written = [tuple(self.encode([*begun, {"role": role, "content": "z"}])) for role in roles]
            if any(tokens[: len(opened)] != opened for tokens in written):
                wrong = wrong or "it writes the header of the assistant's turn anew when the turn follows"
                continue
            places = {self._end(tokens, len(opened)) for tokens in written}
            place = places.pop()
            if place is None:
                raise ValueError("it writes no end token after the assistant's turns")
            if places or len({tokens[place] for tokens in written}) > 1:
                raise ValueError("it closes the assistant's turn in another way before every role")
            if any(place + 1 == len(tokens) for tokens in written):
                raise ValueError("it writes nothing between two turns of the assistant")
            return begun, written[0][place], place + 1
        raise ValueError(wrong)

    def _end(self, tokens: tuple[int, ...], start: int) -> int | None:
        """Place of the first control token after what the assistant says from `start` on; None: there is none."""
        ends = (place for place in range(start, len(tokens)) if tokens[place] in self.added)
        return next((place for place in ends if self._text(tokens[start:place]).endswith(PLAIN)), None)

    def _check_appending(self, role: str, second: str) -> None:
        """A second turn leaves everything before it as it is, and is followed like the first."""
        replies = [{"role": role, "content": text} for text in "zv"]
        written = tuple(self.encode([*self.begun, replies[0]]))
        spoken = {"role": "assistant", "content": second}
        whole = tuple(self.encode([*self.begun, replies[0], spoken, replies[1]]))
        place = self._end(whole, len(written))
        if whole[: len(written)] != written or place is None:
            raise ValueError("it writes earlier turns anew when later ones follow")
        said = self._text(whole[len(written) : place])
        # What the header has begun is left out, and some templates put empty thoughts before plain words.
        if ("q" in second and "q" not in said) or not (second.endswith(said) or said.endswith(second)):
            raise ValueError(f"it turns {second!r}, said earlier, into {said!r:.60}")
        if whole[place] != self.end_of_turn or whole[place + 1 :] != self.encode_reply([replies[1]]):
            raise ValueError("what it writes between two turns depends on their number")

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False).strip()
