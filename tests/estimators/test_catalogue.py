"""The catalogue: each name once, with options in their ranges, and what every command reads of it."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import GRPO, RLOO, TRePO
from llm_mdp.estimators.boundaries import EveryNTokens
from llm_mdp.estimators.catalogue import CATALOGUE, ENTRIES, describe, find_entry
from llm_mdp.estimators.entry import OPTIONS, Given, NeedsExactValues
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.check import check_estimator
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.zoo import AGENTS

ROOT = Path(__file__).parents[2]
PROBLEM = Problem(random_instance(2, 3, gamma=0.9, n_prompts=2))
ROWS = {claim.id for claim in CLAIMS}


def test_a_name_stands_once():
    assert len(CATALOGUE) == len(ENTRIES) > 40
    labels = [entry.label for entry in ENTRIES if entry.label]
    assert len(set(labels)) == len(labels)
    assert all(entry.words.endswith(".") and "\n" not in entry.words for entry in ENTRIES)


def test_every_row_of_the_ledger_is_about_an_estimator_of_the_catalogue_or_a_statement():
    assert {claim.id for claim in CLAIMS if claim.entry is None} == {claim.id for claim in CLAIMS if claim.figure}


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_an_entry_is_said_to_be_about_are_rows(name):
    assert set(CATALOGUE[name].rows) <= ROWS
    if name in ROWS:
        assert name in CATALOGUE[name].rows


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_makes_a_sound_estimator(name):
    check_estimator(CATALOGUE[name].make(PROBLEM.given), PROBLEM.enumeration)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_trains_with_the_estimator_of_its_name(name):
    agent = AGENTS[name]
    entry = CATALOGUE[agent.named or name]
    assert agent.claims == entry.rows


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(entry, name) for entry in ENTRIES for name in entry.options if name != "boundary"]), st.data())
def test_options_out_of_range_are_named(which, data):
    entry, name = which
    option = OPTIONS[name]
    too_small = st.integers(-5, int(option.least or 0) - 1) | st.just(float("nan"))
    too_large = st.nothing() if option.most is None else st.integers(int(option.most) + 1, 9)
    wrong = data.draw(too_small | too_large)
    with pytest.raises(ValueError, match=rf"^{name} of {re.escape(entry.name)} is {wrong!r}; it must be "):
        entry.make(PROBLEM.given, **{name: wrong})


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_options_reach_the_estimator(group_size, n, branches, lam):
    options = {"group_size": group_size, "boundary": EveryNTokens(n), "branches": branches, "lam": lam}
    made = CATALOGUE["trepo"].make(PROBLEM.given, **options)
    assert made == TRePO(
        group_size, boundary=EveryNTokens(n), temperatures=(1.0,) * branches, lam=lam, group_baseline=True
    )
    assert CATALOGUE["rloo"].make(PROBLEM.given, group_size=group_size) == RLOO(group_size)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: find_entry("grop"), "there is no estimator 'grop'; did you mean grpo?"),
        (lambda: CATALOGUE["rloo"].make(Given(3), lam=0.5), "rloo has no option 'lam'; it has group_size."),
        (lambda: CATALOGUE["remax"].make(Given(3), lam=0.5), "remax has no option 'lam'; it has none."),
        (lambda: CATALOGUE["grpo"].make(Given(3), group_size=1),
         "group_size of grpo is 1; it compares responses to a prompt, at least 2."),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_said_in_words(act, sentence):
    with pytest.raises((UsageError, ValueError), match=f"^{re.escape(sentence)}$"):
        act()


def test_what_is_not_known_is_said_in_words():
    with pytest.raises(NeedsExactValues, match=r"^the optimum of DPO is known on small token MDPs only; leave out"):
        CATALOGUE["rto"].make(Given(3))


def test_options_that_are_not_those_of_the_name_are_described():
    trained = GRPO(group_size=8, reduction="sequence_mean", clip_low=0.2)
    assert describe(trained, "grpo", Given(4)) == "group_size 8, reduction sequence_mean, clip_low 0.2"
    assert describe(GRPO(group_size=4), "grpo", Given(4)) == ""
    assert describe(CATALOGUE["rloo-eq36"].make(Given(4)), "rloo-eq36", Given(4)) == ""


def test_one_name_is_one_estimator_in_verify_and_in_training():
    """The agent with the options of the catalogue has the certificate of the ledger's row."""
    row = next(claim for claim in CLAIMS if claim.id == "grpo").build(PROBLEM)
    same = GRPO(group_size=PROBLEM.group_size)
    assert row == same and CATALOGUE["grpo"].make(Given(3), group_size=PROBLEM.group_size) == same
    assert exact_certificate(same, PROBLEM.enumeration, PROBLEM.target("reward")).verdict == "biased"


@pytest.mark.parametrize("label", ["Dr. GRPO", "TRePO as printed", "GRPO by length", "RLOO as printed"])
def test_a_label_stands_in_one_file(label):
    files = [path for package in ("llm_mdp", "agents", "envs") for path in (ROOT / package).rglob("*.py")]
    quoted = [path.name for path in files if f'"{label}"' in path.read_text(encoding="utf-8")]
    assert quoted == ["algorithms.py"]
