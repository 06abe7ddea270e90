"""`certify` and the face: one import for what the README does, and what is given is checked."""

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

import llm_mdp
from llm_mdp import GRPO, RLOO, Estimator, EstimatorError, TooLarge, TRePO, certify, groups, random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.sampled import sampled_certificate


def test_a_certificate_is_that_of_the_ledger():
    instance = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=4)
    for id, estimator in (("rloo", RLOO(group_size=3)), ("grpo", GRPO(group_size=3)), ("trepo", TRePO())):
        row = claim_row(
            next(claim for claim in CLAIMS if claim.id == id), Problem(instance), sampled=None, seed=0, confidence=0.99
        )
        for found in (certify(estimator, instance), certify(id, instance)):
            assert found.verdict == row["verdict"]
            assert found.relative_bias == pytest.approx(row["relative_bias"], abs=1e-12)
            assert found.trace_covariance == pytest.approx(row["trace_covariance"], rel=1e-12)


def test_a_kl_penalty_has_a_target_of_its_own():
    assert certify("kl-k1-reward", target="kl").verdict == "unbiased"
    assert certify("kl-k1-reward").verdict == "biased" == certify("kl-k3-loss", target="kl").verdict


def test_a_certificate_prints_as_one_line():
    assert str(certify(RLOO(group_size=2))) == "unbiased: relative bias below 1e-09, scale 1, cosine 1"
    assert re.fullmatch(r"biased: relative bias 0\.\d+, scale \d\.\d+, cosine 0\.\d+", str(certify(GRPO(group_size=3))))


@dataclass(frozen=True)
class MixesWorlds(Estimator):
    group_size: int = 4

    def advantages(self, evidence):
        return (evidence.response_reward - evidence.response_reward.mean())[..., None]


@dataclass(frozen=True)
class MixesPrompts(Estimator):
    group_size: int = 2

    def advantages(self, evidence):
        return (evidence.response_reward - evidence.response_reward.mean(-1, keepdim=True))[..., None]


@dataclass(frozen=True)
class Divides(Estimator):
    def advantages(self, evidence):
        return (evidence.response_reward / 0)[..., None]


@pytest.mark.parametrize(
    ("act", "error", "sentence"),
    [
        (lambda: certify(MixesWorlds()), EstimatorError, "MixesWorlds mixes worlds: "),
        (lambda: certify(MixesPrompts()), EstimatorError, "MixesPrompts mixes prompts: "),
        (lambda: certify(Divides()), EstimatorError, "Divides.advantages holds "),
        (lambda: certify(RLOO), EstimatorError, r"RLOO is a class; give an object: RLOO\(\)"),
        (lambda: certify(lambda reward: None), EstimatorError, "<lambda> returned None for rewards of shape"),
        (lambda: certify("grop"), UsageError, r"there is no estimator 'grop'; did you mean grpo\?"),
        (lambda: certify("no_such.py:A"), UsageError, r"there is no file no_such\.py"),
        (lambda: certify(RLOO(), target="rewards"), ValueError, "target is 'rewards'; choose among reward, kl, "),
        (lambda: certify(RLOO(), "instance.json"), ValueError, r"instance is 'instance\.json'; give random_instance"),
        (lambda: certify(RLOO(group_size=9)), TooLarge, "groups of 9 out of 31 responses are too many"),
    ],
)  # fmt: skip
def test_what_cannot_be_certified_is_said_in_words(act, error, sentence):
    with pytest.raises(error, match=sentence):
        act()


@pytest.mark.parametrize("responses", [None, 20_000])
def test_no_public_way_to_a_certificate_averages_over_worlds(responses):
    """(RM - mean over everything) would be called unbiased: the mean runs over worlds; the truth is 3/4 of ∇J."""
    problem = Problem(random_instance(2, 2, gamma=0.9))
    target = problem.target("reward")
    with pytest.raises(EstimatorError, match=r"^MixesWorlds mixes worlds: "):
        if responses is None:
            exact_certificate(MixesWorlds(), problem.enumeration, target)
        else:
            sampled_certificate(MixesWorlds(), problem.enumeration, target, responses)


def test_the_face_has_every_name_that_it_lists_and_types():
    source = inspect.getsource(llm_mdp)
    typed = set(re.findall(r"^    from llm_mdp\.[\w.]+ import (\w+) as \1$", source, re.M))
    listed = {name for names in llm_mdp.HOMES.values() for name in names.split()}
    assert typed == listed and listed <= set(dir(llm_mdp))
    for name in listed:
        thing = getattr(llm_mdp, name)
        assert inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        llm_mdp.nothing  # noqa: B018


def test_the_face_is_lazy():
    code = "import sys, llm_mdp; print('torch' in sys.modules, llm_mdp.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", llm_mdp.__version__]


def test_groups_keep_prompts_apart():
    assert groups(torch.arange(6.0), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
