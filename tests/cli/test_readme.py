"""Every example of the README and of docs/ runs as written, and the ledger there is the one that the results give.

Commands of one page that build on one another (`train --resume` on the run that an earlier `train` left) are one test,
in a folder of their own; all others are tests by themselves.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import pytest

from llm_mdp.report.readme import BEGIN, update_readme
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {*(ROOT / "docs" / "tutorials").glob("*.md")})]
"""Not the tutorials, which tests/examples/test_tutorials.py runs."""
NOT_RUN = ("make", "pip", "git", "cd", "source", ".", "python3", "torchrun", "apt-get", "export")
"""They install, or need more than one process; other tests and CI cover them."""
A_MODEL = "FOLDER"
"""Commands on a language model have this for its folder; test_verify_model.py runs such on a small one."""
OWN = re.compile(r"(?P<file>[\w./-]+\.py):(?P<name>\w+)")
WRITES = ("--json", "--html", "--csv", "--save-instance", "--save-counter-example", "--out")
VERDICTS = {"BestOfGroup": "✗ biased", "BestOfOthers": "✓ unbiased"}
"""What the README says of the estimators that it shows; of others it is only asked that there is a verdict."""


@dataclass
class Step:
    """A command's words, or a block of Python (one word)."""

    place: int
    """Its number on the page."""
    words: list[str]
    python: bool = False
    makes: set[str] = field(default_factory=set)

    def __str__(self):
        return "python" if self.python else " ".join(self.words)

    def uses(self, path: str) -> bool:
        """Does it name this file or folder, or something in it?"""
        if self.python:
            return re.search(rf"[\"']{re.escape(path)}[/\"']", self.words[0]) is not None
        return any(word == path or word.startswith(f"{path}/") for word in self.words)


