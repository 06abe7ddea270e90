"""Responses of another policy: what ratios repair exactly and what they do not, and the objectives meant for them."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from llm_mdp.estimators.algorithms import GRPO, REINFORCE, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.catalogue.off_policy import OFF_POLICY
from llm_mdp.estimators.entry import Given, NeedsExactValues
from llm_mdp.estimators.objectives import log_ratio, soft_gate
from llm_mdp.estimators.off_policy import SAPO, OffPolicy, Reweighted
from llm_mdp.estimators.practices import EntropyLoss, KLLoss, KLReward
from llm_mdp.exact.groups import all_groups
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import AtTemperature, NgramPolicy, Policy, TabularPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import loss_weights, token_weights
from tests.strategies import instances

KINDS = ("table", "n-gram")
FEW = settings(deadline=None, max_examples=20, derandomize=True)
PROBLEM = Problem(random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3))
TALKING = Problem(random_instance(3, 4, gamma=0.9, environment_at=(1,), seed=4))
STALE = [entry.name for entry in OFF_POLICY if entry.given_values]
FRESH = [entry.name for entry in OFF_POLICY if not entry.given_values]


def noisy(instance: Instance, size: float, seed: int) -> TabularPolicy:
    """The policy with normal noise of this size added to its logits."""
    e = Problem(instance).enumeration
    noise = TabularPolicy.random(e.tree, e.prompt, torch.Generator().manual_seed(seed), size)
    return TabularPolicy(e.tree, e.prompt, [one + other.detach() for one, other in zip(e.logits, noise.levels)])


def weights(estimator: Estimator, problem: Problem) -> tuple[Evidence, Tensor]:
    """What every token weighs, on all groups of responses."""
    sampler = ExactSampler(problem.enumeration, next(all_groups(problem.enumeration, estimator.group_size)))
    evidence = estimator.collect(sampler)
    return evidence, token_weights(estimator, evidence, problem.enumeration, tuple(sampler.weight.shape))


def verdict(estimator: Estimator, problem: Problem) -> str:
    target = problem.target("reward")
    return exact_certificate(estimator, problem.enumeration, target, problem.magnitude("reward")).verdict


# --- another policy draws ---------------------------------------------------------------------------------------------


@FEW
@given(instances(KINDS), st.floats(0, 2), st.integers(0, 99), st.floats(-2, 2))
def test_the_ratio_of_the_response_is_all_it_takes(instance, size, seed, baseline):
    """For every behaviour policy and every constant baseline."""
    problem = Problem(instance)
    if problem.has_gradient():
        repaired = Reweighted(behaviour=noisy(instance, size, seed), baseline=baseline, level="sequence")
        assert verdict(repaired, problem) == "unbiased"


def test_the_ratio_of_the_response_leaves_the_baseline_of_the_others_alone():
    """The others come from the behaviour policy too: their mean is another baseline, and still one."""
    behaviour = noisy(PROBLEM.instance, 1.0, 0)
    assert verdict(Reweighted(2, behaviour=behaviour, level="sequence"), PROBLEM) == "unbiased"
    assert verdict(RLOO(2), PROBLEM) == "unbiased"
    assert verdict(OffPolicy(2, behaviour=behaviour), PROBLEM) == "biased"


def test_what_an_environment_draws_needs_no_ratio():
    behaviour = noisy(TALKING.instance, 1.0, 1)
    assert verdict(Reweighted(behaviour=behaviour, level="sequence"), TALKING) == "unbiased"
    assert verdict(Reweighted(behaviour=behaviour, level="token"), TALKING) == "biased"


@FEW
@given(st.integers(0, 999), st.floats(0.2, 1.5), st.floats(0.3, 1.5))
def test_a_cap_is_a_bias_where_it_is_reached(seed, size, part):
    """Below the largest ratio it takes something away, above it nothing."""
    instance = random_instance(3, 2, seed=seed)
    problem, behaviour = Problem(instance), noisy(instance, size, seed)
    e = problem.enumeration
    largest = float(log_ratio(e.leaf_logp(), e.leaf_logp_of(behaviour), e.mask, "sequence").exp().max())
    cap = max(1.0, part * largest)
    found = verdict(Reweighted(behaviour=behaviour, level="sequence", cap=cap), problem)
    assert found == ("unbiased" if cap >= largest else "biased")


@FEW
@given(instances(KINDS), st.sampled_from(["token", "sequence", "geometric"]), st.none() | st.floats(1, 9))
def test_where_nobody_else_draws_all_are_reinforce(instance, level, cap):
    """Also where the other policy happens to be the same (noise of size 0)."""
    problem = Problem(instance)
    _, expected = weights(REINFORCE(baseline=0.3), problem)
    for behaviour in (None, noisy(instance, 0.0, 0)):
        who = {"behaviour": behaviour, "baseline": 0.3}
        for same in (OffPolicy(**who), Reweighted(**who, level=level, cap=cap), SAPO(**who)):
            assert_close(weights(same, problem)[1], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STALE)
def test_what_another_policy_drew_is_scored_by_its_own_probabilities(name):
    evidence, _ = weights(PROBLEM.make(CATALOGUE[name]), PROBLEM)
    rollouts = evidence.rollouts
    e, behaviour = PROBLEM.enumeration, PROBLEM.given.behaviour
    assert_close(rollouts.logp[..., 0, :], e.leaf_logp_of(behaviour).flatten(0, 1)[: len(rollouts.logp)])
    assert not torch.allclose(rollouts.logp[..., 0, :], e.leaf_logp()[0])


def test_the_other_policy_is_the_same_every_time_and_half_a_nat_away():
    one, two = (Problem(PROBLEM.instance).given.behaviour for _ in range(2))
    assert isinstance(one, TabularPolicy) and isinstance(two, TabularPolicy)
    apart = [(a - b).detach() for a, b in zip(one.levels, PROBLEM.enumeration.logits)]
    assert all(torch.equal(a, b) for a, b in zip(one.levels, two.levels))
    assert float(torch.cat([level.flatten() for level in apart]).std()) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("policy", ["table", "n-gram", "own"])
def test_any_kind_of_policy_may_draw(policy):
    behaviour: Policy = noisy(PROBLEM.instance, 1.0, 5)
    if policy == "n-gram":
        behaviour = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))
    elif policy == "own":
        behaviour = AtTemperature(behaviour, 1.5)
    assert verdict(Reweighted(behaviour=behaviour, level="sequence"), PROBLEM) == "unbiased"


# --- GSPO, CISPO, SAPO ------------------------------------------------------------------------------------------------


def drawn(seed: int, size: float, problem: Problem = PROBLEM) -> tuple[Evidence, Tensor]:
    """Evidence of another policy, groups of two, and the log-probabilities of the policy itself."""
    behaviour = noisy(problem.instance, size, seed)
    sampler = ExactSampler(problem.enumeration, next(all_groups(problem.enumeration, 2)))
    evidence = OffPolicy(2, behaviour=behaviour).collect(sampler)
    return evidence, sampler.logp(problem.instance.policy, evidence.rollouts)


@FEW
@given(st.integers(0, 99), st.floats(0, 1), st.none() | st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.5)))
def test_gspo_is_the_derivative_of_its_published_objective(seed, size, clip):
    """1/G Σ min(s A, clip(s) A), s = (π(W)/μ(W))^(1/len), differentiated as it stands, by every token's log π."""
    low, high = clip or (None, None)
    estimator = Reweighted(
        2, scale_by_std=True, level="geometric", reduction="sequence_mean", clip_low=low, clip_high=high
    )
    evidence, logp = drawn(seed, size)
    found = loss_weights(estimator, evidence, logp)
    logp = logp.clone().requires_grad_()
    rollouts, advantage = evidence.rollouts, GRPO(2).advantages(evidence)[..., 0]
    s = ((logp - rollouts.logp) * rollouts.mask).sum(-1).div(rollouts.length).exp()
    clipped = s if clip is None else torch.minimum(torch.maximum(s, s * 0 + 1 - clip[0]), s * 0 + 1 + clip[1])
    objective = torch.where(s * advantage < clipped * advantage, s, clipped).mul(advantage).mean(-1)
    (expected,) = torch.autograd.grad(objective.sum(), logp)
    assert_close(found, torch.where(rollouts.mask, expected, 0.0), rtol=1e-9, atol=1e-12)


