"""A package as verifiers loads them by their id: a taskset, its environment, and a harness whose agent says what a list
tells it to, so that verifiers itself can play an episode without a model."""

import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
from verifiers.v1.graph import prepare_turn  # pyright: ignore[reportMissingImports]
from verifiers.v1.harness import HarnessSession  # pyright: ignore[reportMissingImports]
from verifiers.v1.types import (  # pyright: ignore[reportMissingImports]
    AssistantMessage,
    Response,
    SystemMessage,
    UserMessage,
)

__all__ = ["Guess", "Numbers", "Scripted"]


class ScriptedConfig(vf.HarnessConfig):
    said: tuple[str, ...] = ()


class Session(HarnessSession):
    heard: list | None = None

    async def turn(self, messages=None):
        if self.heard is None:
            self.heard, self.left = [SystemMessage(content=self.data.system_prompt)], list(self.harness.config.said)
        self.heard += [UserMessage(content=self.data.prompt)] if messages is None else messages
        if not self.left:
            self.trace.stop("max_turns")  # as verifiers' own limit does
            return
        spoken = AssistantMessage(content=self.left.pop(0))
        response = Response(id="", created=0, model="scripted", message=spoken, finish_reason="stop")
        prepare_turn(self.trace, list(self.heard)).commit(response)
        self.heard.append(spoken)


class Scripted(vf.Harness[ScriptedConfig]):
    NEEDS_CONTAINER = False
    SUPPORTS_RESUME = True
    APPENDS_SYSTEM_PROMPT = True

    async def session(self, *arguments, **named):
        return Session(self, *arguments, **named)

    async def launch(self, *arguments, **named):
        raise NotImplementedError


class Answer(vf.TaskData):
    answer: str


class Number(vf.Task[Answer, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.1)
    async def turns(self, trace):
        return -float(trace.num_turns)

    @vf.reward
    async def closed(self, trace):
        return float(trace.stop_condition == "user_closed")


class Numbers(vf.Taskset[Number, vf.TasksetConfig]):
    def load(self):
        for number in range(1, 9):
            data = Answer(prompt="Guess, 1 to 8.", system_prompt="Be quick.", answer=str(number))
            yield Number(data, self.config.task)


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class Guess(vf.Env[GuessConfig]):
    async def run(self, task, agents):
        answer, hit = int(task.data.answer), False
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated:
                guess = int(segment.last_reply)
                if hit := guess == answer:
                    break
                segment = await talk.turn("higher" if answer > guess else "lower")
        talk.trace.record_reward("hit", float(hit))

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        trace.record_reward("words", len(trace.transcript) / 100 + float(trace.ok))
