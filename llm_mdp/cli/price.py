"""`llm-mdp verify … --price`: what following each estimator costs, on every instance of the run (docs/price.md)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from llm_mdp.verify.claims import Claim
from llm_mdp.verify.price import Price, price
from llm_mdp.verify.problem import Problem


def add_prices(
    claims: Sequence[Claim], problems: Sequence[Problem], runs: Sequence[dict[str, Any]], done: Callable[[str], None]
) -> list[str]:
    """Put the price of every claim into its row of every run, and say all in lines, one for a claim.

    Args: done: called with the id of each claim when it is done on an instance.
    """
    lines = []
    for claim in claims:
        found = []
        for problem, run in zip(problems, runs):
            found.append(price(claim, problem))
            run["claims"][claim.id]["price"] = asdict(found[-1])
            done(claim.id)
        lines.append(f"{claim.id}: {summed_up(found)}")
    return lines


def summed_up(found: Sequence[Price]) -> str:
    """One price as it is; of several the range, and why some are missing."""
    if len(found) == 1:
        return str(found[0])
    values = [each.value for each in found if each.value is not None]
    reasons = list(dict.fromkeys(each.reason or "" for each in found if each.value is None))
    if not values:
        return "; ".join(["no price", *reasons])
    several = f"price {min(values):.3g} to {max(values):.3g} on {len(values)} of {len(found)} instances"
    return "; ".join([several, *reasons])
