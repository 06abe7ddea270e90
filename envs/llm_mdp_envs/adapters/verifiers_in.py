"""verifiers (0.4, its v1): its tasksets and environments as tasks. The other way round is `adapters.verifiers`.

verifiers_task("wordle-v1", "FOLDER OF A MODEL")                     # an installed one, by its id
verifiers_task(MyTaskset(vf.TasksetConfig()), "FOLDER OF A MODEL")
verifiers_task(MyTaskset(vf.TasksetConfig()), "FOLDER OF A MODEL", env=MyEnv)
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.games import own_randomness
from llm_mdp_envs.adapters.rows import awaited
from llm_mdp_envs.adapters.verifiers_play import Played, check_carried, in_words, library, opening_of, play, refused
from llm_mdp_envs.arguments import check_finite, check_whole, shown
from llm_mdp_envs.task import Scores, TaskError
from llm_mdp_envs.text import TextTask
from llm_mdp_envs.text_turns import Response, TextTurns

MOST_TASKS = 10_000_000
"""Tasks that are read at once."""
MOST_PLAYED = 4096
"""Conversations whose outcomes are kept, so that a turn does not replay twice what came before it."""


class VerifiersTask(TextTask):
    """verifiers' tasks of one turn: its prompt, and the weighted sum of its rewards, each a part of the reward under
    its name; its metrics are details.

    Scoring is verifiers' own (`Task.score`), on a trace of the prompt and the reply, with `setup` before and `finalize`
    after the reply, no sandbox and no time limit. The reply is the message's content, thoughts included. Numbers of
    tokens in the trace are those of the texts by this task's tokenizer. What rewards draw from the global generators of
    `random` and numpy is seeded by the task's number.

    Args:
        source: a `Taskset`, a sequence of its tasks, the id of an installed taskset, an `EnvConfig` or an `Env`.
        tokenizer: as in `TextTask`.
        n: the first n tasks; None: all of them.
        failed: what a response is worth on which a reward function fails (verifiers gives such an episode none, and
            leaves it out); None: TaskError.
        text_options: as in `TextTask`; `chat` is True unless given.

    Raises:
        ImportError: verifiers is not installed, or there is no such taskset.
        ValueError: naming the task and what of it cannot be carried: a container, tools, a model as judge, rewards that
            look into a sandbox, hooks that rewrite requests, pictures, several agents.
        TaskError: while grading: a reward function fails, or gives no finite number.
    """

    separates = "what the taskset asks for"

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        n: int | None = None,
        failed: float | None = None,
        **text_options: Any,
    ):
        self.failed = None if failed is None else check_finite("failed", failed)
        taskset, self.environment = _found(source, None)
        if self.environment is not None:
            raise ValueError(
                f"{type(self.environment).__name__} leads a conversation of its own; use VerifiersConversation, or "
                f"verifiers_task, which chooses."
            )
        self.tasks = _tasks(taskset, n)
        for number, task in enumerate(self.tasks):
            if task.data.prompt is None:
                raise ValueError(f"{_place(task, number)} has no prompt; without an environment nobody asks anything.")
            if not task.hooks("reward"):
                raise ValueError(f"{_place(task, number)} has no rewards (@vf.reward), so nothing could be learned.")
        super().__init__(tokenizer, **{"chat": True, **text_options})

    def listed(self):
        return len(self.tasks)

    def draw(self, generator):
        return self.draw_at(int(generator.integers(len(self.tasks))))

    def draw_at(self, number):
        opening = in_words(opening_of(self.tasks[number]))
        alone = not self.chat and len(opening) == 1 and opening[0]["role"] == "user"
        return opening[0]["content"] if alone else opening, number

    def grade(self, replies):
        rewards, metrics = [], []
        for reply in replies:
            cut = bool(reply.tokens) and reply.tokens[-1] not in self.ends
            played, error = _outcome(self, reply.secret, [reply.text], cut)
            if error is not None:
                rewards.append({"failed": _worth_of_failure(self, reply.secret, error)})
                metrics.append({})
                continue
            given = {name: one for name, one in played.trace.rewards.items() if one is not None}
            rewards.append({name: _finite(self, reply.secret, name, one.value) for name, one in given.items()})
            metrics.append({name: value for name, value in played.trace.metrics.items() if value is not None})
        parts, details = _columns(rewards), _columns(metrics)
        return Scores(np.sum([np.zeros(len(rewards)), *parts.values()], axis=0), parts, details)


class VerifiersConversation(TextTurns):
    """verifiers' environments of several turns (`Env.run`) with one agent: its `interaction` is the policy's.

    The environment says nothing by itself, so it is replayed from its beginning with every turn: its coroutine runs
    with an agent that says what the policy has said so far; where it asks for more, it has said its next message, and
    its agent stops, as verifiers' agents do at a limit (`segment.terminated`). So a conversation that `max_turns` or
    the horizon ends is scored as verifiers scores it: by what the environment and the task's rewards give the trace
    then. A turn is worth what it adds to the score of the conversation if it broke off there; the sum is the score.
    `check_task` finds environments that do not go the same way twice.

    An environment that fails because its agent stopped earns what its trace held by then, as in verifiers.

    Args:
        source, n, failed: as in `VerifiersTask`.
        env: the `Env` class (with its default config), or an `Env`, that plays a `Taskset`; None: the one that belongs
            to the source.
        tokenizer, text_options: as in `TextTurns`.
        max_turns: most turns of the policy; None: the environment's own limit for its agent, or 20.

    Raises:
        ImportError, ValueError: as `VerifiersTask`; ValueError also for an environment that opens two conversations, or
            has resources of its own to start.
        TaskError: while it is played: the environment or a reward function fails, or gives no finite number.
    """

    separates = "what the environment asks for; turn-level credit"
    part_names = ("reward",)

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        env: Any = None,
        n: int | None = None,
        max_turns: int | None = None,
        failed: float | None = None,
        **text_options: Any,
    ):
        self.failed = None if failed is None else check_finite("failed", failed)
        taskset, self.environment = _found(source, env)
        if self.environment is None:
            raise ValueError(f"{shown(source)} has no environment of its own; give env=, or use VerifiersTask.")
        self.tasks = _tasks(taskset, n)
        self._played: dict[tuple[int, tuple[str, ...]], tuple[Any, float]] = {}
        limit = next(iter(_agents_of(self.environment).values())).max_turns
        super().__init__(tokenizer, max_turns=limit or 20 if max_turns is None else max_turns, **text_options)
        _outcome(self, 0, [])

    def listed(self):
        return len(self.tasks)

    def draw(self, generator):
        return self.draw_at(int(generator.integers(len(self.tasks))))

    def draw_at(self, number):
        played, error = _outcome(self, number, [])
        if not played.opening:
            raise TaskError(
                f"{type(self.environment).__name__}.run failed on {_place(self.tasks[number], number)} before it asked "
                f"its agent anything: {error}"
                if error
                else f"{type(self.environment).__name__}.run asks its agent nothing on "
                f"{_place(self.tasks[number], number)}."
            )
        return played.opening, number

    def respond(self, secret, said):
        reply, score = self._scored(secret, tuple(said))
        before = self._scored(secret, tuple(said[:-1]))[1] if len(said) > 1 else 0.0
        return Response(reply, {"reward": score - before})

    def _scored(self, number: int, said: tuple[str, ...]) -> tuple[list[dict] | None, float]:
        """What the environment says next, and the score if the conversation ends here."""
        if (number, said) not in self._played:
            played, error = _outcome(self, number, said)
            if error is not None and played.next is None:
                score = _worth_of_failure(self, number, error)
            else:
                score = _finite(self, number, "reward", played.trace.reward)
            if len(self._played) >= MOST_PLAYED:
                del self._played[next(iter(self._played))]
            self._played[number, said] = played.next, score
        return self._played[number, said]


def verifiers_task(source: Any, tokenizer: Any = None, *, env: Any = None, **options: Any) -> TextTask:
    """A taskset or environment of verifiers as a task: a `VerifiersTask` where each task is one turn, else a
    `VerifiersConversation`; arguments and errors are theirs."""
    taskset, env = _found(source, env)
    if env is None:
        return VerifiersTask(taskset, tokenizer, **options)
    return VerifiersConversation(taskset, tokenizer, env=env, **options)


# --- what is read ---


def _found(source: Any, env: Any) -> tuple[Any, Any]:
    """The taskset, and the environment that plays it; None: each of its tasks is one turn."""
    vf = library()
    if isinstance(source, str | vf.EnvConfig):
        source = _installed(source)
    if isinstance(source, vf.Env):
        env, source = source if env is None else env, source.taskset
    if isinstance(source, type | bytes | dict) or not hasattr(source, "__iter__"):
        raise ValueError(
            f"source is {shown(source)}; it must be a Taskset (an object, not its class), a sequence of tasks, the "
            f"id of an installed taskset, an EnvConfig or an Env."
        )
    return source, _environment(source, env)


def _tasks(taskset: Any, n: int | None) -> list[Any]:
    vf, name = library(), type(taskset).__name__
    n = None if n is None else check_whole("n", n, 1, MOST_TASKS)
    if n is None and not getattr(taskset, "bounded", True):
        raise ValueError(f"{name} never ends; say how many of its tasks are wanted: n=1000.")
    if isinstance(taskset, vf.Taskset) and type(taskset).toolsets(taskset.config):
        raise ValueError(f"{name} has {refused('tools')}")
    with own_randomness(0):
        tasks = list(islice(taskset, n))
    if not tasks:
        raise ValueError(f"{name} has no tasks.")
    checked = set()
    for number, task in enumerate(tasks):
        if not isinstance(task, vf.Task):
            raise ValueError(f"source[{number}] is {shown(task)}; it must be a Task of verifiers.")
        check_carried(task, _place(task, number), checked)
    return tasks


def _environment(taskset: Any, env: Any) -> Any:
    if env is None:
        return None
    vf, concrete_type = library(), library("utils.generic").concrete_type
    kind: Any = env if isinstance(env, type) else type(env)
    if not issubclass(kind, vf.Env):
        raise ValueError(f"env is {shown(env)}; it must be an Env of verifiers, or its class.")
    if kind is vf.SingleAgentEnv:
        return None
    if env is kind:
        env = object.__new__(kind)  # __init__ takes installed tasksets only
        env.config = (concrete_type(kind, vf.EnvConfig, origin=vf.Env) or vf.EnvConfig)()
        env.taskset = taskset
    if kind.start is not vf.Env.start:
        raise ValueError(f"{kind.__name__} starts resources of its own (start), which only verifiers can serve.")
    agents = _agents_of(env)
    if len(agents) != 1:
        raise ValueError(
            f"{kind.__name__} has the agents {', '.join(agents) or 'none'}; one, the policy, can be carried: "
            f"every other needs a model behind an endpoint."
        )
    return env


def _installed(source: Any) -> Any:
    loaders = library("utils.loaders")
    try:
        config = loaders.resolve_env_config({"taskset": {"id": source}} if isinstance(source, str) else source)
        return loaders.load_environment(config)
    except ImportError as error:
        raise ImportError(f"source is {shown(source)}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"source is {shown(source)}, which verifiers refuses: {' '.join(str(error).split())}"
        ) from error


def _agents_of(env: Any) -> dict[str, Any]:
    return library("configs.agent").agent_config_fields(env.config)


# --- what is played ---


def _outcome(
    task: VerifiersTask | VerifiersConversation, number: int, said: Sequence[str], cut: bool = False
) -> tuple[Played, Exception | None]:
    """The conversation up to here, and what went wrong in it, if anything."""
    one, env, count = task.tasks[number], task.environment, _counter(task)
    name = "agent" if env is None else next(iter(_agents_of(env)))
    with own_randomness(number):
        return awaited([play(one, env, name, list(said), count, cut)])[0]


def _counter(task: TextTask) -> Callable[[str], int]:
    return lambda text: len(task.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _place(task: Any, number: int) -> str:
    return f"task {number} ({task.data.name!r})" if task.data.name else f"task {number}"


def _worth_of_failure(task: VerifiersTask | VerifiersConversation, number: int, error: Exception) -> float:
    if task.failed is not None:
        return task.failed
    raise TaskError(
        f"{_place(task.tasks[number], number)} of verifiers failed: {type(error).__name__}: {error}. Set failed= to "
        f"what such a response is worth."
    ) from error


def _finite(task: VerifiersTask | VerifiersConversation, number: int, name: str, value: float) -> float:
    if np.isfinite(value):
        return float(value)
    raise TaskError(
        f"{_place(task.tasks[number], number)} of verifiers gave {value} as the reward {name!r}; it must be a finite "
        f"number."
    )


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    """Figures by name, 0 where a row has none of this name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, 0.0) for row in rows], dtype=np.float64) for name in names}
