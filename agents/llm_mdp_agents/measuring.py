"""Covariance and cost of estimators on tasks and language models, where nothing is enumerated: gradients of single
estimates, streamed.

One batch of prompts is drawn and shared (`llm_mdp.sampling.shared_draws`): every estimator sees the same responses and,
from the same places, the same branches, so that what differs between their figures is the estimators. One prompt's
estimate goes through the model at a time; of each gradient there stay its squared length and a sketch. The true
gradient is not known; an unbiased estimator on the same draws stands in.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.values import has_signal
from llm_mdp.sampling.evidence import Evidence, as_worlds
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import NothingKept, Sampler
from llm_mdp.sampling.shared_draws import Meter, SharedDraws
from llm_mdp.variance.allocation import Allocation, Split, allocate, few_cuts, fitted_price
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.sampled import Estimates, sampled_measurement, sampled_spread
from llm_mdp.variance.unseen import seen_in
from llm_mdp.verify.weights import loss_weights
from llm_mdp_agents.gradient_basis import classes, combined, is_quicker
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.sketch import Sketch
from llm_mdp_envs.task import Task

PILOT_PROMPTS = 32
"""Prompts after which `measure_task` can say how many an answer takes."""
PILOT_BRANCHES = 4
"""Branches from every cut in a pilot batch."""


class NoSignal(ValueError):
    """All responses to every prompt have the same reward."""


def shared_estimates(
    estimators: Mapping[str, Estimator],
    policy: Policy,
    sampler: Sampler,
    group_size: int,
    sketch: Sketch,
) -> tuple[dict[str, Estimates], Evidence]:
    """Every estimator on one batch of the sampler, `group_size` responses to a prompt: one that wants fewer gets
    several disjoint groups.

    Returns:
        For every name the estimates of every prompt (their mean, and mean squared length), with the seconds that one
        took; and the batch.

    Raises:
        ValueError: if an estimator wants more responses than there are.
    """
    assert isinstance(policy, nn.Module)
    for name, estimator in estimators.items():
        if estimator.group_size > group_size:
            raise ValueError(
                f"{name} wants {estimator.group_size} responses to a prompt, and {group_size} are drawn; draw more."
            )
    replay = SharedDraws(sampler, group_size)
    return estimates_on(replay, estimators, policy, sketch), Evidence(replay.batch, replay.reward)


def estimates_on(
    replay: SharedDraws,
    estimators: Mapping[str, Estimator],
    policy: Policy,
    sketch: Sketch,
    rows_at_once: int | None = None,
    choosy: bool = False,
) -> dict[str, Estimates]:
    """Every estimator on draws that are there, see `shared_estimates`; branches are drawn when they are asked for.

    Args:
        rows_at_once: most responses that go through the model at once; None: a group.
        choosy: an estimator may leave groups out, whose estimates are then 0.
    """
    assert isinstance(policy, nn.Module)
    start, group_size = time.perf_counter(), replay.largest
    weights: dict[str, list[Tensor]] = {name: [] for name in estimators}
    costs: dict[str, list[Tensor]] = {name: [] for name in estimators}
    for name, estimator in estimators.items():
        for replay.part in range(group_size // estimator.group_size):
            meter = Meter(replay)
            weight = _weights(estimator, meter, len(replay.reward) // group_size)
            if meter.groups is not None and not choosy and not bool(meter.groups.all()):
                raise ValueError(
                    f"{name} leaves groups out, which cannot be compared on shared draws; measure it on a token MDP."
                )
            weights[name].append(weight)
            costs[name].append(torch.stack(meter.cost(estimator.group_size)))
    drawn = replay.drawn_tokens
    per_token = (time.perf_counter() - start) / drawn
    gradients, seconds = _streamed(policy, replay, weights, sketch, rows_at_once or group_size)
    found = {}
    for name, parts in costs.items():
        (tokens, rewards), (gradient, square) = torch.stack(parts).mean(0), gradients[name]
        found[name] = Estimates(gradient, square, tokens, rewards, seconds[name] + per_token * float(tokens.mean()))
    return found


def _weights(estimator: Estimator, meter: Meter, prompts: int) -> Float[Tensor, "N K T"]:
    """The weight of every token, each group by itself; 0 in groups that the estimator leaves out."""
    try:
        worlds = as_worlds(estimator.collect(meter), estimator.group_size)
    except NothingKept:
        assert meter.responses is not None
        return torch.zeros(prompts, estimator.group_size, meter.responses.tokens.shape[-1], dtype=torch.float64)
    weight = loss_weights(estimator, worlds, worlds.rollouts.logp)
    if meter.groups is None:
        return weight
    return weight.new_zeros(prompts, *weight.shape[1:]).index_put((meter.groups,), weight)


def _streamed(
    policy: Any, replay: SharedDraws, weights: Mapping[str, Sequence[Float[Tensor, "N K T"]]], sketch: Sketch,
    rows_at_once: int,
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:  # fmt: skip
    """Σ weight ∇log π of every prompt and estimator, one prompt (or fewer responses) in memory at a time; and the mean
    seconds of one."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    number = len(replay.reward) // replay.largest
    means = {name: torch.zeros(number, sketch.width, dtype=torch.float64) for name in weights}
    squares = {name: torch.zeros(number, dtype=torch.float64) for name in weights}
    seconds = dict.fromkeys(weights, 0.0)

    def logp_at(rows: slice) -> Tensor:
        return logp_of(policy, replay.batch.prompt[rows], replay.batch.tokens[rows], replay.batch.mask[rows])

    for prompt in range(number):
        # A group without signal has no gradient, and a prompt without any need not be read.
        every = ((name, k, part[prompt]) for name, parts in weights.items() for k, part in enumerate(parts))
        wanted = [(name, k, weight) for name, k, weight in every if bool((weight != 0).any())]
        if not wanted:
            continue
        first, whole, forward = prompt * replay.largest, None, 0.0
        if rows_at_once >= replay.largest:
            start, shape = time.perf_counter(), (len(wanted), replay.largest, replay.batch.tokens.shape[-1])
            listed = torch.zeros(shape, dtype=torch.float64)
            for row, (_, k, weight) in zip(listed, wanted):
                row[k * len(weight) : (k + 1) * len(weight)] = weight
            coefficients, which = classes(listed.flatten(1))
            which = which.view(shape[1:])
            if is_quicker(which, [len(weight) for _, _, weight in wanted], parameters, sketch):
                found = combined(
                    lambda row, first=first: logp_at(slice(first + row, first + row + 1)),
                    coefficients, which, parameters, sketch,
                )  # fmt: skip
                each = (time.perf_counter() - start) / coefficients.shape[1]
                for (name, _, _), vector, square in zip(wanted, *found):
                    share = 1 / len(weights[name])
                    means[name][prompt] += share * vector
                    squares[name][prompt] += share * square
                    seconds[name] += share * each
                continue
            start = time.perf_counter()
            whole = logp_at(slice(first, first + replay.largest))
            forward = (time.perf_counter() - start) / replay.largest
        for name, k, weight in wanted:
            start, size, share = time.perf_counter(), len(weight), 1 / len(weights[name])
            if whole is not None:
                gradient = torch.autograd.grad(
                    whole[k * size : (k + 1) * size], parameters, weight.to(whole), retain_graph=True, allow_unused=True
                )
            else:
                gradient = _in_parts(logp_at, first + k * size, weight, parameters, rows_at_once)
            vector, square = sketch(gradient)
            means[name][prompt] += share * vector
            squares[name][prompt] += share * square
            seconds[name] += share * (time.perf_counter() - start + forward * size)
    return {name: (means[name], squares[name]) for name in weights}, {
        name: each / number for name, each in seconds.items()
    }


