"""check_task: tasks that are sound pass, whatever their numbers; each way to be wrong is refused in one sentence that
names the class, the value and the remedy, by the check and by every command that would work with the task."""

import re
import sys
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_mdp.cli.__main__ as command_line
from llm_mdp_agents.resolve import find_task
from llm_mdp_envs import Question, Scores, Task, TaskError, TokenEnv, TokenVectorEnv, check_task
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.text import TextTask, byte_tokenizer
from llm_mdp_envs.text_turns import Response, TextTurns


class Sound(Task):
    """Nothing is wrong with it: a point for every token of the policy, and a mask that forbids one token."""

    def __init__(self, vocab_size=5, horizon=6, prompt_length=2, eos: Any = 0, end_of_turn: Any = 1, max_turns=3):
        self.vocab_size, self.horizon, self.prompt_length = vocab_size, horizon, prompt_length
        self.eos, self.end_of_turn, self.max_turns = eos, end_of_turn, max_turns

    def question(self, generator: np.random.Generator) -> Question:
        length = int(generator.integers(self.prompt_length + 1))
        return Question(tuple(generator.integers(self.vocab_size, size=length).tolist()), (2,))

    def reply(self, question, tokens):
        return (tokens[0], self.vocab_size - 1)

    def action_mask(self, question, tokens):
        return (np.arange(self.vocab_size) != self.vocab_size - 1).astype(np.int8)

    def score(self, questions, tokens, mask):
        words = mask.sum(1).astype(float)
        return Scores(words, {"half": words / 2, "other half": words / 2}, {"shown": tokens[:, 0]})

    def token_rewards(self, questions, tokens, mask):
        return mask.astype(float)

    def answers(self, questions):
        return np.zeros((len(questions), 1), dtype=np.int64)


@st.composite
def sound_tasks(draw) -> Sound:
    vocab_size = draw(st.integers(2, 6))
    token = st.none() | st.integers(0, vocab_size - 1)
    return Sound(
        vocab_size, draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(token), draw(token), draw(st.integers(1, 3))
    )


def in_one_sentence(error: BaseException, task: Any, *words: str) -> None:
    said = str(error)
    name = task.__name__ if isinstance(task, type) else type(task).__name__
    assert name in said and all(word in said for word in words), said
    assert said.endswith(".") and "\n" not in said and not re.search(r"[.!?] [A-Z]", said), said


@given(sound_tasks(), st.integers(0, 1000))
def test_a_sound_task_passes_and_can_be_played(task, seed):
    check_task(task)
    env = TokenEnv(task)
    _, info = env.reset(seed=seed)
    for _ in range(task.horizon):
        _, _, terminated, _, info = env.step(int(np.flatnonzero(info["action_mask"])[-1]))
        if terminated:
            break
    assert terminated


@pytest.mark.parametrize("arguments", [{"reward": "token"}, {"scratchpad": 3}, {"restricted": True}, {"digits": 9}])
def test_arithmetic_of_every_kind_passes(arguments):
    check_task(Arithmetic(**arguments))


# --- numbers ---

no_number = st.sampled_from([None, "5", 2.5, True, np.float64(3), (3,)])
WRONG_NUMBERS = {
    "vocab_size": no_number | st.integers(-3, 1),
    "horizon": no_number | st.integers(-3, 0),
    "prompt_length": no_number | st.integers(-3, -1),
    "max_turns": no_number | st.integers(-3, 0),
    "eos": no_number.filter(lambda value: value is not None) | st.integers(5, 9) | st.integers(-3, -1),
    "end_of_turn": no_number.filter(lambda value: value is not None) | st.integers(5, 9) | st.integers(-3, -1),
}


@pytest.mark.parametrize("attribute", WRONG_NUMBERS)
@pytest.mark.parametrize("use", [check_task, TokenEnv, TokenVectorEnv, find_task])
@given(data=st.data())
def test_a_wrong_number_is_refused_wherever_a_task_is_used(use, attribute, data):
    task = Sound()
    value = data.draw(WRONG_NUMBERS[attribute])
    setattr(task, attribute, value)
    with pytest.raises(TaskError) as refused:
        use(task)
    in_one_sentence(refused.value, task, attribute, repr(value))


@pytest.mark.parametrize("attribute", ["vocab_size", "horizon", "prompt_length", "eos"])
def test_a_number_that_is_missing_is_named(attribute):
    task = Sound()
    delattr(task, attribute)
    with pytest.raises(TaskError, match=f"Sound has no {attribute}; set it, .*, in the class or in its constructor."):
        check_task(task)


