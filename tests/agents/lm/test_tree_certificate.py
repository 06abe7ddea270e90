"""Certificates on a language model against full enumeration with its score matrix, which only a tiny model allows."""

from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("transformers")

from llm_mdp import GRPO, RLOO, random_instance
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import find_entry
from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.token_mdp import Prompt
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.lm.policy import tiny_transformer
from llm_mdp_agents.lm.spread import covariance_factors, spread
from llm_mdp_agents.lm.tree_certificate import ModelCertifier, dot
from llm_mdp_agents.lm.tree_problem import model_problem
from llm_mdp_envs.tasks.synthetic import TokenMDPTask


@dataclass(frozen=True)
class TokenMean(Estimator):
    """Divides by the group's tokens: what the others enter with is more than their rewards."""

    def advantages(self, evidence):
        reward = evidence.response_reward
        tokens = evidence.rollouts.mask.sum((-2, -1), keepdim=True)
        return (reward - reward.mean(-1, keepdim=True))[..., None] / tokens


@dataclass(frozen=True)
class ZeroStdFiltered(RLOO):
    """Leaves out groups whose first reward is not above the second: some of them, and not the same share of both
    prompts."""

    def collect(self, sampler):
        evidence = super().collect(sampler)
        reward = evidence.response_reward
        return sampler.keep(evidence, (reward - reward.mean(-1, keepdim=True)).abs().amax(-1, keepdim=True) > 0.4)


@dataclass(frozen=True)
class Peeks(Estimator):
    """Reads the others' tokens: classes refuse it."""

    def advantages(self, evidence):
        others = evidence.rollouts.tokens[..., :1].flip(-2).double()
        return (evidence.response_reward[..., None] - others).expand(evidence.rollouts.mask.shape)


def flat(gradient) -> torch.Tensor:
    return torch.cat([each.flatten() for each in gradient])


def columns_of(factors, edges: int) -> torch.Tensor:
    every = [torch.eye(block.columns.shape[1], dtype=torch.float64) for block in factors]
    return torch.cat([torch.stack([b.at(row, edges) for row in each], 1) for b, each in zip(factors, every)], dim=1)


@pytest.fixture(scope="module")
def instance() -> Instance:
    """Two prompts, asked equally often, and a tiny transformer as the policy."""
    made = random_instance(3, 3, n_prompts=2, seed=3)
    mdp = replace(made.mdp, prompts=tuple(Prompt(prompt.tokens, 0.5) for prompt in made.mdp.prompts))
    policy = tiny_transformer(3, 1 + 3, seed=1)
    policy.token_subset = TokenSubset(range(3), 3)
    return replace(made, mdp=mdp, policy=policy)


@pytest.fixture(scope="module")
def asked(instance):
    task = TokenMDPTask(instance.mdp)
    questions = [task.from_prompt(prompt.tokens) for prompt in instance.mdp.prompts]
    return model_problem(instance.policy, task, questions, 3)


@pytest.fixture(scope="module")
def whole(instance) -> Problem:
    """The same by the score matrix of the transformer."""
    return Problem(instance)


NAMES = ("rloo", "grpo", "grpo-length", "dr-grpo", "token-mean-loo", "length-normalised-loo", "reinforce", "trepo-eq31")


@pytest.mark.parametrize("name", NAMES)
def test_figures_in_the_parameters_are_those_of_full_enumeration(name, asked, whole):
    estimator = whole.make(find_entry(name))
    found = ModelCertifier(asked).certify(estimator)
    expected = exact_certificate(estimator, whole.enumeration, whole.target(), whole.magnitude())
    assert found.certificate.verdict == expected.verdict
    assert found.figures is not None
    assert expected.relative_bias is not None and expected.cosine is not None
    assert found.figures.relative_bias == pytest.approx(expected.relative_bias, rel=1e-9, abs=1e-11)
    assert found.figures.scale == pytest.approx(expected.scale, rel=1e-9)
    assert found.figures.one_minus_cosine == pytest.approx(1 - expected.cosine, rel=1e-6, abs=1e-13)
    assert found.figures.norm == pytest.approx(float(whole.target().norm()), rel=1e-9)


def test_the_true_gradient_is_that_of_the_parameters(asked, whole):
    certifier = ModelCertifier(asked)
    gradient = torch.cat([each.flatten() for each in certifier.true_gradient()])
    torch.testing.assert_close(gradient, whole.target(), rtol=1e-9, atol=1e-12)
    assert certifier.asked.problem.gradient[0] == pytest.approx(whole.gradient[0], rel=1e-12)
    assert certifier.resolution() < 1e-13


