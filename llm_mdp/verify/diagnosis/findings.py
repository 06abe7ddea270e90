"""`diagnose`: why an estimator is not unbiased, what repairs it, and the smallest instance that shows it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.instance_files import instance_to_dict
from llm_mdp.exact.instances import Instance, random_instance
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.own import UsageError, is_own
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.check import check_interface, load_estimator, with_group_size
from llm_mdp.verify.counterexamples import smallest_instance
from llm_mdp.verify.diagnosis.black_box import BlackBox, Weights
from llm_mdp.verify.diagnosis.examine import DRAWING, examine
from llm_mdp.verify.diagnosis.subject import Found
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

MAX_SHOWN = 60_000
"""Groups of responses up to which an instance is used as it is given."""
_OF_DRAWING = tuple(kind for kind, _, _ in DRAWING.values())
BENCHES = ((3, 3), (2, 3), (2, 2))
"""V and T of the instances that are used instead."""
TRIES = 6
"""Instances tried of each shape for a counter-example."""
VISIBLE = 0.05
"""A counter-example shows at least this relative bias, if any found does."""


@dataclass(frozen=True)
class Finding:
    """One fault, as an intervention showed it."""

    kind: str
    words: str
    remedy: str
    """In words; empty: none is known here."""
    verdict_after: str | None
    """The verdict when this alone is repaired; None: there is no repair to try."""
    bias_after: float | None
    """The relative bias that is then left."""


@dataclass(frozen=True)
class Repaired:
    """What is certified, exactly, once these findings are repaired."""

    kinds: tuple[str, ...]
    verdict: str
    relative_bias: float | None
    scale: float | None
    cosine: float | None


@dataclass(frozen=True)
class CounterExample:
    """The smallest instance found with the same verdict."""

    instance: Instance
    group_size: int
    certificate: Certificate

    @property
    def words(self) -> str:
        mdp = self.instance.mdp
        size = f"V = {mdp.vocab_size}, T = {mdp.horizon}, γ = {mdp.gamma:g}, K = {self.group_size}"
        return f"{size}: {self.certificate}"

    def to_json(self) -> dict[str, Any]:
        """With the instance as `instance_from_dict` reads it."""
        return {"group_size": self.group_size, "words": self.words, "instance": instance_to_dict(self.instance)}


@dataclass(frozen=True)
class Diagnosis:
    """Why an estimator is not unbiased."""

    name: str
    instance: str
    """On which instance the figures are."""
    certificate: Certificate | None
    """None: it could not be certified, see `note`."""
    findings: tuple[Finding, ...]
    repairs: tuple[Repaired, ...]
    """Every combination that was certified, the smallest first."""
    counter_example: CounterExample | None
    note: str = ""
    """What could not be found out."""

    @property
    def cure(self) -> Repaired | None:
        """The smallest combination of repairs that is unbiased; None: none is."""
        return next((each for each in self.repairs if each.verdict == "unbiased"), None)

    @property
    def direction(self) -> Repaired | None:
        """The smallest combination that is proportional, if it needs less than the cure; None: none does."""
        most = len(self.cure.kinds) if self.cure else len(self.findings) + 1
        return next((r for r in self.repairs if r.verdict == "proportional" and len(r.kinds) < most), None)

    @property
    def lines(self) -> list[str]:
        """In words, a line a fact."""
        lines = []
        for finding in self.findings:
            after = "" if finding.verdict_after is None else f"; repaired alone: {_after(finding)}"
            remedy = f" → {finding.remedy}" if finding.remedy else ""
            lines.append(f"{finding.kind}: {finding.words}{remedy}{after}")
        if not self.findings and not self.note and self.certificate is not None:
            fine = self.certificate.verdict == "unbiased"
            lines.append("no fault found" if fine else "none of the known kinds of fault was found in its weights")
        for repaired in (self.direction, self.cure):
            if repaired is not None and repaired.kinds:
                what = " and ".join(repaired.kinds)
                scale = "" if repaired.verdict == "unbiased" else f", scale {repaired.scale:.4g}"
                lines.append(f"with {what} repaired it is {repaired.verdict}{scale}, exactly")
        unrepaired = self.certificate is not None and self.certificate.verdict != "unbiased" and self.cure is None
        if self.findings and unrepaired:
            tried = "no repair makes it unbiased, alone or with the others" if self.repairs else "no repair was tried"
            lines.append(f"{tried}: there is more to it, or it is none of the known kinds")
        if self.note:
            lines.append(self.note)
        if self.counter_example is not None:
            lines.append(f"smallest counter-example found: {self.counter_example.words}")
        return lines

    def __str__(self) -> str:
        """The verdict, and a line a fact."""
        verdict = f"{self.certificate} (on {self.instance})" if self.certificate else "not certified"
        return "\n".join([f"{self.name}: {verdict}", *(f"  {line}" for line in self.lines)])

    def to_json(self) -> dict[str, Any]:
        """As in the JSON of `llm-mdp verify`."""
        example = self.counter_example
        return {
            "name": self.name,
            "instance": self.instance,
            "lines": self.lines,
            "findings": [asdict(finding) for finding in self.findings],
            "repairs": [asdict(repaired) | {"kinds": list(repaired.kinds)} for repaired in self.repairs],
            "counter_example": example and example.to_json(),
            "note": self.note,
        }


def diagnose(
    estimator: Estimator | str,
    instance: Instance | None = None,
    *,
    counter_example: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Diagnosis:
    """Why an estimator is biased or merely proportional, found by intervention: it is shown other rewards, other
    lengths and other continuations on an instance small enough to enumerate, and what its weights do then says what is
    wrong. Each repair that is known for what was found is tried, alone and with the others, and certified exactly.

        print(diagnose("my_estimator.py:Mine"))

    Args:
        estimator: an object, or FILE.py:CLASS.
        instance: where it was found biased; None, or one with too many groups: a random one, V = 3, T = 3, γ = 0.9.
        counter_example: look for the smallest instance with the same verdict, too.
        progress: called with what is done next.

    Raises:
        EstimatorError: if it is no estimator at all (`check_interface`).
        UsageError: if there is no such file or class.
        TooLarge: if its groups are too large to enumerate on any instance.
    """
    if isinstance(estimator, str):
        if not is_own(estimator):
            raise UsageError(f"{estimator!r} is no FILE.py:CLASS; the ledger says why its own rows are biased.")
        estimator = load_estimator(estimator)
    check_interface(estimator)
    name = type(estimator).__name__
    problem = bench(estimator.group_size, instance)
    place = problem.instance.name or "a random instance"
    progress("interventions")
    try:
        box = BlackBox(estimator, problem)
        box.check_meeting("worlds")
        mixed = _mixed_prompts(box)
        true = exact_certificate(estimator, problem.enumeration, problem.target("reward"), problem.magnitude("reward"))
    except EstimatorError as error:
        return Diagnosis(name, place, None, (Finding("mixed-worlds", str(error), "", None, None),), (), None)
    except Exception as error:  # whatever a user's own code raises
        return Diagnosis(name, place, None, (), (), None, f"it cannot be run here ({type(error).__name__}: {error})")
    try:
        found = examine(box)
        plain = box.certificate(box)
        if plain.verdict not in ("unbiased", "undecided"):
            found = _served(box, found) or found
        note = _unlike(plain, true, found)
    except Exception as error:
        found, note = [], f"it could not be shown other rewards and lengths ({type(error).__name__}: {error})"
    if true.verdict == "unbiased" and instance not in (None, problem.instance):
        note = f"on {place} it is unbiased; the instance given is too short, or has too many groups, to look at all"
    progress("repairs")
    repairs = [] if true.verdict == "unbiased" or note else _certified(box, found)
    alone = {each.kinds: each for each in repairs}
    findings = [_finding(each, alone) for each in found]
    example = None
    if counter_example and true.verdict in ("biased", "proportional"):
        progress("counter-example")
        example = smallest(estimator, true)
    return Diagnosis(name, place, true, (*mixed, *findings), tuple(repairs), example, note)


def bench(group: int, instance: Instance | None) -> Problem:
    """The instance given if all its groups of this size can be looked at in seconds and tokens have a future (T > 2);
    else a random one, with the same number of tokens if that is so there.

    Raises:
        TooLarge: if there is none.
    """
    gamma, eos, shapes = 0.9, 0, BENCHES
    if instance is not None:
        mdp = instance.mdp
        if mdp.horizon > 2 and len(mdp.prompts) * mdp.tree.n_leaves**group <= MAX_SHOWN:
            return Problem(instance, max(group, 2))
        gamma, eos, shapes = mdp.gamma, None if mdp.eos is None else 0, ((mdp.vocab_size, 3), *BENCHES)
    for vocab_size, horizon in shapes:
        if PrefixTree(vocab_size, eos, horizon).n_leaves ** group <= MAX_SHOWN:
            name = f"V={vocab_size} T={horizon} γ={gamma:g}"
            made = random_instance(vocab_size, horizon, gamma=gamma, eos=eos, seed=1, name=name)
            return Problem(made, max(group, 2))
    raise TooLarge(
        f"groups of {group} responses are too many to enumerate on the smallest instance; give the class a smaller "
        "group_size for the diagnosis."
    )


def _mixed_prompts(box: BlackBox) -> list[Finding]:
    try:
        box.check_meeting("prompts")
    except EstimatorError as error:
        words = str(error).removeprefix(f"{type(box.estimator).__name__} ")
        return [Finding("mixed-prompts", words, "", None, None)]
    return []


def _served(box: BlackBox, found: list[Found]) -> list[Found]:
    """Does it become unbiased when it is served exact values, or branches of the policy's own?"""
    for asked, option, kind, words, remedy in (
        ("values", "exact_values", "values", "a critic's values stand in for the reward, so its errors enter",
         "a better critic, or all of the reward to every token (λ = 1)"),
        ("tempered branches", "own_branches", "branches", "branches are drawn at another temperature than the policy's "
         "own, and stand in for the reward", "draw branches from the policy itself"),
    ):  # fmt: skip
        changed = box.changed(**{option: True})
        if asked in box.asked and box.certificate(changed).verdict == "unbiased":
            of_drawing = [each for each in found if each.kind in _OF_DRAWING]
            return [*of_drawing, Found(kind, words, remedy, lambda weights, changed=changed: changed)]
    return []


