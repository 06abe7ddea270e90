"""Interventions on the tokens: the rewards are held fixed, and lengths, places and continuations vary."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from llm_mdp.verify.diagnosis import features, repairs
from llm_mdp.verify.diagnosis.black_box import TOLERANCE, Shown, Weights
from llm_mdp.verify.diagnosis.features import Factor, factor_by
from llm_mdp.verify.diagnosis.repairs import Repair
from llm_mdp.verify.diagnosis.subject import Found, Subject

REMEDY_AHEAD = "a baseline of the prefix alone (a penalty that is meant belongs into the reward)"


def factors(x: Subject) -> Iterator[Found]:
    """With the same rewards and other tokens: by which factor do the weights change, and what does it depend on?"""
    shown = x.fixed(1)
    part, seen = x.part(shown), x.seen(shown)
    places = {
        "position": features.position,
        "length": features.length,
        "to-the-end": features.to_the_end,
        "group-tokens": features.tokens_of_group,
        "longest": features.longest_of_group,
    }
    if factor_by(lambda e, s: torch.zeros_like(features.position(e, s)), x.e, shown, part, seen) is not None:
        return
    for kind, feature in places.items():
        factor = factor_by(feature, x.e, shown, part, seen)
        if factor is not None:
            yield _named(x, kind, factor)
            return
    for kind in ("length", "group-tokens", "longest"):
        factor = factor_by(features.both(features.position, places[kind]), x.e, shown, part, seen)
        pair = None if factor is None else _product(factor, features.position, places[kind])
        if pair is not None:
            yield _named(x, "position", pair[0])
            yield _named(x, kind, pair[1])
            return
    for kind, feature, what in (
        ("prefix", features.prefix_before, "the prefix"),
        ("factor-ahead", features.both(features.position, features.length), "the step and the length of the response"),
        ("own-tokens", features.tokens_so_far, "the very token whose weight it is"),
        ("factor-ahead", features.own_response, "tokens that come later"),
    ):
        words = f"the reward is multiplied by a factor that depends on {what}"
        factor = factor_by(feature, x.e, shown, part, seen)
        if factor is not None:
            yield Found(kind, f"{words} ({_range(factor)})", "the same factor for every token", _divided(x, factor))
            return
    yield from _by_all_lengths(x, shown)


def _named(x: Subject, kind: str, factor: Factor) -> Found:
    table = dict(sorted(factor.table.items()))
    values, numbers = list(table), list(table.values())
    if kind in ("length", "group-tokens", "longest") and _constant([v * n for v, n in table.items()]):
        top = x.group_size if kind == "group-tokens" else 1
        factor = Factor(factor.feature, {value: top / value for value in table})
        what = {
            "length": "the number of tokens of its response",
            "group-tokens": "the number of tokens of the group",
            "longest": "the number of tokens of the longest response of the group",
        }[kind]
        words = f"with the same rewards each weight is divided by {what}"
        return Found(kind, words, "sum over tokens, or divide by a constant", _divided(x, factor))
    factor = factor.times(1 / numbers[-1 if kind in ("length", "group-tokens", "longest") else 0])
    numbers = [factor.table[value] for value in values]
    shown = ", ".join(f"{number:.3g}" for number in numbers)
    if kind == "position":
        base = _base(values, numbers)
        words = f"with the same reward the weights of steps {values[0] + 1}, {values[0] + 2}, … go like {shown}"
        if base is not None:
            gamma = x.e.mdp.gamma
            power = "γᵗ⁻¹" if abs(base - gamma) < TOLERANCE else "γ¹⁻ᵗ" if abs(base * gamma - 1) < TOLERANCE else ""
            words += f": the power t - 1 of {base:.4g}" + (f", which is {power}" if power and gamma < 1 else "")
        return Found(kind, words, "no factor of the step: RM already holds the discount", _divided(x, factor))
    if kind == "to-the-end":
        words = f"with the same reward a weight depends on how many tokens follow (0, 1, …): {shown}"
        return Found("factor-ahead", words, "the same factor for every token", _divided(x, factor))
    words = f"with the same rewards the weights depend on lengths ({values[0]}, …): {shown}"
    if (base := _base(values, numbers)) is not None:
        words += f", the powers of {base:.4g}"
    return Found(kind, words, "the same factor for every length", _divided(x, factor))


def _by_all_lengths(x: Subject, shown: Shown) -> Iterator[Found]:
    """Each reward may have a factor of its own, by the length of the response that earned it."""
    repair = repairs.equalised(x.plain)
    _, signature = x.e.length[shown.leaf].unique(dim=0, return_inverse=True)
    part, seen = x.part(shown), x.seen(shown)
    wobble = 0.0
    for value in signature.unique().tolist():
        here = (signature == value)[:, None, None] & seen
        for k in range(part.shape[1]):
            each = part[:, k][here[:, k]]
            wobble = max(wobble, float(each.max() - each.min()) if len(each) else 0.0)
    if wobble <= TOLERANCE * float(part.abs().max()):
        words = "with the same rewards the weights change with the lengths of the responses, and not by one factor"
        yield Found("lengths", words, "let no length enter: sum, or divide by a constant", repair)
    else:
        words = "with the same rewards the weights change with the tokens, and not by one factor"
        yield Found("tokens", words, "weights from the rewards alone", repair)


def _divided(x: Subject, factor: Factor) -> Repair:
    """A whole weight is divided where its offset then depends on the prefix alone, or there is none."""

    def of(shown: Shown) -> Tensor:
        return factor.of(x.e, shown)

    if x.scaling != "proportional":
        return repairs.without_factor(of, whole=True)
    whole = repairs.without_factor(of, whole=True)
    return whole if _sees_ahead(x, whole(x.weights)) is None else repairs.without_factor(of, whole=False)


def without_weight(x: Subject) -> Iterator[Found]:
    """Which tokens have no weight, whatever the rewards?"""
    if not bool(x.empty.any()):
        return
    truncated = (x.e.finish != 0)[:, None] & x.e.mask
    place = torch.arange(x.e.tree.horizon)
    first, last = x.e.mask & (place == 0), x.e.mask & (place == x.e.length[:, None] - 1)
    eos = last & ~truncated
    patterns = {
        "mask-truncated": (truncated, "responses that hit the length cap have no weight", "keep them, with the "
                           "reward they earned"),
        "mask-finished": (~truncated & x.e.mask, "responses that end by themselves have no weight", "keep them"),
        "mask-eos": (eos, "the end token has no weight", "count the end token in the mask: the policy chose it"),
        "mask-shifted": (last, "the last token of every response has no weight, whether it ends the response or "
                         "not: a mask that is shifted by one", "align the mask with the tokens it is for"),
        "mask-shifted-first": (first, "the first token of every response has no weight: a mask that is shifted by "
                               "one", "align the mask with the tokens it is for"),
        "only-last": (x.e.mask & ~last, "only the last token of a response has a weight", "give every token a "
                      "weight"),
        "only-first": (x.e.mask & ~first, "only the first token of a response has a weight", "give every token "
                       "a weight"),
    }  # fmt: skip
    repair = repairs.filled(_donors(x))
    for kind, (pattern, words, remedy) in patterns.items():
        if torch.equal(pattern, x.empty):
            yield Found(kind, words, remedy, repair)
            return
    for kind, (pattern, words, remedy) in patterns.items():
        for other, (second, also, besides) in patterns.items():
            if torch.equal(pattern | second, x.empty):
                yield Found(f"{kind} and {other}", f"{words}, and {also}", f"{remedy}; {besides}", repair)
                return
    count = f"{int(x.empty.sum())} of {int(x.e.mask.sum())} places of responses have no weight"
    yield Found("mask", count, "give every token of the policy its weight", repair)


def _donors(x: Subject) -> Tensor:
    """For every place the one with a weight that is most like it: the same step after the same prefix, the nearest of
    the same response, the nearest of any."""
    leaves, steps = x.e.mask.shape
    place = torch.arange(steps)
    donors = torch.stack([torch.arange(leaves)[:, None].expand(-1, steps), place.expand(leaves, -1)], -1).clone()
    full = x.e.mask & ~x.empty
    for leaf, t in x.empty.nonzero().tolist():
        alike = full[:, t] & (x.e.node[:, t] == x.e.node[leaf, t])
        if bool(alike.any()):
            donors[leaf, t] = torch.tensor([int(alike.nonzero()[0]), t])
            continue
        rows = torch.tensor([leaf]) if bool(full[leaf].any()) else torch.arange(leaves)
        far = (place - t).abs().expand(len(rows), -1).masked_fill(~full[rows], steps + 1)
        row, nearest = divmod(int(far.argmin()), steps)
        donors[leaf, t] = torch.tensor([int(rows[row]), nearest])
    return donors


def offsets(x: Subject) -> Iterator[Found]:
    """With other continuations of the same prefix: does what does not depend on the rewards change?"""
    if x.scaling != "proportional":
        return
    seen = _sees_ahead(x, x.weights)
    if seen is not None:
        what, size = seen
        words = (
            f"with every reward at 0 the weight of a token changes by up to {size:.3g} with {what}: a baseline may not"
        )
        yield Found("later-tokens", words, REMEDY_AHEAD, repairs.prefix_only(x.box))


def _sees_ahead(x: Subject, weights: Weights) -> tuple[str, float] | None:
    """Does what does not depend on the rewards change when the tokens from step t on change? By what, how much."""
    ahead = later = 0.0
    for seed in range(3):
        around = x.box.random(1, seed + 20)
        leaves = torch.arange(x.e.tree.n_leaves)
        for k in range(around.leaf.shape[1]):
            shown = Shown(around.prompt.expand(len(leaves)), around.leaf.expand(len(leaves), -1),
                          around.reward.expand(len(leaves), -1)).with_response(
                k, leaves, around.reward[:, k].expand(len(leaves)))  # fmt: skip
            kept = repairs.offset(weights, shown)[:, k]
            size = float(weights(shown).abs().max())
            ahead = max(ahead, _spread_within(kept, x.e.node, x.e.mask & ~x.empty))
            later = max(later, _spread_within(kept, x.e.edge[0], x.e.mask & ~x.empty))
            if ahead <= TOLERANCE * size:
                ahead = later = 0.0
    if ahead == 0:
        return None
    return ("the tokens after it" if later > TOLERANCE * ahead else "the token itself"), ahead


def _product(factor: Factor, one: features.Feature, other: features.Feature) -> tuple[Factor, Factor] | None:
    """The factor as a product of two; None: it is none."""
    table = {divmod(value, 1000): number for value, number in factor.table.items()}
    last = max(second for _, second in table)
    by_one = {first: number for (first, second), number in table.items() if second == last and number}
    if not by_one:
        return None
    by_other: dict[int, float] = {}
    for (first, second), number in table.items():
        if first not in by_one:
            return None
        share = number / by_one[first]
        if abs(by_other.setdefault(second, share) - share) > 1e-4 * abs(share):
            return None
    return Factor(one, by_one), Factor(other, by_other)


def _base(values: list[int], numbers: list[float]) -> float | None:
    """The b of numbers that go like b**value; None: they do not."""
    ratios = [two / one for one, two in pairwise(numbers)]
    consecutive = all(two - one == 1 for one, two in pairwise(values))
    return ratios[0] if ratios and consecutive and ratios[0] > 0 and _constant(ratios) else None


def _constant(numbers: list[float]) -> bool:
    return max(numbers) - min(numbers) <= 1e-4 * max(map(abs, numbers))


def _range(factor: Factor) -> str:
    numbers = factor.table.values()
    return f"{min(numbers):.3g} to {max(numbers):.3g} of the largest"


def _spread_within(values: Tensor, of: Tensor, where: Tensor) -> float:
    """The largest difference of values at places where `of` is the same and `where` holds."""
    keys, inverse = of[where].unique(return_inverse=True)
    high = torch.full((len(keys),), -torch.inf, dtype=torch.float64).scatter_reduce(0, inverse, values[where], "amax")
    low = torch.full((len(keys),), torch.inf, dtype=torch.float64).scatter_reduce(0, inverse, values[where], "amin")
    return float((high - low).max()) if len(keys) else 0.0
