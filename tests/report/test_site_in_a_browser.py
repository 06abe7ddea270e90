"""The built site as a reader's screen shows it: every page, at the width of a desk and of a phone, light and dark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.report.pages import Page, in_chromium, opened

ROOT = Path(__file__).parents[2]
WIDTHS, SCHEMES = (1280, 400), ("default", "slate")

# What is read of a page: what stands out of it at the right though nothing scrolls there; rows that are squeezed into
# columns of letters; words of a docstring that were taken for elements of HTML; images that are missing; images whose
# letters are dark and whose ground is not their own; text that is nearly as dark as its ground.
READ = """<body><script>
const seen = {};
const luminance = (colour) => {
  const parts = colour.match(/[\\d.]+/g).map(Number).slice(0, 3).map((part) => part / 255);
  const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const clear = (colour) => colour === "transparent" || / 0\\)$/.test(colour);
function ground(element) {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!clear(colour) && !/rgba/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
}
const scrolls = (element) => {
  for (let each = element; each; each = each.parentElement) {
    if (getComputedStyle(each).overflowX !== "visible") return each.tagName !== "BODY" && each.tagName !== "HTML";
  }
  return false;
};
const words = (element) => element.textContent.trim().slice(0, 50);
function read(page, width) {
  const all = [...page.querySelectorAll("article *")];
  const said = all.filter((each) => each.children.length === 0 && each.textContent.trim() && each.checkVisibility()
    && !each.closest("a.headerlink, button, nav")).slice(0, 1500);
  const contrast = (each) => {
    const [one, other] = [luminance(getComputedStyle(each).color), luminance(ground(each))];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  };
  const cells = [...page.querySelectorAll("article td")].slice(0, 1500);
  return {
    wider: page.documentElement.scrollWidth > page.documentElement.clientWidth + 1,
    out: all.slice(0, 3000).filter((each) => each.getBoundingClientRect().right > width + 1 && !scrolls(each))
      .map(words).slice(0, 3),
    squeezed: cells.filter((cell) => cell.clientHeight > 40 * parseFloat(getComputedStyle(cell).fontSize))
      .map(words).slice(0, 3),
    unknown: all.filter((each) => each instanceof page.defaultView.HTMLUnknownElement).map((each) => each.tagName),
    missing: [...page.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src),
    dark: [...page.images].filter((image) => luminance(ground(image)) < 0.8).map((image) => image.src),
    faint: said.filter((each) => contrast(each) < 2.9).map(words).slice(0, 3),
    titles: page.querySelectorAll("article h1").length,
  };
}
async function all() {
  for (const name of NAMES) for (const width of WIDTHS) {
    const frame = document.createElement("iframe");
    frame.style = `width: ${width}px; height: 900px`;
    const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
    frame.src = name;
    document.body.append(frame);
    await loaded;
    const still = frame.contentDocument.createElement("style");
    still.textContent = "* { transition: none !important; }";  // else a colour is read while it changes
    frame.contentDocument.head.append(still);
    for (const scheme of SCHEMES) {
      frame.contentDocument.body.dataset.mdColorScheme = scheme;
      seen[`${name} ${width} ${scheme}`] = read(frame.contentDocument, width);
    }
    frame.remove();
  }
  document.body.dataset.seen = JSON.stringify(seen);
}
all();
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE, capture_output=True)
    return folder


@pytest.mark.slow
@in_chromium
def test_every_page_of_the_site_can_be_read_at_any_width_light_and_dark(site):
    names = sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if page.name != "404.html")
    text = READ
    for name, value in (("NAMES", names), ("WIDTHS", WIDTHS), ("SCHEMES", SCHEMES)):
        text = text.replace(f"of {name}", f"of {json.dumps(value)}")
    flags = ("--allow-file-access-from-files", "--virtual-time-budget=600000", "--window-size=1400,900")
    (body,) = (attributes for tag, attributes in Page(opened(text, site, *flags)).tags if tag == "body")
    seen = json.loads(body["data-seen"])
    assert set(seen) == {f"{name} {width} {scheme}" for name in names for width in WIDTHS for scheme in SCHEMES}
    right: dict = {key: [] for key in ("out", "squeezed", "unknown", "missing", "dark", "faint")}
    right |= {"wider": False, "titles": 1}
    assert {place: each for place, each in seen.items() if each != right} == {}
