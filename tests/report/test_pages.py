"""What all pages share: one head, what a reader's screen shows of them, and no template engine where none is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

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


SIZES = Path(__file__).parents[2] / "benchmarks" / "results" / "group_sizes.json"
PAGES = {
    "ledger": lambda folder: render_ledger(test_report.several_document()),
    "sizes": lambda folder: render_ledger(json.loads(SIZES.read_text(encoding="utf-8"))),
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


# A window of Chromium is never narrower than 500 pixels, but a frame in it is. What is read of a page at a width:
# whether it is wider than its frame; tables that are cut off; texts of a row that run into one another; headings of
# columns without a definition, or that scroll away; text that is nearly as dark as its ground; whether how to read the
# page comes before all else.
MEASURE = """<body><script>
const seen = {};
const light = (colour) => {
  const [r, g, b] = colour.match(/\\d+/g).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
function contrast(element) {
  let ground = element;
  const isClear = (each) => getComputedStyle(each).backgroundColor === "rgba(0, 0, 0, 0)";
  while (ground.parentElement && isClear(ground)) ground = ground.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
  if (!colours.every((colour) => colour.startsWith("rgb("))) return 21;  // a mixture: of a verdict and the page
  const [one, other] = colours.map(light);
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}
const wide = (element) => element.scrollWidth > element.clientWidth + 1;
const box = (cell) => {
  const range = cell.ownerDocument.createRange();
  range.selectNodeContents(cell);
  return range.getBoundingClientRect();
};
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
function read(page) {
  page.querySelector("#expand")?.click();
  for (const each of page.querySelectorAll("details")) each.open = true;
  const tables = [...page.querySelectorAll("table")].filter((table) => table.checkVisibility());
  const collide = tables.flatMap((table) => [...table.rows].slice(0, 40)).filter((row) => {
    const texts = [...row.cells].filter((cell) => cell.checkVisibility() && cell.textContent.trim()
      && getComputedStyle(cell).display !== "inline").map(box);
    return texts.some((one, k) => texts.slice(k + 1).some((other) => meet(one, other)));
  });
  const heads = [...page.querySelectorAll("table.sticky > thead th")];
  const how = page.querySelector(".how");
  return {
    wider: wide(page.documentElement), tables: tables.length,
    cut: tables.filter((table) => wide(table) || wide(table.parentElement)).length,
    collide: collide.map((row) => row.textContent.trim().slice(0, 60)),
    undefined: heads.filter((head) => !head.title).map((head) => head.textContent),
    moving: page.documentElement.clientWidth < 1240 ? 0
      : heads.filter((head) => getComputedStyle(head).position !== "sticky").length,
    faint: [...page.querySelectorAll("main *")].slice(0, 3000).filter((each) => each.children.length === 0
      && !each.closest("svg") && each.textContent.trim() && each.checkVisibility() && contrast(each) < 2.5)
      .map((each) => each.textContent.trim().slice(0, 40)).slice(0, 3),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    how: how.querySelectorAll("dt").length > 0
      && how.compareDocumentPosition(page.querySelector("table, figure, svg")) === 4,
  };
}
for (const name of NAMES) {
  for (const width of [1280, 768, 400]) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px`;
    frame.addEventListener("load", () => {
      seen[`${name} ${width}`] = read(frame.contentDocument);
      document.body.dataset.seen = JSON.stringify(seen);
      frame.remove();
    });
    frame.src = `${name}.html`;
    document.body.append(frame);
  }
}
</script></body>"""


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_column_is_cut_off_and_no_text_runs_into_another_at_any_width(tmp_path, dark):
    for name, page in PAGES.items():
        (tmp_path / f"{name}.html").write_text(page(tmp_path), encoding="utf-8")
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=20000", "--window-size=1400,900")
    flags += ("--force-dark-mode",) * dark
    text = MEASURE.replace("NAMES", json.dumps(list(PAGES)))
    (body,) = (attributes for tag, attributes in Page(opened(text, tmp_path, *flags)).tags if tag == "body")
    seen = json.loads(body["data-seen"])
    assert set(seen) == {f"{name} {width}" for name in PAGES for width in (1280, 768, 400)}
    right = {
        "wider": False,
        "cut": 0,
        "collide": [],
        "undefined": [],
        "moving": 0,
        "faint": [],
        "dark": dark,
        "how": True,
    }
    assert {place: each for place, each in seen.items() if each != right | {"tables": each["tables"] or 1}} == {}


def test_a_terminal_needs_no_template_engine():
    code = "import sys, llm_mdp.report.terminal, llm_mdp.report.ledger_page; print('jinja2' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
