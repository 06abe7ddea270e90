"""Unit tests for policy gradients, as users write them: what passes, what a failure says, and the pytest plugin."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mdp import RLOO, random_instance
from llm_mdp.testing import accepted, assert_unbiased
from llm_mdp.verify.certificate import Certificate
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
PLUGIN = ("-p", "no:llm_mdp", "-p", "llm_mdp.pytest_plugin", "-p", "no:cacheprovider")
"""By its module, whether or not the entry point is installed."""
SMALL = {"small": random_instance(2, 3, seed=1)}


def centred(rewards):
    return rewards - rewards.mean(-1, keepdim=True)


def leave_one_out(rewards):
    return centred(rewards) * rewards.shape[-1] / (rewards.shape[-1] - 1)


def over_length(batch):
    """A loss that divides every response by its length."""
    advantages = leave_one_out(batch.response_reward.view(-1, batch.group_size)).flatten()
    return -(batch.logp.sum(-1) / batch.mask.sum(-1) * advantages).mean()


def test_what_is_unbiased_passes():
    assert_unbiased(leave_one_out, group_size=2)
    assert_unbiased(RLOO(group_size=2))
    assert_unbiased("rloo", instances=SMALL)


def test_the_failure_is_the_diagnosis():
    with pytest.raises(AssertionError) as failed:
        assert_unbiased(over_length, group_size=2)
    message = str(failed.value)
    assert message.startswith(
        "over_length is not unbiased (gradient of reward, K = 2):\n  dense: biased: relative bias "
    )
    assert all(f"  {name}: biased: " in message for name in ("two-prompts", "right-or-wrong"))
    assert "length" in message.split("Why, by showing it other rewards")[1]
    assert "repaired it is unbiased, exactly" in message and "up_to_scale" not in message


def test_a_scale_may_be_accepted():
    with pytest.raises(AssertionError, match=r"(?s)scale 0\.5.*up_to_scale=True accepts it"):
        assert_unbiased(centred, group_size=2)
    assert_unbiased(centred, group_size=2, up_to_scale=True)
    with pytest.raises(AssertionError, match="is not unbiased up to scale"):
        assert_unbiased(over_length, group_size=2, up_to_scale=True, instances=SMALL)


def test_a_tolerance_is_of_the_bias_or_of_the_angle():
    with pytest.raises(AssertionError, match=r"is not unbiased within 0\.4 "):
        assert_unbiased(centred, group_size=2, tolerance=0.4, instances=SMALL)
    assert_unbiased(centred, group_size=2, tolerance=0.6, instances=SMALL)
    assert_unbiased(over_length, group_size=2, tolerance=0.9, up_to_scale=True, instances=SMALL)
    turned = Certificate("biased", 0.5, 0.6, 0.6, None)
    assert turned.sine == pytest.approx(0.8) and not accepted(turned, True, 0.7) and accepted(turned, True, 0.9)
    back = Certificate("biased", 2.0, -1.0, -1.0, None)
    assert back.sine == 1.0 and not accepted(back, True, 0.9)
    unknown = Certificate("undecided", None, None, None, None, reason="rounding")
    assert not accepted(unknown, False, 0.5) and not accepted(unknown, True, 0.5)


def test_another_target_and_several_prompts():
    with pytest.raises(AssertionError, match=r"gradient of reward - 0\.3 kl, K = 2, P = 2") as failed:
        assert_unbiased(leave_one_out, target="reward - 0.3 kl", group_size=2, prompts=2, instances=SMALL)
    assert "Why" not in str(failed.value)


def test_what_cannot_be_certified_fails_in_a_sentence():
    def wrong(rewards):
        return rewards.mean()

    with pytest.raises(AssertionError, match="wrong returned a tensor of shape"):
        assert_unbiased(wrong, instances=SMALL)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tolerance": 0.0}, "tolerance is 0.0; it must be at least 1e-09 and below 1"),
        ({"tolerance": 1.5}, "tolerance is 1.5"),
        ({"instances": {}}, "instances is empty; give at least one"),
        ({"instances": [1]}, "instances is a list; give a dict, such as {'mine': random_instance(3, 3)}."),
        ({"target": "rewards"}, "target is 'rewards'; choose among"),
    ],
)
def test_bad_arguments_are_no_failures(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        assert_unbiased(centred, **options)


def test_every_certificate_is_reported():
    seen = {}
    assert_unbiased(leave_one_out, group_size=2, instances=SMALL, report=seen.__setitem__)
    assert seen["small"].verdict == "unbiased"


# --- the plugin -------------------------------------------------------------------------------------------------------


def python(*words: str, folder) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def block(page: str, language: str) -> str:
    """The first block of a page of docs/ in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.S | re.M)
    assert found
    return found[1]


def test_pytest_starts_without_torch(here):
    ask = "import sys, llm_mdp.pytest_plugin; print(sorted({'torch', 'numpy', 'llm_mdp.testing'} & {*sys.modules}))"
    assert python("-c", ask, folder=here).stdout == "[]\n"


@pytest.mark.slow
def test_the_test_of_the_page_fails_as_the_page_says(here):
    (here / "test_gradients.py").write_text(block("ci.md", "python"), encoding="utf-8")
    done = python("-m", "pytest", *PLUGIN, "test_gradients.py", folder=here)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    said = [line.removeprefix("E").strip().removeprefix("AssertionError: ") for line in done.stdout.splitlines()]
    assert all(line.strip() in said for line in block("ci.md", "text").splitlines())
    assert "llm_mdp/testing.py" not in done.stdout.replace("\\", "/")  # its frames are hidden


@pytest.mark.slow
def test_the_fixture_asserts_and_reports(here):
    (here / "test_mine.py").write_text(
        "def test_mine(assert_unbiased):\n    assert_unbiased('rloo', group_size=2)\n", encoding="utf-8"
    )
    done = python("-m", "pytest", *PLUGIN, "--junitxml=report.xml", "test_mine.py", folder=here)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    report = (here / "report.xml").read_text(encoding="utf-8")
    assert 'name="right-or-wrong" value="unbiased: relative bias below 1e-09, scale 1, cosine 1"' in report


def test_the_workflow_of_the_page_has_ten_lines():
    assert len(block("ci.md", "yaml").splitlines()) == 10
