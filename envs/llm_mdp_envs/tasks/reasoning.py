"""Any reasoning-gym data set, or a mix of them: over a hundred kinds of puzzle with a score for every answer."""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from llm_mdp.own import did_you_mean
from llm_mdp_envs.arguments import check_finite, check_seed, check_whole, shown
from llm_mdp_envs.task import Scores
from llm_mdp_envs.tasks.answers import answer_in_tags
from llm_mdp_envs.tasks.graders import Grader
from llm_mdp_envs.tasks.numbers import last_number
from llm_mdp_envs.text import Reply, TextTask, require
from llm_mdp_envs.tokenizers import load_tokenizer

MOST_QUESTIONS = 10**9
"""Of one data set; they are made when they are asked."""
INSTRUCTIONS = {
    "tags": "\nGive the final answer between <answer> and </answer>.",
    "number": "\nGive the final number at the end.",
    "raw": "\nGive the answer and nothing else.",
}
TWO_NUMBERS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
"""Settings of chain_sum that a small model can begin with."""


def begun_sum(question: str) -> str:
    """How the answer to "… arithmetic problem: 47 + 18 =" begins: 47 + 18 =."""
    return question.rpartition(": ")[2]


def after_the_sum(reply: str) -> str | None:
    """The last number behind the first "=", which `begun_sum` wrote; None if there is none. Without a number of its own
    a reply gives none, though its beginning has two."""
    return last_number(reply.partition("=")[2])


class ReasoningGym(TextTask):
    """Puzzles of reasoning-gym, graded by its own `score_answer`.

    The answer is taken out of the reply first: reasoning-gym compares whole strings. Where the right answer is a
    number, "18 eggs" and "**18**" are 18, and another number is worth 0, though reasoning-gym pays a part of the reward
    for 42 where 2 is right. Some of its scorers evaluate the answer as Python; here they run in a process of their own
    with a time limit, and evaluate arithmetic only (`llm_mdp_envs.tasks.graders`).

    With nothing said, it asks what a model of a hundred million parameters can begin with: `47 + 18 =`, in the chat
    template, the answer begun with these words, so that the next number decides within 16 tokens.

    Args:
        dataset: None: sums and differences of two numbers of two digits (`chain_sum` with the settings `TWO_NUMBERS`);
            the name of a data set ("chain_sum"), as reasoning-gym has it; a mix, as it writes one: [{"name":
            "chain_sum", "weight": 2, "config": {"max_terms": 3}}, …], weight 1 and config {} if left out; or a data
            set object (its class importable, not from a script).
        settings: what `reasoning_gym.create_dataset` takes besides name, size and seed. For a single name, or for
            chain_sum where no data set is named.
        size: how many different puzzles there are. They are made when asked.
        seed: of the data set. The environment's own seed chooses among its puzzles.
        extract: how the answer is found: "tags" (in the last `<answer>…</answer>`), "number" (the last one), "raw" (all
            of the reply, spaces around it removed), or a function from the reply to the answer or None. A reply without
            one is worth what reasoning-gym gives for None. None: the last number behind the sum that began the answer,
            where neither a data set nor a beginning of one's own is given (with the latter, "number"); else "tags".
        instruction: what the question ends with; None: a sentence that fits `extract`.
        horizon: most response tokens; None: 16 where the answer is begun, else 256.
        chat: put the question into the tokenizer's chat template; None: if it has one.
        answer_prefix: see `TextTask`; None: the sum itself ("47 + 18 =") where neither data set nor `extract` is given,
            else nothing.
        seconds: most CPU time for scoring one reply. A reply beyond it is worth 0, as is one on which the scorer raises
            an exception.
        others: see `TextTask`.

    Raises:
        ImportError: if reasoning-gym is not installed.
        ValueError: naming the data set, the setting or the argument, and what is possible.
    """

    separates: ClassVar[str] = "reasoning: whether a language model learns procedural puzzles with verifiable answers"

    def __init__(
        self,
        dataset: Any = None,
        settings: Mapping[str, Any] | None = None,
        *,
        size: int = 10_000,
        seed: int = 0,
        extract: str | Callable[[str], str | None] | None = None,
        instruction: str | None = None,
        seconds: float = 5.0,
        tokenizer: Any = None,
        horizon: int | None = None,
        prompt_length: int = 1024,
        chat: bool | None = None,
        system: str | None = None,
        answer_prefix: str | Callable[[Any], str] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ):
        begun = dataset is None and extract is None
        tokenizer = load_tokenizer(tokenizer)
        super().__init__(
            tokenizer,
            horizon=(16 if begun else 256) if horizon is None else horizon,
            prompt_length=prompt_length,
            chat=bool(getattr(tokenizer, "chat_template", None)) if chat is None else chat,
            system=system,
            answer_prefix=(begun_sum if begun else "") if answer_prefix is None else answer_prefix,
            template_options=template_options,
        )
        if dataset is None:
            dataset, settings = "chain_sum", TWO_NUMBERS if settings is None else settings
        if extract is None:
            extract = (after_the_sum if answer_prefix is None else "number") if begun else "tags"
        require("reasoning_gym", "reasoning", "ReasoningGym")
        if isinstance(extract, type) or not (
            callable(extract) or (isinstance(extract, str) and extract in EXTRACTIONS)
        ):
            known = ", ".join(map(repr, EXTRACTIONS))
            raise ValueError(f"extract is {shown(extract)}; choose {known} or give a function.")
        if instruction is not None and not isinstance(instruction, str):
            raise ValueError(f"instruction is {shown(instruction)}; it must be a text or None.")
        size, seed = check_whole("size", size, 1, MOST_QUESTIONS), check_seed(seed)
        self.extract = extract if callable(extract) else EXTRACTIONS[extract]
        self.instruction = (
            instruction if instruction is not None else ("" if callable(extract) else INSTRUCTIONS[extract])
        )
        self.dataset, self._recipe = make_dataset(dataset, settings, size=size, seed=seed)
        self._grader = Grader("reasoning", seconds=seconds)

    def best_reward(self) -> float:
        """1, what reasoning-gym's own `score_answer` gives a right answer."""
        return 1.0

    def draw(self, generator: np.random.Generator) -> tuple[str, Any]:
        entry = self.dataset[int(generator.integers(len(self.dataset)))]
        return entry["question"] + self.instruction, entry

    def grade(self, replies: Sequence[Reply]) -> Scores:
        return Scores(np.array([self._grade_one(reply) for reply in replies], dtype=np.float64))

    def _grade_one(self, reply: Reply) -> float:
        answer, right = self.extract(reply.text), reply.secret["answer"]
        if isinstance(answer, str) and isinstance(right, str) and NUMBER.fullmatch(right.strip()):
            numbers = NUMBER.findall(answer.replace(",", ""))
            if len(numbers) == 1 and (read := last_number(answer)) is not None:
                if Fraction(read) != Fraction(right.strip()):
                    return 0.0
                answer = right
        return self._grader(self._recipe, answer, reply.secret) or 0.0


NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)


def make_dataset(dataset: Any, settings: Mapping[str, Any] | None, *, size: int, seed: int) -> tuple[Any, bytes]:
    """A reasoning-gym data set from what `ReasoningGym` takes, and how the grading process gets the same one: a pickle
    of its name and settings (some data sets cannot be pickled themselves), or of the data set. Raises ValueError, in
    words."""
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.dataset import ProceduralDataset

    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        raise ValueError(f"settings is {shown(settings)}; it must be a dict of settings' names and values, or None.")
    if isinstance(dataset, str):
        return _create(dataset, {**(settings or {}), "size": size, "seed": seed})
    if settings is not None:
        raise ValueError("settings belong to a data set given by its name; in a mix each entry has its own `config`.")
    if isinstance(dataset, ProceduralDataset):
        return dataset, _pickle(dataset)
    if not isinstance(dataset, list | tuple) or not dataset:
        raise ValueError(
            f'dataset is {shown(dataset)}; give a name, a list of {{"name": …, "weight": …, "config": …}}, or a data '
            f"set."
        )
    specs = []
    for number, part in enumerate(dataset):
        if not isinstance(part, Mapping) or not {"name"} <= set(part) <= {"name", "weight", "config"}:
            raise ValueError(
                f'dataset[{number}] is {shown(part)}; it must have "name" and may have "weight" and "config".'
            )
        weight = check_finite(f"the weight of dataset[{number}]", part.get("weight", 1))
        if weight <= 0:
            raise ValueError(f"dataset[{number}] ({part['name']}) has weight {part['weight']!r}; it must be above 0.")
        _create(part["name"], {**part.get("config", {}), "size": size, "seed": seed})  # so that errors name the part
        specs.append(DatasetSpec(part["name"], float(part.get("weight", 1)), dict(part.get("config", {}))))
    return _create("composite", {"datasets": specs, "size": size, "seed": seed})


def _create(name: str, settings: dict[str, Any]) -> tuple[Any, bytes]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if not isinstance(name, str) or name not in DATASETS:
        hint = did_you_mean(str(name), DATASETS, "reasoning_gym.factory.DATASETS holds all names.")
        raise ValueError(f"dataset: reasoning-gym has no data set {shown(name)}; {hint}")
    known = [field.name for field in fields(DATASETS[name][1])]
    for setting in settings:
        if setting not in known:
            raise ValueError(
                f"settings: the data set {name!r} has no setting {shown(setting)}; it has {', '.join(known)}."
            )
    try:
        return reasoning_gym.create_dataset(name, **settings), pickle.dumps((name, settings))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"reasoning-gym refuses these settings of {name!r}: {error}. They are {settings!r}."
        ) from error


def _pickle(dataset: Any) -> bytes:
    if type(dataset).__module__ == "__main__":
        raise ValueError(
            f"the class {type(dataset).__name__} is in the main script, which grading cannot import; move it to a "
            f"module."
        )
    try:
        return pickle.dumps(dataset)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ValueError(
            f"this {type(dataset).__name__} cannot be pickled for the grading process ({error}); give its name."
        ) from error


EXTRACTIONS: dict[str, Callable[[str], str | None]] = {"tags": answer_in_tags, "number": last_number, "raw": str.strip}
