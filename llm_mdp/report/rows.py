"""The ledger as rows: one claim on one or several instances, and how its figures are written. Shared by all reports."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

EXACT = 1e-9
"""Relative bias below which an exact certificate says "unbiased"; smaller figures are rounding noise and shown as
such."""

SYMBOLS = {
    "unbiased": "✓",
    "proportional": "∝",
    "biased": "✗",
    "holds": "✓",
    "fails": "✗",
    "undecided": "?",
    "not computed": "–",
}
"""What stands before a verdict, so that it can be read without colour."""

TITLES = {"theorems": "Theorems", "algorithms": "Algorithms", "practices": "Common practices"}
"""Groups of claims in the order in which they are shown."""

FINDINGS = {
    "agrees": ("agrees", "agree"),
    "misprint": ("is a misprint", "are misprints"),
    "stronger than stated": ("holds more strongly than stated", "hold more strongly than stated"),
    "differs": ("differs", "differ"),
}
"""What was found of statements of the paper, and how one or several are said to do so."""

PRACTICE = "practice"
"""The finding of rows of which the paper does not speak."""

INTERVALS = {"relative_bias": "bias_interval", "scale": "scale_interval", "cosine": "cosine_interval"}
"""Where a claim's object has the confidence interval of a sampled figure."""

BY = {"by_group_size": "K", "by_prompts": "P"}
"""Where a claim's object has what it is at several sizes, and the letter of the size."""

NOT_RIGHT = ("biased", "fails")
"""Verdicts that a single instance is enough to show, the gravest first; what does not fit one instance is no law."""

Document = dict
"""Output of `llm-mdp verify --json`: one instance, or {"instances": [one instance, …]}."""


def tone(verdict: str) -> str:
    """CSS class of a verdict; the closed list of `SYMBOLS` keeps anything else out of the markup."""
    return f"is-{verdict.replace(' ', '-')}" if verdict in SYMBOLS else "is-undecided"


