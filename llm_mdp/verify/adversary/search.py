"""The instance on which following an estimator is worst: random draws, then evolution, then fewer and rounder numbers.

What is made large is the part of the rewards' range that following E g loses, from the same start,

    loss = (J(end of θ' = ∇J) - J(end of θ' = E g)) / (largest RM - smallest RM),

with parameters that prompts and prefixes share. Where an estimator is of a penalty P, both paths have ∇J too, and J
above is J + P.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.exact.instances import Instance, stream
from llm_mdp.exact.optima import NotConverged
from llm_mdp.verify.adversary.flow import Flow, Manner, follow
from llm_mdp.verify.adversary.many import Build, Figures, Many
from llm_mdp.verify.adversary.shapes import Numbers, Shape, instance_of, numbers_of, shape_of

SHAPES = (
    Shape(),
    Shape(horizon=3),
    Shape(gamma=0.5),
    Shape(horizon=3, gamma=0.5),
    Shape(horizon=4),
    Shape(horizon=3, environment_at=(1,)),
)
"""Where instances are looked for, the smallest first: two tokens, of which token 0 ends a response, two prompts, and a
policy that knows the last token."""
DRAWS = 1000
"""Random instances that a search begins with, and that it must beat."""
PARENTS, CHILDREN, GENERATIONS = 32, 128, 10
ENOUGH = 0.9
"""A loss that ends the evolution."""
PLAIN = 0.1
"""A loss after which no larger shape is tried."""
VISIBLE = 0.01
"""A smaller loss than this is no finding."""
KEPT = 0.95
"""What rounder numbers must keep of the loss."""
SLACK = 2e-3
"""What following quickly may be off by: rounder numbers keep the worst draw's loss but for this."""
LIMIT = 3.0
"""No logit or reward of a search is larger."""
QUICK = Manner(tolerance=0.1, rest=1e-3, steps=100)
"""How paths are followed in a search, …"""
CAREFUL = Manner(tolerance=0.01, rest=1e-4, steps=400)
"""… and for the figures that are reported."""


@dataclass(frozen=True)
class Paths:
    """Two paths from the start of every instance: where ∇ leads, and where E g does."""

    exact: Flow
    row: Flow
    many: Many

    def figures(self, theta: Float[Tensor, "B S"]) -> Figures:
        return self.many.figures(theta, torch.arange(len(self.many)))

    @property
    def loss(self) -> Float[Tensor, " B"]:
        """No number where all responses have one reward, or the estimator leaves out every group."""
        lost = self.figures(self.exact.end).objective - self.figures(self.row.end).objective
        return torch.where(self.many.spread > 0, lost / self.many.spread, torch.nan)


def paths(many: Many, manner: Manner, record: bool = False) -> Paths:
    """Both paths of every instance."""
    start = many.numbers.start
    exact = follow(many.gradient, start, manner, record=record)
    return Paths(exact, follow(many.field, start, manner, record=record), many)


@dataclass(frozen=True)
class Row:
    """An estimator as a search sees it."""

    build: Build
    group_size: int = 2
    beta: float = 0.7
    target: str = "reward"

    def losses(self, shape: Shape, numbers: Numbers) -> Float[Tensor, " B"]:
        """Of every instance, quickly; -1 where there is none."""
        try:
            many = Many(shape, numbers, self.build, self.group_size, self.beta, self.target)
            return paths(many, QUICK).loss.nan_to_num(-1.0)
        except NotConverged:  # estimators that are made of an optimum, where one instance has none
            if len(numbers) == 1:
                return torch.full((1,), -1.0, dtype=torch.float64)
            return torch.cat([self.losses(shape, numbers[[place]]) for place in range(len(numbers))])


@dataclass(frozen=True)
class Adversary:
    """The instance that was found."""

    instance: Instance
    loss: float
    """Of this instance, its numbers as they are."""
    worst_drawn: float
    """The largest loss of the random draws of this shape, followed as quickly as the search does."""
    draws: int
    searched: int
    """Instances that the search looked at beside the draws, on the way to rounder numbers too."""


