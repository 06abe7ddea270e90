"""The estimators that `llm-mdp variance` compares: what is known of them holds on every instance, and the grid is what
was asked for."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import (
    GRPO,
    REINFORCE,
    RLOO,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, EveryNTokens
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Given, NeedsExactValues
from llm_mdp.estimators.theorems import Theorem2, WithBaseline
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import TabularValue
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.variance.benches import TreeBench, make_bench
from llm_mdp.variance.grid import DEFAULT, SHORT, Candidate, Grid, candidates
from llm_mdp.variance.setting import Setting
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.moments import exact_moments
from tests.strategies import generators, instances


def certificate(estimator: Estimator, bench: TreeBench) -> Certificate:
    p = bench.problem
    return exact_certificate(estimator, bench.enumeration, bench.target, p.magnitude("reward"))


# --- what is known of them --------------------------------------------------------------------------------------------

EVERY_KIND = Grid(
    group_sizes=(1, 2, 3), positions=(1, 2), branches=(1, 2), lams=(0.0, 0.5, 1.0), critic_errors=(0.0, 0.7)
)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(instances(max_vocab=3, max_horizon=3, max_prompts=2))
def test_what_is_known_of_every_kind_holds_on_every_instance(instance):
    bench = TreeBench(instance)
    assume(bench.problem.has_gradient())
    checked = set()
    for candidate in candidates(CATALOGUE, EVERY_KIND, instance.mdp.horizon):
        if candidate.proved is None:
            continue
        estimator = candidate.build(bench.given)
        if bench.enumeration.tree.n_leaves**estimator.group_size > 4_000:
            continue
        assert certificate(estimator, bench).verdict == candidate.proved, candidate.label
        checked.add(candidate.name)
    assert checked == {name for name, entry in CATALOGUE.items() if entry.proved(**entry.options)}


def test_every_default_candidate_has_the_verdict_that_is_known_of_it():
    """The whole grid on one small instance, K = 8 included; biased where nothing is known."""
    bench = make_bench(Setting(vocab_size=2, horizon=2, seed=5))
    assert isinstance(bench, TreeBench)
    found: dict[str, set[str]] = {}
    for candidate in candidates(DEFAULT, Grid(), 2):
        try:
            verdict = certificate(candidate.build(bench.given), bench).verdict
        except TooLarge:
            assert candidate.name == "trepo" and candidate.options["group_size"] == 8
            continue
        assert candidate.proved in (verdict, None), candidate.label
        found.setdefault(candidate.name, set()).add(verdict)
    assert set(found) == set(DEFAULT)
    assert found["grpo"] == found["trepo-paper"] == {"biased"} and found["ppo"] == {"unbiased", "biased"}
    assert all(
        found[name] == {"unbiased"} for name in ("reinforce", "reinforce-mean", "rloo", "remax", "vineppo", "trepo")
    )
    assert found["dr-grpo"] == {"proportional"}


def test_a_critic_is_trusted_if_it_is_exact_or_does_not_matter():
    for name, lam, error in product(("ppo", "ma-rlhf"), (0.0, 0.95, 1.0), (0.0, 0.5)):
        options = {"lam": lam, "critic_error": error} | ({"positions": 2} if name == "ma-rlhf" else {})
        assert Candidate(name, options).proved == ("unbiased" if lam == 1 or error == 0 else None)
    for name in ("grpo", "grpo-length"):
        assert Candidate(name, {"group_size": 4}).proved is None
    assert Candidate("file.py:Mine").proved is None


def test_values_that_were_given_for_nothing_are_marked():
    """Exactly those that cannot be made from a horizon alone."""
    for name, entry in CATALOGUE.items():
        try:
            entry.make(Given(4))
        except NeedsExactValues:
            assert Candidate(name).given_values, name
        else:
            assert not Candidate(name).given_values, name
    assert Candidate("ppo").given_values and not Candidate("trepo").given_values
    assert not Candidate("file.py:ppo").given_values


def test_candidates_are_what_they_are_called():
    """Where another name of the zoo, or a limit, says the same."""
    bench = make_bench(Setting(vocab_size=3, horizon=3, gamma=0.9, prompts=2, seed=3))
    assert isinstance(bench, TreeBench)

    def moments(name: str, **options):
        return exact_moments(Candidate(name, options).build(bench.given), bench.enumeration)

    def same(one, other) -> bool:
        return torch.allclose(one.mean, other.mean, rtol=1e-9, atol=1e-12) and one.trace_covariance == pytest.approx(
            other.trace_covariance
        )

    exact = {"critic_error": 0.0}
    assert same(moments("ppo", lam=0.0, **exact), moments("theorem-2"))
    assert same(moments("ppo", lam=1.0, **exact), moments("value-baseline"))
    assert same(moments("ma-rlhf", positions=3, lam=0.95, **exact), moments("ppo", lam=0.95, **exact))
    assert same(
        moments("trepo", group_size=1, positions=2, branches=3, lam=0.0), moments("vineppo", positions=2, branches=3)
    )
    assert same(moments("trepo", group_size=3, positions=1, branches=3, lam=0.0), moments("rloo", group_size=3))
    # The noise of branches falls with their number; without it they are exact values.
    noise = [
        moments("vineppo", positions=3, branches=number).trace_covariance - moments("theorem-2").trace_covariance
        for number in (1, 4)
    ]
    assert noise[0] == pytest.approx(4 * noise[1], rel=1e-6) and noise[1] > 0
    dr, grpo = (
        moments("dr-grpo", group_size=2),
        exact_moments(GRPO(group_size=2, scale_by_std=False), bench.enumeration),
    )
    torch.testing.assert_close(3 * dr.mean, grpo.mean, rtol=1e-9, atol=1e-12)
    printed = exact_moments(
        TRePO(boundary=AtSteps((0, 1)), pooled=True, interpolated=True, temperatures=(0.0, 0.5, 1.0)),
        bench.enumeration,
    )
    assert same(moments("trepo-paper", positions=2, branches=3), printed)


def test_the_mean_reward_as_a_baseline_saves_variance_where_most_responses_are_right():
    bench = make_bench(Setting(rewards="outcome", success=0.8, seed=2))
    plain, less_mean = (
        exact_moments(Candidate(name).build(bench.given), bench.enumeration) for name in ("reinforce", "reinforce-mean")
    )
    torch.testing.assert_close(plain.mean, less_mean.mean, rtol=1e-9, atol=1e-12)
    assert less_mean.trace_covariance < 0.6 * plain.trace_covariance


@pytest.mark.parametrize("horizon", range(1, 13))
def test_a_response_of_full_length_has_as_many_boundaries_as_the_label_says(horizon):
    mask = torch.ones(1, horizon, dtype=torch.bool)
    full = Rollouts(
        torch.zeros(1, 0, dtype=torch.int64), mask.long(), mask, mask.double(), torch.ones(1, dtype=torch.int64)
    )
    for positions in range(1, horizon + 1):
        for name, rest in (("vineppo", {"branches": 1}), ("trepo-paper", {"branches": 1})):
            estimator = Candidate(name, {"positions": positions, **rest}).build(Given(horizon))
            begins = estimator.boundary(full)[0].nonzero()[:, 0].tolist()
            assert (begins[0], len(begins)) == (0, positions)


# --- the grid ---------------------------------------------------------------------------------------------------------


def by_hand(name: str, grid: Grid) -> set[tuple]:
    """All combinations of the options a name has, as sets of pairs."""
    lams = {"ppo": (0.0, 0.95, 1.0), "ma-rlhf": (0.95,), "trepo": (0.0, 0.5)}
    has = {
        "rloo": "K",
        "grpo": "K",
        "dr-grpo": "K",
        "grpo-length": "K",
        "ppo": "λσ",
        "ma-rlhf": "Dλσ",
        "vineppo": "DM",
        "trepo": "KDMλ",
        "trepo-paper": "DM",
        "trepo-interpolated": "D",
        "trepo-interpolated-values": "D",
        "trepo-segment": "D",
    }.get(name, "K" if "group_size" in CATALOGUE[name].options else "")
    values = {"K": grid.group_sizes, "D": grid.positions, "M": grid.branches, "σ": grid.critic_errors}
    values["λ"] = grid.lams if grid.lams is not None else lams.get(name, ())
    least = {"K": 2} if CATALOGUE[name].compares else {}
    return {
        frozenset(zip(has, chosen)) for chosen in product(*(values[letter] for letter in has))
        if all(value >= least.get(letter, 0) for letter, value in zip(has, chosen))
    }  # fmt: skip


def whole(options: dict) -> frozenset:
    return frozenset((SHORT[name], value) for name, value in options.items())


ONE_OF_EACH = Grid(group_sizes=(2,), positions=(3,), branches=(5,), lams=(0.3,), critic_errors=(1.0,))


@pytest.mark.parametrize("grid", [Grid(), EVERY_KIND, ONE_OF_EACH])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_combination_once(name, grid):
    found = [whole(candidate.options) for candidate in candidates([name], grid, 8)]
    assert len(found) == len(set(found)) and set(found) == by_hand(name, grid)
    assert all(candidate.name == name for candidate in candidates([name], grid, 8))


def test_names_come_in_the_order_asked_for_and_once():
    found = candidates(["rloo", "reinforce", "rloo", "file.py:Mine"], Grid(group_sizes=(4, 2)), 8)
    assert [candidate.label for candidate in found] == ["rloo K=4", "rloo K=2", "reinforce", "Mine"]


def test_no_more_boundaries_than_tokens():
    found = candidates(["vineppo"], Grid(positions=(2, 4, 16), branches=(1,)), 3)
    assert [candidate.options["positions"] for candidate in found] == [2, 3]


def test_labels():
    options = {"group_size": 4, "positions": 2, "branches": 1, "lam": 0.5}
    assert Candidate("trepo", options).label == "trepo K=4 D=2 M=1 λ=0.5"
    assert Candidate("ppo", {"lam": 1.0, "critic_error": 0.25}).label == "ppo λ=1 σ=0.25"
    assert (Candidate("reinforce").label, Candidate("my/file.py:MyOwn").label) == ("reinforce", "MyOwn")
    labels = [candidate.label for candidate in candidates(CATALOGUE, EVERY_KIND, 8)]
    assert len(set(labels)) == len(labels)


# --- own estimators ---------------------------------------------------------------------------------------------------


def test_a_class_in_a_file_is_loaded_by_whoever_knows_how():
    (candidate,) = candidates(["my.py:Mine"], Grid(), 4)
    assert (candidate.name, candidate.options, candidate.proved) == ("my.py:Mine", {}, None)
    asked = []

    def load(name: str) -> Estimator:
        asked.append(name)
        return REINFORCE(baseline=7.0)

    assert candidate.build(Given(4), load) == REINFORCE(baseline=7.0) and asked == ["my.py:Mine"]
    assert Candidate("rloo", {"group_size": 2}).build(Given(4), load) == RLOO(group_size=2) and len(asked) == 1


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_sizes": (4, 0)}, "--group-sizes has 0; each must be at least 1"),
        ({"positions": (0,)}, "--positions has 0; each must be at least 1"),
        ({"branches": (-1,)}, "--branches has -1; each must be at least 1"),
        ({"lams": (0.5, 1.5)}, r"--lams has 1\.5; each must be in \[0, 1\]"),
        ({"lams": (-0.1,)}, r"--lams has -0\.1; each must be in \[0, 1\]"),
        ({"critic_errors": (-0.5,)}, r"--critic-errors has -0\.5; each must be at least 0"),
        ({"critic_errors": (float("nan"),)}, "--critic-errors has nan; each must be at least 0"),
        ({"group_sizes": ()}, "--group-sizes is empty; give at least one value"),
        ({"lams": ()}, "--lams is empty; give at least one value"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Grid(**options)


def test_names_that_nobody_knows():
    with pytest.raises(ValueError, match=r"there is no estimator 'rlo'; did you mean rloo\?"):
        candidates(["rlo"], Grid(), 4)
    with pytest.raises(
        ValueError, match=r"there is no estimator 'zzz'; choose among reinforce, .*, or write FILE\.py:CLASS"
    ):
        candidates(["zzz"], Grid(), 4)
    with pytest.raises(ValueError, match=r"there is no estimator 'my\.py:Mine'; choose among reinforce, "):
        Candidate("my.py:Mine").build(Given(4))


def test_a_name_with_no_group_size_it_can_have_is_not_passed_over_in_silence():
    """RLOO in groups of one."""
    with pytest.raises(ValueError, match="rloo"):
        candidates(["rloo"], Grid(group_sizes=(1,)), 4)


class OnlyValues(Given):
    def critic(self, error: float = 0.0):
        return lambda prompt, tokens, mask: mask.double()


def test_values_that_nobody_knows():
    for name, options in (
        ("ppo", {"lam": 1.0, "critic_error": 0.0}),
        ("theorem-2", {}),
        ("value-baseline", {}),
        ("theorem-1", {}),
    ):
        with pytest.raises(
            NeedsExactValues, match=r"the exact value U.* is known on small token MDPs only; leave out the"
        ):
            Candidate(name, options).build(Given(4))
    with pytest.raises(NeedsExactValues, match="the optimal baseline is known on small token MDPs only; leave out the"):
        Candidate("theorem-2-optimal").build(OnlyValues(4))


# --- the mean of the others as the value of the prompt ----------------------------------------------------------------

STOPPING = (EveryNTokens(1), EveryNTokens(2), AfterTokens((1,)), AtSteps((1,)), AtSteps(()))


@settings(deadline=None, max_examples=30)
@given(
    instances(), st.sampled_from([VinePPO, TRePO]), st.integers(2, 4), st.sampled_from([0.0, 0.5, 1.0]), generators()
)
def test_without_later_boundaries_it_is_leave_one_out(instance, kind, group_size, lam, generator):
    estimator = kind(group_size=group_size, boundary=AtSteps(()), lam=lam, group_baseline=True)
    evidence = estimator.collect(PolicySampler(instance.policy, instance.mdp, generator, 3))
    mask = evidence.rollouts.mask
    expected = RLOO(group_size=group_size).advantages(evidence).expand(mask.shape)
    torch.testing.assert_close(estimator.advantages(evidence)[mask], expected[mask], rtol=1e-12, atol=1e-12)
    assert len(evidence.branches.row) == 0


@settings(deadline=None, max_examples=25)
@given(
    instances(max_vocab=3, max_horizon=3),
    st.sampled_from([VinePPO, TRePO]),
    st.sampled_from(STOPPING),
    st.floats(0, 1),
    st.integers(1, 2),
)
def test_the_mean_of_the_others_is_unbiased_wherever_segments_begin(instance, kind, boundary, lam, samples):
    bench = TreeBench(instance)
    assume(bench.problem.has_gradient())
    estimator = kind(group_size=2, boundary=boundary, temperatures=(1.0,) * samples, lam=lam, group_baseline=True)
    assert certificate(estimator, bench).verdict == "unbiased"


def test_no_branches_at_the_prompt_where_the_others_are_its_value():
    instance = random_instance(3, 4, seed=2)
    drawn = [
        TRePO(group_size=2, temperatures=(1.0,), group_baseline=group).collect(
            PolicySampler(instance.policy, instance.mdp, torch.Generator().manual_seed(0), 50)
        )
        for group in (False, True)
    ]
    without, with_it = (evidence.branches.step for evidence in drawn)
    assert int((without == 0).sum()) == 100 and int((with_it == 0).sum()) == 0
    assert int((without > 0).sum()) == len(with_it) > 50


def test_there_must_be_others():
    for kind in (VinePPO, TRePO):
        with pytest.raises(
            ValueError, match=r"group_size is 1, but group_baseline=True needs other responses.*; make it 2 or more"
        ):
            kind(group_baseline=True)
    for other in ({"pooled": True}, {"critic": lambda *response: None}):
        with pytest.raises(
            ValueError,
            match="group_baseline=True takes the place of draws at the prompt; leave pooled= and critic= out",
        ):
            TRePO(group_size=2, group_baseline=True, **other)


# --- baselines of the state -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(instances(kinds=("table", "n-gram"), max_horizon=3), generators())
def test_any_baseline_of_the_state_is_unbiased(instance, generator):
    bench = TreeBench(instance)
    assume(bench.problem.has_gradient())
    baseline = TabularValue.random(instance.mdp.tree, instance.mdp.prompt_tokens, generator, scale=3.0)
    estimator = WithBaseline(critic=bench.problem.exact_u, baseline=baseline)
    assert certificate(estimator, bench).verdict == "unbiased"


def perturbed(baseline: TabularValue, level: int, prompt: int, place: int, by: float) -> TabularValue:
    levels = [each.clone() for each in baseline.levels]
    levels[level][prompt, place] += by
    return TabularValue(baseline.tree, baseline.prompts, levels)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_baseline_of_any_state_has_less_variance_than_the_optimal_one(seed):
    """On a table, where states share no parameters."""
    instance = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=seed)
    bench = TreeBench(instance)
    optimal = bench.given.optimal_baseline

    def trace(baseline) -> float:
        return exact_moments(
            WithBaseline(critic=bench.problem.exact_u, baseline=baseline), bench.enumeration
        ).trace_covariance

    least = trace(optimal)
    assert least < exact_moments(Theorem2(critic=bench.problem.exact_u), bench.enumeration).trace_covariance
    for level, values in enumerate(optimal.levels):
        for prompt, place in product(range(values.shape[0]), range(values.shape[1])):
            for by in (-0.2, 0.2):
                assert trace(perturbed(optimal, level, prompt, place, by)) > least
