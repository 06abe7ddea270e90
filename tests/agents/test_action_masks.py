"""Action masks of tasks and token subsets of models: what is forbidden is never drawn, and what is drawn is scored with
the probabilities that it was drawn with."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import AtTemperature, Greedy, NgramPolicy, PolicyModule, TabularPolicy, logp_of
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp.verify.check import check_policy
from llm_mdp.verify.moments import exact_moments
from llm_mdp_agents import train
from llm_mdp_agents.action_masks import (
    TaskMask,
    check_drawn,
    check_unchanging,
    mask_policy,
    task_mask,
    tokens_written_with,
)
from llm_mdp_agents.lm import policy as lm
from llm_mdp_agents.lm.engines import _allowed_ids
from llm_mdp_agents.lm.loading import load_policy, save_model, small_transformer
from llm_mdp_agents.models import ScoredTask, frozen, scorer
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.training.evaluation import evaluate
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trained import load_policy_of_run
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.training.warm_start import warm_start
from llm_mdp_envs.check import check_task
from llm_mdp_envs.registry import ENTRIES
from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.tasks.arithmetic import EOS, Arithmetic
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.synthetic import Tabular
from llm_mdp_envs.token_env import TokenEnv


class NoRepeats(Tabular):
    """A token MDP in which no token but the end follows itself."""

    def action_mask(self, question, tokens):
        mask = np.ones(self.vocab_size, dtype=np.int8)
        before = [*question.prompt, *tokens]
        if before and before[-1] != self.eos:
            mask[before[-1]] = 0
        return mask


class Quiet(Task):
    """Turns of digits: the environment repeats the last one and speaks of the turn; nobody may write what it says
    alone, nor hand over an empty turn. While it speaks, everything is forbidden."""

    separates = "nothing"
    vocab_size, eos, horizon, prompt_length = 8, 0, 14, 2
    end_of_turn, max_turns = 1, 3
    SAYS = 7

    def question(self, generator):
        return Question(tuple(generator.integers(2, 6, size=int(generator.integers(1, 3))).tolist()))

    def reply(self, question, tokens):
        return (self.SAYS, tokens[-2], self.SAYS)

    def action_mask(self, question, tokens):
        mask = np.ones(self.vocab_size, dtype=np.int8)
        mask[self.SAYS] = 0
        if not tokens or tokens[-1] in (self.SAYS, *question.prompt):
            mask[self.end_of_turn] = 0
        if list(tokens).count(self.SAYS) % 2 == 1:
            mask[:] = 0
        return mask

    def score(self, questions, tokens, mask):
        return Scores((mask & (tokens == 4)).sum(1) / self.horizon)


TASKS = {
    "arithmetic": lambda: Arithmetic(digits=1, restricted=True, reward="outcome"),
    "no repeats": lambda: NoRepeats(4, 4, n_prompts=2, seed=1),
    "turns": Quiet,
    "consultation": lambda: Consultation(restricted=True),
}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def table(task):
    return TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, seed(1))


def ngram(task):
    return NgramPolicy.random(task.vocab_size, 1, seed(2))


def transformer(task):
    return lm.tiny_transformer(task.vocab_size, task.prompt_length + task.horizon + 1, seed=3)


POLICIES = {"table": table, "n-gram": ngram, "transformer": transformer}
PAIRS = [(task, policy) for task in TASKS for policy in POLICIES if policy != "table" or task == "no repeats"]
pairs = pytest.mark.parametrize(("name", "kind"), PAIRS)


def sampler(policy, task, prompts=200, number=0) -> TaskSampler:
    return TaskSampler(policy, task, *streams([number]), prompts)


def refused(task: Task, questions, rollouts: Rollouts) -> int:
    """Responses that `env.step` does not take."""
    env, count = TokenEnv(task), 0
    for row, question in enumerate(questions):
        env.reset(options={"question": question})
        own = rollouts.tokens[row][rollouts.mask[row]].tolist()
        try:
            ended = [env.step(token)[2] for token in own]
            assert ended[-1] and not any(ended[:-1])
        except ValueError as error:
            assert "which the action mask forbids here" in str(error)
            count += 1
    return count


def unmasked(policy):
    """The same weights without masks."""
    other = copy.deepcopy(policy)
    other.action_mask = other.token_subset = None
    return other


# --- drawing and scoring ----------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_what_the_environment_refuses_is_never_drawn_and_what_is_drawn_is_scored_so(name, kind, temperature):
    task = TASKS[name]()
    policy = POLICIES[kind](task)
    source = sampler(policy, task)
    drawn = source.rollouts(1, temperature)
    assert refused(task, source.questions, drawn) == 0
    scored = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask, temperature)
    torch.testing.assert_close(scored.detach().double(), drawn.logp, rtol=0, atol=1e-10)
    free = logp_of(unmasked(policy), drawn.prompt, drawn.tokens, drawn.mask, temperature).detach()
    assert bool((scored.detach() >= free - 1e-9).all()) and float((scored - free).detach().max()) > 0.05


@pairs
def test_probabilities_are_those_without_the_mask_shared_out_among_the_allowed(name, kind):
    task = TASKS[name]()
    policy = POLICIES[kind](task)
    source = sampler(policy, task, 20)
    drawn = source.rollouts(1)
    logits, free = (each.logits(drawn.prompt, drawn.tokens).detach() for each in (policy, unmasked(policy)))
    for row, question in enumerate(source.questions):
        for step in drawn.mask[row].nonzero()[:, 0].tolist():
            allowed = torch.from_numpy(task.action_mask(question, drawn.tokens[row, :step].tolist()) != 0)
            assert torch.equal(logits[row, step] > -torch.inf, allowed)
            expected = torch.where(allowed, free[row, step].softmax(-1), 0.0)
            torch.testing.assert_close(logits[row, step].softmax(-1), expected / expected.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", POLICIES)
def test_gradients_are_those_of_finite_differences_and_nothing_moves_a_forbidden_token(kind):
    task = TASKS["no repeats"]()
    policy = POLICIES[kind](task)
    mask_policy(policy, task_mask(task))
    J, gradients = exact_gradient(policy, task.mdp)
    assert all(bool(torch.isfinite(each).all()) for each in gradients)
    parameters = list(policy.parameters())
    directions = [torch.randn(each.shape, generator=seed(5), dtype=each.dtype) for each in parameters]

    def moved(by: float) -> float:
        other = copy.deepcopy(policy)
        with torch.no_grad():
            for parameter, direction in zip(other.parameters(), directions):
                parameter += by * direction
        return exact_gradient(other, task.mdp)[0]

    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions))
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-5, abs=1e-8)
    assert pytest.approx(exact_gradient(unmasked(policy), task.mdp)[0], abs=1e-3) != J

    prompt = task.mdp.prompt_tokens.repeat_interleave(2, 0)
    tokens = torch.tensor([[1, 2, 1, 0], [2, 1, 0, PAD], [1, 3, 0, PAD], [3, 2, 3, 0]])
    before = torch.cat([prompt[:, -1:], tokens[:, :-1]], 1)
    scores = policy.logits(prompt, tokens)
    scores.retain_grad()
    logp = logp_of(policy, prompt, tokens, (tokens != PAD) & (tokens != before))
    gradient = torch.autograd.grad(logp.sum(), parameters)
    assert all(bool(torch.isfinite(each).all()) for each in gradient)


def test_the_gradient_of_a_forbidden_logit_is_exactly_zero():
    task = TASKS["arithmetic"]()
    policy = ngram(task)
    source = sampler(policy, task)
    drawn = source.rollouts(1)
    logp = policy(drawn.prompt, drawn.tokens, drawn.mask)
    (gradient,) = torch.autograd.grad(
        (logp * torch.randn(logp.shape, generator=seed(), dtype=logp.dtype)).sum(), [policy.table]
    )
    forbidden = torch.from_numpy(task.action_mask(source.questions[0], []) == 0)
    assert float(gradient[..., ~forbidden].abs().max()) > 0.1 and bool((gradient[..., forbidden] == 0).all())


@pytest.mark.parametrize("kind", POLICIES)
def test_exact_verification_sees_the_masks(kind):
    task = TASKS["no repeats"]()
    policy = POLICIES[kind](task)
    mask_policy(policy, task_mask(task))
    check_policy(policy, task.mdp)
    e = Enumeration(task.mdp, policy)
    moments = exact_moments(build_agent("rloo", policy, task, 0).estimator.__class__(2), e)
    expected = torch.cat([each.flatten() for each in exact_gradient(policy, task.mdp)[1]])
    torch.testing.assert_close(moments.mean, expected.to(moments.mean), rtol=1e-9, atol=1e-12)
    assert evaluate(policy, task, 5)["eval/exact_reward"] == pytest.approx(exact_gradient(policy, task.mdp)[0])


def test_the_ngram_recursion_refuses_masks():
    task = TASKS["no repeats"]()
    policy = ngram(task)
    mask_policy(policy, task_mask(task))
    with pytest.raises(ValueError, match="may draw some tokens only, and the n-gram recursion knows no such masks"):
        ngram_gradient(policy, task.mdp)


@pytest.mark.parametrize("wrap", [lambda policy: AtTemperature(policy, 0.6), Greedy], ids=["temperature", "greedy"])
def test_policies_around_others_obey_too(wrap):
    task = TASKS["no repeats"]()
    policy = wrap(table(task))
    source = sampler(policy, task)
    drawn = source.rollouts(1)
    assert refused(task, source.questions, drawn) == 0
    assert bool(torch.isfinite(drawn.logp).all())


def test_heads_in_chunks_obey(monkeypatch):
    task = TASKS["turns"]()
    policy = transformer(task)
    drawn = sampler(policy, task, 6).rollouts(2)
    weight = torch.randn(drawn.tokens.shape, generator=seed(), dtype=torch.float64)

    def gradient():
        logp = policy.logp(drawn.prompt, drawn.tokens, drawn.mask)
        return [logp.detach(), *torch.autograd.grad((weight * logp).sum(), list(policy.parameters()))]

    whole = gradient()
    monkeypatch.setattr(lm, "LOGIT_BYTES", 200)
    for one, other in zip(whole, gradient()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pairs
def test_branches_and_greedy_responses_obey(name, kind, monkeypatch):
    task = TASKS[name]()
    source = sampler(POLICIES[kind](task), task, 10)
    drawn = source.rollouts(1)
    seen, score = [], task.score

    def watched(questions, tokens, mask):
        seen.append((questions, torch.from_numpy(tokens), torch.from_numpy(mask)))
        return score(questions, tokens, mask)

    with monkeypatch.context() as patch:
        patch.setattr(task, "score", watched)
        source.branches(drawn, drawn.mask, (1.0, 0.5, 0.0))
    assert len(seen) == 3
    for questions, tokens, mask in seen:
        assert refused(task, questions, replace(drawn, tokens=tokens, mask=mask)) == 0


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["rloo", "ppo", "trepo", "remax", "grpo", "dpo"])
def test_agents_learn_on_what_is_allowed(agent):
    task = Arithmetic(digits=1, restricted=True)
    policy = small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2)
    config = TrainConfig(steps=1, prompts_per_step=8, eval_prompts=4, signal_every=0)
    trainer = Trainer(build_agent(agent, policy, task, 0), task, policy, config)
    before = [each.clone() for each in policy.parameters()]
    for _ in range(2):
        figures = trainer.step()
        assert all(np.isfinite(each) for each in figures.values())
    assert any(not torch.equal(one, other) for one, other in zip(before, policy.parameters()))
    drawn = trainer.sampler.rollouts(25)
    assert refused(task, trainer.sampler.questions, drawn) == 0


def test_references_are_held_to_the_same_masks():
    task = TASKS["arithmetic"]()
    policy = ngram(task)
    agent = build_agent(build_agent("rloo", policy, task, 0).Config(kl=0.1), policy, task, 0)
    evidence = agent.collect(sampler(policy, task, 8))
    assert evidence.reference_logp is not None
    torch.testing.assert_close(evidence.reference_logp, evidence.rollouts.logp, rtol=0, atol=1e-12)
    assert frozen(policy).action_mask is policy.action_mask


def test_a_policy_obeys_the_task_that_it_is_asked_about():
    """Evaluating it on another task, or on an equal one, changes nothing for the first."""
    restricted, free = TASKS["arithmetic"](), Arithmetic(digits=1)
    policy = ngram(restricted)
    one, other = sampler(policy, restricted), sampler(policy, free)
    drawn = other.rollouts(1)
    assert refused(restricted, other.questions, drawn) > 50
    drawn = one.rollouts(1)
    assert refused(restricted, one.questions, drawn) == 0
    scored = one.logp(policy, drawn)
    other.rollouts(1)
    assert torch.equal(one.logp(policy, drawn), scored)
    evaluate(policy, TASKS["arithmetic"](), 4)
    assert torch.equal(one.logp(policy, drawn), scored)


def test_rewards_of_a_model_leave_the_mask_as_it_is():
    task = TASKS["arithmetic"]()
    policy = transformer(task)
    scored = ScoredTask(task, scorer(policy, task, 0))
    source = sampler(policy, scored, 50)
    assert refused(task, source.questions, source.rollouts(1)) == 0


def test_a_run_with_a_mask_and_a_warm_start(tmp_path):
    small = ModelConfig("small", width=16, layers=1, heads=2)
    options = {"steps": 2, "prompts_per_step": 4, "eval_prompts": 4, "progress": False, "folder": tmp_path / "run"}
    run = train("rloo", "Arithmetic", small, env_arguments={"restricted": True}, warm_start=2, **options)
    policy, task = load_policy_of_run(run.folder, None, {}, ModelConfig(), 0)
    source = sampler(policy, task, 50)
    assert refused(task, source.questions, source.rollouts(1)) == 0


# --- which masks there are --------------------------------------------------------------------------------------------


def test_a_task_without_a_mask_has_none():
    for entry in ENTRIES:
        if entry.task.rpartition(".")[2] in ("Arithmetic", "Tabular", "Ngram", "Needle", "GuessNumber", "Consultation"):
            assert task_mask(entry_task(entry)) is None
    assert isinstance(task_mask(Arithmetic(restricted=True)), TaskMask)


def entry_task(entry):
    from llm_mdp_envs.registry import make_task

    return make_task(entry.task, **entry.kwargs)


def test_masks_are_asked_of_beginnings_only():
    """Not of what has ended, nor twice of the same beginning."""
    asked = []

    class Watched(NoRepeats):
        def action_mask(self, question, tokens):
            asked.append((question, tuple(tokens)))
            assert question.secret is None and len(tokens) < self.horizon and self.eos not in tokens
            return super().action_mask(question, tokens)

    task = Watched(3, 3, seed=0)
    source = sampler(table(task), task, 40)
    drawn = source.rollouts(4)
    source.logp(source.policy, drawn)
    assert len(asked) == len(set(asked)) <= 2 * 7


def test_masks_that_are_the_same_for_a_response_are_known():
    check_unchanging(TaskMask(Arithmetic(restricted=True)), "vllm")
    with pytest.raises(ValueError, match="the action mask of NoRepeats changes from step to step, and engine vllm"):
        check_unchanging(TaskMask(TASKS["no repeats"]()), "vllm")


def test_engines_are_told_what_is_allowed():
    task = TASKS["arithmetic"]()
    policy = transformer(task)
    prompt, given = torch.tensor([[1, 10, 2, 13]]), torch.full((1, task.horizon), PAD)
    assert _allowed_ids(policy, prompt, given, [0]) == [list(range(task.vocab_size))], "not what begins every text"
    mask_policy(policy, task_mask(task))
    assert _allowed_ids(policy, prompt, given, [0, 0]) == [[*range(10), 11, EOS]] * 2


class Bare(nn.Module):
    """Has all that the protocol asks for, and no masks."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.vocab_size = inner, inner.vocab_size

    def logits(self, prompt, tokens):
        return self.inner.logits(prompt, tokens)

    def sample(self, *arguments, **options):
        return unmasked(self.inner).sample(*arguments, **options)


