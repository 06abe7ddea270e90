"""Adding an estimator is its class, one entry in the catalogue, its claim; adding an agent is one file. Both are added
here to a copy of the packages in a temporary folder, and seen in all commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CLASS = '''

@dataclass(frozen=True)
class ThirdOfReward(Estimator):
    """A third of the reward, on every token."""

    def advantages(self, evidence):
        return evidence.response_reward[..., None] / 3
'''
ENTRY = '    Entry("third", "A third of the reward.", lambda g: ThirdOfReward(), label="Third", proved=proportional),\n'
CLAIM = """    Claim(
        "third", "practices", "A = RM/3", "this test", always("proportional"), "a constant factor",
    ),
"""
AGENT = '''"""A third of the reward, as an agent."""

from llm_mdp.estimators.practices import ThirdOfReward
from llm_mdp_agents.base import Agent, AgentConfig


class Third(Agent[AgentConfig]):
    """A third of the reward."""

    name, paper, named = "third-agent", "this test", "third"

    def make_estimator(self):
        return ThirdOfReward(**self.common())
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages with an estimator and an agent more."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("llm_mdp", "agents/llm_mdp_agents", "envs/llm_mdp_envs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    practices, catalogue, claims = (
        folder / "llm_mdp" / name
        for name in ("estimators/practices.py", "estimators/catalogue/practices.py", "verify/claims/practices.py")
    )
    practices.write_text(practices.read_text() + CLASS)
    after(catalogue, "PRACTICES: tuple[Entry, ...] = (\n", ENTRY)
    after(
        catalogue,
        "from llm_mdp.estimators.base import Estimator\n",
        "from llm_mdp.estimators.entry import proportional\n",
    )
    after(catalogue, "from llm_mdp.estimators.practices import (\n", "    ThirdOfReward,\n")
    after(claims, "PRACTICES: tuple[Claim, ...] = (\n", CLAIM)
    (folder / "agents/llm_mdp_agents/zoo/third.py").write_text(AGENT)
    return folder


def after(file: Path, line: str, more: str) -> None:
    """Put `more` behind a line that stands in the file once."""
    text = file.read_text()
    assert text.count(line) == 1
    file.write_text(text.replace(line, line + more))


def run(copy: Path, here: Path, words: str) -> str:
    path = os.pathsep.join(str(copy / each) for each in ("", "agents", "envs"))
    done = subprocess.run(
        [sys.executable, "-m", "llm_mdp.cli", *words.split()],
        cwd=here, capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": path, "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SHORT = "--steps 2 --prompts-per-step 4 --eval-prompts 4 --loggers none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ("verify third --quick", "third"),
        ("variance third rloo --vocab 2 --horizon 2 --estimates 100 --out found", "third"),
        ("inspect Tabular --estimators third rloo --prompts 1 --html page.html", "Third"),
        (f"train third Tabular {SHORT}", "report: runs/third-tabular-1"),
        (f"train third-agent Tabular {SHORT}", "report: runs/third-agent-tabular-1"),
        ("agents third-agent --certify", "proportional"),
    ],
)
def test_an_estimator_and_an_agent_that_were_added_are_in_every_command(copy, tmp_path, words, seen):
    assert seen in run(copy, tmp_path, words)


@pytest.mark.slow
def test_without_the_addition_the_names_are_unknown(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "llm_mdp.cli", "verify", "third"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 2 and "there is no claim 'third'" in done.stderr
