"""Matrix products of float32 by oneDNN, where they are faster than those that torch chooses.

torch multiplies float32 on processors by MKL, which uses narrower vectors on AMD's than they have, and reads weights as
they lie. oneDNN, in the same torch, uses all of the vector and can pack a weight beforehand: less time for a product of
few rows, as in drawing. Its operators are private, so they are tried, in value and in speed, before any layer is given
to them; where they are missing, wrong or not faster every layer stays as it was. So does whatever is not a float32 on
the CPU. Values differ from those of MKL as these differ among processors: by rounding, about 3e-7 of the largest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import thread_time
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FastMatmul = Literal["auto", "off", "drawing", "training", "both"]

SMALLEST = 2**16
"""Numbers in a weight from which on a call of the operator is worth it."""
PACKED_ROWS = 512
"""Most rows of a product without gradients that a weight is packed for; beyond, packing gains little."""
TALLEST = 1024, 4096
"""Most rows of a batch, and of a weight, whose gradient oneDNN computes: it is slow at tall operands transposed."""
DRAWING, TRAINING = 1.3, 1.04
"""How many times as fast it must be: far from what was seen anywhere, so that the choice does not hang on the noise of
a measurement (drawing 1.7 to 2.3 on an AMD EPYC of family 25, training 1.08 to 1.27)."""
AGREEMENT = 1e-5
"""Most that a product may differ, as a share of its largest number."""


@dataclass(frozen=True)
class Rates:
    """How many times as fast as torch's own products those of oneDNN were seen to be; 0: they are not used here."""

    drawing: float = 0.0
    """With packed weights and few rows."""
    training: float = 0.0
    """The product and its gradient by the input, at many rows."""

    @property
    def choice(self) -> FastMatmul:
        """What is worth it."""
        return choice_of(self.drawing >= DRAWING, self.training >= TRAINING)


def choice_of(drawing: bool, training: bool) -> FastMatmul:
    if drawing:
        return "both" if training else "drawing"
    return "training" if training else "off"


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b.

    Args: weight: as it is, or `packed`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def packed(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own order, a copy."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 32)


@cache
def measured() -> Rates:
    """How fast oneDNN is on this processor, found once a process in about a third of a second: the fastest of several
    calls that take turns, on weights that no cache holds."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT" or not torch.backends.mkldnn.is_available():
        return Rates()
    try:
        with torch.no_grad():
            return Rates(_rate_of_drawing(), _rate_of_training())
    except Exception:
        # An operator is missing, takes other arguments in this version, or gives another product.
        return Rates()


def _rate_of_drawing() -> float:
    weight, x = _numbers(2**13, 576), _numbers(32, 576)
    ready = packed(weight)
    return _rate([(lambda: linear(x, weight), lambda: by_onednn(x, ready))])


def _rate_of_training() -> float:
    weight, x, dy = _numbers(1536, 576), _numbers(256, 576), _numbers(256, 1536)
    _check(dy.t() @ x, _weight_gradient(x, dy))
    forward = (lambda: linear(x, weight), lambda: by_onednn(x, weight))
    return _rate([forward, (lambda: dy @ weight, lambda: by_onednn(dy, weight.t()))])


def _numbers(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def _check(plain: Tensor, fast: Tensor) -> None:
    if not float((plain - fast).abs().max()) <= AGREEMENT * float(plain.abs().max()):
        raise ArithmeticError("the product is another")


def _rate(pairs: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]]) -> float:
    """Time of the first of each pair over that of the second."""
    total = [0.0, 0.0]
    for pair in pairs:
        _check(*(multiply() for multiply in pair))
        best = [float("inf")] * 2
        for _ in range(5):
            for number, multiply in enumerate(pair):
                begun = thread_time()
                multiply()
                best[number] = min(best[number], thread_time() - begun)
        total = [sum(each) for each in zip(total, best)]
    return total[0] / max(total[1], 1e-9)


class _Product(torch.autograd.Function):
    """x Wᵀ + b of rows, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x, weight) = dys, ctx.saved_tensors
        needs = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # gradients of gradients take products that have some
        dx = dw = None
        if needs[0]:
            dx = dy @ weight if again else by_onednn(dy, weight.t())
        if needs[1]:
            x, rows = x.flatten(0, -2), dy.flatten(0, -2)
            dw = rows.t() @ x if again else _weight_gradient(x, rows)
        return dx, dw, dy.flatten(0, -2).sum(0) if needs[2] else None


def _weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    if len(x) > TALLEST[0] or dy.shape[1] > TALLEST[1]:
        return dy.t() @ x
    return by_onednn(dy.t(), x.t())


class FastLinear(nn.Linear):
    """A linear layer whose products in float32 on the CPU are oneDNN's; all else as of any."""

    draws: bool = False
    """With packed weights, where there are no gradients."""
    trains: bool = False
    """Where there are gradients, and where there are many rows."""
    _packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        rows = input.numel() // max(1, input.shape[-1])
        if rows < 2 or not _is_plain(input) or not _is_plain(weight) or torch.compiler.is_compiling():
            return super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
            return _Product.apply(input, weight, self.bias) if self.trains else super().forward(input)
        if self.draws and rows <= PACKED_ROWS:
            return by_onednn(input, self._ready(), self.bias)
        return by_onednn(input, weight, self.bias) if self.trains else super().forward(input)

    def _ready(self) -> Tensor:
        """The packed weight, which is packed again when it has changed in place or is another."""
        version = self.weight.data_ptr(), self.weight._version
        if self._packed is None or self._packed[0] != version:
            self._packed = None  # the old one goes first
            self._packed = version, packed(self.weight)
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs a weight of its own."""
        return {name: each for name, each in self.__dict__.items() if name != "_packed"}


def _is_plain(tensor: Tensor) -> bool:
    """A float32 on the CPU, and no wrapper."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_inference()
    )


def choose(model: nn.Module, choice: FastMatmul) -> None:
    """Let the large linear layers of a model multiply as is said; "auto": as is faster here, which is measured for a
    model that has any."""
    every: list[Any] = [each for each in model.modules() if type(each) in (nn.Linear, FastLinear)]
    layers = [each for each in every if each.weight.numel() >= SMALLEST and _is_plain(each.weight)]
    if layers and choice != "off":
        rates = measured()
        # Who says which has measured before, perhaps elsewhere; what cannot be here is not.
        choice = rates.choice if choice == "auto" else choice if rates.drawing else "off"
    for layer in layers:
        layer.__class__ = nn.Linear if choice == "off" else FastLinear
        vars(layer).pop("_packed", None)
        if isinstance(layer, FastLinear):
            layer.draws, layer.trains = choice in ("drawing", "both"), choice in ("training", "both")


def chosen(model: nn.Module) -> FastMatmul:
    """Whose products a model takes from oneDNN."""
    for each in model.modules():
        if isinstance(each, FastLinear):
            return choice_of(each.draws, each.trains)
    return "off"
