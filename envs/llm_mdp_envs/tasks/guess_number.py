"""Guess the number: the shortest conversation. A guess, digit by digit, is answered "higher" or "lower".

Separates estimators by turn-level credit with a known optimum: bisection needs the fewest turns on average, and an
early bad guess shows only in when the number is found.
"""

from llm_mdp_envs.arguments import MOST_TOKENS, MOST_TURNS, check_finite, check_flag, check_whole
from llm_mdp_envs.task import Question
from llm_mdp_envs.turns import Outcome, TwoFaced

DIGITS = tuple("0123456789")
MOST_NUMBERS = 10**18


class GuessNumber(TwoFaced):
    """Find a number between 1 and `highest`.

        RM(W) = [found at turn k] (1 - (k - 1) / max_turns) - malformed_penalty × malformed turns

    A turn is malformed if it is not a number between 1 and `highest` in decimal digits without leading zeros; it is
    answered "unclear" and uses up a turn. The prompt is `highest`.

    Args:
        highest: 1 … 10^18.
        max_turns: 1 … 10,000; bisection finds any number in ⌈log₂(highest + 1)⌉.
        malformed_penalty: at least 0.
        horizon: most tokens of a response; None: enough for `max_turns` guesses of the longest length with their
            replies.
        text: the same game in words, for language models: a `GuessNumberText`, with the arguments of it.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = "turn-level credit with a known optimum (bisection): early turns decide how late the reward comes"
    words = (*DIGITS, "higher", "lower", "unclear", ".", "<eos>")
    vocab_size = len(words)
    end_of_turn = words.index(".")
    eos = words.index("<eos>")
    part_names = ("found", "turns", "malformed")
    text_face = "llm_mdp_envs.tasks.guess_number_text:GuessNumberText"
    speakers = ("guesser", "host")

    def __init__(
        self,
        highest: int = 100,
        max_turns: int = 10,
        malformed_penalty: float = 0.05,
        horizon: int | None = None,
        text: bool = False,
    ):
        check_flag("text", text)
        self.highest = check_whole("highest", highest, 1, MOST_NUMBERS)
        self.max_turns = check_whole("max_turns", max_turns, 1, MOST_TURNS)
        self.malformed_penalty = check_finite("malformed_penalty", malformed_penalty, 0)
        digits = len(str(self.highest))
        self.horizon = (
            self.max_turns * (digits + 3) if horizon is None else check_whole("horizon", horizon, 1, MOST_TOKENS)
        )
        self.prompt_length = digits + 1

    def question(self, generator):
        prompt = self.encode(" ".join(str(self.highest)) + " .")
        return Question(prompt, secret=int(generator.integers(1, self.highest + 1)))

    def outcome(self, question, earlier, turn):
        guess = self.number(turn)
        if guess is None:
            return Outcome(self.encode("unclear"), {"malformed": -self.malformed_penalty})
        if guess == question.secret:
            return Outcome(None, {"found": 1.0, "turns": -len(earlier) / self.max_turns})
        return Outcome(self.encode("higher" if question.secret > guess else "lower"))

    def best_reward(self) -> float | None:
        """The expected reward of bisection, the best guesser: turn k finds at most 2^(k-1) numbers.

            (1/highest) Σₖ min(2^(k-1), numbers that are left) (1 - (k-1) / max_turns)

        None where the horizon would cut its longest game short.
        """
        turns, digits = min(self.max_turns, self.highest.bit_length()), len(str(self.highest))
        if self.horizon < turns * (digits + 3) - 3:
            return None
        found = [min(2**k, self.highest + 1 - 2**k) for k in range(turns)]
        return sum(count * (1 - k / self.max_turns) for k, count in enumerate(found)) / self.highest

    def number(self, turn: tuple[int, ...]) -> int | None:
        """The number that a turn says, None if it is malformed."""
        digits = all(word < len(DIGITS) for word in turn)
        # The length comes first: a response may hold more digits than Python converts.
        if not digits or not 1 <= len(turn) <= len(str(self.highest)) or turn[0] == 0:
            return None
        guess = int("".join(DIGITS[word] for word in turn))
        return guess if guess <= self.highest else None
