"""Certificates of group estimators against an independent program that writes down every group, or draws them:
tests/second_opinion_groups.py. By classes, by groups, and by what is chosen by itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from llm_mdp.estimators.algorithms import GRPO, REINFORCE
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import kl_estimate, policy_gradient, reduce
from llm_mdp.estimators.off_policy import SAPO, Reweighted
from llm_mdp.estimators.practices import KLLoss, KLReward, LengthPenalty, MaskedTruncated, OverlongShaping
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instance_files import instance_to_dict, write_instance
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Policy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.choice import moments_by
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.method import METHODS
from llm_mdp.verify.problem import Problem
from tests import second_opinion
from tests import second_opinion_groups as sceptic
from tests.imports import imported_by
from tests.verify.classes.cases import INSTANCES, LARGER, jacobian

TOLERANCE = 1e-12
FIGURES = ("relative_bias", "scale", "cosine", "trace_covariance", "tokens", "tokens_to_signal", "kept", "with_signal")
GROUP_ROWS = [claim for claim in CLAIMS if claim.entry is not None and claim.entry.compares]
WITHOUT_OPINION = {"prime": "CLAIMS.md has no formula"}
ROWS = [claim.id for claim in GROUP_ROWS if claim.id not in WITHOUT_OPINION]
READ_MORE = {"tempo", "tempo-td", "turn-credit-reached", "turn-credit-reached-to-go", "turn-credit-others", "prime"}
"""Rows that read tokens, hidden rewards or log-probabilities of the others: no classes of rewards and lengths do."""


@dataclass(frozen=True)
class WithPenalty(GRPO):
    """GRPO with 0.3 k3 to a reference in the loss, as trainers add it."""

    reference: Policy | None = None

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        assert self.reference is not None
        return Evidence(
            rollouts, sampler.response_reward(rollouts), reference_logp=sampler.logp(self.reference, rollouts)
        )

    def loss(self, logp, evidence):
        mask, advantage = evidence.rollouts.mask, self.advantages(evidence)
        assert evidence.reference_logp is not None
        penalty = reduce(kl_estimate(logp, evidence.reference_logp, "k3"), mask, self.reduction)
        return policy_gradient(logp, advantage, mask, self.reduction) + 0.3 * penalty


@cache
def case(name: str) -> tuple[Instance, SimpleNamespace]:
    """The instance, and its tables as the sceptic reads them from the file's content."""
    instance = (INSTANCES | LARGER)[name]()
    content = json.loads(json.dumps(instance_to_dict(instance)))
    tabular = type(instance.policy).__name__ == "TabularPolicy"
    return instance, sceptic.read(content, None if tabular else jacobian(instance).numpy())


def of_row(problem: Problem, row: str) -> Estimator:
    return next(claim for claim in CLAIMS if claim.id == row).build(problem)


def certificate(
    problem: Problem, estimator: Estimator, target: str = "reward", method: str = "auto", prompts: int = 1
) -> Certificate:
    gradient, size = problem.target(target), problem.magnitude(target)
    return exact_certificate(estimator, problem.enumeration, gradient, size, method=method, prompts=prompts)


def differences(certificate: Certificate, opinion: dict, target_size: float) -> dict:
    """{figure: (the certificate's, the sceptic's)} wherever they differ.

    A sum of terms is known to some 1e-16 of them, so what is relative to a small target is known less well.
    """
    terms = opinion["root_mean_square"] / target_size if target_size else 1.0

    def agree(name: str) -> bool:
        ours, theirs = getattr(certificate, name), opinion[name]
        if ours is None or theirs is None:
            return ours is theirs or certificate.verdict == "undecided"
        size = opinion["root_mean_square"] ** 2 if name == "trace_covariance" else abs(theirs)
        if name in ("relative_bias", "scale"):
            size = max(1.0, size, 1e-3 * terms)
        if name in ("cosine", "kept", "with_signal"):
            size = 1.0
        return abs(ours - theirs) <= TOLERANCE * size

    return {name: (getattr(certificate, name), opinion[name]) for name in FIGURES if not agree(name)}


def check(
    name: str,
    row: str,
    group_size: int,
    prompts: int = 1,
    methods: tuple[str, ...] = ("classes",),
    make: Callable[[Problem], Estimator] | None = None,
) -> None:
    """The certificate of a row, or of the estimator that `make` makes of it, against the sceptic's figures."""
    instance, tables = case(name)
    problem = Problem(instance, group_size=group_size)
    estimator = of_row(problem, row) if make is None else make(problem)
    opinion = sceptic.row_opinion(tables, row, group_size, prompts)
    target = sceptic.TARGETS.get(row, "reward")
    size = float(np.linalg.norm(sceptic.targets(tables, group_size)[target]))
    for method in methods:
        if not opinion["kept"]:
            with pytest.raises(NothingKept):
                certificate(problem, estimator, target, method, prompts)
            continue
        try:
            found = certificate(problem, estimator, target, method, prompts)
        except TooLarge:
            assert method == "classes" and row in READ_MORE, row
            continue
        assert differences(found, opinion, size) == {}, (row, method, found.method)


