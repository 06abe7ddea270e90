"""Samplers around samplers: a meter that reads what was spent, and a replay that shows many estimators the very same
draws."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.algorithms import (
    GRPO,
    PPO,
    REINFORCE,
    RLOO,
    ReMax,
    TRePO,
    VinePPO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, EveryNTokens
from llm_mdp.estimators.practices import Tempered, ZeroStdFiltered
from llm_mdp.estimators.theorems import ReturnToGo
from llm_mdp.estimators.values import has_signal
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler, TreeSampler
from llm_mdp.mdp.tree import prompt_index
from llm_mdp.sampling.evidence import Branches, Evidence, as_worlds
from llm_mdp.sampling.policies import NgramPolicy, logp_of
from llm_mdp.sampling.sampler import PolicySampler, Sampler
from llm_mdp.sampling.shared_draws import Meter, SharedDraws
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import loss_weights
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import TokenMDPTask
from tests.exact.test_enumeration import BestOfBranches

INSTANCE = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3)
ENUMERATION = Enumeration(INSTANCE.mdp, INSTANCE.policy)
TARGET = Problem(INSTANCE).target("reward")

RAMP = (0.0, 0.5, 1.0)
ESTIMATORS: dict[str, Estimator] = {
    "REINFORCE": REINFORCE(),
    "RLOO": RLOO(group_size=3),
    "ReMax": ReMax(group_size=2),
    "TRePO": TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,) * 3),
    "TRePO, none at the prompt": TRePO(group_size=2, temperatures=(1.0,) * 2, group_baseline=True),
    "TRePO, a ramp": TRePO(group_size=2, pooled=True, temperatures=RAMP),
    "VinePPO, where the prefix says": VinePPO(boundary=AfterTokens((1,)), temperatures=(1.0,) * 2),
    "VinePPO, nowhere": VinePPO(group_size=2, boundary=AtSteps(()), group_baseline=True),
}


def core_sampler(seed: int = 0, prompts: int = 1, policy=INSTANCE.policy) -> PolicySampler:
    return PolicySampler(policy, INSTANCE.mdp, torch.Generator().manual_seed(seed), prompts)


def task_sampler(seed: int = 0, prompts: int = 1, task=None, policy=INSTANCE.policy) -> TaskSampler:
    task = TokenMDPTask(INSTANCE.mdp) if task is None else task
    return TaskSampler(policy, task, torch.Generator().manual_seed(seed), np.random.default_rng(seed), prompts)


# --- the meter --------------------------------------------------------------------------------------------------------


def exact_cost(estimator: Estimator, enumerate_branches: bool) -> tuple[float, float]:
    """Over all outcomes."""
    spent = torch.zeros(2, dtype=torch.float64)
    for groups in all_groups(ENUMERATION, estimator.group_size):
        meter = Meter(ExactSampler(ENUMERATION, groups, enumerate_branches))
        estimator.collect(meter)
        spent += torch.stack([(meter.weight * each).sum() for each in meter.cost(estimator.group_size)])
    return tuple(spent.tolist())


@pytest.mark.parametrize(
    "estimator",
    [REINFORCE(), ReMax(group_size=2), VinePPO(temperatures=(1.0,) * 2), BestOfBranches(boundary=EveryNTokens(3))],
)
def test_means_and_outcomes_of_branches_cost_the_same(estimator):
    """Expected tokens where branches are summed up, counted tokens where every outcome is a world."""
    found = exact_cost(estimator, enumerate_branches=True)
    assert found == pytest.approx(exact_cost(estimator, enumerate_branches=False), rel=1e-10)
    assert found[0] > estimator.group_size


def drawn_costs(kind: str, estimator: Estimator, number: int) -> tuple[Tensor, Tensor]:
    if kind == "tree":
        meter = Meter(TreeSampler(ENUMERATION, number, torch.Generator().manual_seed(1)))
    else:
        meter = Meter({"policy": core_sampler, "task": task_sampler}[kind](1, number))
    estimator.collect(meter)
    return meter.cost(estimator.group_size)


@pytest.mark.parametrize("kind", ["tree", "policy", "task"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_drawn_costs_average_to_the_exact_one(kind, name):
    estimator, number = ESTIMATORS[name], 3_000
    moments = exact_moments(estimator, ENUMERATION)
    for drawn, expected in zip(drawn_costs(kind, estimator, number), (moments.tokens, moments.rewards)):
        assert drawn.shape == (number,)
        assert float(drawn.mean()) == pytest.approx(expected, abs=4.5 * float(drawn.std()) / number**0.5 + 1e-9)


CONVERSATIONS: dict[str, Callable] = {
    "guess the number": lambda: GuessNumber(highest=5, max_turns=4),
    "guess, short": lambda: GuessNumber(highest=12, max_turns=5, horizon=9),
    "consultation": lambda: Consultation(max_turns=4),
}


def talker(task, seed: int = 0) -> NgramPolicy:
    """A policy that hands over often and ends rarely."""
    policy = NgramPolicy.random(task.vocab_size, 1, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        policy.table[..., task.end_of_turn] += 3
        policy.table[..., task.eos] -= 1
    return policy


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("task_name", ["token MDP", *CONVERSATIONS])
def test_the_meter_reads_what_the_task_s_sampler_counts(task_name, name):
    task = TokenMDPTask(INSTANCE.mdp) if task_name == "token MDP" else CONVERSATIONS[task_name]()
    source = task_sampler(2, 7, task, INSTANCE.policy if task_name == "token MDP" else talker(task))
    meter, estimator = Meter(source), ESTIMATORS[name]
    estimator.collect(meter)
    tokens, rewards = meter.cost(estimator.group_size)
    assert tokens.shape == (7,)
    assert (float(tokens.sum()), float(rewards.sum())) == (source.cost.tokens, source.cost.rewards)


def test_every_group_pays_for_its_own():
    """Three responses, and their branches where they are long enough for any."""
    meter = Meter(core_sampler(4, 9))
    evidence = TRePO(group_size=3, boundary=AtSteps((1, 2)), temperatures=(1.0,) * 2).collect(meter)
    tokens, rewards = meter.cost(3)
    own, branches = evidence.rollouts.length.tolist(), evidence.branches
    for group in range(9):
        rows = range(3 * group, 3 * group + 3)
        drawn = [spent for row, spent in zip(branches.row.tolist(), branches.tokens.tolist()) if row in rows]
        assert float(tokens[group]) == sum(own[row] for row in rows) + sum(drawn)
        assert float(rewards[group]) == 3 + len(drawn)
    assert len(set(tokens.tolist())) > 3


def test_the_cost_of_a_conversation_by_hand():
    """Guessing 1 or 2, twice at most, a guess and "over" each: two tokens if the first guess is right, which is even
    odds, else four."""
    task = GuessNumber(highest=2, max_turns=2, malformed_penalty=0.0)
    logits = torch.full((1, task.vocab_size + 1, task.vocab_size), -40.0, dtype=torch.float64)
    one, two, over = task.words.index("1"), task.words.index("2"), task.end_of_turn
    logits[0, :, over] = 0.0
    logits[0, over, over] = -40.0
    logits[0, over, one], logits[0, over, two] = 0.0, float(np.log(3.0))
    number = 400
    meter = Meter(task_sampler(3, number, task, NgramPolicy(logits, order=1)))
    evidence = VinePPO(boundary=AtSteps(()), temperatures=(1.0,) * 2).collect(meter)
    tokens, rewards = meter.cost(1)
    own = evidence.rollouts.length.double()
    assert set(own.tolist()) == {2, 4}
    assert rewards.tolist() == [3] * number
    branches = tokens - own
    assert set(branches.tolist()) == {4, 6, 8}
    for drawn, expected in ((own, 3), (branches, 6)):
        assert float(drawn.mean()) == pytest.approx(expected, abs=4.5 * float(drawn.std()) / number**0.5)


def test_what_is_left_out_was_paid_for():
    source = task_sampler(0, 40)
    meter = Meter(source)
    estimator = ZeroStdFiltered(group_size=2)
    kept = estimator.collect(meter)
    tokens, rewards = meter.cost(2)
    assert len(kept.response_reward) < 80
    assert (
        (float(tokens.sum()), float(rewards.sum()))
        == (source.cost.tokens, source.cost.rewards)
        == (source.cost.tokens, 80)
    )


def test_a_metered_sampler_is_the_sampler():
    """Same draws, and whatever else it knows."""
    for name, estimator in ESTIMATORS.items():
        plain, metered = (estimator.collect(wrap(core_sampler(4, 5))) for wrap in (lambda sampler: sampler, Meter))
        assert torch.equal(plain.rollouts.tokens, metered.rollouts.tokens), name
        assert torch.equal(estimator.advantages(plain), estimator.advantages(metered))
    meter = Meter(TreeSampler(ENUMERATION, 9, torch.Generator().manual_seed(0)))
    critic = PPO(critic=INSTANCE.value).collect(meter)
    assert meter.weight.tolist() == [1 / 9] * 9 and meter.kept is None
    rollouts = critic.rollouts
    assert torch.equal(meter.logp(INSTANCE.reference, rollouts), meter.sampler.logp(INSTANCE.reference, rollouts))
    assert torch.equal(meter.hidden_reward(rollouts), meter.sampler.hidden_reward(rollouts))


# --- the replay -------------------------------------------------------------------------------------------------------


class Watched:
    """A sampler with a list of what it was asked to draw."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.batches = 0
        self.branched: list[tuple[tuple[float, ...] | None, Branches]] = []

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def rollouts(self, group_size, temperature=1.0, behaviour=None):
        self.batches += 1
        return self.sampler.rollouts(group_size, temperature, behaviour)

    def branches(self, rollouts, boundary, temperatures=(1.0,)):
        drawn = self.sampler.branches(rollouts, boundary, temperatures)
        self.branched.append((temperatures, drawn))
        return drawn

    @property
    def places(self) -> list[tuple[float, int, int]]:
        """(temperature, row, step) of every branch, with repetitions."""
        assert all(len(set(temperatures)) == 1 for temperatures, _ in self.branched)
        return [(t[0], *place) for t, b in self.branched for place in zip(b.row.tolist(), b.step.tolist())]