def search(
    row: Row,
    shapes: tuple[Shape, ...] = SHAPES,
    *,
    draws: int = DRAWS,
    generations: int = GENERATIONS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Adversary:
    """The worst instance found, of the smallest shape on which much is lost; else of the shape where most is.

    Args:
        progress: called with a line on every shape.
    """
    best: Adversary | None = None
    for shape in shapes:
        found = _of_shape(row, shape, draws, generations, seed)
        mdp = found.instance.mdp
        progress(f"V={mdp.vocab_size} T={mdp.horizon} γ={mdp.gamma:g}: loss {found.loss:.3f}")
        if best is None or found.loss > 1.5 * best.loss + VISIBLE:
            best = found
        if best.loss >= PLAIN:
            break
    assert best is not None
    return best


def _of_shape(row: Row, shape: Shape, draws: int, generations: int, seed: int) -> Adversary:
    generator = stream(seed, f"adversary {shape.horizon} {shape.gamma:g} {shape.environment_at}")
    drawn = draw(shape, draws, generator)
    loss = row.losses(shape, drawn)
    worst, searched = float(loss.max()), 0
    order = loss.argsort(descending=True)[:PARENTS]
    parents, loss = drawn[order], loss[order]
    for _ in range(generations):
        if float(loss[0]) >= ENOUGH:
            break
        children = mutated(parents, CHILDREN, generator)
        both, scores = Numbers.join([parents, children]), torch.cat([loss, row.losses(shape, children)])
        searched += CHILDREN
        order = scores.argsort(descending=True)[:PARENTS]
        parents, loss = both[order], scores[order]
    plain, tried = rounder(row, shape, parents, max(worst - SLACK, KEPT * float(loss[0])))
    instance = instance_of(shape, plain, 0)
    return Adversary(instance, careful_loss(row, instance), worst, draws, searched + tried)


def careful_paths(row: Row, instance: Instance) -> Paths:
    """Both paths on one instance, with every step of them."""
    many = Many(shape_of(instance), numbers_of(instance), row.build, row.group_size, row.beta, row.target)
    return paths(many, CAREFUL, record=True)


def careful_loss(row: Row, instance: Instance) -> float:
    """The loss on one instance."""
    return float(careful_paths(row, instance).loss)


def draw(shape: Shape, number: int, generator: torch.Generator) -> Numbers:
    """Random instances: logits up to 2 nats; rewards real at the end of a response, right or wrong there, or real at
    every token, in turn."""

    def normal(*size: int) -> Tensor:
        return torch.randn(number, *size, generator=generator, dtype=torch.float64)

    ends = _ending(shape)
    reward, kind = normal(shape.nodes, shape.vocab_size), torch.arange(number) % 3
    right = ends * (reward > 0) / shape.gamma ** _depth(shape)[:, None]
    reward = torch.where((kind == 0)[:, None, None], ends * reward, reward)
    reward = torch.where((kind == 1)[:, None, None], right, reward)
    start = 4 * torch.rand(number, shape.parameters, generator=generator, dtype=torch.float64) - 2
    share = torch.rand(number, len(shape.prompts), generator=generator, dtype=torch.float64) + 0.1
    value, environment = normal(shape.nodes), normal(shape.nodes, shape.vocab_size)
    return Numbers(reward.clamp(-LIMIT, LIMIT), start, share / share.sum(1, keepdim=True), value, environment)


def mutated(parents: Numbers, number: int, generator: torch.Generator) -> Numbers:
    """Children: some numbers of one parent, some of another, and some of them moved."""
    one, other = (torch.randint(len(parents), (number,), generator=generator) for _ in range(2))
    parts = []
    for part in parents.parts:
        size = (number, *part.shape[1:])
        mixed = torch.where(torch.rand(size, generator=generator) < 0.8, part[one], part[other])
        step = 10 ** (-1.5 * torch.rand(number, generator=generator, dtype=torch.float64))
        moved = step.view(-1, *[1] * (part.dim() - 1)) * torch.randn(size, generator=generator, dtype=torch.float64)
        parts.append(mixed + moved * (torch.rand(size, generator=generator) < 0.5))
    reward, start, chance, value, environment = (part.clamp(-LIMIT, LIMIT) for part in parts)
    chance = chance.clamp(0.1, 0.9)
    return Numbers(reward, start, chance / chance.sum(1, keepdim=True), value, environment)


# --- fewer and rounder numbers ----------------------------------------------------------------------------------------


def rounder(row: Row, shape: Shape, found: Numbers, least: float) -> tuple[Numbers, int]:
    """The worst of `found` with rounded numbers, each as round as can be where the loss stays as large as `least`; and
    how many instances were tried on the way."""
    tried, best = 0, found[[0]]
    for digits in (1, 2, 3, 4):
        near = _rounded(found, digits)
        scores = row.losses(shape, near)
        tried += len(near)
        place = int(scores.argmax())
        if float(scores[place]) >= least:
            best = near[[place]]
            break
    for _ in range(4):
        flat = _flatten(best)[0]
        singles, places = [], []
        for place, number in enumerate(flat.tolist()):
            for simple in _simpler(number):
                candidate = flat.clone()
                candidate[place] = simple
                singles.append(candidate)
                places.append((place, simple))
        if not singles:
            break
        good = row.losses(shape, _unflatten(best, torch.stack(singles))) >= least
        changes: dict[int, float] = {}
        for (place, simple), kept in zip(places, good.tolist()):
            if kept:
                changes.setdefault(place, simple)
        if not changes:
            break
        steps, now = [], flat.clone()
        for place, simple in changes.items():
            now[place] = simple
            steps.append(now.clone())
        # All changes one after the other, as far as they keep the loss together.
        good = row.losses(shape, _unflatten(best, torch.stack(steps))) >= least
        tried += len(singles) + len(steps)
        together = int(good.long().cumprod(0).sum())
        best = _unflatten(best, steps[max(together, 1) - 1][None])
    return best, tried


def _rounded(numbers: Numbers, digits: int) -> Numbers:
    reward, start, chance, value, environment = (part.round(decimals=digits) for part in numbers.parts)
    return Numbers(reward, start, _shares(chance), value, environment)


def _shares(chance: Tensor) -> Tensor:
    """Probabilities of prompts in hundredths, the last one what is left."""
    rest = 1 - chance[:, :-1].round(decimals=2).sum(1, keepdim=True)
    return torch.cat([chance[:, :-1].round(decimals=2), rest.round(decimals=2)], dim=1)


def _simpler(number: float) -> list[float]:
    """Simpler numbers, the simplest first."""
    sign = -1.0 if number < 0 else 1.0
    return [each for each in dict.fromkeys((0.0, sign, 2 * sign, sign * round(abs(number)))) if each != number][
        : 0 if number == 0 else 4 if number != round(number) else 1 + (abs(number) > 1)
    ]


def _flatten(numbers: Numbers) -> Float[Tensor, "B numbers"]:
    """All but the probabilities of prompts, the most dispensable first."""
    value, environment = numbers.value, numbers.environment.flatten(1)
    return torch.cat([value, environment, numbers.start, numbers.reward.flatten(1)], dim=1)


def _unflatten(like: Numbers, flat: Float[Tensor, "B numbers"]) -> Numbers:
    """The way back, the probabilities those of `like`."""
    sizes = [like.value[0].numel(), like.environment[0].numel(), like.start[0].numel(), like.reward[0].numel()]
    value, environment, start, reward = flat.split(sizes, dim=1)
    number, shape = len(flat), like.reward.shape[1:]
    chance = like.chance.expand(number, -1)
    return Numbers(reward.view(number, *shape), start, chance, value, environment.view(number, *shape))


def _ending(shape: Shape) -> Float[Tensor, "nodes V"]:
    """1 where a token ends the response."""
    last = _depth(shape)[:, None] == shape.horizon - 1
    token = torch.arange(shape.vocab_size)[None] == (-1 if shape.eos is None else shape.eos)
    return (last | token).double()


def _depth(shape: Shape) -> Float[Tensor, " nodes"]:
    """How many tokens stand before each node."""
    sizes = shape.tree.level_sizes
    each = torch.cat([torch.full((size,), float(level)) for level, size in enumerate(sizes)]).double()
    return each.repeat(len(shape.prompts))
