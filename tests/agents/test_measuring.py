"""Covariance and cost on tasks and language models: streamed gradients against exact figures and against autograd, draw
by draw."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from llm_mdp.estimators.algorithms import (
    GRPO,
    REINFORCE,
    RLOO,
    ReMax,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AtSteps, EveryNTokens
from llm_mdp.estimators.practices import ZeroStdFiltered
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.hidden_rewards import LastTokenReward
from llm_mdp.sampling.evidence import as_worlds, take_world
from llm_mdp.sampling.policies import TabularPolicy, logp_of
from llm_mdp.sampling.shared_draws import Meter, SharedDraws
from llm_mdp.variance.allocation import exact_prices
from llm_mdp.variance.measurement import exact_measurement
from llm_mdp.variance.sampled import Estimates, sampled_measurement
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp_agents import measuring
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.measuring import PILOT_BRANCHES, measure_task, pilot_allocation, shared_estimates
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.sketch import WIDTH, Sketch
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.diagnostics import Credit
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask
from llm_mdp_envs.tasks.synthetic import instance as instance_of

INSTANCE = random_instance(2, 2, gamma=0.9, n_prompts=2, seed=3)
TASK = TokenMDPTask(INSTANCE.mdp)


@cache
def problem() -> Problem:
    return Problem(INSTANCE)


def sampler(policy, task=TASK, prompts: int = 6, seed: int = 0) -> TaskSampler:
    return TaskSampler(policy, task, *streams([seed, 7]), prompts)


def sketch_of(policy, seed: int = 0) -> Sketch:
    return Sketch(list(policy.parameters()), seed)


def uniform(task: TokenMDPTask) -> TabularPolicy:
    return TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator(), scale=0.0)


# --- sketches ---------------------------------------------------------------------------------------------------------


def parameters(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


def test_a_sketch_of_few_numbers_is_the_gradient_itself():
    shapes = [(3, 5), (WIDTH - 17,), (2,)]
    sketch = Sketch([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(shapes[0], generator=generator), torch.randn(shapes[1], generator=generator)
    vector, square = sketch([one, two, None])
    assert torch.equal(vector, torch.cat([one.flatten(), two, torch.zeros(2)]).double())
    assert square == pytest.approx(float(vector @ vector), rel=1e-12)


SIZES = (WIDTH - 3, 1, 5 * WIDTH + 100, 7)


def unit(place: int) -> list[Tensor | None]:
    """The gradient that is 1 at this coordinate of all, None for the parameters that it does not reach."""
    found: list[Tensor | None] = []
    for size in SIZES:
        found.append((torch.arange(size) == place).double() if 0 <= place < size else None)
        place -= size
    return found


def test_a_sketch_puts_every_coordinate_into_one_number_and_neighbours_into_different_ones():
    sketch = Sketch(parameters(*SIZES))
    total = sum(SIZES)
    places = [0, 1, WIDTH - 4, WIDTH - 3, WIDTH - 2, WIDTH - 1, WIDTH, 3 * WIDTH + 5, total - 8, total - 7, total - 1]
    for place in places:
        vector, square = sketch(unit(place))
        assert len(vector) == WIDTH and square == 1
        assert float(vector.abs().sum()) == 1 and int((vector != 0).sum()) == 1
        if place + 1 < total:
            assert float(vector @ sketch(unit(place + 1))[0]) == 0
    assert {float(sketch(unit(place))[0].sum()) for place in range(0, total, total // 40)} == {-1.0, 1.0}


def test_a_sketch_is_linear_and_knows_the_whole_length():
    sketch, generator = Sketch(parameters(*SIZES), seed=4), torch.Generator().manual_seed(1)
    one, two = ([torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES] for _ in range(2))
    (first, square), (second, _) = sketch(one), sketch(two)
    together, _ = sketch([2 * a - b for a, b in zip(one, two)])
    torch.testing.assert_close(together, 2 * first - second)
    assert square == pytest.approx(float(torch.cat(one).square().sum()), rel=1e-12)


@pytest.mark.parametrize("alike", [0.0, 0.6, 1.0])
def test_inner_products_of_sketches_scatter_as_the_documentation_says(alike):
    """Unbiased, by (|x|²|y|² + <x, y>²) / WIDTH: between 1.1 % of the lengths for x ⊥ y and 1.6 % for x = y."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(sum(SIZES), generator=generator, dtype=torch.float64)
    y = alike * x + math.sqrt(1 - alike**2) * torch.randn(sum(SIZES), generator=generator, dtype=torch.float64)
    product, lengths = float(x @ y), float(x.norm() * y.norm())
    found = []
    for seed in range(150):
        sketch = Sketch(parameters(*SIZES), seed)
        one, two = (sketch(list(vector.split(list(SIZES))))[0] for vector in (x, y))
        found.append(float(one @ two))
    errors = (torch.tensor(found, dtype=torch.float64) - product) / lengths
    expected = math.sqrt((1 + (product / lengths) ** 2) / WIDTH)
    assert abs(float(errors.mean())) < 4 * expected / math.sqrt(150)
    assert float(errors.std()) == pytest.approx(expected, rel=0.2)
    assert float(errors.std()) < 1.2 * math.sqrt(2 / WIDTH)


