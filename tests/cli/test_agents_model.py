"""`llm-mdp agents --model`: every agent's own defaults on a tiny language model, as a person asks for them."""

import json

import pytest

pytest.importorskip("transformers")

from llm_mdp.cli.__main__ import guarded
from llm_mdp.cli.agents import agents
from llm_mdp.cli.verify import verify
from tests.cli.test_verify_model import model

__all__ = ["model"]
ASKED = ("--env-args", "digits=1", "--seed", "3", "--horizon", "2", "--dtype", "float64")


def test_agents_are_certified_on_a_model(model, capsys, tmp_path):
    file, other = tmp_path / "agents.json", tmp_path / "verify.json"
    status = guarded(
        lambda: agents(
            ["rloo", "grpo", "dpo", "rto", "--model", model, *ASKED, "--questions", "2", "--json", str(file)]
        )
    )
    said = capsys.readouterr()
    assert (status, said.err) == (0, "") and "rto" in said.out and "restricted" in said.out
    document = json.loads(file.read_text())
    found = {each["name"]: each["certificate"] for each in document["agents"]}
    assert [each["verdict"] for each in found.values()] == ["unbiased", "biased", "proportional", "not computed"]
    assert found["rloo"]["relative_bias"] < 1e-9 and found["rloo"]["words"].startswith(
        "unbiased, decided at the logits"
    )
    assert found["grpo"]["computed_on"].endswith("K=8") and found["dpo"]["computed_on"].endswith("K=2")
    assert found["grpo"]["relative_bias"] != pytest.approx(found["grpo"]["logits"]["relative_bias"], rel=1e-3)
    assert found["rto"]["words"].startswith("not computed: ")
    # The agent's estimator is the catalogue's, at the agent's own K.
    words = ["rloo", "--model", model, *ASKED, "--questions", "2", "--env", "llm_mdp/Arithmetic-v0", "--probes", "0"]
    assert guarded(lambda: verify([*words, "--group-size", "8", "--json", str(other)])) == 0
    row = json.loads(other.read_text())
    assert row["J"] == document["J"] and row["claims"]["rloo"]["tokens"] == found["rloo"]["tokens"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["rlo", "--model", "x"], "rlo"),
        (["--model", "x.json"], "--model is 'x.json'; give the folder or the name of a language model"),
        (["--model", "x", "--horizon", "0"], "--horizon is 0; it must be at least 1."),
        (["--model", "x", "--questions", "0"], "--questions is 0; ask at least 1."),
    ],
)
def test_what_cannot_be_is_one_sentence(words, complaint, capsys):
    assert guarded(lambda: agents(words)) != 0
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
