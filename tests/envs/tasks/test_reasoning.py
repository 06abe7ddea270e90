"""reasoning-gym as a task: its own scores, safe and in time on any answer."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

reasoning_gym = pytest.importorskip("reasoning_gym", reason='needs reasoning-gym: pip install "llm-mdp[reasoning]"')

from llm_mdp_envs import TokenEnv  # noqa: E402
from llm_mdp_envs.tasks.graders import CALLABLE, Grader, check_expression  # noqa: E402
from llm_mdp_envs.tasks.reasoning import NUMBER, ReasoningGym, answer_in_tags  # noqa: E402
from llm_mdp_envs.text import byte_tokenizer  # noqa: E402


def score(task: ReasoningGym, question, text: str) -> float:
    return float(task.grade([task.reply_to(question, text)]).reward[0])


@pytest.fixture(scope="module")
def grader():
    """One process for tests that are not about processes: each takes seconds to import its data sets."""
    shared = Grader("reasoning")
    yield shared
    shared.close()


def questions(task: ReasoningGym, n: int, seed: int = 0) -> list:
    generator = np.random.default_rng(seed)
    return [task.question(generator) for _ in range(n)]


@pytest.mark.parametrize(
    "name", ["chain_sum", "spell_backward", "countdown", "n_queens", "leg_counting", "string_manipulation"]
)
def test_scores_are_reasoning_gyms_own(name, grader):
    task = ReasoningGym(name, size=50, seed=3, prompt_length=10_000)
    task._grader = grader
    own = reasoning_gym.create_dataset(name, size=50, seed=3)
    for question in questions(task, 5):
        entry = question.secret.secret
        assert entry["question"] in task.decode(question.prompt)
        # "18 or so" is 18, whatever reasoning-gym says.
        others = () if NUMBER.fullmatch(entry["answer"]) else ("0", f"{entry['answer']} or so")
        for answer in (entry["answer"], "seven", *others):
            assert score(task, question, f"I think <answer>{answer}</answer>.") == own.score_answer(
                answer.strip(), entry
            )
        assert score(task, question, "no idea") == own.score_answer(None, entry)
        assert score(task, question, f"<answer>{entry['answer']}</answer>") == 1.0


def test_an_episode():
    env = TokenEnv(ReasoningGym("chain_sum", {"max_terms": 2, "max_digits": 1}))
    env.reset(seed=5)
    answer = env.clone_state().question.secret.secret["answer"]
    for token in env.task.encode_response(f"<answer>{answer}</answer>"):
        _, reward, terminated, _, _ = env.step(token)
    assert terminated and reward == 1.0


def test_a_mix_asks_by_weight_and_scores_each_by_its_own():
    mix = [{"name": "chain_sum", "weight": 3, "config": {"max_terms": 2}}, {"name": "spell_backward"}]
    task = ReasoningGym(mix, size=400)
    asked = questions(task, 400)
    names = [question.secret.secret["metadata"]["source_dataset"] for question in asked]
    assert set(names) == {"chain_sum", "spell_backward"} and abs(names.count("chain_sum") / 400 - 0.75) < 0.08
    assert all(score(task, one, f"<answer>{one.secret.secret['answer']}</answer>") == 1.0 for one in asked[:20])


def test_a_data_set_object():
    dataset = reasoning_gym.create_dataset("leg_counting", size=5, seed=1)
    task = ReasoningGym(dataset, prompt_length=4096)
    (question,) = questions(task, 1)
    assert score(task, question, f"<answer>{question.secret.secret['answer']}</answer>") == 1.0


def test_the_same_seed_asks_the_same():
    first, second = (questions(ReasoningGym("chain_sum", seed=4), 10) for _ in range(2))
    assert [one.prompt for one in first] == [two.prompt for two in second]
    assert [one.prompt for one in first] != [one.prompt for one in questions(ReasoningGym("chain_sum", seed=5), 10)]


def test_extraction():
    assert answer_in_tags("<answer>1</answer> no, <answer> 2\n</answer>") == "2"
    assert answer_in_tags("<answer>1<answer>2</answer>") == "2" and answer_in_tags("<answer>1") is None
    task = ReasoningGym("chain_sum", extract="number")
    (question,) = questions(task, 1)
    answer = question.secret.secret["answer"]
    for reply in (f"The sum is {answer}.", f"1 + 1 = {int(answer):,}", f"**${answer}**", answer.replace("-", "−")):
        assert score(task, question, reply) == 1.0
    assert score(task, question, f"{answer} or 7") < 1.0 and score(task, question, "none") == 0.0
    task = ReasoningGym("chain_sum", extract=lambda reply: reply.split("=")[-1])
    (question,) = questions(task, 1)
    assert score(task, question, f"x={question.secret.secret['answer']}") == 1.0


# --- hostile answers ---

EVALUATING = [
    "countdown",
    "puzzle24",
    "n_queens",
    "string_insertion",
    "spiral_matrix",
    "binary_matrix",
    "polynomial_multiplication",
    "simple_integration",
    "intermediate_integration",
]


@pytest.mark.parametrize("name", EVALUATING)
def test_no_answer_runs_code(name, tmp_path, grader):
    flag = tmp_path / "flag"
    task = ReasoningGym(name, size=5, prompt_length=10_000)
    task._grader = grader
    (question,) = questions(task, 1)
    attacks = [
        f"__import__('pathlib').Path({str(flag)!r}).touch()",
        f"[open({str(flag)!r}, 'w')]",
        f"lambdify('x', 'open({str(flag)!r}, \"w\")')(1)",
        f"sympify('open({str(flag)!r}, 1)')",
        f"sin('open({str(flag)!r}, \"w\")')",
        f"5! + open({str(flag)!r}, 'w')",
        f"(lambda: open({str(flag)!r}, 'w'))()",
        f"[x for x in [open({str(flag)!r}, 'w')]]",
        f"ｏpen({str(flag)!r}, 'w')",
        f"f\"{{open('{flag}', 'w')}}\"",
    ]
    assert all(score(task, question, f"<answer>{attack}</answer>") <= 0.05 for attack in attacks)
    assert not flag.exists()


def test_the_attack_works_without_the_guard(tmp_path):
    """So the test above can fail: reasoning-gym's own scorer runs the answer."""
    flag = tmp_path / "flag"
    dataset = reasoning_gym.create_dataset("string_insertion", size=1, seed=0)
    dataset.score_answer(f"[open({str(flag)!r}, 'w').name]", dataset[0])
    assert flag.exists()


