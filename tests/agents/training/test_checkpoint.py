"""Checkpoints: what comes back is what went in, bit for bit; a kill or a full disk leaves the newest complete one."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from llm_mdp_agents.training.checkpoint import (
    STATE,
    TENSORS,
    CheckpointError,
    discard_after,
    load,
    pack,
    save,
    unpack,
)

AGENTS = Path(__file__).parents[3] / "agents"


def bits(tensor: torch.Tensor) -> tuple:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def three(folder: Path) -> list[Path]:
    return [save(folder, step, {"w": torch.full((4,), float(step))}, {"seen": step}, keep=5) for step in (10, 20, 30)]


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    tensors = {
        "bfloat16": base.to(torch.bfloat16),
        "float16": base.to(torch.float16),
        "float64": base.double(),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "bool": base > 0,
        "generator": generator.get_state(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "other_empty": torch.zeros(0, 3),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "transposed": base.T,
        "strided": base[:, ::2],
        "row": base[2],
        "overlapping": base[1:4],
        "flat": base.view(-1),
        "expanded": torch.ones(1).expand(4),
        "parameter": nn.Parameter(base.clone()),
    }
    state = {
        "text": "π ≠ 3",
        "big": 2**130,
        "small": 5e-324,
        "nested": [{"a": None, "b": [True, 0.1]}],
        "infinite": float("-inf"),
    }
    checkpoint = load(save(tmp_path, 7, tensors, state, keep=1))
    assert (checkpoint.step, checkpoint.state, checkpoint.path) == (7, state, tmp_path / "step-000007")
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert bits(checkpoint.tensors[name]) == bits(tensor), name


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    path = save(tmp_path, 1, {"head": weight, "embedding": weight, "transposed": weight.T}, {}, keep=1)
    assert (path / TENSORS).stat().st_size < 2.1 * 4 * weight.numel()
    tensors = load(path).tensors
    assert tensors["head"] is tensors["embedding"]
    tensors["head"][0, 0] = 9
    assert tensors["embedding"][0, 0] == 9
    assert torch.equal(tensors["transposed"], weight.T)
    assert torch.equal(load(path).tensors["head"], weight), "a loaded tensor writes into its file"


def test_what_was_loaded_can_be_saved_again(tmp_path):
    tensors = {name: torch.full((3,), float(k)) for k, name in enumerate("abc")}
    again = save(tmp_path, 2, load(save(tmp_path, 1, tensors, {}, keep=9)).tensors, {}, keep=9)
    assert all(torch.equal(load(again).tensors[name], tensor) for name, tensor in tensors.items())


def small_run(kind: str):
    """A model, its optimizer and scheduler, and a function that trains one step."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for k, each in enumerate(model.parameters()):
            each.copy_(torch.randn(each.shape, generator=torch.Generator().manual_seed(k)))
    if kind == "adamw":
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.3, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), amsgrad=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        ],
        milestones=[3],
    )
    data = torch.Generator().manual_seed(5)
    shuffle = np.random.default_rng(6)

    def step():
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=data) * shuffle.random()
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()

    return model, optimizer, scheduler, data, shuffle, step


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, kind):
    model, optimizer, scheduler, data, shuffle, step = small_run(kind)
    for _ in range(5):
        step()
    tensors, state = pack(
        {
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "data": data.get_state(),
            "shuffle": shuffle.bit_generator.state,
        },
        "run",
    )
    save(tmp_path, 5, tensors, {"packed": state}, keep=1)
    at_save = optimizer.state_dict()
    for _ in range(5):
        step()

    other, optimizer2, scheduler2, data2, shuffle2, step2 = small_run(kind)
    data2.manual_seed(99)
    checkpoint = load(tmp_path)
    loaded = unpack(checkpoint.tensors, checkpoint.state["packed"])
    other.load_state_dict(loaded["model"])
    optimizer2.load_state_dict(loaded["optimizer"])
    scheduler2.load_state_dict(loaded["scheduler"])
    data2.set_state(loaded["data"])
    shuffle2.bit_generator.state = loaded["shuffle"]
    assert optimizer2.state_dict()["param_groups"] == at_save["param_groups"]
    for _ in range(5):
        step2()
    assert all(bits(a) == bits(b) for a, b in zip(model.parameters(), other.parameters()))
    ours, theirs = (pack(each.state_dict(), "o") for each in (optimizer2, optimizer))
    assert ours[1] == theirs[1]
    assert all(bits(ours[0][name]) == bits(theirs[0][name]) for name in theirs[0])
    assert scheduler2.state_dict()["_last_lr"] == scheduler.state_dict()["_last_lr"]
    assert all(bits(checkpoint.tensors[name]) == bits(load(tmp_path).tensors[name]) for name in checkpoint.tensors), (
        "unpack copies"
    )


