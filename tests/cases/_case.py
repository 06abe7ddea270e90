"""Shared by the cases: collects (name, wanted, got) and prints one line each; exit status 1 if any differs."""
import os
import sys
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")


class Case:
    def __init__(self):
        self.bad = self.n = 0

    def check(self, name, want, function):
        """want: a value, or a predicate of the result."""
        try:
            got = function()
        except Exception as error:  # noqa: BLE001
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:220]}"
        ok = want(got) if callable(want) else got == want
        self.n += 1
        self.bad += not ok
        wanted = want.__doc__ or "see predicate" if callable(want) else repr(want)
        print(f"{'ok  ' if ok else 'FAIL'} {name}: got {got!r}" + ("" if ok else f", wanted {wanted}"))

    def end(self):
        print(f"{self.n - self.bad} of {self.n} right")
        sys.exit(1 if self.bad else 0)


def math_answer(gold, reply, convention):
    """The 'answer' part (weight 1) that Math gives a reply."""
    import numpy as np
    from llm_mdp_envs.tasks.math_problems import Math

    columns = {"gsm8k": ("question", "answer"), "math": ("problem", "solution")}[convention]
    task = Math([{columns[0]: "q", columns[1]: gold}], convention)
    try:
        question = task.question(np.random.default_rng(0))
        return float(task.grade([task.reply_to(question, reply)]).parts["answer"][0])
    finally:
        task._grader.close()
