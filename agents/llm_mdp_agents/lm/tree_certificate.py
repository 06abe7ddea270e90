"""Certificates of estimators on a language model, in all its parameters.

The verdict is decided at the table of logits that the model says at the prefixes of a small tree, in float64: E g and
∇J are linear in their tables u and u₀ of derivatives by those logits, Σ_nodes u · ∂logits/∂θ, whatever the parameters θ
are. So *unbiased* (u = u₀) and *proportional* (u = c u₀) hold for every parametrisation. What a bias amounts to in the
model's parameters takes one backward pass: of v = u - c u₀, never of u itself, so that figures close to 0 keep their
digits in float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.notebook import Shown
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.certificate import Certificate, judge
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.shown import draw_gradient
from llm_mdp_agents.lm.precision import kept_double
from llm_mdp_agents.lm.spread import Spread, covariance_factors, spread
from llm_mdp_agents.lm.tree import PackedTree, Part
from llm_mdp_agents.lm.tree_problem import ModelProblem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = ("relative_bias", "scale", "cosine", "one_minus_cosine")
"""Figures of a certificate that a notebook shows."""
KEPT_COLUMNS = 1024
"""Columns of packed rows whose graph is kept between backward passes; more are read again for each."""
CHUNK = 2**22
"""Numbers that are multiplied at a time in float64."""

Gradient = list[Tensor]
"""One tensor a trained parameter."""


@dataclass(frozen=True)
class InParameters:
    """E g beside the true gradient, in all trained parameters of a model."""

    relative_bias: float
    """|E g - ∇| / |∇|."""
    scale: float
    """<E g, ∇> / |∇|²."""
    across: float
    """|E g - scale ∇| / |∇|: what no learning rate repairs."""
    norm: float
    """|∇|, of the target."""

    @property
    def one_minus_cosine(self) -> float:
        """1 - cosine, to all digits also where the cosine is close to 1; 1 where E g is 0."""
        if self.scale <= 0:
            size = math.hypot(self.scale, self.across)
            return 1 - self.scale / size if size > 0 else 1.0
        return -math.expm1(-0.5 * math.log1p((self.across / self.scale) ** 2))

    @property
    def cosine(self) -> float:
        return 1 - self.one_minus_cosine

    @property
    def square(self) -> float:
        """|E g|²."""
        return self.norm**2 * (self.scale**2 + self.across**2)


@dataclass(frozen=True, repr=False)
class ModelCertificate(Shown):
    """One estimator on a language model. `repr` says it in one line, `to_dataframe` has one row, the figures in the
    model's parameters, and `plot` draws E g beside ∇J there."""

    certificate: Certificate
    """At the logits; `verdict` and its reasons are those of the model as well."""
    mean: Float[Tensor, "P M V"]
    """u, the derivative of E g by the logits of every prefix."""
    across: float
    """|u - c u₀| / |c u₀| at the logits, c the scale there: a cosine of 1 to twelve digits leaves room for 1e-6. Above
    `UNBIASED`, *proportional* is a figure of these logits and nothing that holds in every parametrisation."""
    figures: InParameters | None
    """In the model's parameters; None: nothing is said of the target's size there (*undecided*)."""

    def _finding(self) -> tuple[str, str]:
        if self.figures is None:
            return self.certificate.verdict, self.certificate.statement.removeprefix("undecided: ")
        said = (f"{name.replace('_', ' ')} {getattr(self.figures, name):.4g}" for name in SHOWN)
        return self.certificate.verdict, f"{', '.join(said)} in the model's parameters"

    def _rows(self) -> list[dict[str, Any]]:
        inside = {name: None if self.figures is None else getattr(self.figures, name) for name in SHOWN}
        return [{"verdict": self.certificate.verdict} | inside | {"tokens": self.certificate.tokens}]

    def _draw(self, axes: "Axes") -> None:
        known = (None, None) if self.figures is None else (self.figures.relative_bias, self.figures.scale)
        draw_gradient(axes, self.certificate.verdict, self.certificate.verdict, *known, self._finding()[1])


class ParameterSpace:
    """Tables of derivatives by the logits of all prefixes as gradients in a model's trained parameters.

    Args: packed: the tree; its model's frozen parameters do not count.

    Raises:
        ValueError: if no parameter of the model is trained.
    """

    def __init__(self, packed: PackedTree):
        self.packed = packed
        self.parameters = [each for each in packed.policy.parameters() if each.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter of the model is trained, so it has no gradient; load it without freezing.")

    @property
    def size(self) -> int:
        """Number of trained parameters."""
        return sum(each.numel() for each in self.parameters)

    def gradient(self, by_logit: Float[Tensor, "P M V"]) -> Gradient:
        """Σ over prefixes and tokens of by_logit · ∂logit/∂θ: one backward pass.

        Args: by_logit: rows that sum to 0, as derivatives by logits do.
        """
        flat, total = by_logit.flatten(0, 1), None
        for part, logp, keep in self._read():
            wanted = flat[part.places].to(logp)
            with kept_double(logp.dtype):
                found = torch.autograd.grad(logp, self.parameters, wanted, retain_graph=keep, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters)]
            total = found if total is None else [one.add_(other) for one, other in zip(total, found)]
        assert total is not None
        return total

    def _read(self) -> Iterator[tuple[Part, Tensor, bool]]:
        """Every part with its log-probabilities, and whether their graph stays."""
        if self._keeps:
            yield from ((part, logp, True) for part, logp in self._kept)
        else:
            yield from ((part, self.packed.read(part)[0], False) for part in self.packed.rows)

    @property
    def _keeps(self) -> bool:
        return sum(part.reading.text.shape[1] for part in self.packed.rows) <= KEPT_COLUMNS

    @cached_property
    def _kept(self) -> list[tuple[Part, Tensor]]:
        return [(part, self.packed.read(part)[0]) for part in self.packed.rows]


