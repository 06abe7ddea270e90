"""The audit: every setting of a library, or one function of somebody's, on several instances."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llm_mdp.audit.adapter import FunctionEstimator, advantages_of, loss_of, name_of
from llm_mdp.audit.batches import PROMPTS, WithBatch, with_batch
from llm_mdp.audit.certify import adapt, certificate_of, is_function
from llm_mdp.audit.library import LIBRARIES, YOURS, Library, Setting, choose, find_library
from llm_mdp.audit.problems import RIGHT_OR_WRONG
from llm_mdp.audit.problems import instances as default_instances
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instances import Instance
from llm_mdp.own import UsageError, is_own, load
from llm_mdp.verify.certificate import Certificate, worst
from llm_mdp.verify.certify import certified
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.targets import parse_target
from llm_mdp.verify.weights import EstimatorError

Make = Callable[[Problem], Estimator]


@dataclass(frozen=True)
class Row:
    """What one setting is called, and what it is."""

    library: str
    version: str
    setting: Setting
    target: str
    group_size: int
    prompts: tuple[int, ...]
    problems: Mapping[str, Certificate]
    """Of the whole loss (of the advantages, where there is no loss), by instance, at the first number of prompts."""
    advantages: Mapping[str, Certificate] | None
    """Of the advantages alone, under the sum; None: there is one certificate only."""
    batch: WithBatch
    seconds: float

    @property
    def verdict(self) -> str:
        """The worst over the instances."""
        return _worst(self.problems)

    @property
    def finding(self) -> str:
        """What it is, in one sentence."""
        said = _words(self.problems, self.target)
        if self.advantages is not None and _worst(self.advantages) != self.verdict:
            said += f"; its advantages alone, under the sum, are {_worst(self.advantages)}"
        return f"{said}."

    def to_json(self) -> dict[str, Any]:
        """As a row of `llm-mdp audit --json`."""
        setting = self.setting
        advantages = None if self.advantages is None else _figures(self.advantages)
        return {
            "library": self.library,
            "version": self.version,
            "option": setting.name,
            "claim": setting.claim,
            "place": setting.place,
            "target": self.target,
            "group_size": self.group_size,
            "prompts": list(self.prompts),
            "verdict": self.verdict,
            "problems": _figures(self.problems),
            "advantages": advantages,
            "with_batch": self.batch.to_json(),
            "finding": self.finding,
            "repair": setting.repair,
            "since": setting.since,
            "default": setting.is_default,
            "note": setting.note,
            "seconds": round(self.seconds, 2),
        }


def audit(
    what: str | Callable[..., Any] | Estimator,
    options: Sequence[str] = (),
    *,
    target: str | None = None,
    group_size: int = 3,
    prompts: Sequence[int] = PROMPTS,
    instances: Mapping[str, Instance] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Row]:
    """Certificates of a library's settings, or of a function.

    Args:
        what: a library (`LIBRARIES`), FILE.py:FUNCTION, a function (see `certify`), or an estimator.
        options: names of settings; none: all.
        target: what the gradient should be that of; None: what each setting's name promises.
        group_size: K ≥ 2.
        prompts: numbers of prompts in one update, the first for the certificates, all to see whether an error dies with
            the batch.
        instances: what to audit on, by name; None: dense random rewards, the same with two prompts, right or wrong.
        progress: called before every setting with its number (from 1), how many there are, and its name.

    Raises:
        UsageError: no library or setting of this name; it is not installed; its layout is unknown.
        ValueError: for a target, group size or number of prompts that is none.
    """
    if target is not None:
        parse_target(target)
    if not prompts or min(prompts) < 1:
        raise ValueError(f"prompts is {tuple(prompts)!r}; give numbers of prompts, each at least 1.")
    chosen = default_instances() if instances is None else instances
    problems = {name: Problem(instance, group_size) for name, instance in chosen.items()}
    rows = []
    subjects = list(_subjects(what, options))
    for number, subject in enumerate(subjects, 1):
        if progress is not None:
            progress(number, len(subjects), subject.setting.name)
        rows.append(_row(subject, problems, target, tuple(prompts)))
    return rows


@dataclass(frozen=True)
class _Subject:
    """A setting with what makes estimators of it."""

    library: str
    version: str
    setting: Setting
    whole: Make
    alone: Make | None


def _subjects(what: str | Callable[..., Any] | Estimator, options: Sequence[str]) -> list[_Subject]:
    if isinstance(what, str) and not is_own(what):
        library = find_library(what)
        library.warning()
        settings = choose(library.settings(), options, library.name)
        return [_of_library(library, setting) for setting in settings]
    return [_of_yours(load(what) if isinstance(what, str) else what)]


def _of_library(library: Library, setting: Setting) -> _Subject:
    advantages, alone = setting.advantages, None
    if setting.loss is not None and advantages is not None:
        alone = partial(advantages_of, advantages, name=setting.name)
    return _Subject(library.name, library.version() or "", setting, partial(whole_of, setting), alone)


def whole_of(setting: Setting, problem: Problem) -> FunctionEstimator:
    """A setting's loss as an estimator; its advantages, where it has no loss."""
    if setting.loss is not None:
        return loss_of(setting.loss, problem, name=setting.name)
    assert setting.advantages is not None
    return advantages_of(setting.advantages, problem, name=setting.name)