def by_place(branches: Branches, size: int, largest: int) -> dict[tuple[int, int], list[float]]:
    """Rewards of the branches from every place of the whole batch, in their order; rows are those of groups of
    `size`."""
    found: dict[tuple[int, int], list[float]] = {}
    for row, step, reward in zip(branches.row.tolist(), branches.step.tolist(), branches.reward.tolist()):
        found.setdefault((row // size * largest + row % size, step), []).append(reward)
    return found


def test_every_estimator_sees_the_first_responses_to_every_prompt():
    source = Watched(core_sampler(0, 6))
    replay = SharedDraws(source, 4)
    batch = replay.batch
    for estimator in (
        REINFORCE(),
        RLOO(group_size=2),
        RLOO(group_size=3),
        GRPO(group_size=4),
        ReMax(),
        PPO(critic=INSTANCE.value),
    ):
        evidence, size = estimator.collect(replay), estimator.group_size
        assert len(evidence.response_reward) == 6 * size
        for prompt in range(6):
            for k in range(size):
                mine, theirs = prompt * size + k, prompt * 4 + k
                for name in ("prompt", "tokens", "mask", "logp", "finish"):
                    assert torch.equal(getattr(evidence.rollouts, name)[mine], getattr(batch, name)[theirs]), name
                row = (batch.prompt[theirs], batch.tokens[theirs], batch.mask[theirs])
                assert float(evidence.response_reward[mine]) == pytest.approx(float(INSTANCE.mdp.response_reward(*row)))
    assert source.batches == 1


def test_disjoint_groups_of_one_batch():
    """The k-th two, the k-th three: no response twice, and every one with its own branches."""
    source = Watched(core_sampler(0, 5))
    replay = SharedDraws(source, 6)
    for estimator in (TRePO(group_size=2, temperatures=(1.0,)), TRePO(group_size=3, temperatures=(1.0,))):
        size, branches = estimator.group_size, 0
        tokens = []
        for replay.part in range(6 // size):
            evidence = estimator.collect(replay)
            tokens.append(evidence.rollouts.tokens.unflatten(0, (5, size)))
            branches += len(evidence.branches.row)
            assert torch.equal(evidence.response_reward, source.response_reward(evidence.rollouts))
        assert torch.equal(torch.cat(tokens, dim=1), replay.batch.tokens.unflatten(0, (5, 6)))
        assert branches == len(source.places) == int(replay.batch.mask.sum())


def test_hidden_rewards_and_values_are_those_of_the_responses():
    replay = SharedDraws(core_sampler(0, 5), 3)
    evidence = ReturnToGo(group_size=2, gamma=0.9, critic=INSTANCE.value).collect(replay)
    rollouts = evidence.rollouts
    response = (rollouts.prompt, rollouts.tokens, rollouts.mask)
    assert torch.equal(evidence.token_reward, INSTANCE.mdp.hidden_reward(*response))
    assert torch.equal(evidence.value, INSTANCE.value(*response))
    assert torch.equal(replay.logp(INSTANCE.reference, rollouts), logp_of(INSTANCE.reference, *response).detach())


def test_branches_from_one_place_are_one_draw_for_all():
    """Draw m from a place is the same for all; nothing is drawn twice, and nothing that nobody asked for."""
    source = Watched(task_sampler(1, 5))
    replay = SharedDraws(source, 3)
    asked: dict[tuple[float, int, int], int] = {}
    seen: dict[tuple[int, int], list[float]] = {}
    for estimator in (
        TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,) * 2),
        TRePO(group_size=3, temperatures=(1.0,) * 4),
        VinePPO(group_size=1, boundary=AfterTokens((1,)), temperatures=(1.0,) * 3),
        TRePO(group_size=3, temperatures=(1.0,) * 4, lam=0.5),
    ):
        branches, size = estimator.collect(replay).branches, estimator.group_size
        for place, rewards in by_place(branches, size, 3).items():
            assert len(rewards) == len(estimator.temperatures)
            known = seen.setdefault(place, [])
            assert rewards[: len(known)] == known[: len(rewards)], "the same draws, in the same order"
            seen[place] = max(known, rewards, key=len)
            asked[1.0, *place] = max(asked.get((1.0, *place), 0), len(estimator.temperatures))
    drawn = source.places
    assert {place: drawn.count(place) for place in set(drawn)} == asked
    assert (
        source.cost.tokens
        == replay.drawn_tokens
        == int(replay.batch.mask.sum()) + sum(int(b.tokens.sum()) for _, b in source.branched)
    )
    assert source.cost.rewards == 15 + len(drawn)


def test_every_temperature_has_draws_of_its_own():
    source = Watched(core_sampler(2, 4))
    replay = SharedDraws(source, 2)
    plain = TRePO(group_size=2, temperatures=(1.0,) * 2).collect(replay).branches
    ramp = TRePO(group_size=2, temperatures=RAMP).collect(replay).branches
    greedy = ReMax(group_size=2).collect(replay).branches
    places = int(replay.batch.mask.sum())
    drawn = source.places
    assert {t: sum(temperature == t for temperature, *_ in drawn) for t in RAMP} == {
        0.0: places,
        0.5: places,
        1.0: 2 * places,
    }
    one, three = by_place(plain, 2, 2), by_place(ramp, 2, 2)
    for place, rewards in by_place(greedy, 2, 2).items():
        assert rewards == three[place][:1], "the greedy response was known"
    for place, rewards in three.items():
        assert rewards[2] == one[place][0]
        here = torch.zeros_like(replay.batch.mask)
        here[place] = True
        assert rewards[0] == pytest.approx(float(core_sampler().branches(replay.batch, here, (0.0,)).reward))


def test_branches_are_listed_as_their_sampler_lists_them():
    """Fresh from a seed, a replay gives what the sampler itself would have given."""
    for estimator in (
        TRePO(group_size=2, temperatures=(1.0,) * 3),
        TRePO(group_size=2, temperatures=(0.5, 0.0, 0.5)),
        ReMax(group_size=2),
    ):
        plain, again = estimator.collect(core_sampler(7, 6)), estimator.collect(SharedDraws(core_sampler(7, 6), 2))
        for name in ("row", "step"):
            assert torch.equal(getattr(plain.branches, name), getattr(again.branches, name))
        for name in ("reward", "tokens"):
            torch.testing.assert_close(getattr(plain.branches, name), getattr(again.branches, name))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 100),
)
def test_whoever_comes_later_never_changes_what_was_seen(asked, prompts, seed):
    """Any estimators in any order: those that ask again for the same get the same."""
    replay = SharedDraws(core_sampler(seed, prompts), 3)
    estimators = [
        TRePO(group_size=size, boundary=EveryNTokens(n), temperatures=(1.0,) * samples) for size, n, samples in asked
    ]
    first = [estimator.collect(replay) for estimator in estimators]
    for estimator, before in zip(estimators, first):
        after = estimator.collect(replay)
        for name in ("row", "step", "reward", "tokens"):
            assert torch.equal(getattr(before.branches, name), getattr(after.branches, name))
        assert len(before.branches.row) == len(estimator.temperatures) * int(estimator.boundary(before.rollouts).sum())