plain = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_pack_keeps_plain_values_and_their_types(value):
    tensors, packed = pack(value, "x")
    assert not tensors
    assert repr(unpack({}, json.loads(json.dumps(packed)))) == repr(value)


def test_pack_names_what_it_cannot_hold():
    with pytest.raises(ValueError, match=r"optimizer/state/0/what is a set, which a checkpoint cannot hold"):
        pack({"state": {0: {"what": {1}}}}, "optimizer")
    with pytest.raises(ValueError, match="two tensors would be stored as 'x/a/b'"):
        pack({"a/b": torch.ones(1), "a": {"b": torch.ones(1)}}, "x")
    with pytest.raises(ValueError, match="noise/state/key is a ndarray"):
        pack(np.random.MT19937(0).state, "noise")


def test_the_newest_is_loaded_or_the_one_named(tmp_path):
    paths = three(tmp_path)
    assert load(tmp_path).step == 30
    assert load(tmp_path, 20).state == {"seen": 20}
    assert load(paths[0]).tensors["w"].tolist() == [10.0] * 4
    save(tmp_path, 1_000_000, {}, {}, keep=9)
    assert load(tmp_path).step == 1_000_000


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_keep(tmp_path, keep):
    for step in range(5):
        save(tmp_path, step, {"w": torch.ones(2)}, {}, keep=keep)
        assert steps(tmp_path) == [f"step-{k:06d}" for k in range(max(0, step + 1 - keep), step + 1)]


def test_torn_folders_do_not_count_as_kept_and_the_new_one_is_never_removed(tmp_path):
    three(tmp_path)
    (tmp_path / "step-000030" / STATE).unlink()
    save(tmp_path, 25, {}, {}, keep=2)
    assert steps(tmp_path) == ["step-000020", "step-000025", "step-000030"]


def test_a_run_that_resumes_from_an_earlier_step_discards_what_came_after(tmp_path):
    paths = three(tmp_path)
    with pytest.raises(CheckpointError, match="step-000020 exists already; call discard_after"):
        save(tmp_path, 20, {}, {}, keep=2)
    (paths[2] / TENSORS).unlink()
    discard_after(tmp_path, 10)
    assert steps(tmp_path) == ["step-000010"]
    save(tmp_path, 20, {}, {}, keep=2)
    assert load(tmp_path).step == 20


def test_who_may_read_the_state_may_read_the_tensors(tmp_path):
    path = save(tmp_path, 1, {"w": torch.ones(1)}, {}, keep=1)
    assert (path / TENSORS).stat().st_mode == (path / STATE).stat().st_mode


def test_stale_hidden_folders_are_removed(tmp_path):
    stale = tmp_path / ".step-000003.77"
    stale.mkdir()
    (stale / TENSORS).write_bytes(b"half")
    save(tmp_path, 4, {}, {}, keep=1)
    assert steps(tmp_path) == ["step-000004"]


def truncate(path: Path) -> None:
    os.truncate(path / TENSORS, 50)


def flip(path: Path) -> None:
    content = bytearray((path / TENSORS).read_bytes())
    content[-1] ^= 1
    (path / TENSORS).write_bytes(content)


def change(**values):
    def edit(path: Path) -> None:
        document = json.loads((path / STATE).read_text()) | values
        (path / STATE).write_text(json.dumps({key: value for key, value in document.items() if value != "gone"}))

    return edit


def rename(path: Path) -> None:
    for file in (STATE, TENSORS):
        (path / file).write_bytes((path.with_name("step-000020") / file).read_bytes())


def by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


