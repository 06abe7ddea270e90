"""Agents and tasks in files of one's own: trained, stopped, moved away from, changed, gone on with."""

import json
import os
import re
from pathlib import Path

import pytest

from llm_mdp.own import absolute, load, name_of
from llm_mdp_agents.resolve import ModelConfig, agent_class, build_agent, build_policy, find_agent
from llm_mdp_agents.training.hints import without_signal
from llm_mdp_agents.training.records import load_metrics
from llm_mdp_agents.training.run import train
from llm_mdp_agents.training.run_config import RunConfig, read_run_config
from llm_mdp_agents.zoo.rloo import RLOOAgent

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_agent.py"
TASK = """
from llm_mdp_envs.tasks.synthetic import Tabular

class Small(Tabular):
    def __init__(self):
        super().__init__(vocab_size=3, horizon=2, n_prompts=2)
"""
WITHOUT_OPTIONS = """
from llm_mdp_agents.zoo.rloo import RLOOAgent

class Mine(RLOOAgent):
    name = "mine"
"""
WITHOUT_NAME = """
from llm_mdp_agents.base import Agent, AgentConfig

class Mine(Agent):
    class Config(AgentConfig):
        pass
"""
FIGURES = ("reward", "length", "baseline")


@pytest.fixture
def agent(here):
    (here / "mine.py").write_text(EXAMPLE.read_text())
    (here / "small.py").write_text(TASK)
    return "mine.py:SteadyRLOOAgent"


def figures(folder: Path) -> list[list[float | None]]:
    return [[each.get(name) for name in FIGURES] for each in load_metrics(folder)]


def test_an_agent_of_ones_own_trains_with_its_options_and_goes_on_from_anywhere(llm_mdp, here, agent):
    words = "small.py:Small --share 0.3 --prompts-per-step 4 --eval-prompts 8 -q"
    status, said, complaints = llm_mdp(f"train {agent} {words} --steps 4 --name whole")
    assert status == 0 and "in 4 steps" in said and not complaints
    assert llm_mdp(f"train {agent} {words} --steps 2 --name cut")[0] == 0
    document = json.loads((here / "runs/cut/config.json").read_text())
    assert document["agent"]["name"] == f"{here}/{agent}" and document["agent"]["share"] == 0.3
    assert document["env"]["id"] == f"{here}/small.py:Small" and document["folder"] == str(here)
    (here / "away").mkdir()
    os.chdir(here / "away")
    status, _, complaints = llm_mdp("train --resume ../runs/cut --steps 4 -q")
    assert status == 0 and not complaints
    assert figures(here / "runs/cut") == figures(here / "runs/whole")
    assert llm_mdp("train --config ../runs/cut/config.json --steps 1 --name again -q")[0] == 0
    assert json.loads(Path("runs/again/config.json").read_text())["agent"]["share"] == 0.3


def test_an_agent_of_ones_own_is_listed_with_its_certificate(llm_mdp, here, agent):
    status, said, _ = llm_mdp(f"agents {agent} --certify")
    assert status == 0 and "steady-rloo" in said and "its defaults: unbiased" in said
    assert f"{here}/{agent}" in "".join(each.strip() for each in said.splitlines())
    status, _, complaints = llm_mdp(f"verify {agent} --quick")
    assert status == 2 and complaints.startswith(f"llm-mdp: {agent} is an agent, which `llm-mdp train` takes")


def test_a_run_is_evaluated_without_the_file_of_its_agent(llm_mdp, here, agent):
    llm_mdp(f"train {agent} Tabular --prompts-per-step 4 --eval-prompts 8 --steps 1 --name run -q")
    (here / "mine.py").unlink()
    status, said, _ = llm_mdp("eval --run runs/run --samples 0")
    assert status == 0 and re.search(r"^reward .* 8 responses to 1 prompt\)$", said, re.M)
    status, _, complaints = llm_mdp("train --resume runs/run --steps 2 -q")
    assert status == 2 and complaints == f"llm-mdp: there is no file {here}/mine.py.\n"


def test_a_file_that_changes_under_a_run_is_named(llm_mdp, here, agent):
    llm_mdp(f"train {agent} small.py:Small --prompts-per-step 4 --eval-prompts 8 --steps 1 --name run -q")
    assert llm_mdp("train --resume runs/run --steps 2 -q")[2] == ""
    (here / "small.py").write_text(TASK.replace("n_prompts=2", "n_prompts=2, seed=1"))
    assert llm_mdp("train --resume runs/run --steps 3 -q")[2] == (
        f"llm-mdp: {here}/small.py is not as it was when the run began; from here on the run may differ from what it "
        f"would have been\n"
    )