def test_every_group_row_has_an_opinion():
    assert set(ROWS) == set(sceptic.ROWS)


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("name", INSTANCES)
@pytest.mark.slow
def test_group_rows_are_what_every_group_gives(name, group_size):
    for row in ROWS:
        check(name, row, group_size, methods=METHODS)


@pytest.mark.parametrize("row", ["rloo", "grpo", "token-mean-loo", "zero-std-filtered", "reinforce++", "tempo"])
def test_a_group_row_by_classes_is_what_every_group_gives(row):
    check("two prompts", row, 3)


@pytest.mark.parametrize("name", ["right or wrong", "two prompts", "no end token"])
@pytest.mark.slow
def test_groups_of_eight_written_down(name):
    for row in ROWS:
        check(name, row, 8, methods=("auto", "classes"))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.slow
def test_12870_groups_of_eight_written_down(row):
    assert sceptic.multisets(case("nine responses")[1], 8) == 12_870
    check("nine responses", row, 8, methods=("auto", "classes"))


@pytest.mark.parametrize("row", ["grpo", "token-mean-loo"])
def test_a_group_row_of_eight_written_down(row):
    check("right or wrong", row, 8)


# --- what is no row of the ledger in groups ---------------------------------------------------------------------------


def more(row: str, problem: Problem):
    """The estimators of `sceptic.MORE` and other names of what it has, in groups of the problem's size."""
    K, reference, horizon = problem.group_size, problem.instance.reference, problem.instance.mdp.longest
    return {
        "reinforce": REINFORCE(K),
        "length-normalised": REINFORCE(K, reduction="sequence_mean"),
        "masked-truncated": MaskedTruncated(K),
        "overlong-shaping": OverlongShaping(K, horizon=horizon),
        "length-penalty": LengthPenalty(K),
        "kl-k1-reward": KLReward(K, reference=reference, kind="k1"),
        "kl-k2-loss": KLLoss(K, reference=reference, kind="k2"),
        "kl-k3-loss": KLLoss(K, reference=reference, kind="k3"),
        "kl-k3-reward": KLReward(K, reference=reference, kind="k3"),
        "grpo with k3 in the loss": WithPenalty(K, reference=reference),
        "grpo with k3 in the loss, token mean": WithPenalty(K, reference=reference, reduction="token_mean"),
        # at the first update all ratios are 1
        "grpo, clipped": GRPO(K, clip_low=0.2),
        "rloo as CISPO": Reweighted(K, cap=6.0),
        "rloo as SAPO": SAPO(K),
        "grpo-length as GSPO": Reweighted(
            K, scale_by_std=True, level="geometric", reduction="sequence_mean", clip_low=3e-4, clip_high=4e-4
        ),
    }[row]


@pytest.mark.parametrize("group_size", [2, 3, 8])
@pytest.mark.parametrize(
    "row", [*sceptic.MORE, "grpo, clipped", "rloo as CISPO", "rloo as SAPO", "grpo-length as GSPO"]
)
@pytest.mark.parametrize(
    "name", ["right or wrong", "two prompts", "ended and cut off alike", "it replies, right or wrong"]
)
@pytest.mark.slow
def test_other_estimators_in_groups(name, row, group_size):
    row_of = row.split(" as ")[0].removesuffix(", clipped")
    check(name, row_of, group_size, make=lambda problem: more(row, problem))


@pytest.mark.parametrize("row", ["kl-k3-loss", "grpo with k3 in the loss, token mean"])
def test_own_log_probabilities_may_be_read(row):
    check("right or wrong", row, 3, make=lambda problem: more(row, problem))


# --- drawn groups, where there are too many to write down -------------------------------------------------------------


