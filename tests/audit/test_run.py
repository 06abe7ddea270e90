"""The audit itself: rows, verdicts, what dies with the batch, which library and which of its settings."""

import json
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from llm_mdp import GRPO, RLOO, random_instance
from llm_mdp.audit import library as libraries
from llm_mdp.audit.batches import small_problem, with_batch
from llm_mdp.audit.library import LIBRARIES, Library, Setting, choose, find_library, within
from llm_mdp.audit.problems import problems
from llm_mdp.audit.run import audit
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from tests.audit.functions import by_prompt, grpo, rloo, token_mean

FAST = {"dense": random_instance(2, 2, seed=1), "right-or-wrong": random_instance(3, 3, success=0.4, seed=5)}


def sums(batch):
    return -(rloo(batch)[:, None] * batch.logp * batch.mask).sum(-1).mean()


def token_mean_of_groups(batch):
    advantage = grpo(batch).flatten()[:, None]
    return -(advantage * batch.logp * batch.mask).sum() / batch.mask.sum()


def draws(batch):
    return batch.response_reward * torch.rand(())


SETTINGS = (
    Setting("adv=rloo", "exact", "docs, rloo", loss=sums, advantages=rloo, is_default=True),
    Setting("adv=grpo", "", "", loss=None, advantages=grpo, repair="set adv=rloo"),
    Setting("mean=token", "a mean", "docs, mean", loss=token_mean, advantages=rloo, since="1.0", note="first update"),
    Setting("random", "", "", loss=None, advantages=draws),
)


@pytest.fixture
def library(monkeypatch):
    made = Library("pytest", "pytest", ">=9,<100", "pytest", lambda: SETTINGS)
    monkeypatch.setattr("llm_mdp.audit.run.find_library", lambda name: made)
    return made


def test_rows_of_a_library(library):
    seen = []
    rows = audit("pytest", group_size=2, prompts=(1,), instances=FAST, progress=lambda *each: seen.append(each))
    assert seen == [(number, 4, setting.name) for number, setting in enumerate(SETTINGS, 1)]
    assert [row.verdict for row in rows] == ["unbiased", "biased", "biased", "undecided"]
    assert rows[0].finding == "the gradient of reward, exactly."
    assert rows[1].finding.startswith("not the gradient of reward")
    assert rows[2].finding.endswith("; its advantages alone, under the sum, are unbiased.")
    assert "two answers to the same batch" in rows[3].finding
    row = json.loads(json.dumps(rows[2].to_json(), allow_nan=False))
    assert list(row) == [
        "library", "version", "option", "claim", "place", "target", "group_size", "prompts", "verdict", "problems",
        "advantages", "with_batch", "finding", "repair", "since", "default", "note", "seconds",
    ]  # fmt: skip
    assert (row["library"], row["option"], row["group_size"], row["prompts"]) == ("pytest", "mean=token", 2, [1])
    assert (row["version"], row["since"], row["note"]) == (library.version(), "1.0", "first update")
    assert set(row["problems"]) == set(row["advantages"]) == set(FAST)
    assert rows[1].to_json()["advantages"] is None and rows[1].to_json()["repair"] == "set adv=rloo"


def test_figures_are_those_of_the_certificate():
    (row,) = audit(grpo, group_size=2, prompts=(1,), instances=FAST)
    for name, instance in FAST.items():
        problem = Problem(instance, 2)
        expected = exact_certificate(GRPO(group_size=2), problem.enumeration, problem.target())
        found = row.to_json()["problems"][name]
        assert found["verdict"] == expected.verdict
        for figure in ("relative_bias", "scale", "cosine", "trace_covariance"):
            assert found[figure] == pytest.approx(getattr(expected, figure), rel=1e-9, abs=1e-9)


