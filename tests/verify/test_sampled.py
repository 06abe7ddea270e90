"""Sampled certificates against exact ones: what they estimate, how often their intervals hold, what they decide, and
that they decide nothing else."""

import math
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from llm_mdp.cli.verify import VerifyArguments, find_instances
from llm_mdp.estimators.algorithms import PPO, REINFORCE, RLOO, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.worlds import WorldSampler
from llm_mdp.mdp.hidden_rewards import NgramReward, SparseReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify import draws
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.intervals import Radius
from llm_mdp.verify.ledger import holds
from llm_mdp.verify.moments import covariance
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import judge_means, policy_certificate, sampled_certificate
from llm_mdp.verify.weight_sums import WholeResponses

BY_ID = {claim.id: claim for claim in CLAIMS}

KINDS = {
    "one response": ("reinforce", "gae-wrong-0", "kl-k2-loss", "temperature-mismatch"),
    "greedy branches": ("remax", "trepo-greedy-values", "trepo-greedy-baseline"),
    "groups": ("rloo", "grpo-mean", "grpo-length", "token-mean", "prime"),
    "branches": ("trepo", "trepo-eq31", "vineppo"),
    "filtered": ("zero-std-filtered",),
    "second epoch": ("ppo-second-epoch",),
}


@cache
def problem(n_prompts: int = 2) -> Problem:
    return Problem(random_instance(3, 3, gamma=0.9, n_prompts=n_prompts, seed=3))


@cache
def exact(id: str, n_prompts: int = 2) -> Certificate:
    p = problem(n_prompts)
    return exact_certificate(BY_ID[id].build(p), p.enumeration, p.target(BY_ID[id].target))


def draw(id: str, responses: int, n_prompts: int = 2, **options) -> Certificate:
    p, claim = problem(n_prompts), BY_ID[id]
    return sampled_certificate(claim.build(p), p.enumeration, p.target(claim.target), responses, **options)


@cache
def quick() -> Problem:
    """What `verify --quick` checks."""
    return Problem(find_instances(VerifyArguments(quick=True))[0])


def look(estimator: Estimator, sampler: WorldSampler) -> draws._Worlds:
    whole = WholeResponses(estimator, sampler.enumeration)
    return draws._Worlds.of(draws.look(whole, sampler), sampler.enumeration)


LEDGER = 1 - 0.01 / 110
"""What each of 110 certificates needs for all to hold together with 99 %."""


@cache
def rare(reward: float = 1.0, probability: float = 4.6e-5, horizon: int = 6) -> Problem:
    """One response alone is rewarded, and has about this probability."""
    instance = random_instance(3, horizon, seed=0)
    responses = Problem(instance).enumeration
    leaf = int((responses.probability[0].log() - math.log(probability)).abs().argmin())
    tokens = tuple(token for token in responses.tokens[leaf].tolist() if token >= 0)
    return Problem(replace(instance, mdp=replace(instance.mdp, token_reward=SparseReward({tokens: reward}))))


def intervals(certificate: Certificate) -> tuple[tuple[float, float], ...]:
    found = certificate.bias_interval, certificate.scale_interval, certificate.cosine_interval
    assert None not in found
    return found  # pyright: ignore[reportReturnType]


def covered(certificate: Certificate, truth: Certificate) -> tuple[bool, ...]:
    """Do the intervals contain the exact relative bias, scale and cosine?"""
    figures = truth.relative_bias, truth.scale, truth.cosine
    return tuple(low - 1e-9 <= figure <= high + 1e-9 for (low, high), figure in zip(intervals(certificate), figures))


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [id for ids in KINDS.values() for id in ids])
def test_the_intervals_contain_the_exact_figures(id):
    """At 99.99 %, so that this one draw may be asked to hold."""
    found, truth = draw(id, 60_000, confidence=0.9999), exact(id)
    assert found.samples == pytest.approx(60_000, rel=0.02) and found.confidence == 0.9999
    assert covered(found, truth) == (True, True, True)
    assert found.scale_interval[1] - found.scale_interval[0] < 0.5
    assert found.trace_covariance == pytest.approx(truth.trace_covariance, rel=0.15)


@pytest.mark.parametrize("id", ["reinforce", "rloo", "trepo", "zero-std-filtered", "ppo-second-epoch"])
@pytest.mark.parametrize("responses", [600, 60_000])
def test_estimates_are_inside_their_intervals(id, responses):
    found = draw(id, responses)
    for (low, high), figure in zip(intervals(found), (found.relative_bias, found.scale, found.cosine)):
        assert low < high and low - 1e-12 <= figure <= high + 1e-12
    assert found.bound == found.bias_interval[1]