@pytest.mark.parametrize(
    "source", ["1+2*x", "[1, (2, 3)]", "Integer (2 )*sqrt (Symbol ('x' ))", "{'a': -1}", "1 + 2 or so"]
)
def test_harmless_expressions_pass(source):
    check_expression(source)


@pytest.mark.parametrize(
    "source", ["f(1)", "x.y", "x[0]", "[i for i in x]", "lambda: 1", "(x := 1)", "f'{x}'", "sqrt(1)(2)"]
)
def test_other_expressions_do_not(source):
    assert "f" not in CALLABLE
    with pytest.raises(ValueError, match="an answer may"):
        check_expression(source)


@pytest.mark.slow
def test_an_endless_answer_is_worth_nothing_and_the_next_one_is_scored():
    task = ReasoningGym("countdown", size=5, seconds=1.0)
    (question,) = questions(task, 1)
    answer = question.secret.secret["answer"]
    assert score(task, question, f"<answer>{answer}</answer>") == 1.0
    assert score(task, question, "<answer>9**9**9**9</answer>") == 0.0
    assert score(task, question, f"<answer>{'(' * 100_000}</answer>") <= 0.01
    assert score(task, question, f"<answer>{answer}</answer>") == 1.0


def test_threads_and_pickles():
    task = pickle.loads(pickle.dumps(ReasoningGym("chain_sum", size=50)))
    asked = questions(task, 40)
    with ThreadPoolExecutor(8) as threads:
        right = threads.map(lambda one: score(task, one, f"<answer>{one.secret.secret['answer']}</answer>"), asked)
        wrong = threads.map(lambda one: score(task, one, "<answer>x</answer>"), asked)
        assert set(right) == {1.0} and set(wrong) == {0.0}


def test_the_grading_process_ends_with_its_grader():
    grader = Grader("reasoning", seconds=1)
    dataset = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)
    assert grader(pickle.dumps(dataset), dataset[0]["answer"], dataset[0]) == 1.0
    process = grader._process
    grader.close()
    assert process.poll() is not None
    assert grader(pickle.dumps(dataset), dataset[0]["answer"], dataset[0]) == 1.0  # a new one starts
    process = grader._process
    del grader
    assert process.poll() is not None


