"""Consultation: the patient, the exact posterior, every penalty, and doctors good, bad and best."""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.check import check_task
from llm_mdp_envs.episode import follow
from llm_mdp_envs.task import Question
from llm_mdp_envs.tasks.consultation import NO, UNKNOWN, YES, Consultation, KnowledgeBase, Patient, read_knowledge_base
from llm_mdp_envs.tasks.consultation_optimum import BestDoctor, best_doctor
from llm_mdp_envs.turns import play

Doctor = Callable[[Consultation, Question, list[tuple[int, ...]]], tuple[int, ...]]
"""(task, question, own turns so far) -> next turn. The question's secret is not the doctor's to read."""


def small_base(unknown: float = 0.2) -> KnowledgeBase:
    """Three diseases, four symptoms; the complaint a or b; d is equally likely under all, c under two of them."""
    return KnowledgeBase(
        ("flu", "pox", "gout"),
        ("a", "b", "c", "d"),
        np.array([0.5, 0.3, 0.2]),
        np.array([[1.0, 0, 0, 0], [0.6, 0.4, 0, 0], [0, 1.0, 0, 0]]),
        np.array([[0.9, 0.1, 0.3, 0.5], [0.7, 0.8, 0.3, 0.5], [0.0, 1.0, 0.9, 0.5]]),
        unknown,
    )


def small_task(**settings) -> Consultation:
    penalties = {
        "excess_penalty": 0.01,
        "duplicate_penalty": 0.02,
        "irrelevant_penalty": 0.04,
        "malformed_penalty": 0.08,
    }
    others = {"free_questions": 3, "max_turns": 10, "information_weight": 0.0}
    return Consultation(small_base(), **{**penalties, **others, **settings})


def visit(task: Consultation, disease: str = "pox", complaint: str = "a", answers: str = "yes no yes no") -> Question:
    """A question with a patient chosen by hand."""
    base = task.knowledge_base
    patient = Patient(base.diseases.index(disease), base.symptoms.index(complaint), task.encode(answers))
    return Question(task.encode(f"have {complaint} ."), patient)


def parts(task: Consultation, question: Question, *turns: str) -> dict[str, float]:
    """The graded parts after these turns, and their sum as "reward"."""
    tokens, mask = play(task, question, [task.encode(turn) for turn in turns])
    scores = task.score([question], tokens[None], mask[None])
    return {name: float(values[0]) for name, values in scores.parts.items()} | {"reward": float(scores.reward[0])}


# --- knowledge and patients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "complaint, told", [(0, {}), (0, {1: True}), (1, {0: False, 2: True}), (0, {1: True, 2: False, 3: True})]
)
def test_the_posterior_is_bayes(complaint, told):
    """Against the joint distribution of disease, complaint and all symptoms, summed case by case."""
    base = small_base()
    joint = np.zeros(3)
    for disease, has in product(range(3), product([False, True], repeat=4)):
        others = [
            base.present[disease, s] if has[s] else 1 - base.present[disease, s] for s in range(4) if s != complaint
        ]
        if has[complaint] and all(has[s] == yes for s, yes in told.items()):
            joint[disease] += base.prior[disease] * base.complaint[disease, complaint] * np.prod(others)
    np.testing.assert_allclose(base.posterior(complaint, told), joint / joint.sum(), atol=1e-12)


def test_patients_are_drawn_from_the_knowledge_base():
    task, base, n = small_task(), small_base(), 20_000
    generator = np.random.default_rng(0)
    drawn = [task.question(generator) for _ in range(n)]
    disease = np.array([question.secret.disease for question in drawn])
    complaint = np.array([question.secret.complaint for question in drawn])
    answers = np.array([question.secret.answers for question in drawn])
    np.testing.assert_allclose(np.bincount(disease) / n, base.prior, atol=0.02)
    assert {question.prompt for question in drawn} == {task.encode("have a ."), task.encode("have b .")}
    assert all(question.prompt[1] == task.encode(base.symptoms[question.secret.complaint])[0] for question in drawn)
    assert (answers[np.arange(n), complaint] == YES).all(), "the patient has the complaint and knows it"
    for d, s in product(range(3), range(4)):
        of_interest = answers[(disease == d) & (complaint != s), s]
        if len(of_interest):
            assert np.mean(of_interest == UNKNOWN) == pytest.approx(0.2, abs=0.03)
            assert np.mean(of_interest[of_interest != UNKNOWN] == YES) == pytest.approx(base.present[d, s], abs=0.03)
        assert np.mean(complaint[disease == d] == s) == pytest.approx(base.complaint[d, s], abs=0.02)