@pytest.mark.parametrize("id", ["reinforce", "remax", "rto", "gae-exact-0.95"])
def test_enough_responses_confirm_unbiasedness(id):
    found = draw(id, 10**7)
    assert found.verdict == "unbiased" and found.bound < 0.01 and found.reason is found.needed is None
    said = float(found.statement.removeprefix("relative bias below ").split()[0])
    assert found.bound <= said < 1.1 * found.bound
    assert found.statement.endswith(" with 99 % confidence (10,000,000 responses)")


@pytest.mark.parametrize("id", ["gae-wrong-0", "kl-k3-loss", "length-normalised", "masked-truncated"])
def test_enough_responses_refute_it(id):
    found = draw(id, 10**6)
    assert found.verdict == "biased" and found.relative_bias == pytest.approx(exact(id).relative_bias, rel=0.1)
    assert found.bias_interval[0] > 0.05


def test_a_scaled_gradient_is_recognised():
    """At T = 3 without an end token RM/len is RM/3."""
    p = Problem(random_instance(3, 3, eos=None, seed=2))
    found = sampled_certificate(REINFORCE(reduction="sequence_mean"), p.enumeration, p.target("reward"), 10**7)
    assert found.verdict == "proportional" and found.scale == pytest.approx(1 / 3, rel=0.01)
    assert found.statement.startswith("scale 0.33 to 0.34, cosine above 0.999")


def test_a_wrong_target_is_refuted():
    p = problem()
    found = sampled_certificate(REINFORCE(), p.enumeration, 1.1 * p.target("reward"), 10**7)
    assert found.verdict == "proportional" and found.scale == pytest.approx(1 / 1.1, rel=0.01)


def test_a_target_of_zero_has_no_relative_bias():
    p = problem()
    zero = 0 * p.target("reward")
    found = sampled_certificate(REINFORCE(), p.enumeration, zero, 10**6)
    assert found.verdict == "undecided" and found.relative_bias is found.bound is found.needed is None
    assert found.statement.startswith("undecided: rounding: the true gradient, 0.0e+00, is below what float64 resolves")


def test_the_statement_of_a_biased_estimator_gives_its_intervals():
    found = draw("length-normalised", 10**6)
    (low, high), _, (least, most) = intervals(found)
    words = found.statement.split()
    assert float(words[2]) <= low and high <= float(words[4].rstrip(",")) < 1.1 * high
    assert float(words[6]) <= least and most <= float(words[8])


# --- what is decided --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.group == "theorems"], ids=lambda claim: claim.id)
def test_a_million_responses_settle_every_theorem_at_the_confidence_of_the_whole_ledger(claim):
    p = quick()
    if claim.figure is not None or claim.expected(p) != "unbiased":
        pytest.skip("not a claim of unbiasedness here")
    found = sampled_certificate(claim.build(p), p.enumeration, p.target(claim.target), 10**6, confidence=LEDGER, seed=1)
    assert found.verdict == "unbiased" and found.bound <= 0.03


@pytest.mark.parametrize("id", ["grpo-length", "kl-k2-loss"])
@pytest.mark.parametrize("seed", range(5))
def test_a_clear_bias_is_found_in_30_000_responses(id, seed):
    p, claim = quick(), BY_ID[id]
    found = sampled_certificate(
        claim.build(p), p.enumeration, p.target(claim.target), 30_000, confidence=LEDGER, seed=seed
    )
    assert found.verdict == "biased"


@pytest.mark.parametrize("id", ["rloo-eq36", "grpo-mean", "dr-grpo"])
@pytest.mark.parametrize("responses", [2_000, 30_000])
def test_what_is_proportional_is_never_called_biased(id, responses):
    p, claim = quick(), BY_ID[id]
    for seed in range(5):
        found = sampled_certificate(
            claim.build(p), p.enumeration, p.target("reward"), responses, confidence=0.9, seed=seed
        )
        assert found.verdict == "undecided" and holds(found, "proportional") is None
        if found.bias_interval[0] > 0:
            assert found.reason == "not unbiased; proportional not excluded"