@dataclass(frozen=True)
class Span:
    """Smallest and largest value of a figure over the instances; None where it is defined on none of them."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class ClaimRow:
    """One claim on all instances."""

    id: str
    entries: tuple[tuple[str, dict], ...]
    """(instance name, the claim's object in the document), in the document's order."""

    @cached_property
    def verdicts(self) -> list[tuple[str, int]]:
        """Each verdict with the number of instances that have it, most frequent first."""
        return Counter(claim["verdict"] for _, claim in self.entries).most_common()

    @cached_property
    def verdict(self) -> str:
        """The most frequent verdict."""
        return self.verdicts[0][0]

    @property
    def gravest(self) -> str:
        """What can be said of all instances together: biased (or proportional) if it is so on one of them."""
        found = dict(self.verdicts)
        graver = (verdict for verdict in (*NOT_RIGHT, "undecided", "proportional") if verdict in found)
        return next(graver, self.verdict)

    @property
    def finding(self) -> str:
        """One of `FINDINGS`, or `PRACTICE`; empty for a user's own estimator."""
        return "" if self.lead["group"] == "yours" else self.lead.get("finding", PRACTICE)

    @property
    def paper(self) -> str:
        """What the paper says, in its words; empty where it does not speak of this."""
        return self.lead.get("paper", "")

    @property
    def sampled(self) -> bool:
        """Whether its figures are estimates, which are shown by their intervals."""
        return any(claim.get("samples") for _, claim in self.entries)

    @property
    def alone(self) -> "list[tuple[str, ClaimRow]]":
        """The row of each instance by itself."""
        return [(entry[0], ClaimRow(self.id, (entry,))) for entry in self.entries]

    @property
    def expected(self) -> str:
        """The verdicts expected, which may depend on the instance (gamma = 1 or not)."""
        return " or ".join(dict.fromkeys(claim["expected"] for _, claim in self.entries))

    @cached_property
    def contradictions(self) -> list[tuple[str, dict]]:
        """The entries whose verdict is not the expected one; of one that is as expected, the sizes at which it is
        not."""
        found = []
        for name, claim in self.entries:
            if claim["holds"] is False:
                found.append((name, claim))
                continue
            for by, letter in BY.items():
                wrong = [(size, one) for size, one in claim.get(by, {}).items() if one["holds"] is False]
                found += [(f"{name}, {letter} = {size}", claim | one) for size, one in wrong]
        return found

    @cached_property
    def status(self) -> str:
        """`contradiction`, `as expected`, `without expectation`, or `undecided` (computed on no instance, or not
        settled)."""
        if self.contradictions:
            return "contradiction"
        if self.expected == "report":
            return "without expectation"
        return "as expected" if any(claim["holds"] for _, claim in self.entries) else "undecided"

    @cached_property
    def lead(self) -> dict:
        """The claim's object whose words speak for the row: a contradiction if there is one, else a most frequent
        verdict."""
        candidates = self.contradictions or [entry for entry in self.entries if entry[1]["verdict"] == self.verdict]
        return candidates[0][1]

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is what it is; one reason for each verdict where the instances differ. Where it contradicts
        what nobody said, why that was expected."""
        wrong = self.contradictions and self.lead.get("claims_nothing")
        return [*self._reasons, unclaimed(self.gravest)] if wrong else self._reasons

    @property
    def _reasons(self) -> list[str]:
        if len(self.verdicts) == 1 or len({_reason(claim) for _, claim in self.entries}) == 1:
            return [_reason(self.lead)]
        first = {claim["verdict"]: _reason(claim) for _, claim in reversed(self.entries)}
        return [f"{verdict}: {first[verdict].removeprefix(f'{verdict}: ')}" for verdict, _ in self.verdicts]

    @property
    def repairs(self) -> list[str]:
        """The distinct repairs of what was found to need one."""
        wrong = [claim for _, claim in self.entries if claim["verdict"] not in ("undecided", "not computed")]
        return list(dict.fromkeys(claim["repair"] for claim in wrong if claim["repair"]))

    @property
    def diagnosis(self) -> dict | None:
        """Why a user's own estimator is not unbiased (`Diagnosis.to_json`), where it was looked for."""
        return next((claim["diagnosis"] for _, claim in self.entries if claim.get("diagnosis")), None)

    @property
    def certificate(self) -> str | None:
        """The weakest certificate of the instances, in words; None where exact figures say the same."""
        said = [entry for entry in self.entries if entry[1].get("certificate") and entry[1]["verdict"] != "undecided"]
        certified = [entry for entry in said if _in_words(entry[1])]
        if not certified:
            return None
        name, claim = max(certified, key=lambda entry: _weakness(entry[1]))
        return claim["certificate"] if len(self.entries) == 1 else f"{claim['certificate']} (weakest: {name})"

    @property
    def needed(self) -> str | None:
        """How many responses would settle what a sample left undecided, in words."""
        undecided = [claim for _, claim in self.entries if claim["verdict"] == "undecided"]
        known = [claim["needed"] for claim in undecided if claim.get("needed")]
        return f"about {max(known):,} responses would settle it" if known else None

    def span(self, key: str) -> Span:
        """Smallest and largest value of `key` over the instances; of sampled figures, of their intervals."""
        ends = [end for _, claim in self.entries for end in _ends(claim, key) if end is not None]
        return Span(min(ends), max(ends)) if ends else Span(None, None)


def _weakness(claim: dict) -> tuple[bool, float]:
    """What fails is weaker than anything that holds."""
    return claim["verdict"] == "fails", claim.get("bound") or claim.get("max_difference") or 0.0


def _reason(claim: dict) -> str:
    """Why the verdict is what it is: of an undecided one, what kept it from being another."""
    return claim.get("undecided") or claim["reason"] if claim["verdict"] == "undecided" else claim["reason"]


def _in_words(claim: dict) -> bool:
    """Does its certificate say more than its figures: a confidence, words alone, a coarser precision?"""
    return bool(claim.get("samples") or claim.get("precision") or claim["relative_bias"] is None)


def _ends(claim: dict, key: str) -> tuple[float | None, ...]:
    """The ends of a sampled figure's interval, nothing where it has none; an exact figure is one end."""
    if claim.get("samples") and key in INTERVALS:
        return tuple(claim.get(INTERVALS[key]) or ())
    if key == "tokens_to_signal" and claim["verdict"] not in ("unbiased", "proportional"):
        return ()
    return (claim.get(key),)


def named_instances(document: Document) -> list[tuple[str, dict]]:
    """The instances with distinct names. Raises ValueError if the document is no ledger."""
    instances = document.get("instances", [document])
    if not instances or not all("claims" in instance for instance in instances):
        raise ValueError(
            "the document has an instance without claims; give the JSON that `llm-mdp verify --json FILE` writes."
        )
    names = [instance.get("name") or "instance" for instance in instances]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    distinct = [f"{name} #{place}" if name in repeated else name for place, name in enumerate(names, 1)]
    return list(zip(distinct, instances))


def claim_rows(instances: list[tuple[str, dict]]) -> list[ClaimRow]:
    """One row a claim, in the order in which the document first names it."""
    entries: dict[str, list[tuple[str, dict]]] = {}
    for name, instance in instances:
        for claim_id, claim in instance["claims"].items():
            entries.setdefault(claim_id, []).append((name, claim))
    return [ClaimRow(claim_id, tuple(found)) for claim_id, found in entries.items()]


def grouped(rows: list[ClaimRow]) -> list[tuple[str, list[ClaimRow]]]:
    """(title, rows) of each group; groups that this module does not know come last under their own name."""
    groups = dict.fromkeys([*TITLES, *(row.lead["group"] for row in rows)])
    members = [(TITLES.get(group, group), [row for row in rows if row.lead["group"] == group]) for group in groups]
    return [(title, rows) for title, rows in members if rows]


def verdict_text(row: ClaimRow) -> str:
    """`unbiased`, or with several instances `unbiased 5/5` or `biased 3/5, unbiased 2/5`."""
    if len(row.entries) == 1:
        return row.verdict
    return ", ".join(f"{verdict} {count}/{len(row.entries)}" for verdict, count in row.verdicts)


def contradiction_text(row: ClaimRow) -> str:
    """What contradicts the expectation, and on which instances."""
    found = dict.fromkeys((claim["verdict"], claim["expected"]) for _, claim in row.contradictions)
    names = ", ".join(name for name, _ in row.contradictions)
    return "; ".join(f"{verdict}, but expected {expected}" for verdict, expected in found) + f" (on {names})"


def unclaimed(verdict: str) -> str:
    """Why "unbiased" was expected of a user's own estimator that says nothing of itself, and how it would say this
    verdict."""
    return f'it claims nothing, so unbiased was expected; `expected = "{verdict}"` in its class says otherwise'


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 999.5 <= abs(value) < 1e5:
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 999.5:
        return f"{value:#.3g}".rstrip(".")
    return _short_exponent(f"{value:.2e}")


def bias(value: float | None) -> str:
    """A relative bias; rounding noise is `<1e-9`, the threshold of the exact certificate."""
    return "<1e-9" if value is not None and value < EXACT else number(value)


def ratio(value: float | None) -> str:
    """A scale or a cosine: exact 0, 1, -1 as such, and what is only close to 1 shown as not equal to it (`1-4e-5`)."""
    if value is None or abs(value) > 10:
        return number(value)
    nearest = round(value)
    if abs(value - nearest) < EXACT:
        return str(nearest)
    if abs(nearest) == 1 and abs(value - nearest) < 1e-3:
        return f"{nearest}{_short_exponent(f'{value - nearest:+.0e}')}"
    return number(value)


def figure_text(row: ClaimRow, key: str) -> str:
    """A figure of a claim, as all reports write it: its range over the instances, or why there is none.

    Args: key: relative_bias, scale, cosine, tokens_to_signal, or another that a claim's object has.
    """
    span = row.span(key)
    if key == "tokens_to_signal" and span.low is None:
        return _no_signal(row)
    writes = {"relative_bias": number if row.sampled else bias, "scale": ratio, "cosine": ratio}
    return span_text(span, writes.get(key, number))


def _no_signal(row: ClaimRow) -> str:
    """Why no number of tokens makes the signal equal the noise."""
    scale = row.span("scale")
    if row.gravest not in NOT_RIGHT or scale.low is None or scale.high is None:
        return "–"
    return "no signal" if max(abs(scale.low), abs(scale.high)) < EXACT else "biased"


def span_text(span: Span, write=number) -> str:
    """`0.333`, or `0.312…0.441` where the instances differ in the digits shown."""
    low, high = write(span.low), write(span.high)
    return low if low == high else f"{low}…{high}"


def headline(rows: list[ClaimRow], *, name: bool = True) -> list[str]:
    """What was found of the paper's statements, of the field's practices, and of a user's own estimators, a sentence
    each. A finding counts where the run has the verdicts that it goes with.

    Args: name: the statements that do not simply agree, by their ids.
    """
    stated = [row for row in rows if row.finding in FINDINGS]
    practices = [row for row in rows if row.finding == PRACTICE]
    borne_out = [row for row in stated if row.status in ("as expected", "without expectation")]
    parts = []
    if stated:
        what = "statement" if len(stated) == 1 else "statements"
        found = []
        for finding, (one, several) in FINDINGS.items():
            ids = [row.id for row in borne_out if row.finding == finding]
            named = f" ({', '.join(ids)})" if name and finding != "agrees" else ""
            found += [f"{len(ids)} {one if len(ids) == 1 else several}{named}"] if ids else []
        rest = len(stated) - len(borne_out)
        found += [f"{rest} {'was' if rest == 1 else 'were'} not settled by this run"] if rest else []
        parts.append(f"Of {len(stated)} {what} of the paper, {_listed(found)}.")
    if practices:
        what = "practice" if len(practices) == 1 else "practices"
        counts = Counter(row.gravest for row in practices)
        found = [f"{counts[verdict]} {verdict}" for verdict in SYMBOLS if counts[verdict]]
        parts.append(f"{len(practices)} {what} of the field: {', '.join(found)}.")
    return [*parts, *(f"{row.id}: {row.gravest}." for row in rows if row.lead["group"] == "yours")]


def _listed(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def summary(rows: list[ClaimRow], instances: int) -> str:
    """How many claims were checked, how many are as expected, and which are not."""
    where = "1 instance" if instances == 1 else f"{instances} instances"
    claims = "1 claim" if len(rows) == 1 else f"{len(rows)} claims"
    parts = [f"{sum(row.status == 'as expected' for row in rows)} as expected"]
    for status in ("without expectation", "undecided", "contradiction"):
        ids = [row.id for row in rows if row.status == status]
        label = {"undecided": "not settled", "contradiction": "in contradiction"}.get(status, status)
        if ids:
            parts.append(f"{len(ids)} {label} ({', '.join(ids)})")
    return f"{claims} on {where}: {', '.join(parts)}."


def exit_meaning(rows: list[ClaimRow]) -> str:
    """What the exit status of `llm-mdp verify` says."""
    if any(row.contradictions for row in rows):
        return "Exit status 1: a computed verdict contradicts the expected one."
    if all(row.verdict == "not computed" for row in rows):
        return "Exit status 2: nothing could be computed."
    return "Exit status 0: no computed verdict contradicts the expected one."


def setting(instances: list[tuple[str, dict]]) -> list[tuple[str, str]]:
    """(name, values) of what was checked and how, each value once."""
    names = {
        "mode": "mode",
        "policy": "policy",
        "group_size": "group size",
        "beta": "β",
        "seed": "seed",
        "version": "llm-mdp",
    }
    values = {
        name: dict.fromkeys(str(x[key]) for _, x in instances if x.get(key) is not None) for key, name in names.items()
    }
    several = dict.fromkeys(str(prompts) for _, x in instances if (prompts := x.get("prompts", 1)) > 1)
    values["prompts of an update"] = several
    return [(name, ", ".join(distinct)) for name, distinct in values.items() if distinct]


def _short_exponent(text: str) -> str:
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"
