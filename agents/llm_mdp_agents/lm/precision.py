"""float64 all the way: many Hugging Face models compute their norms and softmaxes in float32, whatever they are in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def kept_double(dtype: torch.dtype) -> Iterator[None]:
    """Inside, what is in float64 stays in it where a model asks for float32: its norms (Llama's round every layer's
    input, which moves a gradient by parts in a thousand), its softmaxes and its logits. Nothing changes for models in
    another `dtype`, nor for tensors that are in float32 already."""
    if dtype != torch.float64:
        yield
        return
    with _Double():
        yield


class _Double(TorchFunctionMode):
    """Requests of float32 for a float64 tensor are answered with float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
