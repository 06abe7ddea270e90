"""A row of the ledger over group sizes K and over the prompts P of an update, for every report."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llm_mdp.report.rows import BY, ClaimRow, Span, figure_text, number, ratio, span_text, verdict_text
from llm_mdp.verify.certificate import FIGURES, Certificate
from llm_mdp.verify.fading import Fading, fading

PROPORTIONAL = 1e-12
"""1 - cosine below which an exact direction is exact, and not shown as a figure."""


@dataclass(frozen=True)
class Point:
    """A row at one size."""

    size: int
    row: ClaimRow
    """The instances on which it was computed, or all where it was on none."""

    @property
    def computed(self) -> bool:
        return self.row.verdict != "not computed"

    @property
    def method(self) -> dict | None:
        """How it was computed, on the first of the instances; None: it was not, or was sampled."""
        return next((claim["method"] for _, claim in self.row.entries if claim.get("method")), None)

    @property
    def words(self) -> str:
        """`scale 1.84, cosine 0.999`, `unbiased`, or that it was not computed."""
        if not self.computed or self.row.verdicts[0] == ("unbiased", len(self.row.entries)):
            return self.row.verdict
        if self.row.gravest == "undecided":
            return "undecided"
        return f"scale {figure_text(self.row, 'scale')}, cosine {figure_text(self.row, 'cosine')}"

    @property
    def cells(self) -> tuple[str, ...]:
        """Size, verdict, scale, cosine, 1 - cosine, tokens to signal, method; a dash where nothing is known."""
        error = angle(self.row)
        # A row that is biased has tokens at which its noise equals its own E g, and here that is what is compared.
        known = [claim.get("tokens_to_signal") for _, claim in self.row.entries]
        tokens = [value for value in known if value is not None]
        signal = span_text(Span(min(tokens), max(tokens))) if tokens else "–"
        how = self.method
        return (
            str(self.size),
            verdict_text(self.row),
            figure_text(self.row, "scale"),
            ratio(self.row.span("cosine").low),
            "–" if error is None else "0" if error < PROPORTIONAL else number(error),
            signal,
            "–" if how is None else how["name"],
        )


HEAD = ("verdict", "scale", "cosine", "1 - cosine", "to signal", "method")
"""Of `Point.cells`, after the letter of the size."""


def angle(row: ClaimRow) -> float | None:
    """1 - cosine where it is largest."""
    low = row.span("cosine").low
    return None if low is None else max(1 - low, 0.0)


def points(row: ClaimRow, by: str) -> list[Point]:
    """The row at every size that it has figures for, smallest first, on the instances where all of them were computed;
    if there are none, each size on those where it was."""
    with_sizes = [(name, claim) for name, claim in row.entries if claim.get(by)]
    whole = [
        (name, claim)
        for name, claim in with_sizes
        if all(one["verdict"] != "not computed" for one in claim[by].values())
    ]
    found = []
    for size in sorted({int(size) for _, claim in with_sizes for size in claim[by]}):
        there = [(name, _at(claim, by, size)) for name, claim in whole or with_sizes if str(size) in claim[by]]
        computed = [entry for entry in there if entry[1]["verdict"] != "not computed"]
        found.append(Point(size, ClaimRow(row.id, tuple(computed or there))))
    return found


def _at(claim: dict, by: str, size: int) -> dict:
    """A claim's object with what it is at one size in place of what it is at the run's own."""
    others = {key: value for key, value in claim.items() if key not in (*BY, "diagnosis")}
    return others | claim[by][str(size)] | {"group_size" if by == "by_group_size" else "prompts": size}


def own_size(row: ClaimRow) -> str:
    """`K = 3`, or `K = 3, P = 8`, of a row that compares responses; else nothing."""
    sizes = {(claim.get("group_size"), claim.get("prompts", 1)) for _, claim in row.entries}
    group_size, prompts = sizes.pop()
    if sizes or group_size is None:
        return ""
    return f"K = {group_size}" + (f", P = {prompts}" if prompts > 1 else "")


def line(row: ClaimRow) -> str:
    """What the row is at sizes other than the run's own, in one line; empty where nothing is known."""
    own = {"by_group_size": "group_size", "by_prompts": "prompts"}
    parts = []
    for by, letter in BY.items():
        shown = [point for point in points(row, by) if row.lead.get(own[by]) != point.size]
        parts += [f"{letter} = {point.size}: {point.words}" for point in shown]
    return " · ".join(parts)


def where(row: ClaimRow, by: str) -> str:
    """On which instances the figures over sizes are, where it is not on all."""
    names = list(dict.fromkeys(name for point in points(row, by) for name, _ in point.row.entries if point.computed))
    if not names or len(names) == len(row.entries):
        return ""
    return f"on {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} of the instances"


def missing(row: ClaimRow, by: str) -> str:
    """Why a size was not computed where it was not, of the first such; empty where all were."""
    for name, claim in row.entries:
        for size, one in claim.get(by, {}).items():
            if one["verdict"] == "not computed":
                return f"{BY[by]} = {size} on {name}: {one['reason']}"
    return ""


def rates(row: ClaimRow, by: str) -> str:
    """Whether the error of the direction dies with the size, and how fast, on the instances where it is biased at three
    sizes or more; empty where there is none."""
    found: dict[str, list[Fading]] = defaultdict(list)
    for _, claim in row.entries:
        exact = {int(size): one for size, one in claim.get(by, {}).items() if not one.get("samples")}
        known = {size: one for size, one in exact.items() if one["verdict"] != "not computed"}
        if len(known) >= 3 and any(one["verdict"] == "biased" for one in known.values()):
            said = fading({size: Certificate(*(one.get(key) for key in FIGURES)) for size, one in known.items()})
            found[said.kind].append(said)
    if not found:
        return ""
    parts = [_together(each, BY[by], sum(map(len, found.values()))) for each in found.values()]
    return f"the error of the direction, √(1 - cosine²), {'; '.join(parts)}"


def _together(found: Sequence[Fading], letter: str, instances: int) -> str:
    """What several instances have in common: `falls like P^-0.98…-1.02 on 3 of 4 instances`."""
    if instances == 1:
        return found[0].words(letter)
    where = f"on {len(found)} of {instances} instances"
    if found[0].kind == "falls":
        low, high = (f"{choose(each.rate or 0.0 for each in found):.2f}" for choose in (min, max))
        return f"falls like {letter}^-{low}{'' if low == high else f'…-{high}'} {where}"
    if found[0].kind == "stays":
        low, high = (f"{choose(each.limit or 0.0 for each in found):.2g}" for choose in (min, max))
        return f"stays, going to {low}{'' if low == high else f'…{high}'}, {where}"
    return f"{'is zero' if found[0].kind == 'none' else 'is undecided'} {where}"


def methods(row: ClaimRow) -> str:
    """How the largest sizes were computed, in words: of the others' summary, its states, and the tries."""
    last = [point.method for by in BY for point in points(row, by)[-1:]]
    return "; ".join(dict.fromkeys(method["words"] for method in last if method is not None))
