"""Certificates on a language model against full enumeration with its score matrix, which only a tiny model allows."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from llm_mdp import GRPO, RLOO, random_instance
from llm_mdp.estimators.catalogue import find_entry
from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.token_mdp import Prompt
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.lm.policy import tiny_transformer
from llm_mdp_agents.lm.tree_certificate import ModelCertifier
from llm_mdp_agents.lm.tree_problem import model_problem
from llm_mdp_envs.tasks.synthetic import TokenMDPTask


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
