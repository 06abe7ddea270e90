"""Every tutorial is a script that runs, and its page shows what it is and what it prints."""

import importlib.util
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.patience import PATIENCE

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "build")
LEARNED = {"language_model_on_sums", "noise_at_equal_tokens", "own_agent", "own_task", "stable_baselines3"}
"""Those that print what came of training: other processors round otherwise, and then other tokens are drawn."""
ANSWER = r"(?<=^\d\+\d=).*"
"""What a model says to a sum, and what it is worth: either the one or another."""
NUMBER = r"-?\d[\d,]*\.?\d*(?:e-?\d+)?"

spec = importlib.util.spec_from_file_location("tutorials_build", FOLDER / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = build
spec.loader.exec_module(build)


def script(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def stored(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def shown(page: str) -> str:
    """What a page says was printed."""
    return "\n".join(re.findall(r"^```text\n(.*?)^```", page, re.M | re.S))


def differences(printed: str, said: str, tolerance: float) -> list[tuple[str, str]]:
    """Lines that have other words, or numbers further apart than the tolerance, absolute and relative."""
    found = []
    lines = [
        [re.sub(ANSWER, "", line.rstrip()) for line in text.splitlines() if line.strip()] for text in (printed, said)
    ]
    for one, other in zip(*(lines if len(lines[0]) == len(lines[1]) else ([printed], [said]))):
        words = [re.sub(r"[ \[\]]+", " ", re.sub(NUMBER, "#", line)) for line in (one, other)]
        pairs = zip(*([float(each.replace(",", "")) for each in re.findall(NUMBER, line)] for line in (one, other)))
        if words[0] != words[1] or any(a != pytest.approx(b, rel=tolerance, abs=tolerance) for a, b in pairs):
            found.append((one, other))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_page_is_of_this_script(name):
    """All but what came of it: run `python docs/tutorials/build.py NAME` where this fails."""
    page = re.sub(r"\n\n```text\n.*?\n```(?=\n)|\n\n!\[[^\n]*", "", stored(name), flags=re.S)
    assert page == build.page(name, [(cell, "") for cell in build.cells(script(name))])
    figures = re.findall(r"^!\[.+\]\((.*)\)$", stored(name), re.M)
    assert figures and all((FOLDER / figure).exists() for figure in figures)
    assert {FOLDER / figure for figure in figures} == set((FOLDER / "figures").glob(f"{name}-*.svg"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tutorial_prints_what_its_page_shows(name, tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"], capture_output=True, text=True, timeout=PATIENCE, encoding="utf-8",
        cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert differences(done.stdout, shown(stored(name)), 0.15 if name in LEARNED else 2e-3) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("printed", "said", "tolerance", "differ"),
    [
        ("cosine 0.914, K = 3", "cosine 0.9141, K = 3", 2e-3, False),
        ("cosine 0.914, K = 3", "cosine 0.924, K = 3", 2e-3, True),
        ("biased: 0.2", "unbiased: 0.2", 0.15, True),
        ("reward 0.84 after 1,004 tokens", "reward 0.91 after 1,050 tokens", 0.15, False),
        ("a\nb", "a", 0.15, True),
        ("one 1.0", "one 1.0 2.0", 0.15, True),
        ("4+8= 12 reward 1.00", "4+8= 2 reward 0.50", 0.15, False),
    ],
)
def test_differences_are_seen(printed, said, tolerance, differ):
    assert bool(differences(printed, said, tolerance)) == differ


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("print(1)\n# %%\n", "nothing before"),
        ("# %% [raw]\n# x\n", "line 1"),
        ("# %% [markdown]\n# x\ny = 1\n", "line 3"),
    ],
)
def test_a_malformed_script_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        build.cells(text)


def test_cells_and_what_came_of_them_make_a_page():
    parts = build.cells("# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nprint(1)\n")
    assert [(cell.text, cell.is_code, cell.line) for cell in parts] == [
        ("# Title\n\nWords.", False, 2),
        ("print(1)", True, 7),
    ]
    text = build.page("name", list(zip(parts, chain([""], ["```text\n1\n```"]))))
    assert text.endswith("```python\nprint(1)\n```\n\n```text\n1\n```\n") and "# Title" in text
