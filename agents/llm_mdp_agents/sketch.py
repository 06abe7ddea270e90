"""Gradients of millions of numbers as vectors of a few thousand."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 8191
"""Numbers of a sketch: a prime, so that rows of a weight matrix, which are as wide as a power of two, do not fall upon
one another. Inner products of sketches scatter around those of the gradients by about √(2 / WIDTH) = 1.6 % of the
lengths."""
PART = 64 * WIDTH
"""Coordinates that are folded at once: few enough for a processor's cache."""


class Sketch:
    """Gradients as vectors of `WIDTH` numbers with about the same inner products: coordinate i, with a random sign,
    into number i mod WIDTH (Charikar, Chen, Farach-Colton 2002). Where there are no more parameters than that, the
    gradient itself.

    Args:
        exact_squares: are squared lengths those of the gradients, or of the sketches, which scatter around them?
    """

    def __init__(self, parameters: Sequence[nn.Parameter], seed: int = 0, exact_squares: bool = True):
        self.sizes = [parameter.numel() for parameter in parameters]
        total, generator = sum(self.sizes), torch.Generator().manual_seed(seed)
        self.signs = None
        if total > WIDTH:
            self.signs = torch.randint(2, (total,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        self.keeps = exact_squares and self.signs is not None
        """Do squared lengths need the gradients, and not their sketches alone?"""

    @property
    def width(self) -> int:
        return min(sum(self.sizes), WIDTH)

    def __call__(self, gradients: Sequence[Tensor | None]) -> tuple[Float[Tensor, " d"], float]:
        """The sketch, and the squared length."""
        vector = self.vector(gradients)
        if not self.keeps:
            return vector, float(vector @ vector)
        known = (each.detach().cpu().double() for each in gradients if each is not None)
        return vector, float(sum(each.square().sum() for each in known))

    def vector(self, gradients: Sequence[Tensor | None]) -> Float[Tensor, " d"]:
        """The sketch alone."""
        folded, start = torch.zeros(self.width, dtype=torch.float64), 0
        for size, gradient in zip(self.sizes, gradients):
            if gradient is not None:
                flat = gradient.detach().flatten().cpu()
                if self.signs is None:
                    folded[start : start + size] = flat
                else:
                    self._fold(flat, start, folded)
            start += size
        return folded

    def _fold(self, flat: Float[Tensor, " size"], start: int, folded: Float[Tensor, " d"]) -> None:
        """Add the coordinates from the number `start` on: what is left of a turn, whole turns, a begun one."""
        assert self.signs is not None
        done = min(-start % WIDTH, len(flat))
        folded[start % WIDTH :][:done] += flat[:done] * self.signs[start : start + done]
        while done < len(flat):
            part = flat[done : done + PART]
            signed = part * self.signs[start + done : start + done + len(part)]
            turns = len(part) // WIDTH * WIDTH
            folded += signed[:turns].view(-1, WIDTH).sum(0)
            folded[: len(part) - turns] += signed[turns:]
            done += len(part)