class Uniform(PolicyModule):
    """A user's: logits and nothing else."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size, self.bias = vocab_size, nn.Parameter(torch.zeros(vocab_size))

    def logits(self, prompt, tokens):
        return self.bias.expand(*tokens.shape, -1)


class Stubborn(Uniform):
    def sample(self, *arguments, **options):
        return unmasked(ngram(TASKS["arithmetic"]())).sample(*arguments, **options)


def test_a_user_s_policy_obeys_or_is_refused():
    task = TASKS["arithmetic"]()
    source = sampler(Uniform(task.vocab_size), task)
    drawn = source.rollouts(1)
    assert refused(task, source.questions, drawn) == 0
    torch.testing.assert_close(source.logp(source.policy, drawn), drawn.logp, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError, match="Arithmetic forbids some tokens by its action mask, and Bare cannot obey it; "
    ):
        sampler(Bare(ngram(task)), task)
    assert sampler(Bare(ngram(task)), Arithmetic(digits=1)).rollouts(1).mask.any()
    with pytest.raises(ValueError, match=r"Stubborn\.sample drew the token .* the action mask of Arithmetic forbids"):
        sampler(Stubborn(task.vocab_size), task).rollouts(1)


def test_tokens_beyond_the_task_s_vocabulary_are_forbidden_with_the_rest():
    task = TASKS["arithmetic"]()
    source = sampler(Uniform(task.vocab_size + 9), task)
    drawn = source.rollouts(1)
    assert int(drawn.tokens.max()) < task.vocab_size
    mask = TaskMask(task)
    wrong = drawn.tokens.clone()
    wrong[3, 0] = task.vocab_size + 2
    with pytest.raises(ValueError, match=f"drew the token {task.vocab_size + 2} at step 0"):
        check_drawn(source.policy, mask, drawn.prompt, wrong, drawn.mask)


# --- token_subset -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
def test_a_token_subset_is_the_same_thing(kind):
    task = Tabular(4, 4, n_prompts=2, seed=1)
    policy = POLICIES[kind](task)
    policy.token_subset = TokenSubset([0, 2, 3], 4)
    drawn = sampler(policy, task).rollouts(1)
    assert set(drawn.tokens[drawn.mask].tolist()) == {0, 2, 3}
    torch.testing.assert_close(
        logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask).detach().double(), drawn.logp, rtol=0, atol=1e-10
    )
    gradients = exact_gradient(policy, task.mdp)[1]
    if kind == "table":
        assert all(bool((level[:, 1] == 0).all()) and float(level.abs().max()) > 0 for level in gradients)


def test_a_subset_and_a_mask_hold_together():
    task = TASKS["no repeats"]()
    policy = table(task)
    policy.token_subset = TokenSubset([0, 2, 3], 4)
    source = sampler(policy, task)
    drawn = source.rollouts(1)
    assert refused(task, source.questions, drawn) == 0 and set(drawn.tokens[drawn.mask].tolist()) == {0, 2, 3}
    policy.token_subset = TokenSubset([2], 4)
    with pytest.raises(ValueError, match=r"no token is allowed after \[2\]: the model's token_subset and the task's"):
        source.rollouts(8)


def test_a_subset_by_characters_keeps_the_end():
    task = Arithmetic(digits=1)
    assert tokens_written_with(task, "0123456789") == [*range(10), EOS]
    policy = build_policy(ModelConfig("small", width=16, layers=1, heads=2, token_subset="01-"), task, 0)
    drawn = sampler(policy, task).rollouts(1)
    assert set(drawn.tokens[drawn.mask].tolist()) == {0, 1, 11, EOS}
    with pytest.raises(
        ValueError, match="token_subset is 'xyz', and Arithmetic has no token that is written with these"
    ):
        build_policy(ModelConfig("small", token_subset="xyz"), task, 0)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [([], "token_subset is empty"), ([1, 9], "has the token 9, outside the vocabulary 0 … 8"), ([-1], "the token -1")],
)
def test_subsets_that_cannot_be(tokens, words):
    with pytest.raises(ValueError, match=words):
        TokenSubset(tokens, 9)


def test_a_subset_is_saved_with_its_model(tmp_path):
    task = Arithmetic(digits=1)
    policy = transformer(task)
    policy.token_subset = TokenSubset([0, 1, EOS], task.vocab_size)
    save_model(policy, tmp_path / "model")
    again = load_policy(tmp_path / "model", dtype="float64")
    assert isinstance(again.token_subset, TokenSubset) and again.token_subset.tokens == (0, 1, EOS)
    other = load_policy(tmp_path / "model", token_subset=[3, EOS])
    assert set(sampler(other, task).rollouts(1).tokens.flatten().tolist()) == {3, EOS, PAD}


@pytest.mark.parametrize("model", ["tabular", "ngram", "small"])
def test_a_subset_comes_back_with_a_run(tmp_path, model):
    shape: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2} if model == "small" else {}
    chosen = ModelConfig(model, token_subset="0 2", **shape)
    options = {"steps": 1, "prompts_per_step": 4, "eval_prompts": 4, "progress": False, "folder": tmp_path / "run"}
    run = train("rloo", "Tabular", chosen, **options)
    policy, task = load_policy_of_run(run.folder, None, {}, ModelConfig(), 0)
    assert isinstance(policy, PolicyModule) and isinstance(policy.token_subset, TokenSubset)
    drawn = sampler(policy, task).rollouts(1)
    assert set(drawn.tokens[drawn.mask].tolist()) == set(policy.token_subset.tokens) == {0, 2}


def test_answers_that_may_not_be_drawn_are_refused():
    task = Arithmetic(digits=1)
    policy = build_policy(ModelConfig("small", width=16, layers=1, heads=2, token_subset="01"), task, 0)
    with pytest.raises(ValueError, match=r"an answer of Arithmetic holds '[2-9]', which the policy may not draw"):
        warm_start(policy, task, 2, 0)


def test_the_tasks_here_are_sound():
    for make in TASKS.values():
        check_task(make())