def test_gspo_at_its_first_update_is_grpo_by_length():
    named = PROBLEM.make(CATALOGUE["gspo"])
    assert isinstance(named, Reweighted) and (named.clip_low, named.clip_high) == (3e-4, 4e-4)
    same = GRPO(PROBLEM.group_size, reduction="sequence_mean")
    assert_close(weights(named, PROBLEM)[1], weights(same, PROBLEM)[1], rtol=1e-10, atol=1e-12)


@FEW
@given(st.integers(0, 99), st.floats(0.1, 1), st.floats(0, 5))
def test_cispo_weighs_every_token_but_none_more_than_its_cap(seed, size, eps_high):
    evidence, logp = drawn(seed, size)
    found = loss_weights(Reweighted(2, cap=1 + eps_high), evidence, logp)
    plain = loss_weights(RLOO(2), evidence, logp)
    mask = evidence.rollouts.mask & (plain != 0)
    factor = (found / plain)[mask]
    ratio = (logp - evidence.rollouts.logp).exp()[mask]
    assert float(factor.min()) > 0 and float(factor.max()) <= (1 + eps_high) * (1 + 1e-9)
    uncapped = ratio < 1 + eps_high
    assert_close(factor[uncapped], ratio[uncapped], rtol=1e-9, atol=0)
    assert_close(factor[~uncapped], torch.full_like(factor[~uncapped], 1 + eps_high))


