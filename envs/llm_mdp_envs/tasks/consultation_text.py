"""The consultation in words: the same patients and rewards as `consultation`, for language models."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from llm_mdp_envs.task import Question
from llm_mdp_envs.tasks.consultation import ASK, CONTROL_WORDS, DIAGNOSE, Consultation, KnowledgeBase, Patient
from llm_mdp_envs.text_turns import Response, TextTurns
from llm_mdp_envs.tool_calls import without_thoughts

RULES = tuple(
    name for name in inspect.signature(Consultation).parameters if name not in ("restricted", "horizon", "text")
)
"""Arguments of `Consultation` that mean the same in words."""

COMMAND = re.compile(r"\b(ask|diagnose)\b[\s:*\"'`]*(?:about|for|the)?[\s:*\"'`]*", re.IGNORECASE)
TOLD = {
    "yes": "Yes, I have {}.",
    "no": "No, I do not have {}.",
    "unknown": "I cannot tell whether I have {}.",
}


class ConsultationText(TextTurns):
    """Find out what a patient has, in a conversation, with few and useful questions.

    The first message tells the chief complaint, the symptoms that may be asked about and the diseases that there are. A
    turn asks about a symptom ("ask tin-taste", or any text that names one symptom and no disease), or makes the
    diagnosis, which ends the conversation ("diagnose velmoria", or any text that names one disease, no symptom, and is
    no question). Of several commands the last counts. Any other turn is malformed: it is told so. Thoughts in <think>
    do not count.

    Rewards are those of `Consultation`.

    Args:
        tokenizer, horizon, reply_length, prompt_length, system: as in `TextTurns`.
        knowledge_base, and by name all others but restricted: as in `Consultation`.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = Consultation.separates
    part_names = Consultation.part_names
    speakers = Consultation.speakers

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        knowledge_base: KnowledgeBase | None = None,
        horizon: int = 1024,
        reply_length: int = 128,
        prompt_length: int = 2048,
        system: str | None = None,
        **rules: Any,
    ):
        for name in rules:
            if name not in RULES:
                raise TypeError(f"ConsultationText has no argument {name!r}; its rules are {', '.join(RULES)}.")
        self.game = Consultation(knowledge_base, **rules)
        super().__init__(
            tokenizer,
            max_turns=self.game.max_turns,
            horizon=horizon,
            reply_length=reply_length,
            prompt_length=prompt_length,
            system=system,
        )

    def draw(self, generator):
        base, patient = self.game.knowledge_base, self.game.question(generator).secret
        text = (
            f"You are a doctor, and I am your patient: I have {base.symptoms[patient.complaint]}. Ask me about one "
            f"symptom in each turn, by the words: ask SYMPTOM. When you know enough, end with your diagnosis: diagnose "
            f"DISEASE. You have {self.max_turns} turns.\n"
            f"Symptoms: {', '.join(base.symptoms)}.\n"
            f"Diseases: {', '.join(base.diseases)}."
        )
        return text, patient

    def respond(self, secret: Patient, said):
        *earlier, latest = [self.words(text) for text in said]
        outcome = self.game.outcome(Question((), secret), earlier, latest)
        if outcome.reply is None:
            return Response(None, outcome.reward)
        symptom, told = self.game.asked_symptom(latest), self.game.decode(outcome.reply)
        if symptom is None:
            return Response("Please ask me about one symptom, or make your diagnosis.", outcome.reward)
        return Response(TOLD[told].format(self.game.knowledge_base.symptoms[symptom]), outcome.reward)

    def words(self, text: str) -> tuple[int, ...]:
        """What a turn says in the words of the game, (verb, noun); none if it is malformed."""
        text = without_thoughts(text)
        base = self.game.knowledge_base
        for command in reversed([*COMMAND.finditer(text)]):
            asks, line = command[1].lower() == "ask", text[command.end() :].split("\n")[0]
            if any(re.match(_pattern(name), line, re.IGNORECASE) for name in (*base.symptoms, *base.diseases)):
                named = self._named(base.symptoms if asks else base.diseases, line)
                return self._turn(asks, named[0]) if len(named) == 1 else ()
        symptoms, diseases = self._named(base.symptoms, text), self._named(base.diseases, text)
        if len(symptoms) == 1 and not diseases:
            return self._turn(True, symptoms[0])
        if len(diseases) == 1 and not symptoms and "?" not in text:
            return self._turn(False, diseases[0])
        return ()

    def _turn(self, asks: bool, number: int) -> tuple[int, int]:
        first = len(CONTROL_WORDS) + (0 if asks else len(self.game.knowledge_base.symptoms))
        return (ASK if asks else DIAGNOSE, first + number)

    @staticmethod
    def _named(names: Sequence[str], text: str) -> list[int]:
        """Numbers of the names that stand in a text, each once; a name inside a longer one does not count."""
        found = []
        for number in sorted(range(len(names)), key=lambda number: -len(names[number])):
            text, times = re.subn(_pattern(names[number]), "\0", text, flags=re.IGNORECASE)
            found += [number] * bool(times)
        return found


def _pattern(name: str) -> str:
    """A name whose words may be joined in another way: tin-taste, tin taste, tin_taste."""
    return r"(?<!\w)" + r"[-_ ]".join(map(re.escape, re.split(r"[-_]", name))) + r"(?!\w)"
