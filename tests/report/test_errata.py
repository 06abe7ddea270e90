"""Errata and findings: every counter-example runs and gives the figures beside it, and the page follows the ledger."""

import json
import re
import shutil
from pathlib import Path

import pytest

from llm_mdp.cli.verify import verify
from llm_mdp.exact.instance_files import instance_from_dict, read_instance, write_instance
from llm_mdp.report.errata import CLAIM, describe, errata_markdown, example_row, main, needing_examples, update_errata
from llm_mdp.report.rows import figure_text
from llm_mdp.verify.claims.misprints import MISPRINTS
from tests.report.test_report import HOSTILE

ROOT = Path(__file__).parents[2]
PAGE, FILES = ROOT / "docs/errata.md", sorted((ROOT / "docs/counterexamples").glob("*.json"))
RESULTS = ROOT / "benchmarks/results/ledger.json"


def recorded() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Markdown as it is read."""
    return re.sub(r"\\(.)|\*\*", r"\1", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_counter_example_gives_the_figures_that_the_page_has_beside_it(path):
    """By `llm-mdp verify ID --instance FILE`, which the page shows, and which ends well."""
    instance, text = read_instance(path), plain(PAGE.read_text(encoding="utf-8"))
    (line,) = (line for line in text.splitlines() if f"({path.parent.name}/{path.name})" in line)
    row = example_row(CLAIM[path.stem], instance)
    verdict, figures = line.split(f"{describe(instance)}. ")[1].split(":", 1)
    assert verdict == row.verdict in ("biased", "proportional", "fails") and not row.contradictions
    command = f"llm-mdp verify {path.stem} --instance docs/counterexamples/{path.name}"
    assert line.endswith(f"`{command}`")
    shown = dict(re.findall(r"(relative bias|scale|cosine) ([^,;]+)", figures))
    assert shown == {} if verdict == "fails" else set(shown) == {"relative bias", "scale", "cosine"}
    for name, value in shown.items():
        assert value == figure_text(row, name.replace(" ", "_"))


def test_the_command_beside_a_counter_example_ends_well_and_says_the_same(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = ROOT / "docs/counterexamples/rloo-eq36.json"
    assert verify(["rloo-eq36", "--instance", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"rloo-eq36(?: K=\d+)?\s+∝ proportional\s+0\.500\s+0\.500\s+1\s", said)


def test_counter_examples_are_small():
    for path in FILES:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["vocab_size"] == 2 and content["horizon"] <= 4 and len(content["nodes"]) <= 4
        numbers = [entry for node in content["nodes"] for key in ("logits", "token_reward") for entry in node[key]]
        assert all(number == int(number) for number in numbers) and sum(map(bool, numbers)) <= 6


def test_the_page_is_the_one_that_the_results_give(capsys):
    assert main([str(RESULTS), str(PAGE), "--check"]) == 0, "run `make docs`"
    assert "up to date" in capsys.readouterr().out
    assert {path.stem for path in FILES} == {claim.id for claim, _ in needing_examples(recorded())}


def some_rows(*ids: str) -> dict:
    """The recorded run, of some rows."""
    document = recorded()
    for run in document["instances"]:
        run["claims"] = {claim_id: run["claims"][claim_id] for claim_id in ids}
    return document


def test_what_agrees_comes_first_and_every_finding_has_its_place():
    text = errata_markdown(recorded(), {})
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles == [
        "What agrees",
        "What holds more strongly than stated",
        "Misprints",
        "Statements that hold under a condition",
        "Where findings differ",
    ]
    part = dict(zip(titles, re.split(r"^## .*$", text, flags=re.M)[1:]))
    claims = recorded()["instances"][0]["claims"]
    at = {
        "agrees": titles[:1],
        "stronger than stated": titles[1:2],
        "misprint": titles[2:3],
        "differs": titles[3:],
    }
    for claim_id, claim in claims.items():
        places = [title for title in titles if f"`{claim_id}`" in part[title]]
        assert len(places) == (claim["finding"] in at), claim_id
        assert not places or places[0] in at[claim["finding"]]
        if places:
            assert claim["paper"] in plain(part[places[0]])
    assert all(slip.printed in plain(part["Misprints"]) and slip.why in plain(part["Misprints"]) for slip in MISPRINTS)
    assert plain(text).count("Of ") and "remark-" not in text.split("## What agrees")[0]


def test_a_row_without_a_counter_example_is_told_by_the_ledgers_figures():
    text = plain(errata_markdown(some_rows("rloo", "rloo-eq36"), {}))
    assert "Counter-example" not in text and re.search(r"proportional (\d)/\1: relative bias 0\.500", text)


def test_counter_examples_are_found_kept_mended_and_removed(tmp_path):
    document, page = some_rows("rloo", "rloo-eq36"), tmp_path / "errata.md"
    said: list[str] = []
    assert update_errata(document, page, progress=said.append)
    folder = tmp_path / "counterexamples"
    path = folder / "rloo-eq36.json"
    assert [one.name for one in folder.iterdir()] == ["rloo-eq36.json"] and said[0].startswith("rloo-eq36: 2 tokens")
    assert path.read_text() == (ROOT / "docs/counterexamples/rloo-eq36.json").read_text()
    assert not update_errata(document, page)
    other = json.loads(path.read_text())
    other["nodes"][0]["token_reward"] = [2.0, 5.0]
    write_instance(instance_from_dict(other), path)
    assert update_errata(document, page) and "5 for token 1" in page.read_text()  # what still shows it is kept
    other["nodes"][0]["token_reward"] = [2.0, 2.0]
    write_instance(instance_from_dict(other), path)
    assert update_errata(document, page)  # without a gradient there is nothing to see
    assert path.read_text() == (ROOT / "docs/counterexamples/rloo-eq36.json").read_text()
    shutil.copy(path, folder / "rloo.json")
    assert update_errata(document, page) and not (folder / "rloo.json").exists()


def test_a_check_changes_nothing(tmp_path, capsys):
    results, page = tmp_path / "ledger.json", tmp_path / "errata.md"
    results.write_text(json.dumps(some_rows("rloo-eq36")))
    assert main([str(results), str(page), "--check"]) == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ledger.json"]
    assert "run this command without --check" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.json"), str(page)])


def test_words_of_somebody_else_are_shown_as_text():
    document = some_rows("rloo-eq36", "grpo", "lemma-1", "reinforce")
    for run in document["instances"]:
        for claim in run["claims"].values():
            claim.update(paper=HOSTILE, statement=HOSTILE, reason=HOSTILE, repair=HOSTILE, source=HOSTILE)
    lines = errata_markdown(document, {}).splitlines()
    assert not any(re.search(r"(?<!\\)<", line) for line in lines)
    tables = [line for line in lines if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (5, 6) for line in tables)


def test_an_instance_in_a_sentence():
    content = {"vocab_size": 2, "eos": None, "horizon": 2, "gamma": 0.5, "nodes": []}
    for prefix in ([], [0], [1]):
        content["nodes"].append({"prefix": prefix, "logits": [0, 0], "token_reward": [0, 0], "value": 0})
    content["nodes"][2] |= {"token_reward": [0, 1.5], "value": -1, "reference_logits": [2, 0]}
    assert describe(instance_from_dict(content)) == (
        "2 tokens (no end token), horizon 2, γ = 0.5; uniform policy; rewards 1.5 for token 1 after [1]; reference "
        "logits 2 for token 0 after [1]; wrong critic -1 after [1]; all else 0"
    )
