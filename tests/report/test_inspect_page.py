"""The page of `llm-mdp inspect`, from made-up documents, in Chromium, and the command as a person types it."""

import html.parser
import json
import math
import re
import sys

import pytest
import rich.console

from llm_mdp.cli.inspect import inspect, print_first
from llm_mdp.report.inspect_page import LINE, credit_rows, lines_of, render_inspection, token_label, visible
from llm_mdp_envs.text import byte_tokenizer
from tests.report.pages import HOSTILE, in_chromium, opened


def token(text: str, id: int = 5, policy: bool = True, **figures) -> dict:
    known = {
        "logp": -0.5,
        "hidden_reward": 0.25,
        "advantage": 0.1,
        "error": None,
        "weights": {"rloo": 0.5, "mine.py:Own": -0.2},
    }
    if not policy:
        known = dict.fromkeys(known) | {"weights": dict.fromkeys(known["weights"])}
    return {"text": text, "id": id, "policy": policy, **known, **figures}


def response(*tokens: dict, reward: float = 0.5, finish: str = "eos") -> dict:
    return {"reward": reward, "finish": finish, "tokens": list(tokens)}


def document(**parts) -> dict:
    """Two prompts with two responses each: a word a token, an end token, what the environment said, figures that are
    missing."""
    plain = response(token("The"), token(" sum"), token("\n", weights={"rloo": 0.5, "mine.py:Own": 0.0}), token("", 0))
    turns = response(
        token("6"),
        token(" higher", 9, False),
        token(" 7", weights={"rloo": -2.0, "mine.py:Own": None}),
        finish="horizon",
    )
    odd = response(
        token("   "), token("", 77), token("日本", error=0.03), token("\t\x00"), reward=-1.25, finish="environment"
    )
    long = response(
        *[token(f" word{k}", logp=-k / 100, weights={"rloo": 0.5, "mine.py:Own": math.sin(k)}) for k in range(120)]
    )
    groups = [{"prompt": "1 + 1 =\nnext line", "responses": [plain, turns]}, {"prompt": "", "responses": [odd, long]}]
    estimators = [
        {
            "name": "rloo",
            "label": "RLOO",
            "words": "The reward less the others.",
            "verdict": "unbiased",
            "agreement": 0.4321,
        },
        {"name": "mine.py:Own", "label": "Own", "words": "", "verdict": None, "agreement": -0.2},
    ]
    truth = [
        {"name": "hidden_reward", "label": "hidden token reward"},
        {"name": "advantage", "label": "advantage by 32 draws"},
    ]
    made = {
        "command": "llm-mdp inspect",
        "version": "0.1.0",
        "seed": 0,
        "task": "Arithmetic",
        "policy": "transformer",
        "group_size": 2,
        "eos": 0,
        "estimators": estimators,
        "truth": truth,
        "groups": groups,
    }
    return made | parts


def without_truth() -> dict:
    """A language model: no token has a true reward or an advantage, and nobody's agreement is known."""
    made = document(truth=[])
    for each in tokens_in(made):
        each.update(hidden_reward=None, advantage=None)
    for each in made["estimators"]:
        each["agreement"] = None
    return made


def hostile() -> dict:
    """Words of somebody else in every field that holds words."""
    made = document(command=HOSTILE, version=HOSTILE, task=HOSTILE, policy=HOSTILE)
    made["estimators"][1].update(name=HOSTILE, label=HOSTILE, words=HOSTILE, verdict=HOSTILE)
    made["truth"][1]["label"] = HOSTILE
    for group in made["groups"]:
        group["prompt"] = HOSTILE
        for each in group["responses"]:
            each["finish"] = HOSTILE
    for each in tokens_in(made):
        each.update(text=HOSTILE, weights={"rloo": each["weights"]["rloo"], HOSTILE: each["weights"]["mine.py:Own"]})
    return made


def zeros() -> dict:
    """Rewards that are all the same: nothing to learn, and no scale."""
    made = document()
    for each in tokens_in(made):
        each["weights"] = {name: None if value is None else 0.0 for name, value in each["weights"].items()}
    return made


