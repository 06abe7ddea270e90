"""Does a bias die with the batch? What certificates at several numbers of prompts, or group sizes, say together.

An error that comes from statistics over the batch falls with its size, mostly like 1/P; one that comes from statistics
over each prompt's group stays, however many prompts there are. Certificates are exact at every P, but finitely many: a
rate, or a limit, is stated only where the last of them agree on it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.certificate import UNBIASED, Certificate, exact_certificate
from llm_mdp.verify.problem import Problem

PROMPTS = (1, 2, 4, 8, 16)
"""Numbers of prompts that are tried, unless others are asked for."""
RESOLVED = 1e-6
"""A sine is known from a cosine to four digits down to here."""
FALLS = 0.25
"""Slower than P^-0.25 nothing is said to fall."""
AGREE = 0.1
"""Local rates of a fall may differ by this."""
FLATTENS = 0.75
"""What stays changes less each time, by this factor at most."""
FLAT = 0.01
"""A local rate that is none."""

Figure = Literal["direction", "bias"]
FIGURES: dict[Figure, str] = {
    "direction": "the error of the direction, sin = √(1 - cosine²)",
    "bias": "the relative bias",
}
Kind = Literal["none", "falls", "stays", "undecided"]


@dataclass(frozen=True)
class Fading:
    """How one figure goes with the size of the batch."""

    figure: Figure
    sizes: tuple[int, ...]
    """P (or K), ascending."""
    values: tuple[float, ...]
    """The figure at each."""
    kind: Kind
    """none: it is zero; falls: like a power; stays: it goes to a limit above zero; undecided: these sizes do not
    say."""
    rate: float | None = None
    """ρ of a fall like P^-ρ: of the last three sizes, by least squares in logarithms."""
    error: float | None = None
    """By how much the two local rates differ from ρ, at most."""
    limit: float | None = None
    """Where it stays: what is left if the changes go on to shrink as the last two did."""
    reason: str = ""
    """Why it is undecided."""

    def words(self, size: str = "P") -> str:
        """One sentence's predicate.

        Args: size: the letter of what varies.
        """
        last = f"{self.values[-1]:.2g} at {size} = {self.sizes[-1]}" if self.values else ""
        if self.kind == "falls":
            return f"falls like {size}^-{self.rate:.2f} (± {max(self.error or 0.0, 0.005):.2f}): {last}"
        if self.kind == "stays":
            return f"stays: {last}, going to {self.limit:.2g}"
        return "is zero" if self.kind == "none" else f"undecided: {self.reason}"


def over_prompts(
    estimator: Estimator,
    problem: Problem,
    numbers: Sequence[int] = PROMPTS,
    target: str = "reward",
    method: str = "auto",
) -> dict[int, Certificate]:
    """The exact certificates of updates of so many prompts each, as far as they can be had.

    Raises:
        TooLarge: if none can.
    """
    found: dict[int, Certificate] = {}
    gradient, magnitude = problem.target(target), problem.magnitude(target)
    for number in sorted(numbers):
        try:
            found[number] = exact_certificate(
                estimator, problem.enumeration, gradient, magnitude, method=method, prompts=number
            )
        except TooLarge:
            if not found:
                raise
            break
    return found


def fading(certificates: Mapping[int, Certificate], figure: Figure = "direction") -> Fading:
    """What exact certificates at several sizes, of one estimator on one instance, say of a figure.

    Args: certificates: by P, or by K.
    """
    sizes = tuple(sorted(certificates))
    values: list[float] = []
    for number in sizes:
        value = _value(certificates[number], figure)
        if value is None:
            return Fading(figure, sizes, (), "undecided", reason=f"{FIGURES[figure]} is not known at {number}")
        values.append(value)
    return _judge(figure, sizes, tuple(values))


def _value(certificate: Certificate, figure: Figure) -> float | None:
    if figure == "bias":
        bias = certificate.relative_bias
        return 0.0 if bias is not None and bias < UNBIASED else bias
    if certificate.verdict in ("unbiased", "proportional"):
        return 0.0
    return None if certificate.cosine is None else math.sqrt(max(1 - certificate.cosine**2, 0.0))


def _judge(figure: Figure, sizes: tuple[int, ...], values: tuple[float, ...]) -> Fading:
    def undecided(reason: str) -> Fading:
        return Fading(figure, sizes, values, "undecided", reason=reason)

    if not any(values):
        return Fading(figure, sizes, values, "none")
    if len(sizes) < 3:
        return undecided(f"{len(sizes)} of the three sizes that it takes")
    last, y = [math.log(size) for size in sizes[-3:]], values[-3:]
    if min(y) < (RESOLVED if figure == "direction" else UNBIASED):
        return undecided(f"at {sizes[-1]} it is below what float64 resolves")
    logs = [math.log(value) for value in y]
    one, two = ((logs[k + 1] - logs[k]) / (last[k + 1] - last[k]) for k in range(2))
    if max(abs(one), abs(two)) <= FLAT:
        return Fading(figure, sizes, values, "stays", limit=y[-1])
    if abs(one - two) <= AGREE and max(one, two) <= -FALLS:
        rate = -_slope(last, logs)
        return Fading(figure, sizes, values, "falls", rate=rate, error=max(abs(one + rate), abs(two + rate)))
    # Changes that shrink like 1/P: those of the logarithm go on shrinking by the same factor.
    first, second = logs[1] - logs[0], logs[2] - logs[1]
    shrinks = second / first if first else math.inf
    if 0 <= shrinks <= FLATTENS:
        rest = second * shrinks / (1 - shrinks)
        if abs(rest) <= math.log(2):
            return Fading(figure, sizes, values, "stays", limit=y[-1] * math.exp(rest))
    return undecided(f"local rates of {-one:.2f} and {-two:.2f}, neither a power nor a limit yet")


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    centre = sum(x) / len(x)
    return sum((a - centre) * b for a, b in zip(x, y)) / sum((a - centre) ** 2 for a in x)
