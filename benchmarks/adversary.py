"""For every biased row of the ledger, the instance found on which following it is worst.

    python benchmarks/adversary.py            # all rows that are missing in benchmarks/results/adversary.json
    python benchmarks/adversary.py grpo opo   # these, again

Writes the instances to docs/adversarial/, the paths to llm_mdp/report/paths.json and the table and pictures of
docs/adversarial.md. Also the drift on 60 random instances with three prompts and a policy that knows the last token.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results

from llm_mdp.exact.instances import stream
from llm_mdp.exact.optima import NotConverged
from llm_mdp.verify.adversary.files import read_adversary, write_adversary
from llm_mdp.verify.adversary.many import Many
from llm_mdp.verify.adversary.search import QUICK, SHAPES, VISIBLE, Adversary, Row, careful_loss, draw, search
from llm_mdp.verify.adversary.shapes import Shape, instance_of, shape_of
from llm_mdp.verify.claims import CLAIMS, Claim
from llm_mdp.verify.drift import drifts
from llm_mdp.verify.problem import Problem

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "adversary.json"
FILES = HERE.parent / "docs" / "adversarial"
GROUP_SIZE, BETA = 2, 0.7
OTHER_SIZES = (2, 3, 4, 8)
TYPICAL, INSTANCES = Shape(3, 3, prompts=((0,), (1,), (2,))), 60

NOT_SEARCHED = {
    "prime": "its process model is fitted anew at every policy, 0.06 s each, so that 1,000 draws would take five "
    "hours; on 4 of 12 random instances the fit does not exist (too few successes): nothing is said about it"
}
"""Rows that are searched only when they are named, and why."""


def biased_on(claim: Claim, shape: Shape) -> bool:
    """Does the ledger expect it to be biased on instances of this shape?"""
    instance = instance_of(shape, draw(shape, 3, stream(0, "typical")), 2)
    return claim.expected(Problem(instance, GROUP_SIZE, BETA)) == "biased"


def biased_rows() -> list[tuple[Claim, tuple[Shape, ...]]]:
    """Rows that the ledger found biased, with the shapes on which they are expected to be."""
    ledger = json.loads((HERE / "results" / "ledger.json").read_text())
    verdicts = {
        name for run in ledger["instances"] for name, row in run["claims"].items() if row["verdict"] == "biased"
    }
    rows = []
    for claim in CLAIMS:
        if claim.id in verdicts and claim.figure is None:
            shapes = tuple(shape for shape in SHAPES if biased_on(claim, shape))
            rows.append((claim, (shapes or SHAPES)[:3]))
    return rows


def typical_drift(row: Row, like: Shape) -> dict[str, Any] | None:
    """Mean share of the gain that is lost again, with its 95 % bootstrap interval over instances.

    Args: like: where the row is biased: it says the discount, the turns, and the horizon if that is above three.
    """
    shape = replace(TYPICAL, horizon=max(3, like.horizon), gamma=like.gamma, environment_at=like.environment_at)
    numbers = draw(shape, INSTANCES, stream(0, "typical"))
    try:
        many = Many(shape, numbers, row.build, row.group_size, row.beta, row.target)
    except NotConverged:
        return None
    if many.way == "alone":
        return None
    start, exact, later, rest = drifts(many, QUICK)
    share = ((exact - later) / (exact - start))[(exact - start) > 0.05 * many.spread].numpy()
    means = np.random.default_rng(0).choice(share, (2000, len(share))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": round(float(share.mean()), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "instances": len(share),
        "at_rest": int(rest.sum()),
        "worst": round(float(share.max()), 4),
    }


def known() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="ids of claims (default: all that are missing)")
    parser.add_argument("--again", action="store_true", help="no search: follow the instances that were found again")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    FILES.mkdir(parents=True, exist_ok=True)
    for claim, shapes in biased_rows():
        done = known()
        if claim.id not in arguments.rows if arguments.rows else claim.id in {*done, *NOT_SEARCHED}:
            continue
        gc.freeze()  # nothing here is cyclic, and the collector would look at it all again and again
        began, row = time.process_time(), Row(claim.build, GROUP_SIZE, BETA, claim.target)
        path = FILES / f"{claim.id}.json"
        if arguments.again:
            if not path.exists():
                continue
            read = read_adversary(path)
            instance, before = read.instance, read.said
            drawn = before["worst of random draws"]
            found = Adversary(instance, careful_loss(row, instance), drawn["loss"], drawn["draws"], before["searched"])
        else:
            found = search(row, shapes, progress=lambda line, name=claim.id: print(name, line, flush=True))
        size = f" --group-size {GROUP_SIZE}" if claim.entry and claim.entry.compares else ""
        again = f"llm-mdp verify {claim.id} --instance docs/adversarial/{path.name}{size}"
        said = write_adversary(claim.id, row, found, path, again)
        if found.loss < VISIBLE:
            path.unlink()
        drift = typical_drift(row, shape_of(found.instance))
        done = known()  # another process may have written beside this one
        seconds = (
            done.get(claim.id, {}).get("cpu_seconds") if arguments.again else round(time.process_time() - began, 1)
        )
        if claim.entry and claim.entry.compares:
            losses = {k: careful_loss(replace(row, group_size=k), found.instance) for k in OTHER_SIZES}
            said |= {"loss_by_group_size": {str(k): round(loss, 4) for k, loss in losses.items()}}
        done[claim.id] = said | {"drift": drift, "cpu_seconds": seconds}
        results = {"command": "python benchmarks/adversary.py", "seed": 0, "typical_instances": INSTANCES, "rows": done}
        write_results(RESULTS, ("torch",), results)
        print(f"{claim.id:<32}loss {found.loss:.3f} (draws {found.worst_drawn:.3f})  drift {drift}", flush=True)


if __name__ == "__main__":
    main()
