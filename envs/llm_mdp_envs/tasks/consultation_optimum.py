"""What the best doctor of a consultation earns, exactly: dynamic programming over what a doctor may know.

A doctor knows the complaint c, the symptoms S asked about, and the answers a ∈ {yes, no, unknown}^S. With the joint
probability w(d, S, a) = P(d) P(c | d) Π P(aₛ | d), and no division by the probability of what is known,

    V(S, a) = max(max_d w(d, S, a), max over s ∉ S of Q(s))
    Q(s) = Σ over the answers to s of V(S ∪ s, ·) - price(s) Σ_d w(d, S, a)

and the best reward is Σ_c V(∅). The price of a question is its penalties: excess, if the free ones are used up, and
irrelevant, if it tells no diseases apart. Duplicate and malformed turns teach nothing and cost something, so the best
doctor makes none.
"""

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llm_mdp_envs.tasks.consultation import Consultation

MOST_STATES = 2_000_000
"""Of one complaint."""
TIE = 1e-12
"""A question must be worth more than this beyond a diagnosis now."""
DIAGNOSE = -1
"""In the place of a symptom."""

Subset = tuple[int, ...]
"""Symptoms in ascending order."""


class NotFound(ValueError):
    """Why the best doctor is not found."""


@dataclass(frozen=True)
class BestDoctor:
    """A doctor of highest expected reward, and what it does on average."""

    reward: float
    """E RM(W)."""
    silent_reward: float
    """E RM(W) of the best doctor who diagnoses at once: Σ_c max_d P(c, d)."""
    questions: float
    """Mean number of questions."""
    useful_questions: float
    """Mean number of those that tell apart diseases that are still possible."""
    choices: Mapping[int, Mapping[Subset, np.ndarray]]
    """By complaint and symptoms asked about, (3,) * len(S) int16 by the answers (0 yes, 1 no, 2 unknown): the symptom
    to ask about next, or `DIAGNOSE`."""

    def next_question(self, complaint: int, answers: Mapping[int, bool | None]) -> int | None:
        """The symptom to ask about; None: diagnose the most probable disease.

        Args:
            answers: symptom -> yes or no, None for "unknown"; as they came about by following this doctor.
        """
        asked = tuple(sorted(answers))
        place = tuple({True: 0, False: 1, None: 2}[answers[symptom]] for symptom in asked)
        choice = int(self.choices[complaint][asked][place])
        return None if choice == DIAGNOSE else choice


def best_doctor(task: "Consultation") -> BestDoctor:
    """The best doctor for a task, by dynamic programming.

    Raises:
        NotFound: if there are more than `MOST_STATES` to look at, or no diagnosis fits into the horizon.
    """
    if task.horizon < 2:
        raise NotFound(f"horizon is {task.horizon}, into which no diagnosis fits; it takes 2 words.")
    base = task.knowledge_base
    joint = base.prior[:, None] * base.complaint
    solved = {complaint: _Solved(task, complaint) for complaint in np.flatnonzero(joint.sum(0) > 0).tolist()}
    reward, questions, useful = np.sum([each.expected for each in solved.values()], axis=0).tolist()
    choices = {complaint: each.choices for complaint, each in solved.items()}
    return BestDoctor(reward, float(joint.max(0).sum()), questions, useful, choices)


class _Solved:
    """The recursion for one complaint, from the largest sets of symptoms down to none.

    `expected` (3,): reward, questions and useful questions of the best doctor, times P(complaint).
    """

    def __init__(self, task: "Consultation", complaint: int):
        base = task.knowledge_base
        self.task = task
        self.present = base.present
        self.weight = base.prior * base.complaint[:, complaint]
        possible = self.weight > 0
        self.symptoms = [
            symptom
            for symptom in range(len(base.symptoms))
            if symptom != complaint and np.ptp(base.present[possible, symptom]) > 0
        ]
        """Those that can be relevant; a question about another one is irrelevant whatever is known."""
        yes = (1 - base.unknown) * base.present
        self.likelihood = np.stack([yes, 1 - base.unknown - yes, np.full_like(yes, base.unknown)], axis=-1)
        """(D, S, 3)."""
        # Of question and reply, 5 words each; the diagnosis needs 2 before the horizon.
        most = min(task.max_turns - 1, (task.horizon - 2) // 5, len(self.symptoms))
        states = sum(comb(len(self.symptoms), size) * 3**size for size in range(most + 1))
        if states > MOST_STATES:
            raise NotFound(
                f"after the complaint {base.symptoms[complaint]!r} there are {states:,} states of knowledge, and more "
                f"than {MOST_STATES:,} are not looked at; give fewer max_turns, or a smaller knowledge base."
            )
        self.choices: dict[Subset, np.ndarray] = {}
        deeper: dict[Subset, np.ndarray] = {}
        for size in range(most, -1, -1):
            deeper = {asked: self._best(asked, deeper) for asked in combinations(self.symptoms, size)}
        self.expected = deeper[()]

    def _best(self, asked: Subset, deeper: Mapping[Subset, np.ndarray]) -> np.ndarray:
        """(3, 3, …, 3): reward, questions and useful questions of the best doctor who has asked about these symptoms,
        by the answers, times their probability."""
        joint = self.weight
        for symptom in asked:
            likelihood = self.likelihood[:, symptom].reshape(-1, *[1] * (joint.ndim - 1), 3)
            joint = joint[..., None] * likelihood
        mass = joint.sum(0)
        best = np.stack([joint.max(0), np.zeros_like(mass), np.zeros_like(mass)])
        choice = np.full(mass.shape, DIAGNOSE, dtype=np.int16)
        excess = self.task.penalty["excess"] if len(asked) >= self.task.free_questions else 0.0
        for symptom in self.symptoms if deeper else ():
            if symptom in asked:
                continue
            place = bisect(asked, symptom)
            after = deeper[(*asked[:place], symptom, *asked[place:])].sum(axis=1 + place)
            relevant = self._is_relevant(joint, symptom)
            price = excess + self.task.penalty["irrelevant"] * ~relevant
            asking = np.stack([after[0] - price * mass, after[1] + mass, after[2] + relevant * mass])
            better = asking[0] > best[0] + TIE * mass
            best, choice = np.where(better, asking, best), np.where(better, np.int16(symptom), choice)
        self.choices[asked] = choice
        return best

    def _is_relevant(self, joint: np.ndarray, symptom: int) -> np.ndarray:
        """Does the symptom tell apart the diseases that are still possible? By the answers; as
        `KnowledgeBase.is_relevant`."""
        present = self.present[:, symptom].reshape(-1, *[1] * (joint.ndim - 1))
        possible = joint > 0
        return np.where(possible, present, -np.inf).max(0) > np.where(possible, present, np.inf).min(0)
