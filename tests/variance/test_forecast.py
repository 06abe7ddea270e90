"""How many draws an answer takes, said beforehand."""

import re
from dataclasses import replace

import pytest

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.variance.benches import TreeBench, make_bench
from llm_mdp.variance.comparison import UNSURE
from llm_mdp.variance.forecast import Forecast, forecast, setting_forecast
from llm_mdp.variance.grid import Candidate
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.sampled import sampled_measurement, tree_estimates
from llm_mdp.variance.setting import Setting
from llm_mdp.variance.unseen import ENOUGH

BUDGET = 30.0


def measured(number: int, seed: int = 0, success: float = 0.2) -> Measurement:
    bench = make_bench(Setting(rewards="outcome", success=success, seed=2))
    assert isinstance(bench, TreeBench)
    estimates = tree_estimates(RLOO(2), bench.enumeration, number, seed)
    return sampled_measurement(estimates, reference=estimates, seed=seed, known="unbiased")


def width(found: Measurement) -> float:
    ends = found.interval("progress", BUDGET)
    assert ends is not None
    return ends[1] - ends[0]


def test_as_many_draws_as_foretold_give_an_answer():
    """Twice as many certainly do, and a quarter does not."""
    pilot = forecast(measured(200), BUDGET, 0.01)
    assert pilot.draws == 200 < pilot.needed < 20_000 and not pilot.at_least
    assert pilot.seconds == pytest.approx(0.01 * pilot.needed)
    assert width(measured(pilot.needed // 4, seed=1)) > UNSURE > width(measured(2 * pilot.needed, seed=1))


def test_a_pilot_that_saw_too_little_says_at_least():
    few = forecast(measured(100, success=0.003), BUDGET, 0.01)
    assert few.at_least and few.needed >= 1000
    assert few.words(500, "--prompts").startswith("an answer is likely to take at least 1,000 prompts")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Forecast(32, 700, False, 180.0), "about 700 prompts (3 minutes); --prompts is 128, so raise it, or take"),
        (Forecast(32, 100, False, 20.4), "about 100 prompts (20 s); --prompts is 128."),
        (Forecast(32, 100, False, 9000.0), "about 100 prompts (2.5 hours); --prompts is 128."),
    ],
)
def test_what_is_said(found, words):
    assert words in found.words(128, "--prompts")


def test_only_what_is_drawn_is_foretold():
    exact, drawn = make_bench(Setting(vocab_size=2, horizon=2)), make_bench(Setting("ngram", 8, 12, seed=2))
    listed = [Candidate("grpo", {"group_size": 2}), Candidate("rloo", {"group_size": 2})]
    assert setting_forecast(exact, listed, 2000, 0) is None
    found = setting_forecast(drawn, listed, 2000, 0)
    assert found is not None and found.needed >= ENOUGH and setting_forecast(drawn, listed[:1], 2000, 0) is None
    assert replace(found, seconds=0) == replace(setting_forecast(drawn, listed, 2000, 0) or found, seconds=0)


def test_words_are_one_sentence():
    assert re.fullmatch(r"[^.]*\.", Forecast(32, 700, True, 5.0).words(128, "--prompts"))
