"""How to split a budget: prices against all outcomes listed one by one, and the choice against every other choice."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import RLOO, TRePO
from llm_mdp.estimators.boundaries import AtSteps
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.mdp.hidden_rewards import PositionReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import TabularPolicy, TabularValue
from llm_mdp.variance.allocation import (
    GROUP_SIZES,
    LAMS,
    MOST_STEPS,
    Allocation,
    KnownPrompt,
    Price,
    Split,
    allocate,
    between_prompts,
    cut_sets,
    even_cuts,
    exact_prices,
    few_cuts,
    fitted_price,
)
from llm_mdp.variance.measurement import Spread, exact_measurement, progress
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from tests.exact.test_enumeration import plain_leaves
from tests.strategies import instances


def enumeration_of(instance: Instance) -> Enumeration:
    return Enumeration(instance.mdp, instance.policy)


def gradient_of(instance: Instance, prompt: int) -> torch.Tensor:
    """∇J of one prompt: the derivative of Σ π(W) RM(W), responses one by one."""
    policy, total = instance.policy, torch.zeros((), dtype=torch.float64)
    for leaf in plain_leaves(instance, prompt):
        tokens = torch.tensor([[*leaf.tokens, *[-1] * (instance.mdp.horizon - len(leaf.tokens))]])
        logp = policy.logits(instance.mdp.prompt_tokens[prompt][None], tokens).log_softmax(-1)
        chosen = logp[0, range(len(leaf.tokens)), list(leaf.tokens)].sum()
        total = total + chosen.exp() * leaf.reward
    gradients = torch.autograd.grad(total, list(policy.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


# --- prices -----------------------------------------------------------------------------------------------------------


def check_prices(instance: Instance, group_size: int, samples: Sequence[int], steps: int) -> None:
    """Every set of cuts: base, noise and tokens of a price give what the estimator's own outcomes have, all of them
    listed."""
    e = enumeration_of(instance)
    for price in exact_prices(e, group_sizes=(group_size,), lams=LAMS):
        assert price.split.group_size == group_size
        if len(price.split.steps) > steps:
            continue
        for m in samples:
            moments = exact_moments(price.split.estimator(m), e)
            # The trace is a difference of E|g|² and |E g|².
            close = 1e-9 * (moments.root_mean_square**2 + price.trace(1))
            assert price.trace(m) == pytest.approx(moments.trace_covariance, rel=1e-9, abs=close)
            assert price.tokens(m) == pytest.approx(moments.tokens, rel=1e-9)


@settings(deadline=None, max_examples=12)
@given(instances(kinds=("table", "n-gram"), max_vocab=3, max_horizon=3), st.sampled_from([1, 3]))
def test_prices_of_pairs_are_those_of_all_outcomes(instance, m):
    check_prices(instance, 2, (m,), steps=9)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(instances(max_vocab=2, max_horizon=3), st.sampled_from([1, 3]))
def test_prices_of_groups_of_three_follow_from_one_response_and_two(instance, m):
    check_prices(instance, 3, (m,), steps=9)


def test_prices_of_larger_trees_and_groups_of_three():
    check_prices(random_instance(3, 2, gamma=0.5, n_prompts=2, seed=6), 3, (1, 3), steps=9)
    check_prices(random_instance(2, 3, eos=None, gamma=0.9, seed=7), 3, (2,), steps=9)


@pytest.mark.parametrize("shape", [(2, 2, None), (2, 3, 0), (3, 2, 1)])
def test_prices_of_groups_of_four(shape):
    vocab_size, horizon, eos = shape
    check_prices(
        random_instance(vocab_size, horizon, eos=eos, gamma=0.9, n_prompts=2 if horizon == 2 else 1, seed=4),
        4,
        (1, 3),
        steps=1,
    )


def test_every_split_is_priced_once():
    e = enumeration_of(random_instance(2, 3, seed=1))
    splits = [price.split for price in exact_prices(e)]
    cuts = [cut for cut in cut_sets(3) if cut]
    wanted = {Split(k, cut, lam) for k in GROUP_SIZES for cut in cuts for lam in LAMS} | {
        Split(k, (), LAMS[0]) for k in GROUP_SIZES
    }
    assert set(splits) == wanted and len(splits) == len(wanted)
    chosen = [price.split for price in exact_prices(e, group_sizes=(5,), cuts=[(2,)], lams=(0.25,))]
    assert chosen == [Split(5, (2,), 0.25)]


def test_the_more_responses_the_less_scatter_down_to_what_prompts_differ_by():
    instance = random_instance(3, 3, n_prompts=2, seed=2)
    e = enumeration_of(instance)
    traces = [price.trace(1) for price in exact_prices(e, group_sizes=(2, 3, 8, 10**6), cuts=[()])]
    assert traces == sorted(traces, reverse=True)
    assert traces[-1] == pytest.approx(between_prompts(e), rel=1e-4)


def test_a_group_of_one_has_no_others():
    e = enumeration_of(random_instance(2, 2, seed=1))
    with pytest.raises(
        ValueError,
        match=r"^group_sizes holds 1; the value of the prompt is the mean of other responses, so at least 2\.$",
    ):
        next(exact_prices(e, group_sizes=(4, 1)))


def test_a_split_trains_as_the_estimator_of_its_name():
    assert Split(3, (), 0.5).estimator(7) == RLOO(3)
    assert Split(3, (1, 2), 0.5).estimator(7) == TRePO(
        3, boundary=AtSteps((1, 2)), temperatures=(1.0,) * 7, lam=0.5, group_baseline=True
    )


@settings(deadline=None, max_examples=15)
@given(instances(max_vocab=3, max_horizon=3), st.sampled_from(LAMS))
def test_every_split_is_unbiased_and_so_is_one_response_whose_prompt_is_known(instance, lam):
    e = enumeration_of(instance)
    gradients = [gradient_of(instance, prompt) for prompt in range(len(instance.mdp.prompts))]
    target = sum(asked.probability * gradient for asked, gradient in zip(instance.mdp.prompts, gradients))
    value = TabularValue(e.tree, e.prompt, e.values.U)
    for steps in cut_sets(instance.mdp.horizon):
        for estimator in (
            Split(2, steps, lam).estimator(2),
            KnownPrompt(boundary=AtSteps(steps), temperatures=(1.0,) * 2, lam=lam, critic=value),
        ):
            assert exact_certificate(estimator, e, target, magnitude=1.0).verdict == "unbiased"


@settings(deadline=None, max_examples=20)
@given(instances(kinds=("table", "n-gram"), max_vocab=3, max_horizon=3))
def test_what_prompts_differ_by(instance):
    gradients = [gradient_of(instance, prompt) for prompt in range(len(instance.mdp.prompts))]
    chances = [asked.probability for asked in instance.mdp.prompts]
    # Half the mean squared distance of two independent prompts.
    apart = (
        sum(
            p * q * float((a - b).square().sum())
            for p, a in zip(chances, gradients)
            for q, b in zip(chances, gradients)
        )
        / 2
    )
    assert between_prompts(enumeration_of(instance)) == pytest.approx(apart, rel=1e-9, abs=1e-12)


# --- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", range(1, MOST_STEPS + 1))
def test_short_responses_are_cut_in_every_way(horizon):
    found = cut_sets(horizon)
    assert len(found) == len(set(found)) == 2 ** (horizon - 1) and found[0] == ()
    assert all(cuts == tuple(sorted(set(cuts))) and set(cuts) <= set(range(1, horizon)) for cuts in found)


def test_long_responses_are_cut_into_equal_parts_or_early():
    assert cut_sets(7) == [(), (3,), (1, 3, 5), (1,), (1, 2, 4)]
    assert cut_sets(16) == [(), (8,), (4, 8, 12), tuple(range(2, 16, 2)), tuple(range(1, 16)), (1,), (1, 2, 4, 8)]
    assert cut_sets(1000)[4] == tuple(part * 1000 // 16 for part in range(1, 16))
    assert few_cuts(1) == [()] and few_cuts(2) == [(), (1,)]


@given(st.integers(1, 60), st.integers(1, 70))
def test_parts_differ_by_a_token_at_most(horizon, segments):
    cuts = even_cuts(horizon, segments)
    ends = [0, *cuts, horizon]
    lengths = [end - start for start, end in pairwise(ends)]
    assert len(lengths) == min(segments, horizon) and min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


# --- how many branches ------------------------------------------------------------------------------------------------

TRIED = 200
CUT = Split(2, (1,), 0.0)


def prices(most_branches: float = 50.0) -> st.SearchStrategy[Price]:
    """Prices whose best number of branches is well below `TRIED`."""
    positive = st.floats(0.05, 50.0)
    cut = st.builds(
        Price, st.sampled_from([Split(2, (1,), 0.0), Split(4, (1, 2), 0.5)]), positive, st.floats(0.0, 50.0), positive,
        st.floats(0.05, most_branches),
    )  # fmt: skip
    whole = st.builds(
        Price, st.sampled_from([Split(2, (), 0.0), Split(8, (), 0.0)]), positive, st.just(0.0), positive, st.just(0.0)
    )
    return cut | whole


def product_of(price: Price, samples: int) -> float:
    return price.tokens(samples) * price.trace(samples)


@settings(max_examples=300)
@given(prices())
def test_the_number_of_branches_is_the_best_whole_one(price):
    found = price.samples()
    assume(found < TRIED)
    assert product_of(price, found) <= min(product_of(price, m) for m in range(1, TRIED + 1)) * (1 + 1e-12)


@settings(max_examples=300)
@given(prices(), st.floats(0.5, 500.0))
def test_the_number_of_branches_is_the_best_that_so_many_tokens_pay_for(price, most):
    affordable = [m for m in range(1, TRIED + 1) if price.tokens(m) <= most * (1 - 1e-12)]
    assume(affordable and price.samples(most) < TRIED)
    found = price.samples(most)
    assert price.tokens(found) <= most * (1 + 1e-12)
    assert product_of(price, found) <= min(product_of(price, m) for m in affordable) * (1 + 1e-12)


def test_branches_that_scatter_little_are_drawn_once_and_costly_responses_are_worth_many():
    split = Split(2, (1,), 0.0)
    assert Price(split, base=1.0, noise=0.01, responses=10.0, branches=10.0).samples() == 1
    # √(4 × 90 / (1 × 10)) = 6 exactly.
    assert Price(split, base=1.0, noise=4.0, responses=90.0, branches=10.0).samples() == 6
    assert Price(Split(2, (), 0.0), base=1.0, noise=0.0, responses=9.0, branches=0.0).samples() == 1


@settings(deadline=None, max_examples=10)
@given(instances(max_vocab=3, max_horizon=3))
def test_no_number_of_branches_has_fewer_tokens_to_signal_on_a_tree(instance):
    e = enumeration_of(instance)
    for price in exact_prices(e, group_sizes=(2,), lams=(0.0,)):
        assume(price.base > 1e-6)
        found = price.samples()
        for m in {1, max(found - 1, 1), found + 1, 2 * found}:
            assert product_of(price, found) <= product_of(price, m) * (1 + 1e-9)


# --- the budget -------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(prices(), min_size=1, max_size=6), st.floats(1.0, 2000.0), st.floats(0.01, 10.0))
def test_nothing_that_the_budget_affords_has_fewer_tokens_to_signal(listed, budget, size):
    options = [
        (price, m)
        for price in listed
        for m in range(1, TRIED + 1 if price.split.steps else 2)
        if price.tokens(m) <= budget
    ]
    if not options:
        with pytest.raises(ValueError, match="is too small: the cheapest group costs"):
            allocate(budget, listed, size)
        return
    assume(all(price.samples() < TRIED for price in listed))
    found = allocate(budget, iter(listed), size)
    assert found.tokens <= budget and found.tokens * found.prompts <= budget < found.tokens * (found.prompts + 1) * (
        1 + 1e-12
    )
    price, m = min(options, key=lambda option: product_of(*option))
    assert found.tokens_to_signal == pytest.approx(product_of(price, m) / size, rel=1e-9)
    assert found.progress == pytest.approx(progress(1.0, product_of(price, m) / size, budget), rel=1e-9)
    assert (found.split, found.samples) in {
        (price.split, m)
        for price, m in options
        if product_of(price, m) / size == pytest.approx(found.tokens_to_signal, rel=1e-9)
    }


@settings(max_examples=100)
@given(st.lists(prices(), min_size=1, max_size=6), st.lists(st.floats(200.0, 5000.0), min_size=2, max_size=5))
def test_a_larger_budget_never_makes_less_progress(listed, budgets):
    found = [allocate(budget, listed, 1.0) for budget in sorted(budgets)]
    for less, more in pairwise(found):
        assert more.progress >= less.progress * (1 - 1e-12)
        assert more.tokens_to_signal <= less.tokens_to_signal * (1 + 1e-12)


def test_of_equally_good_splits_the_cheaper_group_is_taken():
    small, large = Price(Split(2, (), 0.0), 4.0, 0.0, 10.0, 0.0), Price(Split(4, (), 0.0), 2.0, 0.0, 20.0, 0.0)
    for listed in ((small, large), (large, small)):
        assert allocate(100.0, listed, 1.0).split == small.split
    # More branches cost so much that ten prompts with one are as good as five with two.
    assert allocate(1e4, [Price(Split(2, (1,), 0.0), 1.0, 2.0, 10.0, 10.0)], 1.0).samples == 1


def test_a_small_budget_takes_fewer_branches_than_the_best_number():
    price = Price(Split(2, (1,), 0.0), 1.0, 4.0, 90.0, 10.0)
    assert [allocate(budget, [price], 1.0).samples for budget in (109.0, 120.0, 149.0, 150.0, 1e6)] == [1, 3, 5, 6, 6]


@cache
def early() -> tuple[Instance, list[Price], float]:
    """A reward for the first token only, and what every split costs."""
    weights = torch.zeros(4, 2, dtype=torch.float64)
    weights[0] = torch.tensor([1.0, -1.0])
    mdp = TokenMDP(2, None, 4, PositionReward(weights))
    instance = random_instance(2, 4, eos=None)
    uniform = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, torch.Generator(), scale=0.0)
    instance = Instance(mdp, uniform, instance.reference, instance.value)
    size = float(gradient_of(instance, 0).square().sum())
    return instance, list(exact_prices(enumeration_of(instance), group_sizes=(2, 4), lams=(0.0, 1.0))), size


def test_where_only_the_first_token_counts_responses_are_cut_after_it():
    instance, listed, size = early()
    found = allocate(500.0, listed, size)
    assert 1 in found.split.steps and found.split.lam == 0.0 and found.samples == 1
    e = enumeration_of(instance)
    measured, whole = (
        exact_measurement(estimator, e, gradient_of(instance, 0)).spread
        for estimator in (found.estimator, RLOO(found.split.group_size))
    )
    assert found.tokens == pytest.approx(measured.tokens) and found.tokens_to_signal == pytest.approx(
        measured.tokens_to_signal, rel=1e-9
    )
    assert found.progress == pytest.approx(measured.progress(500.0), rel=1e-9)
    assert measured.tokens_to_signal < 0.8 * whole.tokens_to_signal


def test_what_is_said_for_people():
    def words(split: Split, samples: int = 1, prompts: int = 12) -> str:
        return Allocation(split, samples, prompts, 30.0, 100.0, 0.5).words

    assert words(Split(4, (), 0.0)) == "12 prompts x 4 responses, no branches (RLOO)"
    assert words(Split(4, (), 0.0), prompts=1) == "1 prompt x 4 responses, no branches (RLOO)"
    assert words(Split(2, (3,), 0.0)) == "12 prompts x 2 responses, 1 branch before token 4, λ = 0"
    assert words(Split(2, (1, 3), 0.5), 4) == "12 prompts x 2 responses, 4 branches before tokens 2, 4, λ = 0.5"


def test_what_cannot_be_split_is_said_in_a_sentence():
    whole, cut = Price(Split(2, (), 0.0), 1.0, 0.0, 7.25, 0.0), Price(Split(2, (1,), 0.0), 1.0, 1.0, 7.25, 3.0)
    for budget, listed, least in ((7, [cut, whole], r"7\.2"), (9, [cut], r"10\.2")):
        sentence = f"a budget of {budget} tokens is too small: the cheapest group costs {least} tokens on average"
        with pytest.raises(ValueError, match=rf"^{sentence}; raise it\.$"):
            allocate(float(budget), listed, 1.0)
    with pytest.raises(ValueError, match=r"^there is no way to split the budget among; give at least one price\.$"):
        allocate(7.0, iter(()), 1.0)
    for budget in (0.0, -3.0, math.nan):
        with pytest.raises(ValueError, match=rf"^budget is {budget}; it must be above 0 tokens\.$"):
            allocate(budget, [whole], 1.0)


# --- fitted prices ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(instances(max_vocab=3, max_horizon=3), st.sampled_from([2, 4, 7]), st.sampled_from([2, 5]))
def test_two_measurements_give_the_price_back(instance, samples, group_size):
    e = enumeration_of(instance)

    def spread(price: Price, m: int) -> Spread:
        return Spread(price.tokens(m), 0.0, price.trace(m), 1.0, 1.0, 1.0)

    for price in exact_prices(e, group_sizes=(group_size,), lams=(0.0, 0.5)):
        found = fitted_price(price.split, samples, spread(price, 1), spread(price, samples))
        close = 1e-9 * (price.base + price.noise)
        for name in ("base", "noise", "responses", "branches"):
            assert getattr(found, name) == pytest.approx(getattr(price, name), rel=1e-9, abs=close + 1e-12), name


def test_exact_measurements_give_the_exact_price():
    instance = random_instance(3, 3, n_prompts=2, seed=5)
    e = enumeration_of(instance)
    target = sum(asked.probability * gradient_of(instance, k) for k, asked in enumerate(instance.mdp.prompts))
    for price in exact_prices(e, group_sizes=(2,), cuts=[(), (1,), (1, 2)], lams=(0.5,)):
        few, many = (exact_measurement(price.split.estimator(m), e, target).spread for m in (1, 4))
        found = fitted_price(price.split, 4, few, many)
        for name in ("base", "noise", "responses", "branches"):
            assert getattr(found, name) == pytest.approx(getattr(price, name), rel=1e-8, abs=1e-9), name


def test_noisy_measurements_give_no_negative_variance():
    few, many = (Spread(tokens, 0.0, trace, 1.0, 1.0, 1.0) for tokens, trace in ((10.0, 2.0), (16.0, 3.0)))
    upside_down = fitted_price(Split(2, (1,), 0.0), 4, few, many)
    assert (upside_down.base, upside_down.noise, upside_down.responses, upside_down.branches) == (2.0, 0.0, 8.0, 2.0)
    steep = fitted_price(Split(2, (1,), 0.0), 4, few, Spread(16.0, 0.0, 0.1, 1.0, 1.0, 1.0))
    assert steep.base == 0.0 and steep.noise > 2.0


def test_without_scatter_one_branch_is_enough():
    """Every number of them has the same product."""
    assert Price(CUT, base=0.0, noise=0.0, responses=10.0, branches=2.0).samples() == 1


def test_a_base_of_nearly_nothing_is_no_crash():
    assert Price(CUT, base=1e-320, noise=1.0, responses=10.0, branches=2.0).samples() >= 1


def test_a_budget_one_rounding_below_the_price_takes_one_branch_less():
    price = Price(
        CUT,
        base=0.008888142492832322,
        noise=14.72309253819375,
        responses=17.436859123742448,
        branches=2.312387335621467,
    )
    budget = math.nextafter(price.tokens(16), 0)
    assert price.tokens(price.samples(budget)) <= budget
    assert allocate(budget, [price], 1.0).samples == 15


def test_no_gradient_is_a_sentence():
    with pytest.raises(ValueError):  # ZeroDivisionError
        allocate(100.0, [Price(CUT, 1.0, 1.0, 10.0, 2.0)], 0.0)


def test_a_choice_says_when_it_is_a_guess():
    prices = exact_prices(enumeration_of(random_instance(2, 3, seed=1)), group_sizes=(2, 4), cuts=[()])
    sure = allocate(2000, prices, 1.0)
    guess = replace(sure, caution="too few successes: 3 of 16 estimates have a gradient; about 160 are needed")
    assert sure.caution is None and "guess" not in sure.words
    assert guess.words == f"{sure.words}; a guess, for the pilot batch saw {guess.caution}"