@dataclass(frozen=True)
class Example:
    """Steps of a page that build on one another, and the files that the page shows to its reader."""

    page: str
    steps: list[Step]
    files: dict[str, str]

    def shown(self) -> list[str]:
        """Those of the page's files that a step names."""
        words = " ".join(word for step in self.steps for word in step.words)
        return [text for name, text in self.files.items() if name in words]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def command_lines(text: str) -> list[list[str]]:
    """The words of every line of the page's bash blocks, without comments."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_run(words: Sequence[str]) -> bool:
    return Path(words[0]).name in ("llm-mdp", "python") and words[1:2] != ["-m"] and A_MODEL not in words


def made_by(words: list[str]) -> set[str]:
    """Files and folders that a command leaves."""
    made = {value for option, value in pairwise(words) if option in WRITES}
    if words[1:2] == ["train"] and len(words) > 3 and "--resume" not in words:
        agent, env = (re.sub(r".*[/:]|-v\d+$", "", word).lower() for word in words[2:4])
        made.add(f"runs/{words[words.index('--name') + 1] if '--name' in words else f'{agent}-{env}-1'}")
    return made


def examples(page: str, text: str) -> list[Example]:
    """The page's examples. A block that defines a class which a command takes from a file that is not in this
    repository, `my_file.py:Name`, is (a part of) that file."""
    commands = [words for words in command_lines(text) if is_run(words)]
    wanted = {match["name"]: match["file"] for words in commands for word in words if (match := OWN.fullmatch(word))}
    files: dict[str, str] = {}
    found: list[list[Step]] = []

    def add(words: list[str], **options) -> None:
        step = Step(sum(map(len, found)), words, **options)
        before = [steps for steps in found if any(step.uses(path) for each in steps for path in each.makes)]
        found[:] = [steps for steps in found if steps not in before] + [
            sorted([*chain(*before), step], key=lambda each: each.place)
        ]

    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.S | re.M):
        if language == "bash":
            for words in command_lines(f"```bash\n{block}```"):
                if is_run(words):
                    add(words, makes=made_by(words))
            continue
        shown = {wanted[name] for name in re.findall(r"^class (\w+)", block, re.M) if name in wanted}
        for file in shown:
            if not (ROOT / file).exists():
                files[file] = files.get(file, "") + block + "\n"
        if not shown:
            add([block], python=True)
    return [Example(page, steps, files) for steps in found]


FORECAST = re.compile(r"^.*: an answer is likely to take .*; --\w+ is [\d,]+.*\.\n", re.M)
"""Of `variance`, said where progress is."""

EXAMPLES = list(
    {
        (*map(str, each.steps), *(step.words[0] for step in each.steps if step.python), *each.shown()): each
        for page in reversed(PAGES)
        for each in examples(page.name, page.read_text(encoding="utf-8"))
    }.values()
)
"""What several pages show is tried once, under the first of them."""


def shortened(words: list[str], steps: int) -> list[str]:
    """A command as written but for its length (the last --steps or --estimates counts) and its progress."""
    if words[0] == "variance":
        return [*words, "--estimates", "100"]
    if words[0] != "train":
        return words
    length = ["--steps", str(steps), "-q"]
    return [*words, *length, *([] if "--resume" in words else ["--prompts-per-step", "8", "--eval-prompts", "16"])]


def run(step: Step, number: int, folder: Path) -> subprocess.CompletedProcess:
    """`number`: how many steps of its chain went before; each may be the training that this one goes on with."""
    words = step.words
    if step.python:
        words = ["-c", *words]
    elif Path(words[0]).name == "python":
        words = words[1:]
    else:
        words = ["-m", "llm_mdp.cli", *shortened(words[1:], 4 + 2 * number)]
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{each.page}: {' && '.join(map(str, each.steps))}")
def test_example(example, tmp_path):
    for folder in ("examples", "docs"):
        if (ROOT / folder).exists():
            (tmp_path / folder).symlink_to(ROOT / folder)
    for name, text in example.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for number, step in enumerate(example.steps):
        done = run(step, number, tmp_path)
        own = [match["name"] for word in step.words if (match := OWN.fullmatch(word)) and "verify" in step.words]
        verdicts = dict(re.findall(rf"\b({'|'.join(own)})(?: K=\d+)? +(\S \w+)", done.stdout)) if own else {}
        assert verdicts == {name: VERDICTS.get(name, verdicts.get(name, "a verdict")) for name in own}, done.stderr
        planted = any("✗" in verdict for verdict in verdicts.values())
        assert done.returncode == (1 if planted else 0), done.stdout + done.stderr
        assert not FORECAST.sub("", done.stderr)


def test_every_command_is_run_or_known_not_to_be():
    assert any(each.page == "README.md" for each in EXAMPLES)
    for page in PAGES:
        for words in command_lines(page.read_text(encoding="utf-8")):
            left_out = words[0] in NOT_RUN or words[:2] == ["python", "-m"] or A_MODEL in words
            assert is_run(words) or left_out, (page.name, words)


PAGE = """
```bash
llm-mdp train rloo llm_mdp/Tabular-v0 --gamma 0.9 # a run
llm-mdp verify --save-instance it.json \\
  --seed 3
llm-mdp verify my_file.py:Mine --seed 3
```
```python
class Mine: ...
```
```python
print(open("it.json").read())
```
```python
print("runs/other")
```
```bash
make test
llm-mdp verify --instance it.json --out runs/rloo-tabular-1/it
llm-mdp train --resume runs/rloo-tabular-1 --steps 800
llm-mdp eval --run runs/rloo-tabular-1/checkpoints
llm-mdp inspect it.jsonl
```
"""


def test_what_builds_on_what():
    """Not where a figure is the same, or the beginning of a name."""
    found = examples("page", PAGE)
    assert {tuple(step.words[-1].strip() for step in each.steps) for each in found} == {
        (
            "0.9",
            "3",
            'print(open("it.json").read())',
            "runs/rloo-tabular-1/it",
            "800",
            "runs/rloo-tabular-1/checkpoints",
        ),
        ("3",),
        ('print("runs/other")',),
        ("it.jsonl",),
    }
    assert found[0].files == {"my_file.py": "class Mine: ...\n\n"}


def test_ledger_is_the_one_that_the_results_give(tmp_path):
    (page,) = (page for page in PAGES if BEGIN in page.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    copy = tmp_path / page.name
    copy.write_text(text, encoding="utf-8")
    document = json.loads((ROOT / "benchmarks" / "results" / "ledger.json").read_text(encoding="utf-8"))
    assert not update_readme(document, copy), "run `make docs`"
    assert text.count("| `theorem-1` |") == 1


def test_recorded_results_are_what_the_code_computes():
    from llm_mdp.cli.verify import VerifyArguments, find_instances
    from llm_mdp.verify.ledger import run_ledger
    from llm_mdp.verify.problem import Problem

    recorded = json.loads((ROOT / "benchmarks" / "results" / "ledger.json").read_text())["instances"]
    for number, instance in enumerate(find_instances(VerifyArguments())):
        if number not in (1, 2):
            continue
        fresh = run_ledger(Problem(instance))["claims"]
        for claim, row in recorded[number]["claims"].items():
            assert fresh[claim]["verdict"] == row["verdict"], claim
            if row["trace_covariance"] is not None and claim != "prime":
                assert fresh[claim]["trace_covariance"] == pytest.approx(row["trace_covariance"], rel=1e-9), claim
