"""`llm-mdp verify ROW --adversary FILE`: the instance on which following this estimator is worst."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_mdp.exact.instances import stream
from llm_mdp.exact.optima import NotConverged
from llm_mdp.own import UsageError
from llm_mdp.verify.adversary.files import write_adversary
from llm_mdp.verify.adversary.many import OBJECTIVES, Many
from llm_mdp.verify.adversary.search import (
    CHILDREN,
    DRAWS,
    GENERATIONS,
    QUICK,
    SHAPES,
    VISIBLE,
    Adversary,
    Row,
    draw,
    search,
)
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import parse_target

PATIENT = 1800.0
"""Seconds from which on it is said beforehand that a search may take long."""


def check_adversary(claims: Sequence[Claim], path: Path | None) -> None:
    """Raise UsageError, before any work starts, unless one estimator is named that can be followed."""
    if path is None:
        return
    if len(claims) != 1:
        raise UsageError(f"--adversary searches for one estimator, and {len(claims)} rows are named; name one.")
    (claim,) = claims
    if claim.figure is not None:
        raise UsageError(f"--adversary follows an estimator, and {claim.id} is a statement; name an estimator.")
    if wrong := [term for term in parse_target(claim.target) if term not in OBJECTIVES]:
        raise UsageError(
            f"--adversary follows estimators of {', '.join(OBJECTIVES)}, and {claim.id} is of {wrong[0]!r}; name one "
            "that is."
        )


def find_adversary(claim: Claim, problem: Problem, path: Path, seed: int) -> dict[str, Any]:
    """Search, write the file, and say in words what was found: what a row of the ledger keeps of it.

    Args: problem: says K and β; its instance is not used.
    """
    group_size = claim.build(problem).group_size
    row = Row(claim.build, max(group_size, 2), problem.beta, claim.target)
    _say_how_long(claim, row)
    found = search(row, seed=seed, progress=lambda line: print(f"{claim.id}: {line}", file=sys.stderr, flush=True))
    if found.loss < VISIBLE:
        return {"line": _nothing(claim, found)}
    size = [] if group_size == 1 else ["--group-size", str(group_size)]
    again = shlex.join(["llm-mdp", "verify", claim.id if claim.entry else claim.source, "--instance", str(path), *size])
    said = write_adversary(claim.id, row, found, path, again)
    ends = said.get("objective", said["J"])
    what = "J" if "objective" not in said else f"J and {claim.target}"
    line = (
        f"from {what} = {ends['start']:g} the exact gradient leads to {ends['exact']:g} and {claim.id} to "
        f"{ends['row']:g}: {100 * found.loss:.3g} % of the rewards' range is lost (at most "
        f"{100 * found.worst_drawn:.3g} % in {found.draws:,} random draws); followed from where the exact "
        f"gradient led it goes to {said['from the exact end']['row']:g}; the instance is in {path}: {again}"
    )
    return said | {"line": line}


def _say_how_long(claim: Claim, row: Row) -> None:
    """A line on the standard error where instances must be followed one at a time and this takes long."""
    shape = SHAPES[0]
    try:
        many = Many(shape, draw(shape, 3, stream(0, "probe")), row.build, row.group_size, row.beta, row.target)
        began = time.perf_counter()
        many.field(many.numbers.start, torch.arange(3))
    except NotConverged as error:
        print(
            f"{claim.id}: it cannot be made on every instance ({error}); each is tried alone, which may take hours; "
            "Ctrl-C stops it.",
            file=sys.stderr,
        )
        return
    # Three calls a step of both a search's draws and what evolution makes of them.
    seconds = (time.perf_counter() - began) / 3 * 3 * QUICK.steps * (DRAWS + CHILDREN * GENERATIONS)
    if many.way == "alone" and seconds > PATIENT:
        print(
            f"{claim.id}: its instances are followed one at a time, which may take {seconds / 3600:.1f} hours; Ctrl-C "
            "stops it.",
            file=sys.stderr,
            flush=True,
        )


def _nothing(claim: Claim, found: Adversary) -> str:
    return (
        f"no instance was found on which following {claim.id} loses 1 % of the rewards' range: at most "
        f"{100 * max(found.loss, 0.0):.2g} % in {found.draws + found.searched:,} tried; no file is written"
    )
