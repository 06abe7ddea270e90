"""Every example of the README runs as written, and its ledger is the one that the results give."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("llm-mdp ")
]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader of the README would stand: their own file, and the instance that an earlier command saved."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_file.py").write_text(
        "\n".join(block for block in PYTHON if "Estimator" in block or "BestOfGroup" in block)
    )
    run(next(command for command in COMMANDS if "--save-instance" in command), folder)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "llm_mdp.cli", *shlex.split(command)[1:]]
    if "train" in words:
        # As written but for its length: the last --steps counts.
        words += ["--steps", "6" if "--resume" in words else "4"]
        words += [] if "--resume" in words else ["--prompts-per-step", "8", "--eval-prompts", "16"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder):
    done = run(command, folder)
    planted = "BestOfGroup" in command
    assert done.returncode == (1 if planted else 0), done.stdout + done.stderr
    assert done.stderr == ""
    if planted:
        assert re.search(r"BestOfGroup +✗ biased", done.stdout)
    if "BestOfOthers" in command and "verify" in command:
        assert re.search(r"BestOfOthers +✓ unbiased", done.stdout)


@pytest.mark.parametrize("number", [n for n, block in enumerate(PYTHON) if "BestOfGroup" not in block])
def test_python(number, folder):
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[number]], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_ledger_is_the_one_that_the_results_give(tmp_path):
    from llm_mdp.report.readme import update_readme

    copy = tmp_path / "README.md"
    copy.write_text(README)
    document = json.loads((ROOT / "benchmarks" / "results" / "ledger.json").read_text())
    assert not update_readme(document, copy), "run `make docs`"
    assert README.count("| `theorem-1` |") == 1


def test_recorded_results_are_what_the_code_computes():
    from llm_mdp.cli.verify import VerifyArguments, find_instances
    from llm_mdp.verify.ledger import run_ledger
    from llm_mdp.verify.problem import Problem

    recorded = json.loads((ROOT / "benchmarks" / "results" / "ledger.json").read_text())["instances"]
    for number, instance in enumerate(find_instances(VerifyArguments())):
        if number not in (1, 2):
            continue
        fresh = run_ledger(Problem(instance))["claims"]
        for claim, row in recorded[number]["claims"].items():
            assert fresh[claim]["verdict"] == row["verdict"], claim
            if row["trace_covariance"] is not None and claim != "prime":
                assert fresh[claim]["trace_covariance"] == pytest.approx(row["trace_covariance"], rel=1e-9), claim
