"""Evaluations: figures that hold, of every different question once."""

import numpy as np
import pytest
import torch

from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.training.evaluation import evaluate, evaluation
from llm_mdp_agents.training.questions import EvalQuestions, eval_questions
from llm_mdp_envs.adapters.functions import CallableReward
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import Tabular


def policy_for(task, seed: int = 0):
    return small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2, seed=seed)


def test_the_exact_reward_is_inside_the_interval_of_the_drawn_one():
    task = Tabular()
    mdp = task.mdp
    assert mdp is not None
    missed = 0
    for seed in range(20):
        policy = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, torch.Generator().manual_seed(seed), scale=1.0)
        figures = evaluate(policy, task, 128, seed)
        missed += not figures["eval/reward_low"] <= figures["eval/exact_reward"] <= figures["eval/reward_high"]
    # 6 of 20 are five standard deviations above 5 %.
    assert missed <= 5


def test_rewards_of_zero_and_one_have_an_interval_between_zero_and_one():
    for worth, edges in ((1.0, (0.4, 1.0)), (0.0, (0.0, 0.6))):
        task = CallableReward(lambda prompt, response, worth=worth: worth, [f"{k}?" for k in range(5)], horizon=3)
        figures = evaluate(policy_for(task), task, 5)
        for name in ("eval/reward", "eval/greedy_reward"):
            low, high = figures[f"{name}_low"], figures[f"{name}_high"]
            assert edges[0] <= low <= figures[name] == worth <= high <= edges[1] and high - low > 0.3


def test_a_question_that_is_asked_twice_counts_once_in_the_greedy_interval():
    task = Arithmetic(digits=1)
    once = eval_questions(task, 20, 0)
    twice = EvalQuestions(task, once.questions * 8)
    first, second = (evaluation(policy_for(task), asked).figures for asked in (once, twice))
    assert first["eval/prompts"] == second["eval/prompts"] < 21
    for name in ("", "_low", "_high"):
        assert first[f"eval/greedy_reward{name}"] == pytest.approx(second[f"eval/greedy_reward{name}"])


def test_the_same_questions_have_the_same_figures_and_samples_belong_to_them():
    task = GuessNumber()
    asked = eval_questions(task, 16, 5)
    one, other = (evaluation(policy_for(task), asked, 5, 16) for _ in range(2))
    assert one == other and len(one.samples) == 16
    assert np.mean([each["reward"] for each in one.samples]) == pytest.approx(one.figures["eval/reward"])
    cut = np.mean([each["finish"] == "horizon" for each in one.samples])
    assert cut == pytest.approx(one.figures["eval/truncated"])
    parts = [name for name in one.samples[0] if name.startswith("part/")]
    assert parts and all(
        sum(each[name] for name in parts) == pytest.approx(each["reward"], abs=1e-12) for each in one.samples
    )


def test_rewards_all_alike_outside_of_what_is_known_are_undecided():
    task = CallableReward(lambda prompt, response: 7.0, [f"{k}?" for k in range(5)], horizon=3)
    figures = evaluate(policy_for(task), task, 5)
    assert figures["eval/reward"] == 7.0 and "eval/reward_low" not in figures
    task.reward_range = (0.0, 10.0)
    figures = evaluate(policy_for(task), task, 5)
    assert 0 <= figures["eval/reward_low"] < 7 < figures["eval/reward_high"] <= 10


@pytest.mark.parametrize(
    ("options", "words"), [({"prompts": 0}, "asks at least 1"), ({"seed": -1}, "must be at least 0")]
)
def test_bad_arguments(options, words):
    task = Arithmetic()
    with pytest.raises(ValueError, match=words):
        evaluate(policy_for(task), task, **options)
