"""What is said before a long run, and that nothing is said before a short one."""

import pytest

from llm_mdp.cli.verify import announce
from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.exact import groups
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify import forecast as module
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.forecast import duration, forecast, seconds_of
from llm_mdp.verify.group_sizes import ONE_SIZE, Sizes
from llm_mdp.verify.moments import exact_moments
from llm_mdp.verify.problem import Problem

PROBLEM = Problem(random_instance(3, 3, seed=0))
ROWS = [claim for claim in CLAIMS if claim.id in ("rloo", "grpo", "reinforce")]


@pytest.fixture
def impatient(monkeypatch):
    for name in ("LONG", "CERTAINLY_SHORT", "FEW"):
        monkeypatch.setattr(module, name, 0)


def test_short_runs_are_not_announced_nor_timed(capsys, monkeypatch):
    monkeypatch.setattr(module, "seconds_of", lambda *_: pytest.fail("timed"))
    announce([PROBLEM], CLAIMS, [ONE_SIZE])
    assert capsys.readouterr() == ("", "")


def test_long_runs_are_announced_on_stderr(capsys, impatient, monkeypatch):
    monkeypatch.setattr(module, "seconds_of", lambda estimator, enumeration: 40.0 / 2)
    announce([PROBLEM], ROWS, [Sizes((3,))])
    assert capsys.readouterr() == (
        "",
        "llm-mdp: 15 responses to a prompt make 680 groups of 3, which 2 rows take one by one: about 40 s. --sampled "
        "N, or a smaller --group-size, is quicker.\n",
    )


def test_what_does_not_go_group_by_group_is_not_announced(impatient):
    assert forecast(PROBLEM, ROWS[:0], ONE_SIZE) is None
    assert forecast(PROBLEM, ROWS, Sizes(method="classes")) is None
    assert forecast(Problem(random_instance(3, 3, success=0.4, seed=0)), ROWS, ONE_SIZE) is None
    assert forecast(PROBLEM, ROWS, Sizes(method="groups")) is not None


def test_time_grows_with_the_groups(monkeypatch):
    """What is timed is one chunk, whatever the number of groups."""
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "process_time", lambda: float(next(clock)))
    found = seconds_of(RLOO(group_size=3), PROBLEM.enumeration)
    number = exact_moments(RLOO(group_size=3), PROBLEM.enumeration).method.states
    assert found == pytest.approx(number / module.TIMED)


def test_what_will_be_refused_is_not_announced(impatient, monkeypatch):
    """A group in every order is more than is enumerated, and without an order not."""
    monkeypatch.setattr(module, "ignores_order", lambda *_: False)
    monkeypatch.setattr(groups, "MAX_WORLDS", 1_000)
    with pytest.raises(TooLarge, match=r"^3,375 groups"):
        seconds_of(RLOO(group_size=3), PROBLEM.enumeration)
    assert forecast(PROBLEM, ROWS, Sizes((3,))) is None


@pytest.mark.parametrize("seconds, words", [(11.6, "12 s"), (44, "40 s"), (170, "3 minutes"), (9000, "2.5 hours")])
def test_durations_are_as_rough_as_they_are_known(seconds, words):
    assert duration(seconds) == words
