"""Optima: each is the best there is, checked by trying others, and equals what an independent route gives."""

import math

import pytest
import torch
from torch import Tensor

from llm_mdp.exact import optima
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.optima import NotConverged, dpo_minimiser, policy_of_responses, process_model, regularised_optimum
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.verify.statements import HOLDS

INSTANCES = {
    "end token": lambda: random_instance(3, 3, gamma=0.8),
    "no end token": lambda: random_instance(2, 4, eos=None, seed=1),
    "two prompts": lambda: random_instance(3, 2, eos=1, n_prompts=2, gamma=0.9, seed=2),
    "one step": lambda: random_instance(4, 1, eos=3, seed=3),
}


@pytest.fixture(params=INSTANCES)
def instance(request) -> Instance:
    return INSTANCES[request.param]()


def response_logp(instance: Instance, policy) -> Tensor:
    """log π(W) of every response, (P, N)."""
    return Enumeration(instance.mdp, policy).leaf_logp().sum(-1)


def objective(instance: Instance, policy, beta: float) -> float:
    """E RM - β KL(π ‖ ref), summed over responses."""
    e = Enumeration(instance.mdp, policy)
    logp, reference = e.leaf_logp().sum(-1), response_logp(instance, instance.reference)
    return float(
        instance.mdp.prompt_probability @ (logp.exp() * (e.response_reward - beta * (logp - reference))).sum(-1)
    )


# --- the regularised optimum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
def test_the_optimum_is_the_best_there_is(instance, beta):
    """Any disturbance of its logits lowers the objective, by the KL divergence that it causes, times beta."""
    optimum = regularised_optimum(instance.mdp, instance.reference, beta)
    best = objective(instance, optimum, beta)
    assert best > objective(instance, instance.reference, beta) and best > objective(instance, instance.policy, beta)
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.1, 0.01):
        levels = [
            level + scale * torch.randn(level.shape, generator=generator, dtype=torch.float64)
            for level in optimum.levels
        ]
        other = TabularPolicy(optimum.tree, optimum.prompts, levels)
        logp = response_logp(instance, other)
        divergence = float(
            instance.mdp.prompt_probability @ (logp.exp() * (logp - response_logp(instance, optimum))).sum(-1)
        )
        assert divergence > 0
        assert best - objective(instance, other, beta) == pytest.approx(beta * divergence, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.7, 5.0])
def test_the_optimum_has_the_closed_form_over_whole_responses(instance, beta):
    """ref(W) exp(RM(W)/β) / Z, the sum over W written out response by response."""
    logp = response_logp(instance, regularised_optimum(instance.mdp, instance.reference, beta))
    e = Enumeration(instance.mdp, instance.reference)
    for row, chance, reward in zip(logp, e.probability.tolist(), e.response_reward.tolist()):
        weights = [c * math.exp(r / beta) for c, r in zip(chance, reward)]
        for found, weight in zip(row.tolist(), weights):
            assert found == pytest.approx(math.log(weight / sum(weights)), rel=1e-10, abs=1e-10)


def test_a_large_beta_gives_the_reference_and_a_small_one_the_best_response(instance):
    far = response_logp(instance, regularised_optimum(instance.mdp, instance.reference, 1e9))
    torch.testing.assert_close(far, response_logp(instance, instance.reference), rtol=1e-7, atol=1e-7)
    near = Enumeration(instance.mdp, regularised_optimum(instance.mdp, instance.reference, 1e-4))
    best = near.response_reward.argmax(-1)
    assert torch.equal(near.probability.argmax(-1), best)
    assert (near.probability.gather(-1, best[:, None]) > 0.99).all()