TORN = {
    "no tensors": (lambda path: (path / TENSORS).unlink(), r"tensors\.safetensors is missing, so step-000030 is torn"),
    "no state": (lambda path: (path / STATE).unlink(), r"state\.json is missing, so step-000030 is torn"),
    "truncated tensors": (truncate, r"tensors\.safetensors has 50 bytes instead of \d+, so step-000030 is torn"),
    "changed tensors": (flip, r"tensors\.safetensors has another checksum than state\.json says"),
    "truncated state": (lambda path: os.truncate(path / STATE, 60), r"state\.json is not JSON, so step-000030 is torn"),
    "state in no text": (
        lambda path: (path / STATE).write_bytes(b"\xff\xfe"),
        r"state\.json is not JSON, so step-000030 is torn",
    ),
    "another format": (change(format="pickle"), r"state\.json is not of a checkpoint of LLM-MDP"),
    "a list": (lambda path: (path / STATE).write_text("[1]"), r"state\.json is not of a checkpoint of LLM-MDP"),
    "a later version": (change(version=3), r"state\.json has format version 3, and this LLM-MDP reads up to version 2"),
    "no version": (change(version="2"), r"state\.json has format version '2'"),
    "an earlier version": (change(version=1), r"state\.json lacks a part of format version 1"),
    "no aliases": (change(aliases="gone"), r"state\.json lacks a part"),
    "renamed": (rename, r"state\.json is of step 20, so step-000030 was renamed"),
    "empty object": (lambda path: (path / STATE).write_text("{}"), r"state\.json is not of a checkpoint of LLM-MDP"),
    "empty state": (lambda path: (path / STATE).write_text(""), r"state\.json is not JSON, so step-000030 is torn"),
    "too deep": (lambda path: (path / STATE).write_text("[" * 10**5), r"state\.json is not JSON"),
    "a folder for the state": (lambda path: by_folder(path / STATE), r"state\.json is missing, so step-000030 is torn"),
    "a folder for the tensors": (lambda path: by_folder(path / TENSORS), r"tensors\.safetensors is missing"),
    "a file for the folder": (by_file, r"step-000030 is not a folder, so it is no checkpoint"),
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_or_foreign_checkpoint_is_refused_and_the_one_before_offered(tmp_path, kind):
    tear, sentence = TORN[kind]
    paths = three(tmp_path)
    tear(paths[2])
    for ask in (lambda: load(tmp_path), lambda: load(paths[2]), lambda: load(tmp_path, 30)):
        with pytest.raises(CheckpointError, match=sentence) as error:
            ask()
        assert str(paths[2]) in str(error.value)
        assert str(error.value).endswith(f"; resume from step 20 with --resume {paths[1]}.")
        assert "\n" not in str(error.value)
    flip(paths[1])
    with pytest.raises(CheckpointError, match="resume from step 10 "):
        load(tmp_path)
    truncate(paths[0])
    with pytest.raises(CheckpointError, match=r"; there is no good checkpoint before it\.$"):
        load(tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255), file=st.sampled_from([STATE, TENSORS]))
def test_every_byte_counts(tmp_path, place, flipped, file):
    generator = torch.Generator().manual_seed(0)
    tensors, state = {"w": torch.randn(3, generator=generator)}, {"seen": 30, "rate": 1e-5, "name": "π"}
    path = save(Path(tempfile.mkdtemp(dir=tmp_path)), 30, tensors, state, keep=1)
    content = bytearray((path / file).read_bytes())
    content[int(place * len(content))] ^= flipped
    (path / file).write_bytes(content)
    with pytest.raises(CheckpointError):
        load(path)


def test_every_digit_of_the_state_counts(tmp_path):
    path = save(tmp_path, 30, {"w": torch.ones(3)}, {"seen": 30, "rates": [1e-5, 0.25]}, keep=1)
    text = (path / STATE).read_text()
    for place in [k for k, each in enumerate(text) if each.isdigit()]:
        (path / STATE).write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(CheckpointError):
            load(path)
    (path / STATE).write_text(text)
    assert load(path).state == {"seen": 30, "rates": [1e-5, 0.25]}


def first_version(path: Path) -> dict:
    """Write `state.json` as it was before it had a checksum of its own."""
    document = json.loads((path / STATE).read_text()) | {"version": 1}
    del document["checksum"]
    (path / STATE).write_text(json.dumps(document))
    return document


