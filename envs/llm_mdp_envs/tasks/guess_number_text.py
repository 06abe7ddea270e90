"""Guess the number, in words: the same game as `guess_number`, for language models."""

import re
from typing import Any

from llm_mdp_envs.task import Question
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.text_turns import Response, TextTurns
from llm_mdp_envs.tool_calls import without_thoughts

SAID = re.compile(r"(?<!\w)[-−]?\d[\d.,]*(?!\w)")
NUMBER = re.compile(r"\d+|\d{1,3}(,\d{3})+")
MOST_WORDS = 12
"""Of a guess. Models chat: a longer turn that happens to hold a number is none."""


class GuessNumberText(TextTurns):
    """Find a number between 1 and `highest` in a conversation: a guess is answered "higher" or "lower".

        RM(W) = [found at turn k] (1 - (k - 1) / max_turns) - malformed_penalty × malformed turns

    A turn of at most 12 words guesses a number if that is the only one that it says, in digits; thoughts in <think> do
    not count. Any other turn is malformed: it is told so, and uses up a turn.

    Args:
        tokenizer, horizon, reply_length, prompt_length, system: as in `TextTurns`.
        highest, max_turns, malformed_penalty: as in `GuessNumber`.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = GuessNumber.separates
    part_names = GuessNumber.part_names
    speakers = GuessNumber.speakers

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        highest: int = 100,
        max_turns: int = 10,
        malformed_penalty: float = 0.05,
        horizon: int = 1024,
        reply_length: int = 128,
        prompt_length: int = 1024,
        system: str | None = None,
    ):
        self.game = GuessNumber(highest, max_turns, malformed_penalty)
        super().__init__(
            tokenizer,
            max_turns=max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    def draw(self, generator):
        text = (
            f"I am thinking of a whole number from 1 to {self.game.highest}. Guess it: each time, say one number and "
            f"nothing else, and I will tell you whether mine is higher or lower. You have {self.max_turns} guesses."
        )
        return text, int(generator.integers(1, self.game.highest + 1))

    def respond(self, secret, said):
        *earlier, latest = [self.words(text) for text in said]
        outcome = self.game.outcome(Question((), secret), earlier, latest)
        if outcome.reply is None:
            return Response(None, outcome.reward)
        told = self.game.decode(outcome.reply)
        if told == "unclear":
            return Response(f"Say one whole number from 1 to {self.game.highest}.", outcome.reward)
        return Response(f"My number is {told}.", outcome.reward)

    def words(self, text: str) -> tuple[int, ...]:
        """What a turn says in the words of the game: the digits of the one number in it; none if it says no number, or
        several, or more than a guess."""
        text = without_thoughts(text)
        if len(text.split()) > MOST_WORDS:
            return ()
        said = {found.rstrip(".,") for found in SAID.findall(text)}
        number = said.pop() if len(said) == 1 else ""
        digits = number.replace(",", "").lstrip("0") if NUMBER.fullmatch(number) else ""
        return tuple(int(digit) for digit in digits)

    def best_reward(self) -> float | None:
        """The expected reward of bisection, the best guesser; None where the horizon of the game may cut it short."""
        return self.game.best_reward()
