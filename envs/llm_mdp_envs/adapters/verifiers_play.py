"""One episode of verifiers with an agent that says what it is told to, in this process: no endpoint, no sandbox."""

import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from llm_mdp_envs.arguments import shown


def library(part: str = "") -> Any:
    """verifiers' v1, or a module of it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(f"verifiers.v1{part and '.'}{part}")
    except ImportError as error:
        raise ImportError(f"tasks of verifiers need verifiers 0.4 ({error}): pip install verifiers==0.4.0") from error


class Refused(ValueError):
    """What an environment asks for cannot be carried."""


@dataclass
class Played:
    """How far a conversation went."""

    opening: list[dict] = field(default_factory=list)
    """The messages before the policy's first turn."""
    next: list[dict] | None = None
    """What the environment says after the policy's last turn; None: the conversation is over."""
    trace: Any = None
    """verifiers' trace, scored as if the conversation ended here."""


async def play(
    task: Any, env: Any, name: str, said: Sequence[str], count: Callable[[str], int], cut: bool
) -> tuple[Played, Exception | None]:
    """A conversation in which the agent says this and then stops.

    Args:
        env: None: the agent runs on the task, once.
        name: of the agent.
        count: a text's number of tokens.
        cut: did the last of what is said end at a limit?

    Returns:
        the conversation, and what went wrong in it, if anything.

    Raises:
        Refused: the environment asks for what cannot be carried.
    """
    seat = Seat(name, said, count, cut)
    agents = SimpleNamespace(**{name: seat})
    try:
        if env is None:
            await seat.run(task)
        else:
            await env.setup(agents)
            await env.run(task, agents)
            await env.finalize(task, _episode(env, task, seat.played.trace))
    except Refused:
        raise
    except Exception as error:
        return seat.played, error
    return seat.played, seat.error


class Seat:
    """What verifiers' `Agent` is to an environment."""

    def __init__(self, name: str, said: Sequence[str], count: Callable[[str], int], cut: bool):
        self.name, self.said, self.count, self.cut = name, said, count, cut
        self.trainable = True
        self.played = Played()
        self.error: Exception | None = None

    async def run(self, task: Any, **borrowed: Any) -> Any:
        async with self._opened(task, borrowed, "agent_completed") as talk:
            await talk.turn()
        return talk.trace

    @asynccontextmanager
    async def interaction(self, task: Any, **borrowed: Any) -> AsyncIterator["Talk"]:
        async with self._opened(task, borrowed, "user_closed") as talk:
            yield talk

    def provision(self, task: Any = None) -> Any:
        raise Refused(f"the environment provisions {refused('a sandbox')}")

    @asynccontextmanager
    async def _opened(self, task: Any, borrowed: dict[str, Any], closed: str) -> AsyncIterator["Talk"]:
        if self.played.trace is not None:
            raise Refused("the environment opens a second conversation with its agent; one can be carried.")
        for name in ("runtime", "tools"):
            if borrowed.get(name):
                raise Refused(f"the environment lends its agent {refused('a sandbox' if name == 'runtime' else name)}")
        check_carried(task, "the task that the environment hands to its agent", set())
        talk = Talk(self, task)
        self.played.trace = talk.trace
        if borrowed.get("on_trace"):
            borrowed["on_trace"](talk.trace)
        await _invoke(task.setup, talk.trace)
        yield talk
        await talk.close(closed)


class Talk:
    """What verifiers' `Interaction` is to an environment."""

    def __init__(self, seat: Seat, task: Any):
        config = library().AgentConfig(model="policy")
        agent = library("trace").AgentInfo(config=config, name=seat.name, trainable=seat.trainable)
        state = library("state").state_cls(type(task))()
        self.seat, self.task = seat, task
        self.trace = library("trace").Trace(task=_about(task), agent=agent, state=state)
        self.messages, self.turns, self.over, self.closed = [], 0, False, False

    async def turn(self, message: Any = None) -> Any:
        """The agent's next turn; a terminated segment: it stops."""
        if self.over:
            raise RuntimeError("the exchange is over (the agent stopped); read interaction.trace")
        said = self._heard(message)
        if await self._stopped(said):
            self.over = True
            return library("agent").Segment(messages=[], terminated=True)
        return library("agent").Segment(messages=[self._speak()])

    async def close(self, condition: str = "user_closed") -> Any:
        """Score what was said, once."""
        if not self.closed:
            self.over = self.closed = True
            self.trace.ok = True
            self.trace.stop(condition)
            try:
                await _invoke(self.task.finalize, self.trace)
                await self.task.score(self.trace, None)
            except Exception as error:  # verifiers, too, records it and lets the environment go on
                self.seat.error = error
                self.trace.record_error(error)
        return self.trace

    def send(self, *arguments: Any, **named: Any) -> Any:
        raise Refused("the environment sends its agent messages in the middle of a turn, which cannot be carried.")

    steer = send

    def _heard(self, message: Any) -> list[Any]:
        """What is new to the agent, now a part of what it has read."""
        prompt = self.task.data.prompt
        if self.messages and message is None:
            raise ValueError("after its first turn the agent needs a message: turn(message).")
        if not self.messages and (message is None) == (prompt is None):
            raise ValueError("a task with a prompt is opened by turn(), one without by turn(message).")
        new = as_messages(message) if self.messages else opening_of(self.task, message)
        self.messages += new
        return new

    async def _stopped(self, said: list[Any]) -> bool:
        words = in_words(said)
        if not self.turns:
            self.seat.played.opening = words
        for stop in self.task.hooks("stop"):
            if await library("session").call_hook(stop, {library("trace").Trace: self.trace}):
                self.trace.stop(stop.__name__)
                return True
        if self.turns < len(self.seat.said):
            return False
        self.seat.played.next = words
        self.trace.stop("max_turns")
        return True

    def _speak(self) -> Any:
        types, count, text = library("types"), self.seat.count, self.seat.said[self.turns]
        self.turns += 1
        spoken = types.AssistantMessage(content=text)
        finish = "length" if self.seat.cut and self.turns == len(self.seat.said) else "stop"
        read = sum(count(one["content"]) for one in in_words(self.messages))
        usage = types.Usage(prompt_tokens=read, completion_tokens=count(text))
        written = {"model": "policy", "finish_reason": finish, "usage": usage}
        response = types.Response(id="", created=0, message=spoken, **written)
        node = library("graph").prepare_turn(self.trace, list(self.messages)).commit(response)
        self.trace.calls.append(library("trace").ModelCall(node=node, **written))
        self.messages.append(spoken)
        return spoken


