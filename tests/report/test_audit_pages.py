"""The audit as people see it: made-up rows in a terminal, on the page and in docs/audit.md."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from llm_mdp.report.audit_docs import audit_markdown, main
from llm_mdp.report.audit_page import render_audit
from llm_mdp.report.audit_rows import batch_words, figures, parts, since, summary, where, worst
from llm_mdp.report.audit_terminal import WIDE, print_audit, print_libraries
from tests.report.pages import HOSTILE, Page, in_chromium, opened

ROOT = Path(__file__).parents[2]


def certificate(verdict: str, bias: float | None, scale: float | None, cosine: float | None) -> dict:
    return {
        "verdict": verdict,
        "relative_bias": bias,
        "scale": scale,
        "cosine": cosine,
        "trace_covariance": 1.2,
        "method": "groups",
        "reason": None,
    }


BIASED, TURNED = certificate("biased", 0.69, 0.316, 0.968), certificate("biased", 0.5, 0.4, 0.99)
SCALED, RIGHT = certificate("proportional", 1 / 3, 2 / 3, 1.0), certificate("unbiased", 3e-16, 1.0, 1.0)
UNKNOWN = certificate("undecided", None, None, None)
EXAMPLE = {
    "words": "V = 2, T = 2, K = 2: biased: relative bias 0.5416, scale 0.4596, cosine 0.9971",
    "group_size": 2,
    "responses": {"head": ["response", "reward", "log π"], "lines": [["end", "0", "-0.6931"], ["a a", "2", "-1.386"]]},
    "gradients": {
        "head": ["logit of", "what comes out", "what the name promises, ∇J"],
        "lines": [["a first", "0.1768", "0.375"]],
    },
    "instance": {},
}


def row(option: str, verdict: str, problems: dict, **more) -> dict:
    return {
        "library": "trl",
        "version": "1.16.0",
        "option": option,
        "claim": "rewards are divided by the standard deviation of their group",
        "place": "trl/trainer/grpo_config.py, scale_rewards",
        "target": "reward",
        "group_size": 3,
        "prompts": [1],
        "verdict": verdict,
        "problems": problems,
        "advantages": None,
        "with_batch": {"prompts": [], "one_minus_cosine": [], "rate": None, "says": "not computed", "instance": ""},
        "finding": "",
        "repair": None,
        "since": "",
        "default": False,
        "note": "",
        "seconds": 1.0,
    } | more


FADES = {"prompts": [1, 2, 4], "one_minus_cosine": [4.6e-3, 2.4e-3, None], "rate": 0.97, "says": "dies with the batch",
         "instance": "V = 2, T = 2, K = 2"}  # fmt: skip
ROWS = [
    row("loss_type=dapo,scale_rewards=group", "biased",
        {"dense": BIASED, "two-prompts": TURNED, "right-or-wrong": SCALED},
        advantages={"dense": TURNED}, with_batch=FADES, prompts=[1, 2, 4], finding="not the gradient of reward.",
        repair='set scale_rewards="none"', since="1.16.0", default=True, note="first update; ratio 1", example=EXAMPLE),
    row("loss_type=dr_grpo", "proportional", {"dense": SCALED}, repair="scale the learning rate", prompts=[1, 2, 4]),
    row("beta=0.04", "biased", {"dense": BIASED}, target="reward - 0.04 kl", prompts=[1, 2, 4]),
    row("RLOOTrainer", "unbiased", {"dense": RIGHT}, repair="none is needed", prompts=[1, 2, 4]),
    row("clip_cov", "undecided", {"dense": UNKNOWN}, library="verl", version="0.9.1", group_size=4,
        finding="undecided: it draws random numbers of its own."),
]  # fmt: skip


def printed(rows: list[dict], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    print_audit(rows, console)
    return console.file.getvalue()


def test_what_rows_say():
    first, scaled, penalty, right, unknown = ROWS
    assert worst(first["problems"]) == "biased" and where(first["problems"]) == "on dense, two-prompts only"
    assert worst({}) == "undecided" and where(penalty["problems"]) == ""
    assert figures(first["problems"]) == [("bias", "0.333…0.690"), ("scale", "0.316…0.667"), ("cosine", "0.968…1")]
    assert figures(right["problems"])[0] == ("bias", "<1e-9") and figures(unknown["problems"]) == []
    assert [name for name, _ in parts(first)] == ["whole loss", "advantages alone"]
    assert [name for name, _ in parts(scaled)] == ["certificate"]
    assert batch_words(first) == (
        "dies with the batch (like P^-0.97): 1 - cosine 0.00460 at P = 1, 0.00240 at P = 2 (V = 2, T = 2, K = 2)"
    )
    raised = {"says": "not computed: f raised IndexError", "prompts": [], "one_minus_cosine": []}
    assert batch_words(scaled | {"with_batch": raised}) == "not computed: f raised IndexError"
    assert batch_words(scaled | {"with_batch": raised, "verdict": "undecided"}) == ""
    assert batch_words(unknown) == "" and since(first) == "1.16.0 · default" and since(unknown) == "0.9.1"
    assert summary(ROWS) == (
        "5 options: 1 unbiased, 1 proportional, 2 biased, 1 undecided; a repair in the library's own options is known "
        "of 1 of the biased."
    )


@pytest.mark.parametrize("width", [80, 120, WIDE, 200])
def test_a_terminal_of_any_width_shows_every_word(width):
    text = printed(ROWS, width)
    assert max(map(len, text.splitlines())) <= width
    said = " ".join(re.sub(r"[─│]", " ", text).split())
    for words in ("Audit of trl 1.16.0", "Audit of verl 0.9.1", "5 options: 1 unbiased"):
        assert words in said
    if width < WIDE:
        for words in ("✗ biased for ∇(reward - 0.04 kl)", "trl/trainer/grpo_config.py, scale_rewards",
                      '→ repair: set scale_rewards="none"', "dies with the batch (like P^-0.97)",
                      "? undecided: it draws random numbers of its own."):  # fmt: skip
            assert words in said
    else:
        assert all(head in said for head in ("what it is called or says", "what it is", "since when"))
    assert "none is needed" not in said and ("K = 3, P = 1" in said) == ("K = 4, P = 1" in said)


def test_no_rows_are_an_error():
    for write in (lambda: printed([]), lambda: render_audit([]), lambda: audit_markdown({"rows": []})):
        with pytest.raises(ValueError, match="no rows; give"):
            write()
    with pytest.raises(ValueError, match="is nan, which JSON cannot hold"):
        render_audit([row("x", "biased", {"dense": certificate("biased", float("nan"), None, None)})])


def test_libraries_are_listed_with_how_to_install_them():
    console = Console(file=io.StringIO(), width=80, markup=False)
    known = {"name": "verl", "installed": None, "versions": ">=0.9", "install": "--no-deps verl==0.9.1"}
    print_libraries([known, known | {"name": "trl", "installed": "1.16.0"}], console)
    absent, present = console.file.getvalue().splitlines()[3:5]
    assert "pip install --no-deps verl==0.9.1" in absent and "1.16.0" in present and "pip" not in present


def test_the_page_holds_every_row_and_closes_every_tag():
    page = Page(render_audit(ROWS, "llm-mdp audit trl"))
    assert not page.open and page.count("table", "audit") == 2 and page.count("table", "example") == 2
    assert json.loads(page.scripts["document"]) == ROWS
    text = " ".join("".join(page.text).split())
    for words in ("✗ biased for ∇(reward - 0.04 kl)", "since when", "minimal example", "0.1768", "K = 4, P = 1"):
        assert words in text


def hostile() -> list[dict]:
    words = dict.fromkeys(("claim", "place", "finding", "repair", "since", "note", "library", "version"), HOSTILE)
    example = EXAMPLE | {"words": HOSTILE, "responses": {"head": [HOSTILE], "lines": [[HOSTILE]]}}
    return [row(HOSTILE, "biased", {HOSTILE: BIASED, "b": RIGHT}, example=example, **words)]


def test_words_of_a_library_are_words_everywhere():
    page = Page(render_audit(hostile(), HOSTILE))
    assert not page.open and page.count("img") == 0 and len(page.scripts) == 2
    assert "[red]markup[/red]" in " ".join(printed(hostile(), 400).split())
    text = audit_markdown({"rows": hostile(), "command": "llm-mdp"})
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(table) == 1 and len(re.findall(r"(?<!\\)\|", table[0])) == 6


@pytest.mark.slow
@in_chromium
def test_the_page_s_script_filters(tmp_path):
    text = render_audit(ROWS).replace(
        "</body>", "<script>search.value = 'kl'; search.dispatchEvent(new Event('input'));</script></body>"
    )
    page = Page(opened(text, tmp_path))
    assert "1 of 5 options" in "".join(page.text)


def test_the_document_has_all_rows_and_examples_of_the_biased():
    made = {"command": "llm-mdp audit trl", "llm_mdp": "0.2.0", "commits": {"trl": "abc1234"}}
    text = audit_markdown({"rows": ROWS, **made})
    assert (
        "(llm-mdp 0.2.0)" in text
        and text.count("K = 3, P = 1; commit abc1234.") == 1
        and "[trl 1.16.0](#trl-1160)" in text
    )
    assert text.count("| `loss_type=dapo,`<wbr>`scale_rewards=group` |") == 1 and text.count("#### `") == 1
    assert '**Repair:** set scale\\_rewards="none".' in text and "| a first | 0.1768 | 0.375 |" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| `")}
    assert widths == {6}


def test_the_command_writes_both(tmp_path, capsys):
    results = tmp_path / "audit.json"
    results.write_text(json.dumps({"rows": ROWS, "command": "llm-mdp audit trl"}))
    files = [tmp_path / name for name in ("audit.md", "audit.html")]
    assert main([str(results), *map(str, files)]) == 0 and all(file.exists() for file in files)
    assert "5 rows" in capsys.readouterr().out
    results.write_text("{}")
    with pytest.raises(SystemExit):
        main([str(results), *map(str, files)])
    assert "the document has no rows" in capsys.readouterr().err


def test_the_page_of_docs_is_the_one_that_the_results_give():
    document = json.loads((ROOT / "benchmarks/results/audit.json").read_text(encoding="utf-8"))
    written = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    assert written == audit_markdown(document), "run the second command of `make audit`"
