"""What a notebook shows of certificates, ledgers, measurements and runs: the same four for all."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from torch import zeros

from llm_mdp import GRPO, RLOO, Certificate, Ledger, Problem, certify, notebook, random_instance, run_ledger
from llm_mdp.variance import allocation, measurement
from llm_mdp.variance.allocation import Price, Split, allocate
from llm_mdp.variance.measurement import exact_measurement
from llm_mdp.variance.sampled import sampled_measurement, tree_estimates
from llm_mdp.verify import certificate, shown
from llm_mdp.verify.ledger import find_claims
from llm_mdp_agents import read_run
from llm_mdp_agents.lm import tree_certificate
from llm_mdp_agents.lm.tree_certificate import InParameters, ModelCertificate
from llm_mdp_agents.training import recorded
from llm_mdp_agents.training.records import Records

PROBLEM = Problem(random_instance(2, 2, seed=1), group_size=2)
HOSTILE = "<script>alert(1)</script>\n\x1b[31m"


def made_run(folder: Path, agent: str):
    """The folder of a run of two steps, written by what writes them."""
    folder.mkdir()
    config = {"agent": {"name": agent}, "env": {"id": "llm_mdp/Tabular-v0"}, "train": {"seed": 7}}
    (folder / "config.json").write_text(json.dumps(config))
    with Records(folder, loggers=("none",)) as records:
        records.metrics(0, {"eval/reward": -0.5, "eval/reward_low": -0.6, "eval/reward_high": -0.4})
        records.metrics(1, {"reward": 0.1, "tokens": 1200})
        records.metrics(
            2, {"reward": 0.2, "tokens": 1300, "eval/reward": 0.75, "eval/reward_low": 0.7, "eval/reward_high": 0.8}
        )
    return read_run(folder)


ON_MODEL = InParameters(0.5, 0.7, 0.4, 1.0)

KINDS = {
    "certificate": lambda here: certify(GRPO(2), PROBLEM.instance),
    "ledger": lambda here: run_ledger(PROBLEM, find_claims(["rloo", "grpo-mean", "token-mean"])),
    "measurement": lambda here: exact_measurement(GRPO(2), PROBLEM.enumeration, PROBLEM.target("reward")),
    "allocation": lambda here: allocate(100, [Price(Split(4, (1,), 0.5), 0.2, 0.1, 12.0, 3.0)], 0.05),
    "on a model": lambda here: ModelCertificate(certify(GRPO(2), PROBLEM.instance), zeros(1), 0.4, ON_MODEL),
    "run": lambda here: made_run(here / "run", "rloo"),
}
SAYS = {
    "certificate": r"^GRPO: biased, relative bias 0\.\d+, scale \d\.\d+, cosine 0\.\d+, K = 2, all \d+ groups",
    "ledger": r"^ledger: none contradicts what is expected, 3 claims on .*: 1 \w+, 1 \w+, 1 \w+, K = 2, exact$",
    "measurement": r"^biased, tokens to signal \d+\.\d+, relative bias 0\.\d+, cosine 0\.\d+, \d\.\d+ tokens",
    "allocation": r"^5 prompts x 4 responses, 2 branches before token 2, λ = 0\.5, 18 tokens a prompt, 90 tokens",
    "on a model": r"^biased, relative bias 0\.5, scale 0\.7, cosine 0\.868\d, .* in the model's parameters$",
    "run": r"^rloo on llm_mdp/Tabular-v0: reward -0\.500 → 0\.750, 95 %: 0\.700 to 0\.800, 2 steps, .*, seed 7$",
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def result(kind, tmp_path):
    return KINDS[kind](tmp_path)


def test_one_line_says_the_finding(kind, result):
    assert re.search(SAYS[kind], repr(result)), repr(result)
    assert "\n" not in repr(result)


def test_html_has_the_finding_and_the_table(result):
    found, figures = result._finding()
    page = result._repr_html_()
    assert f"<b>{notebook.escape(found)}</b>" in page and notebook.escape(figures) in page
    assert page.count("<tr>") == 1 + len(result._in_table())


def test_plot_draws_on_its_own_axes_or_on_those_given(result):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    given = Figure().add_subplot()
    assert result.plot(given) is given
    assert given.lines or given.collections or given.texts
    drawn = result.plot()
    assert drawn is not given and drawn.get_title("left")
    pyplot.close("all")


def test_a_data_frame_has_the_figures_in_full(kind, result):
    pytest.importorskip("pandas")
    frame = result.to_dataframe()
    full = {
        "certificate": lambda: frame["cosine"][0] == result.cosine,
        "ledger": lambda: list(frame["cosine"]) == [row["cosine"] for row in result["claims"].values()],
        "measurement": lambda: frame["tokens_to_signal"][0] == result.spread.tokens_to_signal,
        "allocation": lambda: frame["progress"][0] == result.progress,
        "on a model": lambda: frame["cosine"][0] == ON_MODEL.cosine,
        "run": lambda: list(frame["reward"][1:]) == [0.1, 0.2] and list(frame["step"]) == [0, 1, 2],
    }
    assert full[kind]()


def test_without_pandas_one_sentence_says_how_to_get_it(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^a data frame needs pandas, which .*: pip install pandas$"):
        result.to_dataframe()


@pytest.mark.parametrize("module", [notebook, certificate, shown, measurement, allocation, tree_certificate, recorded])
def test_neither_pandas_nor_matplotlib_is_imported_before_it_is_asked_for(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [line for node in imports if "matplotlib" in (line := ast.unparse(node)) or "pandas" in line]


def test_hostile_names_are_text(tmp_path):
    ledger = run_ledger(PROBLEM, find_claims(["rloo"]))
    hostile = Ledger(ledger | {"name": HOSTILE, "claims": {HOSTILE: ledger["claims"]["rloo"] | {"reason": HOSTILE}}})
    run = made_run(tmp_path / "run", HOSTILE)

    def named(rewards):
        return rewards

    named.__name__ = HOSTILE
    for found in (hostile, run, certify(named, PROBLEM.instance, group_size=2)):
        page = found._repr_html_()
        assert "<script>" not in page and "&lt;script&gt;" in page and "\x1b" not in page + repr(found)
        assert "\n" not in repr(found)


def test_what_was_sampled_has_its_interval():
    sampled = sampled_measurement(tree_estimates(RLOO(2), PROBLEM.enumeration, 500), PROBLEM.target("reward"))
    assert "estimates drawn" in repr(sampled) and "[" in repr(sampled) and "exact" not in repr(sampled)


def test_a_ledger_says_which_claims_contradict():
    ledger = run_ledger(PROBLEM, find_claims(["rloo", "token-mean"]))
    ledger["claims"]["rloo"]["holds"] = False
    assert repr(ledger).startswith("ledger: 1 not as expected (rloo), 2 claims on ")
    assert repr(Ledger({"instances": [ledger, ledger]})).startswith(
        "ledger: 1 not as expected (rloo), 2 claims on 2 in"
    )
    assert Ledger(json.loads(json.dumps(ledger))) == ledger


def test_what_has_no_figures_is_not_drawn():
    with pytest.raises(ValueError, match="there is no arrow to draw: rounding"):
        Certificate("undecided", None, None, None, None, reason="rounding").plot()
