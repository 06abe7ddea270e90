"""The token environment: any `Task` as a Gymnasium environment whose action is the next token.

State = prompt + response so far, transition = append, reward 0 until the end and RM(W) there. A task may offer four
things more:

- `from_prompt(tokens) -> Question`: allows `reset(options={"prompt": tokens})`;
- `reveals_token_rewards = True` with `token_rewards(questions, tokens, mask) -> (N, T)`, whose sum is the reward: then
  every step pays its own token, for comparison runs against agents that see the end only. Responses may be unfinished,
  and rewards look back only;
- `close()`: ends what it holds, such as processes, when an environment is closed;
- the array methods of `vector_env.ArrayTask`, which make thousands of episodes fast.
"""

import operator
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from llm_mdp_envs.task import Question, Scores, Task

FINISH = ("eos", "horizon", "environment")
"""Why a response ended, in the order of `llm_mdp.sampling.evidence.Finish`: by its end token, by length, because the
conversation was over."""

PAD = -1
"""Fills an observation before the prompt and after the response."""


@dataclass(frozen=True)
class Progress:
    """How far a response is."""

    tokens: tuple[int, ...] = ()
    """Response so far, what the environment wrote included."""
    mask: tuple[bool, ...] = ()
    """True where the policy chose the token."""
    turns: int = 0
    """Turns that the policy has handed over."""
    finish: str | None = None
    """One of `FINISH`, None while it goes on."""


@dataclass(frozen=True)
class State:
    """Everything that decides how an episode goes on; see `TokenEnv.clone_state`."""

    question: Question = field(repr=False)
    progress: Progress
    generator: dict[str, Any] = field(repr=False)


class TokenEnv(gymnasium.Env[np.ndarray, int]):
    """A task, token by token.

    Observation: (prompt_length + horizon,) int64, the prompt padded on the left and the response padded on the right
    with -1. Action: the next token, 0 … V-1. `terminated` at the end token, at the horizon or when the conversation is
    over; never `truncated`. Info: `action_mask` (V,) int8 always; `mask` (horizon,) bool of the policy's own tokens
    where there are turns; at the end `finish` and, if the task reports any, `parts` of the reward and other `details`.

    Args:
        task: what is asked, and what answers are worth.
        render_mode: "ansi" (`render` returns the text so far), "human" (prints it at every step) or None.

    Raises:
        ValueError: unknown render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 4}

    def __init__(self, task: Task, render_mode: str | None = None):
        check_render_mode(render_mode, self.metadata)
        self.task, self.render_mode = task, render_mode
        self.action_space = spaces.Discrete(task.vocab_size)
        self.observation_space = observation_space(task)
        self._question: Question | None = None
        self._progress = Progress()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: starts the generator of questions anew.
            options: `{"question": Question}` or `{"prompt": tokens}` asks this one instead of drawing, and `"prefix":
                tokens` begins with these response tokens. With turns, a prefix holds what the environment wrote; a
                reply that is missing at its end is written now. Action masks do not apply to a prefix.

        Raises:
            ValueError: unknown option; tokens outside the vocabulary; a prefix that has ended or that contradicts the
            environment.
        """
        super().reset(seed=seed)
        options = check_options(options, ("question", "prompt", "prefix"))
        question = _asked(self.task, options)
        question = self.task.question(self.np_random) if question is None else question
        progress = begun(self.task, question, options.get("prefix", ()), "options['prefix']")
        self._question, self._progress = question, progress
        self._show()
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append a token; where it hands over the turn, append the environment's reply as well.

        Raises:
            ResetNeeded: before the first `reset` and after the end.
            TypeError: the action is no whole number.
            ValueError: it is outside the vocabulary, or the action mask forbids it.
        """
        if self._question is None:
            raise ResetNeeded("step was called before reset; call reset first.")
        if self._progress.finish is not None:
            raise ResetNeeded(f"the episode has ended (by {self._progress.finish}); call reset before the next step.")
        token = whole_token(action, self.task.vocab_size, "the action")
        check_allowed(self.task.action_mask(self._question, self._progress.tokens), token)
        place = len(self._progress.tokens)
        self._progress = advance(self.task, self._question, self._progress, token)
        info, reward = self._info(), 0.0
        terminated = self._progress.finish is not None
        if terminated:
            scores = check_scores(self.task, self.task.score([self._question], *self._arrays()), 1)
            reward, info["finish"] = float(scores.reward[0]), self._progress.finish
            for kind, columns in (("parts", scores.parts), ("details", scores.details)):
                if columns:
                    info[kind] = {name: column[0].item() for name, column in columns.items()}
        if reveals_token_rewards(self.task):
            reward = float(self.task.token_rewards([self._question], *self._arrays())[0, place])
        self._show()
        return self._observation(), reward, terminated, False, info

    def action_masks(self) -> np.ndarray:
        """(V,) int8, 1 where a token is allowed next; the method that sb3-contrib's MaskablePPO calls."""
        if self._question is None:
            raise ResetNeeded("action_masks was called before reset; call reset first.")
        mask = self.task.action_mask(self._question, self._progress.tokens)
        return np.ones(self.task.vocab_size, dtype=np.int8) if mask is None else np.array(mask, dtype=np.int8)

    @property
    def mask(self) -> np.ndarray:
        """(horizon,) bool: which tokens of the response so far the policy chose."""
        return self._arrays()[1][0]

    def clone_state(self) -> State:
        """The state of the episode and of the generator. Opaque: hand it to `restore_state`, as often as you like, not
        to an agent."""
        if self._question is None:
            raise ResetNeeded("clone_state was called before reset; call reset first.")
        return State(self._question, self._progress, deepcopy(self.np_random.bit_generator.state))

    def restore_state(self, state: State) -> tuple[np.ndarray, dict[str, Any]]:
        """Go on from a state of this environment or of another one with an equal task.

        Returns:
            Observation and info, as `reset` does.
        """
        if not isinstance(state, State):
            raise TypeError(f"restore_state got {type(state).__name__}; give it what clone_state returned.")
        self._question, self._progress = state.question, state.progress
        self.np_random.bit_generator.state = deepcopy(state.generator)
        return self._observation(), self._info()

    def render(self) -> str | None:
        """The prompt and the response so far; None, but printed, in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs a render mode: gym.make(…, render_mode="ansi") or "human".')
            return None
        text = text_so_far(self.task, self._question, self._progress.tokens)
        if self.render_mode == "ansi":
            return text
        print(text)
        return None

    def close(self) -> None:
        """End what the task holds, such as a sandbox's processes: its `close`, if it has one."""
        close_task(self.task)

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return as_rows([self._progress], self.task.horizon)

    def _observation(self) -> np.ndarray:
        return np.concatenate([pad_prompt(self._question.prompt, self.task.prompt_length), self._arrays()[0][0]])

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.action_masks()}
        return info | ({"mask": self.mask} if self.task.end_of_turn is not None else {})


