"""benchmarks/variance.md, the tables of docs/variance.md and the figures of both, from
benchmarks/results/variance-*.json: `python benchmarks/variance_report.py`."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from drawing import COLOURS, FOLDER, finish, name_ends, plt
from variance import FAMILIES, LAMS

from llm_mdp.report.plots import spread
from llm_mdp.report.rows import bias, number
from llm_mdp.report.variance_rows import leaders
from llm_mdp.variance.comparison import competing

HERE = Path(__file__).parent
PAGE, IN_DOCS = HERE / "variance.md", HERE.parent / "docs" / "variance.md"
BEGIN, END = "<!-- variance:begin -->", "<!-- variance:end -->"
FAILS = 1 + 1e-9
"""A ratio of traces from which one is larger than the other, and not by rounding."""
HEAD = """# Noise and cost

<!-- Written by `python benchmarks/variance_report.py` from benchmarks/results/variance-*.json; figures in docs/figures. -->

What the paper says of variance, and what exact computation says. `python benchmarks/variance.py typical claims equal-tokens horizons
allocation language-model` (or `make variance`) computes everything anew (finished cells are kept in `runs/variance-benchmark`), `make docs` writes this page.

One *estimate* is a group of K responses to one prompt with its branches. It costs c generated tokens and has covariance v (its trace); the
*tokens to signal* q = v c / |E g|² is the budget at which the mean of the estimates has as much signal as noise. With B tokens, the best
step along the estimate gains *progress* = cos² / (1 + q / B) of what the best step along the exact gradient gains. Everything below is at
equal generated tokens.
"""


def main() -> None:
    pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    claims_figure(load("claims"), FOLDER / "variance_claims.svg")
    horizon_figure(load("horizons"), FOLDER / "variance_horizons.svg")
    equal_figure(load("equal-tokens"), FOLDER / "variance_equal_tokens.svg")
    print(f"Written to {PAGE}, {IN_DOCS} and {FOLDER}")


def pages() -> None:
    """The two pages, without the figures."""
    claims, equal, far, split, model = map(load, ("claims", "equal-tokens", "horizons", "allocation", "language-model"))
    sections = [
        HEAD,
        summary(claims, equal, far),
        theorems(claims),
        equal_tokens(equal),
        horizons(far),
        allocation(split),
        language_model(model),
    ]
    PAGE.write_text("\n".join(sections), encoding="utf-8")
    page = IN_DOCS.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    IN_DOCS.write_text(f"{before}{BEGIN}\n\n{typical(load('typical'))}\n{END}{after}", encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"variance-{name}.json").read_text(encoding="utf-8"))


def typical(result: dict[str, Any]) -> str:
    """The tables of docs/variance.md: the best of each estimator on three settings."""
    parts = []
    for setting in result["settings"]:
        rows = [
            [
                f"{row['label']}{' (given values)' if row['given_values'] else ''}",
                row["verdict"],
                number(row["tokens"]),
                number(row["trace_covariance"]),
                number(row["tokens_to_signal"]),
                "–" if row["progress"] is None else f"{row['progress']:.3f}",
            ]
            for row in leaders(setting["rows"])
        ]
        parts += [
            f'<details markdown="1"><summary><b>{setting["name"]}</b> ({setting["words"]}): '
            f"{setting['recommendation']}</summary>\n",
            table(
                ["estimator at its best options", "verdict", "tokens", "tr Cov", "tokens to signal", "progress"],
                rows,
                words=2,
            ),
            "</details>\n",
        ]
    return "\n".join([f"`{result['command']}`, then `python benchmarks/variance_report.py`:\n", *parts])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first columns hold words, the others figures."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * words + "---:|" * (len(header) - words)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def versions(result: dict[str, Any], command: str) -> str:
    named = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{command}` (commit {(result['commit'] or 'none')[:7]}; {named})\n"


# --- the paper's claims -----------------------------------------------------------------------------------------------


def by_family(claims: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {family: [row for row in claims["rows"] if row["family"] == family] for family in FAMILIES}


def ratios(rows: Sequence[dict[str, Any]], over: str, under: str) -> list[float]:
    return [row[over] / row[under] for row in rows]


def best_lam(row: dict[str, Any]) -> float:
    """The λ of least variance; the smaller one where they are equal but for rounding."""
    least = min(row[f"gae-{lam:g}"] for lam in LAMS)
    return next(lam for lam in LAMS if row[f"gae-{lam:g}"] <= FAILS * least)


def fails(rows: Sequence[dict[str, Any]], test: Callable[[dict[str, Any]], bool]) -> str:
    """`7 of 100`, and a seed to look at."""
    wrong = [row for row in rows if test(row)]
    return f"{len(wrong)} of {len(rows)}" + (f" (seed {wrong[0]['seed']})" if wrong else "")


def worse_than_shared(row: dict[str, Any]) -> bool:
    return row["theorem-2"] > FAILS * row["shared"]


def beats_optimum(row: dict[str, Any]) -> bool:
    return row["optimal"] > FAILS * row["theorem-2"]


def theorems(claims: dict[str, Any]) -> str:
    families = by_family(claims)
    shared, optimal, lam = [], [], []
    for family, rows in families.items():
        against, above = ratios(rows, "theorem-2", "shared"), ratios(rows, "theorem-2", "optimal")
        shared.append(
            [
                family,
                number(median(against)),
                number(min(against)),
                number(max(against)),
                fails(rows, worse_than_shared),
            ]
        )
        optimal.append([family, number(median(above)), number(max(above)), fails(rows, beats_optimum)])
        gain = [row["gae-0"] / min(row[f"gae-{lam:g}"] for lam in LAMS) for row in rows]
        one = ratios(rows, "gae-1", "gae-0")
        lam.append([family, number(median(one)), fails(rows, lambda row: best_lam(row) > 0), number(max(gain))])
    parts = [
        "## Theorem 2, its baseline, and λ\n",
        versions(claims, "python benchmarks/variance.py claims"),
        f"Exact traces of one response's estimate, with exact values, on {len(families['table'])} random token MDPs a "
        f"family (3 tokens, horizon 4; a "
        "normal reward for every token; tables of logits with standard deviation 1, or peaked ones with 4; bigram "
        "policies, peaked with 3; a "
        "tiny transformer).\n",
        "### Theorem 2 against one baseline for all steps (Remarks 4 and 7)\n",
        "Remark 7 says that U(W₀,ₜ) - U(W₀,ₜ₋₁) has smoother gradients than RM(W) less one baseline of the prompt. "
        "Ratio of the two traces:\n",
        table(["policy", "median", "least", "most", "claim fails on"], shared),
        "It nearly always helps, and by a factor. Where policies are peaked it can hurt: the value of a state is not "
        "its best baseline (next "
        "table), and what is lost there can exceed what is gained by taking the future's expectation.\n",
        '### The "near-optimal" baseline against the optimal one\n',
        "Theorem 2 calls U(W₀,ₜ₋₁) near-optimal; its proof gives the optimal b = E[U |∇log π|²] / E|∇log π|² of every "
        "state. Trace with the "
        "first over trace with the second:\n",
        table(["policy", "median", "most", "the optimal one is worse on"], optimal),
        "For policies with some entropy the word is fair. For peaked ones it is not: rare tokens have the long scores, "
        "and the baseline should "
        "sit near *their* value. The formula is optimal state by state, hence for tables; where states share "
        "parameters it leaves out the "
        "covariance between steps, and the value can beat it.\n",
        "### λ of GAE (Remark 6)\n",
        "Remark 6 says that λ = 0 has the smallest variance, given exact values:\n",
        table(["policy", "λ = 1 over λ = 0, median", "another λ is better on", "λ = 0 over the best, most"], lam),
        "On tables it holds on every instance: scores of different states are orthogonal, so the trace is a sum over "
        "steps, and each step's "
        "part is least at λ = 0. With shared parameters it fails often, if never by much: steps are correlated then, "
        "and a little of the "
        "future cancels noise. (λ from 0, 0.25, 0.5, 0.75, 0.95, 1.)\n",
        "![Traces of the paper's estimators](../docs/figures/variance_claims.svg)\n",
    ]
    return "\n".join(parts)


def claims_figure(claims: dict[str, Any], path: Path) -> None:
    """Every instance a dot: Theorem 2 over one shared baseline, over the optimal baseline, λ = 0 over the best λ."""
    panels = {
        "Theorem 2 over one baseline": lambda row: row["theorem-2"] / row["shared"],
        "Theorem 2 over the optimal baseline": lambda row: row["theorem-2"] / row["optimal"],
        "λ = 0 over the best λ": lambda row: row["gae-0"] / min(row[f"gae-{lam:g}"] for lam in LAMS),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
    families = by_family(claims)
    for axis, (title, ratio) in zip(axes, panels.items()):
        axis.axvline(1, color="grey", linewidth=1)
        for place, rows in enumerate(families.values()):
            values = sorted(ratio(row) for row in rows)
            heights = [place + 0.3 * (2 * k / len(values) - 1) for k in range(len(values))]
            colours = [
                COLOURS[1] if (value > FAILS) == (axis is not axes[1]) and abs(value - 1) > 1e-9 else COLOURS[0]
                for value in values
            ]
            axis.scatter(values, heights, s=5, c=colours, linewidths=0)
        axis.set(
            xscale="linear" if axis is axes[2] else "log",
            yticks=range(len(families)),
            yticklabels=list(families),
        )
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        axis.set_title(title, fontsize=9, fontweight="normal")
    axes[0].invert_yaxis()
    finish(figure, "Ratios of exact traces, one dot an instance; red: against the paper's claim", path)


# --- equal tokens -----------------------------------------------------------------------------------------------------

SHOWN = ("reinforce-mean", "rloo", "remax", "grpo", "vineppo", "trepo", "trepo-paper")


def best_of(setting: dict[str, Any], name: str) -> dict[str, Any]:
    """The options of an estimator that make most progress."""
    return max((row for row in setting["rows"] if row["estimator"] == name), key=lambda row: row["progress"])


def settings_of(equal: dict[str, Any]) -> list[dict[str, Any]]:
    return [setting for document in equal["documents"] for setting in document["settings"]]


def named(setting: dict[str, Any]) -> str:
    axes = setting["axes"]
    return f"{axes['policy']}, {axes['rewards']}"


def needed(setting: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Tokens to signal over those of RLOO's best; None without a signal."""
    base = best_of(setting, "rloo")["tokens_to_signal"]
    return None if row["tokens_to_signal"] is None else row["tokens_to_signal"] / base


