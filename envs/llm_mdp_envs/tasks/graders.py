"""Grading of text that nobody vouches for, in a warm process of its own.

Answers of a language model reach sympy, regular expressions and, in some reasoning-gym data sets, `eval`. One answer
such as 9**9**9**9 must not stop a training run, and none may run code in it. So grading happens in a second process
which

- is ended by the kernel when one answer takes more than its CPU time (a fresh copy is forked in milliseconds, nothing
  is re-imported),
- has a memory limit, and answers in JSON, so nothing it says can harm the process that trains,
- evaluates expressions only if they consist of numbers, names, operators, lists and elementary functions.

This works in threads and in forked or pickled copies. It is no sandbox for programs: that is `llm_mdp_envs.sandbox`.

The file is run by its path as the grading process, so it imports nothing of this package and nothing heavy at the top.
"""

import ast
import contextlib
import functools
import json
import os
import pickle
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from typing import Any

MOST_SECONDS = 86_400
"""A day for one answer; beyond it, there is no limit to speak of."""


class GradingError(RuntimeError):
    """The grader itself failed: a library is missing or a problem is faulty. Never the fault of the answer."""


class Grader:
    """Calls one of the functions at the end of this file in the grading process.

    The process starts with the first call and ends with this object or with the program.

    Args:
        function: "math" or "reasoning".
        seconds: most CPU time for one answer. Ten times as much by the clock, on a machine that is busy with other
            work.
        memory: most address space of the process, in bytes.

    Raises:
        ValueError: if `seconds` is not positive.
        OSError: on a system without `fork` (Windows).
    """

    def __init__(self, function: str, *, seconds: float = 5.0, memory: int = 4 << 30):
        from llm_mdp_envs.arguments import check_finite  # not at the top: the grading process reads this file alone

        seconds = check_finite("seconds, the time limit for grading", seconds, above=0, most=MOST_SECONDS)
        if not hasattr(os, "fork"):
            raise OSError(
                "grading in a process of its own needs Linux or macOS: this system cannot fork. On Windows, use WSL."
            )
        self.function, self.seconds, self.memory = function, float(seconds), int(memory)
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return _make_grader, (self.function, self.seconds, self.memory)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns; None if the answer went beyond the time or the memory.

        Raises:
            GradingError: with the function's own words; or if the process failed twice without being at any limit.
        """
        payload = pickle.dumps(arguments)
        with self._lock:
            # A machine under load can break a process or stop its clock: only what happens twice is the answer's doing.
            reply = self._exchange(payload) or self._exchange(payload)
        if reply is None:
            raise GradingError(
                "the grading process ended or fell silent twice over one answer; is the machine out of memory or "
                "processes?"
            )
        if "error" in reply:
            raise GradingError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """End the grading process. The next call starts another."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, self._owner)

    def _exchange(self, payload: bytes) -> dict | None:
        """The reply; None if the process ended or said nothing in time. Then it is gone."""
        process = self._started()
        try:
            process.stdin.write(struct.pack("<Q", len(payload)) + payload)  # pyright: ignore[reportOptionalMemberAccess]
            process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
            reply = self._line(process, 10 * self.seconds)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self.close()
        return reply

    @staticmethod
    def _line(process: subprocess.Popen, seconds: float) -> dict | None:
        """The next line that the process says; None if it says none in time, or ends."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        line = process.stdout.readline() if ready else b""
        return json.loads(line) if line else None

    def _started(self) -> subprocess.Popen:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        # A forked copy of the training process must not talk through its parent's pipes.
        self._owner = os.getpid()
        # -P: this folder must not be on the path, its code.py would stand in for the standard library's.
        command = [sys.executable, "-P", __file__, self.function, str(self.seconds), str(self.memory)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._process = process
        # Also when nobody closes this grader: when it is collected, or at the end of the program.
        weakref.finalize(self, _end, process, self._owner)
        first = self._line(process, START_SECONDS)
        if first is None or "error" in first:
            self.close()
            raise GradingError(
                "the grading process did not start: " + (first["error"] if first else "see its message above.")
            )
        return process


def _end(process: subprocess.Popen, owner: int) -> None:
    """Kill a grading process, if this process started it and has not ended it yet (its number may be another's by
    now)."""
    if owner != os.getpid() or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()  # pyright: ignore[reportOptionalMemberAccess]
    process.wait()


def _make_grader(function: str, seconds: float, memory: int) -> Grader:
    return Grader(function, seconds=seconds, memory=memory)


START_SECONDS = 60
"""Most time for importing the libraries, by the clock."""

CALLABLE = frozenset(
    re.findall(
        r"\w+",
        "Symbol Integer Float Rational Function Add Mul Pow Abs Min Max sqrt cbrt root exp log ln sin cos tan cot sec "
        "csc asin acos atan acot arcsin arccos arctan sinh cosh tanh asinh acosh atanh floor ceiling factorial "
        "factorial2 binomial sign erf",
    )
)
"""What an expression in an answer may call. In sympy's parser every number and symbol is such a call."""

_HARMLESS = (
    ast.Expression,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.BinOp,
    ast.operator,
    ast.UnaryOp,
    ast.unaryop,
    ast.BoolOp,
    ast.boolop,
    ast.Compare,
    ast.cmpop,
    ast.IfExp,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.Call,
    ast.keyword,
)