class Faulty(reasoning_gym.dataset.ProceduralDataset):
    def __getitem__(self, index):
        return {"question": "?", "answer": "!", "metadata": {}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": "chain_sums"}, "has no data set 'chain_sums'; did you mean chain_sum?"),
        ({"settings": {"terms": 3}}, "'chain_sum' has no setting 'terms'; it has min_terms"),
        ({"settings": {"min_terms": 5, "max_terms": 2}}, "refuses these settings of 'chain_sum'"),
        ({"dataset": []}, "dataset is \\[\\]"),
        ({"dataset": [{"weight": 1}]}, 'it must have "name"'),
        ({"dataset": [{"name": "chain_sum", "weight": 0}]}, "weight 0; it must be above 0"),
        ({"dataset": [{"name": "chain_sum"}], "settings": {}}, "settings belong to a data set given by its name"),
        ({"extract": "xml"}, "extract is 'xml'"),
        ({"seconds": 0}, "time limit for grading is 0"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        ReasoningGym(**arguments)


def test_a_data_set_that_cannot_travel():
    dataset = Faulty(config=None, seed=0, size=1)
    dataset.function = lambda: None
    with pytest.raises(ValueError, match="Faulty cannot be pickled"):
        ReasoningGym(dataset)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("2", 1), ("2 eggs", 1), ("**2**", 1), ("$2.00", 1), ("x = 2", 1), ("42", 0), ("-2", 0), ("20", 0), ("42 eggs", 0),
     ("2.5", 0), ("44 - 42", None), ("2 or 3", None)],
)  # fmt: skip
def test_a_number_is_right_or_it_is_not(answer, wanted, grader):
    """Seen among SmolLM2's replies: 42 earned 0.5 where 2 was right."""
    task = ReasoningGym("chain_sum", size=5)
    task._grader = grader
    question = task.ask("44 - 42 =", {**task.dataset[0], "answer": "2"})
    given = score(task, question, f"<answer>{answer}</answer>")
    assert given == wanted if wanted is not None else given < 1


# --- nothing said: what a small model can begin with ---


def test_with_nothing_said_it_asks_sums_of_two_numbers_and_begins_the_answer(grader):
    task = ReasoningGym(size=50)
    task._grader = grader
    for question in questions(task, 20):
        found = re.search(
            r"problem: (\d\d) ([+-]) (\d\d) =\S*\s<\|assistant\|>\s(\1 \2 \3 =)$", task.decode(question.prompt)
        )
        assert found, "two numbers of two digits, the question in the chat template, and the answer begun with the sum"
        right = int(found[1]) + int(f"{found[2]}{found[3]}")
        assert len(task.encode_response(f" {right}.")) <= task.horizon
        for reply in (f" {right}", f" {right}.", f" {found[1]} {found[2]} {found[3]} = {right}"):
            assert score(task, question, reply) == 1.0
        for reply in (f" {right}1", f" {right + 1}", f" {-right}" if right else " 1", f" {right} or {right + 1}"):
            assert score(task, question, reply) == 0.0


@pytest.mark.parametrize("reply", ["", " ", " I do not know", ".", "="])
def test_the_begun_sum_states_no_answer_by_itself(reply, grader):
    """Its last number would be right where 90 - 45 is asked, its calculation always."""
    task = ReasoningGym(size=5)
    task._grader = grader
    question = task.ask("State the final answer: 90 - 45 =", {**task.dataset[0], "answer": "45"})
    assert task.beginning(question.secret.text) == "90 - 45 ="
    assert score(task, question, reply) == 0.0


@pytest.mark.parametrize(
    ("arguments", "begun", "terms"),
    [
        ({}, True, {3}),
        ({"settings": {"min_terms": 3, "max_terms": 3, "max_digits": 1}}, True, {5}),
        ({"extract": "tags"}, False, {3}),
        ({"answer_prefix": "It is"}, True, {3}),
        ({"dataset": "chain_sum"}, False, {3, 5, 7, 9, 11}),
    ],
)
def test_what_is_said_is_done(arguments, begun, terms):
    """A data set that is named is asked as reasoning-gym has it, and an extraction of one's own with its own words."""
    task = ReasoningGym(**arguments)
    asked = questions(task, 60)
    said = [question.secret.text for question in asked]
    assert {len(text.split("\n")[0].split(": ")[1].split(" =")[0].split()) for text in said} == terms
    assert all(("<answer>" in text) is not begun for text in said)
    begins = {question.secret.beginning for question in asked}
    if "answer_prefix" in arguments:
        assert begins == {"It is"} and score(task, asked[0], f" {asked[0].secret.secret['answer']}.") == 1.0
    else:
        assert all(each.endswith(" =") is begun for each in begins)
    assert task.horizon == (16 if begun else 256)
    task.close()


@pytest.mark.parametrize("named", [{}, {"dataset": "chain_sum"}])
def test_the_chat_template_is_used_where_there_is_one(named):
    with_template, without = byte_tokenizer(), byte_tokenizer()
    without.chat_template = None
    for tokenizer, chat in ((with_template, None), (without, None), (with_template, False)):
        task = ReasoningGym(**named, tokenizer=tokenizer, chat=chat)
        (question,) = questions(task, 1)
        assert ("<|user|>" in task.decode(question.prompt)) is (tokenizer is with_template and chat is None)
        task.close()
    with pytest.raises(ValueError, match="has no chat template"):
        ReasoningGym(**named, tokenizer=without, chat=True)