def tokens_in(made: dict) -> list[dict]:
    return [each for group in made["groups"] for answer in group["responses"] for each in answer["tokens"]]


DOCUMENTS = {"plain": document(), "without truth": without_truth(), "hostile": hostile(), "zeros": zeros()}


class Page(html.parser.HTMLParser):
    """Elements with their texts, and whether every element is closed where it should be."""

    VOID = frozenset({"meta", "input", "br", "img", "link"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[dict] = []
        self.elements: list[dict] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def find(self, tag: str, kind: str = "") -> list[dict]:
        return [
            each
            for each in self.elements
            if each["tag"] == tag and (not kind or kind in (each.get("class") or "").split())
        ]


# The static page


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_is_well_formed_and_holds_the_document(name):
    page = Page(render_inspection(DOCUMENTS[name]))
    assert not page.open
    data = next(each for each in page.find("script") if each.get("id") == "document")
    assert json.loads(data["text"]) == DOCUMENTS[name] and len(page.find("script")) == 2
    assert len(page.find("th", "tok")) == len(tokens_in(DOCUMENTS[name]))
    rows = len(DOCUMENTS[name]["truth"]) + len(DOCUMENTS[name]["estimators"])
    assert len(page.find("button", "chip")) == rows
    assert len([cell for cell in page.find("td") if "data-label" not in cell]) == rows * len(tokens_in(DOCUMENTS[name]))


def test_the_page_needs_no_network():
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//|@import|url\(""", render_inspection(document()))


def test_hostile_words_are_shown_as_text():
    page = Page(render_inspection(hostile()))
    assert not page.find("img") and not any(key.startswith("on") for each in page.elements for key in each)
    assert page.find("pre", "prompt")[0]["text"] == HOSTILE and page.find("th", "tok")[0]["text"].startswith(
        "</script>"
    )
    assert page.find("bdi")  # what a token turns around, such as the direction of writing, ends with it


def test_a_table_has_the_figures_of_its_tokens():
    """Without script the page is the comparison: a row an estimator, figures in its cells, hatched where there are
    none."""
    page = Page(render_inspection(document()))
    bodies = [row["text"] for row in page.find("tr") if "data-row" in row][:8]
    truths = ["hidden token reward" + "0.25" * 4, "advantage by 32 draws" + "0.10" * 4]
    assert bodies[:4] == [*truths, "RLOO" + "0.50" * 4, "Own−0.20−0.200−0.20"]
    assert bodies[6] == "RLOO0.50−2.00"
    cells = [cell for cell in page.find("td") if "data-label" not in cell]
    assert sum("none" in cell["class"].split() for cell in cells) == 4 + 1  # the environment's token, and one figure


def test_colours_have_one_scale_a_row_symmetric_around_zero():
    rows = {row.name: row for row in credit_rows(document())}
    rloo = rows["rloo"]
    assert (rloo.scale, rloo.beyond) == (0.5, 1)  # 126 of 127 figures are 0.5, one is -2
    assert [rloo.shade(value) for value in (-2.0, -0.5, -0.25, 0.0, 0.25, 0.5, 2.0)] == [-1, -1, -0.5, 0, 0.5, 1, 1]
    text = render_inspection(document())
    assert "1 of 130 beyond" in text and "<span>−0.500</span><i></i>+0.500" in text
    assert {row.scale for row in credit_rows(zeros()) if row.kind == "estimator"} == {1.0}


@pytest.mark.parametrize(
    ("scale", "value", "text"),
    [
        (0.5, 0.123, "0.12"), (0.5, -0.001, "0"), (0.5, -0.123, "−0.12"), (3.2, 1.5, "1.50"), (12.0, 3.14, "3.1"),
        (250.0, 31.4, "31"), (0.012, 0.0049, "0.005"), (1e-5, 2e-6, "0.000002"),
    ],
)  # fmt: skip
def test_figures_have_the_digits_that_their_scale_needs(scale, value, text):
    row = credit_rows(document())[2]
    assert type(row)("rloo", "RLOO", "estimator", scale, 0, 1).figure(value) == text
    assert row.kind == "estimator"


def test_every_token_can_be_seen():
    assert [visible(text) for text in ("a b", " b", "  ", "\n", "a\t\n", "\x00\x1b", "")] == [
        "a b",
        " b",
        "␣␣",
        "⏎",
        "a⇥⏎",
        "␀␛",
        "",
    ]
    assert [token_label(token(text, id), 0) for text, id in (("", 7), ("<end>", 0), ("x", 7), (" ", 7))] == [
        "#7",
        "eos",
        "x",
        "␣",
    ]


def test_lines_hold_all_tokens_in_order_and_no_more_than_fits():
    labels = ["word", "日本語日本語日本語", "x" * 400, "y"] * 20
    lines = lines_of(labels)
    assert [place for start, stop in lines for place in range(start, stop)] == list(range(80))
    for start, stop in lines:
        wide = sum(8 * len(label.encode("utf-16-le")) / 2 for label in labels[start:stop])
        assert wide <= LINE or stop - start == 1
    assert len(lines) < 80 and lines_of([]) == []


def test_the_header_says_who_agrees_with_what():
    page = Page(render_inspection(document()))
    (headline,) = page.find("h1")
    assert headline["text"].endswith("RLOO is closest to the advantage by 32 draws of these 130 tokens.")
    assert [item["text"] for item in page.find("li")] == ["RLOO 0.43", "Own −0.20"]
    assert "Its standard error is 0.0300 on average." in page.find("table", "about")[0]["text"]
    assert not Page(render_inspection(without_truth())).find("div", "banner")


def test_a_correlation_that_chance_may_have_made_is_not_praised():
    made = document()
    made["estimators"][0]["agreement"] = 0.17  # 130 tokens: unrelated figures correlate by 0.09, give or take
    (headline,) = Page(render_inspection(made)).find("h1")
    assert headline["text"].endswith(
        "On these 130 tokens no estimator can be seen to follow the advantage by 32 draws."
    )


def test_a_group_of_equal_rewards_says_so():
    headings = [each["text"] for each in Page(render_inspection(document())).find("h2")]
    assert headings[:2] == ["Prompt 1 mean reward 0.500, all rewards equal", "Prompt 2 mean reward −0.375"]


def test_what_is_no_inspection_is_refused_in_words():
    with pytest.raises(ValueError, match="give the JSON that `llm-mdp inspect --json FILE` writes"):
        render_inspection({"claims": {}})
    made = document()
    made["groups"][0]["responses"][0]["tokens"][1]["weights"]["rloo"] = math.nan
    with pytest.raises(ValueError, match=r"\['tokens'\]\[1\]\['weights'\]\['rloo'\] is nan"):
        render_inspection(made)


# In Chromium


PROBE = """
<script>
const seen = {}, pick = (name) => picks.find((each) => each.textContent === name);
const visibleRows = () => [...new Set([...groups.querySelectorAll("tr[data-row]")].filter((row) => row.offsetParent)
  .map((row) => row.cells[0].textContent))];
const tipFigures = () => Object.fromEntries([...tip.querySelectorAll("dt")].map(
  (dt) => [dt.textContent, dt.nextSibling.textContent]));
const press = (cell, key) => cell.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const over = (cell) => cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
const text = (columns) => columns.map(({ head }) => head.textContent).join("|");
const [plain, turns, odd, long] = responses;

seen.start = { rows: visibleRows(), controls: !document.querySelector(".controls").hidden, tip: !tip.hidden,
  texts: [plain, turns, odd].map(({ columns }) => text(columns)) };
over(plain.columns[1].cells[3]);
seen.hover = { shown: !tip.hidden, figures: tipFigures(), hot: document.querySelectorAll(".hot").length,
  title: tip.querySelector("b").textContent, now: tip.querySelector("dt.now").textContent,
  about: tip.querySelector("p").textContent };
press(document.body, "Escape");
seen.escaped = tip.hidden && document.querySelectorAll(".hot").length === 0;
odd.columns[2].head.click();
seen.tapped = { shown: !tip.hidden, figures: tipFigures() };
document.body.click();
seen.elsewhere = tip.hidden;
over(turns.columns[1].head);
seen.environment = { about: tip.querySelector("p").textContent, figures: tipFigures() };
hide();
plain.columns[0].head.focus();
press(plain.columns[0].head, "ArrowRight");
seen.right = document.activeElement === plain.columns[1].head
  && String(plain.columns.map(({ head }) => head.tabIndex)) === "-1,0,-1,-1";
press(plain.columns[1].head, "End"); seen.end = document.activeElement === plain.columns[3].head;
press(plain.columns[3].head, "ArrowRight"); seen.stays = document.activeElement === plain.columns[3].head;
press(plain.columns[3].head, "Home"); seen.home = document.activeElement === plain.columns[0].head;

pick("RLOO").click();
seen.without = { rows: visibleRows(), pressed: pick("RLOO").ariaPressed };
over(plain.columns[0].head); seen.tipWithout = Object.keys(tipFigures()); hide();
pick("RLOO").click();
seen.again = visibleRows();

const lines = () => [...long.place.children].map((table) => table.rows[0].cells.length - 1);
const overflow = () => long.place.scrollWidth - long.place.clientWidth;
seen.wide = { lines: lines(), overflow: overflow() };
document.querySelector("main").style.maxWidth = "420px"; update();
seen.narrow = { lines: lines(), overflow: overflow(),
  texts: text([...long.place.querySelectorAll(".tok")].map((head) => ({ head }))),
  cells: [...long.place.querySelectorAll("td")].every((cell) => cell.column.cells[cell.parentNode.rowIndex] === cell) };
document.querySelector("main").style.maxWidth = "";

document.querySelector("input[name=view][value=one]").click();
pick("RLOO").click();
const sign = (kinds) => kinds.contains("gain") ? "+" : kinds.contains("loss") ? "-" : "0";
const colours = (columns) => columns.map(({ head }) => sign(head.classList) + head.style.getPropertyValue("--v"));
const topOf = (column) => column.head.getBoundingClientRect().top;
seen.one = { rows: visibleRows(),
  pressed: picks.filter((each) => each.ariaPressed === "true").map((each) => each.textContent),
  colours: colours(turns.columns), inline: getComputedStyle(turns.columns[0].head).display,
  line: Math.abs(topOf(turns.columns[0]) - topOf(turns.columns[2])) < 2 };
pick("Own").click();
seen.other = colours(plain.columns);
over(plain.columns[0].head);
seen.oneTip = { figures: tipFigures(), now: tip.querySelector("dt.now").textContent,
  hot: document.querySelectorAll(".hot").length };
document.querySelector("input[name=view][value=compare]").click();
seen.back = { rows: visibleRows(), colours: document.querySelectorAll(".tok.gain, .tok.loss").length };
seen.download = download.href.startsWith("blob:") && json.length;
document.body.dataset.seen = JSON.stringify(seen);
</script>
"""


def run_in_chromium(made: dict, tmp_path, probe: str) -> tuple[dict, dict]:
    """What a probe saw, and the attributes of the html element; no error was thrown."""
    catch = (
        "<script>onerror = (message) => { document.documentElement.dataset.error = message; };"
        "console.error = (...words) => { document.documentElement.dataset.error = words.join(' '); };</script><title>"
    )
    text = render_inspection(made).replace("<title>", catch, 1).replace("</body>", f"{probe}</body>")
    page = Page(opened(text, tmp_path, "--window-size=1280,900"))
    assert "data-error" not in page.find("html")[0], page.find("html")[0]
    return json.loads(page.find("body")[0]["data-seen"]), page.find("html")[0]


@in_chromium
def test_the_script_shows_figures_chooses_rows_and_changes_the_view(tmp_path):
    seen, _ = run_in_chromium(document(), tmp_path, PROBE)
    all_rows = ["hidden token reward", "advantage by 32 draws", "RLOO", "Own"]
    texts = ["The| sum|⏎|eos", "6| higher| 7", "␣␣␣|#77|日本|⇥␀"]
    assert seen["start"] == {"rows": all_rows, "controls": True, "tip": False, "texts": texts}
    hover = seen["hover"]
    assert hover["shown"] and hover["hot"] == 5 and hover["now"] == "RLOO" and hover["title"] == '" sum"'
    assert hover["figures"] == {
        "hidden token reward": "0.250",
        "advantage by 32 draws": "0.100",
        "RLOO": "0.500",
        "Own": "−0.200",
    }
    assert "token 2 of 4, id 5" in hover["about"] and "log π −0.500, probability 0.607" in hover["about"]
    assert seen["escaped"] and seen["tapped"]["shown"] and seen["elsewhere"]
    assert seen["tapped"]["figures"]["advantage by 32 draws"] == "0.100 ± 0.0300"
    assert "written by the environment" in seen["environment"]["about"] and seen["environment"]["figures"] == {}
    assert seen["right"] and seen["end"] and seen["stays"] and seen["home"]
    assert seen["without"] == {"rows": [*all_rows[:2], "Own"], "pressed": "false"} and "RLOO" not in seen["tipWithout"]
    assert seen["again"] == all_rows
    for width in ("wide", "narrow"):
        assert sum(seen[width]["lines"]) == 120 and seen[width]["overflow"] <= 0
    assert len(seen["narrow"]["lines"]) > len(seen["wide"]["lines"]) > 1
    assert seen["narrow"]["texts"] == "|".join(f" word{k}" for k in range(120)) and seen["narrow"]["cells"]
    one = seen["one"]
    assert (one["rows"], one["pressed"], one["inline"], one["line"]) == ([], ["RLOO"], "inline", True)
    assert one["colours"] == ["+100%", "00%", "-100%"]
    assert [colour[0] for colour in seen["other"]] == ["-", "-", "0", "-"]
    assert (
        seen["oneTip"]["now"] == "Own" and seen["oneTip"]["hot"] == 1 and seen["oneTip"]["figures"]["RLOO"] == "0.500"
    )
    assert seen["back"] == {"rows": all_rows, "colours": 0} and seen["download"]


@in_chromium
@pytest.mark.parametrize("name", ["hostile", "without truth", "zeros"])
def test_the_script_runs_on_every_document(name, tmp_path):
    probe = """<script>
      for (const value of ["one", "compare"]) document.querySelector(`input[value=${value}]`).click();
      for (const { columns } of responses) show(columns[0].head);
      const counted = [tip.querySelectorAll("dt").length, document.querySelectorAll("img").length];
      document.body.dataset.seen = JSON.stringify(counted);
    </script>"""
    seen, _ = run_in_chromium(DOCUMENTS[name], tmp_path, probe)
    assert seen == [len(credit_rows(DOCUMENTS[name])), 0]


# In a terminal


def printed(made: dict, width: int) -> str:
    console = rich.console.Console(width=width, record=True, highlight=False)
    print_first(made, console)
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_the_first_response_in_lines_that_fit(width):
    made = document()
    made["groups"][0]["responses"].reverse()
    made["groups"][0]["responses"][0] = made["groups"][1]["responses"][1]
    text = printed(made, width)
    assert max(map(len, text.splitlines())) <= width
    assert re.findall(r"word\d+", text) == [f"word{k}" for k in range(120)]
    assert len(re.findall(r"^RLOO .*$", text, re.MULTILINE)) == len(re.findall(r"^Own .*$", text, re.MULTILINE))
    assert sum(line.count("0.50") for line in text.splitlines() if line.startswith("RLOO ")) == 120
    assert "agreement with the advantage by 32 draws" in " ".join(text.split()) and "RLOO 0.43, Own -0.20" in " ".join(
        text.split()
    )


def test_a_terminal_takes_words_literally_and_does_without_truth():
    assert "[red]markup[/red]" in " ".join(printed(hostile(), 400).split())
    assert "agreement" not in printed(without_truth(), 80)


# The command


def typed(words: str, here, monkeypatch) -> dict:
    """Run the command and read what it wrote."""
    monkeypatch.setattr(sys, "argv", ["llm-mdp", "inspect", *words.split()])
    assert inspect([*words.split(), "--json", "found.json"]) == 0
    made = json.loads((here / "found.json").read_text())
    assert (here / "inspect.html").read_text(encoding="utf-8") == render_inspection(made)
    return made


@pytest.mark.slow
def test_nothing_said_is_a_token_mdp_with_all_that_is_known(here, monkeypatch, capsys):
    made = typed("", here, monkeypatch)
    assert (made["task"], made["command"]) == ("llm_mdp/Tabular-v0", "llm-mdp inspect")
    assert [each["name"] for each in made["estimators"]][-1] == "ppo" and len(made["estimators"]) == 9
    assert [each["label"] for each in made["truth"]] == ["hidden token reward", "exact advantage"]
    assert len(made["groups"]) == 3 and all(len(group["responses"]) == 4 for group in made["groups"])
    said = capsys.readouterr().out
    assert "response 1 of 4" in said and "inspect.html" in said


@pytest.mark.slow
def test_arithmetic_is_warmed_up_and_its_advantage_drawn(here, monkeypatch):
    made = typed(
        "Arithmetic --env-args digits=1 --estimators rloo trepo --prompts 2 --branches 8 --warm-start 60",
        here,
        monkeypatch,
    )
    assert [each["label"] for each in made["truth"]] == ["hidden token reward", "advantage by 8 draws"]
    assert (
        sum(answer["reward"] for group in made["groups"] for answer in group["responses"]) > 8 * 0.2
    )  # untrained: nearly nothing
    for each in tokens_in(made):
        assert each["hidden_reward"] in (0.0, 0.5, pytest.approx(1 / 3)) and each["error"] is not None


def test_an_estimator_of_ones_own_and_fewer_responses(here, monkeypatch):
    (here / "own.py").write_text(
        "from llm_mdp.estimators.algorithms import RLOO\n\n\nclass Own(RLOO):\n    '''RLOO by another name.\n\n    "
        "More.'''\n",
        encoding="utf-8",
    )
    made = typed("Tabular --estimators own.py:Own rloo --group-size 2 --prompts 1 --seed 3", here, monkeypatch)
    assert made["estimators"][0] == made["estimators"][1] | {
        "name": "own.py:Own",
        "label": "Own",
        "words": "RLOO by another name.",
    }
    assert all(each["weights"]["own.py:Own"] == each["weights"]["rloo"] for each in tokens_in(made))


def test_words_of_a_tokenizer(here, monkeypatch):
    byte_tokenizer().save_pretrained(here / "tokenizer")
    made = typed(
        "ReasoningGym --model small --width 16 --env-args tokenizer=tokenizer horizon=6 --estimators rloo",
        here,
        monkeypatch,
    )
    assert made["truth"] == [{"name": "advantage", "label": "advantage by 32 draws"}]
    assert "State the final answer" in made["groups"][0]["prompt"] and len(tokens_in(made)) > 12


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("Tabula", "there is no environment 'Tabula'; did you mean Tabular?"),
        ("--estimators trpo", "there is no estimator 'trpo'; did you mean trepo?"),
        ("--estimators own.py:Own", "there is no file own.py."),
        ("Arithmetic --warm-start 0 --estimators ppo", "the exact value U(W₀,ₜ) is known on small token MDPs only"),
        ("--html nowhere/page.html", "there is no folder"),
        ("--json .", "is a folder; name a file in it."),
        ("--prompts 0", "--prompts is 0; it must be at least 1."),
        ("--group-size 1", "--group-size is 1; it must be at least 2."),
        ("--samples 0", "--samples is 0; it must be at least 1."),
        ("--every 0", "--every is 0; it must be at least 1."),
        ("--seed -1", "--seed is -1; it must be at least 0."),
        ("--branches 1", "--branches is 1; give at least 2, or 0 to leave the advantage out."),
        ("--warm-start 3", "Tabular has no answers to learn from;"),
        ("--engine vllm", "--engine is vllm, but a page of responses needs no other engine; leave it out."),
        ("--run runs/there --model small", "--run brings its own model; leave the options of a model out."),
        ("--run runs/there --warm-start 3", "--run brings a trained policy; leave --warm-start out."),
        ("--run runs/there", "runs/there holds no run; start one with `llm-mdp train`."),
    ],
)
def test_what_cannot_be_done_is_said_in_words(words, complaint, here):
    with pytest.raises((ValueError, OSError)) as raised:
        inspect(words.split())
    assert complaint in str(raised.value)
    assert not (here / "inspect.html").exists()
