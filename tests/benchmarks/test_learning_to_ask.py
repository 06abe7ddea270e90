"""`benchmarks/consultation.py`: an agent that learns to ask, and the figures it wrote."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.consultation_optimum import best_doctor
from llm_mdp_envs.turns import play

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("consultation")


def results() -> dict:
    return json.loads((BENCHMARKS / "results" / "consultation.json").read_text())


def runs(policy: str, rewards: str) -> list[dict]:
    return [run for run in results()["runs"] if (run["policy"], run["rewards"]) == (policy, rewards)]


@pytest.mark.parametrize("policy, least", [("chart", 2.0), ("transformer", 0.9)])
def test_every_seed_learned_to_ask_useful_questions_and_to_earn_more_than_silence(policy, least):
    best = results()["best_doctor"]["default"]
    found = runs(policy, "default")
    assert len(found) == 3
    for run in found:
        assert run["end"]["useful_questions"][1] > least
        assert run["end"]["reward"][1] > best["silent_reward"]
        assert run["end"]["reward"][1] < best["reward"], "nobody earns more than the best doctor"


def test_those_who_keep_a_chart_use_the_answers():
    silent = results()["best_doctor"]["default"]["silent_reward"]
    for run in runs("chart", "default"):
        assert run["end"]["right"][1] > silent, "more right diagnoses than the complaint alone allows"


def test_the_same_agent_asked_nothing_with_the_rewards_as_they_were():
    found = runs("chart", "before")
    assert len(found) == 3
    for run in found:
        assert run["end"]["useful_questions"][2] < 0.1


def test_the_file_is_of_the_task_as_it_is():
    best, written = best_doctor(Consultation()), results()["best_doctor"]["default"]
    assert written == pytest.approx({name: getattr(best, name) for name in written})


def test_the_chart_holds_what_was_said_before_and_nothing_else(benchmark):
    task = Consultation()
    policy = benchmark.Chart(task, 8, torch.Generator().manual_seed(0))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    question = task.question(np.random.default_rng(0))
    one, other, third = (task.encode(f"ask {symptom}") for symptom in ("tin-taste", "cold-elbows", "slow-blink"))

    def logits(*turns: tuple[int, ...]) -> torch.Tensor:
        tokens = torch.from_numpy(play(task, question, turns)[0])
        return policy.logits(torch.tensor(question.prompt), tokens)

    here, there = logits(one, other, third), logits(other, one, third)
    assert torch.allclose(here[10:], there[10:]), "the order does not matter"
    assert not torch.allclose(here[5:10], there[5:10]), "after the first question they know different things"
    assert torch.allclose(here[:4], here[:1].expand(4, -1)), "an answer is known after it was given"
    assert torch.allclose(here[:10], logits(one, other)), "what comes later is not known"


@pytest.mark.slow
def test_asking_is_learned_in_a_minute(benchmark):
    """A fifth of the benchmark's updates: about 1.6 useful questions and a reward of 0.55."""
    run = benchmark.learn(replace(benchmark.SETTINGS[0], updates=70), seed=0)
    assert run["end"]["useful_questions"][1] > 1
    assert run["end"]["reward"][1] > 0.388