# --- one prompt at a time ---------------------------------------------------------------------------------------------

EXACT: dict[str, Estimator] = {
    "rloo K=2": RLOO(2),
    "rloo K=4": RLOO(4),
    "grpo": GRPO(4),
    "remax": ReMax(),
    "trepo": TRePO(2, boundary=EveryNTokens(1), temperatures=(1.0,) * 2, group_baseline=True),
    "vineppo": VinePPO(boundary=AtSteps((1,)), temperatures=(1.0,)),
    "over the length": REINFORCE(reduction="sequence_mean"),
}


@cache
def drawn() -> dict[str, Estimates]:
    policy = INSTANCE.policy
    return shared_estimates(EXACT, policy, sampler(policy, prompts=1500, seed=1), 4, sketch_of(policy))[0]


@pytest.mark.parametrize("name", EXACT)
def test_streamed_estimates_have_the_exact_mean_cost_and_scatter(name):
    """On a table, where all outcomes can be listed: the mean over prompts is E g coordinate by coordinate, up to 4.5
    deviations."""
    p, estimates = problem(), drawn()[name]
    moments = exact_moments(EXACT[name], p.enumeration)
    number = len(estimates.square)
    for found, expected in (
        (estimates.gradient, moments.mean),
        (estimates.tokens, moments.tokens),
        (estimates.rewards, moments.rewards),
    ):
        error = found.mean(0) - expected
        assert (error.abs() <= 4.5 * found.std(0) / number**0.5 + 1e-9).all()
    exact = exact_measurement(EXACT[name], p.enumeration, p.target("reward"), p.magnitude("reward"))
    measured = sampled_measurement(estimates, p.target("reward"))
    for figure in ("trace", "tokens_to_signal", "cosine"):
        low, high = measured.interval(figure)
        middle, value = getattr(measured.spread, figure), getattr(exact.spread, figure)
        # Twice the 95 % interval, for there are many of them here.
        assert 2 * low - middle - 1e-9 <= value <= 2 * high - middle + 1e-9, figure
    assert high - low < 0.5 and measured.interval("trace")[1] < 1.5 * exact.spread.trace


def own_gradient(estimator: Estimator, policy, evidence) -> Tensor:
    """-∇loss by autograd through the model, as a trainer of this one group has it."""
    rollouts = evidence.rollouts
    loss = estimator.loss(logp_of(policy, rollouts.prompt, rollouts.tokens, rollouts.mask), evidence)
    gradients = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return -torch.cat(
        [torch.zeros(p.numel()).double() if g is None else g.flatten() for p, g in zip(policy.parameters(), gradients)]
    )