def test_numbers_of_numpy_are_numbers():
    check_task(Sound(vocab_size=np.int64(5), horizon=np.int32(4), eos=np.int64(0)))


@pytest.mark.parametrize("use", [check_task, TokenEnv, TokenVectorEnv, find_task])
@pytest.mark.parametrize("thing", [Sound, Task, SimpleNamespace(vocab_size=3), 7, None])
def test_what_is_no_task_is_refused(use, thing):
    with pytest.raises(TaskError) as refused:
        use(thing)
    in_one_sentence(refused.value, thing, "make an object of it" if isinstance(thing, type) else "llm_mdp_envs.Task")


# --- what a task does ---


def gives(method: str, value: Any) -> Callable[[Task], None]:
    return lambda task: setattr(task, method, lambda *arguments: value)


def changes(method: str) -> Callable[[Task], None]:
    """The method answers with another number at every call."""

    def break_it(task: Task) -> None:
        numbers = count()
        if method == "question":
            task.question = lambda generator: Question((next(numbers) % 5,))
        else:
            task.score = lambda questions, tokens, mask: Scores(np.full(len(questions), float(next(numbers))))

    return break_it


def scores(change: Callable[[np.ndarray], Any]) -> Callable[[Task], None]:
    """Scores with other rewards than one finite number a response."""

    def break_it(task: Task) -> None:
        task.score = lambda questions, tokens, mask: Scores(change(np.ones(len(questions))))

    return break_it


def with_parts(**columns: Any) -> Callable[[Task], None]:
    def break_it(task: Task) -> None:
        task.score = lambda questions, tokens, mask: Scores(np.ones(len(questions)), columns)

    return break_it


def allows(mask: Callable[[Question, list[int]], Any]) -> Callable[[Task], None]:
    return lambda task: setattr(task, "action_mask", lambda question, tokens: mask(question, list(tokens)))


def all_but(*tokens: int) -> np.ndarray:
    return (~np.isin(np.arange(5), tokens)).astype(np.int8)


def forbidden_answers(task: Task) -> None:
    task.end_of_turn = None
    task.answers = lambda questions: np.array([[2, 4, 0]] * len(questions))


def reveals(value: Any) -> Callable[[Task], None]:
    def break_it(task: Task) -> None:
        task.reveals_token_rewards = True
        task.token_rewards = lambda *arguments: value

    return break_it


