"""Inline SVG for the page: the tree of a small instance, and the plane of expected gradients."""

import math
from dataclasses import dataclass
from html import escape
from statistics import fmean

from llm_mdp.report.labels import Box, place_names
from llm_mdp.report.rows import EXACT, ClaimRow, bias, number, ratio, tone

MAX_EDGES = 60
"""A tree with more edges is not drawn: nobody could read it."""


@dataclass(frozen=True)
class Edge:
    """One token after one prefix."""

    prefix: tuple[int, ...]
    token: int
    probability: float
    reward: float
    logit: float
    reach: float
    """Probability of the prefix and the token together."""
    collected: float
    """Σ γᵗ⁻¹ rₜ up to this token; RM(W) if it ends the response."""
    last: bool
    row: float
    """Vertical place, in leaves from the top: of a leaf its number, of an inner edge the mean of those that follow
    it."""


def prompt_count(instance: dict) -> int:
    """Number of prompts of an instance file; each has a tree of its own."""
    return len(instance.get("prompts", [None]))


def edge_count(instance: dict) -> int:
    """Number of edges of the tree of one prompt."""
    return len(instance["nodes"]) * instance["vocab_size"] // prompt_count(instance)


def prompt_nodes(instance: dict, prompt: int) -> dict[tuple[int, ...], dict]:
    """The nodes below one prompt by their prefix."""
    return {tuple(node["prefix"]): node for node in instance["nodes"] if node.get("prompt", 0) == prompt}