# --- how an episode goes on
# ---------------------------------------------------------------------------------------------------


def advance(task: Task, question: Question, progress: Progress, token: int) -> Progress:
    """The response after one more token of the policy and, if that hands over the turn, the environment's reply (cut at
    the horizon)."""
    tokens, mask, turns = (*progress.tokens, token), (*progress.mask, True), progress.turns
    if token == task.end_of_turn:
        turns += 1
        reply = task.reply(question, tokens) if turns < task.max_turns else None
        if reply is None:
            return Progress(tokens, mask, turns, "eos" if token == task.eos else "environment")
        written = tuple(whole_token(t, task.vocab_size, f"a token of {type(task).__name__}'s reply") for t in reply)
        written = written[: task.horizon - len(tokens)]
        tokens, mask = tokens + written, mask + (False,) * len(written)
    elif token == task.eos:
        return Progress(tokens, mask, turns, "eos")
    return Progress(tokens, mask, turns, "horizon" if len(tokens) >= task.horizon else None)


def follow(task: Task, question: Question, tokens: Sequence[int], name: str = "the response") -> Progress:
    """Replay a response, or the beginning of one, to learn whose its tokens are. A reply that is missing at its end is
    written.

    Raises:
        ValueError, TypeError: naming the place where a token is outside the vocabulary, comes after the end, or is not
            what the environment writes there.
    """
    given = tuple(
        whole_token(token, task.vocab_size, f"{name}[{place}]") for place, token in enumerate(_sequence(tokens, name))
    )
    progress = Progress()
    while len(progress.tokens) < len(given):
        place = len(progress.tokens)
        if progress.finish is not None:
            raise ValueError(f"{name} goes on at place {place}, after its end (by {progress.finish}); cut it there.")
        progress = advance(task, question, progress, given[place])
        for here in range(place, min(len(progress.tokens), len(given))):
            if progress.tokens[here] != given[here]:
                raise ValueError(
                    f"{name} has the token {given[here]} at place {here}, where the environment writes "
                    f"{progress.tokens[here]}; "
                    "it belongs to another question or another task."
                )
    return progress


def begun(task: Task, question: Question, prefix: Sequence[int], name: str) -> Progress:
    """`follow`, for the beginning of a response that is to go on; ValueError if it has ended."""
    progress = follow(task, question, prefix, name)
    if progress.finish is not None:
        raise ValueError(f"{name} is a complete response (it ended by {progress.finish}); leave out its end.")
    return progress


def check_scores(task: Task, scores: Scores, n: int) -> Scores:
    """Raise ValueError unless there is one finite reward a response."""
    if np.shape(scores.reward) != (n,):
        shape = np.shape(scores.reward)
        raise ValueError(
            f"{type(task).__name__}.score gave rewards of shape {shape} for {n} responses; it must be ({n},)."
        )
    if not np.isfinite(scores.reward).all():
        row = int(np.flatnonzero(~np.isfinite(scores.reward))[0])
        raise ValueError(
            f"{type(task).__name__}.score gave response {row} the reward {scores.reward[row]}; rewards must be finite."
        )
    return scores


