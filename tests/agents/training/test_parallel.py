"""Several processes do what one does: the same gradient on the union of their batches, the same models everywhere,
whole or sharded.

The processes are real ones (torchrun, gloo); parallel_worker.py is what they run.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from llm_mdp.sampling.evidence import Evidence, take_rows
from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.training.parallel import Parallel, parallel_from_environment
from llm_mdp_agents.training.records import load_metrics
from tests.agents.training.parallel_worker import (
    CASES,
    RESUMED,
    SAVED,
    STEPS,
    gradients_of,
    make_policy,
    make_task,
    make_trainer,
)
from tests.patience import PATIENCE

WORKER = Path(__file__).with_name("parallel_worker.py")
KINDS = ("replicated", "sharded")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What both processes saw, by rank."""
    folder = tmp_path_factory.mktemp("parallel")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    group = subprocess.Popen([*launch, str(WORKER), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = group.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        # Ended kindly, for it has its processes to end.
        group.terminate()
        _, errors = group.communicate()
    assert group.returncode == 0, errors[-4000:]
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert [each["size"] for each in both] == [2, 2]
    return both


@pytest.mark.slow
def test_torchrun_starts_the_command_line(here):
    """As the docstring of parallel.py says; one process of the group writes and speaks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = "--steps 1 --prompts-per-step 4 --eval-prompts 2 --loggers none --name run"
    words = ["-m", "llm_mdp.cli", "train", "rloo", "Tabular", *options.split()]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("report: runs/run/report.html") == 1
    assert [line["step"] for line in load_metrics(here / "runs" / "run")] == [0, 1]


class Fed(Parallel):
    """A single process that trains on the batches of others."""

    def __init__(self, batches: list[Evidence]):
        self.batches = iter(batches)

    def gather(self, evidence):
        whole = next(self.batches)
        return whole, range(len(whole.response_reward))


def in_the_order_of_halves(batch: Evidence) -> Evidence:
    """The first half of each process's groups, then the second halves: a single process divides this batch where two
    divided theirs."""
    rows = torch.arange(len(batch.response_reward)).reshape(2, 2, -1)
    return take_rows(batch, rows.transpose(0, 1).flatten())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_gradient_of_one_on_both_batches(results, kind, case):
    here = results[0][kind][case]
    halved = case != "nothing kept"
    trainer = make_trainer(case, Fed([in_the_order_of_halves(batch) if halved else batch for batch in here["batches"]]))
    assert len(here["batches"]) == STEPS
    kept = gradients_of(trainer.parallel)
    for step in range(STEPS):
        metrics = trainer.step()
        # From the second step on Adam has divided rounding errors by small gradients.
        tolerance = {"rtol": 0, "atol": 1e-12 if step == 0 else 1e-8}
        for mine, theirs in zip(kept[-1][0], here["gradients"][step], strict=True):
            assert_close(theirs, mine, **tolerance)
        assert max(float(each.abs().max()) for each in here["gradients"][step]) > 1e-6
        assert here["metrics"][step]["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-6)
        assert here["metrics"][step]["loss"] == pytest.approx(metrics["loss"], rel=1e-6, abs=1e-9)
        if halved and "signal_to_noise" in metrics:
            # Of gradients in float32.
            assert here["metrics"][step]["signal_to_noise"] == pytest.approx(
                metrics["signal_to_noise"], rel=1e-3, abs=1e-5
            )
    for name, tensor in trainer.policy.state_dict().items():
        assert_close(here["weights"][name], tensor, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_all_processes_hold_the_same_models_and_draw_responses_of_their_own(results, kind, case):
    first, second = (each[kind][case] for each in results)
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert_close(first["models"], second["models"], rtol=0, atol=0)
    untrained = make_policy(case, make_task()).state_dict()
    assert any(not torch.equal(first["weights"][name], tensor) for name, tensor in untrained.items())
    if case != "nothing kept":
        for batch in first["batches"]:
            mine, theirs = batch.rollouts.tokens.chunk(2)
            assert not torch.equal(mine, theirs)


@pytest.mark.slow
def test_critics_are_trained_alike_before_and_during(results):
    trained = results[0]["replicated"]["critic"]["models"]["critic"]
    untrained = make_trainer("critic", Parallel()).agent.models["critic"].state_dict()
    assert any(not torch.equal(trained[name], tensor) for name, tensor in untrained.items())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_are_shards_and_learn_what_copies_learn(results, case):
    copies, shards = (results[0][kind][case] for kind in KINDS)
    assert shards["sharded"] and not copies["sharded"]
    assert 0.4 < shards["share"] < 0.6 and copies["share"] == 1
    for mine, theirs in zip(copies["batches"], shards["batches"], strict=True):
        assert torch.equal(mine.rollouts.tokens, theirs.rollouts.tokens)
    for mine, theirs in zip(copies["gradients"], shards["gradients"], strict=True):
        assert_close(theirs, mine, rtol=0, atol=1e-8)
    assert_close(shards["weights"], copies["weights"], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_shards_do_not_wait_for_one_another_while_they_draw(results):
    assert [each["lengths"] for each in results] == [[1, 2], [5, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", RESUMED)
def test_a_checkpoint_goes_on_alike_and_is_that_of_a_single_process(results, kind, case):
    here = results[0][kind][case]
    assert all(each[kind][case]["resumed alike"] for each in results)
    assert here["evaluation"] == results[1][kind][case]["evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_form_of_a_single_process_s(results, kind):
    tensors, state = results[0][kind]["critic"]["checkpoint"]
    alone = make_trainer("critic", Parallel())
    alone.step()
    mine, packed = alone.state()
    shared = [name for name in mine if name.startswith(("trainer/policy", "trainer/optimizer", "trainer/agent/models"))]
    assert any("exp_avg" in name for name in shared)
    assert {name: tensors[name].shape for name in shared} == {name: mine[name].shape for name in shared}
    assert not any(isinstance(tensor, DTensor) for tensor in tensors.values())
    with pytest.raises(
        ValueError, match="checkpoint is of a group of 2, each with draws of its own, but this is one of 1"
    ):
        alone.restore(tensors, state)
    with pytest.raises(ValueError, match="a group of 1, each with draws of its own, but this is one of 2"):
        make_trainer("critic", Group(2)).restore(mine, packed)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("case", SAVED)
def test_a_whole_policy_can_be_written(results, shard, case):
    responses = results[0]["replicated"][case]["batches"][0].rollouts
    policy = make_policy(case, make_task())
    policy.load_state_dict(results[0][KINDS[shard]][case]["weights"])
    written = load_policy(results[0]["folder"] / f"{case} {shard}", dtype="float64")
    here, there = (each(responses.prompt, responses.tokens, responses.mask) for each in (policy, written))
    assert_close(there, here, rtol=0, atol=1e-10)


class Group(Parallel):
    """Says that it has several processes."""

    def __init__(self, size: int):
        self.size = size


def test_alone_nothing_is_different(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for shard in (False, True):
        assert type(parallel_from_environment(shard)) is Parallel
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = parallel_from_environment()
    assert type(alone) is Parallel and alone.main and (alone.rank, alone.size) == (0, 1)
    trainer = make_trainer("branches", alone)
    evidence = trainer.agent.collect(trainer.sampler)
    whole, own = alone.gather(evidence)
    assert own == range(len(evidence.response_reward))
    assert_close(vars(whole.rollouts), vars(evidence.rollouts), rtol=0, atol=0)
    assert alone.gather(None) == (None, range(0))
    assert trainer.scorer is trainer.policy
    assert not torch.distributed.is_initialized()


def test_a_lacking_library_and_uneven_prompts_are_said_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="prompts_per_step is 4, which 3 processes cannot share evenly"):
        make_trainer("sum", Group(3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        ValueError, match="need accelerate, which is not installed; run pip install 'llm-mdp\\[train\\]'"
    ):
        parallel_from_environment()


@pytest.mark.slow
def test_a_group_of_one_is_refused():
    """What `accelerate launch --cpu` makes of any number of processes."""
    code = "from llm_mdp_agents.training.parallel import Replicated; Replicated()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "ValueError: WORLD_SIZE is 1, but the group has 1 processes; start them with torchrun." in done.stderr
