"""The documentation site: its pages are all there, and what is generated is what the sources give now."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llm_mdp.report import claim_docs

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"


def pages_of(nav: list | dict | str) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def shelved(folder: Path) -> Iterator[str]:
    """Every page below a folder of links, which pathlib's own search would not follow."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from shelved(path)
        elif path.suffix == ".md":
            yield str(path.relative_to(SITE))


def test_the_navigation_names_every_page_once():
    named = sorted(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert named == sorted(shelved(SITE))


def test_the_site_holds_links_that_lead_somewhere_in_this_repository():
    files = [path for path in SITE.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert files
    for path in files:
        assert path.is_symlink() and path.exists(), path
        assert path.resolve() == ROOT / path.relative_to(SITE), path


def test_claims_are_those_of_the_results(capsys):
    arguments = [str(ROOT / "benchmarks" / "results" / "ledger.json"), str(ROOT / "docs" / "claims"), "--check"]
    assert claim_docs.main(arguments) == 0, f"run `make docs`: {capsys.readouterr().out}"


def test_no_section_of_a_claim_has_an_entry_without_words():
    for page in sorted((ROOT / "docs" / "claims").iterdir()):
        text = page.read_text(encoding="utf-8")
        assert "[](" not in text and ": ." not in text, page


def test_every_paper_that_a_page_names_is_among_the_references():
    known = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    cited = r"(?:[A-Z][\w-]+ (?:et al\.|and [A-Z]\w+)|MiniMax|DeepSeek-V3\.2|Williams|Pinelis) (?:19|20)\d\d"
    pages = [path for path in shelved(SITE) if not path.startswith("docs/references")]
    named = {(name, page) for page in pages for name in re.findall(cited, (SITE / page).read_text(encoding="utf-8"))}
    assert len(named) > 20 and {(name, page) for name, page in named if f"| {name}" not in known} == set()


def test_an_outdated_claim_is_found(tmp_path):
    results = str(ROOT / "benchmarks" / "results" / "ledger.json")
    (tmp_path / "claims").mkdir()
    claim_docs.main([results, str(tmp_path / "claims")])
    page = tmp_path / "claims" / "theorems.md"
    page.write_text(page.read_text(encoding="utf-8").replace("**unbiased 8/8**", "**biased 8/8**", 1), encoding="utf-8")
    assert claim_docs.main([results, str(tmp_path / "claims"), "--check"]) == 1


def test_the_api_names_every_public_name():
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "benchmarks" / "api_pages.py")
    assert spec is not None and spec.loader is not None
    api_pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api_pages)
    for name, text in api_pages.pages().items():
        assert (ROOT / "docs" / "api" / name).read_text(encoding="utf-8") == text, "run `make docs`"


@pytest.mark.slow
def test_the_command_line_is_that_of_the_parsers():
    from llm_mdp.cli.reference import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"
