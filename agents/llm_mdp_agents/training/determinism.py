"""How a GPU calculates: with kernels that give the same bits every time, and how exact its float32 products are.

On the CPU the same seed gives the same bits without any of this. On a GPU some backward passes add up in an order of
their own (attention, index_put); `deterministic` asks PyTorch for those kernels that do not. Nothing here has been
measured on a GPU yet: a run there is claimed to be equal to another up to rounding, with or without.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

MatmulPrecision = Literal["highest", "high"]
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def numerics(deterministic: bool = False, float32_matmul: MatmulPrecision = "highest") -> Iterator[None]:
    """How everything in here calculates; afterwards it is as it was.

    Args:
        deterministic: PyTorch's deterministic kernels, with a warning where an operation has none (the running sum that
            tokens are drawn by, on CUDA), and plain attention without fused kernels. Slower, and attention takes memory
            for every pair of tokens.
        float32_matmul: "highest": products of float32 in float32; "high": on GPUs with TF32 in 10 bits of mantissa, so
            that log-probabilities are off by about 1e-3.

    Raises:
        ValueError: for another `float32_matmul`; if CUDA has started and CUBLAS_WORKSPACE_CONFIG is not set, which
            cuBLAS reads once.
    """
    if float32_matmul not in ("highest", "high"):
        raise ValueError(f'float32_matmul is {float32_matmul!r}; choose "highest" or "high".')
    if deterministic and WORKSPACE not in os.environ:
        if torch.cuda.is_initialized():
            raise ValueError(
                f"deterministic is True, but CUDA has started without {WORKSPACE}; set it before Python starts: "
                f"{WORKSPACE}=:4096:8 llm-mdp train …"
            )
        os.environ[WORKSPACE] = ":4096:8"
    before = (
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.set_float32_matmul_precision(float32_matmul)
    try:
        if not deterministic:
            yield
        else:
            torch.use_deterministic_algorithms(True, warn_only=True)
            with sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
