"""Running the ledger: every claim on an instance, as one JSON-able document (what `llm-mdp verify --json` writes)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import llm_mdp
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Entry
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instance_files import instance_to_dict
from llm_mdp.exact.instances import flatten
from llm_mdp.exact.optima import NotConverged
from llm_mdp.own import UsageError, did_you_mean, is_own, whole_file
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.certificate import FIGURES, Certificate, certificate_of
from llm_mdp.verify.check import load_estimator
from llm_mdp.verify.choice import moments_by, shared_moments
from llm_mdp.verify.claims import CLAIMS, Claim, always
from llm_mdp.verify.group_sizes import BY_SIZE, ONE_SIZE, Sizes, at_sizes, compares, entry_of
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate
from llm_mdp.verify.shown import Ledger
from llm_mdp.verify.weights import NotFinite


def run_ledger(
    problem: Problem,
    claims: Sequence[Claim] = CLAIMS,
    *,
    sampled: int | None = None,
    seed: int = 0,
    confidence: float = 0.99,
    sizes: Sizes = ONE_SIZE,
    progress: Callable[[str], None] = lambda claim: None,
) -> Ledger:
    """Check claims on one instance.

    Args:
        sampled: draw this many responses for each claim instead of enumerating; None: exact.
        confidence: of each sampled certificate.
        sizes: further group sizes and numbers of prompts, of rows that compare responses; and the method.
        progress: called with the id of each claim when it is done.

    Returns:
        A dictionary that a notebook shows:
        {"name", "policy", "J", "grad_norm", "gradient", "instance", "claims": {id: {…}}, …}; `gradient` follows the
        instance's nodes, V entries each, for a table, and the order of the policy's parameters otherwise.

    Raises:
        TooLarge: the instance cannot be enumerated at all.
    """
    instance, enumeration = problem.instance, problem.enumeration
    J, gradients = problem.gradient
    gradient = problem.target("reward")
    if isinstance(instance.policy, TabularPolicy):
        gradient = flatten(instance, gradients)
    rows = {}
    for claim in claims:
        options: dict[str, Any] = {"sampled": sampled, "seed": seed, "confidence": confidence, "method": sizes.method}
        rows[claim.id] = claim_row(claim, problem, **options)
        if compares(claim):
            rows[claim.id] |= _by_size(claim, problem, rows[claim.id], sizes, options)
        progress(claim.id)
    document = {
        "name": instance.name,
        "policy": getattr(instance.policy, "kind", type(instance.policy).__name__),
        "mode": "exact" if sampled is None else "sampled",
        "group_size": group_size_of(claims, problem),
        "group_sizes": list(sizes.group_sizes),
        "prompts": problem.prompts,
        "prompts_of_updates": list(sizes.prompts),
        "beta": problem.beta,
        "seed": seed,
        "version": llm_mdp.__version__,
        "J": J,
        "grad_norm": float(gradient.norm()),
        "gradient": gradient.tolist(),
        "responses": enumeration.tree.n_leaves * enumeration.n_prompts,
        "claims": rows,
        "instance": instance_to_dict(instance),
    }
    return Ledger(document)


def _by_size(
    claim: Claim, problem: Problem, row: dict[str, Any], sizes: Sizes, options: dict[str, Any]
) -> dict[str, Any]:
    """`by_group_size` and `by_prompts` of a row: what it is at every K, and at every P."""

    refused: list[int] = []

    def entry(group_size: int, prompts: int) -> dict[str, Any] | None:
        if (group_size, prompts) == (row["group_size"], row["prompts"]):
            return entry_of(row)
        there = at_sizes(claim, problem, group_size, prompts)
        if there is None:
            return None
        if refused and sizes.method == "classes" and group_size > refused[0]:
            nothing = dict.fromkeys(entry_of(row)) | {"verdict": "not computed", "expected": row["expected"]}
            return nothing | {"reason": f"not computed: nor are smaller groups (K = {refused[0]}) by classes"}
        found = entry_of(claim_row(*there, **options))
        refused.extend([group_size] if found["verdict"] == "not computed" else [])
        return found

    found = {
        "by_group_size": {str(size): entry(size, row["prompts"]) for size in sizes.group_sizes},
        "by_prompts": {str(number): entry(row["group_size"], number) for number in sizes.prompts},
    }
    known = {key: {size: one for size, one in by.items() if one is not None} for key, by in found.items()}
    return {key: by for key, by in known.items() if by}


def find_claims(names: Sequence[str], group_size: int | None = None) -> tuple[Claim, ...]:
    """The claims with these ids, and the users' own estimators as claims of "unbiased".

    Args: group_size: of the users' own, instead of what each has.
    """
    known = {claim.id: claim for claim in CLAIMS}
    found = []
    for name in names:
        if name in known:
            found.append(known[name])
        elif name in CATALOGUE:
            found.append(named_claim(CATALOGUE[name]))
        elif is_own(name):
            found.append(own_claim(name, group_size))
        else:
            otherwise = "an estimator of your own is written FILE.py:CLASS."
            hint = whole_file(name, Estimator) or did_you_mean(name, [*known, *CATALOGUE], otherwise)
            raise UsageError(f"there is no claim {name!r}; {hint}")
    if len({claim.id for claim in found}) < len(found):
        raise UsageError("the same claim is named twice; name each once.")
    return tuple(found) or CLAIMS


def own_claim(name: str, group_size: int | None = None) -> Claim:
    """A user's estimator, FILE.py:CLASS or MODULE:CLASS, as the claim that it is unbiased (or what its `expected`
    says)."""
    estimator, attribute = load_estimator(name, group_size), name.rpartition(":")[2]
    statement = " ".join((type(estimator).__doc__ or "").strip().split("\n\n")[0].split())
    expected = always(getattr(estimator, "expected", "unbiased"))
    words = "" if statement.startswith(f"{attribute}(") else statement
    reason = f"your estimator, {estimator.group_size} response{'s' if estimator.group_size > 1 else ''} to a prompt"
    return Claim(attribute, "yours", words, name, expected, reason, estimator=estimator)


def claims_nothing(claim: Claim) -> dict[str, bool]:
    """What stands in the row of a user's own estimator that does not say what to expect of it; nothing in others."""
    said = claim.group != "yours" or hasattr(claim.estimator, "expected")
    return {} if said else {"claims_nothing": True}


