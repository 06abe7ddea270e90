"""Parts, verdicts and details of responses become metrics of the same meaning in one process or several."""

import numpy as np
import pytest

from llm_mdp_agents import train
from llm_mdp_agents.training.graded import columns, facts, graded, joined
from llm_mdp_agents.training.records import load_samples
from llm_mdp_envs.adapters.functions import CallableReward
from llm_mdp_envs.task import Scores

BATCH = Scores(
    np.array([1.0, 0.5, 0.0, 0.0]),
    {"answer": np.array([1.0, 0.5, 0.0, 0.0])},
    {
        "verdict": np.array(["passed", "passed", "failed", "time out"]),
        "unsupported": np.array([True, False, False, False]),
        "seconds": np.array([1.0, np.nan, 3.0, np.inf]),
        "said": np.array(["a b", "c <d>", "e", "f"], dtype=object),
        "note": np.array([None, None, "odd", None], dtype=object),
    },
)


def test_means_and_shares():
    assert graded(columns([BATCH])) == {
        "part/answer": 0.375,
        "detail/verdict/failed": 0.25,
        "detail/verdict/passed": 0.5,
        "detail/verdict/time out": 0.25,
        "detail/unsupported": 0.25,
        "detail/seconds": 2.0,
        "detail/note/odd": 1.0,
    }
    assert "eval/part/answer" in graded(columns([BATCH]), "eval/")


def test_several_batches_and_processes_count_every_response_once():
    small = Scores(np.zeros(1), {"answer": np.zeros(1)}, {"verdict": np.array(["passed"]), "more": np.array([2.0])})
    together = graded(columns([BATCH, small]))
    assert together == graded(joined([columns([BATCH]), columns([small])]))
    assert together["part/answer"] == pytest.approx(0.3) and together["detail/verdict/passed"] == pytest.approx(0.6)
    assert together["detail/more"] == 2.0
    assert graded(columns([])) == {} == graded(joined([{}, {}]))


def test_what_a_model_wrote_never_names_a_metric():
    texts = np.array([f"<b>{number}</b>" for number in range(2)], dtype=object)
    many = np.array([f"word {number}" for number in range(100)])
    found = graded(columns([Scores(np.zeros(2), details={"said": texts}), Scores(np.zeros(100), details={"x": many})]))
    assert found == {}


def test_facts_are_plain():
    assert facts(columns([BATCH]), 0) == {
        "part/answer": 1.0,
        "detail/verdict": "passed",
        "detail/unsupported": True,
        "detail/seconds": 1.0,
        "detail/said": "a b",
        "detail/note": None,
    }


class Judged(CallableReward):
    """Short replies are better, and somebody says why."""

    def grade(self, replies):
        length = np.array([min(len(reply.text), 4) / 4 for reply in replies])
        parts = {"short": 1 - length, "polite": np.full(len(replies), 0.25)}
        verdict = np.array(["long" if each == 1 else "short" for each in length])
        return Scores(parts["short"] + parts["polite"], parts, {"verdict": verdict})


def test_a_run_says_what_its_rewards_are_made_of(tmp_path):
    task = Judged(lambda prompt, response: 0.0, [f"{number}?" for number in range(40)], horizon=6)
    run = train(
        "rloo", task, "small", folder=tmp_path / "run", steps=1, prompts_per_step=4, eval_prompts=8, progress=False,
        loggers=("none",), signal_every=0,
    )  # fmt: skip
    line = run.metrics[-1]
    for prefix in ("", "eval/"):
        parts = [line[f"{prefix}part/{name}"] for name in ("short", "polite")]
        assert sum(parts) == pytest.approx(line[f"{prefix}reward"])
        shares = [value for name, value in line.items() if name.startswith(f"{prefix}detail/verdict/")]
        assert sum(shares) == pytest.approx(1.0)
    for sample in load_samples(tmp_path / "run"):
        assert sample["part/short"] + sample["part/polite"] == pytest.approx(sample["reward"])
        assert sample["finish"] in ("eos", "horizon") and sample["detail/verdict"] in ("long", "short")
    page = (tmp_path / "run/report.html").read_text()
    assert "part/short" in page and "detail/verdict/" in page and "that training never asks" in page
