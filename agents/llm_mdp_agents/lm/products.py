"""Matrix products of float32 by oneDNN, on processors where they are faster than those that torch chooses.

torch multiplies float32 on processors by MKL, which uses narrower vectors on AMD's than they have, and reads weights as
they lie. oneDNN, in the same torch, uses all of the vector and can pack a weight beforehand: less time for a product of
few rows, as in drawing. Its operators are private, so they are tried and compared before any layer is given to them;
where they are missing or wrong every layer stays as it was. So does whatever is not a float32 on the CPU. The processor
decides, not a stopwatch, whose noise would give two runs of one seed other rounding. Values differ from those of MKL as
these differ among processors: by rounding, about 3e-7 of the largest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

FastMatmul = Literal["auto", "off", "on"]

PROCESSOR = Path("/proc/cpuinfo")
SMALLEST = 2**16
"""Numbers in a weight from which on a call of the operator is worth it."""
PACKED_ROWS = 512
"""Most rows of a product that a weight is packed for while responses are drawn; beyond, packing gains little."""
TALLEST = 1024, 4096
"""Most rows of a batch, and of a weight, whose gradient oneDNN computes: it is slow at tall operands transposed."""
AGREEMENT = 1e-5
"""Most that a product may differ, as a share of its largest number."""


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b.

    Args: weight: as it is, or `packed`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def packed(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own order, a copy."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 32)


@cache
def is_faster_here() -> bool:
    """Is this a processor on which oneDNN was measured to be faster? AMD's with AVX-512 (benchmarks/lm_rate.py)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not PROCESSOR.exists():
        return False
    return "AuthenticAMD" in PROCESSOR.read_text(encoding="utf-8")


@cache
def is_right_here() -> bool:
    """Do oneDNN's operators exist in this torch, and give the products of torch?"""
    if not torch.backends.mkldnn.is_available():
        return False
    weight, x, dy = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((96, 64), (32, 64), (32, 96))
    )
    try:
        with torch.no_grad():
            pairs = (
                (nn.functional.linear(x, weight), by_onednn(x, weight)),
                (nn.functional.linear(x, weight), by_onednn(x, packed(weight))),
                (dy @ weight, by_onednn(dy, weight.t())),
                (dy.t() @ x, _weight_gradient(x, dy)),
            )
            return all(float((one - two).abs().max()) <= AGREEMENT * float(one.abs().max()) for one, two in pairs)
    except Exception:
        # An operator is missing, or takes other arguments in this version.
        return False


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

    _packs = False
    _packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        rows = input.numel() // max(1, input.shape[-1])
        if rows < 2 or not _is_plain(input) or not _is_plain(weight) or torch.compiler.is_compiling():
            return super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
            return _Product.apply(input, weight, self.bias)
        if self._packs and rows <= PACKED_ROWS:
            if self._packed is None:
                self._packed = packed(weight)
            weight = self._packed
        return by_onednn(input, weight, self.bias)


@contextmanager
def packing(model: nn.Module) -> Iterator[None]:
    """Inside, weights stay as they are, so that each is packed once. Packs are not kept beyond: what fused optimizers
    and `.data` change, torch does not tell."""
    layers = [each for each in model.modules() if isinstance(each, FastLinear)]
    try:
        for layer in layers:
            layer._packs = True
        yield
    finally:
        for layer in layers:
            layer._packs, layer._packed = False, None


def _is_plain(tensor: Tensor) -> bool:
    """A float32 on the CPU, and no wrapper."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_inference()
    )


def choose(model: nn.Module, choice: FastMatmul) -> None:
    """Let the large linear layers of a model multiply by oneDNN, or by what torch chooses; "auto": by oneDNN on
    processors where it is faster. Where its operators are missing or wrong, torch chooses."""
    wanted = choice == "on" or (choice == "auto" and is_faster_here())
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if type(layer) in (nn.Linear, FastLinear) and layer.weight.numel() >= SMALLEST and _is_plain(layer.weight):
            layer.__class__ = FastLinear if wanted and is_right_here() else nn.Linear


def chosen(model: nn.Module) -> FastMatmul:
    """Whether a model multiplies by oneDNN."""
    return "on" if any(isinstance(each, FastLinear) for each in model.modules()) else "off"