def test_a_reference_that_is_no_table():
    """Its logits have to be asked for, state by state."""
    instance = random_instance(3, 3, n_prompts=2)
    reference = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))
    optimum = regularised_optimum(instance.mdp, reference, 0.7)
    e = Enumeration(instance.mdp, reference)
    expected = (e.leaf_logp().sum(-1) + e.response_reward / 0.7).log_softmax(-1)
    torch.testing.assert_close(response_logp(instance, optimum), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_positive(beta):
    instance = random_instance(2, 2)
    with pytest.raises(ValueError, match=rf"^beta is {beta!r}; it must be above 0\.$"):
        regularised_optimum(instance.mdp, instance.reference, beta)


# --- DPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 0.7, 3.0])
def test_minimising_dpo_gives_the_closed_form(instance, beta):
    closed = response_logp(instance, regularised_optimum(instance.mdp, instance.reference, beta))
    found = dpo_minimiser(Enumeration(instance.mdp, instance.reference), beta)
    assert float((found - closed).abs().max()) < HOLDS == 1e-6
    assert torch.allclose(found.exp().sum(-1), torch.ones(1, dtype=torch.float64), atol=1e-12)


def test_minimising_dpo_with_another_beta_does_not(instance):
    closed = response_logp(instance, regularised_optimum(instance.mdp, instance.reference, 0.7))
    found = dpo_minimiser(Enumeration(instance.mdp, instance.reference), 0.71)
    assert float((found - closed).abs().max()) > 1e-3


def test_the_minimiser_has_the_odds_of_the_preferences():
    """Two responses, by hand: DPO fits P(W ≻ W') = σ(RM - RM'), so β (h - h') = RM - RM'."""
    instance = random_instance(2, 1, seed=5)
    e = Enumeration(instance.mdp, instance.reference)
    h = (dpo_minimiser(e, 0.7) - e.leaf_logp().sum(-1))[0]
    reward = e.response_reward[0]
    assert float(0.7 * (h[0] - h[1])) == pytest.approx(float(reward[0] - reward[1]), rel=1e-8)


def test_rare_responses_do_not_upset_the_minimiser():
    """A reference that hardly ever draws most responses: the Hessian spans many orders of magnitude."""
    instance = random_instance(3, 3, seed=6)
    reference = TabularPolicy(
        instance.mdp.tree, instance.mdp.prompt_tokens, [5 * level for level in instance.reference.levels]
    )
    e = Enumeration(instance.mdp, reference)
    assert float(e.probability.min()) < 1e-8
    closed = response_logp(instance, regularised_optimum(instance.mdp, reference, 0.7))
    assert float((dpo_minimiser(e, 0.7) - closed).abs().max()) < 1e-6


def test_too_many_responses_to_pair():
    instance = random_instance(4, 6, eos=0)
    e = Enumeration(instance.mdp, instance.reference)
    for attempt in (lambda: dpo_minimiser(e, 0.7), lambda: process_model(e, instance.reference, 0.7, 0.0)):
        with pytest.raises(
            TooLarge, match=r"^1,093 responses to a prompt are too many .* \(at most 500\); take a smaller instance\.$"
        ):
            attempt()


# --- from responses back to tokens ------------------------------------------------------------------------------------


def test_responses_to_tokens_and_back(instance):
    """The policy with the response probabilities of another is that other."""
    e = Enumeration(instance.mdp, instance.policy)
    back = policy_of_responses(e, e.leaf_logp().sum(-1))
    torch.testing.assert_close(Enumeration(instance.mdp, back).leaf_logp(), e.leaf_logp(), rtol=1e-10, atol=1e-10)


def test_any_distribution_over_responses_is_a_policy(instance):
    e = Enumeration(instance.mdp, instance.policy)
    logp = torch.randn(
        e.probability.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).log_softmax(-1)
    torch.testing.assert_close(response_logp(instance, policy_of_responses(e, logp)), logp, rtol=1e-10, atol=1e-10)
    shifted = policy_of_responses(e, logp + 3.0)
    torch.testing.assert_close(response_logp(instance, shifted), logp, rtol=1e-10, atol=1e-10)


# --- PRIME's process model --------------------------------------------------------------------------------------------


def cross_entropy(instance: Instance, model, beta: float, threshold: float, noise: float) -> Tensor:
    """-E[o log σ(β log φ/ref) + (1 - o) log(1 - σ)], o the noisy label, in plain terms."""
    e = Enumeration(instance.mdp, instance.policy)
    logits = beta * (response_logp(instance, model) - response_logp(instance, instance.reference))
    good = e.response_reward > threshold
    label = noise + (1 - 2 * noise) * good.double()
    loss = -(label * torch.sigmoid(logits).log() + (1 - label) * torch.sigmoid(-logits).log())
    return (e.probability * loss).sum()


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_the_process_model_is_where_the_cross_entropy_is_flat_and_least(instance, noise):
    beta, e = 0.7, Enumeration(instance.mdp, instance.policy)
    threshold = float(e.response_reward.median())
    model = process_model(e, instance.reference, beta, threshold, noise)
    least = float(cross_entropy(instance, model, beta, threshold, noise))

    logp = response_logp(instance, model).requires_grad_()
    logits = beta * (logp.log_softmax(-1) - response_logp(instance, instance.reference))
    label = noise + (1 - 2 * noise) * (e.response_reward > threshold).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, weight=e.probability, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logp)
    assert loss.item() == pytest.approx(least, rel=1e-10)
    assert float(gradient.abs().max()) < 1e-13

    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.1, 0.01):
        levels = [
            level + scale * torch.randn(level.shape, generator=generator, dtype=torch.float64) for level in model.levels
        ]
        other = TabularPolicy(model.tree, model.prompts, levels)
        assert float(cross_entropy(instance, other, beta, threshold, noise)) > least


