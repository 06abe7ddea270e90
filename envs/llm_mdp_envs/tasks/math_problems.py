"""Mathematical word problems: a file of questions and solutions, graded by math-verify."""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llm_mdp_envs.arguments import check_choice, check_finite, check_text, shown
from llm_mdp_envs.task import Scores
from llm_mdp_envs.tasks.answers import find_answer, formula, read_gold, same_answer
from llm_mdp_envs.tasks.graders import Grader
from llm_mdp_envs.tasks.rows import read_rows
from llm_mdp_envs.text import Reply, TextTask, require

OWN_PROBLEMS = Path(__file__).parent / "data" / "word_problems.jsonl"
"""Sixty made-up problems, no two with the same text; solutions end "#### 42" or hold a \\boxed{42}."""

MOST_STEPS = 32
"""Equations checked in one reply, the first ones."""
MOST_CHARACTERS = 200
"""Of one side of an equation; longer ones count as false."""


@dataclass(frozen=True)
class Convention:
    """How a data set writes its problems, and how a reply should give its answer."""

    question: str
    """Column of the question."""
    solution: str
    """Column of the solution."""
    instruction: str
    """What the question ends with."""


CONVENTIONS = {
    "gsm8k": Convention("question", "answer", '\nReason step by step. End with "#### " and the answer.'),
    "math": Convention("problem", "solution", "\nReason step by step. Put the final answer in \\boxed{}."),
}


class Math(TextTask):
    """Word problems with one right answer. The reward is a sum of graded parts (the paper's Eq. 30), each reported:

    - answer: the reply's answer is the solution's. Numbers and words are read as a person reads them, everything else
      is compared by math-verify; docs/grading.md says what counts and why. The reply's answer is what stands behind its
      last "####" or in its last \\boxed{}, whichever the convention asks for; else what it says last.
    - format: the reply gives its answer the way the question asks.
    - steps: the fraction of the equations in the reply, such as "12 * 3 = 36" or "<<12*3=36>>", that are true; 0
      without any, and 0 if the answer is wrong: true equations alone earn nothing.

    The gold answer is found in the solution whatever the convention, when the task is made: after the last "####", else
    in the last \\boxed{}, else all of it. math-verify runs in a process of its own with a time limit, so it works in
    threads and no answer can stop it (`llm_mdp_envs.tasks.graders`). A reply beyond the limit has no right answer.

    Args:
        problems: a JSONL, JSON or Parquet file, a data set of the hub ("openai/gsm8k:main"), a DataFrame, a sequence of
            mappings, or what else `tasks.rows.read_rows` reads. None: sixty problems of our own.
        convention: "gsm8k" or "math": the names of the columns, and what the question ends with.
        question_column, solution_column: in place of the convention's.
        split: of a `DatasetDict`, such as "train".
        weights: of the parts; a part that is left out weighs 0.
        seconds: most CPU time for grading one reply.
        others: see `TextTask`.

    Raises:
        ImportError: if math-verify is not installed, or `datasets` for a folder.
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and line, the column or the argument, and the remedy; also for a solution in which
            there is no answer.
    """

    listed_by = "problems"
    separates: ClassVar[str] = (
        "mathematics: whether a language model learns to reason to one verifiable answer; graded parts"
    )

    def __init__(
        self,
        problems: Any = None,
        convention: str = "gsm8k",
        *,
        question_column: str | None = None,
        solution_column: str | None = None,
        split: str | None = None,
        weights: Mapping[str, float] | None = None,
        seconds: float = 5.0,
        tokenizer: Any = None,
        horizon: int = 256,
        prompt_length: int = 1024,
        chat: bool = False,
        system: str | None = None,
        answer_prefix: str | Callable[[Any], str] = "",
        template_options: Mapping[str, Any] | None = None,
    ):
        super().__init__(
            tokenizer,
            horizon=horizon,
            prompt_length=prompt_length,
            chat=chat,
            system=system,
            answer_prefix=answer_prefix,
            template_options=template_options,
        )
        require("math_verify", "math", "Math")
        style = CONVENTIONS[check_choice("convention", convention, CONVENTIONS)]
        check_text("question_column", question_column, optional=True)
        check_text("solution_column", solution_column, optional=True)
        self.convention, self.instruction = convention, style.instruction
        self.weights = check_weights(weights)
        least = sum(min(weight, 0.0) for weight in self.weights.values())
        self.reward_range = least, self.best_reward()
        rows = read_rows(OWN_PROBLEMS if problems is None else problems, split, name="problems")
        columns = question_column or style.question, solution_column or style.solution
        self.problems = [_problem(row, place, *columns) for place, row in rows]
        self._grader = Grader("math", seconds=seconds)

    def best_reward(self) -> float:
        """What a right answer in the format asked for earns with true steps before it: Σ of the weights above 0."""
        return sum(max(weight, 0.0) for weight in self.weights.values())

    def listed(self) -> int:
        return len(self.problems)

    def draw_at(self, number: int) -> tuple[str, Any]:
        question, gold = self.problems[number]
        return question + self.instruction, gold

    def draw(self, generator: np.random.Generator) -> tuple[str, Any]:
        return self.draw_at(int(generator.integers(len(self.problems))))

    def grade(self, replies: Sequence[Reply]) -> Scores:
        parts = {part: np.zeros(len(replies)) for part in self.weights}
        for row, reply in enumerate(replies):
            for part, value in self._grade_one(reply).items():
                parts[part][row] = self.weights[part] * value
        return Scores(np.sum(list(parts.values()), axis=0), parts)

    def _grade_one(self, reply: Reply) -> dict[str, float]:
        answer, asked = find_answer(reply.text, self.convention)
        right = same_answer(reply.secret, answer)
        if right is None:
            right = bool(self._grader(f"\\boxed{{{formula(reply.secret)}}}", f"\\boxed{{{formula(answer)}}}"))
        return {"answer": float(right), "format": float(asked), "steps": true_steps(reply.text) if right else 0.0}