def test_other_targets_have_their_own_gradient(asked, whole):
    """Against ∇E max of K an estimator of ∇J is biased, by the same figure."""
    certifier, estimator = ModelCertifier(asked), RLOO(group_size=2)
    found = certifier.certify(estimator, "length")
    expected = exact_certificate(estimator, whole.enumeration, whole.target("length"), whole.magnitude("length"))
    assert found.figures is not None
    assert found.figures.relative_bias == pytest.approx(expected.relative_bias, rel=1e-9)
    assert certifier.certify(estimator).certificate.verdict == "unbiased"


def test_all_tokens_of_the_subset_cover_everything(asked):
    assert asked.covered_by_step() == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)


def test_a_tree_that_is_read_anew_for_every_pass_has_the_same_gradient(asked, monkeypatch):
    kept = ModelCertifier(asked).certify(GRPO(group_size=2)).figures
    monkeypatch.setattr("llm_mdp_agents.lm.tree_certificate.KEPT_COLUMNS", 0)
    again = ModelCertifier(asked).certify(GRPO(group_size=2)).figures
    assert kept is not None and again is not None
    assert again.relative_bias == pytest.approx(kept.relative_bias, rel=1e-10)
    assert again.norm == pytest.approx(kept.norm, rel=1e-10)


@pytest.mark.parametrize(
    "estimator",
    [
        RLOO(group_size=2),
        GRPO(group_size=3),
        TokenMean(group_size=3),
        ZeroStdFiltered(group_size=2),
        Peeks(group_size=2),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_covariance_by_the_logits_is_that_of_full_enumeration(estimator, asked, whole):
    """As a table's trace, and, every direction by a backward pass of its own, as the transformer's."""
    certifier, enumeration = ModelCertifier(asked), asked.problem.enumeration
    factors = columns_of(covariance_factors(estimator, enumeration), enumeration.n_edges)
    table = exact_certificate(estimator, enumeration, asked.problem.target())
    assert float(factors.square().sum()) == pytest.approx(table.trace_covariance, rel=1e-9)
    gradients = [certifier.space.gradient(each.view(2, -1, 3)) for each in factors.T]
    expected = exact_certificate(estimator, whole.enumeration, whole.target()).trace_covariance
    assert sum(dot(each, each) for each in gradients) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_random_signs_holds_what_it_is_of(asked, whole, monkeypatch):
    """95 % of them at least, on a model of so few parameters that directions are far from orthogonal, and without any
    that is taken by itself."""
    certifier, estimator = ModelCertifier(asked), GRPO(group_size=3)
    truth = exact_certificate(estimator, whole.enumeration, whole.target()).trace_covariance
    assert truth is not None
    factors, edges = covariance_factors(estimator, asked.problem.enumeration), asked.problem.enumeration.n_edges
    every = columns_of(factors, edges)
    gradients = torch.stack([flat(certifier.space.gradient(each.view(2, -1, 3))) for each in every.T])
    back = gradients.T @ torch.linalg.pinv(every)

    def length_of(by_edge):
        return float((back @ by_edge).square().sum())

    found = [spread(factors, edges, length_of, 8, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {(each.exact, each.probes) for each in found} == {(8, 8)}
    assert all(each.interval[0] <= truth <= each.interval[1] for each in found)
    real = certifier.spread(estimator, 8, torch.Generator().manual_seed(0))
    assert real.trace == pytest.approx(found[0].trace, rel=1e-9)

    monkeypatch.setattr("llm_mdp_agents.lm.spread.MOST_EXACT", 0)
    found = [spread(factors, edges, length_of, 8, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert sum(not each.interval[0] <= truth <= each.interval[1] for each in found) <= 20
    assert sum(each.trace for each in found) / 400 == pytest.approx(truth, rel=0.02)


def test_few_directions_are_taken_one_by_one(asked, whole, monkeypatch):
    """All of them, where there are no more: then nothing is left to chance."""
    monkeypatch.setattr("llm_mdp_agents.lm.spread.MOST_EXACT", 1000)
    monkeypatch.setattr("llm_mdp_agents.lm.spread.REST", 0.0)
    certifier, estimator = ModelCertifier(asked), RLOO(group_size=2)
    found = certifier.spread(estimator, 6, torch.Generator().manual_seed(0))
    assert found.probes == 0 and found.interval == (found.trace, found.trace)
    expected = exact_certificate(estimator, whole.enumeration, whole.target()).trace_covariance
    assert found.trace == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="probes is 5; an interval needs at least 6"):
        certifier.spread(estimator, 5, torch.Generator())