def _in_parts(
    logp_at: Callable[[slice], Tensor], first: int, weight: Float[Tensor, "K T"], parameters: Sequence[nn.Parameter],
    rows_at_once: int,
) -> list[Tensor | None]:  # fmt: skip
    """Σ weight ∇log π of the responses from the row `first` on, of which so many are in memory at a time."""
    total: list[Tensor | None] = [None for _ in parameters]
    for start in range(0, len(weight), rows_at_once):
        part = weight[start : start + rows_at_once]
        if not bool((part != 0).any()):
            continue
        logp = logp_at(slice(first + start, first + start + len(part)))
        gradient = torch.autograd.grad(logp, parameters, part.to(logp), allow_unused=True)
        total = [new if old is None else old if new is None else old + new for old, new in zip(total, gradient)]
    return total


def measure_task(
    estimators: Mapping[str, Estimator],
    policy: Policy,
    task: Task,
    prompts: int,
    seed: int = 0,
    *,
    known: Mapping[str, Any] | None = None,
    prompts_at_once: int = 16,
    tell: Callable[[int], None] = lambda prompts: None,
    foretell: Callable[[Measurement, float], None] | None = None,
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """Figures of every estimator on a task, with bootstrap intervals over prompts.

    Args:
        known: what is true of some of them on every instance ("unbiased", "proportional"), by name.
        prompts_at_once: prompts that are drawn together.
        tell: told how many prompts are done.
        foretell: told once, after the first `PILOT_PROMPTS` where there are more to come, what the estimator that
            stands for the true gradient has come to, and how many seconds a prompt takes.

    Returns:
        Measurements by name, and facts: mean reward J, expected length, |∇J|, `target`, the estimator that stands for
        the true gradient (RLOO with the largest group), and `base`, its own measurement.

    Raises:
        ValueError: fewer than 2 prompts.
    """
    if prompts < 2:
        raise ValueError(f"prompts is {prompts}; a spread needs at least 2.")
    assert isinstance(policy, nn.Module)
    known = dict(known or {})
    largest = max([2, *(estimator.group_size for estimator in estimators.values())])
    listed, target = dict(estimators), f"rloo K={largest}"
    listed.setdefault(target, RLOO(group_size=largest))
    sketch = Sketch([parameter for parameter in policy.parameters() if parameter.requires_grad], seed)
    generator, questions = streams([seed, 7])
    parts: dict[str, list[Estimates]] = {name: [] for name in listed}
    rewards, lengths, done, start = [], [], 0, time.perf_counter()
    while done < prompts:
        number = min(prompts_at_once, prompts - done)
        sampler = TaskSampler(policy, task, generator, questions, number)
        found, batch = shared_estimates(listed, policy, sampler, largest, sketch)
        for name, estimates in found.items():
            parts[name].append(estimates)
        rewards.append(batch.response_reward)
        lengths.append(batch.rollouts.length)
        done += number
        tell(done)
        if foretell is not None and done - number < PILOT_PROMPTS <= done < prompts:
            pilot, each = joined_estimates(parts[target]), (time.perf_counter() - start) / done
            foretell(sampled_measurement(pilot, reference=pilot, seed=seed, known="unbiased"), each)
    whole = {name: joined_estimates(each) for name, each in parts.items()}
    reference = whole[target]
    measured = {}
    for name in estimators:
        certain = "unbiased" if name == target else known.get(name)
        measured[name] = sampled_measurement(whole[name], reference=reference, seed=seed, known=certain)
    base = sampled_measurement(reference, reference=reference, seed=seed, known="unbiased")
    reward, length = torch.cat(rewards), float(torch.cat(lengths).double().mean())
    facts = {
        "J": float(reward.mean()),
        "grad_norm": max(base.spread.size, 0.0) ** 0.5,
        "expected_length": length,
        "entropy": None,
        "success": float(reward.mean()) if bool(torch.isin(reward, torch.tensor([0.0, 1.0]).double()).all()) else None,
        "target": target,
        "base": base,
    }
    return measured, facts


def joined_estimates(parts: Sequence[Estimates]) -> Estimates:
    """All batches, with the mean of their seconds."""
    sizes = [len(part.square) for part in parts]
    return Estimates(
        torch.cat([part.gradient for part in parts]),
        torch.cat([part.square for part in parts]),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.rewards for part in parts]),
        sum((part.seconds or 0.0) * size for part, size in zip(parts, sizes)) / sum(sizes),
    )


