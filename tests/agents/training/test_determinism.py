"""How a GPU is told to calculate; what it then does, only a GPU shows (tests/agents/test_cuda.py)."""

import os

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llm_mdp_agents.training.determinism import WORKSPACE, numerics


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)


def state() -> tuple:
    backends = torch.backends.cuda
    return (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        backends.flash_sdp_enabled(),
        backends.mem_efficient_sdp_enabled(),
        backends.math_sdp_enabled(),
    )


def test_all_is_as_it_was_afterwards():
    before = state()
    with pytest.raises(ZeroDivisionError), numerics(deterministic=True, float32_matmul="high"):
        assert state() == ("high", True, True, False, False, True)
        raise ZeroDivisionError
    assert state() == before == ("highest", False, False, True, True, True)


def test_alone_either_option_leaves_the_other():
    with numerics(float32_matmul="high"):
        assert state()[:2] == ("high", False)
    with numerics(deterministic=True):
        assert state()[:2] == ("highest", True)


def test_attention_has_a_backward_pass_there():
    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    with numerics(deterministic=True):
        scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()


def test_the_workspace_is_set_before_cuda_starts_and_never_afterwards(monkeypatch):
    with numerics(deterministic=True):
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="before Python starts"), numerics(deterministic=True):
        pass
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics(deterministic=True):
        assert os.environ[WORKSPACE] == ":16:8", "a person's own choice stays"


def test_another_precision_is_refused_in_words():
    with pytest.raises(ValueError, match="float32_matmul is 'medium'"), numerics(float32_matmul="medium"):
        pass
