"""Weights of 16 bits train as far as those of 32: steps that rounding would swallow add up in the copies."""

import pytest
import torch
from torch import nn

from llm_mdp_agents.optimizers import OPTIMIZERS, Masters, OptimizerWithMasters


def trained(
    dtype: torch.dtype, steps: int, name: str = "AdamW", rate: float = 1e-5
) -> tuple[torch.Tensor, nn.Parameter]:
    """Weights of a trained model's size under a drifting gradient: what the optimizer holds, and what the model has."""
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(2000, generator=generator)).to(torch.bfloat16)
    weight = nn.Parameter(start.to(dtype, copy=True))
    optimizer = OptimizerWithMasters([([weight], rate)], name)
    for _ in range(steps):
        weight.grad = (1 + 0.5 * torch.randn(2000, generator=generator)).to(dtype)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.parameters[0].detach() - start.float(), weight


def test_the_copies_of_16_bit_weights_move_as_32_bit_weights_do():
    in_half, weight = trained(torch.bfloat16, 100)
    in_single, _ = trained(torch.float32, 100)
    assert weight.dtype == torch.bfloat16
    assert (in_half != 0).all()
    torch.testing.assert_close(in_half, in_single, rtol=0.02, atol=2e-6)


def test_the_model_gets_the_rounded_copies():
    moved, weight = trained(torch.bfloat16, 300)
    start = trained(torch.bfloat16, 0)[1]
    assert torch.equal(weight, (start.float() + moved).to(torch.bfloat16))
    assert (weight != start).float().mean() > 0.9


def test_the_second_moment_falls_again_after_large_gradients():
    """β₂ = 0.999 in bfloat16 never falls: 0.999 v rounds to v."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = OptimizerWithMasters([([weight], 1e-5)])
    for gradient in [1.0] * 5 + [0.01] * 2000:
        weight.grad = torch.full((1,), gradient, dtype=torch.bfloat16)
        optimizer.step()
        optimizer.zero_grad()
    (state,) = optimizer.torch.state.values()
    assert state["exp_avg_sq"].dtype == torch.float32
    assert float(state["exp_avg_sq"]) < 0.25 * (1 - 0.999**5)


def test_parts_of_a_batch_are_added_up_in_32_bits():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = OptimizerWithMasters([([weight], 1.0)], "SGD")
    for gradient in [1.0] + [2.0**-10] * 256:
        (weight * gradient).sum().backward()
        optimizer.take_gradients()
    optimizer.step()
    assert float(optimizer.parameters[0].detach()) == -1.25


def test_weights_of_32_bits_stand_for_themselves():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = OptimizerWithMasters([([weight], 0.1)])
    assert optimizer.parameters == [weight]
    assert optimizer.parameters[0] is weight
    assert not optimizer.masters.state()


def test_copies_go_on_where_they_were_saved():
    weights = [nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(2))]
    masters = Masters(weights)
    masters.state()[0].fill_(1e-9)
    again = Masters(weights)
    again.load_state([each.clone() for each in masters.state()])
    assert torch.equal(again.of(weights[0]), torch.full((3,), 1e-9))
    with pytest.raises(ValueError, match="longer"):
        again.load_state([torch.zeros(3), torch.zeros(2)])


def test_groups_have_rates_of_their_own():
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = OptimizerWithMasters([([slow], 0.001), ([fast], 0.5)], "SGD")
    (slow + fast.float()).sum().backward()
    optimizer.step()
    assert float(slow.detach()) == pytest.approx(-0.001)
    assert float(fast.detach()) == -0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    weight = nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
    optimizer = OptimizerWithMasters([([weight], 0.01)], name)
    for _ in range(3):
        (weight**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight < 1).all()


def test_an_optimizer_that_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"optimizer is 'adam'; choose one of AdamW, Adam, SGD, "):
        OptimizerWithMasters([], "adam")
