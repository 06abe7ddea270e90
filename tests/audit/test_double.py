"""Casts to single precision mean double inside `in_double`, and nothing is left of that outside."""

import pytest
import torch

from llm_mdp.audit.double import in_double

THIRD = torch.tensor([1 / 3], dtype=torch.float64)
CASTS = {
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "to": lambda x: x.to(torch.float32),
    "to by name": lambda x: x.to(dtype=torch.float32),
    "type": lambda x: x.type(torch.float32),
    "as_tensor": lambda x: torch.as_tensor(x.tolist(), dtype=torch.float32),
    "tensor": lambda x: torch.tensor(x.tolist()),
    "sum": lambda x: x.sum(dtype=torch.float32)[None],
    "zeros": lambda x: torch.zeros(1, dtype=torch.float32) + x,
    "softmax": lambda x: torch.softmax(torch.stack([x, x + 1]), 0, dtype=torch.float32)[0],
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_are_lifted(cast):
    with in_double():
        inside = CASTS[cast](THIRD)
    assert inside.dtype == torch.float64
    if cast in ("float", "half", "bfloat16", "to", "to by name", "type", "as_tensor", "tensor", "zeros"):
        assert torch.equal(inside, THIRD)


def test_casts_to_integers_and_truth_values_stay():
    with in_double():
        assert torch.tensor([1.5]).long().dtype == torch.int64
        assert torch.tensor([1.5]).to(torch.bool).dtype == torch.bool
        assert torch.arange(3).dtype == torch.int64


def test_outside_everything_is_as_before():
    before = torch.get_default_dtype()
    with pytest.raises(ZeroDivisionError), in_double():
        raise ZeroDivisionError
    assert torch.get_default_dtype() == before
    assert THIRD.float().dtype == torch.float32 and torch.zeros(1).dtype == before


def test_gradients_flow_in_double():
    x = THIRD.clone().requires_grad_()
    with in_double():
        loss = (x.float() ** 3).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.dtype == torch.float64
    assert float(gradient[0]) == pytest.approx(1 / 3, rel=1e-14)
