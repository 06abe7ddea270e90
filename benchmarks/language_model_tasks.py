"""Does the grading do justice to what a real language model writes? SmolLM2-135M-Instruct answers, a person reads.

    python benchmarks/language_model_tasks.py draw            # its replies to every task; 20 minutes on two cores
    python benchmarks/language_model_tasks.py draw gsm8k      # to one of them
    python benchmarks/language_model_tasks.py grade           # the replies on file once more, in seconds

Replies stand beside their grades in benchmarks/results/language_model_tasks/TASK.jsonl; `read.json` there says what a
person found wrong on reading them all; the shares go to benchmarks/results/language_model_tasks.json. The model is
asked greedily, in its chat template (HumanEval also raw); in the game at temperature 1, as it repeats itself there.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results
from smollm2 import smollm2

from llm_mdp.mdp.tree import pad_prompts
from llm_mdp_agents.lm.loading import load_policy, tokenizer_of
from llm_mdp_envs.episode import Episode, advance, as_rows
from llm_mdp_envs.task import Question
from llm_mdp_envs.tasks.code import Code
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText
from llm_mdp_envs.tasks.math_problems import Math
from llm_mdp_envs.tasks.reasoning import ReasoningGym
from llm_mdp_envs.turns import mask_of

HERE = Path(__file__).parent
REPLIES = HERE / "results" / "language_model_tasks"
TOGETHER = 64
"""Conversations drawn at once."""


@dataclass(frozen=True)
class Benchmark:
    """A task, how many of its questions are asked, and how; `in_order`: its data set from the first problem on."""

    make: Callable[..., Any]
    prompts: int = 128
    in_order: bool = True
    greedy: bool = True


TASKS = {
    "chain_sum": Benchmark(partial(ReasoningGym, "chain_sum", extract="number", size=128, horizon=96, chat=True)),
    "gsm8k": Benchmark(partial(Math, HERE / "data" / "gsm8k_format.jsonl", horizon=224, chat=True)),
    "humaneval_raw": Benchmark(partial(Code, "humaneval", "all", horizon=160), 164),
    "humaneval_chat": Benchmark(partial(Code, "humaneval", "all", horizon=256, chat=True), 164),
    "mbpp": Benchmark(partial(Code, HERE / "data" / "mbpp_format.jsonl", "all", horizon=160, chat=True)),
    "guess_number": Benchmark(partial(GuessNumberText, highest=100, horizon=512), in_order=False, greedy=False),
}


class InOrder:
    """Stands for a generator where a task chooses among its problems: the first, the second, …"""

    def __init__(self) -> None:
        self.next = 0

    def integers(self, *bounds: int) -> int:
        self.next += 1
        return self.next - 1


def questions_of(task: Any, benchmark: Benchmark) -> list[Question]:
    generator: Any = InOrder() if benchmark.in_order else np.random.default_rng(0)
    return [task.question(generator) for _ in range(benchmark.prompts)]


def draw(name: str, folder: Path) -> None:
    task = TASKS[name].make(tokenizer=tokenizer_of(folder))
    policy = load_policy(folder, tokenizer=task.tokenizer, dtype="bfloat16")
    asked, rows, start = questions_of(task, TASKS[name]), [], time.monotonic()
    for first in range(0, len(asked), TOGETHER):
        some = asked[first : first + TOGETHER]
        rows += [
            _row(task, question, tokens)
            for question, tokens in zip(some, responses(policy, task, some, TASKS[name].greedy, first))
        ]
        print(f"{name}: {len(rows)} of {len(asked)} after {time.monotonic() - start:.0f} s", flush=True)
    _write(name, task, asked, rows)


def responses(policy: Any, task: Any, questions: list[Question], greedy: bool, seed: int) -> list[list[int]]:
    """Responses, what the environment says between their turns included."""
    episode, generator = [Episode()] * len(questions), torch.Generator().manual_seed(seed)
    while rows := [number for number, each in enumerate(episode) if each.finish is None]:
        prompt = pad_prompts([questions[row].prompt for row in rows])
        prefix, _ = as_rows([episode[row] for row in rows], task.horizon)
        options: dict[str, Any] = {"horizon": task.horizon, "generator": generator, "greedy": greedy}
        drawn = policy.sample(prompt, 1, eos=task.ends, stop=task.turn_ends, prefix=torch.from_numpy(prefix), **options)
        for row, tokens in zip(rows, drawn.tokens.tolist()):
            for token in tokens[len(episode[row].tokens) :]:
                if token >= 0 and episode[row].finish is None:
                    episode[row] = advance(task, questions[row], episode[row], token)
    return [list(each.tokens) for each in episode]


def _row(task: Any, question: Question, tokens: list[int]) -> dict[str, Any]:
    if task.end_of_turn is not None:
        return {"prompt": task.decode(question.prompt), "reply": task.decode(tokens), "tokens": tokens}
    reply = task.replies([question], np.array([tokens]))[0]
    return {"prompt": task.decode(question.prompt), "reply": reply.text}


def _write(name: str, task: Any, asked: list[Question], rows: list[dict[str, Any]]) -> None:
    """The replies with their grades."""
    if task.end_of_turn is None:
        scores = task.grade([task.reply_to(question, row["reply"]) for question, row in zip(asked, rows)])
    else:
        tokens = np.full((len(rows), task.horizon), -1)
        mask = np.zeros(tokens.shape, dtype=bool)
        for number, (question, row) in enumerate(zip(asked, rows)):
            tokens[number, : len(row["tokens"])] = row["tokens"]
            mask[number, : len(row["tokens"])] = mask_of(task, question, row["tokens"])
        scores = task.score(asked, tokens, mask)
    REPLIES.mkdir(exist_ok=True)
    with (REPLIES / f"{name}.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            kept = {key: row[key] for key in ("prompt", "reply", "tokens") if key in row}
            figures = {"reward": scores.reward} | scores.parts | scores.details
            line = {"number": number} | {key: column[number].item() for key, column in figures.items()} | kept
            file.write(json.dumps(line | {"wanted": _wanted(asked[number].secret)}, ensure_ascii=False) + "\n")


def _wanted(secret: Any) -> str:
    """The right answer, for whoever reads."""
    inner = secret.secret
    if isinstance(inner, dict):
        return str(inner.get("answer", ""))
    return getattr(inner, "task_id", None) or str(inner)


def grade(name: str, folder: Path) -> dict[str, float]:
    """Grade the replies on file once more."""
    task = TASKS[name].make(tokenizer=tokenizer_of(folder))
    rows = [json.loads(line) for line in (REPLIES / f"{name}.jsonl").read_text().split("\n") if line]
    _write(name, task, questions_of(task, TASKS[name]), rows)
    task.close()
    rows = [json.loads(line) for line in (REPLIES / f"{name}.jsonl").read_text().split("\n") if line]
    right = [row.get("answer", row["reward"]) >= 1 for row in rows]
    return {"prompts": len(rows), "right": sum(right), "share": round(float(np.mean(right)), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "grade"))
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="default: all")
    options = parser.parse_args()
    folder, names = smollm2(), options.tasks or list(TASKS)
    if options.what == "draw":
        for name in names:
            draw(name, folder)
    shares = {name: grade(name, folder) for name in TASKS if (REPLIES / f"{name}.jsonl").exists()}
    for name, figures in shares.items():
        print(f"{name:16} {figures['right']:4} of {figures['prompts']} right")
    document = {"command": " ".join(["python", *sys.argv]), "model": "SmolLM2-135M-Instruct", "tasks": shares}
    write_results(HERE / "results" / "language_model_tasks.json", ("torch", "transformers"), document)


if __name__ == "__main__":
    main()