def test_the_process_model_is_found_on_peaked_logits():
    """Responses of chance 1e-30 have as flat a cross-entropy as any: each has its own stationary point."""
    instance = random_instance(3, 3, seed=6)
    mdp = instance.mdp
    policy = TabularPolicy(mdp.tree, mdp.prompt_tokens, [20 * level for level in instance.policy.levels])
    e = Enumeration(mdp, policy)
    assert float(e.probability.min()) < 1e-30
    threshold = float(e.response_reward.median())
    ratio = response_logp(instance, process_model(e, instance.reference, 0.7, threshold)) - response_logp(
        instance, instance.reference
    )
    label = 0.05 + 0.9 * (e.response_reward > threshold).double()
    pull = (e.probability * (label - torch.sigmoid(0.7 * ratio))).log() - (
        ratio + response_logp(instance, instance.reference)
    )
    resolved = label - torch.sigmoid(0.7 * ratio) > 1e-9
    assert int(resolved.sum()) > 3
    torch.testing.assert_close(pull[resolved], pull[resolved].mean().expand(int(resolved.sum())), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed, beta, noise", [(60, 1.0, 0.05), (60, 0.3, 0.05), (4, 0.01, 0.05), (66, 0.3, 0.001)])
def test_the_process_model_is_found_where_its_sum_is_flat_or_known_to_few_digits(seed, beta, noise):
    generator = torch.Generator().manual_seed(seed)
    logp, reference = (60 * torch.randn(2, 18, generator=generator, dtype=torch.float64)).log_softmax(-1)
    label = torch.where(torch.rand(18, generator=generator) < 0.5, noise, 1 - noise).double()
    ratio = optima._implicit_rewards(logp, reference, label, beta)
    assert abs(float((reference + ratio).logsumexp(0))) < 1e-12


def test_a_process_model_without_successes_is_refused_in_words():
    instance = random_instance(3, 3)
    e = Enumeration(instance.mdp, instance.policy)
    with pytest.raises(NotConverged, match=r"^so few of the reference's responses succeed that "):
        process_model(e, instance.reference, 0.7, float(e.response_reward.max()))


def test_the_process_model_prefers_good_responses():
    """Σ φ = 1 keeps log φ/ref from being the label's log-odds, but every good response is lifted above every bad
    one."""
    instance = random_instance(3, 3)
    e = Enumeration(instance.mdp, instance.policy)
    threshold = float(e.response_reward.median())
    ratio = response_logp(instance, process_model(e, instance.reference, 0.7, threshold)) - response_logp(
        instance, instance.reference
    )
    good = e.response_reward > threshold
    assert float(ratio[good].min()) > float(ratio[~good].max())


def test_optima_leave_their_inputs_alone():
    """The levels that a table hands out are its own parameters."""
    instance = random_instance(3, 3)
    before = [level.detach().clone() for level in instance.reference.levels]
    rewards = [level.clone() for level in instance.mdp.token_reward.table]
    regularised_optimum(instance.mdp, instance.reference, 0.7)
    e = Enumeration(instance.mdp, instance.policy)
    process_model(e, instance.reference, 0.7, 0.0)
    dpo_minimiser(Enumeration(instance.mdp, instance.reference), 0.7)
    assert all(torch.equal(one, other) for one, other in zip(before, instance.reference.levels))
    assert all(torch.equal(one, other) for one, other in zip(rewards, instance.mdp.token_reward.table))
