"""Games that are played in words, of other libraries, as tasks: anything that begins from a seed and answers a text.

TextGame(gem_game("game:GuessTheNumber-v0-easy"), "FOLDER OF A MODEL", max_turns=4)
TextGame(textarena_game("GuessTheNumber-v0"))
"""

import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llm_mdp_envs.arguments import check_whole, shown
from llm_mdp_envs.text_turns import Response, TextTurns

MOST_LIVE = 256
"""Games that are kept as they stand, so that going on with one does not mean playing it again."""


class Game(Protocol):
    """One game, from its beginning to its end."""

    def start(self, seed: int) -> str:
        """Begin the game of this seed; what the player reads first."""
        ...

    def say(self, text: str) -> tuple[str | None, float]:
        """What the player's turn is answered (None: the game is over), and its reward."""
        ...


@contextmanager
def own_randomness(seed: int, state: Any = None) -> Iterator[list[Any]]:
    """Within it the global generators of `random` and numpy are seeded, or in the state that an earlier use left;
    afterwards they are as they were before.

    Yields:
        a list that holds their state when it is over.
    """
    before, after = (random.getstate(), np.random.get_state()), []  # noqa: NPY002 - what games draw from
    try:
        if state is None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
        else:
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
        yield after
    finally:
        after.extend((random.getstate(), np.random.get_state()))  # noqa: NPY002
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@dataclass
class _Live:
    """A game as it stands, with its own state of the global generators, which many games draw from."""

    game: Game
    state: Any = field(default=None)

    @contextmanager
    def randomness(self, seed: int) -> Iterator[None]:
        after = []
        try:
            with own_randomness(seed, self.state) as after:
                yield
        finally:
            self.state = after or self.state


class TextGame(TextTurns):
    """A game in words as a task: the question is its beginning, every turn is said to it, and the reward is the sum of
    its rewards. Conversations are replayed from the seed; `check_task` finds games that do not go the same way twice.

    What a game draws from the global generators of `random` and numpy is its own: they are seeded for it, and left as
    they were.

    Args:
        make: makes a new `Game`; `gem_game(id)` and `textarena_game(id)` give such functions.
        tokenizer, max_turns, horizon, reply_length, prompt_length, system: as in `TextTurns`.
        games: how many different ones there are, with the seeds 0 … games - 1.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = "what the game asks for; turn-level credit"
    part_names = ("game",)

    def __init__(
        self,
        make: Callable[[], Game],
        tokenizer: Any = None,
        *,
        max_turns: int = 20,
        horizon: int = 2048,
        reply_length: int = 512,
        prompt_length: int = 2048,
        system: str | None = None,
        games: int = 2**31,
    ):
        if not callable(make):
            raise ValueError(f"make is {shown(make)}; it must make a game: a class, gem_game(id), textarena_game(id).")
        self.make, self.games = make, check_whole("games", games, 1, 2**31)
        self._live: dict[tuple[int, tuple[str, ...]], _Live] = {}
        super().__init__(
            tokenizer,
            max_turns=max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    def draw(self, generator):
        seed = int(generator.integers(self.games))
        return self._started(seed)[1], seed

    def respond(self, secret, said):
        *earlier, latest = said
        live = self._live.pop((secret, tuple(earlier)), None) or self._replayed(secret, earlier)
        with live.randomness(secret):
            reply, reward = live.game.say(latest)
        if reply is not None:
            if len(self._live) >= MOST_LIVE:
                del self._live[next(iter(self._live))]
            self._live[secret, tuple(said)] = live
        return Response(reply, {"game": float(reward)})

    def _started(self, seed: int) -> tuple[_Live, str]:
        live = _Live(self.make())
        with live.randomness(seed):
            return live, live.game.start(seed)

    def _replayed(self, seed: int, said: list[str]) -> _Live:
        live, _ = self._started(seed)
        for text in said:
            with live.randomness(seed):
                live.game.say(text)
        return live

    def __getstate__(self) -> dict[str, Any]:
        """Without the games that stand: many cannot be pickled, and all can be replayed."""
        return {**super().__getstate__(), "_live": {}}


def gem_game(id: str, **options: Any) -> Callable[[], Game]:
    """Makes games of GEM (`pip install --no-deps gem-llm`), by their id.

    Args:
        options: of `gem.make`.

    Raises:
        ImportError: GEM is not installed.
        ValueError: when a game is made: there is no such id.
    """
    return _Maker("gem", "gem-llm", id, options, _GemGame)


def textarena_game(id: str, **options: Any) -> Callable[[], Game]:
    """Makes games for one player of TextArena (`pip install textarena`), by their id. They are played raw where there
    is such a form, which does not repeat the whole game in every reply.

    Args:
        options: of `textarena.make`.

    Raises:
        ImportError: TextArena is not installed.
        ValueError: when a game is made: there is no such id; when it begins: it is for several players.
    """
    return _Maker("textarena", "textarena", id, options, _TextArenaGame)


@dataclass(frozen=True)
class _Maker:
    """Makes games of a library; a class, so that tasks with it can be pickled."""

    module: str
    package: str
    id: str
    options: dict[str, Any]
    kind: Callable[[Any, str, dict[str, Any]], Game]

    def __post_init__(self) -> None:
        self._library()

    def __call__(self) -> Game:
        return self.kind(self._library(), self.id, self.options)

    def _library(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise ImportError(
                f"the game {self.id} needs the package {self.package} ({error}): pip install {self.package}"
            ) from error


class _GemGame:
    def __init__(self, gem: Any, id: str, options: dict[str, Any]):
        self.env = gem.make(id, **options)

    def start(self, seed: int) -> str:
        text, info = self.env.reset(seed=seed)
        return _joined(text, info.get("suffix"))

    def say(self, text: str) -> tuple[str | None, float]:
        observation, reward, terminated, truncated, info = self.env.step(text)
        over = terminated or truncated
        return None if over else _joined(observation, info.get("suffix")), float(reward)


class _TextArenaGame:
    def __init__(self, textarena: Any, id: str, options: dict[str, Any]):
        raw = f"{id}-raw"
        known = textarena.envs.registration.ENV_REGISTRY
        self.id, self.env = id, textarena.make(raw if raw in known else id, **options)
        self.own = textarena.ObservationType.PLAYER_ACTION

    def start(self, seed: int) -> str:
        try:
            self.env.reset(num_players=1, seed=seed)
        except AssertionError as error:
            raise ValueError(f"{self.id} is no game for one player ({error}); choose another.") from error
        return self._read()

    def say(self, text: str) -> tuple[str | None, float]:
        over, _ = self.env.step(text)
        if not over:
            return self._read(), 0.0
        rewards, _ = self.env.close()
        return None, float((rewards or {}).get(0) or 0.0)

    def _read(self) -> str:
        """What is new to the player, without the player's own words."""
        _, observation = self.env.get_observation()
        if isinstance(observation, str):
            return observation.strip()
        return "\n".join(message for _, message, kind in observation if kind != self.own)


def _joined(text: str, suffix: str | None) -> str:
    return f"{text.strip()}\n{suffix}" if suffix else text.strip()
