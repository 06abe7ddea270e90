"""`certify` of plain functions: what they read is their parameter's name, what they give is tried."""

import functools
import re

import pytest
import torch

from llm_mdp import GRPO, RLOO, Batch, EstimatorError, LastTokenReward, TooLarge, certify, diagnose, random_instance
from llm_mdp.own import UsageError
from tests.audit.functions import grpo, rloo, token_mean

SMALL = random_instance(3, 3, seed=1)
FIGURES = ("relative_bias", "scale", "cosine", "trace_covariance")


def leave_one_out(rewards):
    size = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * size / (size - 1)


class Centred:
    def __call__(self, rewards):
        return rewards - rewards.mean(-1, keepdim=True)


def scaled(factor, rewards):
    return factor * rewards


@pytest.mark.parametrize(
    ("function", "estimator"),
    [(leave_one_out, RLOO(2)), (rloo, RLOO(2)), (grpo, GRPO(2)), (token_mean, RLOO(2, reduction="token_mean"))],
)
def test_a_function_has_the_certificate_of_the_estimator(function, estimator):
    found, expected = certify(function, SMALL, group_size=2), certify(estimator, SMALL)
    assert found.verdict == expected.verdict
    for figure in FIGURES:
        assert getattr(found, figure) == pytest.approx(getattr(expected, figure), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda rewards: rewards, "unbiased"),
        (lambda reward: reward, "unbiased"),
        (lambda reward: reward.tolist() and reward.numpy() / 2, "proportional"),
        (functools.partial(scaled, 0.5), "proportional"),
        (Centred(), "proportional"),
        (lambda batch: -(batch.logp * batch.response_reward[:, None] * batch.mask).sum(-1).mean(), "unbiased"),
        (lambda rewards: torch.zeros_like(rewards), "biased"),
    ],
)
def test_any_callable_will_do(function, verdict):
    assert certify(function, SMALL, group_size=2).verdict == verdict


def test_an_annotation_says_what_the_parameter_is():
    def annotated(data: Batch):
        return data.response_reward

    def in_words(data: "Batch"):
        return data.response_reward

    assert certify(annotated, SMALL, group_size=1).verdict == "unbiased"
    assert certify(in_words, SMALL, group_size=1).verdict == "unbiased"


def test_rewards_choose_the_instance():
    centred = Centred()
    assert certify(centred, reward="dense", group_size=2) == certify(centred, group_size=2)
    found = certify(grpo, reward="right-or-wrong", group_size=3)
    assert found.verdict == "proportional"  # a std of rewards of 0 or 1 knows nothing but how many there are
    assert certify(grpo, reward="dense", group_size=2).verdict == "biased"
    assert certify("grpo", reward="right-or-wrong").verdict == "proportional"
    assert (
        certify(grpo, reward=LastTokenReward(lambda prompt, tokens, mask: mask.sum(-1) ** 2), group_size=2).verdict
        == "biased"
    )


