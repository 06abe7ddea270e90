"""Code that asks for single precision gets double: nine digits of a certificate need it, and rounding is not what is
audited."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

COARSE = (torch.float32, torch.float16, torch.bfloat16)
_CASTS: dict[Any, Any] = dict.fromkeys((Tensor.float, Tensor.half, Tensor.bfloat16), Tensor.double)


class _Lifted(TorchFunctionMode):
    """`.float()`, `.to(torch.float32)`, `dtype=torch.float32` and the like mean float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = {name: _lift(value) for name, value in kwargs.items()} if kwargs else {}
        return _CASTS.get(func, func)(*map(_lift, args), **named)


def _lift(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in COARSE else value


@contextmanager
def in_double() -> Iterator[None]:
    """Inside it torch computes in float64: the default dtype is that, and every cast to a coarser one becomes one to
    it. What leaves torch (NumPy's float32, compiled code) stays as it is, and a certificate then says `computed in
    float32`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Lifted():
            yield
    finally:
        torch.set_default_dtype(before)
