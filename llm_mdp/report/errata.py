"""The page "Errata and findings", to send to the paper's authors, generated: `python -m llm_mdp.report.errata RESULTS
PAGE [--check]`.

Verdicts and ranges come from a run of the ledger. Each statement that a row differs from, and each misprint that
changes a formula, gets a counter-example: an instance file in the folder `counterexamples` beside the page, the
smallest that was found. A file that is there and still shows the verdict is kept.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from llm_mdp.exact.instance_files import instance_to_dict, read_instance, write_instance
from llm_mdp.exact.instances import Instance
from llm_mdp.report.readme import code, escape, lines_of
from llm_mdp.report.rows import (
    FINDINGS,
    NOT_RIGHT,
    ClaimRow,
    Document,
    claim_rows,
    figure_text,
    headline,
    named_instances,
    verdict_text,
)
from llm_mdp.verify.claims import CLAIMS, Claim
from llm_mdp.verify.claims.misprints import MISPRINTS
from llm_mdp.verify.counterexamples import counter_example
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.problem import Problem

FOLDER = "counterexamples"
CLAIM = {claim.id: claim for claim in CLAIMS}

OPENING = """# Errata and findings

On He, Xia, Zhou, Wei, "Response-Level Rewards Are All You Need for Online Reinforcement Learning in LLMs: A
Mathematical Perspective" (2025). The paper asks what a single reward for a whole response can teach about its tokens,
and answers with theorems. Theorems can be checked: on token MDPs so small that every response can be listed, the
expected gradient of an estimator and the true gradient are computed exactly, without sampling, and compared. This page
says what came of it. What agrees comes first; the rest is meant as help with a next version, and corrections of this
page are welcome."""

READING = """*Relative bias* is the distance of the two gradients over the length of the true one; *scale* the part of
the true gradient that is left; *cosine* that of the angle between the two. **Unbiased**: the two agree to nine digits.
**Proportional**: only the length differs, which a learning rate undoes. **Biased**: the direction differs. `3/8` means
on three of eight instances, and a range goes over all of them; a cosine of `1-7e-4` is 7e-4 short of 1. RM(W) is the
reward of a response W, K the number of responses to a prompt, U(W₀,ₜ) the expected reward of responses that begin with
these t tokens.
[All symbols](certificates.md#symbols); [the whole ledger](ledger.md)."""

EXAMPLES = """Where an instance can show a finding, it comes with one, the smallest that was found, as a file that any
program can read ([format](certificates.md#instance-files)). The command beside it, in a clone of this repository,
computes the figures that stand there (K = 3)."""


def errata_markdown(document: Document, examples: dict[str, Instance]) -> str:
    """The page.

    Args:
        document: the output of `llm-mdp verify --json`.
        examples: counter-examples by claim; a claim without one is described by the ledger's figures alone.
    """
    instances = named_instances(document)
    rows = claim_rows(instances)
    of = {finding: [row for row in rows if row.finding == finding] for finding in FINDINGS}
    conditional = [row for row in of["differs"] if "unbiased" in dict(row.verdicts)]
    differ = [row for row in of["differs"] if row not in conditional]
    sections = [
        ("What agrees", [_table(of["agrees"])]),
        ("What holds more strongly than stated", [_table(of["stronger than stated"])]),
        ("Counter-examples", [EXAMPLES] if examples else []),
        ("Misprints", [*_entries(of["misprint"], examples), _slips()]),
        ("Statements that hold under a condition", _entries(conditional, examples)),
        ("Where findings differ", _entries(differ, examples)),
    ]
    parts = [OPENING, _made_by(instances, rows), READING]
    for title, blocks in sections:
        if any(blocks):
            parts += [f"## {title}", *blocks]
    return "\n\n".join(parts) + "\n"


def needing_examples(document: Document) -> list[tuple[Claim, str]]:
    """The claims that get a counter-example, and the verdict that it shows: what differs, and misprints that a row
    computes as printed (a row without expectation computes what is meant)."""
    rows = [row for row in claim_rows(named_instances(document)) if row.id in CLAIM]
    printed = [row for row in rows if row.finding == "misprint" and row.expected != "report"]
    wanted = [row for row in rows if row in printed or row.finding == "differs"]
    return [(CLAIM[row.id], row.gravest) for row in wanted if row.gravest in (*NOT_RIGHT, "proportional")]


def example_row(claim: Claim, instance: Instance) -> ClaimRow:
    """What `llm-mdp verify ID --instance FILE` finds."""
    found = claim_row(claim, Problem(instance), sampled=None, seed=0, confidence=0.99)
    return ClaimRow(claim.id, ((instance.name, found),))


def shows(claim: Claim, instance: Instance, verdict: str) -> bool:
    """Does the ledger's own program find this verdict there, without contradiction?"""
    row = example_row(claim, instance)
    return row.verdict == verdict and not row.contradictions


def update_errata(
    document: Document, page: Path, *, check: bool = False, progress: Callable[[str], None] = lambda line: None
) -> bool:
    """Write the page and its counter-examples, where they are not up to date; True if anything was not.

    Args: check: change nothing, and look for no counter-example.
    """
    folder, examples, changed = page.parent / FOLDER, {}, False
    wanted = needing_examples(document)
    for claim, verdict in wanted:
        path = folder / f"{claim.id}.json"
        known = read_instance(path) if path.exists() else None
        if known is None or not shows(claim, known, verdict):
            changed = True
            known = None if check else counter_example(claim, verdict)
            progress(f"{claim.id}: {'no counter-example was found' if known is None else describe(known)}")
            if known is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_instance(known, path)
        if known is not None:
            examples[claim.id] = known
    for path in sorted(set(folder.glob("*.json")) - {folder / f"{claim.id}.json" for claim, _ in wanted}):
        changed = True
        if not check:
            path.unlink()
    text = errata_markdown(document, examples)
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        changed = True
        if not check:
            page.write_text(text, encoding="utf-8")
    return changed


def describe(instance: Instance) -> str:
    """An instance in one sentence: its shape, and every number that is not zero."""
    content = instance_to_dict(instance)
    ends = "no end token" if content["eos"] is None else f"token {content['eos']} ends a response"
    shape = f"{content['vocab_size']} tokens ({ends}), horizon {content['horizon']}, γ = {content['gamma']:g}"
    names = {"logits": "logit", "token_reward": "reward", "reference_logits": "reference logit"}
    tables = [f"{name}s {entries}" for key, name in names.items() if (entries := ", ".join(_numbers(content, key)))]
    values = [f"{node['value']:g} {_where(node)}" for node in content["nodes"] if node["value"]]
    uniform = [] if any(any(node["logits"]) for node in content["nodes"]) else ["uniform policy"]
    wrong = [f"wrong critic {', '.join(values)}"] if values else []
    return "; ".join([shape, *uniform, *tables, *wrong]) + "; all else 0"


def _numbers(content: dict, key: str) -> Iterator[str]:
    for node in content["nodes"]:
        for token, number in enumerate(node[key]):
            if number:
                yield f"{number:g} for token {token} {_where(node)}"


def _where(node: dict) -> str:
    place = f"after {node['prefix']}" if node["prefix"] else "at the beginning"
    return f"{place} (prompt {node['prompt']})" if "prompt" in node else place


def _made_by(instances: list[tuple[str, dict]], rows: list[ClaimRow]) -> str:
    version, command = (instances[0][1].get(key, "") for key in ("version", "command"))
    names = ", ".join(name for name, _ in instances)
    found = " ".join(sentence for sentence in headline(rows, name=False) if "of the paper" in sentence)
    return (
        f"{escape(found)} This page is generated by {code('python -m llm_mdp.report.errata')} (LLM-MDP {version}) "
        f"from what {code(command or 'llm-mdp verify')} computed on {len(instances)} instances ({escape(names)}), and "
        "from its counter-examples."
    )


def _table(rows: list[ClaimRow]) -> str:
    if not rows:
        return ""
    head = ["the paper", "what was computed", "verdict", "why", "row"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        why = "; ".join(row.reasons)
        cells = (row.paper or row.lead["source"], row.lead["statement"], verdict_text(row), why)
        lines.append([*map(escape, cells), code(row.id)])
    return lines_of(lines)


def _entries(rows: list[ClaimRow], examples: dict[str, Instance]) -> list[str]:
    """Findings under the words of the paper that they are about: what was computed, why, what repairs it, and the
    counter-example."""
    blocks = []
    groups = [(paper, list(group)) for paper, group in groupby(rows, key=lambda row: row.paper)]
    places = [" / ".join(dict.fromkeys(row.lead["source"] for row in members)) for _, members in groups]
    for place, (paper, members) in zip(places, groups):
        lines, said = [], set()
        for row in members:
            further = [escape(f"Why: {'; '.join(row.reasons)}."), *(escape(f"Repair: {one}.") for one in row.repairs)]
            statement = f"- {code(row.id)}: {escape(row.lead['statement'])}. **{escape(verdict_text(row))}**"
            lines.append(f"{statement}{_figures(row)}")
            lines += [f"    - {line}" for line in further if line not in said]
            lines += [f"    - {line}" for line in _example(row.id, examples.get(row.id))]
            said |= set(further)
        name = f": {', '.join(code(row.id) for row in members)}" if places.count(place) > 1 else ""
        heading = [f"### {escape(place)}{name}", *([f"The paper: {escape(paper)}."] if paper else [])]
        blocks += [*heading, "\n".join(lines)]
    return blocks


def _example(claim_id: str, example: Instance | None) -> list[str]:
    if example is None:
        return []
    found, link = example_row(CLAIM[claim_id], example), f"[{claim_id}.json]({FOLDER}/{claim_id}.json)"
    shown = f"Counter-example {link}: {escape(describe(example))}. **{escape(found.verdict)}**{_figures(found)}"
    return [f"{shown}; {code(_command(claim_id))}"]


def _figures(row: ClaimRow) -> str:
    """`: relative bias 0.283, scale 0.723, cosine 0.996`, and what a row without these says in words."""
    names = {"relative_bias": "relative bias", "scale": "scale", "cosine": "cosine"}
    known = [f"{name} {escape(figure_text(row, key))}" for key, name in names.items() if row.span(key).low is not None]
    said = [*([", ".join(known)] if known else []), *([escape(row.certificate)] if row.certificate else [])]
    return f": {'; '.join(said)}" if said else ""


def _slips() -> str:
    head = ["place", "printed", "meant", "how to see it"]
    lines = [head, ["---"] * len(head)]
    lines += [list(map(escape, (slip.place, slip.printed, slip.meant, slip.why))) for slip in MISPRINTS]
    return f"### Further slips, which no row is about\n\n{lines_of(lines)}"


def _command(claim_id: str) -> str:
    return f"llm-mdp verify {claim_id} --instance docs/{FOLDER}/{claim_id}.json"


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 if `--check` finds the page or a counter-example out of date."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_mdp.report.errata", description="Write the page of errata and its counter-examples."
    )
    parser.add_argument("results", type=Path, help="what `llm-mdp verify --json FILE` wrote")
    parser.add_argument("page", type=Path, help=f"the page; counter-examples are in the folder {FOLDER} beside it")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if something is out of date"
    )
    options = parser.parse_args(arguments)
    try:
        document = json.loads(options.results.read_text(encoding="utf-8"))
        changed = update_errata(document, options.page, check=options.check, progress=print)
    except (OSError, ValueError) as error:
        parser.error(f"{options.page}: {error}")
    if options.check:
        print(f"{options.page} is {'out of date; run this command without --check' if changed else 'up to date'}.")
    else:
        print(f"{options.page} {'updated' if changed else 'was up to date'}.")
    return int(options.check and changed)


if __name__ == "__main__":
    sys.exit(main())