def check_expression(source: str) -> None:
    """Raise ValueError, in words, if evaluating this Python expression could do more than arithmetic."""
    for node in ast.walk(ast.parse(source.lstrip(" \t"), mode="eval")):
        if not isinstance(node, _HARMLESS):
            raise ValueError(f"an answer may not contain {type(node).__name__}.")
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in CALLABLE):
            raise ValueError("an answer may call elementary functions only.")


def guarded_eval(source: Any, *scopes: Any) -> Any:
    """`eval` of harmless expressions. Raises ValueError for others and SyntaxError for what is no expression."""
    check_expression(source)
    return eval(source, *scopes)


def math_function():
    """equal(gold, answer) -> bool, by math-verify. False if it reads no answer in a gold answer that is not empty."""
    from math_verify import parse, verify

    guard_sympy()
    compare_relatively()
    no_clock: Any = {"parsing_timeout": None}  # its own clock is a signal, which works in main threads only
    parse_gold = functools.lru_cache(maxsize=4096)(functools.partial(parse, **no_clock))

    def equal(gold: str, answer: str) -> bool:
        if not parse_gold(gold) and not re.sub(r"\\boxed|[{}\s]", "", gold):
            raise ValueError(
                f"math-verify finds no answer in the gold answer {gold!r}; correct or remove this problem."
            )
        return verify(parse_gold(gold), parse(answer, **no_clock), timeout_seconds=None, allow_set_relation_comp=True)

    return equal


def reasoning_function():
    """score(recipe, answer, entry) -> float by reasoning-gym; an answer on which its scorer raises is worth 0.

    The recipe is a pickle of the data set's name and settings, or of a data set.
    """
    import reasoning_gym

    guard_sympy()
    datasets: dict[bytes, Any] = {}

    def score(recipe: bytes, answer: str | None, entry: dict) -> float:
        if recipe not in datasets:
            made = pickle.loads(recipe)
            datasets[recipe] = reasoning_gym.create_dataset(made[0], **made[1]) if isinstance(made, tuple) else made
            guard_modules(datasets[recipe])
        try:
            return float(datasets[recipe].score_answer(answer, entry))
        except Exception:
            return 0.0

    return score


def guard_sympy() -> None:
    """Make sympy's parser, which ends in `eval`, refuse what is not harmless."""
    from sympy.parsing import sympy_parser

    evaluate = sympy_parser.eval_expr

    def eval_expr(code, local_dict, global_dict):
        check_expression(code)
        return evaluate(code, local_dict, global_dict)

    sympy_parser.eval_expr = eval_expr


RELATIVE = 2e-6
"""Largest difference of two equal numbers, as a part of the larger one: 0.333333 is 1/3."""


def compare_relatively() -> None:
    """Make math-verify, which rounds to six decimal places, tell 1.6e-19 from 9.1e-31."""
    from math_verify import grader
    from sympy import Integer, MatrixBase, expand

    rounds = grader.sympy_numeric_eq

    def near(one: Any, other: Any) -> bool:
        sizes = complex(one.evalf(20)), complex(other.evalf(20))
        return abs(sizes[0] - sizes[1]) <= RELATIVE * max(map(abs, sizes))

    def sympy_numeric_eq(a, b, float_rounding, numeric_precision):
        if not rounds(a, b, float_rounding, numeric_precision):
            return False
        if isinstance(a, MatrixBase):  # its elements came through here
            return True
        try:
            if a.free_symbols or b.free_symbols:  # each coefficient for itself
                terms = [expand(one.doit()).as_coefficients_dict() for one in (a, b)]
                return all(near(*(Integer(0) + one[term] for one in terms)) for term in {*terms[0], *terms[1]})
            return near(a, b) or near(grader.get_pct_val(a, a), grader.get_pct_val(b, b))
        except (AttributeError, TypeError, ValueError, OverflowError):  # no numbers: infinities, sets, truths
            return True

    grader.sympy_numeric_eq = sympy_numeric_eq


def guard_modules(dataset: Any) -> None:
    """Put `guarded_eval` before the builtin in reasoning-gym's modules and in those of the data set's class."""
    own = {base.__module__ for base in type(dataset).__mro__ if base is not object}
    for name, module in list(sys.modules.items()):
        if name in own or name.split(".")[0] == "reasoning_gym":
            vars(module)["eval"] = guarded_eval


FUNCTIONS = {"math": math_function, "reasoning": reasoning_function}


def serve(function: Any, seconds: float, replies: int) -> None:
    """Answer requests until there are no more. The kernel ends this process when one of them takes too long."""
    while (header := read_exactly(8)) is not None:
        arguments = read_exactly(struct.unpack("<Q", header)[0]) or b""
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"result": function(*pickle.loads(arguments))}
        except (MemoryError, RecursionError):
            reply = {"result": None}
        except Exception as error:
            reply = {"error": re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")}
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, json.dumps(reply).encode() + b"\n")


def read_exactly(size: int) -> bytes | None:
    """Unbuffered, so that nothing of the next request is lost when this process is ended. None at the end of the
    input."""
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def main(name: str, seconds: float, memory: int) -> None:
    import logging
    import resource

    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        function = FUNCTIONS[name]()
        os.write(replies, b'{"ready": true}\n')
    except Exception as error:
        os.write(replies, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        return
    while True:
        child = os.fork()
        if child == 0:
            try:
                serve(function, seconds, replies)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return
        os.write(replies, b'{"result": null}\n')


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