TASKS = {"token MDP": TASK, "arithmetic": Arithmetic(digits=1)}
GROUPS: dict[str, Estimator] = {
    "rloo K=2": RLOO(2),
    "rloo K=8": RLOO(8),
    "grpo K=4": GRPO(4, clip_low=0.2),
    "over the length": GRPO(8, reduction="sequence_mean"),
    "token mean": RLOO(4, reduction="token_mean"),
    "remax": ReMax(),
    "trepo": TRePO(2, temperatures=(1.0,) * 2, lam=0.5, group_baseline=True),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_transformer_s_streamed_gradients_are_autograd_s_own(task):
    """Of every group's own loss; with eight responses to a prompt an estimator of two has four disjoint groups."""
    task = TASKS[task]
    policy = small_transformer(
        task.vocab_size, task.prompt_length + task.horizon, width=8, layers=1, heads=2, seed=1, dtype="float64"
    )
    assert sum(p.numel() for p in policy.parameters()) <= WIDTH
    found, batch = shared_estimates(GROUPS, policy, sampler(policy, task, prompts=3), 8, sketch_of(policy))
    replay = SharedDraws(sampler(policy, task, prompts=3), 8)
    assert torch.equal(replay.batch.tokens, batch.rollouts.tokens) and torch.equal(replay.reward, batch.response_reward)
    for name, estimator in GROUPS.items():
        gradient, square, tokens, rewards, parts = 0.0, 0.0, 0.0, 0.0, 8 // estimator.group_size
        for replay.part in range(parts):
            meter = Meter(replay)
            worlds = as_worlds(estimator.collect(meter), estimator.group_size)
            each = torch.stack([own_gradient(estimator, policy, take_world(worlds, prompt)) for prompt in range(3)])
            gradient, square = gradient + each / parts, square + each.square().sum(1) / parts
            spent = meter.cost(estimator.group_size)
            tokens, rewards = tokens + spent[0] / parts, rewards + spent[1] / parts
        estimates = found[name]
        # The model's norms are float32 in every precision, so that a sum of passes is one pass to 1e-7 only.
        torch.testing.assert_close(estimates.gradient, gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(estimates.square, square, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(estimates.tokens, tokens)
        torch.testing.assert_close(estimates.rewards, rewards)
        assert float(estimates.square.min()) >= 0 and estimates.seconds > 0
    # A pair's estimate is longer than the mean of four.
    assert (found["rloo K=2"].square >= found["rloo K=2"].gradient.square().sum(1)).all()
    assert float(found["rloo K=2"].square.sum()) > 1.5 * float(found["rloo K=2"].gradient.square().sum())


def test_a_large_model_s_sketches_have_the_inner_products_of_its_gradients():
    task = Arithmetic(digits=1)
    policy = small_transformer(
        task.vocab_size, task.prompt_length + task.horizon, width=32, layers=2, heads=2, dtype="float64"
    )
    assert sum(p.numel() for p in policy.parameters()) > 2 * WIDTH
    listed = {"rloo": RLOO(4)}
    found, _ = shared_estimates(listed, policy, sampler(policy, task), 4, sketch_of(policy))
    replay = SharedDraws(sampler(policy, task), 4)
    worlds = as_worlds(listed["rloo"].collect(replay), 4)
    whole = torch.stack([own_gradient(listed["rloo"], policy, take_world(worlds, prompt)) for prompt in range(6)])
    estimates = found["rloo"]
    assert estimates.gradient.shape == (6, WIDTH)
    torch.testing.assert_close(estimates.square, whole.square().sum(1), rtol=1e-9, atol=1e-12)
    lengths = whole.norm(dim=1)
    apart = estimates.gradient @ estimates.gradient.T - whole @ whole.T
    assert float((apart.abs() / (lengths[:, None] * lengths).clamp(min=1e-12)).max()) < 0.15


def counted(monkeypatch) -> dict[str, list[int]]:
    """How many rows went forward through the model, and how many backward, call by call."""
    calls: dict[str, list[int]] = {"forward": [], "backward": []}
    grad = torch.autograd.grad

    def forward(policy, prompt, tokens, mask):
        calls["forward"].append(len(tokens))
        return logp_of(policy, prompt, tokens, mask)

    def backward(outputs, inputs, grad_outputs=None, **options):
        if options.get("retain_graph"):
            calls["backward"].append(len(outputs))
        return grad(outputs, inputs, grad_outputs, **options)

    monkeypatch.setattr(measuring, "logp_of", forward)
    monkeypatch.setattr(torch.autograd, "grad", backward)
    return calls


def test_a_group_without_signal_costs_no_pass_and_has_no_gradient(monkeypatch):
    """Rewards 0 and 1: prompts whose responses all have the same reward are not read at all, equal pairs have no
    backward pass."""
    reward = LastTokenReward(lambda prompt, tokens, mask: (tokens == 1).any(-1).double())
    task = TokenMDPTask(replace(random_instance(3, 2, n_prompts=2, seed=1).mdp, token_reward=reward))
    calls = counted(monkeypatch)
    policy = uniform(task)
    found, batch = shared_estimates(
        {"two": RLOO(2), "four": RLOO(4)}, policy, sampler(policy, task, 60, 1), 4, sketch_of(policy)
    )
    rewards = batch.response_reward.view(60, 4)
    silent, equal = (rewards == rewards[:, :1]).all(1), rewards[:, ::2] == rewards[:, 1::2]
    assert 3 < int(silent.sum()) < 57 and int((equal.all(1) & ~silent).sum()) > 0
    assert calls["forward"] == [4] * int((~silent).sum())
    assert sorted(calls["backward"]) == [2] * int((~equal).sum()) + [4] * int((~silent).sum())
    for name, quiet in (("two", equal.all(1)), ("four", silent)):
        estimates = found[name]
        assert torch.equal(estimates.square == 0, quiet) and torch.equal((estimates.gradient == 0).all(1), quiet)
        assert (estimates.tokens > 0).all()


def test_costs_are_those_of_the_estimator_and_not_of_the_batch():
    """Alone, the sampler's own count; in company, its share of what all of them drew."""
    policy = INSTANCE.policy
    for estimator in (RLOO(3), TRePO(3, temperatures=(1.0,) * 2), ReMax(3)):
        source = sampler(policy, prompts=20)
        estimates = shared_estimates({"it": estimator}, policy, source, 3, sketch_of(policy))[0]["it"]
        assert (
            float(estimates.tokens.sum()) == source.cost.tokens
            and float(estimates.rewards.sum()) == source.cost.rewards
        )
    source = sampler(policy, prompts=20)
    listed = {"rloo": RLOO(2), "few": TRePO(2, temperatures=(1.0,)), "many": TRePO(2, temperatures=(1.0,) * 3)}
    found, batch = shared_estimates(listed, policy, source, 4, sketch_of(policy))
    length = batch.rollouts.length.view(20, 4).double()
    assert torch.equal(found["rloo"].tokens, length.sum(1) / 2) and torch.equal(
        found["rloo"].rewards, torch.full((20,), 2.0).double()
    )
    # Branches of "few" are among those of "many", and are drawn once; every pair of the four has some.
    assert 2 * float(found["many"].tokens.sum()) == source.cost.tokens
    assert 2 * float(found["many"].rewards.sum()) == source.cost.rewards


def test_what_cannot_share_a_batch_is_said_in_a_sentence():
    policy = INSTANCE.policy
    with pytest.raises(ValueError, match=r"^big wants 5 responses to a prompt, and 4 are drawn; draw more\.$"):
        shared_estimates({"big": RLOO(5)}, policy, sampler(policy), 4, sketch_of(policy))
    outcome = replace(
        INSTANCE.mdp, token_reward=LastTokenReward(lambda prompt, tokens, mask: (tokens[..., 0] == 1).double())
    )
    sentence = r"^dapo leaves groups out, which cannot be compared on shared draws; measure it on a token MDP\.$"
    with pytest.raises(ValueError, match=sentence):
        shared_estimates(
            {"dapo": ZeroStdFiltered(2)}, policy, sampler(policy, TokenMDPTask(outcome), 30), 2, sketch_of(policy)
        )


# --- a task -----------------------------------------------------------------------------------------------------------

LISTED: dict[str, Estimator] = {name: EXACT[name] for name in ("rloo K=2", "grpo", "trepo")}
KNOWN = {"rloo K=2": "unbiased", "trepo": "unbiased"}


def timeless(found) -> dict:
    """All figures of a task but those of clocks."""
    measured, facts = found
    figures = {
        name: replace(each, seconds=None).document() for name, each in (measured | {"base": facts["base"]}).items()
    }
    return figures | {name: value for name, value in facts.items() if name != "base"}


def measured_task(prompts: int, seed: int = 0, listed=LISTED, **options):
    return measure_task(listed, INSTANCE.policy, TASK, prompts, seed, known=KNOWN, **options)


def test_facts_of_a_task_are_those_of_the_token_mdp():
    done: list[int] = []
    measured, facts = measured_task(1000, prompts_at_once=300, tell=done.append)
    assert done == [300, 600, 900, 1000]
    p, e = problem(), problem().enumeration
    chance = INSTANCE.mdp.prompt_probability[:, None] * e.probability
    assert facts["target"] == "rloo K=4" and "rloo K=4" not in measured and facts["entropy"] is None
    assert facts["J"] == pytest.approx(
        p.gradient[0], abs=4.5 * float((chance * e.response_reward**2).sum()) ** 0.5 / 4000**0.5
    )
    assert facts["expected_length"] == pytest.approx(float((chance * e.length).sum()), abs=0.04)
    assert facts["success"] is None, "rewards are not right or wrong here"
    sums = Arithmetic(digits=1, reward="outcome")
    graded = measure_task({}, small_transformer(sums.vocab_size, sums.prompt_length + sums.horizon), sums, 4)[1]
    assert graded["success"] == graded["J"]
    assert facts["grad_norm"] == pytest.approx(float(p.target("reward").norm()), rel=0.15)
    for name, each in measured.items():
        exact = exact_measurement(LISTED[name], e, p.target("reward"), p.magnitude("reward"))
        assert each.samples == 1000 and each.seconds > 0
        assert each.verdict == ("unbiased" if name in KNOWN else "undecided")
        assert each.spread.tokens == pytest.approx(exact.spread.tokens, rel=0.03)
        assert each.spread.cosine == pytest.approx(exact.spread.cosine, abs=0.05)
        low, high = each.interval("tokens_to_signal")
        assert (
            2 * low - each.spread.tokens_to_signal
            <= exact.spread.tokens_to_signal
            <= 2 * high - each.spread.tokens_to_signal
        )


def test_the_one_that_stands_for_the_truth_is_the_largest_group():
    measured, facts = measured_task(20, listed={"rloo K=3": RLOO(3), "reinforce": REINFORCE()})
    assert (
        facts["target"] == "rloo K=3" and measured["rloo K=3"] == facts["base"] and facts["base"].verdict == "unbiased"
    )
    assert (measured["rloo K=3"].spread.cosine, measured["rloo K=3"].spread.relative_bias) in {
        (1.0, 0.0),
        (0.0, math.inf),
    }
    assert measured_task(5, listed={"reinforce": REINFORCE()})[1]["target"] == "rloo K=2"


def test_one_seed_gives_the_same_figures_and_another_one_others():
    first, again, other = (measured_task(40, seed) for seed in (3, 3, 4))
    assert timeless(first) == timeless(again)
    assert all(first[0][name].spread != other[0][name].spread for name in LISTED) and first[1]["J"] != other[1]["J"]


@pytest.mark.parametrize("prompts_at_once", [1, 7, 1000])
def test_how_many_prompts_are_drawn_together_is_no_matter_of_the_figures(prompts_at_once):
    exact = exact_moments(EXACT["rloo K=2"], problem().enumeration)
    measured, facts = measured_task(150, prompts_at_once=prompts_at_once)
    found = measured["rloo K=2"]
    assert found.samples == 150
    # Four responses a prompt, in two pairs: cost and length are of the same responses, whatever the batches.
    assert found.spread.tokens == pytest.approx(2 * facts["expected_length"], rel=1e-12)
    assert found.spread.rewards == pytest.approx(2, rel=1e-12)
    assert found.spread.tokens == pytest.approx(exact.tokens, rel=0.06)
    low, high = found.interval("trace")
    assert 2 * low - found.spread.trace <= exact.trace_covariance <= 2 * high - found.spread.trace


def test_a_spread_needs_two_prompts():
    with pytest.raises(ValueError, match=r"^prompts is 1; a spread needs at least 2\.$"):
        measured_task(1)


# --- a pilot ----------------------------------------------------------------------------------------------------------


def pilot(task: TokenMDPTask, prompts: int, budget: float = 3000.0, seed: int = 0, **options):
    policy = uniform(task)
    return pilot_allocation(budget, policy, sampler(policy, task, prompts, seed), task.horizon, seed=seed, **options)


def exact_tokens_to_signal(
    task: TokenMDPTask, group_size: int, steps: Sequence[int], lam: float, samples: int
) -> float:
    p = Problem(replace(instance_of(task), policy=uniform(task)))
    (price,) = exact_prices(p.enumeration, (group_size,), [tuple(steps)], (lam,))
    return price.trace(samples) * price.tokens(samples) / float(p.target("reward").square().sum())


def test_where_only_the_first_token_counts_a_pilot_cuts_early():
    """One reward for six tokens of which one matters: branches pay, by exact figures of every choice."""
    task = Credit(vocab_size=2, horizon=6)
    found = pilot(task, 32, cuts=[(), (3,), (1, 3, 4)])
    assert found.split.steps == (1, 3, 4) and found.split.lam == 0.0 and found.samples == 1
    chosen, whole = (
        exact_tokens_to_signal(task, found.split.group_size, steps, 0.0, 1) for steps in (found.split.steps, ())
    )
    assert chosen < 0.8 * whole
    # A response of six tokens and one from each of three cuts, with 5, 3 and 2 tokens to come.
    assert found.tokens == pytest.approx(found.split.group_size * (6 + 5 + 3 + 2))
    assert found.tokens * found.prompts <= 3000 < found.tokens * (found.prompts + 1)
    # The cheapest cut of all.
    assert pilot(task, 32).split.steps == (1,)


def test_a_pilot_of_four_tokens_and_eight_steps():
    found = pilot(Credit(vocab_size=4, horizon=8), 8, group_sizes=(2, 4), lams=(0.0,))
    assert found.split.steps == (1,) and "RLOO" not in found.words


@pytest.mark.parametrize("seed", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_where_every_token_counts_a_pilot_chooses_about_the_best(seed):
    """By exact figures no other choice that it had needs many tokens less."""
    task = Tabular(2, 3, eos=None, seed=seed)
    found = pilot(task, 200)
    options = [(size, steps, lam) for size in (2, 4, 8) for steps in ((), (1,), (1, 2)) for lam in (0.0, 0.5)]
    best = min(exact_tokens_to_signal(task, *option, samples) for option in options for samples in (1, 2, 3))
    assert (
        exact_tokens_to_signal(task, found.split.group_size, found.split.steps, found.split.lam, found.samples)
        < 1.15 * best
    )


def test_a_pilot_draws_branches_once_for_all_splits():
    task = Credit(vocab_size=2, horizon=4)
    policy = uniform(task)
    source = sampler(policy, task, 10)
    pilot_allocation(500.0, policy, source, 4, group_sizes=(2, 4))
    # Four responses of four tokens; from each, PILOT_BRANCHES before tokens 2, 3, 4: with 3, 2 and 1 tokens to come.
    assert source.cost.tokens == 10 * 4 * (4 + PILOT_BRANCHES * (3 + 2 + 1))


def test_a_pilot_without_any_signal_says_so():
    task = Credit(vocab_size=2, horizon=3)
    silent = TokenMDPTask(
        replace(task.mdp, token_reward=LastTokenReward(lambda prompt, tokens, mask: torch.ones(tokens.shape[:-1])))
    )
    sentence = (
        r"^the 8 responses to every prompt of the pilot batch have the same reward, so nothing tells one split from "
        r"another; take more prompts or an easier task, or leave budget out\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        pilot(silent, 10)


def test_a_pilot_whose_budget_is_too_small_says_so():
    sentence = r"^a budget of 5 tokens is too small: the cheapest group costs 6\.0 tokens on average; raise it\.$"
    with pytest.raises(ValueError, match=sentence):
        pilot(Credit(vocab_size=2, horizon=3), 10, budget=5.0)


def test_a_sketch_of_gradients_along_one_input_scatters_as_documented():
    """A width that the rows of a matrix divide would put a column into a few numbers: 30 % instead of 1.6 % at 8192."""
    shapes = [(2048, 1024)] * 2
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for shape in shapes:
        gradient = 0.01 * torch.randn(shape, generator=generator)
        gradient[:, 5] += torch.randn(shape[0], generator=generator)
        gradients.append(gradient)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    errors = []
    for seed in range(20):
        vector, square = Sketch(parameters, seed)(gradients)
        errors.append(float(vector @ vector) / square - 1)
    assert float(torch.tensor(errors).std()) < 2 * math.sqrt(2 / WIDTH)