def test_every_estimator_s_own_cost_is_charged():
    """Draws that were there already are charged to everybody who uses them."""
    replay = SharedDraws(core_sampler(3, 8), 3)
    for _ in range(2):
        for estimator in (
            RLOO(group_size=3),
            TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,) * 3),
            ReMax(),
        ):
            meter = Meter(replay)
            evidence = estimator.collect(meter)
            tokens, rewards = meter.cost(estimator.group_size)
            places = 0 if evidence.branches is None else len(evidence.branches.row)
            assert float(rewards.sum()) == len(evidence.response_reward) + places
            own = int(evidence.rollouts.mask.sum())
            assert float(tokens.sum()) == own + (
                0 if evidence.branches is None else float(evidence.branches.tokens.sum())
            )


def group_gradients(estimator: Estimator, sampler: Sampler) -> Tensor:
    """The gradient of every group: each response is one of the enumeration, whose scores are known."""
    worlds = as_worlds(estimator.collect(sampler), estimator.group_size)
    rollouts = worlds.rollouts
    leaf = INSTANCE.mdp.tree.first_leaf(rollouts.tokens)[..., -1]
    edge = ENUMERATION.edge[prompt_index(rollouts.prompt, INSTANCE.mdp.prompt_tokens), leaf]
    weights = loss_weights(estimator, worlds, rollouts.logp)
    by_edge = torch.zeros(len(weights), ENUMERATION.n_edges, dtype=torch.float64)
    return by_edge.scatter_add_(1, edge.flatten(1), weights.flatten(1)) @ ENUMERATION.scores


