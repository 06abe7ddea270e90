"""A file in the zoo's folder is all that a new agent needs; what a file lacks is said in words."""

import re
import sys
from dataclasses import replace

import pytest

from llm_mdp.cli.train import read_train
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp_agents import zoo
from llm_mdp_agents.certificates import counted_reward, own_certificate
from llm_mdp_agents.check import check_agent
from llm_mdp_agents.resolve import find_agent
from llm_mdp_agents.training.run import train
from llm_mdp_agents.zoo.__main__ import README, markdown, readme

HALF = '''"""Half of RLOO's advantage.

    Aₖ = ½ (RMₖ - mean of the others)
"""

from dataclasses import dataclass

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp_agents.base import Agent, AgentConfig


@dataclass(frozen=True)
class HalfConfig(AgentConfig):
    """Options."""

    share: float = 0.5
    """Of the advantage."""


@dataclass(frozen=True)
class Share(RLOO):
    share: float = 0.5

    def advantages(self, evidence):
        return self.share * super().advantages(evidence)


class Base(Agent):
    """A base without a name is no agent."""


class Half(Base):
    name, paper, claims = "NAME", "this file", ("rloo",)
    Config = HalfConfig

    def make_estimator(self):
        return Share(**self.common(), share=self.config.share)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files belong to the zoo; what was imported from it is forgotten afterwards."""
    monkeypatch.setattr(zoo, "__path__", [*zoo.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(zoo.__name__):
            del sys.modules[name]
            vars(zoo).pop(name.rpartition(".")[2], None)


def write(folder, file: str, name: str) -> None:
    (folder / file).write_text(HALF.replace("NAME", name), encoding="utf-8")


def test_the_zoo_has_the_agents_of_the_paper_in_its_order():
    assert tuple(zoo.AGENTS) == zoo.PAPER == tuple(zoo.find_agents(zoo.__path__))


def test_a_new_agent_is_one_file(folder, monkeypatch):
    write(folder, "zz_half.py", "half")
    write(folder, "aa_other.py", "other half")
    (folder / "_helper.py").write_text("1 / 0", encoding="utf-8")
    found = zoo.find_agents(zoo.__path__)
    assert tuple(found) == (*zoo.PAPER, "half", "other half")
    for name in ("half", "other half"):
        monkeypatch.setitem(zoo.AGENTS, name, found[name])
    assert find_agent("half") is found["half"] and find_agent(found["half"].Config()) is found["half"]
    assert read_train(["half", "Tabular", "--share", "0.25"])[1].share == 0.25
    check_agent(found["half"])
    run = train("half", "Tabular", steps=2, prompts_per_step=2, eval_prompts=2, progress=False)
    assert run.agent.name == "half" and len(run.metrics) == 3
    assert "| [`half`](llm_mdp_agents/zoo/zz_half.py) | this file | `rloo` | fine |" in readme(lambda agent: "fine")


def test_a_file_without_an_agent_is_named(folder):
    source = HALF.replace('    name, paper, claims = "NAME", "this file", ("rloo",)\n', "")
    (folder / "nameless.py").write_text(source, encoding="utf-8")
    with pytest.raises(UsageError, match=r"^zoo/nameless\.py has no agent; write a class of .* begin the file's name"):
        zoo.find_agents(zoo.__path__)


def test_a_file_that_only_imports_an_agent_has_none(folder):
    (folder / "borrowed.py").write_text("from llm_mdp_agents.zoo.rloo import RLOOAgent\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"^zoo/borrowed\.py has no agent"):
        zoo.find_agents(zoo.__path__)


def test_two_agents_of_one_name_are_named(folder):
    write(folder, "again.py", "rloo")
    with pytest.raises(UsageError) as caught:
        zoo.find_agents(zoo.__path__)
    assert str(caught.value) == (
        "two agents have the name 'rloo', RLOOAgent in zoo/rloo.py and Half in zoo/again.py; give one of them another."
    )


def test_the_readme_is_the_one_that_the_files_make():
    """But for the figures of certificates, which learned critics have a part in; the verdicts are those below."""
    written = re.sub(r"\| (\w+): relative bias [^|]* \|$", r"| \1 |", README.read_text(encoding="utf-8"), flags=re.M)
    assert written == readme(lambda agent: VERDICTS[agent.name]), "run python -m llm_mdp_agents.zoo"


VERDICTS = dict.fromkeys(zoo.PAPER, "unbiased") | dict.fromkeys(
    ("grpo", "ppo", "ma-rlhf", "dpo", "iterative-dpo", "rto", "prime"), "biased"
)
"""Of every agent's own default options, as it trains."""


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.PAPER)
def test_the_certificate_of_the_defaults(name):
    """Of the agent itself, its clip, reduction and learned models; a biased default says why it is the default."""
    agent = zoo.AGENTS[name]
    own = own_certificate(agent)
    assert own.certificate.verdict == VERDICTS[name] and own.group_size == agent.Config().group_size
    assert bool(agent.why_the_default) == (own.certificate.verdict == "biased")


def test_the_certificate_is_that_of_the_options_given():
    dr = own_certificate(zoo.AGENTS["grpo"], zoo.AGENTS["grpo"].Config(variant="dr-grpo", group_size=3))
    assert dr.certificate.verdict == "proportional" and dr.place == "V=3 T=4 K=3"
    assert dr.certificate.scale == pytest.approx(2 / 3 / 4, rel=1e-9)


def test_large_groups_are_certified_on_the_largest_shape():
    """By classes: 49 million groups of 8 are too many to look at one by one."""
    own = own_certificate(zoo.AGENTS["grpo"])
    assert own.place == "V=3 T=4 K=8, rewards of 0 to 4" and own.certificate.verdict == "biased"
    assert own.certificate.method is not None and own.certificate.method.name == "classes"
    instance = random_instance(3, 4, gamma=0.9, n_prompts=2)
    mdp = replace(instance.mdp, token_reward=counted_reward(instance.mdp, 0))
    rewards = Enumeration(mdp, instance.policy).response_reward
    assert set(rewards.round(decimals=9).flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_an_agent_that_looks_at_more_than_classes_is_certified_on_a_smaller_shape():
    own = own_certificate(zoo.AGENTS["rto"], zoo.AGENTS["rto"].Config(dpo_batches=1))
    assert own.place == "V=3 T=2 K=8"
    assert own.certificate.method is not None and own.certificate.method.name == "groups"


def test_equations_become_code():
    assert markdown("Words.\n\n    a = b\n    c\n\nMore.") == "Words.\n\n```\na = b\nc\n```\n\nMore."