def test_a_function_of_somebodys_and_an_estimator(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text('def half(rewards):\n    """Half of it."""\n    return rewards / 2\n', encoding="utf-8")
    for what in (f"{file}:half", RLOO(group_size=5)):
        (row,) = audit(what, group_size=2, prompts=(1,), instances=FAST)
        assert (row.library, row.version, row.to_json()["advantages"]) == ("yours", "", None)
    (row,) = audit(f"{file}:half", target="kl", group_size=2, prompts=(1,), instances=FAST)
    assert (row.verdict, row.setting.claim, row.target) == ("biased", "Half of it.", "kl")


def test_a_fault_that_only_right_or_wrong_shows():
    """Exact, but a mean over tokens where all rewards of a group are 0 or 1."""

    def only_there(batch):
        reward = by_prompt(batch)
        binary = ((reward == 0) | (reward == 1)).all(-1, keepdim=True)
        return torch.where(binary, reward / batch.mask.sum(-1).view(reward.shape), reward)

    (row,) = audit(only_there, group_size=2, instances=FAST)
    assert [row.problems[name].verdict for name in FAST] == ["unbiased", "biased"]
    assert row.finding.startswith("not the gradient of reward on right-or-wrong: cosine ")
    assert row.finding.endswith("elsewhere unbiased.")
    assert "right-or-wrong rewards" in row.batch.instance


def whitened(batch):
    advantage = rloo(batch)
    return (advantage - advantage.mean()) / (advantage.std() + 1e-4)


def sequence_mean(batch):
    return -((rloo(batch)[:, None] * batch.logp * batch.mask).sum(-1) / batch.mask.sum(-1)).mean()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (rloo, "exact"),
        (token_mean, "dies with the batch"),
        (whitened, "dies with the batch"),
        (sequence_mean, "stays"),
        (grpo, "stays"),
        (token_mean_of_groups, "stays"),
    ],
)
def test_what_dies_with_the_batch(function, says):
    (row,) = audit(function, group_size=2, prompts=(1, 2, 4) if function is token_mean else (1, 2), instances=FAST)
    batch = row.batch
    assert batch.says == says
    first, *_, last = batch.one_minus_cosine
    assert batch.limit is not None
    if says == "exact":
        assert max(first, last, batch.limit) < 1e-12
    elif says == "stays":
        assert batch.limit > 1e-3
    else:
        assert first > 1.2 * last > 0 and batch.limit < 1e-12
    if function is token_mean:
        assert batch.rate is not None and 0.7 < batch.rate < 1.1


def test_the_limit_is_where_certificates_go():
    """Group std and token-mean: what the token-mean adds dies, and the limit is what group std alone has."""
    mean, alone = (
        audit(function, group_size=2, prompts=(1, 8), instances=FAST)[0].batch
        for function in (token_mean_of_groups, grpo)
    )
    assert mean.limit == pytest.approx(alone.limit, rel=1e-9)
    assert mean.limit is not None
    distance = [abs(value - mean.limit) for value in mean.one_minus_cosine]
    assert distance[1] < distance[0] / 4


def test_the_small_instances_have_the_probabilities_that_the_limit_needs():
    for rewards in ("dense", "right-or-wrong"):
        e = small_problem(rewards).enumeration
        assert e.probability[0].tolist() == pytest.approx([0.5, 0.125, 0.375], rel=1e-12)
    assert small_problem("right-or-wrong").enumeration.response_reward[0].tolist() == [1.0, 1.0, 0.0]


def test_what_was_not_computed_is_said():
    problem = Problem(FAST["dense"], 2)
    assert with_batch(lambda problem: RLOO(2), problem, "reward", (1,)).says.startswith("not computed: one number of")
    hidden = with_batch(lambda problem: RLOO(2), problem, "reward", (1, 2), biased=True)
    assert hidden.says == "not computed: V = 2, T = 2, K = 2, dense rewards, every batch shows no error"
    (row,) = audit(draws, group_size=2, instances=FAST)
    assert row.batch.says.startswith("not computed: draws gave two answers")


