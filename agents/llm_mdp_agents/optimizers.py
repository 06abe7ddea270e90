"""Optimizers by their names in `torch.optim`; for weights of 16 bits they work on copies in float32.

A step of 1e-5 is below half the spacing of bfloat16 around most weights of a trained model, so that a step on the
weights themselves is rounded away, and AdamW's second moment stalls in the same way. Here both live in float32: the
gradient is added up there, the step is taken there, and the model gets its rounded copy. That costs 4 bytes a weight
more than the weights and moments of AdamW in float32 alone, less the 2 that the model saves.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adafactor")
"""Those of `torch.optim` that take any parameters, a learning rate and a weight decay, and nothing else by force."""
HALF = (torch.bfloat16, torch.float16)


class Masters:
    """Copies in float32 of parameters that have 16 bits; the others stand for themselves.

    Args:
        parameters: what is trained, in this order ever after.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.pairs = [
            (each, nn.Parameter(each.detach().float()) if each.dtype in HALF else each) for each in parameters
        ]
        self._of = {id(own): master for own, master in self.pairs}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer changes in its place."""
        return self._of[id(parameter)]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the gradients of the model to those of the copies. After every part of a batch, so that the parts are
        added up in float32."""
        for own, master in self.pairs:
            if master is not own and own.grad is not None:
                gradient, own.grad = own.grad.float(), None
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the copies into the model."""
        for own, master in self.pairs:
            if master is not own:
                own.copy_(master)

    def state(self) -> list[Tensor]:
        """The copies, in order; what is no copy is not there."""
        return [master.detach() for own, master in self.pairs if master is not own]

    @torch.no_grad()
    def load_state(self, state: list[Tensor]) -> None:
        """Stand where `state` was taken; the model's weights are loaded by whoever has them."""
        for master, saved in zip([master for own, master in self.pairs if master is not own], state, strict=True):
            master.copy_(saved)


class OptimizerWithMasters:
    """An optimizer of `torch.optim` and its `Masters`.

    Args:
        groups: parameters and their learning rate, of every group.
        name: see `OPTIMIZERS`.
        weight_decay: of all groups.

    Raises:
        ValueError: for a name that is not among them.
    """

    def __init__(self, groups: list[tuple[list[nn.Parameter], float]], name: str = "AdamW", weight_decay: float = 0.0):
        check_optimizer(name)
        self.masters = Masters(each for parameters, _ in groups for each in parameters)
        self.parameters = [master for _, master in self.masters.pairs]
        """What is changed and has the gradients to clip."""
        on_cuda = any(each.is_cuda for each in self.parameters)
        options: dict[str, Any] = {"fused": True} if on_cuda and name in ("AdamW", "Adam", "SGD", "Adagrad") else {}
        self.torch: torch.optim.Optimizer = getattr(torch.optim, name)(
            [{"params": [self.masters.of(each) for each in parameters], "lr": rate} for parameters, rate in groups],
            weight_decay=weight_decay,
            **options,
        )

    def zero_grad(self) -> None:
        """Forget all gradients; their memory is free until the next backward pass."""
        for own, master in self.masters.pairs:
            own.grad = master.grad = None

    def take_gradients(self) -> None:
        """`Masters.take_gradients`."""
        self.masters.take_gradients()

    def step(self) -> None:
        """One step, whose result the model gets."""
        self.masters.take_gradients()
        self.torch.step()
        self.masters.give_weights()


def check_optimizer(name: str) -> None:
    """Raise ValueError if this is none of `OPTIMIZERS`."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer is {name!r}; choose one of {', '.join(OPTIMIZERS)}.")