@pytest.mark.parametrize("id", ["reinforce", "rloo-eq36", "grpo-mean"])
def test_the_number_of_responses_that_is_asked_for_decides(id):
    p, claim = quick(), BY_ID[id]
    estimator, target = claim.build(p), p.target("reward")
    first = sampled_certificate(estimator, p.enumeration, target, 60_000, confidence=0.9)
    assert first.verdict == "undecided" and first.needed > 60_000
    assert f"about {first.needed:,} responses would settle it" in first.statement
    then = sampled_certificate(estimator, p.enumeration, target, first.needed, confidence=0.9, seed=1)
    assert then.verdict == claim.expected(p)
    few = sampled_certificate(estimator, p.enumeration, target, first.needed // 6, confidence=0.9, seed=1)
    assert few.verdict == "undecided"


def test_no_gradient_at_all_is_not_told_from_a_tiny_one():
    found = draw("kl-k1-loss", 10**6)
    assert found.verdict == "undecided" and found.needed is None and holds(found, "biased") is None
    assert found.reason == "not unbiased; E g cannot be told from zero"
    assert found.scale_interval[0] < 0 < found.scale_interval[1] and found.cosine_interval == (-1, 1)


def test_a_gradient_against_the_target_is_biased_whatever_else_it_is():
    """Minus the true gradient is parallel to it, and no positive scale makes it right."""
    p = problem()
    found = sampled_certificate(REINFORCE(), p.enumeration, -2 * p.target("reward"), 10**6)
    assert found.verdict == "biased" and found.scale_interval[1] < 0


@pytest.mark.parametrize(
    ("verdict", "expected", "held"),
    [
        ("unbiased", "unbiased", True), ("unbiased", "proportional", None), ("unbiased", "biased", None),
        ("proportional", "unbiased", False), ("proportional", "proportional", True), ("proportional", "biased", None),
        ("biased", "unbiased", False), ("biased", "proportional", False), ("biased", "biased", True),
        ("undecided", "unbiased", None), ("undecided", "proportional", None), ("undecided", "biased", None),
        ("biased", "report", True),
    ],
)  # fmt: skip
def test_a_sampled_verdict_contradicts_only_what_it_excludes(verdict, expected, held):
    assert holds(Certificate(verdict, 0.1, 1.0, 1.0, 1.0, samples=1_000), expected) is held


# --- the intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "responses"), [("reinforce", 1_000), ("gae-wrong-0", 1_000), ("kl-k3-loss", 1_000), ("rloo", 600)]
)
def test_the_intervals_hold_at_least_as_often_as_they_say(id, responses):
    """At 90 %; ten failures of a hundred would be expected of intervals that are exact."""
    truth = exact(id, 1)
    drawn = [draw(id, responses, 1, seed=seed, confidence=0.9) for seed in range(20 if id == "rloo" else 100)]
    assert sum(not all(covered(found, truth)) for found in drawn) <= 5


def test_the_intervals_are_no_wider_than_the_noise_asks_for():
    """√(2 ln 600) = 3.6 standard errors to each side at 99 %, the errors by enumeration. The baseline takes little off
    the weights of theorem-2."""
    p, found = problem(1), draw("theorem-2", 10**7, 1)
    target = p.target("reward")
    variance = (
        float(target @ covariance(BY_ID["theorem-2"].build(p), p.enumeration) @ target) / float(target.norm()) ** 4
    )
    expected = 2 * math.sqrt(2 * math.log(600) * variance / 10**7)
    low, high = found.scale_interval
    assert 0.8 * expected < high - low < 1.1 * expected


@pytest.mark.parametrize("id", ["reinforce", "rloo"])
def test_the_intervals_shrink_with_the_square_root_of_the_responses(id):
    """To a fifth with 25 times the responses, and a little more while the range still matters."""
    widths = [high - low for low, high in (draw(id, responses).scale_interval for responses in (60_000, 1_500_000))]
    assert 5 < widths[0] / widths[1] < 7


def test_more_confidence_costs_a_wider_bound():
    bounds = [draw("rloo", 6_000, confidence=confidence).bound for confidence in (0.9, 0.99, 0.9999)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1]


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_figures_do_not_depend_on_the_unit_of_rewards(factor):
    one = sampled_certificate(RLOO(group_size=3), rare().enumeration, rare().target("reward"), 30_000)
    p = rare(factor)
    other = sampled_certificate(RLOO(group_size=3), p.enumeration, p.target("reward"), 30_000)
    assert other.verdict == one.verdict and other.reason == one.reason
    for mine, yours in zip(intervals(one), intervals(other)):
        assert mine == pytest.approx(yours, rel=1e-6)


