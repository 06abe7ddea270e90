"""Following an estimator: E g and the true gradients away from the start, and the natural direction."""

from dataclasses import dataclass, replace

import pytest
import torch

from llm_mdp import GRPO, Estimator, NgramPolicy, random_instance
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import AtTemperature
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.following import Following
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients

BY_ID = {claim.id: claim for claim in CLAIMS}


def away(following: Following, seed: int = 3) -> torch.Tensor:
    noise = torch.randn(following.start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return following.start + 0.7 * noise


def moved(problem: Problem, parameters: torch.Tensor) -> Problem:
    """The problem with its policy elsewhere, made without the code under test."""
    policy = replace(problem.instance).policy
    levels = [level.detach().clone() for level in policy.parameters()]
    pieces = parameters.split([level.numel() for level in levels])
    if isinstance(policy, NgramPolicy):
        other = NgramPolicy(pieces[0].view_as(levels[0]), policy.order)
    else:
        other = type(policy)(policy.tree, policy.prompts, [one.view_as(two) for one, two in zip(pieces, levels)])
    return replace(problem, instance=replace(problem.instance, policy=other))


def instance(kind: str):
    if kind == "reply":
        return random_instance(2, 3, seed=5, environment_at=(1,))
    found = random_instance(2, 3, seed=5, gamma=0.9, n_prompts=2)
    if kind == "shared":
        found = replace(found, policy=NgramPolicy.random(2, 1, torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize("kind", ["table", "shared", "reply"])
@pytest.mark.parametrize(
    "row", ["grpo", "zero-std-filtered", "trepo-eq31", "temperature-mismatch", "gae-exact-0", "mismatch-token"]
)
def test_figures_away_from_the_start_are_those_of_an_instance_that_starts_there(row, kind):
    problem = Problem(instance(kind), group_size=2)
    following = Following(BY_ID[row].build, problem)
    there = away(following)
    point, other = following.at(there), moved(problem, there)
    mean = exact_moments(BY_ID[row].build(other), other.enumeration).mean
    assert torch.allclose(point.mean, mean, rtol=0, atol=1e-13)
    value, gradients = other.gradient
    assert abs(point.J - value) < 1e-13
    assert torch.allclose(point.gradient, flatten_gradients(gradients, gradients), rtol=0, atol=1e-13)
    assert point.length == pytest.approx(other.enumeration.expected_length, abs=1e-13)


@pytest.mark.parametrize("kind", ["table", "shared", "reply"])
def test_the_gradient_of_kl_is_that_of_kl_to_the_start(kind):
    following = Following(BY_ID["rloo"].build, Problem(instance(kind), group_size=2))
    there = away(following)
    assert following.at(following.start).kl == pytest.approx(0, abs=1e-15)
    for number in range(len(there)):
        step = torch.zeros_like(there)
        step[number] = 1e-5
        slope = (following.at(there + step).kl - following.at(there - step).kl) / 2e-5
        assert slope == pytest.approx(float(following.at(there).kl_gradient[number]), abs=1e-8)


@pytest.mark.parametrize("kind", ["table", "shared"])
def test_the_natural_direction_makes_the_steepest_gain_for_its_kl(kind):
    """KL of a small step h is h F h / 2: F h, found by differences of ∇KL at the start, gives the gradient back."""
    following = Following(BY_ID["rloo"].build, Problem(instance(kind), group_size=2))
    point = following.at(following.start)
    natural = following.natural(point, point.gradient)
    size = 1e-5 / float(natural.abs().max())
    ahead = following.at(following.start + size * natural).kl_gradient
    behind = following.at(following.start - size * natural).kl_gradient
    assert torch.allclose((ahead - behind) / (2 * size), point.gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("row", "rebuilt"),
    [
        *(
            ("grpo", False),
            ("rloo", False),
            ("token-mean", False),
            ("gae-wrong-0", False),
            ("zero-std-filtered", False),
        ),
        *(("gae-exact-0", True), ("temperature-mismatch", True), ("kl-k2-loss", True), ("trepo-eq31", True)),
        *(("mismatch-ignored", True), ("ppo-second-epoch", True)),
    ],
)
def test_weights_that_move_with_the_policy_are_found_out(row, rebuilt):
    assert Following(BY_ID[row].build, Problem(random_instance(2, 2, seed=1), group_size=2)).rebuilt is rebuilt


@dataclass(frozen=True)
class FarAway(Estimator):
    """The reward; nothing for tokens that have become rare, which they are not at the start."""

    group_size: int = 1

    def advantages(self, evidence: Evidence):
        return evidence.response_reward[..., None] * (evidence.rollouts.logp > -4)


def test_weights_that_change_only_far_away_are_found_out():
    problem = Problem(random_instance(2, 2, seed=1))
    assert float(problem.enumeration.leaf_logp().min()) > -4
    assert Following(lambda _: FarAway(), problem).rebuilt


@dataclass(frozen=True)
class KeepsNothing(GRPO):
    def collect(self, sampler):
        evidence = super().collect(sampler)
        return sampler.keep(evidence, evidence.response_reward.amax(-1, keepdim=True) > 1e9)


def test_what_leaves_out_everything_leads_nowhere():
    following = Following(lambda _: KeepsNothing(group_size=2), Problem(random_instance(2, 2)))
    with pytest.raises(NothingKept, match="leads nowhere"):
        following.at(following.start)


def test_other_policies_and_batches_of_prompts_are_refused_in_words():
    found = random_instance(2, 2)
    with pytest.raises(ValueError, match="only tables and n-gram tables"):
        Following(BY_ID["rloo"].build, Problem(replace(found, policy=AtTemperature(found.policy, 0.5))))
    with pytest.raises(ValueError, match="prompts is 2"):
        Following(BY_ID["rloo"].build, Problem(found, prompts=2))
