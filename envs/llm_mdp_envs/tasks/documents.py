"""Find it in these documents: a question whose answer stands in one of them, and tools to search and to open them.

Separates agents by credit over turns: which search led to the page, and which was wasted.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from llm_mdp_envs.arguments import check_finite, check_whole
from llm_mdp_envs.tasks.calculator import says
from llm_mdp_envs.tool_turns import ToolTurns
from llm_mdp_envs.tools import ToolError

SYLLABLES = ("bel", "dor", "fen", "gar", "hol", "kir", "lun", "mar", "nor", "per", "sal", "tam", "vel", "wes")
FIRST = ("Ada", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irma", "Jonas", "Klara", "Luca")
LAST = ("Abel", "Brandt", "Castro", "Dahl", "Egger", "Falk", "Gruber", "Holm", "Ivens", "Jansen", "Keller", "Lind")
FACTS = {
    "founded": ("In which year was {} founded?", "{} was founded in {}.", 1100, 1900),
    "bridge": (
        "In which year was the stone bridge of {} finished?",
        "The stone bridge of {} was finished in {}.",
        1500,
        1950,
    ),
    "inhabitants": ("How many people live in {}?", "{} has {} inhabitants.", 200, 90_000),
    "height": ("How many metres above the sea does {} lie?", "{} lies {} metres above the sea.", 2, 2400),
    "windmills": ("How many windmills stand around {}?", "Around {} stand {} windmills.", 2, 60),
}
"""Question, sentence, and the range of the number, by name."""

SHOWN = 5
"""Documents that a search lists."""


@dataclass(frozen=True)
class Library:
    """The secret of a question: documents by title, and the one number that is asked for."""

    documents: dict[str, str]
    answer: int
    source: str
    """Title of the document with the answer."""

    def search(self, query: str) -> str:
        """Find documents by words.

        Args:
            query: words that the document has in its title or text.
        """
        wanted = {*_words(query)}
        hits = {title: len(wanted & {*_words(f"{title} {text}")}) for title, text in self.documents.items()}
        # A title that is asked for comes before documents that merely speak of it.
        found = sorted(
            (title for title in hits if hits[title]), key=lambda title: (-len(wanted & {*_words(title)}), -hits[title])
        )
        return "\n".join(found[:SHOWN]) if found else "no documents"

    def open(self, title: str) -> str:
        """Read a document.

        Args:
            title: its title, as the search lists it.
        """
        for known, text in self.documents.items():
            if known.lower() == title.strip().strip("\"'").lower():
                return text
        raise ToolError(f"there is no document {title!r:.60}; search lists their titles.")


class Documents(ToolTurns):
    """Answer a question with the tools `search` (words -> titles of documents) and `open` (title -> its text).

    Documents are about towns and people that do not exist, so that nothing but reading them helps. With hops=2 the
    question names a person and asks about the town where that person was born, which stands in another document.

        RM(W) = [the last number of the answer is right] + source_reward [the document with the answer was opened]
                - fault_penalty × faulty calls

    The answer is the first turn without a call. Faulty calls are those that cannot be read, have wrong arguments, or
    open what is not there; the reply says why.

    Args:
        tokenizer, max_turns, horizon, reply_length, prompt_length, system: as in `ToolTurns`.
        towns: 2 … 40, each with a document; as many people have one.
        hops: documents between question and answer, 1 or 2.
        source_reward: at least 0.
        fault_penalty: at least 0.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = "tools over several turns: which search led to the answer and which was wasted"
    part_names = ("right", "source", "faults")

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_turns: int = 6,
        horizon: int = 2048,
        reply_length: int = 512,
        prompt_length: int = 2048,
        system: str | None = None,
        towns: int = 6,
        hops: int = 1,
        source_reward: float = 0.2,
        fault_penalty: float = 0.05,
    ):
        self.towns, self.hops = check_whole("towns", towns, 2, 40), check_whole("hops", hops, 1, 2)
        self.source_reward = check_finite("source_reward", source_reward, 0)
        self.fault_penalty = check_finite("fault_penalty", fault_penalty, 0)
        super().__init__(
            tokenizer,
            max_turns=max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    def draw(self, generator):
        towns = [
            "".join(SYLLABLES[place] for place in places).capitalize()
            for places in _distinct(generator, len(SYLLABLES), self.towns)
        ]
        people = [f"{FIRST[one]} {LAST[other]}" for one, other in _distinct(generator, len(FIRST), self.towns)]
        born = generator.permutation(self.towns).tolist()
        numbers = [
            {name: int(generator.integers(low, high)) for name, (_, _, low, high) in FACTS.items()} for _ in towns
        ]
        documents = {
            town: " ".join(FACTS[name][1].format(town, own[name]) for name in generator.permutation([*FACTS]).tolist())
            for town, own in zip(towns, numbers)
        }
        for person, home in zip(people, born):
            documents[person] = (
                f"{person} was born in {towns[home]} and left it at the age of {generator.integers(5, 30)}."
            )
        asked = int(generator.integers(self.towns))
        fact = [*FACTS][generator.integers(len(FACTS))]
        of = towns[asked] if self.hops == 1 else f"the town where {people[born.index(asked)]} was born"
        titles = generator.permutation([*documents]).tolist()
        library = Library({title: documents[title] for title in titles}, numbers[asked][fact], towns[asked])
        return f"{FACTS[fact][0].format(of)} Find it in the documents.", library

    def tools(self, secret):
        return [secret.search, secret.open]

    def answered(self, secret, text, results):
        return {"right": float(says(text, Fraction(secret.answer)))}

    def called(self, secret, earlier, latest):
        text = secret.documents[secret.source]
        first = all(result.text != text for result in earlier) and any(result.text == text for result in latest)
        faults = sum(result.fault == "call" for result in latest)
        return {"source": self.source_reward * first, "faults": -self.fault_penalty * faults}

    def answers(self, questions):
        said = []
        for question in questions:
            library: Library = question.secret.secret
            born = re.search(r"where (\w+ \w+) was born", str(question.secret.text))
            opened = [library.source] if born is None else [born[1], library.source]
            turns = [self.call_text(name, **argument) for title in opened for name, argument in _steps(title)]
            said.append([*turns, f"{library.answer}"])
        return self.conversations(questions, said)


def _steps(title: str) -> list[tuple[str, dict[str, str]]]:
    return [("search", {"query": title}), ("open", {"title": title})]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _distinct(generator: Any, size: int, count: int) -> list[tuple[int, int]]:
    """Different pairs of numbers below `size`."""
    return [divmod(int(pair), size) for pair in generator.choice(size * size, count, replace=False)]