@pytest.mark.parametrize(("id", "gain"), [("gae-wrong-1", 0.7), ("vineppo", 0.95)])
def test_a_baseline_makes_the_intervals_narrower_and_changes_nothing_else(id, gain, monkeypatch):
    truth, quiet = exact(id), draw(id, 100_000)
    monkeypatch.setattr(draws, "_baseline", lambda weights, own, e: torch.zeros(e.n_edges, dtype=torch.float64))
    loud = draw(id, 100_000)
    assert covered(quiet, truth) == covered(loud, truth) == (True, True, True)
    (low, high), (least, most) = quiet.scale_interval, loud.scale_interval
    assert high - low < gain * (most - least)
    assert quiet.trace_covariance == pytest.approx(loud.trace_covariance, rel=0.02)


def test_no_baseline_is_taken_off_where_another_temperature_draws():
    """It would not have expectation zero: with a million responses the estimate would be off by hundreds of errors."""
    found, truth = draw("temperature-mismatch", 10**6), exact("temperature-mismatch")
    assert found.relative_bias == pytest.approx(truth.relative_bias, rel=0.01)


# --- rare rewards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [REINFORCE(), RLOO(group_size=3)], ids=["reinforce", "rloo"])
@pytest.mark.parametrize("responses", [2_000, 30_000])
def test_rare_successes_leave_room_for_what_was_not_seen(estimator, responses):
    """In 2,000 responses a success is seen in one seed of eleven."""
    p = rare()
    assert p.gradient[0] == pytest.approx(4.6e-5, rel=0.1)
    truth = exact_certificate(REINFORCE(), p.enumeration, p.target("reward"))
    for seed in range(5):
        found = sampled_certificate(estimator, p.enumeration, p.target("reward"), responses, seed=seed)
        assert found.verdict == "undecided" and covered(found, truth) == (True, True, True)
        assert found.reason.startswith("too few ") and " had a gradient: " in found.reason
        assert holds(found, "unbiased") is None


def test_what_was_not_seen_is_allowed_for_however_little_was_drawn():
    """Of 200 responses; what the sample shows alone has a spread close to zero."""
    p = rare()
    truth = exact_certificate(REINFORCE(), p.enumeration, p.target("reward"))
    for seed in range(20):
        found = sampled_certificate(REINFORCE(), p.enumeration, p.target("reward"), 200, seed=seed)
        assert covered(found, truth) == (True, True, True) and found.bound > 1_000


def test_groups_that_are_left_out_are_counted():
    """A success in 5 % of the responses, so that one group of seven is kept."""
    p = rare(probability=0.05, horizon=3)
    estimator, target = BY_ID["zero-std-filtered"].build(p), p.target("reward")
    truth = exact_certificate(estimator, p.enumeration, target)
    assert truth.scale > 5
    for seed in range(3):
        found = sampled_certificate(estimator, p.enumeration, target, 200_000, seed=seed)
        assert covered(found, truth) == (True, True, True)
        assert found.scale == pytest.approx(truth.scale, rel=0.05)
        low, high = found.scale_interval
        assert 0.05 < (high - low) / truth.scale < 0.4
        assert found.trace_covariance == pytest.approx(truth.trace_covariance, rel=0.1)


def test_how_many_successes_were_seen_is_said():
    p = rare()
    found = sampled_certificate(REINFORCE(), p.enumeration, p.target("reward"), 200_000)
    seen = int(found.reason.removeprefix("too few responses had a gradient: ").split(" of ")[0])
    assert 0 < seen < 30 and found.reason.endswith(" of 200,000")
    assert found.needed == pytest.approx(200_000 * 30 / seen, rel=0.1)


def test_enough_successes_decide():
    p = rare()
    found = sampled_certificate(REINFORCE(), p.enumeration, p.target("reward"), 10**9)
    assert found.verdict == "unbiased" and found.bound < 0.05


def test_a_radius_without_the_range_fails_where_rewards_are_rare(monkeypatch):
    """What the intervals would be if the longest gradient were the longest that was seen: of width zero, and wrong."""
    p = rare()
    truth = exact_certificate(REINFORCE(), p.enumeration, p.target("reward"))
    monkeypatch.setattr("llm_mdp.verify.sampled.bernstein", lambda squares, longest, x: Radius(squares.mean**0.5))
    found = sampled_certificate(REINFORCE(), p.enumeration, p.target("reward"), 2_000)
    assert not all(covered(found, truth))


