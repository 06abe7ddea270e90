"""What there is to earn, as `llm-mdp envs` and envs/README.md say it: kept figures are what is computed again."""

import math
import subprocess
import sys

import numpy as np
import pytest

from llm_mdp.cli.envs import envs
from llm_mdp_envs import Question, Scores, Task, registry
from llm_mdp_envs.figures import Figures, measure, random_rewards, read_kept
from llm_mdp_envs.registry import ENTRIES, Entry, as_json, describe, from_json, listed, make_task
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.diagnostics import Needle
from llm_mdp_envs.tasks.synthetic import Tabular

TEXTS = {"ReasoningGym", "Math", "Code", "Calculator", "Documents"}


def name_of(entry: Entry) -> str:
    return entry.task.partition(":")[2]


@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, marks=pytest.mark.slow if name_of(one) in TEXTS else (), id=name_of(one)) for one in ENTRIES],
)
def test_kept_figures_are_what_is_computed(entry):
    """All but the times. Sampled rewards, too: the same seed plays the same episodes."""
    kept = from_json(entry.id, read_kept()["environments"][entry.id])
    try:
        task = make_task(entry.task, **entry.kwargs)
    except ImportError as error:
        pytest.skip(str(error))
    now = measure(task)
    assert as_json(describe(entry.id, task)) | {"figures": None} == as_json(kept) | {"figures": None}
    task.close()
    assert kept.figures is not None and (now.best_by, now.episodes, now.alike) == (
        kept.figures.best_by,
        kept.figures.episodes,
        kept.figures.alike,
    )
    for one, other in ((now.best, kept.figures.best), (now.random, kept.figures.random)):
        assert (one is None) == (other is None) and (one is None or one == pytest.approx(other, rel=1e-6, abs=1e-9))
    assert (now.interval is None) == (kept.figures.interval is None)
    assert math.isfinite(now.microseconds) and now.microseconds > 0 < kept.figures.microseconds


def test_every_environment_has_figures_and_no_other():
    assert list(read_kept()["environments"]) == [entry.id for entry in ENTRIES]


def test_nothing_heavy_is_imported_to_list_them():
    code = "import sys; from llm_mdp_envs.registry import listed; print(len(list(listed())), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(len(ENTRIES)), "False"]


class Early(Task):
    """Token 0 ends the response and is worth 1 as the first one; later it is worth nothing."""

    vocab_size, eos, horizon, prompt_length = 2, 0, 16, 0

    def question(self, generator):
        return Question(())

    def score(self, questions, tokens, mask):
        return Scores((tokens[:, 0] == 0).astype(np.float64))


def test_random_rewards_count_one_episode_each():
    """Whoever ends early would otherwise play again, and be counted too often."""
    rewards = random_rewards(Early(), 4000)
    assert set(rewards) == {0.0, 1.0} and rewards.mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(4000))
    again = random_rewards(Early(), 4000)
    np.testing.assert_array_equal(rewards, again)


def test_random_rewards_have_the_exact_mean():
    task = Tabular()
    rewards = random_rewards(task, 4000)
    assert rewards.mean() == pytest.approx(task.random_reward(), abs=5 * rewards.std() / math.sqrt(4000))


def test_masks_are_obeyed():
    """A step that a mask forbids raises; with the mask, right digits are more likely than without."""
    free, restricted = (random_rewards(Arithmetic(restricted=flag), 4000) for flag in (False, True))
    assert restricted.mean() > free.mean() + 4 * math.hypot(free.std(), restricted.std()) / math.sqrt(4000)


def test_figures_in_words():
    assert Figures(1.0, "computed", 1 / 8, microseconds=20.0).words == ("1", "0.125", "20 µs")
    assert Figures(None, "", 0.1, (0.05, 0.15), 256, 100, 2e3).words == ("–", "0.1 ± 0.05", "2,000 µs")
    assert Figures(None, "", 0.0, None, 256, 256, 20.0).words[1] == "0 (256 of 256 alike)"
    assert measure(Early()).interval is not None and measure(Needle()).episodes == 0


def test_a_missing_package_and_a_new_environment(monkeypatch):
    new = Entry("llm_mdp/New-v0", "llm_mdp_envs.tasks.diagnostics:Needle")
    lacking = Entry("llm_mdp/Lacking-v0", "nowhere:Task", extra="math", packages=("no_such_module",))
    monkeypatch.setattr(registry, "ENTRIES", (lacking, new))
    first, second = listed()
    assert first.unavailable == "there is no module 'no_such_module'; pip install 'llm-mdp[math]'"
    assert (second.vocab_size, second.figures, second.unavailable) == (8, None, "")


def test_the_command_says_them_in_80_columns(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert envs(["--json", "envs.json"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and out.count(" a step") > len(ENTRIES) - 4
    assert "best 1 · random 0.125 · " in out and '"best": 1.0' in (tmp_path / "envs.json").read_text()