def equal_tokens(equal: dict[str, Any]) -> str:
    rows = []
    for setting in settings_of(equal):
        cells = [named(setting)]
        for name in SHOWN:
            row = best_of(setting, name)
            ratio = needed(setting, row)
            ceiling = f" (≤ {row['cosine'] ** 2:.2f})" if row["verdict"] == "biased" and row["cosine"] < 0.995 else ""
            cells.append(f"{'–' if ratio is None else number(ratio)}{ceiling}")
        cells.append(number(needed(setting, best_of(setting, "theorem-2"))))
        rows.append(cells)
    best = {named(setting): best_of(setting, "trepo")["label"].removeprefix("trepo ") for setting in settings_of(equal)}
    choices = "; ".join(f"{name}: {options}" for name, options in best.items())
    wins = [setting for setting in settings_of(equal) if winner(setting) in ("trepo", "vineppo")]
    parts = [
        "## Equal tokens\n",
        "\n".join(versions(equal, document["command"]) for document in equal["documents"]),
        "Tokens to signal, each estimator with its best options of the grid (K in 2, 4, 8; |D| in 2, 4; M in 1, 4; λ "
        "in 0, 0.5, 1), over those "
        "of RLOO with its best K: below 1 is better than RLOO, 2 needs twice the tokens. In brackets the ceiling cos² "
        "of biased ones. The last "
        "column gives away exact values of all states (Theorem 2), whose price is not counted.\n",
        table(["setting", *SHOWN, "exact values"], rows),
        f"Best options of TRePO: {choices}.\n",
        f"Branches pay on {len(wins)} of {len(rows)} settings"
        + (f" ({'; '.join(named(setting) for setting in wins)})" if wins else "")
        + ". A branch is a whole response whose tokens teach nothing; it must remove more noise than another response would.\n",
        "![What estimators make of equal tokens](../docs/figures/variance_equal_tokens.svg)\n",
    ]
    return "\n".join(parts)