@pytest.mark.parametrize("id", ["rloo", "grpo", "grpo-length", "token-mean", "prime", "opo", "zero-std-filtered"])
@pytest.mark.parametrize("members", [2, 5])
def test_the_search_finds_the_longest_gradient_of_all_groups(id, members):
    """The longest at K = 5 has about half of its responses at each end of the rewards."""
    p = Problem(problem(1).instance, members)
    estimator, view = BY_ID[id].build(p), draws._View(p.enumeration, p.target("reward"))
    nothing = torch.zeros(p.enumeration.n_edges, dtype=torch.float64)
    longest = 0.0
    for groups in all_groups(p.enumeration, members, ordered=False):
        worlds = look(estimator, draws._Corners(p.enumeration, groups))
        along = (worlds.weights * view.edge_along[worlds.edge]).sum(-1)
        parts = view.z_squares(along, view.squares([worlds.weights], worlds.edge)[0], worlds.kept)
        longest = max(longest, float((parts[0] + parts[1]).max()) ** 0.5)
    assert draws._longest(WholeResponses(estimator, p.enumeration), view, nothing) == pytest.approx(longest, rel=1e-9)


def test_the_search_allows_for_branches_at_both_ends_of_the_rewards():
    """No draw of a million has a longer gradient."""
    p = problem(1)
    view = draws._View(p.enumeration, p.target("reward"))
    nothing = torch.zeros(p.enumeration.n_edges, dtype=torch.float64)
    searched = draws._longest(WholeResponses(TRePO(), p.enumeration), view, nothing)
    generator = torch.Generator().manual_seed(0)
    sampler = draws.TreeSampler(p.enumeration, 100_000, generator)
    worlds = look(TRePO(), sampler)
    drawn = float(view.squares([worlds.weights], worlds.edge)[0].max()) ** 0.5
    assert drawn < searched < 3 * drawn


# --- reproducible, in little memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [ids[0] for ids in KINDS.values()])
def test_same_seed_same_result_bit_for_bit(id):
    torch.manual_seed(1)
    one = draw(id, 4_000, seed=7)
    torch.manual_seed(2)
    assert draw(id, 4_000, seed=7) == one
    assert draw(id, 4_000, seed=8) != one


def test_verification_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    draw("trepo", 4_000)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_come_in_chunks(monkeypatch):
    """No more than CHUNK groups at a time, whatever the number of responses; the draws add up."""
    worlds: list[int] = []
    original = draws.TreeSampler.__init__

    def spy(self, enumeration, count, *rest):
        worlds.append(count)
        original(self, enumeration, count, *rest)

    monkeypatch.setattr(draws.TreeSampler, "__init__", spy)
    monkeypatch.setattr(draws, "CHUNK", 300)
    found = draw("rloo", 3 * 30_000)
    chunks = [count for count in worlds if count > 4]
    assert max(chunks) == chunks[0] == 300, "the baseline's"
    assert sum(chunks[1:]) == 30_000 == found.samples // 3


def test_ten_million_single_responses_take_no_time_and_no_memory():
    assert draw("reinforce", 10**7).samples == 10**7