def close_task(task: Task) -> None:
    """Call `task.close()`, if there is such a method. It may be called more than once."""
    getattr(task, "close", lambda: None)()


def reveals_token_rewards(task: Task) -> bool:
    """Does every step pay its own token? (Off unless the task says so.)"""
    return getattr(task, "reveals_token_rewards", False)


# --- tokens and arrays
# --------------------------------------------------------------------------------------------------------


def observation_space(task: Task) -> spaces.Box:
    """(prompt_length + horizon,) int64 in -1 … V-1."""
    return spaces.Box(PAD, task.vocab_size - 1, (task.prompt_length + task.horizon,), np.int64)


def pad_prompt(prompt: Sequence[int], width: int) -> np.ndarray:
    """(width,) int64, padded on the left.

    Raises:
        ValueError: if the prompt is longer.
    """
    if len(prompt) > width:
        raise ValueError(f"a prompt has {len(prompt)} tokens; this task's prompt_length allows {width}.")
    return np.array([PAD] * (width - len(prompt)) + list(prompt), dtype=np.int64)


def as_rows(progress: Sequence[Progress], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (N, horizon) int64, padded on the right, and mask (N, horizon) bool."""
    tokens = np.full((len(progress), horizon), PAD, dtype=np.int64)
    mask = np.zeros((len(progress), horizon), dtype=bool)
    for row, one in enumerate(progress):
        tokens[row, : len(one.tokens)] = one.tokens
        mask[row, : len(one.mask)] = one.mask
    return tokens, mask


def text_so_far(task: Task, question: Question | None, tokens: Sequence[int]) -> str:
    """Prompt and response for people."""
    return f"{task.decode(question.prompt) if question else ''} ▸ {task.decode(tokens)}".strip()


# --- what users may get wrong
# -------------------------------------------------------------------------------------------------


def whole_token(token: Any, vocab_size: int, name: str) -> int:
    """The token as an int.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is outside the vocabulary.
    """
    if isinstance(token, bool | np.bool_):
        raise TypeError(f"{name} is {token!r}; a token is a whole number, 0 … {vocab_size - 1}.")
    try:
        value = operator.index(token)
    except TypeError:
        raise TypeError(f"{name} is {token!r}; a token is a whole number, 0 … {vocab_size - 1}.") from None
    if not 0 <= value < vocab_size:
        raise ValueError(f"{name} is {value}, outside the vocabulary 0 … {vocab_size - 1}.")
    return value


def check_allowed(mask: np.ndarray | None, token: int, name: str = "the action") -> None:
    """Raise ValueError if the action mask forbids this token."""
    if mask is not None and not mask[token]:
        raise ValueError(
            f"{name} is {token}, which the action mask forbids here; info['action_mask'] is 1 for {_allowed(mask)}."
        )


def _allowed(mask: np.ndarray) -> str:
    tokens = np.flatnonzero(mask).tolist()
    return ", ".join(map(str, tokens[:10])) + (f" and {len(tokens) - 10} more" if len(tokens) > 10 else "")


def check_options(options: dict[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """The options of `reset`; ValueError for one that does not exist."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise TypeError(f"options is {options!r}; it must be a dict with some of the keys {', '.join(known)}.")
    for name in options:
        if name not in known:
            raise ValueError(f"options has the key {name!r}; reset knows {', '.join(known)}.")
    return options


def check_question(task: Task, question: Any, name: str) -> Question:
    """Raise TypeError or ValueError unless this is a question whose prompt fits the task."""
    if not isinstance(question, Question):
        raise TypeError(f"{name} is a {type(question).__name__}; it must be a Question of {type(task).__name__}.")
    for place, token in enumerate(question.prompt):
        whole_token(token, task.vocab_size, f"{name}.prompt[{place}]")
    pad_prompt(question.prompt, task.prompt_length)
    return question


def check_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> None:
    """Raise ValueError for a mode that the metadata do not list."""
    if render_mode is not None and render_mode not in metadata["render_modes"]:
        raise ValueError(
            f"render_mode is {render_mode!r}; choose {', '.join(map(repr, metadata['render_modes']))} or None."
        )


def _asked(task: Task, options: dict[str, Any]) -> Question | None:
    """The question that the options name, if any."""
    if "question" in options and "prompt" in options:
        raise ValueError("options has both 'question' and 'prompt'; give one of them.")
    if "question" in options:
        return check_question(task, options["question"], "options['question']")
    if "prompt" not in options:
        return None
    if not hasattr(task, "from_prompt"):
        raise ValueError(
            f"options has 'prompt', but {type(task).__name__} cannot tell from a prompt alone what answers are worth; "
            "give options={'question': Question(prompt, secret)}."
        )
    prompt = _sequence(options["prompt"], "options['prompt']")
    return task.from_prompt(
        tuple(whole_token(t, task.vocab_size, f"options['prompt'][{i}]") for i, t in enumerate(prompt))
    )


def _sequence(tokens: Any, name: str) -> list[Any]:
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence | np.ndarray):
        raise TypeError(f"{name} is {tokens!r}; it must be a sequence of tokens.")
    return list(tokens)
