"""Names of devices, and what one of several processes may have: nothing is allocated to find out."""

import pytest
import torch
from torch import nn

from llm_mdp_agents.devices import device_of, place_of


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two, and breaks if anything is put there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was started"))


def test_auto_takes_a_gpu_for_models_with_names_alone(two_gpus):
    assert device_of("auto", "path/to/model") == "cuda"
    for kind in ("small", "tabular", "ngram", "auto"):
        assert device_of("auto", kind) == "cpu"
    assert device_of("auto", "path/to/model", engine="vllm") == "cpu", "vLLM draws on the CPU"


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto", "path/to/model") == "cpu"
    with pytest.raises(ValueError, match="device is 'cuda', which is not here"):
        device_of("cuda")


def test_names_are_as_they_were_given(two_gpus):
    assert [device_of(name) for name in ("cpu", "cpu:0", "cuda", "cuda:0", "cuda:1")] == [
        "cpu", "cpu", "cuda", "cuda:0", "cuda:1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["cuda:2", "gpu", "CUDA", "", "cuda:-1", "0", "xpu", "meta", "cuda,cpu"])
def test_what_is_not_here_is_said(two_gpus, name):
    with pytest.raises(ValueError, match=r"which is not here; give cpu, cuda, cuda:1 … or auto\."):
        device_of(name)


def test_mps_is_refused_for_what_it_lacks():
    with pytest.raises(ValueError, match=r"no float64.*give cpu"):
        device_of("mps")


def test_in_a_group_no_process_chooses_its_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cuda") == "cuda" and device_of("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"'cuda:1', but this is one of 2 processes.*give cuda"):
        device_of("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 3 of a machine that has 2 of them.*--nproc-per-node 2"):
        device_of(name, "path/to/model")


def test_where_a_policy_is():
    assert place_of(nn.Linear(1, 1)) == "cpu" and place_of(nn.Identity()) == "cpu"
    assert place_of(nn.Linear(1, 1, device="meta")) == "meta"