def test_more_prompts_go_by_classes():
    problem = problems(2)["dense"]
    found = with_batch(lambda problem: RLOO(2), problem, "reward", (1, 100), biased=False)
    assert (found.says, found.prompts, found.instance) == ("exact", (1, 100), "the first instance, K = 2")


def test_the_problems_are_those_that_are_promised():
    found = problems(4)
    assert list(found) == ["dense", "two-prompts", "right-or-wrong"]
    assert [len(problem.instance.mdp.prompts) for problem in found.values()] == [1, 2, 2]
    assert {problem.group_size for problem in found.values()} == {4}
    assert set(found["right-or-wrong"].enumeration.response_reward.flatten().tolist()) == {0.0, 1.0}


def test_a_comma_within_a_value_parts_no_options():
    names = "clip=(-1,2),beta=0.1", "norm=mean, leave one out"
    settings = [Setting(name, "", "", loss=sums) for name in names]
    with pytest.raises(UsageError, match=r"it has no setting 'x'; it has clip, beta, norm\.$"):
        choose(settings, ["x"], "it")
    assert choose(settings, ["beta"], "it") == settings[:1] and choose(settings, ["clip=(-1,2)"], "it") == settings[:1]


@pytest.mark.parametrize(
    ("act", "error", "sentence"),
    [
        (lambda: audit("tlr"), UsageError, r"there is no library 'tlr' to audit; did you mean trl\?"),
        (lambda: audit("no.py:f"), UsageError, r"there is no file no\.py"),
        (lambda: audit(cast(Any, 3)), UsageError, "3 is no function and no estimator"),
        (lambda: audit(grpo, target="rewards"), ValueError, "target is 'rewards'"),
        (lambda: audit(grpo, prompts=()), ValueError, r"prompts is \(\); give numbers"),
        (lambda: audit(grpo, group_size=1), ValueError, "group-size is 1"),
        (lambda: choose(SETTINGS, ["adv=rlo"], "it"), UsageError, r"it has no setting 'adv=rlo'; did you mean"),
        (lambda: choose(SETTINGS, ["beta"], "it"), UsageError, r"no setting 'beta'; it has adv, mean, random\.$"),
        (lambda: Setting("a", "", "", loss=None), ValueError, "setting 'a' has neither a loss nor advantages"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_said_in_words(act, error, sentence):
    with pytest.raises(error, match=sentence):
        act()


def test_options_choose_settings():
    assert [each.name for each in choose(SETTINGS, ["mean=token", "adv"], "it")] == [
        "mean=token",
        "adv=rloo",
        "adv=grpo",
    ]
    assert choose(SETTINGS, [], "it") == list(SETTINGS)
    several = [replace(SETTINGS[0], name=name) for name in ("a=1,b=2", "b=2", "b=3,c", "bb=2")]
    assert [each.name for each in choose(several, ["b=2"], "it")] == ["b=2"]
    assert [each.name for each in choose(several, ["b"], "it")] == ["a=1,b=2", "b=2", "b=3,c"]
    assert [each.name for each in choose(several, ["a=1"], "it")] == ["a=1,b=2"]


def test_versions(library):
    assert within("1.16.0", ">=1.16,<1.17") and within("1.16", "==1.16.0") and within("2.0rc1", ">=2")
    assert not within("1.17.0.post1", ">=1.16,<1.17") and not within("0.9", ">=0.10")
    with pytest.raises(ValueError, match="is no clause about versions"):
        within("1.0", "~=1.0")
    assert library.warning() is None
    assert "was tried with >=99" in str(replace(library, versions=">=99").warning())
    with pytest.raises(UsageError, match=r"^pytest is not installed; pip install it$"):
        replace(library, distribution="no-such-distribution-anywhere", install="it").warning()


def test_libraries_are_found_by_name(monkeypatch):
    monkeypatch.setattr(libraries, "import_module", lambda name: type("Module", (), {"LIBRARY": name}))
    assert [find_library(name) for name in LIBRARIES] == list(LIBRARIES.values())
