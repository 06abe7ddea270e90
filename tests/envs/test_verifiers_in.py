"""Tasksets and environments of verifiers as tasks: toys that are written as its documentation writes them, a game of
GEM, and our own conversations, sent there and brought back."""

import asyncio
import importlib.util
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mdp_envs import TokenEnv, check_task
from llm_mdp_envs.adapters.verifiers import verifiers_classes
from llm_mdp_envs.adapters.verifiers_in import VerifiersConversation, VerifiersTask, verifiers_task
from llm_mdp_envs.task import TaskError
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText

vf = pytest.importorskip("verifiers.v1", reason="verifiers is missing: pip install verifiers==0.4.0")


class Answer(vf.TaskData):
    answer: str


class Noted(vf.State):
    begun: bool = False


class Sum(vf.Task[Answer, Noted, vf.TaskConfig]):
    async def setup(self, trace):
        trace.state.begun = True

    @vf.reward
    async def right(self, trace):
        return float(trace.last_reply == self.data.answer and trace.state.begun)

    @vf.reward(weight=0.5)
    async def style(self, task, trace):
        assert task is self.data
        return {"short": float(trace.num_output_tokens <= 2), "alone": float(trace.num_turns == 1)}

    @vf.metric
    async def length(self, trace):
        return len(trace.last_reply)


class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        for number in range(3, 8):
            data = Answer(prompt=f"{number} + {number}?", answer=str(2 * number), system_prompt="Be short.")
            yield Sum(data, self.config.task)


