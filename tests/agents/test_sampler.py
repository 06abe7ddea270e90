"""`TaskSampler`: on token MDPs it is `PolicySampler`; in conversations it lets the environment speak; and it counts
what it costs."""

from collections import Counter

import numpy as np
import pytest
import torch

from llm_mdp.estimators.algorithms import TRePO
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts
from llm_mdp.sampling.policies import NgramPolicy, Policy, logp_of
from llm_mdp.sampling.sampler import NothingKept, PolicySampler
from llm_mdp.verify.moments import exact_moments
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.task import Task
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import TokenMDPTask
from llm_mdp_envs.turns import mask_of
from llm_mdp_envs.vector_env import replay

INSTANCE = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3)
ENUMERATION = Enumeration(INSTANCE.mdp, INSTANCE.policy)
TASK = TokenMDPTask(INSTANCE.mdp)
CONVERSATIONS = {
    "guess the number": lambda: GuessNumber(highest=5, max_turns=4),
    "guess, short": lambda: GuessNumber(highest=12, max_turns=5, horizon=9),
    "consultation": lambda: Consultation(max_turns=4),
}


def sampler(
    seed: int = 0, prompts: int = 1, task: Task = TASK, policy: Policy = INSTANCE.policy, **options
) -> TaskSampler:
    return TaskSampler(
        policy, task, torch.Generator().manual_seed(seed), np.random.default_rng(seed), prompts, **options
    )


class Chosen(TokenMDPTask):
    """Asks what another sampler asked."""

    def __init__(self, mdp, prompts: torch.Tensor):
        super().__init__(mdp)
        self.asked = iter(prompts.tolist())

    def question(self, generator):
        return self.from_prompt(tuple(next(self.asked)))


def both(seed: int, prompts: int, group_size: int) -> tuple[PolicySampler, Rollouts, TaskSampler, Rollouts]:
    """The two samplers with the same questions and the same generator of tokens."""
    one = PolicySampler(INSTANCE.policy, INSTANCE.mdp, torch.Generator().manual_seed(seed), prompts)
    first = one.rollouts(group_size)
    generator = torch.Generator().manual_seed(seed)
    torch.multinomial(INSTANCE.mdp.prompt_probability, prompts, replacement=True, generator=generator)
    task = Chosen(INSTANCE.mdp, first.prompt[::group_size])
    other = TaskSampler(INSTANCE.policy, task, generator, np.random.default_rng(0), prompts)
    return one, first, other, other.rollouts(group_size)


# --- one turn: the core's sampler -------------------------------------------------------------------------------------


