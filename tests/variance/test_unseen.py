"""What draws have not shown: when nothing is said, and intervals that hold for rare and large estimates."""

import math
from dataclasses import replace

import pytest
import torch

from llm_mdp.estimators.algorithms import GRPO, RLOO
from llm_mdp.variance.benches import TreeBench, make_bench
from llm_mdp.variance.measurement import FIGURES, Measurement, exact_measurement
from llm_mdp.variance.sampled import Estimates, sampled_measurement, tree_estimates
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.unseen import ENOUGH, FURTHER, exponential_weights, seen_in
from llm_mdp.verify.moments import exact_moments


def rare(success: float) -> TreeBench:
    bench = make_bench(Setting(rewards="outcome", success=success, seed=2))
    assert isinstance(bench, TreeBench)
    return bench


def gradients(*lengths: float, zeros: int = 0) -> torch.Tensor:
    """Estimates of these lengths, as far from one another as can be, and some that are zero."""
    return torch.cat([torch.diag(torch.tensor(lengths)), torch.zeros(zeros, len(lengths))]).double()


# --- too few ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("successes", [0, 1, 5, ENOUGH - 1])
def test_few_estimates_with_a_gradient_are_too_few(successes):
    found = seen_in(gradients(*[1.0] * max(1, successes), zeros=300 - successes)[-300:] * (successes > 0), None)
    few = found.too_few
    assert few is not None and (few.draws, few.successes) == (300, successes)
    assert few.words.startswith(f"too few successes: {successes} of 300 estimates have a gradient; ")
    if successes <= 1:
        assert few.at_least and few.words.endswith(f"at least {FURTHER * 300:,} are needed")
    else:
        assert few.needed == pytest.approx(300 * ENOUGH / successes, rel=0.2)


def test_a_noise_that_rests_on_few_is_too_few():
    """Four estimates a hundred times as long as 296 others make all of the noise."""
    few = seen_in(gradients(*[1.0] * 296, *[100.0] * 4), None).too_few
    assert few is not None and few.successes == 300 and few.effective == pytest.approx(4, abs=0.5)
    assert few.words == (
        "too few successes: the noise of 300 estimates rests on about 4 of them; about 2,600 are needed"
    )
    even = seen_in(gradients(*[1.0] * 300), None)
    assert even.too_few is None and even.effective == pytest.approx(300, rel=0.05)


def test_what_is_possible_and_was_not_drawn_counts():
    """300 like ones say nothing where one a thousand times as large is possible."""
    draws = gradients(*[1.0] * 300)
    few = seen_in(draws, largest=1e6).too_few
    assert few is not None and few.at_least and "larger" in few.words
    assert seen_in(draws, largest=4.0).too_few is None


def test_a_mean_far_from_the_truth_says_that_something_is_missing():
    draws = gradients(*[1.0] * 300)
    near, far = draws.mean(0), draws.mean(0) + 1.0
    assert seen_in(draws, None, near).too_few is None
    few = seen_in(draws, None, far).too_few
    assert few is not None and "farther from the true gradient than their scatter explains" in few.words


@pytest.mark.parametrize("known", [None, "unbiased"])
def test_too_few_successes_leave_no_figure_but_the_cost(known):
    bench = rare(0.003)
    found = sampled_measurement(tree_estimates(RLOO(2), bench.enumeration, 300), bench.target, known=known)
    row = found.row(2000)
    assert found.too_few is not None and row["too_few"]["words"] == found.too_few.words and row["intervals"] is None
    measured = {"trace_covariance", "tokens_to_signal", "progress", "mean_squared_error", "signal_to_noise"}
    measured |= set() if known else {"relative_bias", "cosine", "scale", "ceiling"}
    assert all(row[name] is None for name in measured)
    assert row["tokens"] > 2 and row["verdict"] == (known or "undecided")
    if known:
        assert row["cosine"] == row["scale"] == 1 and set(row["by_theorem"]) >= {"cosine", "scale", "relative_bias"}


