"""`llm-mdp variance` as a person types it: what is measured, what is written, what is never computed twice, and what is
refused."""

import csv
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from llm_mdp.cli import __main__ as cli
from llm_mdp.cli import variance as variance_command
from llm_mdp.cli.variance import VarianceArguments, check, plan
from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.entry import Given
from llm_mdp.exact.instance_files import write_instance
from llm_mdp.exact.instances import random_instance
from llm_mdp.variance.benches import make_bench
from llm_mdp.variance.comparison import best_by_budget, on_frontier, recommendation
from llm_mdp.variance.grid import DEFAULT, Candidate, Grid, candidates
from llm_mdp.variance.measurement import exact_measurement
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.study import AXES, TYPICAL, _bench
from llm_mdp.verify.problem import Problem
from llm_mdp_agents import study
from llm_mdp_agents.measuring import measure_task
from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task
from llm_mdp_agents.study import _transformer, measure_cell

SMALL = "--vocab 2 --horizon 2 --jobs 1"
FEW = "--group-sizes 2 --positions 1 --branches 1"
OWN = """from dataclasses import dataclass

from llm_mdp.estimators.algorithms import REINFORCE


@dataclass(frozen=True)
class Mine(REINFORCE):
    baseline: float = {baseline}
"""


@pytest.fixture
def variance(here, monkeypatch, capsys):
    """Type a command; gives its exit status, what it printed and what it complained about."""

    def typed(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llm-mdp", "variance", *words.split()])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return typed


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The names of the cells that are computed, and not read from the folder."""
    names: list[str] = []
    measure = measure_cell

    @functools.wraps(measure)
    def counting(cell):
        names.append(cell["name"])
        return measure(cell)

    # A kept cell's function is one that is found by its name.
    for place in (variance_command, study):
        monkeypatch.setattr(place, "measure_cell", counting)
    return names


def document(folder: Path | str = "variance") -> dict:
    return json.loads((Path(folder) / "results.json").read_text())


def rows_of(setting: dict) -> dict[str, dict]:
    return {row["label"]: row for row in setting["rows"]}


def same(row: dict, expected: dict, rel: float = 1e-9) -> None:
    """The figures of a row of the document are those of a measurement's row (but those of clocks)."""
    for name, value in expected.items():
        if name in ("seconds", "intervals"):
            continue
        plain = not isinstance(value, float)
        assert row[name] == (value if plain else pytest.approx(value, rel=rel, abs=1e-12)), name
    for name, ends in (expected["intervals"] or {}).items():
        for end, value in zip(row["intervals"][name], ends, strict=True):
            assert end == (None if value is None else pytest.approx(value, rel=rel, abs=1e-12)), name


# --- what is measured -------------------------------------------------------------------------------------------------


def test_without_options_three_typical_settings_and_every_default_candidate():
    plans = list(plan(VarianceArguments()))
    assert [each.name for each in plans] == [setting.name for setting in TYPICAL] and len(plans) == 3
    assert {each.axes["policy"] for each in plans} == {"tabular", "transformer", "ngram"}
    for each, setting in zip(plans, TYPICAL):
        assert list(each.listed) == candidates(DEFAULT, Grid(), setting.horizon)
        assert {candidate.name for candidate in each.listed} == set(DEFAULT)
        assert len(each.cells) == 1 + len(each.listed) and each.cells[0]["facts"]
    shifted = list(plan(VarianceArguments(seed=5)))
    assert [cell["setting"]["seed"] for each in shifted for cell in each.cells[:1]] == [
        setting.seed + 5 for setting in TYPICAL
    ]


def test_axes_multiply():
    arguments = VarianceArguments(
        ("rloo",), vocab=(2, 3), horizon=(2, 3), rewards=("dense", "outcome"), gamma=(0.5,), grid=Grid((2,))
    )
    plans = list(plan(arguments))
    wanted = list(product((2, 3), (2, 3), ("dense", "outcome")))
    assert [(each.axes["vocab_size"], each.axes["horizon"], each.axes["rewards"]) for each in plans] == wanted
    assert plans[1].name == "vocab 2, horizon 2, rewards outcome"
    assert {cell["setting"]["gamma"] for each in plans for cell in each.cells} == {0.5}
    assert len({json.dumps(cell, sort_keys=True) for each in plans for cell in each.cells}) == 8 * 2


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_reaches_the_setting(axis):
    values = {
        "policy": "ngram",
        "vocab": 3,
        "horizon": 3,
        "rewards": "sparse",
        "success": 0.3,
        "entropy": 0.4,
        "length": 2.0,
        "prompts": 3,
        "gamma": 0.5,
    }
    needed = {"success": {"rewards": ("outcome",)}, "length": {"policy": ("ngram",)}}.get(axis, {})
    (each,) = plan(VarianceArguments(("reinforce",), **{axis: (values[axis],)}, **needed))
    assert each.cells[0]["setting"][{"vocab": "vocab_size"}.get(axis, axis)] == values[axis]


def test_the_rows_are_those_of_the_measuring_functions(variance):
    """Exact ones and drawn ones, on a tree: by `Setting` and `make_bench`, and once more by enumeration itself."""
    names = "rloo grpo remax trepo vineppo theorem-2"
    assert (
        variance(f"{names} {SMALL} --prompts 2 --gamma 0.9 --seed 3 --budget 700 --group-sizes 2 3 --lams 0.5")[0] == 0
    )
    (setting,) = document()["settings"]
    bench = make_bench(Setting(vocab_size=2, horizon=2, prompts=2, gamma=0.9, seed=3))
    listed = candidates(names.split(), Grid((2, 3), lams=(0.5,)), 2)
    assert [row["label"] for row in setting["rows"]] == [candidate.label for candidate in listed]
    for row, candidate in zip(setting["rows"], listed):
        same(row, bench.measure(candidate.build(bench.given), 2000, 3, candidate.proved).row(700))
        assert row["options"] == candidate.options and row["given_values"] == (candidate.name == "theorem-2")
    p = Problem(random_instance(2, 2, gamma=0.9, n_prompts=2, seed=3))
    exact = exact_measurement(RLOO(3), p.enumeration, p.target("reward"), p.magnitude("reward"))
    same(rows_of(setting)["rloo K=3"], exact.row(700))
    assert (setting["target"], setting["budget"], document()["budget"]) == ("exact", 700, 700)
    assert setting["J"] == pytest.approx(p.gradient[0]) and setting["grad_norm"] == pytest.approx(
        float(p.target("reward").norm())
    )
    assert setting["expected_length"] == pytest.approx(rows_of(setting)["rloo K=2"]["tokens"] / 2)


@pytest.mark.slow
def test_rows_on_a_chain_and_on_a_transformer(variance):
    assert (
        variance(
            f"reinforce rloo --policy ngram transformer --vocab 2 --horizon 3 --estimates 200 --jobs 1 --seed 2 {FEW}"
        )[0]
        == 0
    )
    chain, network = document()["settings"]
    bench = make_bench(Setting("ngram", 2, 3, seed=2))
    same(rows_of(chain)["rloo K=2"], bench.measure(RLOO(2), 200, 2, "unbiased").row(2000))
    assert rows_of(chain)["rloo K=2"]["samples"] is None
    made = make_bench(Setting("transformer", 2, 3, seed=2), _transformer)
    same(rows_of(network)["rloo K=2"], made.measure(RLOO(2), 200, 2).row(2000))
    assert rows_of(network)["rloo K=2"]["samples"] is None and document()["sweep"] == "policy"
    assert (
        variance(f"reinforce rloo --policy ngram --vocab 8 --horizon 12 --estimates 200 --jobs 1 --seed 2 {FEW}")[0]
        == 0
    )
    (chain,) = document()["settings"]
    same(
        rows_of(chain)["rloo K=2"],
        make_bench(Setting("ngram", 8, 12, seed=2)).measure(RLOO(2), 200, 2, "unbiased").row(2000),
    )
    assert rows_of(chain)["rloo K=2"]["samples"] == 200 and rows_of(chain)["rloo K=2"]["intervals"]["trace_covariance"]


def test_what_the_document_says_of_its_rows_is_what_a_comparison_says(variance):
    assert variance(f"{SMALL} --budget 90 --horizon 2 3 {FEW} --lams 0")[0] == 0
    written = document()
    assert written["sweep"] == "horizon" and [each["axes"]["horizon"] for each in written["settings"]] == [2, 3]
    for setting in written["settings"]:
        rows = setting["rows"]
        assert {row["label"] for row in rows if row["frontier"]} == on_frontier(rows) != set()
        assert setting["best"] == best_by_budget(rows, 90.0) and setting["recommendation"] == recommendation(rows, 90.0)
        assert set(DEFAULT) == {row["estimator"] for row in rows}


@pytest.mark.parametrize(
    "typed, sweep",
    [("--vocab 2 3 --horizon 1", "vocab_size"), ("--vocab 2 3 --horizon 1 2", None), ("--vocab 2 --horizon 1", None)],
)
def test_one_axis_with_several_values_is_a_sweep(variance, typed, sweep):
    assert variance(f"reinforce {typed} --jobs 1 --estimates 100")[0] == 0
    assert document()["sweep"] == sweep


def test_an_instance_file(variance, here):
    instance = random_instance(2, 3, gamma=0.8, n_prompts=2, seed=9)
    write_instance(instance, here / "mine.json")
    assert variance(f"rloo trepo --instance mine.json {FEW} --jobs 1")[0] == 0
    (setting,) = document()["settings"]
    p = Problem(instance)
    exact = exact_measurement(RLOO(2), p.enumeration, p.target("reward"), p.magnitude("reward"))
    same(rows_of(setting)["rloo K=2"], exact.row(2000))
    assert (
        setting["name"] == "mine" and setting["words"] == "the instance mine.json" and setting["axes"]["horizon"] == 3
    )


def test_another_instance_in_the_same_file_is_measured_anew(here, computed):
    """By its content; in a process of its own each time, as a person would."""
    plans = []
    for seed in (1, 2):
        write_instance(random_instance(2, 2, seed=seed), here / "mine.json")
        (each,) = plan(VarianceArguments(("reinforce",), instance=Path("mine.json")))
        plans.append(each)
    assert all(one != two for one, two in zip(plans[0].cells, plans[1].cells))
    write_instance(random_instance(2, 2, seed=1), here / "mine.json")
    (again,) = plan(VarianceArguments(("reinforce",), instance=Path("mine.json")))
    assert again.cells == plans[0].cells


def test_an_estimator_of_one_s_own_and_its_next_version(variance, here, computed):
    (here / "own.py").write_text(OWN.format(baseline=0.0))
    assert variance(f"reinforce own.py:Mine {SMALL}")[0] == 0
    rows = rows_of(document()["settings"][0])
    assert rows["Mine"]["estimator"] == "Mine" and rows["Mine"]["options"] == {} and not rows["Mine"]["given_values"]
    same(
        rows["Mine"],
        {name: value for name, value in rows["reinforce"].items() if name not in ("label", "estimator", "frontier")},
    )
    del computed[:]
    (here / "own.py").write_text(OWN.format(baseline=3.0))
    assert variance(f"reinforce own.py:Mine {SMALL}")[0] == 0
    assert computed == ["Mine"]
    other = rows_of(document()["settings"][0])
    assert (
        other["Mine"]["trace_covariance"] > 2 * rows["Mine"]["trace_covariance"]
        and other["reinforce"] == rows["reinforce"]
    )


def test_an_environment_with_a_table(variance):
    """One cell, all estimators on the same draws, as `measure_task` has them."""
    words = "rloo remax trepo --env Tabular --env-args horizon=2 vocab_size=3 --prompts 40 --seed 1 --jobs 1"
    assert variance(f"{words} {FEW} --lams 0")[0] == 0
    (setting,) = document()["settings"]
    task = find_task("Tabular", {"horizon": 2, "vocab_size": 3})
    listed = candidates(["rloo", "remax", "trepo"], Grid((2,), (1,), (1,), (0.0,)), 2)
    built = {candidate.label: candidate.build(Given(2)) for candidate in listed}
    known = {candidate.label: candidate.proved for candidate in listed}
    measured, facts = measure_task(built, build_policy(ModelConfig(), task, 1), task, 40, 1, known=known)
    assert [row["label"] for row in setting["rows"]] == list(built)
    for label, row in rows_of(setting).items():
        same(row, measured[label].row(2000))
        assert row["samples"] == 40 and row["seconds"] > 0
    assert {name: setting[name] for name in ("J", "grad_norm", "expected_length", "target")} == {
        name: facts[name] for name in ("J", "grad_norm", "expected_length", "target")
    }
    assert (
        setting["name"] == "Tabular"
        and setting["words"] == "auto on Tabular, 40 prompts"
        and setting["axes"]["vocab_size"] == 3
    )
    assert variance(f"--env llm_mdp/Tabular-v0 --env-args horizon=2 --prompts 4 --jobs 1 --out other {FEW}")[0] == 0
    names = {row["estimator"] for row in document("other")["settings"][0]["rows"]}
    assert names == set(DEFAULT) - {"ppo"}, "nobody knows values of states there"


@pytest.mark.slow
def test_a_run_s_own_policy_and_environment(variance, here):
    from llm_mdp_agents import train

    run = train(
        "rloo", "Tabular", steps=30, env_arguments={"horizon": 2, "vocab_size": 2}, folder="runs/one", progress=False
    )
    assert variance(f"rloo --run runs/one --prompts 60 --jobs 1 {FEW}")[0] == 0
    (setting,) = document()["settings"]
    measured, facts = measure_task({"rloo K=2": RLOO(2)}, run.policy, run.task, 60, 0)
    same(rows_of(setting)["rloo K=2"], measured["rloo K=2"].row(2000), rel=1e-6)
    assert (
        setting["J"] == pytest.approx(facts["J"])
        and setting["J"] > make_bench(Setting(vocab_size=2, horizon=2)).facts()["J"]
    )


# --- what is written --------------------------------------------------------------------------------------------------


def test_document_table_and_page_agree(variance, here):
    status, said, complaints = variance(f"rloo grpo theorem-2 {SMALL} --rewards dense outcome --budget 300 {FEW}")
    assert (status, complaints) == (0, "")
    names = ("report.html", "results.json", "results.csv")
    assert said.splitlines()[-3:] == [f"written: variance/{name}" for name in names]
    assert sorted(path.name for path in (here / "variance").iterdir()) == [
        "cells",
        "report.html",
        "results.csv",
        "results.json",
    ]
    written = document()
    assert written["command"].startswith("llm-mdp variance rloo grpo theorem-2 --vocab 2")
    with (here / "variance" / "results.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [(setting, row) for setting in written["settings"] for row in setting["rows"]]
    assert len(lines) == len(rows) == 6
    for line, (setting, row) in zip(lines, rows):
        assert (line["setting"], line["label"], line["verdict"]) == (setting["name"], row["label"], row["verdict"])
        for figure in (
            "tokens",
            "rewards",
            "trace_covariance",
            "relative_bias",
            "cosine",
            "tokens_to_signal",
            "progress",
        ):
            assert float(line[figure]) == row[figure]
        assert line["axis_rewards"] == setting["axes"]["rewards"] and line["frontier"] == str(row["frontier"])
    page = (here / "variance" / "report.html").read_text(encoding="utf-8")
    for setting, row in rows:
        assert row["label"] in page and row["label"] in said
        assert setting["recommendation"].split(";")[0].split(":")[0] in " ".join(said.split())


def test_help_names_every_option(variance):
    status, said, _ = variance("--help")
    assert status == 0
    for option in (
        *AXES,
        "budget",
        "instance",
        "env",
        "group-sizes",
        "positions",
        "branches",
        "lams",
        "estimates",
        "jobs",
        "backend",
    ):
        assert f"--{option}" in said


# --- what is never computed twice -------------------------------------------------------------------------------------


def test_a_second_call_computes_nothing(variance, computed, here):
    words = f"rloo reinforce {SMALL} --rewards dense outcome {FEW}"
    assert variance(words)[0] == 0 and len(computed) == 2 * 3
    first, page = document(), (here / "variance" / "report.html").read_text()
    del computed[:]
    assert variance(words)[0] == 0
    assert computed == [] and document() == first and (here / "variance" / "report.html").read_text() == page


def test_what_changes_nothing_of_a_measurement_computes_nothing(variance, computed):
    assert variance(f"rloo reinforce {SMALL} --budget 100 {FEW}")[0] == 0
    first = document()
    del computed[:]
    assert variance(f"reinforce rloo {SMALL} --budget 5000 --positions 2 --group-sizes 2 --branches 3")[0] == 0
    assert computed == []
    second = document()
    for label, row in rows_of(second["settings"][0]).items():
        before = rows_of(first["settings"][0])[label]
        assert row["trace_covariance"] == before["trace_covariance"] and row["progress"] > before["progress"]
        assert row["estimates"] == pytest.approx(50 * before["estimates"])
    assert second["settings"][0]["recommendation"].startswith("With 5,000 tokens")


@pytest.mark.parametrize(
    "function, version", [("llm_mdp.cli.variance:measure_cell", 2), ("llm_mdp_agents.study:measure_cell", 1)]
)
def test_a_folder_of_an_older_program_is_measured_anew(variance, computed, here, function, version):
    """What another function wrote, or another version of it, is nobody's result, however alike its cells are."""
    words = f"rloo reinforce {SMALL} {FEW}"
    assert variance(words)[0] == 0
    first = document()
    for file in (here / "variance" / "cells").iterdir():
        content = json.loads(file.read_text()) | {"function": function, "version": version}
        content["result"] = {"the old form": True}
        file.write_text(json.dumps(content))
    del computed[:]
    assert variance(words)[::2] == (0, "")
    assert len(computed) == 3 and document() == first


@pytest.mark.parametrize(
    "more, names",
    [
        ("rloo grpo", ["grpo K=2"]),
        ("rloo --group-sizes 2 3", ["rloo K=3"]),
        ("rloo --gamma 0.5", None),
        ("rloo --seed 1", None),
        ("rloo --horizon 2 3", None),
    ],
)  # fmt: skip
def test_only_what_is_new_is_computed(variance, computed, more, names):
    assert variance(f"rloo {SMALL} --gamma 1 --seed 0 --group-sizes 2")[0] == 0
    assert len(computed) == 2
    del computed[:]
    first, _, rest = more.partition(" --")
    options = f"--vocab 2 --jobs 1 --gamma 1 --seed 0 --group-sizes 2 --horizon 2 {'--' + rest if rest else ''}"
    assert variance(f"{first} {options}")[0] == 0
    # A setting's own facts are a cell as well.
    assert computed == names if names is not None else len(computed) in (2, 3) and "rloo K=2" in computed


@pytest.mark.slow
def test_two_workers_measure_what_one_does(variance, here):
    words = f"rloo trepo --vocab 2 --horizon 3 --policy tabular ngram --estimates 200 {FEW}"
    assert variance(f"{words} --jobs 1 --out one")[0] == 0
    assert variance(f"{words} --jobs 2 --out two")[0] == 0
    one, two = document("one"), document("two")
    for name in ("sweep", "budget", "seed"):
        assert one[name] == two[name]
    for left, right in zip(one["settings"], two["settings"]):
        assert left["J"] == pytest.approx(right["J"], rel=1e-12) and left["recommendation"] == right["recommendation"]
        for row, other in zip(left["rows"], right["rows"]):
            assert row["label"] == other["label"]
            same(other, row | {"label": row["label"]})


@pytest.mark.slow
def test_a_reward_models_scores_are_what_is_measured(variance, here):
    """Arithmetic gives 0 or 1; this model's scores are large."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(vocab_size=16, num_labels=1, pad_token_id=None, **shape)
    )
    model.score.weight.data.mul_(100)
    model.save_pretrained(here / "judge")
    small = "--model small --width 16 --layers 1 --warm-start 0"
    words = f"rloo --env Arithmetic --env-args digits=1 {small} --prompts 16 {FEW}"
    assert variance(f"{words} --out own")[0] == variance(f"{words} --scored-by judge --out judged")[0] == 0
    assert 0 <= document("own")["settings"][0]["J"] <= 1 < abs(document("judged")["settings"][0]["J"])


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "--budget 0": "--budget is 0; a batch has a positive number of tokens.",
    "--budget -3.5": "--budget is -3.5; a batch has a positive number of tokens.",
    "--budget nan": "--budget is nan; a batch has a positive number of tokens.",
    "--estimates 99": "--estimates is 99; intervals need at least 100.",
    "--out file.txt": "--out is file.txt, which is a file; name a folder.",
    "--instance mine.json --vocab 3": "--instance says everything about the setting; leave --vocab out.",
    "--instance mine.json --gamma 0.5 --horizon 3": (
        "--instance says everything about the setting; leave --horizon out."
    ),
    "--instance mine.json --prompts 2": "--instance says everything about the setting; leave --prompts out.",
    "--instance none.json": "none.json: there is no such file; `llm-mdp verify --save-instance FILE` writes one.",
    "--env Tabular --vocab 3": (
        "--vocab is for token MDPs that are made here; leave it out, or leave out --env and --run."
    ),
    "--run runs/x --policy ngram": (
        "--policy is for token MDPs that are made here; leave it out, or leave out --env and --run."
    ),
    "--env Tabular --instance mine.json": (
        "--instance is for token MDPs that are made here; leave it out, or leave out --env and --run."
    ),
    "--env Tabular --run runs/x": "--run brings its own environment; leave --env out.",
    "--run runs/x --width 32": "--run brings its own model; leave the options of a model out.",
    "--run runs/x --warm-start 3": "--run brings a trained policy; leave --warm-start out.",
    "--env Arithmetic --warm-start -1": "--warm-start is -1; it must be at least 0.",
    "--env Tabular --warm-start 3": (
        "Tabular has no answers to learn from; leave --warm-start out, or begin with a trained --model."
    ),
    "--env Tabular --engine vllm": "--engine is vllm, but the model itself draws what is measured; leave it out.",
    "--env-args digits=1": "--env-args and other options of a model say something about a task; name one with --env.",
    "--model small": "--model and other options of a model say something about a task; name one with --env.",
    "--width 32": "--model and other options of a model say something about a task; name one with --env.",
    "--warm-start 0": "--warm-start and other options of a model say something about a task; name one with --env.",
    "--env Tabular --prompts 2 3": "--prompts is one number with --env: how many prompts are drawn.",
    "--env Tabular --prompts 1": "--prompts is 1; a spread over prompts needs at least 2.",
    "--env Tabulr": "there is no environment 'Tabulr'; did you mean Tabular?",
    "--env Tabular --env-args depth=1": (
        "llm_mdp/Tabular-v0: Tabular has no argument 'depth'; it takes vocab_size, horizon, eos, gamma, n_prompts, "
        "seed."
    ),
    "--run runs/none": "runs/none holds no run; start one with `llm-mdp train`.",
    "theorem-2 --env Tabular": (
        "theorem-2 needs values of states, which are known on token MDPs only; leave it out with --env."
    ),
    "rlo": "there is no estimator 'rlo'; did you mean rloo?",
    "none.py:Mine": "there is no file none.py.",
    "own.py:Yours": "own.py has no 'Yours'; it defines Mine.",
    "no_module:Mine": (
        "module 'no_module' cannot be imported (No module named 'no_module'); a file is written FILE.py:CLASS."
    ),
    "--vocab 1": "vocab_size is 1; it must be a whole number of at least 2.",
    "--horizon 2 0": "horizon is 0; it must be a whole number of at least 1.",
    "--gamma 2": "gamma is 2.0; the discount must be a number in (0, 1].",
    "--success 0.5": "success is 0.5 with dense rewards; it is for outcome rewards, and must be in (0, 1).",
    "--entropy 5": "entropy is 5.0; over 4 tokens it must be between 0 and 1.386.",
    "--length 3": "length is 3.0; it can be chosen for n-gram policies only.",
    "--policy ngram --prompts 2": "prompts is 2; n-gram settings have one.",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_one_sentence_before_any_work(variance, here, computed, words):
    (here / "file.txt").touch()
    (here / "own.py").write_text(OWN.format(baseline=0.0))
    write_instance(random_instance(2, 2), here / "mine.json")
    status, said, complaints = variance(words)
    assert (status, said, complaints) == (2, "", f"llm-mdp: {REFUSED[words]}\n")
    assert computed == [] and not (here / "variance").exists()


def test_an_unknown_estimator_lists_those_that_there_are(variance):
    complaints = variance("zzzz")[2]
    assert (
        complaints.startswith("llm-mdp: there is no estimator 'zzzz'; choose among reinforce, ")
        and "FILE.py:CLASS" in complaints
    )


@pytest.mark.parametrize("words, part", [
    ("--group-sizes 0", "--group-sizes has 0; each must be at least 1."),
    ("--lams 2", "--lams has 2.0; each must be in [0, 1]."),
    ("--critic-errors -1", "--critic-errors has -1.0; each must be at least 0."),
    ("--branches 0", "--branches has 0; each must be at least 1."),
    ("--positions", "--positions is empty; give at least one value."),
])  # fmt: skip
def test_a_grid_out_of_range(variance, here, words, part):
    status, said, complaints = variance(words)
    assert (
        status == 2
        and part in " ".join((said + complaints).replace("│", " ").split())
        and not (here / "variance").exists()
    )


def test_a_folder_that_cannot_be_written(variance, here, computed):
    (here / "variance" / "results.csv").mkdir(parents=True)
    assert variance(f"rloo {SMALL}")[::2] == (2, "llm-mdp: variance/results.csv is a folder; name a file in it.\n")
    assert computed == []


def test_a_setting_that_is_too_large_is_refused_before_a_small_one_is_measured(variance, here, computed):
    status, said, complaints = variance("rloo --vocab 8 --horizon 2 12 --jobs 1")
    assert (status, said, complaints.count("\n")) == (2, "", 1)
    assert (
        "too many to enumerate; make one of them smaller, or take the policy ngram, which needs no tree." in complaints
    )
    assert computed == [] and not (here / "variance").exists()


@pytest.mark.slow
def test_the_exit_status_of_the_command_itself(here):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = (
        "import sys; sys.argv = ['llm-mdp', 'variance', '--budget', '0']; from llm_mdp.cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "llm-mdp: --budget is 0; a batch has a positive number of tokens.\n"


def test_what_can_be_passes_the_check(here):
    for options in (
        {}, {"budget": 0.1}, {"estimates": 100}, {"prompts": (3, 4)}, {"instance": Path("x.json")},
        {"env": "Tabular", "prompts": (2,)}, {"run": Path("runs/x")},
        {"env": "Arithmetic", "env_args": ("digits=1",), "model": ModelConfig("small"), "warm_start": 0},
    ):  # fmt: skip
        check(replace(VarianceArguments(), **options))


def test_a_cell_is_all_that_its_result_depends_on():
    """Written as JSON and read again, alone and in another order: the same figures."""
    (each,) = plan(
        VarianceArguments(("rloo", "trepo"), vocab=(2,), horizon=(2,), grid=Grid((2,), (1,), (1,), (0.5,)), seed=4)
    )
    cells = json.loads(json.dumps(each.cells))
    found = [measure_cell(cell) for cell in cells]
    _bench.cache_clear()
    again = [measure_cell(cell) for cell in reversed(cells)]
    assert found == again[::-1]
    assert Candidate(cells[1]["candidate"]["name"], cells[1]["candidate"]["options"]) == each.listed[0]


def test_estimators_that_all_know_values(variance):
    """Nothing to recommend is no error."""
    assert variance(f"theorem-2 {SMALL}")[0] == 0


def test_groups_of_one_leave_nothing(variance):
    """It is said before any work."""
    status, _, complaints = variance(f"grpo {SMALL} --group-sizes 1")
    assert status == 2 and "min()" not in complaints


def test_an_endless_budget(variance):
    """It is said before any work."""
    status, _, complaints = variance(f"rloo {SMALL} --budget inf")
    assert status == 2 and complaints.startswith("llm-mdp: --budget is inf")


def test_two_classes_of_one_name(variance, here):
    """Rows are told apart by their labels."""
    (here / "one.py").write_text(OWN.format(baseline=0.0))
    (here / "two.py").write_text(OWN.format(baseline=5.0))
    status, _, complaints = variance(f"one.py:Mine two.py:Mine {SMALL}")
    assert (
        status == 2
        and complaints == "llm-mdp: one.py:Mine and two.py:Mine are both called Mine; rename one of the classes.\n"
    )


def test_an_environment_of_one_s_own_and_its_next_version(variance, here, computed):
    """An edited file is another cell."""
    head = "from llm_mdp_envs.tasks.synthetic import Tabular\nclass Own(Tabular):\n"
    source = head + "    def __init__(self):\n        super().__init__(2, 2, seed={})\n"
    found = []
    for seed in (1, 2):
        (here / "own_env.py").write_text(source.format(seed))
        assert variance(f"rloo --env own_env.py:Own --prompts 20 --jobs 1 {FEW}")[0] == 0
        found.append(document()["settings"][0]["J"])
    assert len(computed) == 2 and found[0] != found[1]


@pytest.mark.slow
def test_a_run_that_went_on_is_measured_anew(variance, computed):
    """Another model is another cell."""
    from llm_mdp_agents.training.run import resume, train

    train("rloo", "Tabular", steps=1, env_arguments={"horizon": 2}, folder="runs/one", progress=False)
    assert variance(f"rloo --run runs/one --prompts 20 --jobs 1 {FEW}")[0] == 0
    resume("runs/one", steps=40, progress=False)
    assert variance(f"rloo --run runs/one --prompts 20 --jobs 1 {FEW}")[0] == 0
    assert len(computed) == 2


SWEPT = [("--gamma 0.5 1", "gamma"), ("--prompts 1 2", "prompts"), ("--policy ngram --entropy 0.3 0.5", "entropy")]


@pytest.mark.parametrize("typed, axis", SWEPT)
def test_the_axis_of_a_sweep_has_values(variance, typed, axis):
    """Page and CSV show the sweep along them."""
    assert variance(f"reinforce --vocab 2 --horizon 2 --jobs 1 --estimates 100 {typed}")[0] == 0
    written = document()
    assert (
        written["sweep"] == axis
        and len({json.dumps(each["axes"].get(axis)) for each in written["settings"]} - {"null"}) == 2
    )


@pytest.mark.parametrize("where", ["--policy ngram --vocab 2 --horizon 2 --estimates 100", "--env Tabular --prompts 4"])
def test_a_negative_seed(variance, here, where):
    """It is said before any work."""
    status, _, complaints = variance(f"rloo --jobs 1 {where} --seed -1 {FEW}")
    assert status == 2 and "seed" in complaints and "the cell" not in complaints and not (here / "variance").exists()


# --- before the work --------------------------------------------------------------------------------------------------


def test_how_many_draws_an_answer_takes_is_said_beforehand(variance):
    """Of a setting that is drawn; of a task, after its first prompts."""
    words = f"rloo --policy ngram --vocab 8 --horizon 12 --estimates 200 --jobs 1 {FEW}"
    status, said, aside = variance(words)
    assert status == 0 and "an answer is likely to take" not in said
    assert re.search(r": an answer is likely to take about [\d,]+ estimates \(\d+ s\); --estimates is 200", aside)
    status, _, aside = variance(f"rloo --env Tabular --env-args horizon=2 vocab_size=3 --prompts 40 --jobs 1 {FEW}")
    assert status == 0
    assert re.match(r"32 prompts in: an answer is likely to take (about|at least) [\d,]+ prompts", aside)


def test_too_few_successes_are_said_in_table_page_and_document(variance, here):
    words = "tempo tempo-td --rewards outcome --success 0.001 --vocab 4 --horizon 5 --group-sizes 4"
    status, said, _ = variance(f"{words} --jobs 1 --estimates 200")
    assert status == 0
    (setting,) = document()["settings"]
    for row in setting["rows"]:
        assert row["too_few"]["draws"] == 200 and row["progress"] is None and row["intervals"] is None
        assert row["too_few"]["words"] in " ".join(said.split())
    assert setting["best"] == [] and "nobody can say what to take: too few successes" in setting["recommendation"]
    page = (here / "variance" / "report.html").read_text(encoding="utf-8")
    assert page.count("too few successes: ") >= 3 and "too few successes to draw anything" in page
