"""`make audit`: every library in an environment of its own with pinned versions, all rows in one file.

    python benchmarks/audit/run.py              # all libraries (about an hour), into benchmarks/results/audit.json
    python benchmarks/audit/run.py trl verl     # these alone; the rows of the others stay
    python benchmarks/audit/run.py --core       # the tests of verl and OpenRLHF, which .venv does not have

An environment is a folder of .venv/audit that adds a few packages, installed without what they ask for, to those of
.venv (so torch is there once).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import llm_mdp

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RESULTS = ROOT / "benchmarks" / "results" / "audit.json"
ENVIRONMENTS = {
    "trl": ("trl",),
    "verl": ("verl",),
    "openrlhf": ("openrlhf",),
    "others": ("skyrl", "areal", "ms-swift", "tinker", "torchtune"),
}
"""The libraries of each, by the name of its requirements-*.txt."""
STORED = "tests/audit/test_stored.py"
CORE = {"verl": ("tests/audit/test_verl.py", STORED), "openrlhf": ("tests/audit/test_openrlhf.py", STORED)}
"""Environments and the tests that CI runs in them; TRL's run with all others."""
OPTIONS = ("--prompts", "1", "2", "4", "--examples")


def environment(name: str) -> Path:
    """The Python of an environment, made or brought up to date if its requirements are newer."""
    folder, requirements = ROOT / ".venv" / "audit" / name, HERE / f"requirements-{name}.txt"
    python, stamp = folder / "bin" / "python", folder / ".stamp"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return python
    print(f"making {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [Path(torch.__file__).parents[1], ROOT, ROOT / "agents", ROOT / "envs"]
    (packages / "shared.pth").write_text("".join(f"{each}\n" for each in shared))
    pip = [folder / "bin" / "pip", "--quiet", "--quiet", "install", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", requirements], check=True)
    stamp.write_text(requirements.read_text())
    return python


def rows_of(library: str) -> list[dict[str, Any]]:
    """The rows of one library, audited in its environment."""
    python = environment(next(name for name, libraries in ENVIRONMENTS.items() if library in libraries))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [python, "-m", "llm_mdp.cli", "audit", library, *OPTIONS, "--json", file]
        print(f"llm-mdp audit {library} {' '.join(OPTIONS)}", flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(file.read_text())


def tested(python: Path, files: Iterable[str]) -> int:
    """The exit status of files of tests in an environment."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def head() -> str:
    """The commit that is checked out."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()


def write(rows: list[dict[str, Any]], commits: dict[str, str]) -> None:
    """The rows and what made them, a line each; `commits` says by library which commit of ours did."""
    made = {
        "command": f"llm-mdp audit LIBRARY {' '.join(OPTIONS)}",
        "llm_mdp": llm_mdp.__version__,
        "commits": commits,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    opening = json.dumps(made, ensure_ascii=False)[:-1]
    RESULTS.write_text(f'{opening}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit libraries, each in an environment of its own.")
    every = [library for libraries in ENVIRONMENTS.values() for library in libraries]
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"some of {', '.join(every)} (default: all)")
    parser.add_argument("--core", action="store_true", help="only the tests of verl and OpenRLHF")
    options = parser.parse_args()
    if options.core:
        return max(tested(environment(name), files) for name, files in CORE.items())
    if unknown := set(options.libraries) - set(every):
        parser.error(f"there is no library {sorted(unknown)[0]!r}; choose among {', '.join(every)}.")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": [], "commits": {}}
    by_library = {library: [row for row in known["rows"] if row["library"] == library] for library in every}
    commits = known["commits"]
    for library in options.libraries or every:
        commit = head()
        by_library[library] = rows_of(library)
        commits[library] = commit
        write([row for rows in by_library.values() for row in rows], commits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