def test_what_is_missing_from_elsewhere_is_said_to_have_been_there(llm_mdp, here):
    (here / "problems.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    words = "Math --env-args problems=problems.jsonl horizon=4 --model small --width 16 --warm-start 0"
    status, _, complaints = llm_mdp(f"train rloo {words} --prompts-per-step 1 --eval-prompts 1 --steps 1 --name run -q")
    assert status == 0, complaints
    (here / "away").mkdir()
    os.chdir(here / "away")
    status, _, complaints = llm_mdp("train --resume ../runs/run --steps 2 -q")
    assert status == 2 and "problems.jsonl" in complaints
    assert complaints.endswith(f"The run was started in {here}; go on from there.\n")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (WITHOUT_OPTIONS, "Mine has no options of its own; write a frozen dataclass of them, a subclass of RLOOConfig"),
        (
            WITHOUT_OPTIONS + "    Config = RLOOAgent.Config\n",
            "Mine has no options of its own; write a frozen dataclass of them, a subclass of RLOOConfig",
        ),
        (WITHOUT_NAME, "Mine has no name; write `name = 'mine'` into the class."),
    ],
)
def test_what_an_agent_lacks_is_said_before_it_trains(llm_mdp, here, source, words):
    (here / "mine.py").write_text(source)
    status, _, complaints = llm_mdp("train mine.py:Mine Tabular --steps 1")
    assert status == 2 and complaints.startswith(f"llm-mdp: {words}") and not (here / "runs").exists()


def test_a_program_gives_the_class_or_its_options(here, agent):
    kind, small = load(agent), load("small.py:Small")()
    assert find_agent(kind) is kind and agent_class(kind.Config(share=0.2)) is kind
    assert agent_class(RLOOAgent.Config()) is RLOOAgent
    heir = type("Heir", (kind,), {"name": "heir"})
    assert agent_class(kind) is kind, "one that has heirs"
    with pytest.raises(ValueError, match=r"^Heir has no options of its own; .* a subclass of SteadyConfig"):
        agent_class(heir)
    assert build_agent(kind, build_policy(ModelConfig(), small, 0), small, 0).config == kind.Config()
    run = train(kind.Config(share=0.2), small, steps=1, prompts_per_step=2, eval_prompts=2, progress=False)
    assert type(run.agent) is kind and run.agent.config.share == 0.2  # pyright: ignore[reportAttributeAccessIssue]
    read = read_run_config(
        RunConfig(kind, "Tabular").document() | {"run": {"warm_start": 0, "loggers": [], "shard": 0}}
    )
    assert type(read.agent).__name__ == "SteadyConfig"


def test_names_of_files_and_classes(here, agent):
    (here / "Tabular").mkdir()
    assert absolute("mine.py:X") == f"{here}/mine.py:X" and absolute("small.py") == f"{here}/small.py"
    assert absolute("none.py:X") == "none.py:X" and absolute("") == "" and absolute("rloo") == "rloo"
    assert RunConfig("rloo", "Tabular").document()["env"]["id"] == "Tabular", "a folder of an environment's name"
    assert name_of(load(agent)) == f"{here}/{agent}"
    (here / "Tabular/mine.py").write_text(EXAMPLE.read_text())
    other = load("Tabular/mine.py:SteadyRLOOAgent")
    assert name_of(other) == f"{here}/Tabular/{agent}", "two files of one name"
    assert name_of(RLOOAgent) == "llm_mdp_agents.zoo.rloo:RLOOAgent" and load(name_of(RLOOAgent) or "") is RLOOAgent
    assert name_of(type("Made", (), {"__module__": "__main__"})) is None

    class Inner:
        pass

    assert name_of(Inner) is None


def test_a_run_that_had_nothing_to_learn_from_says_so():
    def of(*signal: float) -> str:
        return without_signal([{"step": 0}, *({"groups_with_signal": each} for each in signal)])

    assert of() == "" and of(0.0, 0.2) == "" and of(1.0, *[0.0] * 99) == "", "it learned, and then answers alike"
    assert of(0.0, 0.0).startswith("In every group all rewards were equal, and such groups teach nothing: begin with")
    assert of(0.0, 0.02).startswith("In 99.0% of the groups all rewards were equal")
