"""What training asks and what the evaluation asks never mix, and every row of a list is asked once an epoch."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_agents.training.questions import EvalQuestions, TrainQuestions, content, eval_questions, place
from llm_mdp_envs.adapters.functions import CallableReward
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import Tabular


def listed(prompts: list[str], **options) -> CallableReward:
    return CallableReward(lambda prompt, response: 0.0, prompts, **options)


def asked_in_training(task, kept: EvalQuestions, n: int, seed: int = 0) -> list[str]:
    ask = TrainQuestions(task, kept, [seed])
    return [content(each) for each in ask(np.random.default_rng(seed), n)]


def numbered(n: int) -> list[str]:
    return [f"What is {k}?" for k in range(n)]


def test_a_task_with_many_questions_keeps_those_of_its_evaluation():
    task = Arithmetic()
    kept = eval_questions(task, 64, seed=3)
    evaluated = set(map(content, kept.questions))
    assert kept.held_out and len(evaluated) == len(kept.questions) >= 60
    assert not evaluated & set(asked_in_training(task, kept, 20_000)), "two digits: 10,000 questions in all"
    assert [content(each) for each in eval_questions(task, 64, seed=3).questions] == [
        content(each) for each in kept.questions
    ]


@pytest.mark.parametrize("task", [GuessNumber(), Tabular(), Arithmetic(digits=1)], ids=lambda task: type(task).__name__)
def test_a_task_with_few_questions_is_evaluated_on_its_own(task):
    kept = eval_questions(task, 64, seed=0)
    assert not kept.held_out and len(kept.questions) == 64
    assert sum(kept.once().values()) == 64 and len(kept.once()) < 64


def test_zero_keeps_nothing():
    assert not eval_questions(Arithmetic(), 64, seed=0, share=0.0).held_out


@settings(max_examples=10, deadline=None)
@given(st.integers(30, 80), st.sampled_from([0.1, 0.3, 0.6]), st.randoms())
def test_a_split_hangs_on_what_is_asked_and_not_on_the_order(n, share, chance):
    prompts = numbered(n)
    shuffled = prompts * 2  # rows that stand there twice are the same question
    chance.shuffle(shuffled)
    one, other = (eval_questions(listed(rows), 256, 0, share) for rows in (prompts, shuffled))
    assert [content(each) for each in one.questions] == [content(each) for each in other.questions]
    for rows, kept in ((prompts, one), (shuffled, other)):
        trained = asked_in_training(listed(rows), kept, 3 * n)
        evaluated = set(map(content, kept.questions))
        assert not evaluated & set(trained)
        assert evaluated | set(trained) == {json.dumps(each) for each in prompts}, "nothing is lost"


def test_a_split_is_about_as_large_as_asked_and_rows_stay_where_they_are():
    kept = eval_questions(listed(numbered(1000)), 1000, 0, 0.2)
    # 260 is five standard deviations above 200.
    assert 140 <= len(kept.questions) <= 260
    more = eval_questions(listed(numbered(1100)), 1100, 0, 0.2)
    assert set(map(content, kept.questions)) <= set(map(content, more.questions))


def test_a_long_list_keeps_its_evaluation_unasked_and_a_short_one_does_not():
    long, short = listed(numbered(400)), listed(numbered(60))
    kept = eval_questions(long, 64, 0)
    assert kept.held_out and len(kept.questions) == 64
    assert len(set(asked_in_training(long, kept, 336))) == 336
    few = eval_questions(short, 64, 0)
    assert not few.held_out and len({content(each) for each in few.questions}) == 60 == len(few.questions)


def test_an_epoch_asks_every_row_once_in_an_order_of_its_own():
    task = listed(numbered(50))
    kept = EvalQuestions(task, ())
    epochs = np.array(asked_in_training(task, kept, 150)).reshape(3, 50)
    assert all(len(set(epoch)) == 50 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert asked_in_training(task, kept, 150) == epochs.ravel().tolist()
    assert asked_in_training(task, kept, 50, seed=1) != epochs[0].tolist()


def test_processes_share_an_epoch():
    task = listed(numbered(48))
    asks = [TrainQuestions(task, EvalQuestions(task, ()), [0], rank, 3) for rank in range(3)]
    parts = [[content(each) for each in ask(np.random.default_rng(0), 16)] for ask in asks]
    assert len({each for part in parts for each in part}) == 48


def test_the_position_is_all_that_an_epoch_needs_to_go_on():
    task = listed(numbered(20))
    kept = eval_questions(task, 4, 0)
    whole = asked_in_training(task, kept, 60)
    first, second = (TrainQuestions(task, kept, [0]) for _ in range(2))
    begun = first(np.random.default_rng(0), 23)
    second.position = first.position
    assert [content(each) for each in [*begun, *second(np.random.default_rng(9), 37)]] == whole


def test_other_problems_are_the_evaluation_and_leave_the_training():
    task, other = listed(numbered(30)), listed(["Another?", *numbered(3)])
    kept = eval_questions(task, 256, 0, None, other)
    assert {json.loads(content(each)) for each in kept.questions} == {"Another?", *numbered(3)}
    assert {json.loads(each) for each in asked_in_training(task, kept, 60)} == {*numbered(30)} - {*numbered(3)}
    with pytest.raises(ValueError, match="eval_problems holds every question of the training"):
        eval_questions(task, 256, 0, None, listed(numbered(40)))


def test_the_template_does_not_change_what_is_kept():
    plain = eval_questions(listed(numbered(50)), 256, 0, 0.3)
    chat = eval_questions(listed(numbered(50), chat=True), 256, 0, 0.3)
    assert [content(each) for each in plain.questions] == [content(each) for each in chat.questions]
    assert plain.questions[0].prompt != chat.questions[0].prompt


def test_long_questions_are_neither_trained_on_nor_evaluated():
    task = listed([*numbered(20), "x" * 500], prompt_length=100)
    kept = eval_questions(task, 256, 0)
    assert len(kept.questions) == 20
    assert not any("xxx" in each for each in asked_in_training(task, kept, 60))


@pytest.mark.parametrize(
    ("prompts", "share", "words"),
    [
        (numbered(3), 1e-9, "eval_split is 1e-09, which keeps none of 3 different questions for evaluation; give more"),
        (numbered(3), 0.999999, "keeps all of 3 different questions for evaluation; give less"),
        (["x" * 500], None, "has no question to evaluate on that is at most 100 tokens long"),
    ],
)
def test_splits_that_leave_nothing_are_refused(prompts, share, words):
    with pytest.raises(ValueError, match=words):
        eval_questions(listed(prompts, prompt_length=100), 8, 0, share)


def test_a_task_without_a_question_left_says_so():
    task = listed(numbered(3))
    with pytest.raises(ValueError, match="has no question left to train on"):
        TrainQuestions(task, EvalQuestions(task, (), kept_share=1.0), [0])(np.random.default_rng(0), 1)


def test_a_subclass_that_draws_otherwise_is_asked_as_it_draws():
    class Louder(CallableReward):
        def draw(self, generator):
            prompt, row = super().draw(generator)
            return f"{prompt} PLEASE", row

    task = Louder(lambda prompt, response: 0.0, numbered(5))
    assert all("PLEASE" in each for each in asked_in_training(task, EvalQuestions(task, ()), 10))


def test_places_are_even():
    places = [place(str(random.Random(k).random())) for k in range(2000)]
    assert min(places) >= 0 and max(places) < 1
    # 0.02 is three standard deviations of the mean of 2,000.
    assert np.mean(places) == pytest.approx(0.5, abs=0.02)


def test_eval_asks_of_a_run_what_its_evaluations_asked(tmp_path, monkeypatch, capsys):
    from llm_mdp.cli.evaluate import evaluate
    from llm_mdp.own import UsageError
    from llm_mdp_agents import train

    monkeypatch.chdir(tmp_path)
    run = train(
        "rloo", "Arithmetic", folder="run", steps=1, prompts_per_step=2, eval_prompts=8, signal_every=0, seed=3,
        warm_start=0, progress=False, loggers=("none",),
    )  # fmt: skip
    assert evaluate(["--run", "run", "--samples", "0", "--json", "figures.json"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {name: run[name] for name in figures if name != "samples"} == {
        name: value for name, value in figures.items() if name != "samples"
    }
    assert "8 prompts that training never asked)" in capsys.readouterr().out
    with pytest.raises((UsageError, ValueError), match="prompts is 9, but the run kept 8 questions from its training"):
        evaluate(["--run", "run", "--prompts", "9"])