def _unlike(plain: Certificate, true: Certificate, found: list[Found]) -> str:
    """A sentence if asking it world by world does not give the bias that is to be explained."""
    if true.relative_bias is None or plain.relative_bias is None or any(each.kind in _OF_DRAWING for each in found):
        return ""
    if abs(plain.relative_bias - true.relative_bias) <= 1e-6 * max(1.0, true.relative_bias):
        return ""
    return "its weights are not affine in the rewards of branches, so no repair could be tried"


def _certified(box: BlackBox, found: list[Found]) -> list[Repaired]:
    """Every combination of repairs, the smallest first. What was repaired by asking anew is part of all."""
    forced = tuple(each.kind for each in found if each.kind in _OF_DRAWING)
    chosen = [each for each in found if each.repair is not None]
    certified = []
    for size in range(0 if forced else 1, len(chosen) + 1):
        for some in combinations(chosen, size):
            if any(each.last and chosen.index(each) >= len(some) for each in some):
                continue
            steps: list[Callable[[Weights], Weights]] = [each.repair for each in some if each.repair is not None]
            start: Weights = box
            certificate = box.certificate(reduce(lambda weights, step: step(weights), steps, start))
            certified.append(
                Repaired(
                    (*forced, *(each.kind for each in some)),
                    certificate.verdict,
                    certificate.relative_bias,
                    certificate.scale,
                    certificate.cosine,
                )
            )
    return certified


