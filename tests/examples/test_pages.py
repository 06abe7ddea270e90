"""README.md and docs/ as pages: links that lead somewhere, paths that exist, output that is real."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = [
    ROOT / "llm_mdp",
    ROOT / "envs" / "llm_mdp_envs",
    ROOT / "agents" / "llm_mdp_agents",
]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def lost(page: Path) -> list[str]:
    """Relative links that lead nowhere."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        known = anchor == "" or (target.suffix == ".md" and anchor in anchors(target.read_text(encoding="utf-8")))
        if not target.exists() or not known:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert lost(page) == []


def test_lost_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, so\n[a](page.md#a-title-so) [b](#no) [c](gone.md) [d](https://x.org) ![e](e.svg)\n")
    assert lost(page) == ["#no", "gone.md", "e.svg"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_and_tables_are_balanced(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.M)) % 2 == 0
    for table in re.findall(r"(?:^\|.*\n)+", prose(text), re.M):
        widths = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table.splitlines()}
        assert len(widths) == 1, table[:200]


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.slow
def test_output_that_readme_shows_is_real():
    """The first block of Python and the block of text after it: the same words, and nearly the same figures."""
    pair = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert pair is not None
    block, shown = pair.groups()
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=PATIENCE, encoding="utf-8"
    )
    number = r"-?\d+\.?\d*(?:e-?\d+)?"
    assert re.sub(number, "#", done.stdout) == re.sub(number, "#", shown), done.stderr
    for real, said in zip(re.findall(number, done.stdout), re.findall(number, shown)):
        assert float(real) == pytest.approx(float(said), abs=0.05)


def test_architecture_names_what_there_is():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:llm_mdp|agents|envs|tests|examples|benchmarks|docs)/[\w/.]*)`", text)
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []
    named = {path.rstrip("/") for path in paths if path.endswith("/")}
    folders = {
        str(folder.relative_to(ROOT))
        for home in FOLDERS
        for folder in (home, *home.iterdir())
        if (folder / "__init__.py").exists()
    }
    assert folders - {"llm_mdp"} <= named


def test_verdicts_are_those_of_the_results():
    from llm_mdp.report.readme import main

    assert main([str(ROOT / "benchmarks" / "results" / "ledger.json"), str(README), "--check"]) == 0, "run `make docs`"