def test_a_baseline_does_not_hide_that_no_success_was_seen():
    """Every estimate has a gradient then, -J ∇log π, and none says anything of the noise."""
    bench = rare(0.001)
    estimates = tree_estimates(RLOO(2), bench.enumeration, 300)
    noise = torch.randn(estimates.gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = replace(estimates, gradient=1e-4 * noise)
    few = sampled_measurement(small, bench.target, known="unbiased").too_few
    assert few is not None and few.successes == 300


# --- how large an estimate can be ------------------------------------------------------------------------------------


def test_the_largest_estimate_of_a_tree_is_found_though_it_is_rare():
    """One of a thousand responses is right; 300 draws mostly miss it, and the largest |g|² is known nevertheless."""
    bench = rare(0.001)
    e = bench.enumeration
    drawn = [tree_estimates(RLOO(2), e, 300, seed) for seed in range(5)]
    seen = [float(each.square.max()) for each in drawn]
    found = [each.largest for each in drawn]
    assert min(seen) == 0
    # The most that any pair can make: all of them, by two loops.
    leaves = range(e.tree.n_leaves)
    per_leaf = torch.zeros(e.tree.n_leaves, e.n_edges, dtype=torch.float64)
    per_leaf.scatter_add_(1, e.edge[0], e.mask.double())
    scores, reward = per_leaf @ e.scores, e.response_reward[0]
    most = max(
        float(((reward[one] - reward[other]) * (scores[one] - scores[other]) / 2).square().sum())
        for one in leaves
        for other in range(one)
    )
    for each in found:
        assert each is not None and 0.5 * most <= each <= most * (1 + 1e-9)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_shares_are_even_on_the_simplex():
    """Of N + 1 shares each has mean 1 / (N + 1) and variance N / ((N + 1)² (N + 2)); those of the drawn sum to 1."""
    weight, share = exponential_weights(4, 20_000, 0)
    assert weight.sum(-1) == pytest.approx(torch.ones(20_000))
    for each in (share, (1 - share) * weight[:, :1]):
        assert float(each.mean()) == pytest.approx(1 / 5, rel=0.02)
        assert float(each.var()) == pytest.approx(4 / (25 * 6), rel=0.05)
    assert torch.equal(exponential_weights(4, 10, 3)[0], exponential_weights(4, 10, 3)[0])


def nearly_equal(largest: float) -> tuple[Estimates, torch.Tensor]:
    """2,000 estimates that hardly differ, where some that were not drawn may be much larger; and what they estimate."""
    noise = 1e-3 * torch.randn(2000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.tensor([3.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    far = torch.diag(torch.ones(6)).double()[torch.arange(2000) % 5 + 1]
    gradient, one = (
        target + far * torch.tensor([1.0, -1.0])[torch.arange(2000) // 5 % 2, None] + noise,
        torch.ones(2000),
    )
    return Estimates(gradient, gradient.square().sum(-1), one.double(), one.double(), largest=largest), target


def test_one_more_estimate_than_was_drawn_is_in_every_interval():
    """All that were drawn have the same |g|², so a bootstrap of them knows no doubt of it."""
    ends = {}
    for largest in (10.0, 90.0):
        estimates, target = nearly_equal(largest)
        found = sampled_measurement(estimates, target)
        assert found.too_few is None
        ends[largest] = {name: found.interval(name) for name in ("trace", "cosine", "scale")}
    near, far = ends[10.0], ends[90.0]
    # A share of 1 / 2,000 or more of |g|² = 90 in place of 10 adds 0.04 or more to a trace of 1.
    assert far["trace"][1] > near["trace"][1] + 80 / 2000 and far["trace"][1] > 1.1
    # The same share across the gradient, √90 in length, turns one of length 3 by as much again.
    assert far["cosine"][0] < 1 - 0.5 * (90**0.5 / 2000 / 3) ** 2 and far["cosine"][0] < near["cosine"][0] < 1
    assert far["scale"][0] < near["scale"][0] < 1 < near["scale"][1] < far["scale"][1]


def misses(bench: TreeBench, estimator, draws: int, seeds: range, known=None) -> tuple[int, int]:
    """(runs that showed intervals, those of which some interval of noise or progress did not hold the truth)."""
    truth, shown, missed = exact_measurement(estimator, bench.enumeration, bench.target).spread, 0, 0
    for seed in seeds:
        found = sampled_measurement(
            tree_estimates(estimator, bench.enumeration, draws, seed), bench.target, seed=seed, known=known
        )
        if found.too_few is None:
            shown += 1
            ends = {name: found.interval(name) for name in ("trace", "tokens_to_signal")}
            missed += any(not low <= getattr(truth, name) <= high for name, (low, high) in ends.items())
    return shown, missed


@pytest.mark.parametrize("success", [0.05, 0.01, 0.003])
def test_rare_rewards_are_not_measured_wrongly(success):
    """Nominal 95 % intervals covered the truth in 4 % of runs when successes were rare."""
    shown, missed = misses(rare(success), RLOO(2), 300, range(40), "unbiased")
    assert missed <= 5
    assert shown == 0 or success == 0.05


def test_a_peaked_policy_is_not_measured_wrongly():
    bench = make_bench(Setting(entropy=0.3, seed=3))
    assert isinstance(bench, TreeBench)
    shown, missed = misses(bench, GRPO(2), 1000, range(20))
    assert shown == 20 and missed <= 4


def test_power_is_not_lost_where_nothing_is_rare():
    """An interval of the noise at 2,000 draws is no wider than twice what estimates scatter."""
    bench = make_bench(Setting(seed=1))
    assert isinstance(bench, TreeBench)
    truth = exact_moments(RLOO(2), bench.enumeration).trace_covariance
    found = [
        sampled_measurement(tree_estimates(RLOO(2), bench.enumeration, 2000, seed), bench.target, known="unbiased")
        for seed in range(12)
    ]
    scatter = torch.tensor([each.spread.trace for each in found]).double().std()
    for each in found:
        ends = each.interval("trace")
        assert ends is not None and ends[1] - ends[0] < 2 * 4.4 * float(scatter) and ends[1] < 1.3 * truth


# --- figures that were not measured -----------------------------------------------------------------------------------


def test_a_clipped_figure_is_none_and_its_interval_stands():
    """Noise may leave less than no bias, or a cosine beyond 1: neither is a figure."""
    bench = make_bench(Setting(rewards="outcome", success=0.3, prompts=3, seed=1))
    assert isinstance(bench, TreeBench)
    rows = [
        sampled_measurement(tree_estimates(GRPO(2), bench.enumeration, 500, seed), bench.target, seed=seed).row(2000)
        for seed in range(12)
    ]
    clipped = [row for row in rows if row["cosine"] is None]
    assert 2 <= len(clipped) <= 12, "the truth is 1"
    for row in rows:
        low, high = row["intervals"]["cosine"]
        assert low < 1 <= high + 1e-9 and (row["cosine"] is None or row["cosine"] < 1)
        assert row["verdict"] != "biased", "its direction is right"


def test_opposite_sides_are_both_in_the_ratio_of_unpaired_draws():
    """Two that share no draws may be lucky and unlucky; sharing them narrows the ratio."""
    bench = make_bench(Setting(seed=1))
    assert isinstance(bench, TreeBench)
    one, other = (
        sampled_measurement(tree_estimates(RLOO(2), bench.enumeration, 400, seed), bench.target, known="unbiased")
        for seed in (0, 1)
    )
    (_, apart), (_, same) = one.over(other), one.over(one, shared=True)
    assert apart is not None and same is not None
    assert apart[0] < 1 < apart[1] and same == (1.0, 1.0)
    low, high = one.behind(other, 2000)
    assert low < 0 < high and one.behind(one, 2000, shared=True) == (0.0, 0.0)
    few, many = one.behind(other, 2000), one.behind(other, 2000, comparisons=20)
    assert many[0] < few[0] and many[1] > few[1]


def test_an_exact_one_and_a_sampled_one_are_compared():
    bench = make_bench(Setting(seed=1))
    assert isinstance(bench, TreeBench)
    exact = exact_measurement(RLOO(2), bench.enumeration, bench.target)
    drawn = sampled_measurement(tree_estimates(RLOO(2), bench.enumeration, 2000, 3), bench.target, known="unbiased")
    value, ends = drawn.over(exact)
    assert ends is not None and ends[0] < value < ends[1] and ends[0] < 1 < ends[1]
    assert exact.over(exact) == (1.0, None)


def test_nothing_is_infinite_in_a_document():
    """All figures of estimates that are all noise."""
    noise = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
    estimates = Estimates(noise, noise.square().sum(-1), torch.ones(200).double(), torch.ones(200).double())
    found: Measurement = sampled_measurement(estimates, reference=estimates)
    ends = {name: found.interval(name) for name in FIGURES}
    assert ends["tokens_to_signal"] is not None and math.isinf(ends["tokens_to_signal"][1])
    assert found.row(100)["intervals"]["tokens_to_signal"][1] is None
