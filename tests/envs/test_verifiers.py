"""Our conversations in verifiers: its own classes, played by an agent that says what the test tells it to."""

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from llm_mdp_envs.adapters.verifiers import verifiers_classes
from llm_mdp_envs.adapters.verifiers_in import verifiers_task
from llm_mdp_envs.episode import replay
from llm_mdp_envs.tasks.calculator import Calculator
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText
from llm_mdp_envs.text_turns import TextTurns

INSTALLED = importlib.util.find_spec("verifiers") is not None
needs_verifiers = pytest.mark.skipif(not INSTALLED, reason="verifiers is missing: pip install verifiers==0.4.0")


class Talk:
    """What an interaction of an agent is to an environment; its policy is a function of what it was told."""

    def __init__(self, policy):
        self.policy, self.told, self.rewards = policy, [], {}
        self.trace = SimpleNamespace(record_reward=self.record)

    async def turn(self, text: str | None = None):
        self.told.append(text)
        said = self.policy(len(self.told) - 1, text)
        return SimpleNamespace(last_reply=said, terminated=said is None)

    def record(self, name: str, value: float, weight: float) -> None:
        self.rewards[name] = value * weight


def played(task: TextTurns, policy, n: int = 3) -> list[tuple[int, Talk]]:
    """Seeds and talks of all conversations of the taskset."""
    import verifiers.v1 as vf

    taskset, env = verifiers_classes(task, n)
    played = []
    for one in taskset(vf.TasksetConfig()):
        talk = Talk(policy)

        @asynccontextmanager
        async def interaction(task, talk=talk):
            yield talk

        agents = SimpleNamespace(player=SimpleNamespace(interaction=interaction))
        asyncio.run(env.run(None, one, agents))
        played.append((one, talk))
    return played


@needs_verifiers
def test_rewards_are_those_of_the_task():
    task = GuessNumberText(highest=8, max_turns=4)
    for one, talk in played(task, lambda turn, told: str(turn * 2 + 1)):
        question = task.question(np.random.default_rng(one.data.question_seed))
        tokens, _ = task.converse(question, ["1", "3", "5", "7"])
        expected = replay(task, [question], tokens[None]).parts
        assert talk.rewards == {name: pytest.approx(float(values[0])) for name, values in expected.items()}
        assert one.data.prompt == question.secret.text
        assert talk.told[0] is None and all(told.startswith("My number is") for told in talk.told[1:])


@needs_verifiers
def test_tools_are_called_in_the_text():
    task = Calculator()

    def policy(turn: int, told: str | None) -> str:
        return task.call_text("calculate", expression="6 * 7") if turn == 0 else f"It is {told}"

    for one, talk in played(task, policy, 1):
        assert '"name": "calculate"' in one.data.system_prompt
        assert talk.told == [None, "<tool_response>\n42\n</tool_response>"] and talk.rewards["called"] == 0.1


@needs_verifiers
def test_an_agent_that_breaks_off():
    ((_, talk),) = played(GuessNumberText(), lambda turn, told: "hm" if turn < 2 else None, 1)
    assert talk.rewards == {"found": 0.0, "turns": 0.0, "malformed": pytest.approx(-0.1)}


@needs_verifiers
def test_its_loader_finds_both_classes(tmp_path, monkeypatch):
    import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import load_taskset

    (tmp_path / "our_conversations.py").write_text(
        "from llm_mdp_envs.adapters.verifiers import verifiers_classes\n"
        "from llm_mdp_envs.tasks.guess_number_text import GuessNumberText\n"
        "Conversations, ConversationEnv = verifiers_classes(GuessNumberText(), 5)\n"
        '__all__ = ["ConversationEnv", "Conversations"]\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    taskset = load_taskset(vf.TasksetConfig(id="our_conversations"))
    assert [one.data.idx for one in taskset] == [0, 1, 2, 3, 4]


def test_verifiers_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(ImportError, match="pip install verifiers"):
        verifiers_classes(GuessNumberText(), 1)
    with pytest.raises(ImportError, match="pip install verifiers"):
        verifiers_task("anything")
