"""Every script of examples/ runs as a reader would run it, and what it says is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "examples"


def output(name: str) -> str:
    """What the script prints; it must not fail or warn."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=PATIENCE, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_every_example_is_tested():
    tests = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'output("{script.name}")' in tests, script


@pytest.mark.slow
def test_own_estimator_is_biased_before_its_repair_and_unbiased_after():
    before, after, *_ = output("own_estimator.py").splitlines()
    assert before.startswith("before: biased: ") and after.startswith("after:  unbiased: ")


@pytest.mark.slow
def test_own_functions_have_the_three_verdicts():
    lines = output("own_function.py").splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["proportional", "unbiased", "biased"]
    assert lines[0].startswith("centred: proportional: relative bias 0.3333, scale 0.6667")


@pytest.mark.slow
def test_loop_learns_as_the_trainer_does():
    """The same rewards, step by step, as `llm-mdp train rloo Tabular`; so it is the same algorithm."""
    from llm_mdp_agents import train

    lines = output("rl_in_60_lines.py").splitlines()
    start, optimum = numbers(lines[0])
    (end,) = numbers(lines[-1])
    assert start < 0 < 0.9 * optimum < end <= optimum
    shown = {int(line.split()[1]): numbers(line)[0] for line in lines if line.startswith("step")}
    trained = train("rloo", "Tabular", steps=30, eval_every=100, progress=False).metrics
    for step in (1, 10, 20, 30):
        assert shown[step] == pytest.approx(trained[step]["reward"], abs=0.01)


def test_loop_is_short():
    assert len((EXAMPLES / "rl_in_60_lines.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
def test_own_task_is_stepped_and_learned():
    text = output("own_task.py")
    assert re.findall(r"reward (\d\.\d\d)", text) == ["0.00", "0.00", "1.00"]
    before, after = (numbers(line)[0] for line in text.splitlines() if line.startswith("greedy"))
    assert before < 0.5 and after > 0.9


@pytest.mark.slow
def test_own_agent_is_certified_and_learns():
    text = output("own_agent.py")
    assert "certificate: unbiased: " in text
    before, after = (numbers(line)[0] for line in text.splitlines() if line.startswith("expected"))
    assert before < 0 and after > 3