class Number(vf.Task[Answer, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.1)
    async def turns(self, trace):
        return -float(trace.num_turns)


class Numbers(vf.Taskset[Number, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        number = 0
        while True:
            number = number % 8 + 1
            yield Number(Answer(prompt="Guess, 1 to 8.", answer=str(number)), self.config.task)


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(max_turns=4)


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


def sums(**options) -> VerifiersTask:
    task = verifiers_task(Sums(vf.TasksetConfig()), **options)
    assert isinstance(task, VerifiersTask)
    return task


def guess(env: Any = Guess, **options: Any) -> VerifiersConversation:
    task = verifiers_task(Numbers(vf.TasksetConfig()), env=env, **{"n": 8, **options})
    assert isinstance(task, VerifiersConversation)
    return task


def asked(task, number: int):
    """The question of one task of verifiers."""
    questions = (task.question(np.random.default_rng(seed)) for seed in range(1000))
    return next(question for question in questions if question.secret.secret == number)


def worth(task, number: int, said: list[str]) -> float:
    return worth_of(task, asked(task, number), said)


def worth_of(task, question, said: list[str]) -> float:
    """The reward of a conversation that ends after this, or breaks off there."""
    tokens, mask = task.converse(question, said)
    return float(task.score([question], tokens[None], mask[None]).reward[0])


# --- one turn ---


def test_a_taskset_of_one_turn():
    task = sums(horizon=16)
    check_task(task)
    question = asked(task, 1)
    assert "Be short." in task.decode(question.prompt) and "4 + 4?" in task.decode(question.prompt)
    scores = task.grade([task.reply_to(question, "8"), task.reply_to(question, "eight")])
    assert scores.reward == pytest.approx([2.0, 0.5])
    assert {name: values.tolist() for name, values in scores.parts.items()} == {
        "right": [1.0, 0.0],
        "short": [0.5, 0.0],
        "alone": [0.5, 0.5],
    }
    assert scores.details["length"].tolist() == [1.0, 5.0]


def test_it_is_played_token_by_token():
    task = sums(horizon=8)
    env = TokenEnv(task)
    env.reset(options={"question": asked(task, 0)})
    steps = [env.step(token) for token in task.encode_response("6")]
    assert [(reward, over) for _, reward, over, _, _ in steps] == [(0.0, False), (2.0, True)]


def test_a_reply_that_the_horizon_cuts_is_truncated():
    class Whole(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
        @vf.reward
        async def whole(self, trace):
            return float(not trace.is_truncated)

    task = verifiers_task([Whole(vf.TaskData(prompt="Speak."))], horizon=4)
    question = task.question(np.random.default_rng(0))
    ended, cut = task.encode_response("abc"), task.encode_response("abcd")[:4]
    tokens = np.array([ended, cut])
    assert task.score([question] * 2, tokens, tokens >= 0).reward.tolist() == [1.0, 0.0]


def test_conversations_as_prompts_and_plain_texts():
    shots = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
    ]
    task = verifiers_task([Sum(Answer(prompt=shots, answer="4"))])
    question = task.question(np.random.default_rng(0))
    assert re.findall(r"\d(?: \+ \d\?)?(?=<)", task.decode(question.prompt)) == ["1 + 1?", "2", "2 + 2?"]
    assert task.grade([task.reply_to(question, "4")]).parts["alone"].tolist() == [0.5]
    plain = verifiers_task([Sum(Answer(prompt="2 + 2 = ", answer="4"))], chat=False)
    assert plain.decode(plain.question(np.random.default_rng(0)).prompt) == "2 + 2 = "


def test_rewards_that_draw_from_global_generators_are_the_same_every_time():
    class Noisy(Number):
        @vf.reward
        async def noise(self, trace):
            return random.random() + float(np.random.random())  # noqa: NPY002

    task = verifiers_task([Noisy(Answer(prompt="Speak.", answer=""))] * 2)
    random.seed(3)
    expected, _ = random.random(), random.seed(3)
    check_task(task)
    assert random.random() == expected
    first, second = (task.reply_to(asked(task, number), "hm") for number in (0, 1))
    assert task.grade([first]).reward[0] == task.grade([second, first]).reward[1] != task.grade([second]).reward[0]


def test_a_reward_that_fails():
    class Careless(Number):
        @vf.reward
        async def number(self, trace):
            return int(trace.last_reply)

    rows = [Careless(Answer(name="first", prompt="A number?", answer=""))]
    task = verifiers_task(rows)
    question = task.question(np.random.default_rng(0))
    assert task.grade([task.reply_to(question, "7")]).reward.tolist() == [6.9]
    with pytest.raises(TaskError, match=r"task 0 \('first'\) of verifiers failed: .*invalid literal.*failed="):
        task.grade([task.reply_to(question, "seven")])
    assert verifiers_task(rows, failed=-1).grade([task.reply_to(question, "seven")]).reward.tolist() == [-1.0]
    with pytest.raises(TaskError, match="gave inf as the reward 'huge'"):
        huge = vf.reward(_huge)
        task = verifiers_task([type("Huge", (Number,), {"huge": huge})(Answer(prompt="?", answer=""))])
        task.grade([task.reply_to(task.question(np.random.default_rng(0)), "")])


async def _huge(self, trace):
    return float("inf")


_huge.__name__ = "huge"


# --- several turns ---


def test_an_environment_of_several_turns():
    task = guess()
    check_task(guess(failed=-1.0))
    assert task.max_turns == 4 and guess(max_turns=2).max_turns == 2
    question = asked(task, 5)
    tokens, _ = task.converse(question, ["4", "7", "6", "1"])
    told = task.dialogue(question, tokens.tolist())
    assert re.findall(r"Guess, 1 to 8|higher|lower|(?<=policy: )\d", told) == [
        "Guess, 1 to 8",
        *("4", "higher", "7", "lower", "6"),
    ]
    assert worth(task, 5, ["4", "7", "6"]) == pytest.approx(1 - 0.3)
    assert worth(task, 5, ["1", "2", "3", "4", "5"]) == pytest.approx(-0.4)
    assert worth(task, 5, ["1", "2"]) == pytest.approx(-0.2)


def test_turns_are_worth_what_they_add():
    task = guess()
    question = asked(task, 5)
    tokens, mask = task.converse(question, ["4", "7", "6"])
    rewards = task.hidden_turn_rewards(question, tokens, mask)
    assert rewards[rewards != 0] == pytest.approx([-0.1, -0.1, 0.9])


def test_an_environment_that_fails_on_a_reply():
    with pytest.raises(TaskError, match=r"of verifiers failed: ValueError: invalid literal.*failed="):
        check_task(guess())
    with pytest.raises(TaskError, match="task 5 of verifiers failed: ValueError: invalid literal"):
        worth(guess(), 5, ["seven"])
    assert worth(guess(failed=-1.0), 5, ["4", "seven"]) == pytest.approx(-1.0)


def test_an_environment_that_does_not_look_whether_its_agent_stopped():
    class Blind(Guess):
        async def run(self, task, agents):
            async with agents.player.interaction(task) as talk:
                segment = await talk.turn()
                for _ in range(2):
                    if segment.last_reply == task.data.answer:
                        break
                    segment = await talk.turn("no")
            talk.trace.record_reward("hit", 1.0)

    assert worth(guess(Blind), 5, ["1", "6"]) == pytest.approx(1 - 0.2)
    assert worth(guess(Blind), 5, ["1"]) == 0.0


def test_an_environment_that_opens_the_conversation_itself():
    class Opened(Guess):
        async def run(self, task, agents):
            hidden = task.with_data(prompt=None).with_system_prompt("You guess.")
            async with agents.player.interaction(hidden) as talk:
                segment = await talk.turn(f"Now {random.randint(1, 10**9)}?")
                await talk.turn([{"role": "user", "content": f"You said {segment.last_reply}."}])

    task = guess(Opened)
    check_task(task)
    question = asked(task, 2)
    tokens, _ = task.converse(question, ["well"])
    told = task.dialogue(question, tokens.tolist())
    assert re.search(r"You guess\..*Now \d+\?.*policy: well.*You said well\.", told, re.DOTALL)


def test_stops_of_a_task_and_judgement_of_the_environment():
    class Stopping(Number):
        @vf.stop
        async def enough(self, trace: vf.Trace) -> bool:
            return trace.num_turns >= 2

    class Judging(Guess):
        async def finalize(self, task, episode):
            (trace,) = episode.traces
            assert trace.agent.name == "player" and trace.is_completed
            trace.record_reward("judged", float(trace.stop_condition == "enough"))

    task = verifiers_task([Stopping(Answer(prompt="Guess, 1 to 8.", answer="8"))], env=Judging)
    assert worth(task, 0, ["1"]) == pytest.approx(-0.1)
    assert worth(task, 0, ["1", "2"]) == pytest.approx(1 - 0.2)
    question = asked(task, 0)
    tokens, _ = task.converse(question, ["1", "2", "3"])
    assert len(task.dialogue(question, tokens.tolist()).split("policy: ")) == 3


def test_an_environment_of_one_run():
    class Once(Guess):
        async def run(self, task, agents):
            trace = await agents.player.run(task)
            trace.record_reward("said", float(trace.last_reply == task.data.answer))

    assert worth(guess(Once), 5, ["6", "7"]) == pytest.approx(1 - 0.1)


def test_a_conversation_is_pickled():
    task = guess()
    first = worth(task, 5, ["4", "6"])
    assert worth(pickle.loads(pickle.dumps(task)), 5, ["4", "6"]) == first


def test_our_conversations_there_and_back():
    """The same words earn the same, sent through verifiers' classes and brought back."""
    ours = GuessNumberText(highest=8, max_turns=4)
    taskset, env = verifiers_classes(ours, 4)
    back = verifiers_task(taskset(vf.TasksetConfig()), env=env, max_turns=4)
    check_task(back)
    for number in range(4):
        question = ours.question(np.random.default_rng(back.tasks[number].data.question_seed))
        for said in (["1", "3", "5", "7"], ["4", "2"], ["hm", str(question.secret.secret)]):
            assert worth(back, number, said) == pytest.approx(worth_of(ours, question, said))


@pytest.mark.parametrize(("number", "said"), [(4, ["4", "7", "5"]), (4, ["1", "2"]), (0, ["1"])])
def test_verifiers_itself_gives_the_same_reward(number, said, monkeypatch):
    """An episode as verifiers runs it, its servers included, by an agent that says the same."""
    from verifiers.v1.clients import EvalClientConfig, ModelContext
    from verifiers.v1.utils.loaders import load_environment, resolve_env_config

    monkeypatch.syspath_prepend(Path(__file__).parent)
    harness = {"id": "verifiers_scripted", "said": said}
    player = {"harness": harness, "runtime": {"type": "subprocess"}}
    env = load_environment(resolve_env_config({"taskset": {"id": "verifiers_scripted"}, "player": player}))

    async def episode():
        async with env.serving():
            context = ModelContext(model="scripted", client=EvalClientConfig())
            return await env.run_episode(list(env.taskset)[number], context)

    (trace,) = asyncio.run(episode()).traces
    assert trace.ok and len(trace.rewards) == 4
    assert worth(verifiers_task("verifiers_scripted"), number, said) == pytest.approx(trace.reward)


def halving(task, form: str, highest: int, seed: int) -> float:
    """The reward of a player that halves what is left, reading the game's own words."""
    env, low, high, reward, over = TokenEnv(task), 1, highest, 0.0, False
    observation, _ = env.reset(seed=seed)
    while not over:
        middle = (low + high) // 2
        for token in task.encode_response(form % middle):
            observation, reward, over, _, _ = env.step(token)
        told = task.decode([token for token in observation if token >= 0])
        hints = re.findall(r"\b(higher|lower)\b(?! or)", told)
        low, high = (middle + 1, high) if hints and hints[-1] == "higher" else (low, middle - 1)
    return float(reward)


@pytest.mark.skipif(importlib.util.find_spec("gem") is None, reason="gem is missing: pip install --no-deps gem-llm")
def test_a_game_of_gem_in_an_environment_of_verifiers():
    import gem

    class Seeded(vf.TaskData):
        seed: int

    class Game(vf.Task[Seeded, vf.State, vf.TaskConfig]):
        pass

    class Games(vf.Taskset[Game, vf.TasksetConfig]):
        def load(self):
            for seed in range(6):
                yield Game(Seeded(seed=seed), self.config.task)

    class GameEnv(vf.Env[GuessConfig]):
        async def run(self, task, agents):
            game = gem.make("game:GuessTheNumber-v0-easy")
            told, info = game.reset(seed=task.data.seed)
            total = 0.0
            async with agents.player.interaction(task) as talk:
                segment = await talk.turn(told + info.get("suffix", ""))
                while not segment.terminated:
                    told, reward, terminated, truncated, info = game.step(segment.last_reply)
                    total += reward
                    if terminated or truncated:
                        break
                    segment = await talk.turn(told + info.get("suffix", ""))
            talk.trace.record_reward("game", total)

    task = verifiers_task(Games(vf.TasksetConfig()), env=GameEnv, prompt_length=2048)
    check_task(task)
    assert [halving(task, "I guess \\boxed{%d}.", 10, seed) for seed in range(4)] == pytest.approx([1.0] * 4)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("textarena", "nltk"))),
    reason="textarena or nltk is missing: pip install textarena==0.7.4",
)
def test_the_environment_that_verifiers_has_for_textarena():
    from verifiers.v1.tasksets.textarena import TextArenaData, TextArenaEnv, TextArenaTask

    asked = "I think of a number from 1 to 20. Guess it, as [n]."
    games = [{"game": "GuessTheNumber-v0", "seed": seed} for seed in range(4)]
    task = verifiers_task(
        [TextArenaTask(TextArenaData(prompt=asked, info=game)) for game in games], env=TextArenaEnv, max_turns=6
    )
    check_task(task)
    assert [halving(task, "[%d]", 20, seed) for seed in range(4)] == [1.0] * 4