@FEW
@given(st.floats(0.05, 8), st.floats(0.05, 8), st.floats(-3, 3).filter(bool))
def test_the_gate_has_slope_one_where_the_policies_agree_and_less_elsewhere(tau_positive, tau_negative, advantage):
    ratio = torch.tensor([1.0, 0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    gate = soft_gate(ratio, torch.tensor(advantage, dtype=torch.float64), tau_positive, tau_negative)
    (slopes,) = torch.autograd.grad(gate.sum(), ratio)
    here, below, above, far = slopes.tolist()
    assert here == pytest.approx(1, abs=1e-12)
    assert below == pytest.approx(above, rel=1e-9), "as far below as above"
    assert 0 < far < above < 1


def test_the_sign_of_the_advantage_chooses_the_temperature_of_the_gate():
    ratio = torch.full((2,), 2.0, dtype=torch.float64)
    gate = soft_gate(ratio, torch.tensor([1.0, -1.0], dtype=torch.float64), 1.0, 1.05)
    # 4 σ(1) and 4 σ(1.05) / 1.05, by a pocket calculator
    assert gate.tolist() == pytest.approx([2.9242343145, 2.8219996159], rel=1e-9)


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("name", ["cispo", "cispo-0.2", "sapo"])
def test_at_the_first_update_they_are_exact_with_groups_too(name, group_size):
    assert verdict(CATALOGUE[name].make(PROBLEM.given, group_size=group_size), PROBLEM) == "unbiased"


@pytest.mark.parametrize("name", FRESH)
def test_they_can_be_made_where_nothing_is_known(name):
    made = CATALOGUE[name].make(Given(3), **({"group_size": 2} if name == "gspo" else {}))
    assert isinstance(made, OffPolicy) and made.behaviour is None and made.baseline == 0


@pytest.mark.parametrize("name", STALE)
def test_the_others_need_a_policy_that_draws(name):
    with pytest.raises(NeedsExactValues, match=r"^a policy that draws in place of the one that is differentiated is "):
        CATALOGUE[name].make(Given(3))


# --- KL and entropy ---------------------------------------------------------------------------------------------------


@FEW
@given(instances(KINDS))
def test_rho_times_k3_is_k2_where_the_policy_itself_drew(instance):
    problem = Problem(instance)
    weighted = KLLoss(reference=instance.reference, kind="k3", weighted=True)
    plain = KLLoss(reference=instance.reference, kind="k2")
    assert_close(weights(weighted, problem)[1], weights(plain, problem)[1], rtol=1e-9, atol=1e-12)


def test_rho_times_k3_is_not_k2_where_another_policy_drew():
    """ρ (k3 + k3') = ρ log π/ref: as if each token's state, though not the way to it, came from the policy."""
    evidence, logp = drawn(0, 0.5)
    evidence = replace(evidence, reference_logp=torch.full_like(logp, -1.0))
    reference = PROBLEM.instance.reference
    weighted = loss_weights(KLLoss(reference=reference, kind="k3", weighted=True), evidence, logp)
    plain = loss_weights(KLLoss(reference=reference, kind="k2"), evidence, logp)
    ratio = (logp - evidence.rollouts.logp).exp()
    assert_close(weighted, ratio * plain, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(weighted, plain)


@FEW
@given(instances(KINDS))
def test_the_penalty_of_the_whole_response_has_the_mean_of_that_to_come(instance):
    problem = Problem(instance)
    means = [
        exact_moments(KLReward(reference=instance.reference, whole=whole), problem.enumeration).mean
        for whole in (False, True)
    ]
    size = float(means[0].norm())
    assert_close(means[0], means[1], rtol=1e-9, atol=1e-9 * max(size, 1e-3))


@FEW
@given(instances(KINDS))
def test_the_entropy_of_a_token_by_its_sample_is_that_of_its_distribution_on_average(instance):
    """Against the entropies of whole distributions, differentiated as trainers do, at the prefixes that are visited."""
    problem = Problem(instance)
    e, parameters = problem.enumeration, list(instance.policy.parameters())
    entropies = []
    for number, prompt in enumerate(e.prompt):
        logp = instance.policy.logits(prompt.expand(len(e.tokens), -1), e.tokens).log_softmax(-1)
        each = torch.where(e.mask, -(logp.exp() * logp).sum(-1), 0.0).sum(-1)
        entropies.append(e.mdp.prompt_probability[number] * (e.probability[number] @ each))
    gradients = torch.autograd.grad(torch.stack(entropies).sum(), parameters, allow_unused=True)
    expected = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(gradients, parameters)])
    assert_close(exact_moments(EntropyLoss(), e).mean, expected.double(), rtol=1e-9, atol=1e-10)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Reweighted(cap=0.2), "cap is 0.2; it must be at least 1, for below it shrinks"),
        (lambda: Reweighted(cap=float("nan")), "cap is nan; it must be at least 1"),
        (lambda: Reweighted(level="word"), 'level is \'word\'; choose "token", "sequence" or "geometric".'),  # pyright: ignore[reportArgumentType]
        (lambda: Reweighted(cap=2.0, clip_low=0.2), "cap is 2.0 and clip_low 0.2; give one of the two"),
        (lambda: OffPolicy(scale_by_std=True), "group_size is 1, but scale_by_std=True needs other responses"),
        (lambda: SAPO(tau_positive=0.0), "tau_positive is 0.0; it must be above 0."),
        (lambda: SAPO(tau_negative=float("inf")), "tau_negative is inf; it must be above 0."),
        (lambda: SAPO(clip_low=0.2), "clip_low is 0.2, but the gate of SAPO stands in its place; leave it out."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_words(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make()