def test_the_shipped_knowledge_base_is_marked_as_invented():
    content = json.loads(files("llm_mdp_envs.tasks").joinpath("data", "diseases.json").read_text())
    assert "Invented" in content["about"] and "No disease, symptom or number in this file is real" in content["about"]
    base = read_knowledge_base()
    assert (len(base.diseases), len(base.symptoms)) == (10, 18)
    assert base.present[base.diseases.index("velmoria"), base.symptoms.index("humming-ears")] == 0.85
    assert base.present[base.diseases.index("velmoria"), base.symptoms.index("slow-blink")] == 0.05, "background"


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_the_diagnosis_is_worth_its_posterior():
    task = small_task()
    question = visit(task, answers="yes no yes unknown")
    expected = 0.3 * 0.6 * (1 - 0.8) * 0.3
    expected /= expected + 0.5 * 1.0 * (1 - 0.1) * 0.3
    assert parts(task, question, "ask b", "ask c", "diagnose pox")["diagnosis"] == pytest.approx(expected)
    assert parts(task, question, "diagnose pox")["diagnosis"] == pytest.approx(0.18 / 0.68), (
        "the complaint is known from the beginning"
    )
    assert parts(task, question, "diagnose gout")["diagnosis"] == 0
    assert (
        parts(task, question, "ask b", "diagnose pox <eos>")["diagnosis"]
        == parts(task, question, "ask b", "diagnose pox")["diagnosis"]
    )
    assert parts(task, question, "ask b")["reward"] == 0, "no diagnosis"


def test_information_is_worth_the_highest_posterior_whatever_the_diagnosis():
    task = small_task(information_weight=0.25)
    question = visit(task, answers="yes no yes unknown")
    flu, pox = 0.5 * 1.0 * (1 - 0.1), 0.3 * 0.6 * (1 - 0.8)
    for disease, mass in (("flu", flu), ("pox", pox), ("gout", 0.0)):
        found = parts(task, question, "ask b", f"diagnose {disease}")
        assert found["information"] == pytest.approx(0.25 * flu / (flu + pox))
        assert found["diagnosis"] == pytest.approx(0.75 * mass / (flu + pox))
    assert parts(task, question, "ask b")["information"] == 0, "no diagnosis"
    right = small_task(information_weight=0.25, reward="correct")
    assert parts(right, visit(right, "flu"), "diagnose flu")["diagnosis"] == 0.75


def test_the_diagnosis_is_right_or_wrong():
    task = small_task(reward="correct")
    question = visit(task, "pox")
    assert [parts(task, question, f"diagnose {disease}")["reward"] for disease in ("flu", "pox", "gout")] == [0, 1, 0]


def test_unknown_teaches_nothing_and_the_posterior_hears_no_later_answer():
    task = small_task()
    question = visit(task, answers="yes unknown yes yes")
    assert (
        parts(task, question, "ask b", "diagnose pox")["diagnosis"]
        == parts(task, question, "diagnose pox")["diagnosis"]
    )
    assert parts(task, question, "diagnose pox", "ask c") == parts(task, question, "diagnose pox")


