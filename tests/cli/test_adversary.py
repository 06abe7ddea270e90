"""`llm-mdp verify ROW --adversary FILE`: refusals before any work, and what is said and written."""

import json

import pytest

from llm_mdp.cli.adversary import check_adversary, find_adversary
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.adversary.files import read_adversary
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import find_claims
from llm_mdp.verify.problem import Problem
from tests.cli.per_token import OWN

CLAIM = {claim.id: claim for claim in CLAIMS}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("grpo", "rloo"), "--adversary searches for one estimator, and 2 rows are named"),
        (("dpo-optimum",), "--adversary follows an estimator, and dpo-optimum is a statement"),
        (("pass-at-k",), "--adversary follows estimators of reward, kl, entropy, and pass-at-k is of 'max of K'"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(names, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        check_adversary([CLAIM[name] for name in names], tmp_path / "x.json")


def test_without_the_option_anything_goes():
    check_adversary(CLAIMS, None)


@pytest.mark.slow
def test_an_estimator_of_ones_own_is_searched_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    (claim,) = find_claims(["mine.py:PerToken"])
    said = find_adversary(claim, Problem(random_instance()), tmp_path / "worst.json", 0)
    assert "the exact gradient leads to" in said["line"] and "worst.json" in said["line"]
    assert "followed from where the exact gradient led" in said["line"]
    found = read_adversary(tmp_path / "worst.json")
    assert found.said["loss"] >= found.said["worst of random draws"]["loss"]
    assert json.dumps(said)
    assert "mine.py:PerToken --instance" in found.said["command"]


@pytest.mark.slow
def test_what_loses_nothing_gets_no_file(tmp_path):
    said = find_adversary(CLAIM["reinforce"], Problem(random_instance()), tmp_path / "none.json", 0)
    assert "no instance was found" in said["line"]
    assert not (tmp_path / "none.json").exists()
