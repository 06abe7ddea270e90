"""Pages as their tests read them: parsed, and run by a real browser."""

import html.parser
import shutil
import subprocess

import pytest

from tests.patience import PATIENCE

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'single' [red]markup[/red] "
    "{{document}} {% raw %} {# $x_{$ \u202eRTL | a\u2028b"
)
"""Words of somebody else, as bad as can be for a page, a template, a drawing, a terminal and a table."""

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += ["--disable-component-update", "--disable-sync", "--dump-dom"]
in_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` to run the page's script"
)


def opened(text: str, folder, *flags: str) -> str:
    """The page after a browser has opened it and its scripts have run."""
    assert CHROMIUM
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


class Page(html.parser.HTMLParser):
    """Elements, text by element, and whether every element is closed where it should be."""

    VOID = frozenset({"meta", "input", "br", "img", "link", "wbr"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            key = self.tags[-1][1].get("id", "")
            self.scripts[key] = self.scripts.get(key, "") + data
        else:
            self.text.append(data)

    def count(self, tag: str, kind: str = "") -> int:
        return sum(name == tag and kind in (attributes.get("class") or "").split() for name, attributes in self.tags)
