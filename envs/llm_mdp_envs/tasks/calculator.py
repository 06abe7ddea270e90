"""Sums that are too long for the head, and a calculator to call.

Separates policies that use a tool from those that guess, and agents by credit over turns: the call comes turns before
the answer that it makes right.
"""

import ast
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

from llm_mdp_envs.arguments import check_finite, check_whole
from llm_mdp_envs.tasks.numbers import last_number
from llm_mdp_envs.tool_turns import ToolTurns
from llm_mdp_envs.tools import ToolError

LONGEST_EXPRESSION = 200
"""Characters of an expression."""
MOST_BITS = 4096
"""Of a numerator or denominator on the way."""
MOST_DEPTH = 40
"""Nested brackets and signs."""

DIGITS = Context(prec=12)
"""Of results that are no whole numbers."""

SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Calculator(ToolTurns):
    """Work out a sum of large numbers, such as (4821 - 377) * 56, with the tool `calculate`.

        RM(W) = [the last number of the answer is right] + call_reward [a call had a result]
                - fault_penalty × faulty calls

    The answer is the first turn without a call. Faulty calls are those that cannot be read, have wrong arguments or are
    refused by the calculator; the reply says why.

    Args:
        tokenizer, max_turns, horizon, reply_length, prompt_length, system: as in `ToolTurns`.
        digits: of every number, 1 … 9.
        operations: in a sum, 1 … 5.
        call_reward: for the first call with a result, at least 0.
        fault_penalty: at least 0.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = "tool use: calling and copying the result from guessing; credit over turns"
    part_names = ("right", "called", "faults")

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_turns: int = 4,
        horizon: int = 512,
        reply_length: int = 128,
        prompt_length: int = 2048,
        system: str | None = None,
        digits: int = 4,
        operations: int = 2,
        call_reward: float = 0.1,
        fault_penalty: float = 0.05,
    ):
        self.digits = check_whole("digits", digits, 1, 9)
        self.operations = check_whole("operations", operations, 1, 5)
        self.call_reward = check_finite("call_reward", call_reward, 0)
        self.fault_penalty = check_finite("fault_penalty", fault_penalty, 0)
        super().__init__(
            tokenizer,
            max_turns=max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    def draw(self, generator):
        low, high = 10 ** (self.digits - 1), 10**self.digits
        numbers = generator.integers(low, high, size=self.operations + 1).tolist()
        text = str(numbers[0])
        for place, number in enumerate(numbers[1:]):
            sign = "+-*"[generator.integers(3)]
            # Brackets before a product, so that the order of the operations is the order of the words.
            text = f"({text})" if sign == "*" and place else text
            text = f"{text} {sign} {number}"
        return f"What is {text}?", text

    def tools(self, secret):
        return [calculate]

    def answered(self, secret, text, results):
        return {"right": float(says(text, evaluate(secret)))}

    def called(self, secret, earlier, latest):
        first = all(result.fault for result in earlier) and not all(result.fault for result in latest)
        faults = sum(result.fault == "call" for result in latest)
        return {"called": self.call_reward * first, "faults": -self.fault_penalty * faults}

    def answers(self, questions):
        sums = [question.secret.secret for question in questions]
        said = [[self.call_text("calculate", expression=each), calculate(each)] for each in sums]
        return self.conversations(questions, said)


def calculate(expression: str) -> str:
    """Work out an arithmetic expression, such as (12 + 3.5) * 2.

    Args:
        expression: numbers, brackets and + - * / // % **.
    """
    value = evaluate(expression)
    if value.denominator == 1:
        return str(value.numerator)
    return str(DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator)))


def says(text: str, value: Fraction) -> bool:
    """Is this the last number of a text?"""
    said = last_number(text)
    try:
        return said is not None and Fraction(said) == value
    except ZeroDivisionError:
        return False


def evaluate(expression: str) -> Fraction:
    """An arithmetic expression, exactly: nothing but numbers and + - * / // % **, in bounded time and memory.

    Raises:
        ToolError: in words, if it is something else, divides by zero, or becomes too large.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", expression.translate(SIGNS)).strip().removesuffix("=")
    if len(text) > LONGEST_EXPRESSION:
        raise ToolError(f"the expression has {len(text)} characters; at most {LONGEST_EXPRESSION} are read.")
    if re.search(r"[eE]-\d{3}", text):
        raise ToolError("a number is too small.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"{expression.strip()!r:.60} is no arithmetic expression.") from None
    return _value(tree.body, MOST_DEPTH)


def _value(node: ast.expr, depth: int) -> Fraction:
    if depth == 0:
        raise ToolError(f"the expression is nested more than {MOST_DEPTH} deep.")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(_number(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, depth - 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left, depth - 1), _value(node.right, depth - 1))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        if right == 0 and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod):
            raise ToolError("this divides by zero.")
        return _small(Fraction(OPERATIONS[type(node.op)](left, right)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        raise ToolError("^ is no operation here; write ** for powers.")
    raise ToolError(f"{ast.unparse(node)!r:.60} is no number; there are numbers, brackets and + - * / // % ** only.")


def _number(value: Any) -> Fraction:
    """As it was written: 0.1 is 1/10."""
    try:
        return Fraction(str(value))
    except ValueError:
        raise ToolError("a number is too large.") from None


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError(f"the exponent {exponent} is no whole number.")
    if base == 0 and exponent < 0:
        raise ToolError("this divides by zero.")
    power = int(exponent)
    if abs(base) in (0, 1):  # these do not grow, however large the exponent
        return base ** (power % 2 or 2 * bool(power))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(power) * (bits - 1) > MOST_BITS:
        raise ToolError("the result is too large.")
    return _small(base**power)


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ToolError("the result is too large.")
    return value
