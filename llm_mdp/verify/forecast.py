"""How long a ledger will take, said before work starts where it is long: groups one by one, at what some of them
take."""

import time
from collections.abc import Sequence

import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import MAX_EDGES, Enumeration, TooLarge
from llm_mdp.exact.groups import MAX_WORLDS, Groups, check_groups, number_of_groups
from llm_mdp.exact.optima import NotConverged
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.choice import FEW
from llm_mdp.verify.claims import Claim
from llm_mdp.verify.group_sizes import Sizes, at_sizes, compares
from llm_mdp.verify.moments import ignores_order
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weight_sums import WeightSums, WholeResponses
from llm_mdp.verify.weights import NotFinite

LONG = 10.0
"""Seconds from which a run is announced."""
CERTAINLY_SHORT = 1_000_000
"""Groups, of all rows together, that nobody has to wait for."""
TIMED = 5_000
"""Groups that are timed for each row."""


def forecast(problem: Problem, claims: Sequence[Claim], sizes: Sizes) -> str | None:
    """A sentence on what the rows that compare responses will take, if that is longer than `LONG` seconds; None: it is
    not. It is timed only where there are enough groups to tell."""
    e = problem.enumeration
    rows = [claim for claim in claims if compares(claim)]
    if sizes.method == "classes" or problem.prompts > 1 or e.n_edges > MAX_EDGES:
        return None
    # Few different rewards make few classes, and classes take no time.
    if sizes.method == "auto" and 4 * len(e.response_reward.unique()) < e.tree.n_leaves:
        return None
    here = [(size, number_of_groups(e, size)) for size in sizes.group_sizes or (problem.group_size,)]
    one_by_one = [(size, groups) for size, groups in here if FEW < groups <= MAX_WORLDS]
    if len(rows) * sum(groups for _, groups in one_by_one) < CERTAINLY_SHORT:
        return None
    seconds, taken = 0.0, set()
    for size, _ in one_by_one:
        for claim in rows:
            there = at_sizes(claim, problem, size, 1)
            if there is None:
                continue
            try:
                seconds += seconds_of(there[0].build(there[1]), e)
            except (TooLarge, NothingKept, NotConverged, NotFinite):
                continue  # refused in no time, then as now
            taken.add(claim.id)
    if not taken or seconds < LONG:
        return None
    listed = " and ".join(f"{groups:,} groups of {size}" for size, groups in one_by_one)
    return (
        f"{e.tree.n_leaves:,} responses to a prompt make {listed}, which {len(taken)} "
        f"row{'s take' if len(taken) > 1 else ' takes'} one by one: about {duration(seconds)}. --sampled N, or a "
        "smaller --group-size, is quicker."
    )


def seconds_of(estimator: Estimator, enumeration: Enumeration) -> float:
    """About how long `exact_moments` takes, from `TIMED` random groups.

    Raises: what it would raise before it begins.
    """
    ordered = not ignores_order(estimator, enumeration)
    check_groups(enumeration, estimator.group_size, ordered)
    generator, e = torch.Generator().manual_seed(0), enumeration
    prompt = torch.randint(e.n_prompts, (TIMED,), generator=generator)
    leaf = torch.randint(e.tree.n_leaves, (TIMED, estimator.group_size), generator=generator)
    groups = Groups(prompt, leaf, torch.full((TIMED,), 1 / TIMED, dtype=torch.float64))
    sums, whole, took = WeightSums(e), WholeResponses(estimator, e), 0.0
    for _ in range(2):  # the first makes the tables that all share
        start = time.process_time()
        sampler = Meter(ExactSampler(e, groups))
        evidence = estimator.collect(sampler)
        weights, of_responses = whole.either(evidence, sampler.weight.shape, sums.tabulated)
        sums.add(sampler.weight, weights, of_responses, evidence.rollouts)
        took = time.process_time() - start
    return took * number_of_groups(e, estimator.group_size, ordered) / TIMED


def duration(seconds: float) -> str:
    """To one or two digits: a forecast is no better."""
    if seconds < 90:
        return f"{round(seconds, -1 if seconds > 20 else 0):.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
