"""How much there is to earn in an environment: the best reward, that of random tokens, and the time of a step.

What was measured of the registered ones is kept in figures.json; `python -m llm_mdp_envs.registry --measure` measures
again.
"""

import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_mdp_envs.array_task import ArrayTask
from llm_mdp_envs.episode import replay
from llm_mdp_envs.task import Task
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.vector_env import TokenVectorEnv

KEPT = Path(__file__).parent / "figures.json"
SEED = 0
EPISODES = 256
"""Of the random policy, where its reward is sampled; four times as many of an `ArrayTask`."""
FEWEST = 10
"""Episodes with another reward than the commonest, below which a standard error says little."""
BLOCKS, SECONDS = 5, 0.1
"""Of single steps that are timed: the quickest of so many blocks counts, each at least this long."""
NORMAL_95 = 1.959964
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Figures:
    """What there is to earn, with a task's default arguments."""

    best: float | None = None
    """The optimum, or the best reward that is known; None: none is."""
    best_by: str = ""
    """How it is known: "computed" by the task itself (`best_reward`), or "right answers", the mean reward of those that
    the task gives."""
    random: float = math.nan
    """The mean reward of the policy to which all allowed tokens are equally likely."""
    interval: tuple[float, float] | None = None
    """95 % of that mean, by its standard error; None where it is exact, or where too few rewards differ for that."""
    episodes: int = 0
    """Sampled for it, from seed 0; 0: it is exact."""
    alike: int = 0
    """How many of them had the commonest reward."""
    microseconds: float = math.nan
    """Of one step of one environment, grading and resets included: the quickest of `BLOCKS`."""

    @property
    def words(self) -> tuple[str, str, str]:
        """Best, random and time as people read them, each a few characters."""
        best = "–" if self.best is None else f"{self.best:.3g}"
        if self.interval is not None:
            random = f"{self.random:.2g} ± {(self.interval[1] - self.interval[0]) / 2:.1g}"
        else:
            random = f"{self.random:.3g}"
            if self.episodes:
                random += f" ({self.alike:,} of {self.episodes:,} alike)"
        return best, random, f"{self.microseconds:,.0f} µs"


def measure(task: Task) -> Figures:
    """The figures of a task, by playing it here."""
    best, by = _best(task)
    exact = getattr(task, "random_reward", lambda: None)()
    microseconds = _microseconds(task)
    if exact is not None:
        return Figures(best, by, exact, microseconds=microseconds)
    rewards = random_rewards(task, EPISODES * (4 if isinstance(task, ArrayTask) else 1))
    mean, error = float(rewards.mean()), float(rewards.std(ddof=1)) / math.sqrt(len(rewards))
    alike = int(np.unique(rewards, return_counts=True)[1].max())
    interval = (mean - NORMAL_95 * error, mean + NORMAL_95 * error) if len(rewards) - alike >= FEWEST else None
    return Figures(best, by, mean, interval, len(rewards), alike, microseconds)


def random_rewards(task: Task, n: int, seed: int = SEED) -> np.ndarray:
    """(n,) float64: the sums of rewards of n episodes in which all allowed tokens are equally likely."""
    env, generator = TokenVectorEnv(task, n), np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    total, going = np.zeros(n), np.ones(n, dtype=bool)
    while going.any():
        _, reward, terminated, _, info = env.step(_random_tokens(info["action_mask"], generator))
        total += np.where(going, reward, 0.0)  # one episode each: who ends early would play more of them
        going &= ~terminated
    return total


def _random_tokens(masks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    n, vocab_size = masks.shape
    if masks.all():
        return generator.integers(vocab_size, size=n)
    return np.where(masks, generator.random(masks.shape), -1.0).argmax(1)


def _best(task: Task) -> tuple[float | None, str]:
    known = getattr(task, "best_reward", lambda: None)()
    if known is not None:
        return float(known), "computed"
    questions = task.questions(np.random.default_rng(SEED), EPISODES)
    answers = task.answers(questions)
    if answers is None:
        return None, ""
    return float(replay(task, questions, answers).reward.mean()), "right answers"


def _microseconds(task: Task) -> float:
    env, generator, best = TokenEnv(task), np.random.default_rng(SEED), math.inf
    _, info = env.reset(seed=SEED)
    for _ in range(BLOCKS):
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            over = False
            while not over:
                _, _, over, _, info = env.step(int(_random_tokens(info["action_mask"][None], generator)[0]))
                steps += 1
            _, info = env.reset()
        best = min(best, (time.perf_counter() - began) / steps)
    return float(f"{best * 1e6:.2g}")


def machine() -> str:
    """Where times were taken, in words."""
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


def read_kept() -> dict[str, Any]:
    """What figures.json holds: "machine", and "environments" by their ids."""
    return json.loads(KEPT.read_text(encoding="utf-8"))