NUMBER = r"\d[\d,]*+(?:\.\d++)?+"
OPERATOR = r"\s*+[-+*/×÷]\s*+"
EQUATION = re.compile(
    # What stands before ("x +") or after ("= 30 + 6 = 36") makes it another equation. Possessive, so that no reply
    # takes quadratic time.
    rf"(?P<before>[A-Za-z)\]}}]{OPERATOR})?+"
    rf"(?P<expression>(?<![\d.,])-?[$]?{NUMBER}(?:{OPERATOR}[$]?{NUMBER})++)"
    rf"(?:\s*+=\s*+[$]?(?P<value>-?{NUMBER})(?!{OPERATOR}[$]?\d))?+"
)


def equations(text: str) -> list[tuple[str, str]]:
    """Arithmetic stated in a text, as (expression, number): "12 × 3 + 1 = $37" gives ("12 * 3 + 1", "37"). The first
    `MOST_STEPS`."""
    clean = str.maketrans({"$": None, ",": None, "×": "*", "÷": "/"})
    stated = (found for found in EQUATION.finditer(text) if found["value"] and not found["before"])
    return [
        (found["expression"].translate(clean), found["value"].translate(clean)) for found in islice(stated, MOST_STEPS)
    ]


def true_steps(text: str) -> float:
    """The fraction of the equations in a text that are true; 0 if there are none."""
    stated = equations(text)
    return sum(_is_true(*equation) for equation in stated) / len(stated) if stated else 0.0


def _is_true(expression: str, value: str) -> bool:
    if len(expression) > MOST_CHARACTERS or len(value) > MOST_CHARACTERS:
        return False
    try:
        return _exact(ast.parse(expression.strip(), mode="eval").body) == Fraction(value)
    except (SyntaxError, ZeroDivisionError):  # numbers such as 007 are no Python
        return False


def _exact(node: ast.expr) -> Fraction:
    """An arithmetic expression as an exact fraction."""
    if isinstance(node, ast.BinOp):
        return ARITHMETIC[type(node.op)](_exact(node.left), _exact(node.right))
    if isinstance(node, ast.UnaryOp):
        return -_exact(node.operand)
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))


ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Weights of all parts. Raises ValueError, in words."""
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(f"weights is {shown(weights)}; it must be a dict of parts and their weights, or None.")
    given = dict(DEFAULT_WEIGHTS if weights is None else weights)
    for part, weight in given.items():
        if part not in DEFAULT_WEIGHTS:
            raise ValueError(f"weights has {shown(part)}; the parts are {', '.join(map(repr, DEFAULT_WEIGHTS))}.")
        check_finite(f"weights[{part!r}]", weight)
    return {part: float(given.get(part, 0.0)) for part in DEFAULT_WEIGHTS}


DEFAULT_WEIGHTS = {"answer": 1.0, "format": 0.1, "steps": 0.1}


def _problem(row: Mapping[str, Any], place: str, question: str, solution: str) -> tuple[str, str]:
    for column in (question, solution):
        if column not in row:
            raise ValueError(
                f"{place} has no column {shown(column)}, only {', '.join(map(repr, row))}; name the columns with "
                f"question_column and solution_column."
            )
    asked = row[question]
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"{place} has the question {shown(asked)}; it must be a text.")
    return asked, read_gold(row[solution], place)
