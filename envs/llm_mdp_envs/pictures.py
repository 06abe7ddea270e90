"""An episode of an environment as a drawing: what was asked, what was written token by token and by whom, the reward.

The episode is a right answer where the task has one, else random tokens (seed 0): `episode_svg(task)`.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from llm_mdp.own import visible
from llm_mdp_envs.episode import follow, unpadded
from llm_mdp_envs.figures import SEED, Figures
from llm_mdp_envs.task import Question, Task
from llm_mdp_envs.token_env import TokenEnv

WIDTH, MARGIN, LINE, GLYPH = 760, 16, 30, 7.9
"""Of the drawing, in pixels; GLYPH is the width of a character."""
MOST = 48
"""Tokens of a prompt or a response that are drawn; of longer ones the first and the last."""
FILLS = {"prompt": "#e3e3ec", "policy": "#c9e4d3", "environment": "#f6dfb8"}
INK, PALE = "#22223a", "#5a5a72"
SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥", "": "·"}


@dataclass(frozen=True)
class Played:
    """One episode."""

    question: Question
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where the policy chose the token."""
    reward: float
    right: bool
    """Is it a right answer of the task's own?"""


def play(task: Task) -> Played:
    """A right answer to a question, or random tokens; of both the generator begins at seed 0."""
    env, generator = TokenEnv(task), np.random.default_rng(SEED)
    question = task.question(np.random.default_rng(SEED))
    answers = task.answers([question])
    answer = None if answers is None else unpadded(answers[0])
    if answer is not None:
        written = follow(task, question, answer).tokens
        answer = [token for token, own in zip(written, env_mask(task, question, written)) if own]
    _, info = env.reset(seed=SEED, options={"question": question})
    reward, over, place = 0.0, False, 0
    while not over:
        if answer is not None and place < len(answer):
            action = answer[place]
        else:
            action = int(generator.choice(np.flatnonzero(info["action_mask"])))
        place += 1
        _, gained, over, _, info = env.step(action)
        reward += gained
    tokens = env._episode.tokens
    mask = tuple(bool(own) for own in env.mask[: len(tokens)])
    return Played(question, tuple(tokens), mask, reward, answer is not None)


def env_mask(task: Task, question: Question, tokens: Any) -> list[bool]:
    """Which of these tokens the policy chose."""
    env = TokenEnv(task)
    env.reset(options={"question": question, "prefix": tuple(tokens[:-1])})
    return [*(bool(own) for own in env.mask[: len(tokens) - 1]), True]


def episode_svg(task: Task, figures: Figures | None) -> str:
    """The drawing, on a ground of its own so that it is read on light and dark pages."""
    played = play(task)
    parts, y = [], MARGIN + 14
    prompt = [("prompt", token) for token in played.question.prompt]
    response = [("policy" if own else "environment", token) for own, token in zip(played.mask, played.tokens)]
    for title, tokens in (("asked", prompt), ("written", response)):
        parts.append(_text(MARGIN, y, title, PALE))
        if not tokens:
            parts.append(_text(MARGIN + 70, y, "nothing", PALE))
        y = _boxes(parts, task, tokens, y) + 14
    whose = "a right answer" if played.right else f"random tokens, seed {SEED}"
    parts.append(_text(MARGIN, y, f"reward {played.reward:.3g}", INK, weight="bold"))
    parts.append(_text(MARGIN + 110, y, whose + _beside(figures), PALE))
    y += 24
    x = MARGIN
    for kind, what in (("prompt", "prompt"), ("policy", "the policy's tokens"), ("environment", "the environment's")):
        if kind in {each for each, _ in [*prompt, *response]}:
            parts.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" rx="3" fill="{FILLS[kind]}"/>')
            parts.append(_text(x + 20, y, what, PALE))
            x += 50 + 8 * len(what)
    height = y + MARGIN
    said = f"{task.decode(played.question.prompt)} → {task.decode(played.tokens)}"
    words = escape(visible(" ".join(said.split())[:200]), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-label="An episode: {words}" font-family="ui-monospace, DejaVu Sans Mono, monospace" '
        f'font-size="13"><rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfbfd" stroke="#d5d5e0"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _beside(figures: Figures | None) -> str:
    """The best and the random reward, where they are known."""
    if figures is None:
        return ""
    best, random, _ = figures.words
    return f" (best {best}, random {random})"


def _boxes(parts: list[str], task: Task, tokens: list[tuple[str, int]], y: int) -> int:
    """A box a token, wrapped; how far down they reach."""
    cut = len(tokens) > MOST
    shown = tokens[: MOST - 12] + tokens[-12:] if cut else tokens
    left = MARGIN + 70
    x = left
    for place, (kind, token) in enumerate(shown):
        if cut and place == MOST - 12:
            parts.append(_text(x, y, f"… {len(tokens) - MOST} more …", PALE))
            x += round(GLYPH * 16)
        label = _label(task.decode([token]))
        width = round(GLYPH * len(label) + 10)
        if x + width > WIDTH - MARGIN:
            x, y = left, y + LINE
        parts.append(f'<rect x="{x}" y="{y - 16}" width="{width}" height="23" rx="4" fill="{FILLS[kind]}"/>')
        parts.append(_text(x + 5, y, label, INK))
        x += width + 3
    return y + LINE


def _label(text: str) -> str:
    if text in SHOWN:
        return SHOWN[text]
    return visible("".join(SHOWN.get(letter, letter) for letter in text))[:40]


def _text(x: float, y: float, text: str, fill: str, weight: str = "normal") -> str:
    bold = "" if weight == "normal" else f' font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" fill="{fill}"{bold}>{escape(text)}</text>'
