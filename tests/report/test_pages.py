"""What all pages share: one head, what a reader's screen shows of them, and no template engine where none is needed."""

import json
import re
import subprocess
import sys

import pytest

from llm_mdp.report.audit_page import render_audit
from llm_mdp.report.inspect_page import render_inspection
from llm_mdp.report.ledger_page import render_ledger
from llm_mdp.report.variance_page import render_variance_page
from llm_mdp_agents.training.records import CONFIG, Records
from llm_mdp_agents.training.run_report import write_report
from tests.report import test_audit_pages, test_inspect_page, test_report, test_variance_report
from tests.report.pages import Page, in_chromium, opened


def run_page(folder) -> str:
    (folder / CONFIG).write_text(json.dumps({"agent": {"name": "grpo"}, "train": {"learning_rate": 1e-5}}))
    with Records(folder, loggers=("none",)) as records:
        for step in range(1, 4):
            records.metrics(step, {"reward": step / 4, "eval/reward": step / 4, "kl": 0.1})
        records.samples(3, [{"prompt": "x" * 300, "response": "y" * 300, "reward": 0.5}])
    return write_report(folder).read_text(encoding="utf-8")


PAGES = {
    "ledger": lambda folder: render_ledger(test_report.several_document()),
    "inspection": lambda folder: render_inspection(test_inspect_page.document()),
    "variance": lambda folder: render_variance_page(test_variance_report.DOCUMENTS["one"]),
    "audit": lambda folder: render_audit(test_audit_pages.ROWS * 2, "llm-mdp audit trl"),
    "run": run_page,
}


@pytest.mark.parametrize("name", PAGES)
def test_all_pages_have_one_head_and_allow_nothing_from_outside(name, tmp_path):
    text = PAGES[name](tmp_path)
    page = Page(text)
    assert not page.open and [tag for tag, _ in page.tags].count("h1") == 1
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    scripted = "script-src 'unsafe-inline'; " if name != "run" else ""
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; {scripted}base-uri 'none'; form-action 'none'"
    assert text.count("<style>") == 1 and text.count("--paper: #fbfaf7;") == 1 and "prefers-color-scheme: dark" in text
    assert page.count("p", "command") == page.count("dl", "facts") - text.count('<details class=setting id="') == 1
    assert ("script" in {tag for tag, _ in page.tags}) == (page.count("a", "download") == 1) == (name != "run")


# A window of Chromium is never narrower than 500 pixels, but a frame in it is.
MEASURE = """<body><script>
const cut = {}, widths = [1280, 1000, 400];
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px`;
  frame.addEventListener("load", () => {
    const page = frame.contentDocument;
    page.querySelector("#expand")?.click();
    const wide = (element) => element.scrollWidth > element.clientWidth;
    const tables = [...page.querySelectorAll("table")].filter((table) => wide(table) || wide(table.parentElement));
    cut[width] = [wide(page.documentElement), page.querySelectorAll("table").length, tables.length];
    document.body.dataset.cut = JSON.stringify(cut);
  });
  frame.src = "inner.html";
  document.body.append(frame);
}
</script></body>"""


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("name", PAGES)
def test_no_column_is_cut_off_at_any_width(name, tmp_path):
    (tmp_path / "inner.html").write_text(PAGES[name](tmp_path), encoding="utf-8")
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=1400,900")
    (body,) = (attributes for tag, attributes in Page(opened(MEASURE, tmp_path, *flags)).tags if tag == "body")
    cut = json.loads(body["data-cut"])
    assert set(cut) == {"1280", "1000", "400"}
    for page_is_wider, tables, cut_off in cut.values():
        assert tables and not page_is_wider and not cut_off


def test_a_terminal_needs_no_template_engine():
    code = "import sys, llm_mdp.report.terminal, llm_mdp.report.ledger_page; print('jinja2' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
