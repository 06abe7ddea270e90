"""Sums, differences and products in decimal digits, with the task's own characters as tokens.

The hidden reward of a token is whether it is the right digit at its place. What an agent sees of it is a choice: the
share of right digits at the end, whether all are right, or, for comparison runs, every token's own reward at its step.
"""

import re
from typing import ClassVar, Literal

import numpy as np

from llm_mdp_envs.arguments import MOST_TOKENS, check_choice, check_flag, check_whole, shown
from llm_mdp_envs.array_task import ArrayTask
from llm_mdp_envs.task import PAD, Question, Scores

CHARACTERS = "0123456789+-*=#"
EOS = len(CHARACTERS)
MINUS, EQUALS, MARK = CHARACTERS.index("-"), CHARACTERS.index("="), CHARACTERS.index("#")
OPERATORS = "+-*"
PROMPT_ONLY = "+*="


class Arithmetic(ArrayTask):
    """Prompts such as `47+8=`; the right response is `55` and the end token.

    rₜ = 1/n if token t is the right one at its place, else 0, where n counts the answer's characters and the end token;
    so Σₜ rₜ = 1 for the right answer and only for it. With a scratchpad, the response may begin with up to `scratchpad`
    characters of any kind, the answer follows the first `#`, and places are counted from there.

    Args:
        operators: some of "+-*", drawn with equal probability. Differences may be negative.
        digits: most digits of an operand, 1 … 9; operands are uniform on 0 … 10^digits - 1.
        scratchpad: most characters before the `#`; 0: there is no scratchpad and no `#`.
        reward: "sum" (Σₜ rₜ at the end), "outcome" (1 if all is right, else 0, at the end) or "token" (rₜ at every
            step).
        restricted: let the action mask forbid `+*=` (and `#`) in responses; not with a scratchpad, where everything is
            allowed.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    text_face: ClassVar[str] = "llm_mdp_envs.tasks.arithmetic_text:ArithmeticText"
    """With text=True a task is made of this class, in words (`registry.face_of`)."""
    separates: ClassVar[str] = (
        "token rewards from their sum and from the outcome alone, on a task with structure to learn"
    )

    def __init__(
        self,
        operators: str = "+",
        digits: int = 2,
        scratchpad: int = 0,
        reward: Literal["sum", "outcome", "token"] = "sum",
        restricted: bool = False,
    ):
        if (
            not isinstance(operators, str)
            or not operators
            or set(operators) - set(OPERATORS)
            or len(set(operators)) < len(operators)
        ):
            raise ValueError(f"operators is {shown(operators)}; give some of {OPERATORS!r}, each once.")
        digits, scratchpad = check_whole("digits", digits, 1, 9), check_whole("scratchpad", scratchpad, 0, MOST_TOKENS)
        check_choice("reward", reward, ("sum", "outcome", "token"))
        check_flag("restricted", restricted)
        if restricted and scratchpad:
            raise ValueError(
                "restricted forbids characters that a scratchpad may need; give scratchpad=0 or restricted=False."
            )
        self.operators, self.digits, self.scratchpad, self.reward, self.restricted = (
            operators,
            digits,
            scratchpad,
            reward,
            restricted,
        )
        self.reveals_token_rewards = reward == "token"
        self.vocab_size, self.eos = len(CHARACTERS) + 1, EOS
        self.prompt_length = 2 * digits + 2
        self.answer_length = 2 * digits if "*" in operators and digits > 1 else digits + 1
        self.horizon = self.answer_length + 1 + (scratchpad + 1 if scratchpad else 0)

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """(n, 3): index into `OPERATORS`, first operand, second operand."""
        chosen = np.array([OPERATORS.index(operator) for operator in self.operators])
        operands = generator.integers(10**self.digits, size=(n, 2))
        return np.column_stack([chosen[generator.integers(len(chosen), size=n)], operands])

    def prompts(self, secrets: np.ndarray) -> np.ndarray:
        operator = np.array([CHARACTERS.index(character) for character in OPERATORS])[secrets[:, :1]]
        first, second = (numerals(secrets[:, column], self.digits) for column in (1, 2))
        text = np.concatenate([first, operator, second, np.full_like(operator, EQUALS)], axis=1)
        return np.take_along_axis(text, np.argsort(text != PAD, axis=1, kind="stable"), axis=1)

    def answer_rows(self, secrets: np.ndarray) -> np.ndarray | None:
        """The right responses; None with a scratchpad, where many are right."""
        return None if self.scratchpad else self.right_answers(secrets)

    def right_answers(self, secrets: np.ndarray) -> np.ndarray:
        """The right tokens, end token included: (n, answer_length + 1) int64, padded with -1 on the right."""
        operator, a, b = secrets.T
        value = np.select([operator == 0, operator == 1], [a + b, a - b], a * b)
        sign = np.where(value < 0, MINUS, PAD)[:, None]
        text = np.concatenate([sign, numerals(abs(value), self.answer_length), np.full_like(sign, EOS)], axis=1)
        return np.take_along_axis(text, np.argsort(text == PAD, axis=1, kind="stable"), axis=1)[
            :, : self.answer_length + 1
        ]

    def token_reward_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The hidden token rewards (n, T), whatever of them `reward` lets an agent see."""
        right, length = self._right(secrets, tokens, mask)
        return right / length[:, None]

    def score_rows(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> Scores:
        right, length = self._right(secrets, tokens, mask)
        count = right.sum(1)
        return Scores((count == length).astype(np.float64) if self.reward == "outcome" else count / length)

    def _right(self, secrets: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens (n, T) are the right ones at their places, and the lengths (n,) of the right answers, end token
        included."""
        answer = self.right_answers(secrets)
        place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        if self.scratchpad:
            marks = np.cumsum(tokens == MARK, axis=1)
            place = np.cumsum(marks > 0, axis=1) - 2
        within = (place >= 0) & (place < answer.shape[1])
        wanted = np.take_along_axis(answer, np.where(within, place, 0), axis=1)
        return mask & within & (tokens == wanted), (answer != PAD).sum(1)

    def action_masks(self, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray | None:
        if not self.restricted:
            return None
        allowed = np.ones(self.vocab_size, dtype=np.int8)
        allowed[[CHARACTERS.index(character) for character in PROMPT_ONLY + "#"]] = 0
        return np.tile(allowed, (len(tokens), 1))

    def from_prompt(self, tokens: tuple[int, ...]) -> Question:
        """The question with this prompt, such as the tokens of `47+8=`."""
        text = self.decode(tokens)
        number = f"(0|[1-9][0-9]{{0,{self.digits - 1}}})"
        match = re.fullmatch(f"{number}([{re.escape(self.operators)}]){number}=", text)
        if not match:
            raise ValueError(
                f"the prompt reads {text!r}; it must be two numbers of at most {self.digits} digits, as in "
                f"{self._example!r}."
            )
        first, operator, second = match.groups()
        return Question(tokens, (OPERATORS.index(operator), int(first), int(second)))

    @property
    def _example(self) -> str:
        return f"7{self.operators[0]}5="

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; ValueError for a character that the task does not have."""
        for character in text:
            if character not in CHARACTERS:
                raise ValueError(f"{character!r} in {text!r} is no character of this task; it has {CHARACTERS!r}.")
        return [CHARACTERS.index(character) for character in text]

    def decode(self, tokens) -> str:
        return "".join(CHARACTERS[token] for token in tokens if 0 <= token < EOS)


def numerals(values: np.ndarray, width: int) -> np.ndarray:
    """Decimal digits of non-negative numbers (n,): (n, width) int64, the last digit on the right, -1 where a number is
    shorter."""
    digits = values[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10
    leading = (np.cumsum(digits, axis=1) == 0) & (np.arange(width) < width - 1)
    return np.where(leading, PAD, digits)