def drawn_agrees(name: str, row: str, group_size: int, prompts: int = 1, draws: int = 40, size: int = 250) -> None:
    """E g and tr Cov against the mean of `size` updates, `draws` times: |mean - E g|² size / tr Cov is 1 on average,
    and so is |g - E g|² / tr Cov of one. Both within five of their own standard errors."""
    instance, tables = case(name)
    problem = Problem(instance, group_size=group_size)
    moments = moments_by(of_row(problem, row), problem.enumeration, "classes", prompts)
    expected = jacobian(instance).numpy() @ moments.mean.numpy()
    g = sceptic.drawn(tables, sceptic.ROWS[row], group_size, prompts, draws * size, seed=1, keep=sceptic.KEEP.get(row))
    g = g[: len(g) // draws * draws].reshape(draws, -1, g.shape[-1])
    ratio = ((g.mean(1) - expected) ** 2).sum(-1) * g.shape[1] / moments.trace_covariance
    deviation = ratio.std(ddof=1) / np.sqrt(draws)
    assert abs(ratio.mean() - 1) < 5 * deviation
    measured = ((g - expected) ** 2).sum(-1).ravel()
    assert abs(measured.mean() - moments.trace_covariance) < 5 * measured.std(ddof=1) / np.sqrt(measured.size)


@pytest.mark.parametrize("group_size", [16, 64])
@pytest.mark.parametrize("row", [row for row in ROWS if row not in READ_MORE])
@pytest.mark.slow
def test_drawn_groups_agree_at_real_group_sizes(row, group_size):
    drawn_agrees("rarely right" if row == "pass-at-k" else "fifteen responses", row, group_size)


def test_drawn_groups_of_64_agree():
    drawn_agrees("fifteen responses", "grpo", 64, draws=20, size=100)


@pytest.mark.parametrize("row", ["tempo", "tempo-td"])
def test_what_reads_more_than_rewards_and_lengths_is_refused_where_groups_are_too_many(row):
    problem = Problem(case("fifteen responses")[0], group_size=16)
    with pytest.raises(TooLarge, match="classes"):
        certificate(problem, of_row(problem, row))


# --- the program itself -----------------------------------------------------------------------------------------------


def test_second_opinion_imports_nothing_of_the_package():
    assert imported_by(sceptic) == {"argparse", "collections.abc", "itertools", "json", "math", "numpy", "types"}


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_what_theory_proves_of_the_rows(group_size):
    """THEORY.md §3, §5: two equal mistakes would agree with each other."""
    K, (_, tables) = group_size, case("right or wrong")
    scale = {row: sceptic.row_opinion(tables, row, K) for row in ("rloo", "rloo-eq36", "grpo-mean", "opo-left-out")}
    assert scale["rloo"]["relative_bias"] < 1e-13 and scale["opo-left-out"]["relative_bias"] < 1e-13
    assert scale["rloo-eq36"]["scale"] == pytest.approx((K - 2) / (K - 1), abs=1e-13)
    assert scale["grpo-mean"]["scale"] == pytest.approx((K - 1) / K, abs=1e-13)
    assert sceptic.row_opinion(tables, "pass-at-k", K)["scale"] == pytest.approx(1 / K, abs=1e-13)
    assert sceptic.row_opinion(tables, "grpo", K)["cosine"] == pytest.approx(1, abs=1e-13)  # one prompt, right or wrong


def test_what_theory_says_of_larger_groups():
    """REACH.md §1: the direction of the token mean gets better with K, that of the sequence mean does not."""
    _, tables = case("right or wrong")
    cosine = {
        row: [sceptic.row_opinion(tables, row, K)["cosine"] for K in (2, 4, 8)]
        for row in ("token-mean-loo", "length-normalised-loo")
    }
    sine = np.sqrt(1 - np.array(cosine["token-mean-loo"]) ** 2)
    assert np.all(sine[:-1] / sine[1:] > 1.5)
    assert np.ptp(cosine["length-normalised-loo"]) < 1e-12


@pytest.mark.parametrize("shape", [(3, 2, 0), (2, 3, None)])
def test_two_programs_that_know_nothing_of_each_other(shape):
    vocab_size, horizon, eos = shape
    content = instance_to_dict(random_instance(vocab_size, horizon, eos=eos, gamma=0.9, seed=2))
    q, tables = second_opinion.quantities(content, group_size=3), sceptic.read(content)
    for row, figures in second_opinion.first_edition(q).items():
        if row in ROWS:
            ours = sceptic.row_opinion(tables, row, 3)
            assert {key: ours[key] for key in figures} == pytest.approx(figures, rel=1e-11, abs=1e-11), row


@pytest.mark.slow
def test_the_command_gives_what_the_program_gives(tmp_path):
    """--instance FILE --group-size 8 --json, beside `python tests/second_opinion_groups.py` on the same file."""
    file, answer = tmp_path / "instance.json", tmp_path / "ledger.json"
    write_instance(case("right or wrong")[0], file)
    rows = ["rloo", "grpo", "dr-grpo", "token-mean-loo", "length-normalised-loo", "zero-std-filtered", "opo"]
    verify = ["-m", "llm_mdp.cli", "verify", *rows, "--instance", file, "--group-size", "8", "--json", answer]
    subprocess.run([sys.executable, *map(str, verify)], check=True, capture_output=True)
    program = [sys.executable, sceptic.__file__, str(file), "--group-size", "8", "--json"]
    theirs = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    ours = json.loads(answer.read_text(encoding="utf-8"))["claims"]
    for row in rows:
        for figure in ("relative_bias", "scale", "cosine", "trace_covariance", "tokens", "tokens_to_signal"):
            assert ours[row][figure] == pytest.approx(theirs[row][figure], rel=1e-11, abs=1e-12), (row, figure)