def _finding(found: Found, alone: dict[tuple[str, ...], Repaired]) -> Finding:
    repaired = alone.get((found.kind,))
    verdict, bias = (None, None) if repaired is None else (repaired.verdict, repaired.relative_bias)
    return Finding(found.kind, found.words, found.remedy, verdict, bias)


def _after(finding: Finding) -> str:
    if finding.verdict_after in ("unbiased", "undecided") or finding.bias_after is None:
        return str(finding.verdict_after)
    return f"{finding.verdict_after}, relative bias {finding.bias_after:.3g}"


def smallest(estimator: Estimator, found: Certificate) -> CounterExample | None:
    """The smallest instance, in the fewest and roundest numbers, with the same verdict, and the smallest groups where
    their size is a field; None: none was found among small whole numbers."""
    sizes = [estimator.group_size]
    if estimator.group_size > 2 and with_group_size(estimator, 2) is not None:
        sizes = [*range(2, min(estimator.group_size, 4)), estimator.group_size]
    for visible in (VISIBLE, 0.0):
        for size in sizes:
            smaller = estimator if size == estimator.group_size else with_group_size(estimator, size)
            example = None if smaller is None else _smallest_of(smaller, found.verdict, visible)
            if example is not None:
                return example
    return None


def _smallest_of(estimator: Estimator, verdict: str, visible: float) -> CounterExample | None:
    """The smallest instance with this verdict and a relative bias above `visible`, in direction too if it is biased."""

    def certified(instance: Instance) -> Certificate | None:
        problem = Problem(instance, max(estimator.group_size, 2))
        target, magnitude = problem.target("reward"), problem.magnitude("reward")
        try:
            return exact_certificate(estimator, problem.enumeration, target, magnitude)
        except (ValueError, RuntimeError, AssertionError):  # it may be tied to another instance
            return None

    def shows(instance: Instance) -> bool:
        seen = certified(instance)
        if seen is None or seen.verdict != verdict or seen.relative_bias is None or seen.cosine is None:
            return False
        turned = verdict == "proportional" or seen.cosine < (1 - visible**2) ** 0.5
        return seen.relative_bias > visible and turned

    instance = smallest_instance(shows, tries=TRIES)
    certificate = None if instance is None else certified(instance)
    if instance is None or certificate is None:
        return None
    return CounterExample(instance, estimator.group_size, certificate)