def _of_yours(thing: Any) -> _Subject:
    if isinstance(thing, type):
        thing = thing()
    if not is_function(thing) and not isinstance(thing, Estimator):
        known = ", ".join(LIBRARIES)
        raise UsageError(f"{thing!r} is no function and no estimator; audit one, or a library: {known}.")
    name = name_of(thing)
    first_line = (getattr(thing, "__doc__", None) or "").strip().split("\n")[0]
    setting = Setting(name, first_line, "", loss=None, advantages=lambda batch: batch.logp)

    def make(problem: Problem) -> Estimator:
        if isinstance(thing, Estimator):
            return replace(thing, group_size=problem.group_size)
        return adapt(thing, problem)

    return _Subject(YOURS, "", setting, make, None)


def _row(subject: _Subject, problems: Mapping[str, Problem], target: str | None, prompts: tuple[int, ...]) -> Row:
    begun = time.monotonic()
    aim = subject.setting.target if target is None else target
    alone = subject.alone
    whole = {name: _certificate(subject.whole, problem, aim, prompts[0]) for name, problem in problems.items()}
    advantages = None
    if alone is not None:
        advantages = {name: _certificate(alone, problem, aim, prompts[0]) for name, problem in problems.items()}
    biased = [name for name, each in whole.items() if each.verdict == "biased"]
    rewards = RIGHT_OR_WRONG if biased == [RIGHT_OR_WRONG] else "dense"
    batch = with_batch(subject.whole, next(iter(problems.values())), aim, prompts, rewards, bool(biased))
    return Row(
        subject.library,
        subject.version,
        subject.setting,
        aim,
        next(iter(problems.values())).group_size,
        prompts,
        whole,
        advantages,
        batch,
        time.monotonic() - begun,
    )


def _certificate(make: Make, problem: Problem, target: str, prompts: int) -> Certificate:
    """What was found, or why nothing was, in words."""
    try:
        estimator = make(problem)
        if isinstance(estimator, FunctionEstimator):
            return certificate_of(estimator, problem, target, prompts=prompts)
        return certified(estimator, problem, target, prompts=prompts)
    except (EstimatorError, UsageError, TooLarge) as error:
        return Certificate("undecided", None, None, None, None, reason=str(error))


def _worst(certificates: Mapping[str, Certificate]) -> str:
    return worst(each.verdict for each in certificates.values())


def _words(certificates: Mapping[str, Certificate], target: str) -> str:
    """A row's verdict with the figures that bear it."""
    verdict = _worst(certificates)
    same = {name: each for name, each in certificates.items() if each.verdict == verdict}
    where = "" if len(same) == len(certificates) else f" on {' and '.join(same)}"
    if verdict == "unbiased":
        return f"the gradient of {target}, exactly"
    if verdict == "undecided":
        reasons = dict.fromkeys(str(each.reason).rstrip(".") for each in same.values())
        return f"undecided{where}: {'; '.join(reasons)}"
    if verdict == "proportional":
        scales = [each.scale for each in same.values() if each.scale is not None]
        low, high = f"{min(scales):.4g}", f"{max(scales):.4g}"
        return f"the gradient of {target} times {low if low == high else f'{low} to {high}'}{where}"
    cosines = [each.cosine for each in same.values() if each.cosine is not None]
    others = "" if not where else f", elsewhere {_worst({k: v for k, v in certificates.items() if k not in same})}"
    return f"not the gradient of {target}{where}: cosine {min(cosines):.4g}{others}"


def _figures(certificates: Mapping[str, Certificate]) -> dict[str, dict[str, Any]]:
    names = ("relative_bias", "scale", "cosine", "trace_covariance")
    return {
        name: {
            "verdict": each.verdict,
            **{figure: _finite(getattr(each, figure)) for figure in names},
            "method": None if each.method is None else each.method.name,
            "reason": each.reason,
        }
        for name, each in certificates.items()
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
