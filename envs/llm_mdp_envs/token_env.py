"""The token environment: any `Task` as a Gymnasium environment whose action is the next token.

State = prompt + response so far, transition = append, reward 0 until the end and RM(W) there, unless the task reveals
its token rewards: then every step pays its own.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from llm_mdp_envs.arguments import check_whole, shown
from llm_mdp_envs.check import check_form
from llm_mdp_envs.episode import (
    Episode,
    advance,
    as_rows,
    begun,
    check_question,
    check_scores,
    check_token_rewards,
    pad_prompt,
    sequence_of_tokens,
    text_so_far,
    whole_token,
)
from llm_mdp_envs.task import PAD, Question, Task


@dataclass(frozen=True)
class State:
    """Everything that decides how an episode goes on; see `TokenEnv.clone_state`."""

    question: Question = field(repr=False)
    episode: Episode
    generator: Mapping[str, Any] = field(repr=False)


class TokenEnv(gymnasium.Env[np.ndarray, np.int64 | int]):
    """A task, token by token.

    Observation: (prompt_length + horizon,) int64, the prompt padded on the left and the response padded on the right
    with -1. Action: the next token, 0 … V-1. `terminated` at the end token, at the horizon or when the conversation is
    over; never `truncated`. Info: `action_mask` (V,) int8 always; `mask` (horizon,) bool of the policy's own tokens
    where there are turns; at the end `finish` and, if the task reports any, `parts` of the reward and other `details`.

    Args:
        task: what is asked, and what answers are worth.
        render_mode: "ansi" (`render` returns the text so far), "human" (prints it at every step) or None. Another one,
            such as the "rgb_array" that Stable-Baselines3 asks every environment for, is None with a warning.

    Raises:
        TaskError: the task's numbers are wrong, whatever it asks (`check_form`).
        ValueError: the render mode is no text.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, task: Task, render_mode: str | None = None):
        self.render_mode = known_render_mode(render_mode, self.metadata)
        check_form(task)
        self.task = task
        self.action_space = spaces.Discrete(task.vocab_size)
        self.observation_space = observation_space(task)
        self._question: Question | None = None
        self._episode = Episode()

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
            ValueError: the seed is no whole number of at least 0; unknown option; tokens outside the vocabulary; a
            prefix that has ended or that contradicts the environment.
        """
        super().reset(seed=None if seed is None else check_whole("seed", seed))
        options = check_options(options, ("question", "prompt", "prefix"))
        question = _asked(self.task, options)
        question = self.task.question(self.np_random) if question is None else question
        episode = begun(self.task, question, options.get("prefix", ()), "options['prefix']")
        self._question, self._episode = question, episode
        self._show()
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Append a token; where it hands over the turn, append the environment's reply as well.

        Raises:
            ResetNeeded: before the first `reset` and after the end.
            TypeError: the action is no whole number.
            ValueError: it is outside the vocabulary, or the action mask forbids it.
        """
        if self._question is None:
            raise ResetNeeded("step was called before reset; call reset first.")
        if self._episode.finish is not None:
            raise ResetNeeded(f"the episode has ended (by {self._episode.finish}); call reset before the next step.")
        token = whole_token(action, self.task.vocab_size, "the action")
        check_allowed(self.task.action_mask(self._question, self._episode.tokens), token)
        place = len(self._episode.tokens)
        self._episode = advance(self.task, self._question, self._episode, token)
        info, reward = self._info(), 0.0
        terminated = self._episode.finish is not None
        if terminated:
            scores = check_scores(self.task, self.task.score([self._question], *self._arrays()), 1)
            reward, info["finish"] = float(scores.reward[0]), self._episode.finish
            for kind, columns in (("parts", scores.parts), ("details", scores.details)):
                if columns:
                    info[kind] = {name: column[0].item() for name, column in columns.items()}
        if self.task.reveals_token_rewards:
            rewards = self.task.token_rewards([self._question], *self._arrays())
            reward = float(check_token_rewards(self.task, rewards, (1, self.task.horizon))[0, place])
        self._show()
        return self._observation(), reward, terminated, False, info

    def action_masks(self) -> np.ndarray:
        """(V,) int8, 1 where a token is allowed next; the method that sb3-contrib's MaskablePPO calls."""
        if self._question is None:
            raise ResetNeeded("action_masks was called before reset; call reset first.")
        mask = self.task.action_mask(self._question, self._episode.tokens)
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
        return State(self._question, self._episode, deepcopy(self.np_random.bit_generator.state))

    def restore_state(self, state: State) -> tuple[np.ndarray, dict[str, Any]]:
        """Go on from a state of this environment or of another one with an equal task.

        Returns:
            Observation and info, as `reset` does.
        """
        if not isinstance(state, State):
            raise TypeError(f"restore_state got {type(state).__name__}; give it what clone_state returned.")
        self._question, self._episode = state.question, state.episode
        self.np_random.bit_generator.state = deepcopy(state.generator)
        return self._observation(), self._info()

    def render(self) -> str | None:
        """The prompt and the response so far; None, but printed, in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn('render needs a render mode: gym.make(…, render_mode="ansi") or "human".')
            return None
        text = text_so_far(self.task, self._question, self._episode.tokens)
        if self.render_mode == "ansi":
            return text
        print(text)
        return None

    def close(self) -> None:
        """End what the task holds, such as a sandbox's processes."""
        self.task.close()

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return as_rows([self._episode], self.task.horizon)

    def _observation(self) -> np.ndarray:
        assert self._question is not None
        return np.concatenate([pad_prompt(self._question.prompt, self.task.prompt_length), self._arrays()[0][0]])

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.action_masks()}
        return info | ({"mask": self.mask} if self.task.end_of_turn is not None else {})


def observation_space(task: Task) -> spaces.Box:
    """(prompt_length + horizon,) int64 in -1 … V-1."""
    return spaces.Box(PAD, task.vocab_size - 1, (task.prompt_length + task.horizon,), np.int64)


# --- what users may get wrong ---


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
        raise TypeError(f"options is {shown(options)}; it must be a dict with some of the keys {', '.join(known)}.")
    for name in options:
        if name not in known:
            raise ValueError(f"options has the key {name!r}; reset knows {', '.join(known)}.")
    return options


def known_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> str | None:
    """The render mode; None, with a warning, for one that the metadata do not list, as Gymnasium warns of these."""
    known = metadata["render_modes"]
    modes = f"{', '.join(map(repr, known))} or None"
    if render_mode is not None and not isinstance(render_mode, str):
        raise ValueError(f"render_mode is {shown(render_mode)}; choose {modes}.")
    if render_mode is None or render_mode in known:
        return render_mode
    gymnasium.logger.warn(f"render_mode is {shown(render_mode)}; tokens have {modes}, so nothing will be rendered.")
    return None


def _asked(task: Task, options: dict[str, Any]) -> Question | None:
    """The question that the options name, if any."""
    if "question" in options and "prompt" in options:
        raise ValueError("options has both 'question' and 'prompt'; give one of them.")
    if "question" in options:
        return check_question(task, options["question"], "options['question']")
    if "prompt" not in options:
        return None
    prompt = tuple(
        whole_token(token, task.vocab_size, f"options['prompt'][{place}]")
        for place, token in enumerate(sequence_of_tokens(options["prompt"], "options['prompt']"))
    )
    question = task.from_prompt(prompt)
    if question is None:
        raise ValueError(
            f"options has 'prompt', but {type(task).__name__} cannot tell from a prompt alone what answers are worth; "
            "give options={'question': Question(prompt, secret)}."
        )
    return question