def winner(setting: dict[str, Any]) -> str:
    """The name that makes most progress with the budget."""
    return max(competing(setting["rows"]), key=lambda row: row["progress"])["estimator"]


def equal_figure(equal: dict[str, Any], path: Path) -> None:
    settings = settings_of(equal)
    figure, axis = plt.subplots(figsize=(8, 0.32 * len(settings) + 1.6))
    axis.axvline(1, color="grey", linewidth=1)
    named_above: list[tuple[float, str, str]] = []
    for name, colour, marker in zip(SHOWN, COLOURS, "osvD^P*"):
        points = [(needed(setting, best_of(setting, name)), place) for place, setting in enumerate(settings)]
        known = [(ratio, place) for ratio, place in points if ratio is not None]
        axis.scatter(*zip(*known), s=34, color=colour, marker=marker, alpha=0.85, linewidths=0)
        named_above.append((known[0][0], name, colour))
    axis.set(xscale="log", yticks=range(len(settings)), yticklabels=[named(setting) for setting in settings])
    axis.set_xlabel("tokens to signal, over RLOO's")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.invert_yaxis()
    name_above(axis, named_above)
    finish(figure, "Tokens that each estimator needs, at its best options", path)


def name_above(axis: Any, points: list[tuple[float, str, str]]) -> None:
    """Names above the first row's points, joined to them, in their colours; the limits of the axes must be set."""
    to_fraction = axis.transData + axis.transAxes.inverted()
    at = np.array([to_fraction.transform((value, 0)) for value, _, _ in points])
    for (_, name, colour), (start, height), place in zip(points, at, spread(at[:, 0], 0.135, 0.0, 0.9)):
        line = {"color": colour, "linewidth": 0.8, "alpha": 0.7, "clip_on": False, "transform": axis.transAxes}
        axis.plot([start, start, place, place], [height, 0.985, 1.02, 1.03], **line)
        axis.text(place, 1.035, name, color=colour, fontsize=9, ha="center", transform=axis.transAxes)


