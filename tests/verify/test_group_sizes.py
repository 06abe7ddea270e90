"""Rows of the ledger at several group sizes, and in updates of several prompts."""

from dataclasses import dataclass, replace

import pytest

from llm_mdp.cli.verify import VerifyArguments, check_sizes, find_instances, names_first, sizes_on
from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.group_sizes import Sizes, at_sizes, compares
from llm_mdp.verify.ledger import exit_status, run_ledger
from llm_mdp.verify.problem import Problem

BY_ID = {claim.id: claim for claim in CLAIMS}


def problem(group_size: int = 3, prompts: int = 1) -> Problem:
    return Problem(random_instance(2, 2, success=0.4, seed=3), group_size, prompts=prompts)


@dataclass(frozen=True)
class FirstResponse(RLOO):
    """Its group size is a field, and from 4 responses on it is twice too long."""

    def advantages(self, evidence):
        weights = super().advantages(evidence)
        return weights if self.group_size < 4 else weights * 2


@dataclass(frozen=True)
class Pairs(RLOO):
    """Two responses, whatever is asked."""

    group_size: int = 2

    def __post_init__(self):
        object.__setattr__(self, "group_size", 2)


def own(estimator):
    return replace(BY_ID["rloo"], id="Mine", group="yours", estimator=estimator)


def test_every_size_of_a_row_is_the_certificate_of_that_size():
    claims = [BY_ID["grpo"], BY_ID["reinforce"]]
    row, alone = run_ledger(problem(), claims, sizes=Sizes((3, 2, 8), (1, 2)))["claims"].values()
    assert "by_group_size" not in alone and "by_prompts" not in alone and alone["group_size"] is None
    assert (row["group_size"], row["prompts"]) == (3, 1)
    assert list(row["by_group_size"]) == ["3", "2", "8"] and list(row["by_prompts"]) == ["1", "2"]
    sizes = [(int(K), 1, one) for K, one in row["by_group_size"].items()]
    for K, P, one in [*sizes, *((3, int(P), one) for P, one in row["by_prompts"].items())]:
        there = problem(K, P)
        estimator = BY_ID["grpo"].build(there)
        certificate = exact_certificate(estimator, there.enumeration, there.target("reward"), prompts=P)
        assert one["verdict"] == certificate.verdict
        for name in ("scale", "cosine", "trace_covariance", "tokens_to_signal", "kept", "with_signal"):
            assert one[name] == pytest.approx(getattr(certificate, name), rel=1e-9), (K, P, name)
    assert row["scale"] == row["by_group_size"]["3"]["scale"] == row["by_prompts"]["1"]["scale"]


def test_what_is_wrong_at_one_size_only_contradicts():
    document = run_ledger(problem(), [own(FirstResponse(3))], sizes=Sizes((3, 4)))
    row = document["claims"]["Mine"]
    assert row["holds"] is True and row["by_group_size"]["4"]["verdict"] == "proportional"
    assert exit_status(document) == 1
    assert exit_status(run_ledger(problem(), [own(FirstResponse(3))], sizes=Sizes((3, 2)))) == 0


def test_a_class_with_a_size_of_its_own_is_not_asked_for_others():
    claim = own(Pairs())
    assert compares(claim) and at_sizes(claim, problem(2), 3, 1) is None
    row = run_ledger(problem(2), [claim], sizes=Sizes((2, 3)))["claims"]["Mine"]
    assert list(row["by_group_size"]) == ["2"]


def test_problems_of_other_sizes_share_what_sizes_do_not_change():
    first = problem()
    first.gradient, first.enumeration  # noqa: B018
    there = at_sizes(BY_ID["pass-at-k"], first, 8, 2)
    assert there is not None
    other = there[1]
    assert other.enumeration is first.enumeration and (other.group_size, other.prompts) == (8, 2)
    fresh = problem(8, 2)
    assert other.target("max of K").tolist() == pytest.approx(fresh.target("max of K").tolist(), abs=1e-15)


def test_too_many_groups_are_refused_before_work_where_groups_are_asked_for():
    with pytest.raises(TooLarge, match=r"groups of 64 .* are too many"):
        Sizes((3, 64), method="groups").check(Problem(random_instance(3, 3)))
    Sizes((3, 64)).check(Problem(random_instance(3, 3)))


def test_the_run_without_options_adds_the_sizes_of_training_where_rewards_say_right_or_wrong():
    command = VerifyArguments()
    found = [sizes_on(Problem(instance), command).group_sizes for instance in find_instances(command)]
    assert [sizes for sizes in found if sizes] == [(3, 8, 64)]
    assert sizes_on(Problem(find_instances(command)[-1]), VerifyArguments(vocab=3)).group_sizes == ()
    assert sizes_on(problem(2), VerifyArguments(group_size=(2, 5))) == Sizes((2, 5))
    assert sizes_on(problem(2), VerifyArguments(group_size=(2,))) == Sizes()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--group-size 8 rloo grpo --quick", "rloo grpo --group-size 8 --quick"),
        ("rloo --prompts 1 8 own.py:X", "own.py:X rloo --prompts 1 8"),
        ("rloo --seed 3 grpo", "rloo --seed 3 grpo"),
        ("--group-size --quick", "--group-size --quick"),
    ],
)
def test_names_may_stand_after_numbers(typed, read):
    assert names_first(typed.split()) == read.split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": (8, 1)}, "--group-size has 1; each must be at least 2."),
        ({"group_size": (8, 8)}, "--group-size has the same number twice; give each once."),
        ({"prompts": (0,)}, "--prompts has 0; each must be at least 1."),
        ({"prompts": ()}, "--prompts is empty"),
        ({"prompts": (2,), "sampled": 100}, "--prompts is for exact figures"),
        ({"method": "classes", "sampled": 100}, "--method is how exact figures are computed"),
    ],
)
def test_sizes_that_are_none_are_refused_in_a_sentence(options, message):
    with pytest.raises(UsageError, match=message):
        check_sizes(VerifyArguments(**options))


def test_a_group_size_beyond_all_is_refused():
    with pytest.raises(TooLarge, match="group_size is 10,001; it must be at most 10,000"):
        check_sizes(VerifyArguments(group_size=(10_001,)))