class ModelCertifier:
    """Certificates of several estimators on one language model and its questions; the true gradients are kept."""

    def __init__(self, asked: ModelProblem):
        self.asked, self.space = asked, ParameterSpace(asked.packed)
        self._true: tuple[Tensor, Gradient] | None = None

    def true_gradient(self, wanted: Float[Tensor, " parameters"] | None = None) -> Gradient:
        """A gradient by the table's parameters in the model's; None: ∇J. The latest is kept."""
        wanted = self.asked.problem.target("reward") if wanted is None else wanted
        if self._true is None or not torch.equal(self._true[0], wanted):
            self._true = None
            self._true = wanted, self.space.gradient(self.by_logit(wanted))
        return self._true[1]

    def by_logit(self, gradient: Float[Tensor, " parameters"]) -> Float[Tensor, "P M V"]:
        """A gradient by the table's parameters, node by node."""
        table = self.asked.problem.instance.policy
        assert isinstance(table, TabularPolicy)
        parts = gradient.split([level.numel() for level in table.levels])
        return torch.cat([part.view_as(level).transpose(1, 2) for part, level in zip(parts, table.levels)], dim=1)

    def resolution(self) -> float:
        """What the model's own floating point leaves of ∇J unknown, as a share of its length: how far the same gradient
        is from it when the tree is read in other rows."""
        packed, true = self.asked.packed, self.true_gradient()
        other = PackedTree(packed.policy, packed.prompts, packed.eos, packed.tree.horizon, packed.tree.n_nodes // 2 + 1)
        again = ParameterSpace(other).gradient(self.by_logit(self.asked.problem.target("reward")))
        for one, true_one in zip(again, true):
            one.sub_(true_one)
        return math.sqrt(dot(again, again) / dot(true, true))

    def spread(self, estimator: Estimator, probes: int, generator: torch.Generator) -> Spread:
        """tr Cov of one estimate in the parameters, with its interval: some 10 backward passes.

        Args: probes: at least `spread.LEAST_PROBES`.

        Raises:
            TooLarge: if the second moments cannot be had (`spread.covariance_factors`).
        """
        enumeration = self.asked.problem.enumeration
        shape = (enumeration.n_prompts, enumeration.tree.n_nodes, enumeration.tree.vocab_size)

        def length_of(by_edge: Tensor) -> float:
            gradient = self.space.gradient(by_edge.view(shape))
            return dot(gradient, gradient)

        return spread(covariance_factors(estimator, enumeration), enumeration.n_edges, length_of, probes, generator)

    def certify(
        self, estimator: Estimator, target: str = "reward", *, method: str = "auto", prompts: int = 1
    ) -> ModelCertificate:
        """The certificate of an estimator against ∇ of the target.

        Args:
            estimator: of the catalogue, or one's own.
            method, prompts: see `exact_certificate`.

        Raises:
            TooLarge: if there are too many outcomes.
        """
        problem = self.asked.problem
        if estimator.group_size > 1:
            problem = self.asked.at_group_size(estimator.group_size)
        wanted = problem.target(target)
        moments = moments_by(estimator, problem.enumeration, method, prompts)
        certificate = replace(
            judge(moments, wanted, problem.magnitude(target)),
            tokens=moments.tokens or None,
            method=moments.method,
            kept=moments.kept,
            with_signal=moments.with_signal,
        )
        figures = None
        if certificate.relative_bias is not None:
            figures = self._figures(moments.mean, wanted)
        factor, rest = _split(moments.mean, wanted)
        size = abs(factor) * float(wanted.norm())
        across = float(rest.norm()) / size if size > 0 else 0.0
        return ModelCertificate(certificate, self.by_logit(moments.mean), across, figures)

    def _figures(self, mean: Tensor, wanted: Tensor) -> InParameters:
        """E g = c ∇ + what v = u - c u₀ gives."""
        factor, rest = _split(mean, wanted)
        true = self.true_gradient(wanted)
        square = dot(true, true)
        if float(rest.norm()) == 0:
            return InParameters(abs(factor - 1), factor, 0.0, math.sqrt(square))
        left = self.space.gradient(self.by_logit(rest))
        along = dot(left, true) / square
        across = math.sqrt(max(dot(left, left) / square - along**2, 0.0))
        scale = factor + along
        return InParameters(math.hypot((factor - 1) + along, across), scale, across, math.sqrt(square))


def _split(mean: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """c and v with u = c u₀ + v, v orthogonal to u₀; 0 and u where u₀ is 0."""
    square, factor, rest = float(wanted @ wanted), 0.0, mean
    for _ in range(2 if square > 0 else 0):  # twice, so that rounding of c is no part of v
        factor += float(rest @ wanted) / square
        rest = mean - factor * wanted
    return factor, rest


def dot(one: Gradient, other: Gradient) -> float:
    """The inner product of two gradients, summed in float64."""
    total = 0.0
    for a, b in zip(one, other):
        for x, y in zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK)):
            total += float(x.double() @ y.double())
    return total