# --- horizons ---------------------------------------------------------------------------------------------------------

LINES = (
    "rloo K=4",
    "reinforce-mean",
    "grpo K=4",
    "grpo-length K=4",
    "trepo K=4 D=4 M=1 λ=0",
    "vineppo D=4 M=1",
    "trepo-paper D=4 M=1",
    "ppo λ=0 σ=0",
    "ppo λ=0 σ=0.5",
    "ppo λ=0.95 σ=0.5",
    "ppo λ=1 σ=0.5",
)


def along(far: dict[str, Any], label: str) -> list[tuple[int, dict[str, Any]]]:
    return [
        (setting["axes"]["horizon"], row)
        for setting in far["settings"]
        for row in setting["rows"]
        if row["label"] == label
    ]


def horizons(far: dict[str, Any]) -> str:
    at = [setting["axes"]["horizon"] for setting in far["settings"]]
    noise = [[label, *(_with_margin(row, "tokens_to_signal") for _, row in along(far, label))] for label in LINES]
    off = [[label, *(_slant_text(row) for _, row in along(far, label))] for label in LINES if not is_right(far, label)]
    parts = [
        "## Long horizons\n",
        versions(far, far["command"]),
        "Bigram policies and rewards over 8 tokens, responses half as long as the horizon on average; the gradient is "
        "exact (n-gram dynamic "
        "programme), covariances are sampled (± half a 95 % interval). Tokens to signal:\n",
        table(["estimator", *(f"T = {horizon}" for horizon in at)], noise),
        "Bias of direction, √(1 - cos²): what is left of the relative bias after the best rescaling, which a learning "
        "rate can do (the scale of GRPO "
        "alone, one over the standard deviation of the reward, makes a relative bias close to 1):\n",
        table(["estimator", *(f"T = {horizon}" for horizon in at)], off),
        "![Noise and bias against the horizon](../docs/figures/variance_horizons.svg)\n",
    ]
    return "\n".join(parts)