# --- what is found by its id, and what is refused ---


def test_installed_ones_are_found(tmp_path, monkeypatch):
    source = (
        "import verifiers.v1 as vf\n"
        "class Ask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):\n"
        "    @vf.reward\n"
        "    async def yes(self, trace):\n"
        "        return float(trace.last_reply == 'yes')\n"
        "class Asks(vf.Taskset[Ask, vf.TasksetConfig]):\n"
        "    def load(self):\n"
        "        yield Ask(vf.TaskData(prompt='Yes?'), self.config.task)\n"
    )
    env = (
        "class AskConfig(vf.EnvConfig):\n"
        "    player: vf.AgentConfig = vf.AgentConfig()\n"
        "class AskEnv(vf.Env[AskConfig]):\n"
        "    async def run(self, task, agents):\n"
        "        async with agents.player.interaction(task) as talk:\n"
        "            await talk.turn()\n"
        "            await talk.turn('Sure?')\n"
    )
    (tmp_path / "our_asks.py").write_text(source + "__all__ = ['Asks']\n", encoding="utf-8")
    (tmp_path / "our_talks.py").write_text(source + env + "__all__ = ['Asks', 'AskEnv']\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    one, several = verifiers_task("our-asks"), verifiers_task("our-talks")
    assert isinstance(one, VerifiersTask) and isinstance(several, VerifiersConversation)
    assert one.grade([one.reply_to(asked(one, 0), "yes")]).reward.tolist() == [1.0]
    assert worth(several, 0, ["no", "yes"]) == 1.0
    assert isinstance(verifiers_task(vf.EnvConfig(taskset={"id": "our_asks"})), VerifiersTask)
    with pytest.raises(ImportError, match="source is 'no-such-taskset'"):
        verifiers_task("no-such-taskset")


class Contained(Number):
    NEEDS_CONTAINER = True


class Sandboxed(Number):
    @vf.reward
    async def file(self, trace, runtime):
        return 1.0


class Prepared(Number):
    async def setup(self, trace, runtime):
        await runtime.run(["ls"], {})


class Tooled(Number):
    @classmethod
    def toolsets(cls, config):
        return [vf.Toolset(vf.ToolsetConfig())]


class Rewriting(Number):
    @vf.intercept
    async def rewrite(self, request: vf.Request) -> None:
        return None


class Unpaid(vf.Task[Answer, vf.State, vf.TaskConfig]):
    pass


class Crowded(Guess):
    async def run(self, task, agents):
        await agents.player.run(task)
        await agents.player.run(task)


class Resourceful(Guess):
    async def start(self):
        pass


PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (lambda: [Contained(Answer(prompt="?", answer=""))], "task 0 needs a container"),
        (lambda: [Number(Answer(prompt="?", answer="", image="python:3"))], "task 0 needs a container"),
        (
            lambda: [Sandboxed(Answer(name="s", prompt="?", answer=""))],
            r"task 0 \('s'\): Sandboxed.file works in a sandbox",
        ),
        (lambda: [Prepared(Answer(prompt="?", answer=""))], "Prepared.setup works in a sandbox"),
        (lambda: [Tooled(Answer(prompt="?", answer=""))], "task 0 has tools of verifiers.*ToolTurns"),
        (lambda: [Rewriting(Answer(prompt="?", answer=""))], "Rewriting.rewrite reads or rewrites requests"),
        (lambda: [Number(Answer(prompt=PICTURE, answer=""))], "task 0: .*has pictures"),
        (lambda: [Unpaid(Answer(prompt="?", answer=""))], "task 0 has no rewards"),
        (lambda: [Number(Answer(answer=""))], "task 0 has no prompt"),
        (list, "list has no tasks"),
        (lambda: [3], r"source\[0\] is 3"),
        (lambda: Sums, "not its class"),
        (lambda: Numbers(vf.TasksetConfig()), "Numbers never ends; .*n=1000"),
        (lambda: 3, "source is 3"),
    ],
)
def test_what_cannot_be_carried_is_refused_before_any_work(task, words):
    with pytest.raises(ValueError, match=words):
        verifiers_task(task())


def test_environments_that_cannot_be_carried_are_refused_before_any_work():
    with pytest.raises(ValueError, match="opens a second conversation"):
        guess(Crowded)
    with pytest.raises(ValueError, match="Resourceful starts resources"):
        guess(Resourceful)
    with pytest.raises(ValueError, match="env is 3"):
        guess(3)
    from verifiers.v1.envs.user_sim import UserSimEnv

    with pytest.raises(ValueError, match="has the agents assistant, user; one"):
        guess(UserSimEnv)


def test_arguments():
    for given, words in (
        ({"n": 0}, "n is 0"),
        ({"failed": float("nan")}, "failed is nan"),
        ({"max_turns": 0}, "max_turns is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            guess(**given)
    with pytest.raises(ValueError, match="use VerifiersTask"):
        VerifiersConversation(Sums(vf.TasksetConfig()))
