"""What `make bench` measures beside its figures, and what docs/performance.md says of them."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(params=["growth", "limits", "performance_report"])
def module(request, monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return importlib.import_module(request.param)


def only(name: str):
    return pytest.mark.parametrize("module", [name], indirect=True)


@only("limits")
def test_limits_are_of_the_better_product(module, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 2**16)
    found = module.limits(times=1)
    assert all(value > 0 for value in found.values())
    for rows in ("32", "1024"):
        assert found[f"gemm_{rows}"] == max(found[f"torch_{rows}"], found.get(f"onednn_{rows}", 0.0))


def curve(module: ModuleType, measure, **options):
    return module.Curve("name", "fixed", (1, 2, 4, 8), measure, **options)


@only("growth")
def test_a_curve_ends_before_it_takes_too_long(module):
    """Squares: 1, 4, 16, and the next would be 64."""
    found = list(module.points(curve(module, lambda size, most: {"seconds": float(size**2)}), most=20.0))
    assert [each["seconds"] for each in found] == [1.0, 4.0, 16.0, None]
    assert found[-1]["size"] == 8 and found[-1]["expected"] == pytest.approx(64)


@only("growth")
def test_a_curve_ends_where_the_product_refuses_and_not_where_it_forecasts(module):
    answers = {1: {"seconds": 1.0}, 2: {"seconds": None, "kind": "forecast"}, 4: {"seconds": None, "kind": "refused"}}
    found = list(module.points(curve(module, lambda size, most: answers[size]), most=20.0))
    assert [each["size"] for each in found] == [1, 2, 4]


@only("growth")
def test_what_is_refused_at_once_is_tried_after_the_end(module):
    tried = curve(module, lambda size, most: {"seconds": float(size**2)}, beyond=999)
    assert [each["size"] for each in module.points(tried, most=20.0)] == [1, 2, 4, 8, 999]
    assert [each["size"] for each in module.points(tried, most=20.0, number=2)] == [1, 2]


@only("growth")
def test_a_command_that_says_that_it_takes_long_is_stopped(module, tmp_path):
    says = "import sys, time; print('llm-mdp: it will take 3 hours.', file=sys.stderr, flush=True); time.sleep(20)"
    ends = f"; open({str(tmp_path / 'ended')!r}, 'w').close()"
    assert module.watched([sys.executable, "-c", says + ends], most=60.0)[1] == "it will take 3 hours."
    assert not (tmp_path / "ended").exists()
    assert module.watched([sys.executable, "-c", "pass" + ends], most=60.0)[1] is None
    assert (tmp_path / "ended").exists()


@only("growth")
def test_a_command_that_fails_is_no_point(module):
    with pytest.raises(RuntimeError, match="no such thing"):
        module.watched([sys.executable, "-c", "raise ValueError('no such thing')"], most=60.0)


@only("growth")
def test_curves_are_measured(module, tmp_path, monkeypatch):
    names = ["environments in N", "environments in V", "a step in K"]
    options = [part for name in names for part in ("--curve", name)]
    monkeypatch.setattr(sys, "argv", ["growth.py", "--quick", *options, "--output", str(tmp_path / "growth.json")])
    monkeypatch.setattr(module, "limits", dict)
    module.main()
    found = json.loads((tmp_path / "growth.json").read_text())
    assert sorted(each["name"] for each in found["curves"]) == sorted(names)
    assert all(point["seconds"] > 0 for each in found["curves"] for point in each["points"])
    assert {len(each["points"]) for each in found["curves"]} == {2}


@only("growth")
def test_too_many_environments_are_refused_in_words(module):
    point = module.env("Ngram", "num_envs")(2**28, 1.0)
    assert point["kind"] == "refused" and "num_envs is 268435456" in point["said"]


GROWTH = {
    "commit": "0123456789", "versions": {"python": "3"}, "cores": 2, "start": 2.0, "seconds": 15.0,
    "curves": [
        {"name": "verify in V", "fixed": "T = 4", "points": [
            {"size": 4, "seconds": 8.0},
            {"size": 5, "seconds": None, "kind": "forecast", "said": "about 3 minutes", "until": 4.0},
            {"size": 6, "seconds": 9.0, "kind": "refused", "said": "too many", "rows": 20},
        ]},
        {"name": "a step in prompt", "fixed": "K = 8", "points": [
            {"size": size, "seconds": (size / 512) ** 1.5} for size in (512, 1024, 2048)
        ]},
    ],
}  # fmt: skip


@only("performance_report")
def test_goals_are_decided_by_results(module):
    startup = {"median": {"--help": 0.1, "envs": 0.7}, "times_import_torch": {"verify --quick": 1.4, "verify": 3.0}}
    met = {goal.words: goal.met for goal in module.goals({"growth": GROWTH, "startup": startup})}
    assert met["`llm-mdp verify --quick` beside a bare `import torch`"] is True
    assert met["`llm-mdp verify` beside a bare `import torch`"] is False
    assert met["`llm-mdp envs`"] is False and met["`llm-mdp --help`"] is True
    assert met["`llm-mdp agents`"] is None
    assert next(each for words, each in met.items() if words.startswith("power of the prompt")) is False
    assert met["the ledger at V = 5, T = 4: seconds before it is done, or says how long it will take"] is True


@only("performance_report")
def test_a_page_without_results_claims_nothing(module):
    page = module.page({})
    assert "0 of " in page and "| met |" not in page and "missed**" not in page


@only("performance_report")
def test_the_page_says_what_a_user_reads(module):
    page = module.page({"growth": GROWTH})
    assert "5: after 4.0 s it says “about 3 minutes”" in page and "6: “too many” (20 rows)" in page
    assert "| 1.50 |" in page


@only("performance_report")
def test_the_processor_is_named_where_it_is_known(module):
    named = {"model name": "EPYC", "cpu family": "25", "model": "17"}
    assert module.processor_of({"processor": named}) == "EPYC, family 25, model 17"
    assert module.processor_of({"processor": "EPYC"}) == "EPYC"
    assert module.processor_of({}) is None