def is_right(far: dict[str, Any], label: str) -> bool:
    """Does it point along the true gradient at every horizon?"""
    return all(row["verdict"] in ("unbiased", "proportional") for _, row in along(far, label))


def slant(cosine: float) -> float:
    """√(1 - cos²), the part of an estimate's direction that is across the true gradient; 1 where it points away."""
    return math.sqrt(max(1 - cosine**2, 0.0)) if cosine > 0 else 1.0


def _slant_text(row: dict[str, Any]) -> str:
    if not (row["intervals"] or {}).get("cosine"):
        return "–"
    high, low = (slant(end) for end in row["intervals"]["cosine"])
    if row["cosine"] is None:
        return f"{low:.2f} … {high:.2f}"
    return f"{slant(row['cosine']):.2f} ({low:.2f} … {high:.2f})"


def _with_margin(row: dict[str, Any], figure: str) -> str:
    write = bias if figure == "relative_bias" else number
    if row[figure] is None:
        return "–"
    ends = (row["intervals"] or {}).get(figure)
    margin = f" ± {number((ends[1] - ends[0]) / 2)}" if ends and None not in ends and ends[1] > ends[0] else ""
    return write(row[figure]) + margin


def horizon_figure(far: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    colours = dict(zip(LINES, (*COLOURS, "#e08214", "#8073ac", "#4d9221")))
    ends: list[list[tuple[float, str, str]]] = [[], []]
    for label in LINES:
        points = [(horizon, row) for horizon, row in along(far, label) if row["intervals"]]
        style = "-" if is_right(far, label) else "--"
        known = [(horizon, row["tokens_to_signal"], *row["intervals"]["tokens_to_signal"]) for horizon, row in points]
        drawn = [[each for each in known if None not in each]]
        if style == "--":
            measured = [(horizon, row) for horizon, row in points if row["cosine"] is not None]
            spans = [sorted(slant(end) for end in row["intervals"]["cosine"]) for _, row in measured]
            drawn.append([(horizon, slant(row["cosine"]), *span) for (horizon, row), span in zip(measured, spans)])
        for axis, figures, which in zip(axes, drawn, ends):
            steps, values, low, high = zip(*figures)
            which.append((values[-1], label, colours[label]))
            axis.plot(steps, values, style, color=colours[label], marker="o", markersize=3)
            axis.fill_between(steps, low, high, color=colours[label], alpha=0.12, linewidth=0)
    axes[0].set(xscale="log", yscale="log", xlabel="horizon", ylabel="tokens to signal")
    axes[1].set(xscale="log", xlabel="horizon", ylabel="bias of direction", ylim=(0, 1.02))
    axes[0].margins(x=0)
    axes[1].margins(x=0)
    for axis, which in zip(axes, ends):
        name_ends(axis, which)
    finish(figure, "Noise (left) and bias (right) against the horizon; dashed: biased\nbands: 95 % intervals", path)


# --- allocation -------------------------------------------------------------------------------------------------------


def allocation(split: dict[str, Any]) -> str:
    tables = [row for row in split["rows"] if "table" in row]
    tasks = [row for row in split["rows"] if "task" in row]
    rows = [
        [
            f"{one['table']}, {at['budget']} tokens",
            at["chosen"]["words"],
            *(_signal(at, key) for key in ("chosen", "rloo", "every token")),
        ]
        for one in tables
        for at in one["rows"]
    ]
    parts = [
        "## How to split a budget\n",
        versions(split, "python benchmarks/variance.py allocation"),
        "`llm_mdp.variance.allocation.allocate(budget, prices, |∇J|²)`: K responses to a prompt, cut at steps D, M "
        "branches from every cut, the other "
        "responses as the prompt's baseline. The noise is v₀ + v₁ / M and the cost K (ℓ + M β), so M* = √(v₁ ℓ / (v₀ "
        "β)) whatever the budget; "
        "the estimate is a U-statistic, so exact figures for one response and for pairs give every K. On tables every "
        "set of cuts was tried; "
        "tokens to signal of the choice, of RLOO at its best K, and of TRePO cut at every token (λ = 0, best K and "
        "M):\n",
        table(["table", "choice", "tokens to signal", "RLOO", "every token"], rows, words=2),
        f"On tasks with a small transformer, a pilot of {split['pilot']} prompts chooses (`TRePOAgent.Config(budget=…)`). "
        f"Three pilots, each choice "
        f"measured on {split['prompts']} other prompts: tokens x trace over the least of all {len(tasks[0]['every'])} "
        f"or so splits (1 is the best; "
        "95 % bootstrap intervals over prompts), beside RLOO with K = 4 and TRePO's own defaults of two branches "
        "before every token.\n",
        table(["task", "split", "of the best's noise x cost"], [row for task in tasks for row in _task_rows(task)], 2),
        "In training (`python benchmarks/learning.py agents`: one-digit sums, 100 updates of 2,500 generated "
        "tokens; share of right digits at "
        f"the end, smallest and largest over seeds): "
        f"{', '.join(_learned(agent) for agent in ('trepo budget', 'trepo', 'rloo'))}. A "
        "pilot costs two such batches.\n",
    ]
    return "\n".join(parts)


def _learned(agent: str) -> str:
    """What benchmarks/learning.py found."""
    runs = json.loads((HERE / "results" / "learning.json").read_text(encoding="utf-8"))["runs"]
    ends = [run["curve"][-1]["sum"] for run in runs if (run["agent"], run["reward"]) == (agent, "sum")]
    return f"{agent} {min(ends):.2f} … {max(ends):.2f}"


def _signal(at: dict[str, Any], key: str) -> str:
    return number(at[key]["tokens_to_signal"]) if key in at else "–"


def _task_rows(task: dict[str, Any]) -> list[list[str]]:
    def words(row: dict[str, Any]) -> str:
        if not row["steps"]:
            return f"K = {row['group_size']}, no cuts"
        cuts = ", ".join(str(step + 1) for step in row["steps"])
        return f"K = {row['group_size']}, M = {row['samples']} before {cuts}, λ = {row['lam']:g}"

    def line(title: str, row: dict[str, Any]) -> list[str]:
        return [
            task["task"],
            f"{title}: {words(row)}",
            f"{row['ratio']:.2f} ({row['interval'][0]:.2f} … {row['interval'][1]:.2f})",
        ]

    every = task["every"]
    longest = max((row["steps"] for row in every), key=len)
    rows = [line(f"chosen by pilot {number + 1}", row) for number, row in enumerate(task["chosen"])]
    rows += [line("RLOO", row) for row in every if not row["steps"] and row["group_size"] == 4]
    rows += [
        line("every cut", row)
        for row in every
        if row["steps"] == longest and row["group_size"] == 2 and row["samples"] == 2 and row["lam"] == 0
    ]
    return [*rows, line("the worst", max(every, key=lambda row: row["ratio"]))]


# --- a language model -------------------------------------------------------------------------------------------------


def language_model(model: dict[str, Any]) -> str:
    setting = model["settings"][0]
    rows = [
        [
            row["label"], number(row["tokens"]), f"{row['seconds']:.2f} s", _with_margin(row, "trace_covariance"),
            number(row["tokens_to_signal"]), _with_margin(row, "tokens_over_base"),
        ]
        for row in sorted(setting["rows"], key=lambda row: -row["progress"])
    ]  # fmt: skip
    parts = [
        "## A language model\n",
        versions(model, model["command"]),
        f"SmolLM2-135M-Instruct (135 M parameters, float32, CPU) on two-digit sums with 0/1 rewards, mean reward "
        f"{setting['J']:.2f}. Gradients of "
        "single estimates are streamed and sketched; all estimators share prompts, responses and branches. The true "
        "gradient is not known: "
        f"{setting['target']} on the same draws stands for it.\n",
        table(["estimator", "tokens", "time", "tr Cov", "tokens to signal", f"over {setting['target']}'s"], rows),
        setting["recommendation"] + "\n",
    ]
    return "\n".join(parts)


# --- in short ---------------------------------------------------------------------------------------------------------


def summary(claims: dict[str, Any], equal: dict[str, Any], far: dict[str, Any]) -> str:
    families, settings = by_family(claims), settings_of(equal)
    every = [row for rows in families.values() for row in rows]
    tables = families["table"] + families["peaked table"]
    others = [row for family, rows in families.items() if "table" not in family for row in rows]
    smaller = sum(not worse_than_shared(row) for row in every)
    least = sum(best_lam(row) == 0 for row in tables), sum(best_lam(row) == 0 for row in others)
    beaten = sum((needed(setting, best_of(setting, "trepo")) or 1e9) < 0.99 for setting in settings)
    best = sum(winner(setting) == "trepo" for setting in settings)
    printed = [best_of(setting, "trepo-paper") for setting in settings]
    worse = sum(row["progress"] < best_of(setting, "trepo")["progress"] for row, setting in zip(printed, settings))
    long = far["settings"][-1]
    exact, group = (next(row for row in long["rows"] if row["label"] == label) for label in ("ppo λ=0 σ=0", "rloo K=4"))
    lines = [
        "## In short\n",
        f"- **Theorem 2 is smoother than one shared baseline** (Remarks 4, 7): on {smaller} of {len(every)} instances; "
        f"most exceptions are peaked policies.",
        f"- **λ = 0 has the least variance** (Remark 6): on {least[0]} of {len(tables)} tables, but on {least[1]} of "
        f"{len(others)} policies that share "
        "parameters between states.",
        f"- **The value is a near-optimal baseline**: "
        f"{number(median(ratios(families['table'], 'theorem-2', 'optimal')))} times the optimum's noise "
        f"at the median of tables, {number(median(ratios(families['peaked table'], 'theorem-2', 'optimal')))} times "
        f"for peaked ones, up to "
        f"{number(max(ratios(every, 'theorem-2', 'optimal')))} times.",
        f"- **Smoother is not cheaper** (Remark 7, at equal tokens): repaired TRePO with its best options needs fewer "
        f"tokens than RLOO on {beaten} of "
        f"{len(settings)} settings, and is best of all on {best}. Smoothness comes from values; branches buy values "
        f"with tokens that could have been responses.",
        f"- **TRePO as printed** makes less progress than the repaired one on {worse} of {len(settings)} settings: its "
        f"noise is low because its signal "
        "is, and its ceiling is below 1.",
        f"- **Values are worth most where responses are long**: at T = {long['axes']['horizon']} exact ones cut the "
        f"tokens to signal from "
        f"{number(group['tokens_to_signal'])} (RLOO) to {number(exact['tokens_to_signal'])}. A critic that is off by "
        f"half a standard deviation of the "
        "reward loses most of that at λ = 1 and its direction at λ = 0.\n",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