def test_equal_seeds_give_what_the_core_s_sampler_gives():
    one, first, other, second = both(seed=4, prompts=6, group_size=3)
    for name in ("prompt", "tokens", "mask", "logp", "finish"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    torch.testing.assert_close(one.response_reward(first), other.response_reward(second), rtol=1e-12, atol=1e-12)
    assert torch.equal(one.hidden_reward(first), other.hidden_reward(second))
    assert torch.equal(one.logp(INSTANCE.reference, first), other.logp(INSTANCE.reference, second))
    assert torch.equal(one.value(INSTANCE.value, first), other.value(INSTANCE.value, second))


@pytest.mark.parametrize("temperatures", [(1.0, 1.0, 1.0), (0.0,), (0.5, 0.0, 0.5)])
def test_equal_seeds_give_the_branches_of_the_core_s_sampler(temperatures):
    one, first, other, second = both(seed=5, prompts=4, group_size=2)
    boundary = EveryNTokens(2)(first)
    expected, found = one.branches(first, boundary, temperatures), other.branches(second, boundary, temperatures)
    assert torch.equal(expected.row, found.row) and torch.equal(expected.step, found.step)
    torch.testing.assert_close(expected.reward, found.reward, rtol=1e-12, atol=1e-12)


def test_prompts_come_by_their_probabilities_in_whole_groups():
    drawn = sampler(prompts=4000).rollouts(2)
    first = (drawn.prompt == INSTANCE.mdp.prompt_tokens[0]).all(-1).unflatten(0, (-1, 2))
    assert torch.equal(first[:, 0], first[:, 1])
    expected = INSTANCE.mdp.prompts[0].probability
    assert abs(float(first[:, 0].double().mean()) - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_questions_and_tokens_have_generators_of_their_own():
    """Other draws, the same questions: so agents that draw more are asked the same."""
    one, other = sampler(0, 20), sampler(0, 20)
    other.generator.manual_seed(99)
    first, second = one.rollouts(2), other.rollouts(2)
    assert torch.equal(first.prompt, second.prompt) and not torch.equal(first.tokens, second.tokens)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    TRePO().collect(sampler(1, 3))
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_rows_go_through_a_model_a_few_at_a_time():
    widths = []

    class Watched(NgramPolicy):
        def logits(self, prompt, tokens):
            widths.append(len(tokens))
            return super().logits(prompt, tokens)

    policy = Watched.random(3, 1, torch.Generator().manual_seed(0))
    source = sampler(prompts=7, policy=policy, rows_at_once=2)
    drawn = source.rollouts(1)
    widths.clear()
    scored = source.logp(policy, drawn)
    assert widths == [2, 2, 2, 1] and not scored.requires_grad
    assert torch.equal(scored, logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask).detach())


def test_kept_groups_keep_their_questions():
    source = sampler(prompts=3)
    drawn = source.rollouts(2)
    asked = source.questions
    kept = source.keep(Evidence(drawn, source.response_reward(drawn)), torch.tensor([True, False, True]))
    assert torch.equal(kept.rollouts.tokens, drawn.tokens[[0, 1, 4, 5]])
    assert source.questions == (*asked[:2], *asked[4:])
    with pytest.raises(NothingKept, match="none of 3 groups is kept; draw more prompts a batch"):
        sampler(prompts=3).keep(Evidence(drawn, torch.zeros(6)), torch.zeros(3, dtype=torch.bool))


def test_hidden_rewards_are_known_for_some_tasks_only():
    task = Arithmetic()
    policy = NgramPolicy.random(task.vocab_size, 0, torch.Generator().manual_seed(0))
    source = sampler(prompts=20, task=task, policy=policy)
    drawn = source.rollouts(1)
    torch.testing.assert_close(source.hidden_reward(drawn).sum(-1), source.response_reward(drawn))
    task = GuessNumber()
    policy = NgramPolicy.random(task.vocab_size, 0, torch.Generator().manual_seed(0))
    source = sampler(task=task, policy=policy)
    with pytest.raises(
        ValueError, match="GuessNumber has no token rewards; only token MDPs and Arithmetic know theirs"
    ):
        source.hidden_reward(source.rollouts(1))


def test_a_batch_has_a_prompt():
    with pytest.raises(ValueError, match="prompts_per_batch is 0; a batch has at least 1 prompt"):
        sampler(prompts=0)


# --- several temperatures ---------------------------------------------------------------------------------------------


def value_by_hand(prompt: torch.Tensor, prefix: tuple[int, ...], temperature: float) -> float:
    """E[RM | the response begins so] under the policy at a temperature, by recursion over tokens."""
    mdp = INSTANCE.mdp
    if len(prefix) == mdp.horizon or mdp.eos in prefix:
        row = torch.tensor([[*prefix, *[PAD] * (mdp.horizon - len(prefix))]])
        return float(mdp.response_reward(prompt[None], row, row != PAD))
    logits = INSTANCE.policy.logits(prompt[None], torch.tensor([[*prefix, 1]]))[0, len(prefix)].detach()
    if temperature == 0:
        return value_by_hand(prompt, (*prefix, int(logits.argmax())), temperature)
    chances = (logits / temperature).softmax(-1).tolist()
    return sum(chance * value_by_hand(prompt, (*prefix, token), temperature) for token, chance in enumerate(chances))


TEMPERATURES = (0.0, 0.5, 1.0)


def test_exact_branches_of_several_temperatures_are_the_means_by_hand():
    """Every branch of every world; a temperature that is given twice has two branches."""
    sampler = ExactSampler(ENUMERATION, next(iter(all_groups(ENUMERATION, 1))))
    rollouts = sampler.rollouts(1)
    branches = sampler.branches(rollouts, rollouts.mask, (0.5, 0.0, 1.0, 0.5))
    count, by_place = 0, {}
    for place, (row, step) in enumerate(zip(branches.row.tolist(), branches.step.tolist())):
        by_place.setdefault((row, step), []).append(place)
    for world in range(len(rollouts.tokens)):
        prompt = rollouts.prompt[world, 0]
        for (row, step), places in by_place.items():
            if not rollouts.mask[world, row, step]:
                continue
            prefix = tuple(rollouts.tokens[world, row, :step].tolist())
            found = sorted(branches.reward[world, places].tolist())
            half, greedy, one = (value_by_hand(prompt, prefix, temperature) for temperature in (0.5, 0.0, 1.0))
            assert found == pytest.approx(sorted([half, half, greedy, one]), abs=1e-12)
            variance = branches.variance[world, places]
            assert int((variance < 1e-15).sum()) >= 1, "a greedy branch has none"
            count += 1
    assert count > 30


def test_drawn_branches_of_several_temperatures_have_these_means():
    source, draws = sampler(2, prompts=6), 1500
    rollouts = source.rollouts(1)
    boundary = rollouts.mask
    places = [(r, t) for r, t in boundary.nonzero().tolist()]
    branches = source.branches(rollouts, boundary, TEMPERATURES * draws)
    reward = branches.reward.reshape(len(places), 3, draws)
    for (row, step), drawn in zip(places, reward):
        prefix = tuple(rollouts.tokens[row, :step].tolist())
        for temperature, values in zip(TEMPERATURES, drawn):
            expected = value_by_hand(rollouts.prompt[row], prefix, temperature)
            assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / draws**0.5 + 1e-12
    assert not (reward[:, 1].mean(-1) == reward[:, 2].mean(-1)).all()


def test_a_ramp_of_temperatures_in_training_is_the_one_that_is_verified():
    """TRePO's branches as printed: the mean gradient of many groups against its exact expectation."""
    instance = random_instance(2, 3, n_prompts=1, seed=6)
    e = Enumeration(instance.mdp, instance.policy)
    estimator = TRePO(temperatures=TEMPERATURES)
    world = ExactSampler(e, next(iter(all_groups(e, 1))))
    exact = estimator.collect(world)
    expected = world.weight @ estimator.advantages(exact)[:, 0]
    groups = 20_000
    source = TaskSampler(
        instance.policy, TokenMDPTask(instance.mdp), torch.Generator().manual_seed(0), np.random.default_rng(0), groups
    )
    advantage = estimator.advantages(estimator.collect(source))
    assert ((advantage.mean(0) - expected).abs() < 4.5 * advantage.std(0) / groups**0.5).all()
    assert float(expected.abs().max()) > 0.01, "greedy values differ from the policy's own"


def test_temperatures_that_do_not_fit_are_refused():
    source = sampler()
    rollouts = source.rollouts(1)
    for wrong in ((), (1.0, -0.5), (float("nan"),), (float("inf"),)):
        with pytest.raises(ValueError, match=r"temperatures are \(.*; give each branch one of at least 0"):
            source.branches(rollouts, rollouts.mask, wrong)


# --- conversations ----------------------------------------------------------------------------------------------------


def talker(task: Task, seed: int = 0) -> NgramPolicy:
    """A policy that hands over often and ends rarely."""
    policy = NgramPolicy.random(task.vocab_size, 1, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        policy.table[..., task.end_of_turn] += 3
        policy.table[..., task.eos] -= 1
    return policy


def row_of(rollouts: Rollouts, row: int) -> list[int]:
    return [token for token in rollouts.tokens[row].tolist() if token != PAD]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_those_of_the_environment(name):
    task = CONVERSATIONS[name]()
    policy = talker(task)
    source = sampler(1, 30, task, policy)
    drawn = source.rollouts(2)
    questions = source.questions
    assert drawn.tokens.shape == (60, task.horizon) and len(questions) == 60
    finishes = set()
    for row, question in enumerate(questions):
        tokens = row_of(drawn, row)
        mask = mask_of(task, question, tokens)
        assert drawn.mask[row].tolist() == [*mask.tolist(), *[False] * (task.horizon - len(tokens))]
        assert tuple(drawn.prompt[row][drawn.prompt[row] != PAD].tolist()) == question.prompt
        finishes.add(int(drawn.finish[row]))
        ended = tokens[-1] == task.eos and mask[-1]
        assert (drawn.finish[row] == Finish.EOS) == ended
        assert drawn.finish[row] != Finish.HORIZON or len(tokens) == task.horizon
    assert len(finishes) > 1 and not drawn.mask[drawn.tokens != PAD].all(), "the environment did speak"
    reward = replay(task, questions, drawn.tokens.numpy()).reward
    assert source.response_reward(drawn).tolist() == reward.tolist() and len(set(reward.tolist())) > 1
    scored = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask)
    torch.testing.assert_close(drawn.logp, scored.detach(), rtol=1e-12, atol=1e-12)
    assert (drawn.logp[~drawn.mask] == 0).all() and (drawn.logp[drawn.mask] < 0).all()


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.0,), (0.0, 0.7)])
def test_branches_in_the_middle_of_a_conversation_go_on_with_it(name, temperatures, monkeypatch):
    task = CONVERSATIONS[name]()
    policy = talker(task)
    source = sampler(2, 10, task, policy)
    rollouts = source.rollouts(1)
    seen = []
    score = task.score

    def watched(questions, tokens, mask):
        scores = score(questions, tokens, mask)
        seen.append((list(questions), tokens, mask, scores.reward))
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(task, "score", watched)
        branches = source.branches(rollouts, rollouts.mask, temperatures)
    each = len(temperatures)
    assert len(branches.reward) == each * int(rollouts.mask.sum())
    parts = list(Counter(temperatures).items())
    reward = branches.reward.reshape(-1, each)
    places = rollouts.mask.nonzero().tolist()
    column = 0
    for (temperature, number), (questions, tokens, mask, rewards) in zip(parts, seen, strict=True):
        assert rewards.reshape(-1, number).tolist() == reward[:, column : column + number].tolist()
        column += number
        goes_on = 0
        for place, (question, response, own) in enumerate(zip(questions, tokens.tolist(), mask)):
            row, step = places[place // number]
            assert question == source.questions[row]
            assert response[:step] == rollouts.tokens[row, :step].tolist(), "the prefix was kept"
            whole = [token for token in response if token != PAD]
            assert mask_of(task, question, whole).tolist() == own[: len(whole)].tolist()
            goes_on += not own[step : len(whole)].all()
            if temperature == 0:
                check_greedy(policy, question.prompt, response, own, step)
        assert goes_on > 0, "some branches heard replies of their own"
        assert rewards.tolist() == replay(task, questions, tokens).reward.tolist()


def check_greedy(policy: Policy, prompt: tuple[int, ...], response: list[int], own: np.ndarray, step: int) -> None:
    """From `step` on every token of the policy is its most probable one."""
    best = policy.logits(torch.tensor([prompt]), torch.tensor([response]))[0].argmax(-1).tolist()
    assert all(not own[t] or response[t] == best[t] for t in range(step, len(response)))


def test_branches_of_a_conversation_average_to_its_value():
    """Guessing 1 or 2: the value before the guess, worked out by hand, and after the reply as well."""
    task = GuessNumber(highest=2, max_turns=2, malformed_penalty=0.0)
    logits = torch.full((1, task.vocab_size + 1, task.vocab_size), -40.0, dtype=torch.float64)
    one, two, over = task.words.index("1"), task.words.index("2"), task.end_of_turn
    logits[0, :, over] = 0.0
    logits[0, over, over] = -40.0
    logits[0, over, one], logits[0, over, two] = 0.0, float(np.log(3.0))
    policy = NgramPolicy(logits, order=1)
    source = sampler(3, 20, task, policy)
    rollouts = source.rollouts(1)
    draws = 200
    branches = source.branches(rollouts, rollouts.mask, (1.0,) * draws)
    reward = branches.reward.reshape(-1, draws)
    chance = {one: 0.25, two: 0.75}
    checked = set()
    for (row, step), drawn in zip(rollouts.mask.nonzero().tolist(), reward):
        secret = {1: one, 2: two}[source.questions[row].secret]
        before = row_of(rollouts, row)[:step]
        again = 0.5 * chance[secret]
        if before == []:
            expected = chance[secret] + (1 - chance[secret]) * again
        elif len(before) == 1:
            expected = 1.0 if before[0] == secret else again
        elif before[-1] == over:
            expected = again
        else:
            expected = 0.5 * (before[-1] == secret)
        checked.add((len(before), expected))
        decided = len(before) == 5 or expected == 1
        assert abs(float(drawn.mean()) - expected) < (1e-9 if decided else 4.5 * 0.5 / draws**0.5)
    assert len(checked) >= 6


# --- cost
#
#


def test_cost_counts_the_policy_s_tokens_and_the_scored_responses():
    source = sampler(prompts=5)
    drawn = source.rollouts(3)
    assert (source.cost.tokens, source.cost.rewards) == (int(drawn.mask.sum()), 0)
    source.response_reward(drawn)
    assert source.cost.rewards == 15
    source.logp(INSTANCE.reference, drawn)
    assert source.cost.tokens == int(drawn.mask.sum())


@pytest.mark.parametrize("name", ["token MDP", *CONVERSATIONS])
def test_cost_of_branches_is_what_comes_after_their_prefixes(name, monkeypatch):
    task = TASK if name == "token MDP" else CONVERSATIONS[name]()
    policy = INSTANCE.policy if name == "token MDP" else talker(task)
    source = sampler(4, 6, task, policy)
    drawn = source.rollouts(1)
    assert source.cost.tokens == int(drawn.mask.sum())
    scored, score = [], task.score

    def watched(questions, tokens, mask):
        scored.append(mask)
        return score(questions, tokens, mask)

    monkeypatch.setattr(task, "score", watched)
    before = source.cost.tokens
    boundary = EveryNTokens(2)(drawn)
    source.branches(drawn, boundary, (1.0,) * 3)
    starts = np.repeat([step for _, step in boundary.nonzero().tolist()], 3)
    new = sum(int(mask[start:].sum()) for mask, start in zip(scored[0], starts))
    assert source.cost.tokens - before == new > 0
    assert source.cost.rewards == 3 * int(boundary.sum())


def test_a_group_without_boundaries_has_no_branches():
    for task, policy in ((TASK, INSTANCE.policy), (GuessNumber(5), talker(GuessNumber(5)))):
        source = sampler(prompts=3, task=task, policy=policy)
        drawn = source.rollouts(1)
        branches = source.branches(drawn, torch.zeros_like(drawn.mask), (1.0, 1.0))
        assert len(branches.row) == len(branches.reward) == 0 and source.cost.rewards == 0


def test_the_same_moments_whichever_sampler_an_estimator_is_given():
    """The gradient of thousands of TRePO groups of a task averages to what verification says."""
    estimator, prompts = TRePO(temperatures=(1.0,) * 2), 3000
    moments = exact_moments(estimator, ENUMERATION)
    evidence = estimator.collect(sampler(5, prompts))
    rollouts = evidence.rollouts
    parameters = list(INSTANCE.policy.parameters())
    loss = estimator.loss(logp_of(INSTANCE.policy, rollouts.prompt, rollouts.tokens, rollouts.mask), evidence)
    mean = -torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
    assert float((mean - moments.mean).square().sum()) < 5 * moments.trace_covariance / prompts
