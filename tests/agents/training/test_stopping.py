"""The best evaluation, and runs that stop because none has been better."""

import math

import pytest
from safetensors.torch import load_file

from llm_mdp_agents import train
from llm_mdp_agents.training.records import load_metrics
from llm_mdp_agents.training.run import resume
from llm_mdp_agents.training.stopping import Best, best_of, why_stopped
from llm_mdp_agents.training.train_config import TrainConfig

SHORT = {"prompts_per_step": 4, "eval_prompts": 8, "signal_every": 0, "progress": False, "loggers": ("none",)}


def lines(*values: float | None) -> list[dict]:
    """Evaluations every second step."""
    found: list[dict] = []
    for number, value in enumerate(values):
        found += [{"step": 2 * number, "eval/reward": value, "x": 1.0}, {"step": 2 * number + 1, "reward": 9.0}]
    return found[:-1]


def test_the_best_is_the_first_of_the_largest():
    assert best_of(lines(0.1, 0.5, 0.5, 0.2), "eval/reward") == Best(2, 0.5, 2)
    assert best_of(lines(None, math.nan, -3.0), "eval/reward") == Best(4, -3.0, 0)
    assert best_of(lines(None), "eval/reward") is None and best_of([], "eval/reward") is None
    assert best_of(lines(0.1), "eval/other") is None


def test_a_run_stops_after_as_many_evaluations_without_a_better_one():
    config = TrainConfig(steps=100, stop_after=2)
    assert why_stopped(lines(0.1, 0.5, 0.5), config) == "" == why_stopped(lines(0.1, 0.5, 0.5, 0.6), config)
    assert why_stopped(lines(0.1, 0.5, 0.5, 0.4), config) == (
        "Stopped at step 6 of 100: 2 evaluations in a row had no better eval/reward than 0.5 at step 2."
    )
    assert why_stopped(lines(0.5, 0.1, 0.1, 0.1), TrainConfig(steps=100)) == ""


def worse_and_worse(folder, **options):
    """A run whose policy goes away from the reward: its best evaluation is the first."""
    return train(
        "rloo", "llm_mdp/Credit-v0", folder=folder, learning_rate=1e-9, eval_every=1, checkpoint_every=100, **SHORT,
        **options,
    )  # fmt: skip


def test_a_run_that_gets_no_better_stops_and_keeps_its_best(tmp_path):
    run = worse_and_worse(tmp_path / "run", steps=20, stop_after=3, save="best", keep=1, best_by="eval/greedy_reward")
    assert run.metrics[-1]["step"] == 3, "the greedy policy never changes, so the first is the best"
    kept = sorted(each.name for each in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step-000000", "step-000003"]
    again = resume(tmp_path / "run", progress=False)
    assert len(load_metrics(tmp_path / "run")) == 4 == len(again.metrics), "a run that has stopped stays as it is"


def test_the_model_is_that_of_the_best_evaluation(tmp_path):
    def trained(save: str):
        """Responses are cut before training only: the step is so long that nothing else is drawn after it."""
        return train(
            "rloo", "llm_mdp/Tabular-v0", folder=tmp_path / save, steps=2, eval_every=1, checkpoint_every=100,
            learning_rate=5.0, save=save, best_by="eval/truncated", **SHORT,
        )  # fmt: skip

    assert [each["eval/truncated"] for each in trained("best").metrics] == [0.25, 0.0, 0.0]
    trained("last")
    best, last = (load_file(tmp_path / name / "model/table.safetensors") for name in ("best", "last"))
    changed = [name for name in best if not best[name].equal(last[name])]
    assert changed and not any(best[name].any() for name in changed), "tables begin at zero"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"best_by": "reward"}, "best_by is 'reward'; name a metric of the evaluations"),
        ({"best_by": "eval/rewards"}, "which the evaluations do not measure; they measure .*eval/reward"),
        ({"stop_after": 0}, "stop_after is 0; it must be at least 1"),
        ({"epochs": "3"}, "epochs is '3'; it must be a whole number."),
        ({"seed": None}, "seed is None; it must be a whole number."),
        ({"weight_decay": "fast"}, "weight_decay is 'fast'; it must be a number."),
        ({"save": "best"}, "save is 'best', which needs checkpoints; give the run a folder"),
        ({"eval_split": 1.0}, "eval_split is 1.0; it is a share, at least 0 and below 1"),
        ({"eval_split": 0.1, "eval_problems": "x.jsonl"}, "choose one of them"),
        ({"eval_problems": "x.jsonl"}, "eval_problems is 'x.jsonl', but Credit is not a task over a list of problems"),
    ],
)
def test_what_cannot_be_is_said(options, words):
    with pytest.raises(ValueError, match=words):
        worse_and_worse(None, steps=1, **options)