def as_messages(message: Any) -> list[Any]:
    """What the user says, a text or messages, as verifiers' messages."""
    if isinstance(message, str):
        return [library("types").UserMessage(content=message)]
    return [library("dialects").parse_message(one) if isinstance(one, dict) else one for one in message]


def opening_of(task: Any, message: Any = None) -> list[Any]:
    """The messages before the agent's first turn.

    Args:
        message: what opens the conversation of a task without a prompt.
    """
    system, said = task.data.system_prompt, task.data.prompt if message is None else message
    return [*([] if system is None else [library("types").SystemMessage(content=system)]), *as_messages(said)]


def in_words(messages: Sequence[Any]) -> list[dict]:
    """verifiers' messages as ours.

    Raises:
        Refused: there are pictures, tool calls or results of tools among them.
    """
    words = []
    for message in messages:
        content = message.content or ""
        parts = [] if isinstance(content, str) else content
        if message.role == "tool" or getattr(message, "tool_calls", None):
            raise Refused(f"the message {shown(message)} has {refused('tools')}")
        if any(part.type != "text" for part in parts):
            raise Refused(f"the message {shown(message)} has pictures; texts can be carried.")
        text = content if isinstance(content, str) else "\n".join(part.text for part in parts)
        words.append({"role": message.role, "content": text})
    return words


def refused(what: str) -> str:
    """The end of a sentence on what a task needs and cannot have."""
    remedy = {
        "tools": "put its functions into a ToolTurns",
        "a sandbox": "only verifiers can serve it",
    }[what]
    return f"{what} of verifiers, which cannot be carried: {remedy}."


def check_carried(task: Any, place: str, checked: set) -> None:
    """Refused, in words, if a task needs what this process does not have.

    Args:
        place: what the sentence calls it.
        checked: kinds of tasks that have been found good; this one is added.
    """
    data = task.data
    needs = {
        "a container": type(task).NEEDS_CONTAINER or data.image,
        "a user in a container (agent_user)": data.agent_user,
        "files of a container (artifacts)": data.artifacts,
        "skills": data.skills,
    }
    for what, needed in needs.items():
        if needed:
            raise Refused(f"{place} needs {what}, which cannot be carried: only verifiers can serve it.")
    if data.prompt is not None and not isinstance(data.prompt, str):
        try:
            in_words(data.prompt)
        except Refused as error:
            raise Refused(f"{place}: {error}") from error
    kind = type(task), id(task.config)
    if kind not in checked:
        _check_kind(task, place)
        checked.add(kind)


def _check_kind(task: Any, place: str) -> None:
    boundary, trace = library("session").hook_boundary, library("trace").Trace
    if type(task).toolsets(task.config):
        raise Refused(f"{place} has {refused('tools')}")
    if task.config.judges:
        raise Refused(f"{place} is judged by a model behind an endpoint (judges), which cannot be carried.")
    base = library().Task.setup, library().Task.finalize
    for hook in (task.setup, task.finalize, *task.hooks("reward")):
        if getattr(hook, "__func__", hook) not in base and _needs(hook, "runtime"):
            raise Refused(
                f"{place}: {type(task).__name__}.{hook.__name__} works in a sandbox (its argument runtime), which "
                f"cannot be carried: only verifiers can serve it."
            )
    rewriting = library("utils.decorators").discover_decorated(task, "intercept")
    stops = [stop for stop in task.hooks("stop") if boundary(stop, allow_trace=True) is not trace]
    for hook in (*rewriting, *stops):
        raise Refused(
            f"{place}: {type(task).__name__}.{hook.__name__} reads or rewrites requests to a model, which cannot be "
            f"carried: there are none."
        )


def _needs(hook: Callable, name: str) -> bool:
    parameter = inspect.signature(hook).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


async def _invoke(hook: Callable, trace: Any) -> None:
    """A task's own hook, on the trace; the base's, which do nothing, take a sandbox."""
    if not _needs(hook, "runtime"):
        await hook(**({"trace": trace} if "trace" in inspect.signature(hook).parameters else {}))


def _about(task: Any) -> Any:
    return library("trace").TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)


def _episode(env: Any, task: Any, trace: Any) -> Any:
    episode = library("episode")
    about = episode.EnvInfo(id=env.config.env_id)
    return episode.Episode(env=about, task=_about(task), traces=[] if trace is None else [trace])
