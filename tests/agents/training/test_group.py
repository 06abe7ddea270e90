"""What processes tell each other beside the policy's gradients; group_worker.py is what the two real ones run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.patience import PATIENCE

WORKER = Path(__file__).with_name("group_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What both processes saw, by rank."""
    folder = tmp_path_factory.mktemp("group")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[3]
    path = os.pathsep.join(str(root / part) for part in (".", "agents", "envs"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [*launch, str(WORKER), str(folder)], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
def test_trained_models_are_the_first_process_s_and_frozen_ones_stay(results):
    assert [set(each["trained"].tolist()) for each in results] == [{1.0}, {1.0}]
    assert [set(each["frozen"].flatten().tolist()) for each in results] == [{1.0}, {2.0}]


@pytest.mark.slow
def test_a_policy_on_the_gpu_of_another_process_is_refused(results):
    for each in results:
        assert each["refused"].startswith("the policy is on cuda:5, but this process of 2 has cpu")


@pytest.mark.slow
def test_who_draws_long_responses_is_waited_for(results):
    assert [each["patience"] for each in results] == [6 * 3600] * 2
