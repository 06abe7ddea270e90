"""A consultation (the paper, §5.1): the doctor asks a mock patient about symptoms and makes a diagnosis.

Separates estimators by turn-level credit over several rounds: which questions earned the diagnosis and which were
wasted. What the patient says is in the state but was not the policy's choice, so training on it shows as a bias.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llm_mdp_envs.arguments import MOST_TOKENS, MOST_TURNS, check_choice, check_finite, check_flag, check_whole, shown
from llm_mdp_envs.task import Question
from llm_mdp_envs.turns import Outcome, TwoFaced, check_words

CONTROL_WORDS = ("ask", "diagnose", "have", "yes", "no", "unknown", "unclear", ".", "<eos>")
ASK, DIAGNOSE, HAVE, YES, NO, UNKNOWN, UNCLEAR, END_OF_TURN, EOS = range(len(CONTROL_WORDS))

DiagnosisReward = Literal["posterior", "correct"]


@dataclass(frozen=True, eq=False)
class KnowledgeBase:
    """How patients come about: a disease d by its prior, a chief complaint by the disease, every other symptom
    independently.

    The patient has the complaint. Whether the patient can tell about another symptom does not depend on anything else.

    Raises:
        ValueError: naming the entry, its value and what it must be.
    """

    diseases: tuple[str, ...]
    """D ≥ 2 names."""
    symptoms: tuple[str, ...]
    """S ≥ 1 names."""
    prior: np.ndarray
    """(D,): P(d)."""
    complaint: np.ndarray
    """(D, S): P(chief complaint = s | d)."""
    present: np.ndarray
    """(D, S): P(has s | d)."""
    unknown: float
    """Probability that the patient cannot tell about a symptom."""

    def __post_init__(self) -> None:
        check_words((*CONTROL_WORDS, *self.symptoms, *self.diseases), "the knowledge base")
        D, S = len(self.diseases), len(self.symptoms)
        if D < 2 or S < 1:
            raise ValueError(f"the knowledge base has {D} diseases and {S} symptoms; it needs at least 2 and 1.")
        tables = {"prior": (self.prior, (D,)), "complaint": (self.complaint, (D, S)), "present": (self.present, (D, S))}
        for name, (table, shape) in {**tables, "unknown": (np.asarray(self.unknown), ())}.items():
            if table.shape != shape:
                raise ValueError(
                    f"{name} has the shape {table.shape}; with {D} diseases and {S} symptoms it must be {shape}."
                )
            wrong = table[~((table >= 0) & (table <= 1))]
            if len(wrong):
                raise ValueError(f"{name} has the entry {wrong[0]}; a probability is in [0, 1].")
        for name, total in (("the prior", self.prior.sum()), *zip(self.diseases, self.complaint.sum(1))):
            if abs(total - 1) > 1e-9:
                whose = name if name == "the prior" else f"the complaints of {name!r}"
                raise ValueError(f"{whose}: the probabilities sum to {total}; they must sum to 1.")

    def posterior(self, complaint: int, answers: Mapping[int, bool]) -> np.ndarray:
        """(D,): P(d | chief complaint, answers), exact.

            P(d | …) ∝ P(d) P(complaint | d) Πₛ P(s | d)^yes (1 - P(s | d))^no

        Args:
            complaint: number of a symptom.
            answers: symptom -> yes or no; "unknown" teaches nothing and is left out, and so is the complaint.

        Raises:
            ValueError: if no disease explains them all.
        """
        weight = self.prior * self.complaint[:, complaint]
        for symptom, yes in answers.items():
            weight = weight * (self.present[:, symptom] if yes else 1 - self.present[:, symptom])
        if not weight.sum() > 0:
            raise ValueError(
                f"no disease has the complaint {self.symptoms[complaint]!r} and the answers {dict(answers)}; ask a "
                f"patient."
            )
        return weight / weight.sum()

    def is_relevant(self, symptom: int, posterior: np.ndarray) -> bool:
        """Does the symptom tell diseases apart? Not if it is equally likely under every one that is still possible."""
        return bool(np.ptp(self.present[posterior > 0, symptom]) > 0)


def read_knowledge_base(path: str | Path | None = None) -> KnowledgeBase:
    """Read a knowledge base from a JSON file; None: the invented one that comes with the package, whose form a file
    must have.

    Symptoms that a disease does not list have the probability `background`.

    Raises:
        ValueError: naming the file, the entry, its value and what it must be.
    """
    text = (
        files("llm_mdp_envs.tasks").joinpath("data", "diseases.json").read_text("utf-8")
        if path is None
        else Path(path).read_text("utf-8")
    )
    try:
        return _knowledge_base(json.loads(text))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has not the form of the package's own diseases.json ({error!r}); compare the two."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _knowledge_base(content: Mapping[str, Any]) -> KnowledgeBase:
    symptoms, entries = tuple(content["symptoms"]), content["diseases"].values()
    return KnowledgeBase(
        tuple(content["diseases"]),
        symptoms,
        np.array([entry["prior"] for entry in entries], dtype=np.float64),
        _table([entry["complaints"] for entry in entries], symptoms, 0.0),
        _table([entry["symptoms"] for entry in entries], symptoms, content["background"]),
        float(content["unknown"]),
    )


def _table(rows: Sequence[Mapping[str, float]], symptoms: tuple[str, ...], default: float) -> np.ndarray:
    """(D, S) from one {symptom: probability} a disease."""
    strange = [name for row in rows for name in row if name not in symptoms]
    if strange:
        raise ValueError(
            f"there is a probability for {strange[0]!r}, which is not in the list of symptoms; add it there."
        )
    return np.array([[row.get(name, default) for name in symptoms] for row in rows], dtype=np.float64)


@dataclass(frozen=True)
class Patient:
    """The secret of a question: everything is drawn before the conversation begins."""

    disease: int
    complaint: int
    answers: tuple[int, ...]
    """What the patient says about every symptom: the token YES, NO or UNKNOWN."""


class Consultation(TwoFaced):
    """Find out what a patient has, with few and useful questions.

    The prompt is the chief complaint, "have SYMPTOM .". The doctor's turns are "ask SYMPTOM ." (answered "yes", "no" or
    "unknown") and "diagnose DISEASE .", which ends the conversation. Any other turn is malformed and answered
    "unclear".

        RM(W) = (1 - w) P(diagnosis | said) + w max_d P(d | said) - Σ penalties                reward="posterior"
        RM(W) = (1 - w) [the diagnosis is right] + w max_d P(d | said) - Σ penalties           reward="correct"

    where "said" is all that the patient said and w is `information_weight`. The second term is what the paper asks for
    (§5.1): from the information that was collected a second doctor makes the diagnosis. No diagnosis within
    `max_turns`: both terms are 0. The two rewards have the same mean for every doctor; the posterior has less variance.
    Penalties add up, each for every turn that deserves it:

    - excess: a question after the first `free_questions`;
    - duplicate: a question about the complaint, or one asked before;
    - irrelevant: a question about a symptom that is equally likely under every disease that is still possible;
    - malformed: a turn that is neither question nor diagnosis.

    What a question is worth is how far its answer raises max_d P(d | said) on average. With the defaults a first
    question about another symptom, drawn at random, raises it by 0.055, and by half of that (w) the reward of a doctor
    who cannot read the answer yet; it costs 0.010, as 49 % of such questions are irrelevant. So asking pays before
    diagnosing has been learned, and learning need not find both at once. A best doctor (`best_doctor`) names the most
    probable disease, so that neither it nor its reward depends on w: it asks 3.5 questions and earns 0.867, against
    0.388 without a question.

    Args:
        knowledge_base: a `KnowledgeBase`, or None for the invented one that comes with the package;
            `read_knowledge_base` reads one from a file.
        reward: "posterior" or "correct".
        max_turns: at least 1, the diagnosis included.
        free_questions: at least 0.
        excess_penalty, duplicate_penalty, irrelevant_penalty, malformed_penalty: at least 0.
        information_weight: w, in [0, 1].
        restricted: let the action mask allow nothing but questions and diagnoses. A policy that begins from nothing
            learns to ask only with it: all three words of a turn right by chance are too rare, and once a first
            diagnosis was found, training repeats it.
        horizon: most tokens of a response, replies included; None: 5 a turn, what well-formed ones take.
        text: the same consultation in words, for language models: a `ConsultationText`, with the arguments of it.

    Raises:
        ValueError: naming the argument, its value and its range.
    """

    separates = (
        "turn-level credit over several rounds: useful questions from wasted ones, policy tokens from the patient's"
    )
    eos = EOS
    end_of_turn = END_OF_TURN
    prompt_length = 3
    part_names = ("diagnosis", "information", "excess", "duplicate", "irrelevant", "malformed")
    speakers = ("doctor", "patient")
    text_face = "llm_mdp_envs.tasks.consultation_text:ConsultationText"

    def __init__(
        self,
        knowledge_base: KnowledgeBase | None = None,
        reward: DiagnosisReward = "posterior",
        max_turns: int = 6,
        free_questions: int = 3,
        excess_penalty: float = 0.02,
        duplicate_penalty: float = 0.05,
        irrelevant_penalty: float = 0.02,
        malformed_penalty: float = 0.05,
        information_weight: float = 0.5,
        restricted: bool = False,
        horizon: int | None = None,
        text: bool = False,
    ):
        check_flag("text", text)
        self.reward: DiagnosisReward = check_choice("reward", reward, get_args(DiagnosisReward))
        self.max_turns = check_whole("max_turns", max_turns, 1, MOST_TURNS)
        self.free_questions = check_whole("free_questions", free_questions)
        self.penalty = {
            "excess": check_finite("excess_penalty", excess_penalty, 0),
            "duplicate": check_finite("duplicate_penalty", duplicate_penalty, 0),
            "irrelevant": check_finite("irrelevant_penalty", irrelevant_penalty, 0),
            "malformed": check_finite("malformed_penalty", malformed_penalty, 0),
        }
        self.information_weight = check_finite("information_weight", information_weight, 0, 1)
        self.restricted = check_flag("restricted", restricted)
        self.horizon = 5 * self.max_turns if horizon is None else check_whole("horizon", horizon, 1, MOST_TOKENS)
        if not (knowledge_base is None or isinstance(knowledge_base, KnowledgeBase)):
            raise ValueError(
                f"knowledge_base is {shown(knowledge_base)}; it must be a KnowledgeBase, such as read_knowledge_base "
                f"makes of a file, or None."
            )
        self.knowledge_base = knowledge_base or read_knowledge_base()
        self.words = (*CONTROL_WORDS, *self.knowledge_base.symptoms, *self.knowledge_base.diseases)
        self.vocab_size = len(self.words)

    def question(self, generator):
        base = self.knowledge_base
        disease = int(generator.choice(len(base.diseases), p=base.prior))
        complaint = int(generator.choice(len(base.symptoms), p=base.complaint[disease]))
        present = generator.random(len(base.symptoms)) < base.present[disease]
        unknown = generator.random(len(base.symptoms)) < base.unknown
        answers = np.where(unknown, UNKNOWN, np.where(present, YES, NO))
        answers[complaint] = YES
        prompt = (HAVE, len(CONTROL_WORDS) + complaint, END_OF_TURN)
        return Question(prompt, Patient(disease, complaint, tuple(answers.tolist())))

    def outcome(self, question, earlier, turn):
        patient: Patient = question.secret
        asked = [symptom for symptom in map(self.asked_symptom, earlier) if symptom is not None]
        posterior = self.posterior(patient, asked)
        disease, symptom = self.diagnosed_disease(turn), self.asked_symptom(turn)
        if disease is not None:
            worth = float(disease == patient.disease) if self.reward == "correct" else float(posterior[disease])
            w = self.information_weight
            return Outcome(None, {"diagnosis": (1 - w) * worth, "information": w * float(posterior.max())})
        if symptom is None:
            return Outcome((UNCLEAR,), {"malformed": -self.penalty["malformed"]})
        faults = {
            "excess": len(asked) >= self.free_questions,
            "duplicate": symptom == patient.complaint or symptom in asked,
            "irrelevant": not self.knowledge_base.is_relevant(symptom, posterior),
        }
        return Outcome(
            (patient.answers[symptom],), {name: -self.penalty[name] for name, fault in faults.items() if fault}
        )

    def action_masks(self, prompts, tokens):
        if not self.restricted:
            return None
        ends = tokens == END_OF_TURN
        length, step = (tokens >= 0).sum(1), np.arange(tokens.shape[1])
        place = length - np.where(ends, step + 1, 0).max(1, initial=0)
        """Words of the turn so far."""
        last = np.where(step == length[:, None] - 1, tokens, 0).sum(1)
        word, first_disease = np.arange(self.vocab_size), len(CONTROL_WORDS) + len(self.knowledge_base.symptoms)
        verbs, nouns = np.isin(word, (ASK, DIAGNOSE)), (len(CONTROL_WORDS) <= word) & (word < first_disease)
        noun = np.where((last == ASK)[:, None], nouns, (last == DIAGNOSE)[:, None] & (word >= first_disease))
        masks = np.where((place == 0)[:, None], verbs, (place == 1)[:, None] & noun)
        masks[~masks.any(1)] = word == END_OF_TURN
        masks[ends.sum(1) % 2 == 1] = True  # the patient's turn
        return masks.astype(np.int8)

    def best_reward(self) -> float | None:
        """The expected reward of the best doctor, exact; None where `consultation_optimum.best_doctor` does not find
        one."""
        from llm_mdp_envs.tasks.consultation_optimum import NotFound, best_doctor

        try:
            return best_doctor(self).reward
        except NotFound:
            return None

    def posterior(self, patient: Patient, asked: Sequence[int]) -> np.ndarray:
        """(D,): probability of every disease given the complaint and the patient's answers to these questions."""
        told = {symptom: patient.answers[symptom] for symptom in asked if symptom != patient.complaint}
        answers = {symptom: answer == YES for symptom, answer in told.items() if answer != UNKNOWN}
        return self.knowledge_base.posterior(patient.complaint, answers)

    def asked_symptom(self, turn: tuple[int, ...]) -> int | None:
        """The symptom that a turn asks about, None if it is no question."""
        return self._object_of(turn, ASK, len(CONTROL_WORDS), len(self.knowledge_base.symptoms))

    def diagnosed_disease(self, turn: tuple[int, ...]) -> int | None:
        """The disease that a turn diagnoses, None if it is no diagnosis."""
        first = len(CONTROL_WORDS) + len(self.knowledge_base.symptoms)
        return self._object_of(turn, DIAGNOSE, first, len(self.knowledge_base.diseases))

    @staticmethod
    def _object_of(turn: tuple[int, ...], verb: int, first: int, count: int) -> int | None:
        """The noun's number in a turn "verb noun", where nouns are the `count` words from `first` on; None for any
        other turn."""
        well_formed = len(turn) == 2 and turn[0] == verb and first <= turn[1] < first + count
        return turn[1] - first if well_formed else None
