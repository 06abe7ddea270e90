"""docs/adversarial/: what the files say is what following the estimators gives, and every biased row has one."""

import json
import math
from pathlib import Path

import pytest

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import read_instance
from llm_mdp.verify.adversary.files import read_adversary
from llm_mdp.verify.adversary.search import DRAWS, VISIBLE, Row, careful_paths
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "adversarial").glob("*.json"))
CLAIM = {claim.id: claim for claim in CLAIMS}
QUICK = ("grpo", "grpo-length", "length-normalised", "token-mean-loo", "rto-eq41", "turn-credit-reached")
"""Rows whose weights are the same at every policy: a second each."""


def replayed(path: Path) -> None:
    found = read_adversary(path)
    said, claim = found.said, CLAIM[path.stem]
    both = careful_paths(Row(claim.build, said["group_size"], said["beta"], said["target"]), found.instance)
    spread = float(both.many.spread)
    for key, theta in {"start": both.many.numbers.start, "exact": both.exact.end, "row": both.row.end}.items():
        figures = both.figures(theta)
        assert float(figures.J) == pytest.approx(said["J"][key], abs=2e-3 * spread), key
        assert float(figures.kl) == pytest.approx(said["KL to the start"][key], rel=0.02, abs=0.02), key
        assert float(figures.length) == pytest.approx(said["expected length"][key], abs=0.01), key
    assert float(both.loss) == pytest.approx(said["loss"], abs=4e-3)


@pytest.mark.parametrize("name", QUICK)
def test_following_ends_where_the_file_says(name):
    replayed(ROOT / "docs" / "adversarial" / f"{name}.json")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in QUICK], ids=lambda path: path.stem)
def test_following_ends_where_every_file_says(path):
    replayed(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_agrees_with_itself(path):
    """J at the start and at both ends, summed up from the listed responses; the start, from the logits; RM, from the
    rewards of the tokens."""
    content = json.loads(path.read_text())
    said, gamma = content["adversary"], content["gamma"]
    assert said["row"] == path.stem and said["target"] == CLAIM[path.stem].target
    nodes = {(node["prompt"], *node["prefix"]): node for node in content["nodes"]}
    shares = [prompt["probability"] for prompt in content["prompts"]]
    for response in said["responses"]:
        place, RM, chance = (response["prompt"],), 0.0, 1.0
        for step, token in enumerate(response["tokens"]):
            node = nodes[place]
            RM += gamma**step * node["token_reward"][token]
            chance *= math.exp(node["logits"][token]) / sum(map(math.exp, node["logits"]))
            place = (*place, token)
        assert pytest.approx(response["RM"], abs=1e-3) == RM
        assert pytest.approx(response["start"], abs=1e-4) == chance
    for key, J in said["J"].items():
        total = math.fsum(shares[each["prompt"]] * each["RM"] * each[key] for each in said["responses"])
        assert total == pytest.approx(J, abs=2e-3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_search_beat_a_thousand_random_draws(path):
    said = json.loads(path.read_text())["adversary"]
    assert said["worst of random draws"]["draws"] == DRAWS
    assert said["loss"] >= said["worst of random draws"]["loss"] and said["loss"] >= VISIBLE


def test_every_biased_row_has_a_file_or_is_named_as_without():
    ledger = json.loads((ROOT / "benchmarks" / "results" / "ledger.json").read_text())
    biased = {
        name for run in ledger["instances"] for name, row in run["claims"].items() if row["verdict"] == "biased"
    } & {claim.id for claim in CLAIMS if claim.figure is None}
    without = biased - {path.stem for path in FILES}
    page = (ROOT / "docs" / "adversarial.md").read_text()
    rest = page[page.index("## Rows without a file") :]
    assert [name for name in sorted(without) if f"`{name}`" not in rest] == []


@pytest.mark.parametrize("name", QUICK[:2])
def test_a_file_is_an_instance_for_everybody(name):
    problem = Problem(read_instance(ROOT / "docs" / "adversarial" / f"{name}.json"), 2)
    said = json.loads((ROOT / "docs" / "adversarial" / f"{name}.json").read_text())["adversary"]
    assert problem.gradient[0] == pytest.approx(said["J"]["start"], rel=1e-3)
    assert isinstance(problem.enumeration, Enumeration)