def softmax(logits: list[float]) -> list[float]:
    """Probabilities of the tokens, which the page shows beside the logits of the file."""
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def tree_edges(instance: dict, prompt: int) -> list[Edge]:
    """Every edge below one prompt, depth first, tokens in order."""
    nodes, gamma = prompt_nodes(instance, prompt), instance.get("gamma", 1.0)

    def below(prefix: tuple[int, ...], reach: float, collected: float, row: float) -> list[Edge]:
        node, edges = nodes[prefix], []
        for token, probability in enumerate(softmax(node["logits"])):
            path, reward = (*prefix, token), node["token_reward"][token]
            share, total = reach * probability, collected + gamma ** len(prefix) * reward
            last = token == instance["eos"] or len(path) == instance["horizon"]
            top = row + sum(edge.last for edge in edges)
            deeper = [] if last else below(path, share, total, top)
            middle = top if last else fmean(edge.row for edge in deeper if edge.prefix == path)
            edges += [
                Edge(prefix, token, probability, reward, node["logits"][token], share, total, last, middle),
                *deeper,
            ]
        return edges

    return below((), 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class _TreeDrawing:
    """Where things stand in the drawing of a tree, in pixels."""

    horizon: int
    eos: int | None
    step: int = 148
    line: int = 26
    left: int = 26
    top: int = 40

    @property
    def column(self) -> int:
        """Left end of the list of responses."""
        return self.left + self.horizon * self.step + 26

    def x(self, depth: int) -> int:
        return self.left + self.step * depth

    def y(self, row: float) -> float:
        return round(self.top + self.line * (row + 0.5), 1)

    def words(self, tokens: tuple[int, ...]) -> str:
        return " ".join("eos" if token == self.eos else str(token) for token in tokens)

    def head(self) -> str:
        steps = (
            f'<text x="{self.x(t) + self.step // 2}" y="20" text-anchor="middle">token {t + 1}</text>'
            for t in range(self.horizon)
        )
        columns = ((0, "start", "response"), (150, "end", "RM"), (172, "start", "probability"))
        titles = (
            f'<text x="{self.column + x}" y="20" text-anchor="{anchor}">{title}</text>' for x, anchor, title in columns
        )
        return f'<g class="head">{"".join([*steps, *titles])}</g>'

    def edge(self, edge: Edge, start: float, strongest: float) -> str:
        x, bend, y = self.x(len(edge.prefix)), self.step // 2, self.y(edge.row)
        path = f"M{x} {self.y(start)}C{x + bend} {self.y(start)} {x + bend - 8} {y} {x + self.step} {y}"
        hue = f"var(--{'gain' if edge.reward > 0 else 'loss'}) {round(100 * abs(edge.reward) / strongest)}%"
        tip = (
            f"token {self.words((edge.token,))} after {self.words(edge.prefix) or 'the prompt'}\n"
            f"probability {number(edge.probability)}, logit {number(edge.logit)}\nhidden reward {number(edge.reward)}"
        )
        return (
            f'<g class="token"><title>{escape(tip)}</title><path class="hit" d="{path}"/><path class="edge" d="{path}" '
            f'style="stroke:color-mix(in oklab, {hue}, '
            f'var(--neutral));stroke-width:{max(0.8, 11 * edge.probability):.2f}"/>'
            f'<text x="{x + self.step - 24}" y="{y + 4}" text-anchor="middle">{self.words((edge.token,))}</text></g>'
        )

    def node(self, prefix: tuple[int, ...], node: dict, row: float, expected: float) -> str:
        lists = {
            "logits": node["logits"],
            "probabilities": softmax(node["logits"]),
            "hidden rewards": node["token_reward"],
        }
        tip = "\n".join(
            [f"prefix {self.words(prefix) or '(empty)'}", f"expected RM {number(expected)}"]
            + [f"{name} {', '.join(map(number, values))}" for name, values in lists.items()]
        )
        place = f'cx="{self.x(len(prefix))}" cy="{self.y(row)}"'
        circles = f'<circle class="hit" {place} r="12"/><circle class="dot" {place} r="5"/>'
        return f'<g class="node"><title>{escape(tip)}</title>{circles}</g>'

    def leaf(self, leaf: Edge, likeliest: float) -> str:
        end, y, bar = self.x(len(leaf.prefix) + 1), self.y(leaf.row), max(1.0, 90 * leaf.reach / likeliest)
        return (
            f'<g class="leaf"><path class="leader" d="M{end + 8} {y}H{self.column - 8}"/><circle cx="{end}" cy="{y}" '
            f'r="3.5"/>'
            f'<text x="{self.column}" y="{y + 4}">{self.words((*leaf.prefix, leaf.token))}</text>'
            f'<text x="{self.column + 150}" y="{y + 4}" text-anchor="end">{number(leaf.collected)}</text>'
            f'<rect x="{self.column + 172}" y="{y - 5}" width="{bar:.1f}" height="10" rx="2"/>'
            f'<text x="{self.column + 178 + bar:.1f}" y="{y + 4}">{number(100 * leaf.reach)} %</text></g>'
        )


def tree_svg(instance: dict, prompt: int) -> str:
    """The responses to one prompt as a tree: nodes are prefixes, edges are tokens, as thick as the token is probable.

    The colour of an edge is its hidden token reward. On the right stands every response with its RM and its
    probability.
    """
    edges, nodes = tree_edges(instance, prompt), prompt_nodes(instance, prompt)
    leaves = [edge for edge in edges if edge.last]
    drawing = _TreeDrawing(instance["horizon"], instance["eos"])
    rows: dict[tuple[int, ...], float] = {(*edge.prefix, edge.token): edge.row for edge in edges}
    rows[()] = fmean(edge.row for edge in edges if not edge.prefix)
    strongest, likeliest = max(abs(edge.reward) for edge in edges) or 1.0, max(leaf.reach for leaf in leaves)
    width, height = drawing.column + 335, drawing.top + drawing.line * len(leaves) + 6
    parts = [drawing.head()]
    # Thin edges first, so that thick ones lie on top of them and not the other way round where they part.
    parts += [
        drawing.edge(edge, rows[edge.prefix], strongest) for edge in sorted(edges, key=lambda edge: edge.probability)
    ]
    parts += [drawing.leaf(leaf, likeliest) for leaf in leaves]
    parts += [
        drawing.node(prefix, node, rows[prefix], _expected_reward(leaves, prefix)) for prefix, node in nodes.items()
    ]
    size = f'viewBox="0 0 {width} {height}" width="{width}"'
    return (
        f'<svg class="tree" {size} role="img" aria-label="Tree of the {len(leaves)} responses">{"".join(parts)}</svg>'
    )


def _expected_reward(leaves: list[Edge], prefix: tuple[int, ...]) -> float:
    """E[RM(W) | W starts with the prefix]."""
    below = [leaf for leaf in leaves if (*leaf.prefix, leaf.token)[: len(prefix)] == prefix]
    return sum(leaf.reach * leaf.collected for leaf in below) / sum(leaf.reach for leaf in below)


LEFT, RIGHT, TOP = -0.6, 2.2, 1.15
"""What the plane of expected gradients shows, in lengths of the true gradient; what lies outside stands at its edge."""

BELOW = 96
"""Pixels below the arrow, for its own name and those of dots on it."""
UNIT = 400
"""Pixels of one length of the true gradient."""


RINGS = (0.25, 0.5, 1.0)
"""Relative biases whose half circles are drawn."""


@dataclass(frozen=True)
class Point:
    """An expected gradient: its parts along and across the true one, in lengths of the true one."""

    row: ClaimRow
    link: str
    along: float
    across: float
    instance: str

    @property
    def x(self) -> float:
        return (min(max(self.along, LEFT), RIGHT) - LEFT) * UNIT + 14

    @property
    def y(self) -> float:
        return (TOP - min(self.across, TOP)) * UNIT + 14

    @property
    def outside(self) -> bool:
        return not (LEFT <= self.along <= RIGHT and self.across <= TOP)

    @property
    def exact(self) -> bool:
        return self.along == 1 and self.across == 0


def points(rows: list[tuple[ClaimRow, str]]) -> list[Point]:
    """The expected gradient of each claim (with its link) on the instance where its relative bias is largest.

    |E g - ∇J|² = (along - 1)² + across² in lengths of ∇J, so scale and relative bias fix the place.
    """
    found = []
    for row, link in rows:
        known = [(name, c) for name, c in row.entries if c["relative_bias"] is not None and c["scale"] is not None]
        if known:
            name, claim = max(known, key=lambda entry: entry[1]["relative_bias"])
            across = math.sqrt(max(claim["relative_bias"] ** 2 - (claim["scale"] - 1) ** 2, 0.0))
            certified = claim["relative_bias"] < EXACT or claim["verdict"] == "unbiased"
            along, across = (
                (1.0, 0.0) if certified else (claim["scale"], 0.0 if claim["verdict"] == "proportional" else across)
            )
            found.append(Point(row, link, along, across, name))
    return found


def plane_svg(rows: list[tuple[ClaimRow, str]]) -> str:
    """Expected gradients relative to the true one: distance from the arrow's tip is relative bias, the angle is the
    cosine."""
    found = points(rows)
    places: dict[tuple[int, int], list[Point]] = {}
    for point in found:
        if not point.exact:
            places.setdefault((round(point.x / 4), round(point.y / 4)), []).append(point)
    clusters = list(places.values())
    exact = [point.row.id for point in found if point.exact]
    origin, tip, floor = 14 - LEFT * UNIT, 14 + (1 - LEFT) * UNIT, 14 + TOP * UNIT
    width, height = (RIGHT - LEFT) * UNIT + 28, floor + BELOW
    ticks = (
        f'<text class="scale" x="{14 + (t - LEFT) * UNIT:g}" y="{floor + 22:g}" text-anchor="middle">{t}</text>'
        for t in (0, 1, 2)
    )
    arrow = (
        f'<path class="axis" d="M14 {floor:g}H{width - 14:g}"/><path class="arrow" d="M{origin:g} '
        f'{floor:g}H{tip - 12:g}"/>'
        f'<path class="head" d="M{tip:g} {floor:g}l-20 -8v16z"/>'
        f'<text class="truth" x="{(origin + tip) / 2:g}" y="{floor + 24:g}" text-anchor="middle">true gradient</text>'
    )
    names = escape(", ".join(exact))
    label = (
        f'<text class="pile" x="{tip + 14:g}" y="{floor + 24:g}">{len(exact)} at the tip: unbiased'
        f"<title>{names}</title></text>"
    )
    pile = label if exact else ""
    taken = [(origin, floor - 4, tip, floor + 4), (tip + 10, floor + 10, tip + 210, floor + 28)]
    taken += [(14 + (t - LEFT) * UNIT - 6, floor + 12, 14 + (t - LEFT) * UNIT + 6, floor + 26) for t in (0, 1, 2)]
    taken.append(((origin + tip) / 2 - 48, floor + 10, (origin + tip) / 2 + 48, floor + 28))
    dots = [(cluster[0].x, cluster[0].y) for cluster in clusters]
    rings = {radius: ring_label(radius, tip, floor, dots) for radius in RINGS}
    taken += [_ring_box(*place) for place in rings.values()]
    return (
        f'<svg class="plane" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="Expected gradients relative to the true one">'
        f"{''.join(_ring(radius, tip, floor, place) for radius, place in rings.items())}{''.join(ticks)}{arrow}{pile}"
        f"{''.join(map(_mark, clusters))}{_labels(clusters, taken, (2, 2, width - 2, height - 2))}</svg>"
    )


def _ring(radius: float, tip: float, floor: float, place: tuple[float, float]) -> str:
    """A half circle of equal relative bias, with its label."""
    length, (x, y) = radius * UNIT, place
    return (
        f'<path class="ring" d="M{tip - length:g} {floor:g}A{length:g} {length:g} 0 0 1 {tip + length:g} {floor:g}"/>'
        f'<text class="scale" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">bias {radius:g}</text>'
    )


def ring_label(radius: float, tip: float, floor: float, dots: list[tuple[float, float]]) -> tuple[float, float]:
    """On the circle, 30° above the axis, or further up where a dot is in the way."""
    turns = (math.radians(angle) for angle in range(30, 151, 10))
    places = [(tip + radius * UNIT * math.cos(turn), floor - radius * UNIT * math.sin(turn) + 4) for turn in turns]
    free = (place for place in places if not any(_holds(_ring_box(*place), *dot) for dot in dots))
    return next(free, places[0])


def _ring_box(x: float, y: float) -> Box:
    return (x - 26, y - 12, x + 26, y + 4)


def _holds(box: Box, x: float, y: float) -> bool:
    """Whether a dot at (x, y) covers a part of the box."""
    return box[0] - 8 <= x <= box[2] + 8 and box[1] - 8 <= y <= box[3] + 8


def _mark(cluster: list[Point]) -> str:
    """One dot for all claims at one place, each described in the tooltip."""
    claims = [(point, dict(point.row.entries)[point.instance]) for point in cluster]
    tip = "\n\n".join(
        f"{point.row.id}: {claim['verdict']}\nrelative bias {bias(claim['relative_bias'])}, scale "
        f"{ratio(claim['scale'])}, "
        f"cosine {ratio(claim['cosine'])}\non {point.instance}" + ("\noutside the picture" if point.outside else "")
        for point, claim in claims
    )
    point, claim = claims[0]
    wrong = any(claim["holds"] is False for _, claim in claims)
    kind = f"mark {tone(claim['verdict'])}{' outside' if point.outside else ''}{' wrong' if wrong else ''}"
    place = f'cx="{point.x:.1f}" cy="{point.y:.1f}"'
    return (
        f'<a href="#{point.link}" class="{kind}"><title>{escape(tip)}</title><circle class="hit" {place} r="11"/>'
        f'<circle {place} r="{5 + min(len(cluster) - 1, 3)}"/></a>'
    )


def _labels(clusters: list[list[Point]], taken: list[Box], room: Box) -> str:
    """A name beside every dot, or further off at the end of a line; the tooltips have all of them."""
    first = sorted(clusters, key=lambda c: (all(point.row.status != "contradiction" for point in c), c[0].across))
    names = [_name(cluster) for cluster in first]
    places = place_names(
        [(c[0].x, c[0].y) for c in first], [6.8 * len(name) for name in names], 13, room, taken, every=True
    )
    parts = []
    for name, place in zip(names, places):
        if place is not None:
            if place.line:
                x, y, end_x, end_y = place.line
                parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}"/>')
            parts.append(f'<text class="name" x="{place.left:.1f}" y="{place.middle + 4:.1f}">{escape(name)}</text>')
    return "".join(sorted(parts))  # lines below names


def _name(cluster: list[Point]) -> str:
    """Both names of two that share a dot; of more, one and how many others."""
    one, *others = (point.row.id for point in cluster)
    return f"{one}, {others[0]}" if len(others) == 1 else one + f" +{len(others)}" * bool(others)
