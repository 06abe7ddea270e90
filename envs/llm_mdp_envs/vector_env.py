"""Many token environments stepped as numpy arrays.

Any `Task` will do: then questions, replies and action masks cost a Python call each. An `ArrayTask`, whose questions
are rows of numbers, has no Python loop over environments anywhere.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import logger, spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llm_mdp_envs.arguments import check_whole, shown
from llm_mdp_envs.array_task import ArrayTask, secrets_of
from llm_mdp_envs.check import check_form
from llm_mdp_envs.episode import (
    FINISH,
    Episode,
    advance,
    begun,
    check_question,
    check_scores,
    check_token_rewards,
    pad_prompt,
    replay,
    sequence_of_tokens,
    text_so_far,
    unpadded,
    whole_token,
)
from llm_mdp_envs.task import PAD, Question, Scores, Task
from llm_mdp_envs.token_env import check_allowed, check_options, known_render_mode, observation_space

MOST_CELLS = 2**30
"""Tokens that all environments together may hold: 8 GiB."""
GOES_ON = len(FINISH)
FINISH_NAMES = np.array([*FINISH, None], dtype=object)
"""Names by index of `FINISH`; None for an episode that goes on."""


class _Rows:
    """Questions of an ArrayTask: an (N, W) array."""

    def __init__(self, task: ArrayTask, n: int):
        self.task, self.secrets = task, np.zeros((n, 0), dtype=np.int64)
        self.prompts = np.full((n, task.prompt_length), PAD, dtype=np.int64)

    def draw(self, generator: np.random.Generator, where: np.ndarray) -> np.ndarray:
        """Draw new questions for some environments; returns their prompts."""
        secrets = self.task.draw(generator, len(where))
        if len(where) == len(self.secrets):
            self.secrets = secrets
        else:
            self.secrets[where] = secrets
        drawn = self.task.prompts(secrets)
        if self.prompts.size:
            self.prompts[where] = drawn
        return drawn

    def put(self, questions: Sequence[Question]) -> np.ndarray:
        self.secrets = secrets_of(questions)
        self.prompts = self.task.prompts(self.secrets)
        return self.prompts

    def question(self, number: int) -> Question:
        return self.task.questions_of(self.secrets[number : number + 1])[0]

    def score(self, where: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> Scores:
        return self.task.score_rows(self.secrets[where], tokens, mask)

    def token_rewards(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        return self.task.token_reward_rows(self.secrets, tokens, mask)

    def action_masks(self, tokens: np.ndarray, length: np.ndarray) -> np.ndarray | None:
        return self.task.action_masks(self.prompts, tokens)


class _Objects:
    """Questions of any other task: a list of N."""

    def __init__(self, task: Task, n: int):
        self.task, self.together = task, type(task).action_masks is not Task.action_masks
        self.questions: list[Question] = [Question(())] * n

    def draw(self, generator: np.random.Generator, where: np.ndarray) -> np.ndarray:
        drawn = self.task.questions(generator, len(where))
        for number, question in zip(where, drawn):
            self.questions[number] = question
        return self._prompts(drawn)

    def put(self, questions: Sequence[Question]) -> np.ndarray:
        self.questions = list(questions)
        return self._prompts(self.questions)

    def _prompts(self, questions: Sequence[Question]) -> np.ndarray:
        rows = [pad_prompt(question.prompt, self.task.prompt_length) for question in questions]
        return np.array(rows, dtype=np.int64).reshape(len(rows), self.task.prompt_length)

    def question(self, number: int) -> Question:
        return self.questions[number]

    def score(self, where: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> Scores:
        return self.task.score([self.questions[number] for number in where], tokens, mask)

    def token_rewards(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        return self.task.token_rewards(self.questions, tokens, mask)

    def action_masks(self, tokens: np.ndarray, length: np.ndarray) -> np.ndarray | None:
        if self.together:
            return self.task.action_masks(self._prompts(self.questions), tokens)
        if type(self.task).action_mask is Task.action_mask:
            return None
        masks = [self.task.action_mask(q, row[:n].tolist()) for q, row, n in zip(self.questions, tokens, length)]
        everything = np.ones(self.task.vocab_size, dtype=np.int8)
        return np.array([everything if mask is None else mask for mask in masks], dtype=np.int8)


class TokenVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` episodes of one task, stepped together; see `TokenEnv` for observations (here (N, prompt_length +
    horizon)) and infos.

    Autoreset is Gymnasium's default, NEXT_STEP: the step after an episode's end ignores its action, returns the first
    observation of the next episode and reward 0. Infos are arrays over environments, each key with a mask `_key`, as
    Gymnasium's vector environments have it.

    Args:
        task: what is asked, and what answers are worth.
        num_envs: N ≥ 1.
        render_mode: "ansi" or None; another one is None with a warning, as in `TokenEnv`.

    Raises:
        TaskError: the task's numbers are wrong, whatever it asks (`check_form`).
        ValueError: num_envs is below 1, or larger than arrays can be made for; the render mode is no text.
    """

    metadata: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "render_modes": ["ansi"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(self, task: Task, num_envs: int = 1, render_mode: str | None = None):
        num_envs = check_whole("num_envs", num_envs, 1)
        self.render_mode = known_render_mode(render_mode, self.metadata)
        check_form(task)
        if num_envs * (task.prompt_length + task.horizon) > MOST_CELLS:
            raise ValueError(
                f"num_envs is {shown(num_envs)}, and each takes {task.prompt_length + task.horizon} tokens; all "
                f"together must take at most {MOST_CELLS:,}."
            )
        self.task, self.num_envs = task, num_envs
        self.single_action_space = spaces.Discrete(task.vocab_size)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space(task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._asked = _Rows(task, num_envs) if isinstance(task, ArrayTask) else _Objects(task, num_envs)
        self._text = np.full((num_envs, task.prompt_length + task.horizon), PAD, dtype=np.int64)
        self._start = np.arange(num_envs) * self._text.shape[1] + task.prompt_length
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._written = np.zeros((num_envs, task.horizon), dtype=bool)
        self._turns = np.zeros(num_envs, dtype=np.int64)
        self._last = np.zeros(num_envs, dtype=np.int64)
        self._over = np.zeros(num_envs, dtype=bool)
        self._allowed: np.ndarray | None = None
        self._everything = np.broadcast_to(np.int8(1), (num_envs, task.vocab_size))
        self._begun = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment.

        Args:
            seed: starts the one generator of all questions anew.
            options: `{"questions": N Questions}` instead of drawing them; `{"prefixes": N sequences of tokens}` to
                begin with, as in `TokenEnv.reset` (-1 at the end of a prefix is padding).

        Raises:
            ValueError: unknown option, another number than N, or a prefix that has ended or contradicts the
            environment.
        """
        super().reset(seed=None if seed is None else check_whole("seed", seed))
        options = check_options(options, ("questions", "prefixes"))
        for name in options:
            sequence_of_tokens(options[name], f"options[{name!r}]", f"{name}, one an environment")
            if len(options[name]) != self.num_envs:
                raise ValueError(
                    f"options[{name!r}] has {len(options[name])} entries; there are {self.num_envs} environments."
                )
        self._begun = False  # until everything below has gone well
        if "questions" in options:
            questions = [
                check_question(self.task, q, f"options['questions'][{i}]") for i, q in enumerate(options["questions"])
            ]
            prompts = self._asked.put(questions)
        else:
            prompts = self._asked.draw(self.np_random, np.arange(self.num_envs))
        self._begin(slice(None), prompts)
        for number, prefix in enumerate(options.get("prefixes", ())):
            name = f"options['prefixes'][{number}]"
            prefix = unpadded(sequence_of_tokens(prefix, name))
            self._put(number, begun(self.task, self._asked.question(number), prefix, name))
        self._over = np.zeros(self.num_envs, dtype=bool)
        self._begun = True
        return self._text.copy(), self._infos()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append a token in every environment; begin the next episode where the last one ended in the step before.

        Args:
            actions: (N,) tokens; ignored where the last step ended an episode.

        Raises:
            ResetNeeded: before the first `reset`.
            TypeError, ValueError: naming the environment whose action is no whole number, outside the vocabulary, or
            forbidden.
        """
        if not self._begun:
            raise ResetNeeded("step was called before reset; call reset first.")
        actions, new = self._checked(actions), np.flatnonzero(self._over)
        if len(new):
            self._begin(new, self._asked.draw(self.np_random, new))
        finish = self._append(actions, new)
        terminated = finish != GOES_ON
        done = np.flatnonzero(terminated)
        reward, final = np.zeros(self.num_envs), {}
        if len(done):
            tokens = self._tokens[done]
            scores = self._asked.score(done, tokens, self._own(tokens, done))
            check_scores(self.task, scores, len(done))
            reward[done] = scores.reward
            final = _final_infos(finish, done, scores)
        if self.task.reveals_token_rewards:
            reward = self._last_token_rewards()
        self._over = terminated
        return self._text.copy(), reward, terminated.copy(), np.zeros(self.num_envs, dtype=bool), self._infos() | final

    def replay(self, questions: Sequence[Question], token_rows: np.ndarray) -> Scores:
        """Score whole responses; see `replay`. The episodes under way are not touched."""
        return replay(self.task, questions, token_rows)

    def action_masks(self) -> np.ndarray:
        """(N, V) int8, 1 where a token is allowed next. Of a task that forbids nothing it is one number behind an array
        of this shape, which cannot be written to (copy it, if you must): N · V ones would cost more than the step."""
        if not self._begun:
            raise ResetNeeded("action_masks was called before reset; call reset first.")
        return self._everything if self._allowed is None else self._allowed.copy()

    @property
    def mask(self) -> np.ndarray:
        """(N, horizon) bool: which tokens of the responses so far the policy chose."""
        return self._own(self._tokens, slice(None))

    def render(self) -> tuple[str, ...] | None:
        """The text of every environment so far."""
        if self.render_mode is None:
            logger.warn('render needs a render mode: gym.make_vec(…, render_mode="ansi").')
            return None
        questions = [self._asked.question(number) if self._begun else None for number in range(self.num_envs)]
        return tuple(text_so_far(self.task, question, row.tolist()) for question, row in zip(questions, self._tokens))

    def close_extras(self) -> None:
        """End what the task holds, such as a sandbox's processes."""
        self.task.close()

    @property
    def _tokens(self) -> np.ndarray:
        """(N, horizon), the responses' part of the text; not a copy."""
        return self._text[:, self.task.prompt_length :]

    def _begin(self, where: np.ndarray | slice, prompts: np.ndarray) -> None:
        self._text[where] = PAD
        self._length[where] = 0
        if self.task.prompt_length:
            self._text[where, : self.task.prompt_length] = prompts
        if self.task.end_of_turn is not None:
            self._turns[where] = 0
            self._written[where] = False

    def _put(self, number: int, episode: Episode) -> None:
        """Make environment `number` stand where `episode` does."""
        length = len(episode.tokens)
        self._tokens[number, :length] = episode.tokens
        self._written[number, :length] = ~np.array(episode.mask, dtype=bool)
        self._length[number], self._turns[number] = length, episode.turns

    def _append(self, actions: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Write the actions, and replies where turns end; returns (N,) why episodes end now, as an index of `FINISH` or
        GOES_ON."""
        task = self.task
        self._last = self._length.copy()
        flat = self._text.reshape(-1)
        flat[self._start + self._last] = actions
        self._length += 1
        finish = np.where(self._length == task.horizon, FINISH.index("horizon"), GOES_ON)
        for token in task.ends:
            finish[actions == token] = FINISH.index("eos")
        if len(new):
            flat[self._start[new]] = PAD
            self._length[new] = 0
            finish[new] = GOES_ON
        if task.end_of_turn is not None:
            for number in np.flatnonzero(np.isin(actions, task.turn_ends) & ~self._over).tolist():
                episode = self._hand_over(number)
                finish[number] = GOES_ON if episode.finish is None else FINISH.index(episode.finish)
        return finish

    def _hand_over(self, number: int) -> Episode:
        last = self._last[number]
        before = Episode(
            tuple(self._tokens[number, :last].tolist()), tuple(~self._written[number, :last]), int(self._turns[number])
        )
        episode = advance(self.task, self._asked.question(number), before, int(self._tokens[number, last]))
        self._put(number, episode)
        return episode

    def _own(self, tokens: np.ndarray, where: np.ndarray | slice) -> np.ndarray:
        """Which of these environments' tokens the policy chose."""
        own = tokens != PAD
        return own if self.task.end_of_turn is None else own & ~self._written[where]

    def _last_token_rewards(self) -> np.ndarray:
        """Of the tokens just written; 0 for new episodes, which have none (their `_last` is an unmasked place)."""
        rewards = self._asked.token_rewards(self._tokens, self.mask)
        rows = np.where(self.mask, check_token_rewards(self.task, rewards, self.mask.shape), 0.0)
        return rows[np.arange(self.num_envs), self._last]

    def _infos(self) -> dict[str, Any]:
        self._allowed = self._asked.action_masks(self._tokens, self._length)
        infos = {"action_mask": self.action_masks(), "_action_mask": np.ones(self.num_envs, dtype=bool)}
        if self.task.end_of_turn is not None:
            infos |= {"mask": self.mask, "_mask": np.ones(self.num_envs, dtype=bool)}
        return infos

    def _checked(self, actions: Any) -> np.ndarray:
        """The actions as (N,) int64."""
        n, vocab_size = self.num_envs, self.task.vocab_size
        try:
            array = np.asarray(actions)
        except ValueError:  # rows of different lengths
            raise ValueError(f"actions are {shown(actions)}; {n} environments take ({n},).") from None
        if array.shape != (n,):
            raise ValueError(f"actions have shape {array.shape}; {n} environments take ({n},).")
        if array.dtype.kind not in "iu":
            raise TypeError(f"actions are {array.dtype}; tokens are whole numbers, 0 … {vocab_size - 1}.")
        if array.min() < 0 or array.max() >= vocab_size:
            wrong = ~self._over & ((array < 0) | (array >= vocab_size))
            for number in np.flatnonzero(wrong):
                whole_token(array[number], vocab_size, f"the action of environment {number}")
            array = np.where(self._over, 0, array)
        if self._allowed is not None:
            forbidden = ~self._over & (self._allowed[np.arange(n), array] == 0)
            for number in np.flatnonzero(forbidden):
                check_allowed(self._allowed[number], int(array[number]), f"the action of environment {number}")
        return array


def _final_infos(finish: np.ndarray, done: np.ndarray, scores: Scores) -> dict[str, Any]:
    """`finish`, `parts` and `details` of the episodes that end now, in the form of Gymnasium's vector infos."""
    ended, names = finish != GOES_ON, np.empty(len(finish), dtype=object)
    names[done] = FINISH_NAMES[finish[done]]
    infos: dict[str, Any] = {"finish": names, "_finish": ended}
    for kind, columns in (("parts", scores.parts), ("details", scores.details)):
        reported: dict[str, Any] = {}
        for name, values in columns.items():
            reported[name], reported[f"_{name}"] = np.zeros(len(finish), dtype=values.dtype), ended.copy()
            reported[name][done] = values
        if reported:
            infos |= {kind: reported, f"_{kind}": ended.copy()}
    return infos
