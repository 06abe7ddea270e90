"""benchmarks/README.md on other libraries: what they compute (the audit), and estimators of ours trained in them."""

import math
from collections import Counter

from tables import within

from llm_mdp.report.audit_rows import ORDER, titles

Table = tuple[str, list[str], list[list[str]]]
"""Words, the head of a table, and its rows."""


def audited(result: dict) -> Table:
    """How many options of each library have which verdict."""
    rows = []
    for title, members in titles(result["rows"]):
        counts = Counter(row["verdict"] for row in members)
        rows.append([title, str(len(members)), *(str(counts[verdict]) for verdict in ORDER)])
    words = (
        "Exact certificates of the libraries' own functions, option by option, the first update: "
        "[what each option is](../docs/audit.md)."
    )
    return words, ["library", "options", *ORDER], rows


def in_trl(result: dict) -> Table:
    """The first gradient beside our trainer's, and what a run logged last."""
    rows = []
    for run in result["runs"]:
        known = {name: value for entry in run["log"] for name, value in entry.items()}
        cosine, tokens = (
            [known.get(f"{name}{end}", math.inf) for end in ("", "_low", "_high")]
            for name in ("cosine_to_rloo", "tokens_to_signal")
        )
        rows.append(
            [
                run["estimator"],
                f"{run['gradient_difference']:.1e}",
                f"{run['reward_first_5']:.3f}",
                f"{run['reward_last_5']:.3f}",
                within(cosine, ".2f"),
                within(tokens, ",.0f"),
                f"{run['cpu_seconds']:.0f} s",
            ]
        )
    words = (
        f"TRL's GRPOTrainer with an estimator of ours: a small GPT-2 plays {result['task']}, {result['max_turns']} "
        f"turns, {result['prompts']} prompts × {result['group_size']} responses in {result['micro_batches']} "
        f"micro-batches, {len(result['runs'][0]['log'])} steps, one seed. First how far the first gradient is from our "
        "own trainer's on the same responses, over its length; then the mean reward of the first and the last five "
        "steps, and the latest measurement that a run logged, with 95 % intervals: the cosine of the estimator's "
        "expected gradient to RLOO's, and tokens to signal."
    )
    header = ["estimator", "gradient off by", "reward at first", "at last", "cosine to RLOO", "tokens to signal", "CPU"]
    return words, header, rows


def in_verl(result: dict) -> Table:
    """Updates through verl's functions beside ours."""
    rows = [
        [
            f"`{name}`",
            f"{run['before']:.4f}",
            f"{run['after_ours']:.4f}",
            f"{run['after_verl']:.4f}",
            f"{run['parameters_apart']:.1e}",
        ]
        for name, run in result["runs"].items()
    ]
    gradients = result["relative_difference_of_gradients"]
    words = (
        f"Through verl's own registries and `agg_loss`, rows shuffled, in {result['micro_batches']} micro-batches: of "
        f"the catalogue's names {len(gradients)} train, with gradients within {max(gradients.values()):.1e} of ours, "
        f"and {len(result['refused'])} say why not. {result['updates']} updates of {result['prompts']} prompts × "
        f"{result['group_size']} responses on a table, J exact: ours, and the same through verl. Not run: "
        f"{result['not_run']}."
    )
    return words, ["estimator", "J before", "after, ours", "after, verl", "parameters apart"], rows