def test_a_file_and_a_function(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def half(rewards):\n    return rewards / 2\n", encoding="utf-8")
    assert certify(f"{file}:half", SMALL).scale == pytest.approx(0.5, rel=1e-12)
    with pytest.raises(UsageError, match="has no 'other'"):
        certify(f"{file}:other", SMALL)


def fails(rewards):
    return rewards[0, 99]


def two(rewards, batch):
    return rewards


@pytest.mark.parametrize(
    ("act", "error", "sentence"),
    [
        (lambda: certify(fails, SMALL), EstimatorError, r"^fails raised IndexError \(test_.*py, line \d+, in fails"),
        (lambda: certify(two, SMALL), EstimatorError, r"^two takes \(rewards, batch\); write a function of "),
        (lambda: certify(lambda x: x, SMALL), EstimatorError, r"^<lambda> takes \(x\); write a function of "),
        (lambda: certify(lambda batch: "no", SMALL), EstimatorError, "^<lambda> returned a str; return advantages of"),
        (lambda: certify(lambda batch: 1.0, SMALL), EstimatorError, r"^<lambda> returned 1\.0; return advantages of"),
        (
            lambda: certify(lambda batch: -(batch.logp * batch.response_reward[:, None] * batch.mask).sum(-1), SMALL),
            EstimatorError,
            r"^<lambda> returned .* shape \(3,\) .* computed from batch.logp; for a loss return its mean or sum,",
        ),
        (lambda: certify(lambda batch: batch.rewards, SMALL), EstimatorError, "raised AttributeError .* no attribute "),
        (lambda: certify(lambda rewards: rewards * float("nan"), SMALL), EstimatorError, "gives nan for the rewards"),
        (lambda: certify(Centred), EstimatorError, r"^Centred is a class; give an object: Centred\(\)"),
        (lambda: certify(grpo, SMALL, reward="dense"), ValueError, "instance and reward were both given"),
        (lambda: certify(grpo, reward="right-or-wron"), ValueError, "did you mean right-or-wrong?"),
        (lambda: certify(grpo, SMALL, "rewards"), ValueError, "target is 'rewards'; choose among reward, kl"),
        (lambda: certify(grpo, group_size=0), ValueError, "group_size is 0; it must be a whole number"),
        (lambda: certify(grpo, group_size=12), TooLarge, "groups of 12 out of 31 responses|by classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_certified_is_said_in_words(act, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        act()
    assert "FunctionEstimator" not in str(raised.value)


def test_a_certificate_shows_itself():
    found = certify(leave_one_out, SMALL, group_size=2)
    assert str(found) == "unbiased: relative bias below 1e-09, scale 1, cosine 1"
    shown = found._repr_html_()
    for part in ("<b>leave_one_out: unbiased</b>", "relative bias below", "K = 2", "120 groups"):
        assert part in shown

    def named(rewards):
        return rewards

    named.__name__ = "<script>\x1b[31m"
    shown = certify(named, SMALL, group_size=2)._repr_html_()
    assert "<script>" not in shown and "\x1b" not in shown and "&lt;script&gt;\\x1b" in shown


def test_the_price_of_a_function():
    assert certify(leave_one_out, random_instance(2, 2, seed=1), group_size=2).price().value < 1e-6


# Diagnosis


def squared(rewards):
    return rewards**2


def over_the_length(batch):
    return (batch.response_reward / batch.mask.sum(-1))[:, None].expand(batch.mask.shape)


def with_a_penalty(batch):
    return batch.response_reward[:, None] - 0.1 * (batch.logp.detach() - batch.reference_logp)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (squared, ["sign-lost", "transformed-reward"]),
        (over_the_length, ["length"]),
        # What it reads is found out, and collected.
        (with_a_penalty, ["later-tokens"]),
        (lambda reward: reward, []),
    ],
)
def test_a_function_is_diagnosed_as_an_estimator_is(function, kinds):
    found = diagnose(function, group_size=2)
    assert [each.kind for each in found.findings] == kinds and not found.note
    assert found.name == function.__name__ and str(found).startswith(f"{found.name}: ")
    assert found.certificate is not None and (found.certificate.verdict == "unbiased") is (not kinds)
    assert (found.counter_example is None) is (not kinds)
    assert found.counter_example is None or found.counter_example.group_size == 2


def test_a_function_of_a_file_is_diagnosed_where_it_was_found_biased(tmp_path):
    (tmp_path / "mine.py").write_text("def squared(rewards):\n    return rewards**2\n")
    found = diagnose(f"{tmp_path}/mine.py:squared", SMALL, counter_example=False)
    assert found.lines == diagnose(squared, SMALL, counter_example=False).lines
    certificate = certify(squared, SMALL)
    assert found.certificate is not None
    for name in FIGURES:
        assert getattr(found.certificate, name) == pytest.approx(getattr(certificate, name), rel=1e-9)


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        (lambda x: x, {}, "<lambda> takes (x); write a function of one parameter, `rewards` (P, K) or `batch`."),
        (squared, {"group_size": 0}, "group_size is 0; it must be a whole number of at least 1."),
        (RLOO(2), {"group_size": 3}, "group_size is 3, but the estimator has its own; leave it out."),
        (object(), {}, "object has no method `collect`; subclass llm_mdp.Estimator, which brings it."),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(what, options, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        diagnose(what, **options)
