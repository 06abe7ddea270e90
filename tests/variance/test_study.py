"""A study without the command: what is measured by whom, and what its cells depend on."""

import pytest

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.exact.instance_files import write_instance
from llm_mdp.exact.instances import random_instance
from llm_mdp.variance.benches import make_bench
from llm_mdp.variance.grid import Candidate, Grid
from llm_mdp.variance.measurement import read_measurement
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.study import (
    chosen,
    make_document,
    measure_setting,
    plan_of,
    setting_of_file,
    settings_of,
    swept,
)
from llm_mdp_agents.lm.policy import tiny_transformer


def network(mdp, seed):
    return tiny_transformer(mdp.vocab_size, mdp.horizon + 1, seed)


def test_a_transformer_is_made_by_whoever_measures():
    (setting,) = settings_of({"policy": ("transformer",), "vocab": (2,), "horizon": (2,)}, seed=3)
    plan = plan_of(setting, [Candidate("rloo", {"group_size": 2})], 200, 3)
    with pytest.raises(ValueError, match="a transformer comes from llm_mdp_agents"):
        measure_setting(plan.cells[0])
    facts, row = (measure_setting(cell, network) for cell in plan.cells)
    bench = make_bench(Setting("transformer", 2, 2, seed=3), network)
    assert facts["J"] == pytest.approx(bench.facts()["J"])
    expected = bench.measure(RLOO(2), 200, 3, "unbiased").spread.trace
    assert read_measurement(row).spread.trace == pytest.approx(expected, rel=1e-9)


def test_an_instance_file_is_known_by_what_it_says(tmp_path):
    """Another instance under the same name is another cell."""
    cells = []
    for seed in (1, 2, 1):
        write_instance(random_instance(2, 3, seed=seed), tmp_path / "mine.json")
        setting = setting_of_file(tmp_path / "mine.json")
        assert (setting.name, setting.horizon) == ("mine", 3)
        cells.append(plan_of(setting, [], 100, 0).cells)
    assert cells[0] == cells[2] != cells[1]


@pytest.mark.parametrize(
    "given, axis",
    [
        ({}, None), ({"vocab": (2,)}, None), ({"vocab": (2, 3)}, "vocab_size"),
        ({"vocab": (2, 3), "gamma": (1, 0.5)}, None),
    ],
)  # fmt: skip
def test_a_sweep_is_along_one_axis(given, axis):
    assert swept(given) == axis


def test_rows_stand_with_their_own_setting():
    """Results come as one list."""
    settings = settings_of({"horizon": (1, 2, 3), "vocab": (2,)}, seed=0)
    plans = [plan_of(each, chosen(["rloo"], Grid((2, 3)), each.horizon), 100, 0) for each in settings]
    results = [measure_setting(cell) for plan in plans for cell in plan.cells]
    document = make_document(plans, results, 500.0, 0, "horizon")
    assert [each["name"] for each in document["settings"]] == ["horizon 1", "horizon 2", "horizon 3"]
    for setting, made in zip(settings, document["settings"]):
        bench = make_bench(setting)
        assert made["J"] == pytest.approx(bench.facts()["J"]) and made["base"] == "rloo K=3"
        for row, size in zip(made["rows"], (2, 3), strict=True):
            expected = bench.measure(RLOO(size), 100, 0, "unbiased").row(500.0)
            assert row["trace_covariance"] == pytest.approx(expected["trace_covariance"], rel=1e-9)
        assert made["rows"][1]["tokens_over_base"] == pytest.approx(1.0)