WRONG_QUESTIONS = (
    None, "what?", (1, 2), Question("01"), Question(None), Question(3), Question((5,)), Question((-1,)),  # pyright: ignore
    Question((0.5,)), Question((True,)), Question((0, 0, 0)), Question(("0",)),  # pyright: ignore
)  # fmt: skip
WRONG_REPLIES = ((5,), (-1,), (0.5,), "01", 7, (None,))
WRONG_MASKS = (
    np.ones(4, dtype=np.int8), np.ones(6, dtype=np.int8), np.ones((5, 1), dtype=np.int8), np.zeros(5, dtype=np.int8),
    1, ["yes"] * 5,
)  # fmt: skip
BROKEN: dict[str, tuple[Callable[[Task], None], str]] = {
    **{f"question {number}": (gives("question", value), "question") for number, value in enumerate(WRONG_QUESTIONS)},
    **{f"reply {number}": (gives("reply", value), "reply") for number, value in enumerate(WRONG_REPLIES)},
    **{f"mask {number}": (gives("action_mask", value), "action_mask") for number, value in enumerate(WRONG_MASKS)},
    "other questions for the same seed": (changes("question"), "no state"),
    "other scores for the same responses": (changes("score"), "no state"),
    "no scores": (gives("score", None), "Scores"),
    "a bare array": (gives("score", np.zeros(2)), "Scores"),
    "a list of rewards": (scores(list), "numpy array"),
    "one reward for all": (scores(lambda ones: ones.sum()), "numpy array"),
    "too many rewards": (scores(lambda ones: np.append(ones, 1.0)), "(3,)"),
    "a column": (scores(lambda ones: ones[:, None]), "(2, 1)"),
    "texts as rewards": (scores(lambda ones: ones.astype(str)), "dtype"),
    "objects as rewards": (scores(lambda ones: ones.astype(object)), "dtype"),
    "complex rewards": (scores(lambda ones: ones.astype(complex)), "dtype"),
    "nan": (scores(lambda ones: ones * np.nan), "finite"),
    "infinity": (scores(lambda ones: ones / 0.0), "finite"),
    "one response without a reward": (scores(lambda ones: np.array([1.0, np.nan])), "response 1"),
    "parts of another sum": (with_parts(half=np.ones(2), other=np.ones(2)), "half, other"),
    "parts of another length": (with_parts(half=np.ones(3)), "'half'"),
    "parts as numbers": (with_parts(half=1.0), "'half'"),
    "token rewards that are not known": (reveals(None), "reveals_token_rewards"),
    "token rewards of another shape": (reveals(np.zeros((2, 3))), "(2, 6)"),
    "token rewards of another sum": (reveals(np.zeros((2, 6))), "reveals_token_rewards"),
    "answers outside the vocabulary": (gives("answers", np.full((2, 3), 5)), "answers"),
    "answers beyond the horizon": (gives("answers", np.zeros((2, 7), dtype=np.int64)), "answers"),
    "answers to other questions": (gives("answers", np.zeros((3, 1), dtype=np.int64)), "answers"),
    "answers as words": (gives("answers", [["a"], ["b"]]), "answers"),
    "answers that hold what is forbidden": (forbidden_answers, "token 4 at place 1 of [2, 4"),
    "a mask that tells the secret": (
        allows(lambda question, tokens: all_but(4 if question.secret is None else 3)),
        "when the question's secret is hidden",
    ),
    "a mask that tells the secret later": (
        allows(lambda question, tokens: all_but(4 if question.secret is None or len(tokens) < 2 else 3)),
        "when the question's secret is hidden",
    ),
    "a mask that needs the secret": (
        allows(lambda question, tokens: all_but(question.secret[0])),
        "fails without the question's secret",
    ),
    "a mask for one and another for many": (
        lambda task: setattr(task, "action_masks", lambda prompts, tokens: np.ones((len(prompts), 5))),
        "action_masks and action_mask differ after []",
    ),
    "no words": (gives("decode", 3), "decode"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("use", [check_task, find_task])
def test_a_task_that_does_something_wrong_is_refused(use, case):
    break_it, words = BROKEN[case]
    task = Sound()
    check_task(task)
    break_it(task)
    with pytest.raises(TaskError) as refused:
        use(task)
    in_one_sentence(refused.value, task, words)


@given(st.lists(st.integers(-2, 7), max_size=4), st.integers(0, 3))
def test_a_prompt_is_refused_exactly_if_it_does_not_fit(prompt, prompt_length):
    task = Sound(prompt_length=prompt_length)
    task.question = lambda generator: Question(tuple(prompt))
    fits = len(prompt) <= prompt_length and all(0 <= token < 5 for token in prompt)
    if fits:
        check_task(task)
    else:
        with pytest.raises(TaskError, match=re.escape(f"at most {prompt_length} tokens in 0 … 4")):
            check_task(task)


# --- what a task cannot be given, and what it raises ---


class Spoken(TextTask):
    """The same in words."""

    def draw(self, generator):
        return "1+1=", "2"

    def grade(self, replies):
        return Scores(np.array([float(reply.text == reply.secret) for reply in replies]))


class Riddle(TextTurns):
    part_names = ("right",)

    def draw(self, generator):
        return "Which number?", 3

    def respond(self, secret, said):
        return Response(None, {"right": 1.0})


def sound(kind: type[Task]) -> Task:
    return kind(byte_tokenizer(), horizon=40, prompt_length=200) if kind is Riddle else kind()


TAKEN = {
    (Sound, "question"): "generator", (Sound, "score"): "questions, tokens, mask", (Sound, "reply"): "question, tokens",
    (Sound, "action_mask"): "question, tokens", (Sound, "action_masks"): "prompts, tokens",
    (Sound, "answers"): "questions", (Sound, "token_rewards"): "questions, tokens, mask", (Sound, "decode"): "tokens",
    (Sound, "questions"): "generator, n", (Sound, "question_at"): "number", (Spoken, "draw"): "generator",
    (Spoken, "grade"): "replies", (Spoken, "score"): "questions, tokens, mask", (Spoken, "draw_at"): "number",
    (Riddle, "respond"): "secret, said",
}  # fmt: skip
"""Methods that a task may write, and what they are given."""


@pytest.mark.parametrize(("kind", "method"), TAKEN)
def test_a_method_that_takes_something_else_is_refused(kind, method):
    words = TAKEN[kind, method]
    given = words.split(", ")
    for parameters in (given[1:], [*given, "further"]):
        body = eval(f"lambda {', '.join(['self', *parameters])}: None")
        with pytest.raises(TaskError) as refused:
            check_task(sound(type("Mine", (kind,), {method: body})))
        assert str(refused.value) == f"Mine.{method} must take ({words}); it takes ({', '.join(parameters)})."
    with pytest.raises(TaskError, match=rf"^Mine\.{method} must take \({words}\); it is 3, which is no method\.$"):
        check_task(sound(type("Mine", (kind,), {method: 3})))


def test_a_method_may_take_more_than_it_is_given():
    task: Any = Sound()
    score = task.score
    task.score = lambda questions, tokens, mask, *, bonus=0.0: score(questions, tokens, mask)
    task.decode = str
    task.reply = lambda *given, **options: None
    for sound_one in (task, sound(Spoken), sound(Riddle)):
        check_task(sound_one)


@pytest.mark.parametrize(
    ("kind", "method"),
    # The others are for those who draw many, or go through a list.
    [(kind, method) for kind, method in TAKEN if method not in ("questions", "question_at", "draw_at")],
)
def test_what_a_method_of_a_task_raises_has_its_place(kind, method):
    class Broken(kind):
        pass

    def fails(self, *given):
        return given[0].no_such_thing

    if method == "token_rewards":
        Broken.reveals_token_rewards = True
    setattr(Broken, method, fails)
    with pytest.raises(TaskError, match=r"^test_check_task\.py, line \d+, in fails: AttributeError: ") as refused:
        check_task(sound(Broken))
    assert isinstance(refused.value.__cause__, AttributeError)


def test_the_place_of_what_a_task_raises_names_class_and_method():
    class Unfinished(Sound):
        def score(self, questions, tokens, mask):
            raise KeyError("to be written")

    with pytest.raises(
        TaskError, match=r"^test_check_task\.py, line \d+, in Unfinished\.score: KeyError: 'to be written'$"
    ):
        check_task(Unfinished())


def test_what_is_ours_keeps_its_kind():
    """The error of a task of ours has no place in a user's file."""
    task = Arithmetic()
    task.operators = None  # pyright: ignore
    with pytest.raises(TypeError):
        check_task(task)


# --- commands ---

OWN = """
import numpy as np
from llm_mdp_envs import Question, Scores, Task

class Own(Task):
    vocab_size, horizon, prompt_length, eos = 4, 3, 1, 0
    def question(self, generator): return Question((1,))
    def score(self, questions, tokens, mask): return Scores(mask.sum(1).astype(float))

class Eos(Own): eos = 9
class Horizon(Own): horizon = 0
class Prompt(Own):
    def question(self, generator): return Question((1, 2, 3))
class Nothing(Own):
    def question(self, generator): return None
class Numbers(Own):
    def score(self, questions, tokens, mask): return mask.sum(1)
class Infinite(Own):
    def score(self, questions, tokens, mask): return Scores(np.full(len(questions), np.inf))
class Argument(Own):
    def score(self, questions, tokens): return Scores(np.ones(len(questions)))
class Raises(Own):
    def score(self, questions, tokens, mask): return Scores(mask.no_such_thing)
class NoTask:
    vocab_size, horizon, prompt_length, eos = 4, 3, 1, 0
"""
COMMANDS = (
    "train rloo own.py:{} --steps 1 --model small --warm-start 0 --name run",
    "eval own.py:{} --model small --prompts 2",
    "inspect own.py:{} --model small --html page.html",
    "variance rloo --env own.py:{} --model small --prompts 4 --jobs 1 --out study",
)


def typed(words: str, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status of a command, and what it complained about."""
    monkeypatch.setattr(sys, "argv", ["llm-mdp", *words.split()])
    with pytest.raises(SystemExit) as left:
        command_line.main()
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
@pytest.mark.parametrize(
    "name", ["Eos", "Horizon", "Prompt", "Nothing", "Numbers", "Infinite", "Argument", "Raises", "NoTask"]
)
def test_every_command_refuses_it_before_it_works(command, name, here, monkeypatch, capsys):
    (here / "own.py").write_text(OWN)
    status, complaint = typed(command.format(name), monkeypatch, capsys)
    assert status == 2 and name in complaint and complaint.count("\n") == 1, complaint
    assert {path.name for path in here.iterdir()} <= {"own.py", "__pycache__"}