REPLAYED: dict[str, Estimator] = {
    "RLOO": RLOO(group_size=2),
    "RLOO, all of them": RLOO(group_size=3),
    "ReMax": ReMax(),
    "TRePO": TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,)),
    "VinePPO": VinePPO(temperatures=(1.0,) * 3),
    "TRePO, none at the prompt": TRePO(group_size=3, temperatures=(1.0,) * 2, group_baseline=True),
}


def test_on_average_every_estimator_of_a_replay_has_the_exact_gradient():
    """One replay of many prompts for all of them; each has the mean and the noise of its enumeration."""
    number = 3_000
    replay = SharedDraws(core_sampler(5, number), 3)
    for name, estimator in REPLAYED.items():
        gradient = group_gradients(estimator, replay)
        moments = exact_moments(estimator, ENUMERATION)
        torch.testing.assert_close(moments.mean, TARGET, rtol=1e-9, atol=1e-12)
        assert float((gradient.mean(0) - TARGET).square().sum()) < 3 * moments.trace_covariance / number, name
        noise = gradient.square().sum(-1)
        expected = moments.trace_covariance + float(TARGET @ TARGET)
        assert float(noise.mean()) == pytest.approx(expected, abs=4.5 * float(noise.std()) / number**0.5), name


def test_estimators_of_a_replay_differ_less_than_their_own_draws():
    """Common random numbers: the difference of two estimators scatters less than that of independent draws."""
    replay = SharedDraws(core_sampler(6, 300), 2)
    one, other = REPLAYED["TRePO"], TRePO(group_size=2, boundary=EveryNTokens(2), temperatures=(1.0,), lam=0.5)
    together = group_gradients(one, replay) - group_gradients(other, replay)
    apart = group_gradients(one, core_sampler(7, 300)) - group_gradients(other, core_sampler(8, 300))
    assert float(together.var(0).sum()) < 0.5 * float(apart.var(0).sum())


