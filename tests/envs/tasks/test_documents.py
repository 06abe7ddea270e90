"""Find it in these documents: one right answer, found by searching and opening."""

import numpy as np
import pytest

from llm_mdp_envs import check_task
from llm_mdp_envs.episode import replay
from llm_mdp_envs.tasks.documents import Documents, Library
from llm_mdp_envs.tools import ToolError
from tests.envs.chat_templates import QWEN, tokenizer_with

LIBRARY = Library(
    {
        "Velmar": "Velmar was founded in 1204. Around Velmar stand 12 windmills.",
        "Doran": "Doran was founded in 1650. Around Doran stand 7 windmills.",
        "Ada Abel": "Ada Abel was born in Velmar and left it at the age of 12.",
    },
    1204,
    "Velmar",
)


def parts(*said: str) -> dict[str, float]:
    task = Documents()
    question = task.ask("In which year was Velmar founded?", LIBRARY)
    scores = replay(task, [question], task.converse(question, said)[0][None])
    return {name: float(values[0]) for name, values in scores.parts.items()}


def test_a_search_lists_titles_the_best_first():
    assert LIBRARY.search("velmar").split("\n") == ["Velmar", "Ada Abel"]
    assert LIBRARY.search("where was Ada Abel born?").split("\n")[0] == "Ada Abel"
    assert LIBRARY.search("zebra") == LIBRARY.search("") == "no documents"


def test_a_document_is_opened_by_its_title():
    assert LIBRARY.open(" 'velmar' ") == LIBRARY.documents["Velmar"]
    with pytest.raises(ToolError, match="no document 'Velma'"):
        LIBRARY.open("Velma")


def test_what_a_conversation_is_worth():
    task = Documents()
    search, wrong = task.call_text("search", query="Velmar"), task.call_text("open", title="Velma")
    right, other = (task.call_text("open", title=title) for title in ("Velmar", "Doran"))
    assert parts(search, right, "It was founded in 1204.") == {"right": 1.0, "source": 0.2, "faults": 0.0}
    assert parts("1204") == {"right": 1.0, "source": 0.0, "faults": 0.0}
    assert parts(right, right, "1650") == {"right": 0.0, "source": 0.2, "faults": 0.0}
    assert parts(wrong, other, "1204 or 1650") == {"right": 0.0, "source": 0.0, "faults": -0.05}


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("template", [None, QWEN])
def test_demonstrations_earn_all_there_is(hops, template):
    task = Documents(None if template is None else tokenizer_with(template), hops=hops)
    check_task(task)
    questions = task.questions(np.random.default_rng(0), 10)
    assert replay(task, questions, task.answers(questions)).reward.tolist() == [1.2] * 10


@pytest.mark.parametrize("hops", [1, 2])
def test_every_question_has_one_answer(hops):
    """The fact that is asked for stands in one document, whose town (or whose person's town) the question names."""
    for question in Documents(towns=12, hops=hops).questions(np.random.default_rng(2), 30):
        library: Library = question.secret.secret
        named = [title for title in library.documents if title in question.secret.text]
        assert len(library.documents) == 24 and len(named) == 1
        born = library.documents[named[0]]
        assert (named[0] == library.source) if hops == 1 else (f"born in {library.source} " in born)
        assert library.documents[library.source].count(f" {library.answer}") == 1


@pytest.mark.parametrize(
    ("argument", "value"), [("towns", 1), ("towns", 41), ("hops", 3), ("hops", True), ("source_reward", -0.1)]
)
def test_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        Documents(**{argument: value})