def test_the_first_version_of_the_format_is_read_and_checked_as_it_was(tmp_path):
    paths = three(tmp_path)
    document = first_version(paths[2])
    assert load(tmp_path).state == {"seen": 30} and load(tmp_path).tensors["w"].tolist() == [30.0] * 4
    foreign = [{"tensors": 3}, {"tensors": {}}, {"aliases": 3}, {"state": []}, {"checksum": "0" * 64}]
    for other in [*foreign, {"aliases": {"v": "nowhere"}}, {"aliases": {"v": []}}]:
        (paths[2] / STATE).write_text(json.dumps(document | other))
        with pytest.raises(CheckpointError, match=r"step-000030.*; resume from step 20 "):
            load(tmp_path)
    first_version(paths[1])
    flip(paths[2])
    with pytest.raises(CheckpointError, match="resume from step 20 "):
        load(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    paths = three(tmp_path)
    real = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path.parent.name == "step-000030":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read \(Permission denied\); resume from step 20"):
        load(paths[2])


def test_a_way_with_a_space_is_quoted(tmp_path):
    paths = three(tmp_path / "my runs")
    flip(paths[2])
    with pytest.raises(CheckpointError, match=f"--resume '{paths[1]}'"):
        load(tmp_path / "my runs")


def test_where_there_is_no_checkpoint_the_sentence_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    foreign = tmp_path / "checkpoint-500"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint-500 holds no checkpoint"):
        load(foreign)
    paths = three(tmp_path)
    with pytest.raises(CheckpointError, match="has no checkpoint of step 15; it has 10, 20, 30"):
        load(tmp_path, 15)
    with pytest.raises(CheckpointError, match="is step 10, not step 20"):
        load(paths[0], 20)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"keep": 0}, "keep is 0; at least 1"),
        ({"step": -1}, "step is -1"),
        ({"state": {"a": {"b": [1, (2, 3)]}}}, r"state\['a'\]\['b'\]\[1\] is a tuple"),
        ({"state": {"a": {4: 5}}}, r"state\['a'\] has the key 4"),
        ({"state": {"a": np.float32(1)}}, r"state\['a'\] is a float32"),
        ({"state": {"a": torch.ones(1)}}, r"state\['a'\] is a Tensor"),
        ({"tensors": {"s": torch.eye(2).to_sparse()}}, "tensor 's' has layout torch.sparse_coo"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(tmp_path, **({"step": 1, "tensors": {}, "state": {}, "keep": 1} | arguments))
    assert steps(tmp_path) == []


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from llm_mdp_agents.training.checkpoint import CheckpointError, load, save
folder = Path(sys.argv[1])
save(folder, 1, {"w": torch.ones(100)}, {"seen": 1}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for tensors, state in [({"w": torch.ones(10_000)}, {}), ({"w": torch.ones(10)}, {"text": "x" * 30_000})]:
    try:
        save(folder, 2, tensors, state, keep=1)
    except CheckpointError as error:
        print(error)
    assert [path.name for path in folder.iterdir()] == ["step-000001"], list(folder.iterdir())
    assert load(folder).state == {"seen": 1}
"""


def test_a_full_disk_leaves_the_previous_one_and_no_half_folder(tmp_path):
    """Files of more than 20 kB are refused to the process, first the tensors, then the state."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("File too large") == 2
    assert done.stdout.count("step-000002 could not be written: ") == 2
    assert done.stdout.count(f"resume from step 1 with --resume {tmp_path}/step-000001.\n") == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/checkpoints/step-000001 could not be written: .*Not a directory"):
        save(tmp_path / "file" / "checkpoints", 1, {}, {}, keep=1)


def environment() -> dict[str, str]:
    paths = [str(AGENTS), str(AGENTS.parent), str(AGENTS.parent / "envs")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


SAVER = """
import os, sys, torch
from pathlib import Path
from llm_mdp_agents.training.checkpoint import load, save
folder = Path(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        step = int(line)
        while True:
            step += 1
            tensors = {f"w{k}": torch.full((20_000,), float(step + k)) for k in range(4)}
            save(folder, step, tensors, {"step": step}, keep=2)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def kill_savers(folder: Path, kills: int) -> int:
    """Kill a process that does nothing but save, again and again; return the number of hidden folders that the kills
    left."""
    moments = random.Random(0)
    half = 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVER, folder], stdin=-1, stdout=-1, text=True, env=environment()
    ) as saver:
        last = 0
        for _ in range(kills):
            print(last, file=saver.stdin, flush=True)
            child = int(saver.stdout.readline())
            # Not before the first save of this process is done: every kill then falls into a later one.
            while not (folder / f"step-{last + 1:06d}").exists():
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert saver.stdout.readline() == "dead\n"
            half += len(list(folder.glob(".step-*")))
            checkpoint = load(folder)
            assert checkpoint.step > last
            last = checkpoint.step
            assert checkpoint.state == {"step": last}
            for k in range(4):
                assert torch.equal(checkpoint.tensors[f"w{k}"], torch.full((20_000,), float(last + k)))
        saver.stdin.close()
    save(folder, last + 1, {}, {}, keep=2)
    assert steps(folder) == [f"step-{last:06d}", f"step-{last + 1:06d}"], "what the kills left is gone"
    return half


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_newest_complete_one(tmp_path):
    assert kill_savers(tmp_path, 10) > 0


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    assert kill_savers(tmp_path, 200) > 20