# --- groups that are left out, and what cannot be replayed ------------------------------------------------------------


def test_groups_that_are_left_out_are_left_out():
    source = core_sampler(0, 30)
    replay = SharedDraws(source, 3)
    evidence = ZeroStdFiltered(group_size=2).collect(replay)
    rows = replay.rows(2)
    signal = has_signal(replay.reward[rows], 2)
    assert 0 < int(signal.sum()) < 30
    assert torch.equal(evidence.rollouts.tokens, replay.batch.tokens[rows].unflatten(0, (30, 2))[signal].flatten(0, 1))


@dataclass(frozen=True)
class KeepThenBranch(TRePO):
    """Branches only from the groups that it kept."""

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        evidence = Evidence(rollouts, sampler.response_reward(rollouts))
        evidence = sampler.keep(evidence, has_signal(evidence.response_reward, self.group_size))
        kept = evidence.rollouts
        return replace(evidence, branches=sampler.branches(kept, self.boundary(kept), self.temperatures))


@pytest.mark.parametrize("seed", range(4))
def test_branches_of_kept_groups_go_on_with_their_own_responses(seed):
    """As with the sampler itself: whose prefix is it, and whose prompt?"""
    estimator = KeepThenBranch(group_size=2, temperatures=(1.0,) * 2)
    expected = estimator.collect(core_sampler(seed, 12))
    source = Watched(core_sampler(seed, 12))
    found = estimator.collect(SharedDraws(source, 2))
    assert len(expected.response_reward) < 24
    assert torch.equal(found.rollouts.tokens, expected.rollouts.tokens)
    assert torch.equal(found.branches.row, expected.branches.row) and torch.equal(
        found.branches.step, expected.branches.step
    )
    # The sampler draws from the same prefixes in the same order, so from the same seed it draws the same.
    torch.testing.assert_close(found.branches.reward, expected.branches.reward)


def test_what_cannot_be_replayed_is_said():
    replay = SharedDraws(core_sampler(0, 3), 2)
    with pytest.raises(ValueError, match=r"group 1 of 3 responses was asked for, but 2 .* were drawn; draw more"):
        RLOO(group_size=3).collect(replay)
    replay.part = 2
    with pytest.raises(ValueError, match="group 3 of 1 responses was asked for, but 2 "):
        REINFORCE().collect(replay)
    with pytest.raises(
        ValueError,
        match=r"the batch was drawn at temperature 1, and this estimator asks for 0\.6; measure it on its own",
    ):
        Tempered().collect(replay)