@pytest.mark.parametrize(
    "turns, faults",
    [
        (("ask b", "ask b", "diagnose pox"), {"duplicate": 1}),
        (("ask b", "ask a", "diagnose pox"), {"duplicate": 1}),
        (("ask b", "ask d", "diagnose pox"), {"irrelevant": 1}),
        (("ask b", "ask c", "diagnose pox"), {"irrelevant": 1}),
        (("ask b", "ask ask", "diagnose pox"), {"malformed": 1}),
        (("ask b", "ask a", "ask a", "ask a", "diagnose pox"), {"duplicate": 3, "excess": 1}),
        (("ask b", "ask d", "ask d", "diagnose pox"), {"irrelevant": 2, "duplicate": 1}),
        (("ask b", "ask d", "ask d", "ask d", "ask a", "diagnose pox"), {"irrelevant": 3, "duplicate": 3, "excess": 2}),
        (("ask b", "diagnose a", "", "yes", "diagnose pox"), {"malformed": 3}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_every_fault_costs_exactly_its_penalty(turns, faults):
    """Against the same consultation without the faulty turns, which teach nothing. With complaint a, c is irrelevant:
    gout is out."""
    task, amounts = small_task(), {"excess": 0.01, "duplicate": 0.02, "irrelevant": 0.04, "malformed": 0.08}
    question = visit(task)
    without, with_them = parts(task, question, "ask b", "diagnose pox"), parts(task, question, *turns)
    for name, amount in amounts.items():
        assert without[name] == 0
        assert with_them[name] == pytest.approx(-amount * faults.get(name, 0), abs=1e-12)
    assert with_them["diagnosis"] == pytest.approx(without["diagnosis"], abs=1e-12)
    total = sum(amounts[name] * times for name, times in faults.items())
    assert with_them["reward"] == pytest.approx(without["reward"] - total, abs=1e-12)


@pytest.mark.parametrize("free, excess", [(0, 3), (1, 2), (2, 1), (3, 0), (9, 0)])
def test_questions_after_the_free_ones_are_excess(free, excess):
    task = small_task(free_questions=free, irrelevant_penalty=0, duplicate_penalty=0)
    few = parts(small_task(), visit(task), "ask b", "diagnose pox")
    many = parts(task, visit(task), "ask b", "ask d", "ask d", "diagnose pox")
    assert many["excess"] == pytest.approx(-0.01 * excess)
    assert many["diagnosis"] == pytest.approx(few["diagnosis"], abs=1e-12)


def test_relevance_depends_on_what_is_still_possible():
    task = small_task()
    assert parts(task, visit(task, complaint="b"), "ask c")["irrelevant"] == 0, "gout is possible and has c more often"
    assert parts(task, visit(task, complaint="a"), "ask c")["irrelevant"] == -0.04, "gout never brings complaint a"
    told = visit(task, complaint="b", answers="yes yes no no")
    assert parts(task, told, "ask a", "ask c")["irrelevant"] == -0.04, "gout never has a"


@pytest.mark.parametrize(
    "turn",
    [
        "",
        "ask",
        "diagnose",
        "a",
        "ask ask",
        "ask a a",
        "ask flu",
        "diagnose a",
        "diagnose flu flu",
        "yes",
        "unclear",
        "have a",
        "a ask",
    ],
)
def test_malformed_turns_are_answered_and_cost_something(turn):
    task = small_task()
    question = visit(task)
    tokens, mask = play(task, question, [task.encode(turn)])
    assert task.decode(tokens[~mask]) == "unclear ."
    assert parts(task, question, turn)["reward"] == pytest.approx(-0.08)


@pytest.mark.parametrize("answer", ["yes", "no", "unknown"])
def test_the_patient_says_what_was_drawn(answer):
    task = small_task()
    question = visit(task, answers=f"yes no {answer} no")
    tokens, mask = play(task, question, [task.encode("ask b"), task.encode("ask c"), task.encode("ask a")])
    assert task.decode(tokens[~mask]) == f"no .\n{answer} .\nyes ."


def test_the_conversation_ends_with_a_diagnosis_or_at_the_turn_limit():
    task = small_task(max_turns=3)
    asked = [task.encode("ask b")] * 5
    tokens, mask = play(task, visit(task), asked)
    assert task.decode(tokens) == "ask b .\nno .\nask b .\nno .\nask b .", "the last question is not answered"
    tokens, mask = play(task, visit(task), [task.encode("diagnose flu"), *asked])
    assert task.decode(tokens) == "diagnose flu ." and mask.all()


# --- secrets ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.lists(st.integers(0, 36).filter(lambda word: word not in (7, 8)), max_size=4), max_size=10),
)
def test_the_patient_never_names_a_disease(seed, turns):
    task = Consultation()
    question = task.question(np.random.default_rng(seed))
    diseases = set(task.encode(" ".join(task.knowledge_base.diseases)))
    tokens, mask = play(task, question, turns)
    assert not diseases & {*question.prompt, *tokens[~mask].tolist()}
    assert set(tokens[~mask].tolist()) <= set(task.encode("yes no unknown unclear ."))


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([(YES, YES, NO, YES), (YES, NO, UNKNOWN, NO)]),
    st.lists(st.lists(st.integers(0, 6) | st.integers(9, 15), max_size=3)),
)
def test_nothing_that_is_said_depends_on_the_disease_but_the_answers(answers, turns):
    """Two patients who would say the same are not told apart, by replies or by the posterior reward."""
    task = small_task()
    one, other = (Question(task.encode("have a ."), Patient(disease, 0, answers)) for disease in (0, 1))
    tokens, mask = play(task, one, turns)
    assert tokens.tolist() == play(task, other, turns)[0].tolist()
    rewards = task.score([one, other], np.stack([tokens, tokens]), np.stack([mask, mask])).reward
    assert rewards[0] == rewards[1]


# --- doctors ----------------------------------------------------------------------------------------------------------


def expert(task: Consultation, question: Question, turns: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Bayes, one question ahead: ask what leaves the least expected entropy, while questions are free and there is some
    doubt."""
    base = task.knowledge_base
    complaint = base.symptoms.index(task.words[question.prompt[1]])
    heard = play(task, question, turns)[0].tolist()
    replies = [heard[3 + 5 * number] for number in range(len(turns))]
    asked = [task.asked_symptom(turn) for turn in turns]
    told = {symptom: reply == YES for symptom, reply in zip(asked, replies) if reply != UNKNOWN}
    now = base.posterior(complaint, told)
    entropy = {}
    for symptom in range(len(base.symptoms)):
        if symptom == complaint or symptom in asked or not base.is_relevant(symptom, now):
            continue
        joint = np.stack([now * base.present[:, symptom], now * (1 - base.present[:, symptom])])
        entropy[symptom] = -(
            joint * np.log(joint / joint.sum(1, keepdims=True), where=joint > 0, out=np.zeros_like(joint))
        ).sum()
    if len(turns) >= task.free_questions or not entropy or now.max() > 0.99:
        return task.encode(f"diagnose {base.diseases[int(now.argmax())]}")
    return task.encode(f"ask {base.symptoms[min(entropy, key=entropy.__getitem__)]}")


def random_doctor(seed: int) -> Doctor:
    """Well-formed turns, anything in them; a diagnosis after about five."""
    generator = np.random.default_rng(seed)

    def doctor(task, question, turns):
        if generator.random() < 0.2:
            return task.encode(f"diagnose {generator.choice(task.knowledge_base.diseases)}")
        return task.encode(f"ask {generator.choice(task.knowledge_base.symptoms)}")

    return doctor


def consult(task: Consultation, doctor: Doctor, n: int, seed: int) -> tuple[list[Question], np.ndarray, np.ndarray]:
    """n consultations: questions, tokens and mask (n, horizon)."""
    generator = np.random.default_rng(seed)
    questions = [task.question(generator) for _ in range(n)]
    tokens, mask = np.full((n, task.horizon), -1), np.zeros((n, task.horizon), dtype=bool)
    for row, question in enumerate(questions):
        turns: list[tuple[int, ...]] = []
        while len(turns) < task.max_turns and not (turns and turns[-1][0] == task.encode("diagnose")[0]):
            turns.append(doctor(task, question, turns))
        written, whose = play(task, question, turns)
        tokens[row, : len(written)], mask[row, : len(written)] = written, whose
    return questions, tokens, mask


def test_the_expert_beats_the_random_doctor():
    task = Consultation(free_questions=5)
    good = task.score(*consult(task, expert, 200, 1))
    bad = task.score(*consult(task, random_doctor(0), 200, 1))
    assert good.reward.mean() > 0.8
    assert bad.reward.mean() < 0.3
    assert all(good.parts[name].sum() == 0 for name in ("excess", "duplicate", "irrelevant", "malformed"))


def test_questions_help():
    """The expert diagnoses better the more questions are free."""
    tasks = [Consultation(free_questions=free, information_weight=0) for free in (0, 1, 3, 5)]
    means = [task.score(*consult(task, expert, 200, 2)).reward.mean() for task in tasks]
    assert (np.diff(means) > 0.02).all(), means


@pytest.mark.parametrize("doctor, n", [(expert, 400), (random_doctor(1), 1500)], ids=["expert", "random"])
def test_posterior_and_correctness_have_the_same_mean_and_the_posterior_less_variance(doctor, n):
    """E[diagnosis is right | conversation] = posterior: exact Bayes is calibrated on patients drawn from the same
    knowledge."""
    task, right = Consultation(information_weight=0), Consultation(reward="correct", information_weight=0)
    visits = consult(task, doctor, n, 3)
    probability, correct = task.score(*visits).parts["diagnosis"], right.score(*visits).parts["diagnosis"]
    difference = correct - probability
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))
    assert probability.var() < correct.var()
    assert set(correct) <= {0.0, 1.0}


# --- the best doctor --------------------------------------------------------------------------------------------------


def all_patients(task: Consultation) -> list[tuple[float, Question]]:
    """Patients with every disease, complaint and set of answers, and how probable they are."""
    base = task.knowledge_base
    patients = []
    for disease, complaint in product(range(len(base.diseases)), range(len(base.symptoms))):
        for answers in product((YES, NO, UNKNOWN), repeat=len(base.symptoms)):
            chance = base.prior[disease] * base.complaint[disease, complaint]
            for symptom, answer in enumerate(answers):
                if symptom == complaint:
                    chance *= answer == YES
                else:
                    yes = base.present[disease, symptom]
                    chance *= {
                        YES: (1 - base.unknown) * yes,
                        NO: (1 - base.unknown) * (1 - yes),
                        UNKNOWN: base.unknown,
                    }[answer]
            if chance > 0:
                prompt = task.encode(f"have {base.symptoms[complaint]} .")
                patients.append((float(chance), Question(prompt, Patient(disease, complaint, answers))))
    return patients


def best_by_trying_all(task: Consultation) -> float:
    """The highest expected reward, by trying every well-formed turn after every conversation with all patients; all
    that is asked of the task is what a turn is answered and worth."""
    base = task.knowledge_base
    sayings = [f"ask {symptom}" for symptom in base.symptoms] + [f"diagnose {disease}" for disease in base.diseases]
    turns = [task.encode(saying) for saying in sayings]

    def after(earlier: list[tuple[int, ...]], heard: list[tuple[float, Question]]) -> float:
        if len(earlier) == task.max_turns:
            return 0.0
        worths = []
        for turn in turns:
            worth, further = 0.0, {}
            for chance, question in heard:
                outcome = task.outcome(question, earlier, turn)
                worth += chance * sum(outcome.reward.values())
                if outcome.reply is not None:
                    further.setdefault(outcome.reply, []).append((chance, question))
            worths.append(worth + sum(after([*earlier, turn], those) for those in further.values()))
        return max(worths)

    by_prompt = {}
    for chance, question in all_patients(task):
        by_prompt.setdefault(question.prompt, []).append((chance, question))
    return sum(after([], heard) for heard in by_prompt.values())


def tiny_task(**settings) -> Consultation:
    """Two diseases and a complaint that says nothing; a and b tell them apart, c never has "no" under the second."""
    base = KnowledgeBase(
        ("flu", "pox"),
        ("a", "b", "c"),
        np.array([0.6, 0.4]),
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        np.array([[0.9, 0.2, 0.4], [0.7, 0.8, 1.0]]),
        0.1,
    )
    return Consultation(base, **{"max_turns": 3, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_turns": 1},
        {"reward": "correct", "information_weight": 0.0},
        {"free_questions": 0, "excess_penalty": 0.05},
        {"free_questions": 1, "excess_penalty": 0.11},
        {"free_questions": 0, "excess_penalty": 0.9},
        {"irrelevant_penalty": 0.3, "duplicate_penalty": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [tiny_task, small_task], ids=["two diseases", "three diseases"])
def test_the_best_doctor_earns_the_most_that_any_doctor_can(make, settings):
    task = make(**{"max_turns": 3, **settings})
    assert best_doctor(task).reward == pytest.approx(best_by_trying_all(task), abs=1e-12)
    assert task.best_reward() == best_doctor(task).reward


@cache
def best_by_default() -> BestDoctor:
    return best_doctor(Consultation())


def best_one(task: Consultation, best: BestDoctor) -> Doctor:
    """The best doctor, who hears what the patient says and no more."""
    base = task.knowledge_base

    def doctor(task, question, turns):
        heard = play(task, question, turns)[0].tolist()
        replies = [{YES: True, NO: False, UNKNOWN: None}[heard[3 + 5 * number]] for number in range(len(turns))]
        complaint = base.symptoms.index(task.words[question.prompt[1]])
        answers = dict(zip(map(task.asked_symptom, turns), replies))
        symptom = best.next_question(complaint, answers)
        if symptom is not None:
            return task.encode(f"ask {base.symptoms[symptom]}")
        told = {each: answer for each, answer in answers.items() if answer is not None}
        return task.encode(f"diagnose {base.diseases[int(base.posterior(complaint, told).argmax())]}")

    return doctor


def once_relevant() -> Consultation:
    """b rules out flu; then a, which comes before e, tells nothing, and e does."""
    base = KnowledgeBase(
        ("flu", "pox", "gout"),
        ("b", "a", "e", "pain"),
        np.array([0.4, 0.35, 0.25]),
        np.array([[0, 0, 0, 1.0]] * 3),
        np.array([[0.0, 0.9, 0.5, 1.0], [1.0, 0.2, 0.9, 1.0], [1.0, 0.2, 0.1, 1.0]]),
        0.1,
    )
    return Consultation(base, max_turns=4)


@pytest.mark.parametrize("make", [tiny_task, once_relevant], ids=["two diseases", "once relevant"])
def test_following_the_best_doctor_earns_exactly_what_is_said(make):
    task = make()
    best = best_doctor(task)
    doctor, total, asked, useful = best_one(task, best), 0.0, 0.0, 0.0
    for chance, question in all_patients(task):
        turns: list[tuple[int, ...]] = []
        while not turns or task.diagnosed_disease(turns[-1]) is None:
            turns.append(doctor(task, question, turns))
        tokens, mask = play(task, question, turns)
        total += chance * task.score([question], tokens[None], mask[None]).reward[0]
        faults = [worth.keys() & {"duplicate", "irrelevant"} for _, worth in task.judged(question, tokens, mask)]
        asked += chance * (len(turns) - 1)
        useful += chance * sum(not fault for fault in faults[:-1])
    assert (best.reward, best.questions, best.useful_questions) == pytest.approx((total, asked, useful), abs=1e-12)


def test_the_best_doctor_earns_what_is_said_and_beats_the_expert():
    task, n = Consultation(), 200
    best = best_by_default()
    questions, tokens, mask = consult(task, best_one(task, best), n, 4)
    scores = task.score(questions, tokens, mask)
    assert abs(scores.reward.mean() - best.reward) < 4 * scores.reward.std() / np.sqrt(n)
    asked = (tokens == task.encode("ask")[0]).sum(1)
    assert abs(asked.mean() - best.questions) < 4 * asked.std() / np.sqrt(n)
    assert best.useful_questions == pytest.approx(best.questions), "the best doctor asks nothing else"
    assert all(scores.parts[name].sum() == 0 for name in ("duplicate", "irrelevant", "malformed"))
    assert scores.reward.mean() > task.score(*consult(task, expert, n, 4)).reward.mean()


def test_the_best_doctor_who_asks_nothing():
    task = Consultation()
    silent = task.score(*consult(task, lambda task, question, turns: best_silent(task, question), 500, 5)).reward
    assert abs(silent.mean() - best_by_default().silent_reward) < 4 * silent.std() / np.sqrt(len(silent))


def best_silent(task: Consultation, question: Question) -> tuple[int, ...]:
    base = task.knowledge_base
    likely = base.posterior(base.symptoms.index(task.words[question.prompt[1]]), {}).argmax()
    return task.encode(f"diagnose {base.diseases[int(likely)]}")


def worth_of_a_random_question(task: Consultation) -> tuple[float, float]:
    """How far a first question about another symptom, drawn at random, raises the highest posterior; and what it
    costs."""
    base, gain, price = task.knowledge_base, 0.0, 0.0
    for complaint, symptom in product(range(len(base.symptoms)), repeat=2):
        joint = base.prior * base.complaint[:, complaint]
        if complaint == symptom or joint.sum() == 0:
            continue
        yes = base.present[:, symptom]
        told = max(joint * yes) + max(joint * (1 - yes)) - max(joint)
        gain += (1 - base.unknown) * told / (len(base.symptoms) - 1)
        relevant = base.is_relevant(symptom, joint / joint.sum())
        price += joint.sum() * (not relevant) * task.penalty["irrelevant"] / (len(base.symptoms) - 1)
    return gain, price


def test_asking_pays_by_default_even_for_those_who_do_not_know_what_to_ask():
    """The figures of the docstring. With an irrelevant question at 0.1, as it was, a first question cost what it was
    worth at best, and training ended in silence."""
    task = Consultation()
    best = best_by_default()
    assert (best.reward, best.silent_reward) == pytest.approx((0.867, 0.388), abs=5e-4)
    assert best.questions == pytest.approx(3.5, abs=0.05)
    gain, price = worth_of_a_random_question(task)
    assert (gain, price) == pytest.approx((0.055, 0.010), abs=5e-4)
    assert task.information_weight * gain > 2 * price
    before = worth_of_a_random_question(Consultation(irrelevant_penalty=0.1))
    assert 0.5 * before[0] < before[1] > 0.85 * before[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_turns": 12}, "after the complaint 'salt-tears' there are .* states of knowledge.*fewer max_turns"),
        ({"horizon": 1}, "horizon is 1, into which no diagnosis fits"),
    ],
)
def test_where_the_best_doctor_is_not_known(settings, message):
    task = Consultation(**settings)
    with pytest.raises(ValueError, match=message):
        best_doctor(task)
    assert task.best_reward() is None


@pytest.mark.parametrize("horizon, questions", [(2, 0), (6, 0), (7, 1), (11, 1), (12, 2)])
def test_the_horizon_limits_the_questions_of_the_best_doctor(horizon, questions):
    """A diagnosis of two words ends at the horizon at the latest, and counts."""
    assert best_doctor(Consultation(horizon=horizon)).reward == pytest.approx(
        best_doctor(Consultation(max_turns=questions + 1)).reward
    )


# --- the action mask --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.lists(st.integers(0, 36).filter(lambda word: word not in (7, 8)), max_size=20), max_size=3),
)
def test_the_mask_of_a_restricted_consultation_allows_well_formed_turns_only(seed, said):
    """After any beginning that ends a turn, even a malformed one: a verb, one of its nouns, the end of the turn."""
    task = Consultation(restricted=True, max_turns=8, horizon=100)  # room for three such turns and two words more
    question = task.question(np.random.default_rng(seed))
    tokens = play(task, question, said)[0].tolist()
    episode = follow(task, question, tokens)
    base = task.knowledge_base
    nouns = {"ask": base.symptoms, "diagnose": base.diseases}
    if episode.finish is None:
        for verb in nouns:
            assert allowed(task, question, tokens) == {"ask", "diagnose"}
            assert allowed(task, question, [*tokens, *task.encode(verb)]) == set(nouns[verb])
            for noun in nouns[verb]:
                assert allowed(task, question, [*tokens, *task.encode(f"{verb} {noun}")]) == {"."}


def allowed(task: Consultation, question: Question, tokens: list[int]) -> set[str]:
    prompt, rows = np.array([question.prompt]), np.full((1, task.horizon), -1)
    rows[0, : len(tokens)] = tokens
    masks = task.action_masks(prompt, rows)
    assert masks is not None
    return {word for word, may in zip(task.words, masks[0]) if may}


def test_a_restricted_consultation_is_a_sound_task():
    check_task(Consultation(restricted=True, max_turns=3))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"reward": "both"}, "reward is 'both'; .*'posterior' or 'correct'"),
        ({"reward": None}, "reward is None"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"max_turns": 2.5}, "max_turns is 2.5"),
        ({"max_turns": True}, "max_turns is True"),
        ({"free_questions": -1}, "free_questions is -1; it must be a whole number of at least 0"),
        ({"duplicate_penalty": -0.1}, "duplicate_penalty is -0.1; it must be a finite number of at least 0"),
        ({"excess_penalty": float("nan")}, "excess_penalty is nan"),
        ({"irrelevant_penalty": "0.1"}, "irrelevant_penalty is '0.1'"),
        ({"information_weight": 1.5}, "information_weight is 1.5; it must be a finite number of at least 0 and of at"),
        ({"restricted": "yes"}, "restricted is 'yes'; it must be True or False"),
        ({"restricted": 1}, "restricted is 1"),
        ({"knowledge_base": 5}, "knowledge_base is 5; it must be a KnowledgeBase"),
        ({"knowledge_base": "mine.json"}, "knowledge_base is 'mine.json'; .* read_knowledge_base makes of a file"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Consultation(**arguments)


def broken(change: Callable[[dict], object]) -> str:
    content = json.loads(files("llm_mdp_envs.tasks").joinpath("data", "diseases.json").read_text())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "Expecting property name"),
        ("{}", "has not the form of the package's own diseases.json"),
        ("[]", "has not the form of the package's own diseases.json"),
        (broken(lambda c: c["diseases"]["velmoria"].update(prior=0.2)), "the prior: the probabilities sum to 1.06"),
        (
            broken(lambda c: c["diseases"]["velmoria"].update(prior=-0.14)),
            r"prior has the entry -0.14; a probability is in \[0, 1\]",
        ),
        (
            broken(lambda c: c["diseases"]["velmoria"]["complaints"].update({"tin-taste": 0.5})),
            "the complaints of 'velmoria'.*sum to 1.5",
        ),
        (
            broken(lambda c: c["diseases"]["velmoria"]["symptoms"].update({"tin-taste": 1.5})),
            "present has the entry 1.5",
        ),
        (
            broken(lambda c: c["diseases"]["velmoria"]["symptoms"].update({"sneeze": 0.5})),
            "for 'sneeze', which is not in the list",
        ),
        (broken(lambda c: c["symptoms"].append("tin-taste")), "the word 'tin-taste' twice"),
        (broken(lambda c: c["symptoms"].append("yes")), "the word 'yes' twice"),
        (
            broken(lambda c: c["symptoms"].append("tin taste")),
            "the word 'tin taste'; a word is a string without white space",
        ),
        (broken(lambda c: c.update(unknown=2)), "unknown has the entry 2.0"),
        (broken(lambda c: c.update(diseases={})), "has 0 diseases and 18 symptoms; it needs at least 2 and 1"),
    ],
)
def test_a_knowledge_base_that_is_wrong_is_refused_in_words(tmp_path, text, message):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_knowledge_base(file)
    assert str(file) in str(raised.value)


def test_a_knowledge_base_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(broken(lambda c: c.update(background=0.01)))
    base = read_knowledge_base(file)
    assert base.present.min() == 0.01
    assert Consultation(base).vocab_size == 9 + 18 + 10


def test_shapes_of_a_knowledge_base_are_checked():
    base = small_base()
    with pytest.raises(
        ValueError, match=r"present has the shape \(2, 4\); with 3 diseases and 4 symptoms it must be \(3, 4\)"
    ):
        KnowledgeBase(base.diseases, base.symptoms, base.prior, base.complaint, base.present[:2], 0.0)


def test_answers_that_no_disease_explains():
    with pytest.raises(ValueError, match="no disease has the complaint 'c'"):
        small_base().posterior(2, {})