def pilot_allocation(
    budget: float,
    policy: Policy,
    sampler: Sampler,
    horizon: int,
    *,
    group_sizes: Sequence[int] = (2, 4, 8),
    cuts: Sequence[tuple[int, ...]] | None = None,
    lams: Sequence[float] = (0.0, 0.5),
    seed: int = 0,
    batches: Iterable[SharedDraws] | None = None,
) -> Allocation:
    """How to spend a budget of tokens a batch, by a pilot batch of the sampler on which every split is tried
    (`llm_mdp.variance.allocation`).

    The choice says so (`caution`) where the pilot saw too little to be sure of it.

    Args:
        sampler: its batch is the pilot: more prompts make a surer choice.
        cuts: where responses may be cut; by default `allocation.few_cuts`.
        batches: the pilot's draws, batch by batch, each asked for when the one before has been looked at; None: one
            batch of the sampler.

    Raises:
        ValueError: if the budget does not afford one group.
        NoSignal: if no response of the pilot tells right from wrong.
    """
    assert isinstance(policy, nn.Module)
    listed = few_cuts(horizon) if cuts is None else cuts
    splits = [
        Split(size, steps, lam) for size in group_sizes for steps in listed for lam in (lams if steps else lams[:1])
    ]
    estimators = {}
    for number, split in enumerate(splits):
        estimators[f"{number} few"] = split.estimator(1)
        if split.steps:
            estimators[f"{number} many"] = split.estimator(PILOT_BRANCHES)
    # A choice between splits does not hang on a percent of their spread.
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    sketch = Sketch(trained, seed, exact_squares=False)
    parts: list[dict[str, Estimates]] = []
    signal = False
    for replay in batches or (SharedDraws(sampler, max(group_sizes)),):
        parts.append(estimates_on(replay, estimators, policy, sketch))
        signal |= bool(has_signal(replay.reward, max(group_sizes)).any())
    found = {name: joined_estimates([part[name] for part in parts]) for name in estimators}
    if not signal:
        raise NoSignal(
            f"the {max(group_sizes)} responses to every prompt of the pilot batch have the same reward, so nothing "
            f"tells one split from "
            "another; take more prompts or an easier task, or leave budget out."
        )
    # The length of the gradient is surest from the largest groups; the best split is the best whatever it is.
    plain = max(
        (number for number, split in enumerate(splits) if not split.steps),
        key=lambda number: splits[number].group_size,
        default=0,
    )
    reference = found[f"{plain} few"]
    spreads = {name: sampled_spread(each, reference=reference, known="unbiased") for name, each in found.items()}
    prices = [
        fitted_price(
            split, PILOT_BRANCHES, spreads[f"{number} few"], spreads.get(f"{number} many", spreads[f"{number} few"])
        )
        for number, split in enumerate(splits)
    ]
    found = allocate(budget, prices, max(spreads["0 few"].size, 1e-300))
    few = seen_in(reference.gradient, None).too_few
    return found if few is None else replace(found, caution=few.words)
