"""The ledger as an object that shows itself, and the drawings of certificates and ledgers (`llm_mdp.notebook`)."""

import math
from collections import Counter
from textwrap import fill
from typing import TYPE_CHECKING, Any

from llm_mdp.notebook import COLOURS, GREY, Shown, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORST_FIRST = ("biased", "undecided", "proportional", "unbiased")
"""Of verdicts on several instances the first of these that occurs is the one on all."""
NAMED = 4
"""Most claims that a sentence names."""
COLUMNS = (
    "verdict", "expected", "holds", "relative_bias", "scale", "cosine", "trace_covariance", "tokens",
    "tokens_to_signal", "group_size", "prompts", "statement", "source", "target", "reason", "repair",
)  # fmt: skip
"""Of a row of the ledger, what a data frame has."""
IN_TABLE = ("claim", "instance", "verdict", "expected", "relative_bias", "scale", "cosine", "reason")
"""And what a page has room for."""


class Ledger(dict[str, Any], Shown):
    """What `run_ledger` found: the JSON-able document itself, which a notebook shows. One that was written is read by
    `Ledger(json.load(file))`, of one instance or of several (`{"instances": [...]}`).

        found = run_ledger(Problem(random_instance(3, 3)))
        found["claims"]["grpo"]["cosine"]
        found.to_dataframe()
        found.plot()

    `to_dataframe` has a row for every claim on every instance: its name, the verdict, whether that was expected, the
    figures (see `Certificate`), the statement, why, and the repair. `plot` draws the relative bias of every claim that
    is not unbiased.
    """

    __repr__ = Shown.__repr__

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The documents of the instances, one for each."""
        return self.get("instances") or [self]

    def _finding(self) -> tuple[str, str]:
        rows = self._rows()
        claims = list(dict.fromkeys(row["claim"] for row in rows))
        wrong = list(dict.fromkeys(row["claim"] for row in rows if row["holds"] is False))
        of_claim = {claim: [row["verdict"] for row in rows if row["claim"] == claim] for claim in claims}
        verdicts = Counter(map(of_all, of_claim.values()))
        counted = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common())
        named = ", ".join(wrong[:NAMED]) + (" …" if len(wrong) > NAMED else "")
        said = f"{len(wrong)} not as expected ({named})" if wrong else "none contradicts what is expected"
        number = len(self.runs)
        on = "on " + (f"{number} instances" if number > 1 else one_line(self.runs[0]["name"]) or "one instance")
        how = f"K = {self.runs[0]['group_size']}, {self.runs[0]['mode']}"
        return f"ledger: {said}", f"{len(claims)} claim{'s' if len(claims) != 1 else ''} {on}: {counted}, {how}"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"claim": claim, "instance": run["name"], **{name: row.get(name) for name in COLUMNS}}
            for run in self.runs
            for claim, row in run["claims"].items()
        ]

    def _in_table(self) -> list[dict[str, Any]]:
        several = len(self.runs) > 1
        return [{name: row[name] for name in IN_TABLE if several or name != "instance"} for row in self._rows()]

    def _draw(self, axes: "Axes") -> None:
        """The relative bias of each claim that has one, on all instances: a dot each, joined."""
        found: dict[str, list[tuple[float, str]]] = {}
        for row in self._rows():
            if row["relative_bias"] is not None and math.isfinite(row["relative_bias"]):
                found.setdefault(row["claim"], []).append((row["relative_bias"], row["verdict"]))
        wrong = {claim: some for claim, some in found.items() if any(verdict != "unbiased" for _, verdict in some)}
        if not found:
            raise ValueError("no row of this ledger has a relative bias, so there is nothing to draw.")
        names = sorted(wrong, key=lambda claim: max(bias for bias, _ in wrong[claim]))
        for place, claim in enumerate(names):
            biases = [bias for bias, _ in wrong[claim]]
            axes.plot([min(biases), max(biases)], [place, place], color=GREY, linewidth=1, zorder=1)
            colours = [COLOURS.get(verdict, GREY) for _, verdict in wrong[claim]]
            axes.scatter(biases, [place] * len(biases), c=colours, s=22, zorder=2)
        axes.set_yticks(range(len(names)), [one_line(name) for name in names], parse_math=False)
        axes.set_ylim(-0.7, max(len(names), 1) - 0.3)
        axes.set_xlim(left=0)
        axes.set_xlabel("relative bias, |E g - ∇J| / |∇J|; rust: biased, ochre: proportional")
        axes.set_title(f"{len(names)} of {len(found)} claims are not unbiased", parse_math=False)
        if (figure := axes.get_figure()) is not None and len(figure.axes) == 1:
            figure.set_figheight(max(2.4, 1.1 + 0.2 * len(names)))  # pyright: ignore[reportAttributeAccessIssue]


def of_all(verdicts: list[str]) -> str:
    """The verdict on all instances of those on each."""
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), verdicts[0])


def draw_gradient(
    axes: "Axes", name: str, verdict: str, relative_bias: float | None, scale: float | None, words: str
) -> None:
    """Where the expected gradient ends beside the true one, which is the arrow of length 1.

    |E g - ∇J|² = (along - 1)² + across² in lengths of ∇J, so scale and relative bias fix the place.

    Raises:
        ValueError: where there are no such figures.
    """
    if relative_bias is None or scale is None or not math.isfinite(relative_bias * scale):
        raise ValueError(f"there is no arrow to draw: {words}.")
    along, across = scale, math.sqrt(max(relative_bias**2 - (scale - 1) ** 2, 0.0))
    if verdict in ("unbiased", "proportional"):
        along, across = 1.0 if verdict == "unbiased" else scale, 0.0
    colour = COLOURS.get(verdict, GREY)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16}
    thick = {"color": GREY, "linewidth": 5, "alpha": 0.4, "mutation_scale": 26}
    axes.annotate("", (1, 0), (0, 0), arrowprops=arrow | thick)
    axes.annotate("", (along, across), (0, 0), arrowprops=arrow | {"color": colour, "linewidth": 2})
    under = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center", "parse_math": False}
    axes.annotate("∇J, the true gradient", (0.5, 0), color=GREY, **under)
    beside = {"xytext": (6, 6), "textcoords": "offset points", "ha": "left", "parse_math": False}
    axes.annotate("E g", (along, across), color=colour, **beside)
    low, high = min(0.0, along), max(1.0, along)
    axes.set(
        xlim=(low - 0.1, high + 0.3),
        ylim=(-0.25, max(across, 0.3) + 0.2),
        aspect="equal",
        xlabel="along ∇J, in lengths of ∇J",
        ylabel="across",
    )
    title = fill(f"{one_line(name)}, {one_line(words)}", 58)
    axes.set_title(title, parse_math=False, fontsize=10)