def group_size_of(claims: Sequence[Claim], problem: Problem) -> int:
    """K of what ran: the users' own, where nothing else ran and they agree."""
    own = {claim.estimator.group_size for claim in claims if isinstance(claim.estimator, Estimator)}
    alone = all(isinstance(claim.estimator, Estimator) for claim in claims)
    return own.pop() if alone and len(own) == 1 else problem.group_size


def named_claim(entry: Entry) -> Claim:
    """An estimator of the catalogue that no row of the ledger is about by itself."""
    expected = always(entry.proved(**entry.options) or "report")
    return Claim(
        entry.name,
        "algorithms",
        entry.words,
        "catalogue",
        expected,
        f"see the rows about it: {', '.join(entry.claims)}" if entry.claims else "no row of the ledger is about it",
    )


def claim_row(
    claim: Claim, problem: Problem, *, sampled: int | None, seed: int, confidence: float, method: str = "auto"
) -> dict[str, Any]:
    """One claim on one instance, at the problem's K and P."""
    own = claim.estimator.group_size if isinstance(claim.estimator, Estimator) else problem.group_size
    row: dict[str, Any] = {
        "group": claim.group,
        **claims_nothing(claim),
        "verdict": "not computed",
        "expected": claim.expected(problem),
        "holds": None,
        "relative_bias": None,
        "scale": None,
        "cosine": None,
        "trace_covariance": None,
        "tokens": None,
        "tokens_to_signal": None,
        "group_size": own if compares(claim) else None,
        "prompts": problem.prompts,
        "kept": None,
        "with_signal": None,
        "method": None,
        "statement": claim.statement,
        "source": claim.source,
        "paper": claim.paper,
        "finding": claim.finding,
        "target": claim.target,
        "reason": claim.reason,
        "repair": claim.repair,
    }
    try:
        if claim.figure is not None:
            said = claim.figure(problem)
            return row | said | {"holds": True if row["expected"] == "report" else said["holds"]}
        estimator = claim.build(problem)
        target, magnitude = problem.target(claim.target), problem.magnitude(claim.target)
        if sampled is None:
            find = moments_by if claim.group == "yours" else shared_moments
            certificate = certificate_of(
                find(estimator, problem.enumeration, method, problem.prompts), target, magnitude
            )
        else:
            certificate = sampled_certificate(
                estimator, problem.enumeration, target, sampled, magnitude=magnitude, seed=seed, confidence=confidence
            )
    except (TooLarge, NothingKept, NotConverged) as error:
        return row | {"reason": f"not computed: {error}"}
    except NotFinite as error:
        if claim.group == "yours":
            raise
        return row | {"verdict": "undecided", "undecided": f"overflow: {error}"}
    shown = (*FIGURES, "tokens", "tokens_to_signal", "kept", "with_signal")
    figures = {name: getattr(certificate, name) for name in shown}
    if (how := certificate.method) is not None:
        figures |= {"method": asdict(how) | {"words": how.words}}
    if certificate.samples is not None:
        figures |= {"samples": certificate.samples, "bound": certificate.bound, "confidence": certificate.confidence}
        figures |= {"certificate": certificate.statement, "needed": certificate.needed}
        for name in ("bias_interval", "scale_interval", "cosine_interval"):
            interval = getattr(certificate, name)
            figures |= {name: None if interval is None else list(interval)}
    if certificate.reason is not None:
        figures |= {"undecided": certificate.reason}
    if certificate.precision != "float64":
        figures |= {"precision": certificate.precision, "certificate": certificate.statement}
    if certificate.branch_noise is not None:
        figures |= {"trace_covariance_of_draws": certificate.branch_noise}
    if certificate.verdict == "unbiased":
        figures |= {"repair": None}
    return row | figures | {"holds": holds(certificate, row["expected"])}


def holds(certificate: Certificate, expected: str) -> bool | None:
    """Is this what was expected? None: it says nothing about it.

    "Unbiased" and "proportional" are claims about every instance, and one can refute them. "Biased" says that there is
    a counter-example: on a given instance the bias may be smaller than any threshold. A sampled verdict refutes only
    what its intervals exclude: "unbiased" is a bound, which leaves room for a scale close to 1.
    """
    if expected == "report" or certificate.verdict == expected:
        return True
    if certificate.verdict == "undecided" or expected == "biased":
        return None
    if certificate.samples is not None and certificate.verdict == "unbiased":
        return None
    return False


def exit_status(document: dict[str, Any]) -> int:
    """1 if any computed verdict differs from the expected one, at any K or P; 2 if none was computed."""
    rows = [row for run in document.get("instances", [document]) for row in run["claims"].values()]
    further = [one for row in rows for key in BY_SIZE for one in row.get(key, {}).values()]
    if all(row["verdict"] == "not computed" for row in (*rows, *further)):
        return 2
    return int(any(row["holds"] is False for row in (*rows, *further)))
