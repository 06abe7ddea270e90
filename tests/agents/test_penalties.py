"""Penalties that change as training goes on, and the entropy bonus: gradients against enumeration in float64, and the
controller against figures worked out by hand."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.practices import EntropyReward
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients
from llm_mdp_agents.base import Agent
from llm_mdp_agents.penalties import controlled, left
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask


@cache
def problem() -> Problem:
    return Problem(random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3), group_size=2)


def make(name: str, **options) -> Agent:
    p = problem()
    return AGENTS[name](AGENTS[name].Config(**options), p.instance.policy, TokenMDPTask(p.instance.mdp))


def enumerated(p: Problem, beta: float) -> torch.Tensor:
    """∇(J + β H) of all responses, by autograd through their probabilities; H = -Σ p log p, a mean over prompts."""
    e, mdp, policy = p.enumeration, p.instance.mdp, p.instance.policy
    total = torch.zeros((), dtype=torch.float64)
    for number, prompt in enumerate(mdp.prompts):
        tokens = e.tokens
        logits = policy.logits(mdp.prompt_tokens[number].expand(len(tokens), -1), tokens).double()
        each = logits.log_softmax(-1).gather(-1, tokens.clamp(min=0)[..., None])[..., 0]
        logp = torch.where(e.mask, each, 0.0).sum(-1)
        total = total + prompt.probability * (logp.exp() * (e.response_reward[number] - beta * logp)).sum()
    parameters = list(policy.parameters())
    return flatten_gradients(torch.autograd.grad(total, parameters), parameters)


UNBIASED = {
    "rloo": {"group_size": 2},
    "reinforce": {"group_size": 1},
    "trepo": {"group_size": 1},
    "vineppo": {"group_size": 1},
    "remax": {"group_size": 1},
    "ppo": {"lam": 1.0},
    "rloo clipped": {"group_size": 2, "clip_low": 0.2},
    "rloo kl": {"group_size": 2, "kl": 0.2},
}


@pytest.mark.parametrize("case", UNBIASED)
def test_the_bonus_is_the_gradient_of_the_entropy_of_responses(case):
    """J + β H; with a KL penalty besides, whose reference is the policy itself, its gradient is 0."""
    p, beta = problem(), 0.3
    agent = make(case.split()[0], entropy=beta, **UNBIASED[case])
    target = enumerated(p, beta)
    assert float((target - p.target("reward + 0.3 entropy")).norm()) < 1e-10 * float(target.norm())
    assert exact_certificate(agent, p.enumeration, target).verdict == "unbiased"
    assert exact_certificate(agent, p.enumeration, p.target("reward")).verdict == "biased"


def test_the_other_responses_take_noise_out_of_the_bonus_and_nothing_else():
    p = problem()
    plain, centred = EntropyReward(group_size=3), EntropyReward(group_size=3, group_baseline=True)
    one, two = (exact_moments(each, p.enumeration) for each in (plain, centred))
    assert float((one.mean - two.mean).norm()) < 1e-12
    assert two.trace_covariance < 0.7 * one.trace_covariance


def test_a_bonus_makes_a_policy_more_varied_and_an_agent_without_one_does_not():
    task = Tabular(3, 2, seed=1)
    spread = {}
    for beta in (0.0, 2.0):
        policy = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator().manual_seed(0))
        agent = AGENTS["rloo"](AGENTS["rloo"].Config(entropy=beta), policy, task)
        trainer = Trainer(agent, task, policy, TrainConfig(steps=30, prompts_per_step=16, signal_every=0))
        figures = [trainer.step() for _ in range(30)]
        spread[beta] = figures[-1]["entropy"]
        assert ("entropy_coefficient" in figures[0]) == bool(beta)
    assert spread[2.0] > spread[0.0] + 0.3


# --- schedules and targets --------------------------------------------------------------------------------------------


def test_schedules_begin_with_everything_and_fall_to_nothing():
    assert [left("linear", done, 4) for done in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [left("cosine", done, 2) for done in range(3)] == pytest.approx([1.0, 0.5, 0.0])
    for schedule in ("constant", "linear", "cosine"):
        assert left(schedule, 3, None) == 1.0, "nobody said how many steps there are"
    assert left("constant", 3, 4) == 1.0 and left("linear", 9, 4) == 0.0


def test_the_controller_is_the_published_one():
    """Ziegler et al. 2019, §2.2: a tenth of the relative error, which counts up to a fifth."""
    assert controlled(0.5, 6.6, 6.0) == pytest.approx(0.5 * 1.01)
    assert controlled(0.5, 60.0, 6.0) == pytest.approx(0.5 * 1.02)
    assert controlled(0.5, -3.0, 6.0) == pytest.approx(0.5 * 0.98)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-6, 1e3))
def test_the_controller_pushes_to_the_target_and_never_to_zero(coefficient, measured, target):
    found = controlled(coefficient, measured, target)
    assert 0.97 * coefficient < found < 1.03 * coefficient
    assert (found > coefficient) >= (measured > 1.001 * target) and (found < coefficient) >= (measured < 0.999 * target)


def trainer_of(seed: int = 0, steps: int = 40, **options) -> Trainer:
    task = Tabular(3, 3, n_prompts=2, seed=3)
    policy = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator().manual_seed(0))
    agent = AGENTS["rloo"](AGENTS["rloo"].Config(**options), policy, task, seed)
    return Trainer(agent, task, policy, TrainConfig(steps=steps, prompts_per_step=16, signal_every=0, seed=seed))


def test_a_coefficient_follows_its_schedule_over_the_steps_of_the_run():
    trainer = trainer_of(steps=4, kl=0.8, kl_schedule="linear", entropy=0.4, entropy_schedule="linear")
    assert trainer.agent.kl == 0.8, "a certificate sees the first step's"
    figures = [trainer.step() for _ in range(4)]
    assert [each["kl_coefficient"] for each in figures] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert [each["entropy_coefficient"] for each in figures] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_the_coefficient_that_is_told_is_the_one_in_the_loss():
    trainer = trainer_of(steps=4, kl=0.8, kl_schedule="linear")
    agent = trainer.agent
    with torch.no_grad():
        trainer.policy.levels[0].add_(torch.randn(trainer.policy.levels[0].shape, generator=torch.Generator()))
    evidence = agent.collect(trainer.sampler)
    plain, losses = agent.estimator.loss(evidence.rollouts.logp, evidence), []
    for agent.steps_done in range(4):
        losses.append(float(agent.loss(evidence.rollouts.logp, evidence) - plain))
    assert losses == pytest.approx([losses[0] * share for share in (1, 0.75, 0.5, 0.25)]) and abs(losses[0]) > 1e-3


def test_a_target_is_approached_from_either_side():
    """Rewards pull the policy away from its reference; the coefficient grows where that is too far, and shrinks where
    it could go further."""
    tight, loose = trainer_of(kl=0.01, kl_target=0.05), trainer_of(kl=10.0, kl_target=5.0)
    for _ in range(40):
        figures, others = tight.step(), loose.step()
    assert tight.agent.numbers["kl"] > 0.013 and loose.agent.numbers["kl"] < 7
    assert figures["kl_coefficient"] > 0.013 and others["kl_coefficient"] < 7


def test_a_target_goes_on_bit_by_bit_from_a_checkpoint():
    whole = trainer_of(kl=0.1, kl_target=0.2)
    for _ in range(5):
        whole.step()
    tensors, state = whole.state()
    other = trainer_of(seed=9, kl=0.1, kl_target=0.2)
    other.restore({name: tensor.clone() for name, tensor in tensors.items()}, state)
    for _ in range(5):
        assert whole.step()["kl_coefficient"] == other.step()["kl_coefficient"]
    assert whole.agent.numbers == other.agent.numbers and whole.agent.numbers["kl"] != 0.1
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), other.policy.parameters()))


BAD = [
    ({"kl": float("nan")}, r"kl is nan; the weight of the penalty is at least 0\."),
    ({"kl": float("inf")}, r"kl is inf; the weight of the penalty is at least 0\."),
    ({"entropy": -0.1}, r"entropy is -0\.1; the weight of the bonus is at least 0\."),
    ({"kl_target": 6.0}, r"kl_target is 6\.0, but kl is 0, .*; begin with a kl above 0, such as 0\.1\."),
    ({"kl": 0.1, "kl_target": 0.0}, r"kl_target is 0\.0; it must be above 0 nats a response\."),
    (
        {"kl": 0.1, "kl_target": 6.0, "kl_schedule": "linear"},
        r"kl_target is 6\.0 and kl_schedule 'linear', but only one of them can decide on kl; leave one out\.",
    ),
    ({"kl_schedule": "linear"}, r"kl_schedule is 'linear', but kl is 0, so there is no penalty; give kl, or leave"),
    ({"entropy_schedule": "cosine"}, r"entropy_schedule is 'cosine', but entropy is 0, so there is no bonus"),
    ({"kl": 0.1, "kl_schedule": "exponential"}, r"kl_schedule is 'exponential'; choose 'constant', 'linear', 'cosine'"),
]


@pytest.mark.parametrize("options, message", BAD, ids=[str(options) for options, _ in BAD])
def test_options_that_contradict_one_another_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make("rloo", **options)


@pytest.mark.parametrize("name", ["dpo", "iterative-dpo"])
def test_agents_that_draw_from_another_policy_have_no_entropy_bonus(name):
    with pytest.raises(ValueError, match=rf"entropy is 0\.1, but {name} draws from another policy than the one that"):
        make(name, entropy=0.1)
