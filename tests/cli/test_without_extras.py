"""`pip install llm-mdp` and no extra: a command works, or names in one sentence the extra that it needs."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
WORK = [
    "version",
    "audit examples/own_function.py:leave_one_out",
    "verify rloo --quick --json ledger.json --html ledger.html",
    "train rloo Tabular --steps 1 -q",
    "eval --run runs/rloo-tabular-1",
    "train --resume runs/rloo-tabular-1 --steps 2 -q",
    "variance rloo --vocab 2 --horizon 2 --group-sizes 2 --budget 100 --out noise",
    "inspect Tabular --estimators rloo --html credit.html",
]
SHORT = "--steps 1 -q --model config.json --prompts-per-step 2 --group-size 2 --eval-prompts 2"
NAMED = {
    "train rloo Tabular --steps 1 -q --loggers tensorboard": "pip install tensorboard",
    "train rloo ReasoningGym": "llm-mdp[reasoning]",
    "eval ReasoningGym": "llm-mdp[reasoning]",
    "train rloo Math": "llm-mdp[math]",
    "train rloo Code": "llm-mdp[code]",
    "train grpo rows.parquet --reward rewards.py:right --model config.json": "llm-mdp[math]",
    f"train rloo Tabular {SHORT} --lora-rank 2": "llm-mdp[train]",
    "train rloo Arithmetic --steps 1 --model model.gguf": "llm-mdp[train]",
    "variance rloo grpo --vocab 2 3 --horizon 2 --out wide --jobs 2 --backend ray": "llm-mdp[cluster]",
    "audit verl": "pip install --no-deps verl==",
}
CONFIG = {"model_type": "gpt2", "vocab_size": 4, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What each command says."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "rewards.py").write_text("def right(responses, **_):\n    return [0.0 for _ in responses]\n")
    for name in ("rows.parquet", "model.gguf"):
        (folder / name).write_bytes(b"PAR1")
    commands = [*WORK, *NAMED]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "without_extras.py"],
        input=json.dumps([shlex.split(command) for command in commands]),
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(commands, told["said"])) | {"taken": told["taken"]}


def test_nothing_else_is_imported(bare):
    assert bare["taken"] == []


@pytest.mark.parametrize("command", WORK)
def test_it_works(bare, command):
    status, _, error = bare[command]
    assert status == 0, error


@pytest.mark.parametrize("command", NAMED)
def test_it_names_its_extra(bare, command):
    status, _, error = bare[command]
    assert status == 2 and error.startswith("llm-mdp: ") and error.count("\n") == 1 and NAMED[command] in error