TEN_MILLION = """
import resource, torch
torch.set_num_threads(1)
from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate
p = Problem(random_instance(3, 3))
def peak(responses):
    found = sampled_certificate(RLOO(group_size=5), p.enumeration, p.target("reward"), responses)
    assert found.samples == responses
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak(10**5), peak(10**7))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="needs getrusage")
def test_ten_million_responses_in_groups_need_no_more_memory_than_a_chunk():
    run = subprocess.run([sys.executable, "-c", TEN_MILLION], capture_output=True, text=True, check=True)
    few, many = (int(kilobytes) for kilobytes in run.stdout.split())
    assert many - few < 200_000, "KiB on top of what 10⁵ responses need"


@pytest.mark.parametrize(("id", "least"), [("reinforce", 100), ("rloo", 300)])
def test_too_few_responses_are_an_error(id, least):
    assert draw(id, least).samples == least
    with pytest.raises(ValueError, match=rf"--sampled {least - 1} is too few; .* need at least {least}"):
        draw(id, least - 1)


# --- token by token, where there is no tree ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Long:
    """A chain of three tokens and 200 steps: 3²⁰⁰ responses."""

    mdp: TokenMDP
    policy: NgramPolicy
    target: torch.Tensor


@cache
def long_mdp() -> Long:
    generator = torch.Generator().manual_seed(0)
    prompts = (Prompt((1,), 0.25), Prompt((2,), 0.75))
    mdp = TokenMDP(3, 0, 200, NgramReward.random(3, 1, generator), prompts=prompts)
    policy = NgramPolicy.random(3, 1, generator)
    with torch.no_grad():
        policy.table[..., 0] -= 3
    return Long(mdp, policy, ngram_gradient(policy, mdp)[1].flatten())


def no_value(prompt, tokens, mask):
    return torch.zeros(*tokens.shape[:-1], tokens.shape[-1] + 1, dtype=torch.float64)


@pytest.mark.slow
def test_a_policy_on_a_horizon_of_200_is_certified_against_the_chain():
    case = long_mdp()
    found = policy_certificate(RLOO(group_size=8), case.policy, case.mdp, case.target, 4_096, seed=1)
    assert found.samples == 4_096
    assert found.bias_interval[0] == 0 and found.bound < 0.6 and found.verdict == "undecided"
    assert found.reason.startswith("unbiased is not excluded") and found.needed > 4_096
    assert found.cosine > 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "verdict", "reason"),
    [
        pytest.param(
            REINFORCE(reduction="sequence_mean"),
            "undecided",
            "not unbiased; E g cannot be told from zero",
            id="length-normalised",
        ),
        pytest.param(
            RLOO(group_size=2, paper=True),
            "undecided",
            "not unbiased; E g cannot be told from zero",
            id="rloo-eq36 at K = 2",
        ),
        pytest.param(PPO(critic=no_value, lam=0.0), "biased", None, id="gae-wrong-0"),
    ],
)
def test_biased_practices_are_not_unbiased_on_a_horizon_of_200(estimator, verdict, reason):
    case = long_mdp()
    found = policy_certificate(estimator, case.policy, case.mdp, case.target, 2_048, seed=1)
    assert found.bias_interval[0] > 0.05 and (found.verdict, found.reason) == (verdict, reason)


def test_policy_certificate_agrees_with_the_tree_where_there_is_one():
    p = problem()
    found = policy_certificate(
        RLOO(group_size=3), p.instance.policy, p.instance.mdp, p.target("reward"), 60_000, batches=100
    )
    truth = exact("rloo")
    assert found.bias_interval[0] == 0 and found.bound < 0.3
    assert found.trace_covariance == pytest.approx(truth.trace_covariance, rel=0.15)
    again = policy_certificate(
        RLOO(group_size=3), p.instance.policy, p.instance.mdp, p.target("reward"), 60_000, batches=100
    )
    assert again == found
    assert math.isfinite(found.bound)


def test_nothing_is_decided_by_batches_that_saw_no_reward():
    """Of 64 batches two had a gradient: it could be anything."""
    means = torch.zeros(64, 3, dtype=torch.float64)
    means[:2, 0] = 1.0
    found = judge_means(means, torch.tensor([0.03, 0.0, 0.0], dtype=torch.float64), 10, 640, 0.99)
    assert found.verdict == "undecided" and found.reason == "too few batches had a gradient: 2 of 64"
    assert found.needed == 9_600


def test_the_intervals_of_batch_means_contain_the_truth_as_often_as_they_say():
    """Normal means at 90 %: at most 40 of 200 failures, 4.7 standard deviations above what is expected."""
    generator = torch.Generator().manual_seed(0)
    target, truth = (torch.tensor(vector, dtype=torch.float64) for vector in ([2.0, 0, 0, 0], [1.0, 0, 0.5, 0]))
    misses = 0
    for _ in range(200):
        means = truth + torch.randn(64, 4, generator=generator, dtype=torch.float64)
        found = judge_means(means, target, 1, 64, 0.9)
        exact = Certificate("biased", math.hypot(0.5, 0.25), 0.5, 1 / math.hypot(1, 0.5), 1.0)
        misses += not all(covered(found, exact))
    assert 0 < misses <= 40


def test_a_bias_of_four_standard_errors_is_not_called_unbiased():
    """Of 1.2 % across the target. The intervals of half a million responses exclude neither zero nor 2.6 %."""
    p = problem()
    target = p.target("reward")
    across = torch.randn(len(target), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    across -= (across @ target) / (target @ target) * target
    moved = target + 0.012 * across * target.norm() / across.norm()
    for seed in range(3):
        found = sampled_certificate(PPO(critic=p.exact_u, lam=0.0), p.enumeration, moved, 500_000, seed=seed)
        assert found.bias_interval is not None and found.bias_interval[0] == 0 and found.bias_interval[1] < 0.03
        assert found.verdict == "undecided" and found.needed is not None and found.needed > 500_000
