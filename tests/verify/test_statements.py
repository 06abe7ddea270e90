"""Statements of the paper that are no estimator: their figures by other routes, and bugs that they must notice."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from llm_mdp.estimators.practices import SecondEpoch
from llm_mdp.estimators.theorems import Theorem1
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.hidden_rewards import ScaledReward, TableReward
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.claims.misprints import MISPRINTS
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem

BY_ID = {claim.id: claim for claim in CLAIMS}
STATEMENTS = [claim for claim in CLAIMS if claim.figure]
few = settings(deadline=None, max_examples=20)


@st.composite
def problems(draw) -> Problem:
    vocab_size, horizon, seed = draw(st.integers(2, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 2**20))
    gamma, n_prompts = draw(st.sampled_from([1.0, 0.7])), draw(st.integers(1, 2))
    eos = draw(st.sampled_from([0, 1, None]))
    return Problem(random_instance(vocab_size, horizon, eos=eos, gamma=gamma, n_prompts=n_prompts, seed=seed))


def row(id: str, p: Problem) -> dict:
    return claim_row(BY_ID[id], p, sampled=None, seed=0, confidence=0.99)


@pytest.mark.parametrize("claim", STATEMENTS, ids=lambda claim: claim.id)
def test_a_statement_is_a_row_like_any_other(claim):
    found = row(claim.id, Problem(random_instance(2, 2)))
    assert set(found) > set(row("rloo", Problem(random_instance(2, 2)))) - {"certificate"}
    assert found["holds"] is True and found["certificate"] and found["statement"] == claim.statement
    with pytest.raises(ValueError, match=f"^{claim.id} is a statement and has no estimator; ask for its `figure`.$"):
        claim.build(Problem(random_instance(2, 2)))


# --- Remark 4: ReMax's baseline ---------------------------------------------------------------------------------------


def test_the_greedy_baseline_by_hand():
    """Two tokens, one step: the greedy one is worth 3, and the expectation is in between."""
    instance = random_instance(2, 1, eos=None)
    mdp = instance.mdp
    reward = TableReward(mdp.tree, mdp.prompt_tokens, [torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)])
    logits = [torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)]
    policy = TabularPolicy(mdp.tree, mdp.prompt_tokens, logits)
    found = row("remark-4-remax", Problem(replace(instance, mdp=replace(mdp, token_reward=reward), policy=policy)))
    greedy = 1 / (1 + torch.tensor(-1.0).exp().item())
    assert found["verdict"] == "fails" and found["holds"] is True, "no verdict is expected: the row reports"
    assert (found["baseline"], found["value"]) == pytest.approx((3, 1 + 2 * greedy))
    assert found["certificate"] == "RM of the greedy response is 3, U(w₀) 2.462"


@few
@given(problems())
def test_a_policy_that_is_nearly_greedy_has_remax_for_its_value(p):
    """Logits times 1e4: one response, and both baselines are its reward."""
    instance = p.instance
    levels = [1e4 * level.detach() for level in instance.policy.levels]
    sharp = replace(instance, policy=TabularPolicy(instance.mdp.tree, instance.mdp.prompt_tokens, levels))
    found = row("remark-4-remax", Problem(sharp))
    assert found["verdict"] == "holds" or min(gap(level) for level in levels) < 30


def gap(level: torch.Tensor) -> float:
    best = level.topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).min())


# --- Remark 5: the advantage of the second treatment ------------------------------------------------------------------


def test_token_rewards_mostly_have_less_variance_and_not_always():
    ratios = [row("remark-5-advantage", Problem(random_instance(3, 3, seed=seed)))["ratio"] for seed in range(20)]
    assert sum(ratio < 1 for ratio in ratios) > 14 and max(ratios) > 1


def test_the_verdict_on_the_advantage_is_that_of_the_ratio():
    for seed in range(6):
        found = row("remark-5-advantage", Problem(random_instance(3, 3, seed=seed)))
        assert (found["verdict"] == "holds") == (found["ratio"] < 1) and found["holds"] is True


def test_without_rewards_there_is_no_ratio():
    instance = random_instance(2, 2)
    nothing = replace(instance.mdp, token_reward=ScaledReward(0.0, instance.mdp.token_reward))
    found = row("remark-5-advantage", Problem(replace(instance, mdp=nothing)))
    assert found["ratio"] is None and found["certificate"] == "neither form has any variance here"


# --- Remark 7: one goal -----------------------------------------------------------------------------------------------


@few
@given(problems())
def test_the_exact_and_the_approximate_goal_are_one(p):
    assert row("remark-7-same-goal", p)["verdict"] == "holds"


def test_another_goal_is_noticed(monkeypatch):
    monkeypatch.setattr(Theorem1, "advantages", lambda self, evidence: evidence.value[..., :-1] ** 2)
    found = row("remark-7-same-goal", Problem(random_instance(3, 3)))
    assert found["verdict"] == "fails" and found["holds"] is False and found["difference"] > 1e-3


# --- the second epoch, judged where it is taken -----------------------------------------------------------------------


def kinds() -> list[Instance]:
    instance = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3)
    bigram = replace(instance, policy=NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)))
    return [instance, bigram, random_instance(2, 4, environment_at=(1,), seed=1)]


@pytest.mark.parametrize("instance", kinds(), ids=["table", "bigram", "replies"])
def test_without_a_step_the_new_policy_is_the_old_one(instance, monkeypatch):
    """At step size 0 the second update is the first, REINFORCE, and is compared with ∇J itself."""
    monkeypatch.setattr(SecondEpoch, "displacement", lambda self, first_update: 0.0 * first_update)
    found = row("ppo-second-epoch-new-theta", Problem(instance))
    assert found["verdict"] == "unbiased" and found["scale"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("instance", kinds(), ids=["table", "bigram", "replies"])
def test_the_target_is_the_mean_of_exact_gradients_at_the_policies_after_the_step(instance):
    """By the dynamic programme over the tree, at a policy made for each response."""
    p = Problem(instance)
    e, mean = p.enumeration, torch.zeros_like(p.target("reward"))
    start = parameters_to_vector(instance.policy.parameters()).detach()
    for prompt, chances in enumerate(e.probability):
        for leaf, chance in enumerate(chances):
            score = e.scores[e.edge[prompt, leaf, e.mask[leaf]]].sum(0)
            policy = copy.deepcopy(instance.policy)
            vector_to_parameters(start + 0.5 * e.response_reward[prompt, leaf] * score, policy.parameters())
            _, gradients = exact_gradient(policy, instance.mdp)
            mean += e.mdp.prompt_probability[prompt] * chance * torch.cat([each.flatten() for each in gradients])
    second = exact_moments(SecondEpoch(), e).mean
    found = row("ppo-second-epoch-new-theta", p)
    assert found["relative_bias"] == pytest.approx(float((second - mean).norm() / mean.norm()), rel=1e-9)
    assert found["scale"] == pytest.approx(float(second @ mean / (mean @ mean)), rel=1e-9)
    old = row("ppo-second-epoch", p)["relative_bias"]
    assert abs(found["relative_bias"] - old) > 1e-3, "at the old policy it is another figure"
    torch.testing.assert_close(parameters_to_vector(instance.policy.parameters()).detach(), start, rtol=0, atol=0)


# --- misprints --------------------------------------------------------------------------------------------------------


def test_every_misprint_says_where_what_and_why():
    assert len({misprint.place for misprint in MISPRINTS}) == len(MISPRINTS) > 8
    for misprint in MISPRINTS:
        assert misprint.printed and misprint.meant and misprint.printed != misprint.meant and misprint.why.endswith(".")
