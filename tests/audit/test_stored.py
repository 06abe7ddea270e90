"""benchmarks/results/audit.json: its rows say what the adapters say, and every library has them."""

import json
from pathlib import Path

import pytest

from llm_mdp.audit.library import LIBRARIES, find_library

STORED = json.loads((Path(__file__).parents[2] / "benchmarks/results/audit.json").read_text(encoding="utf-8"))


def test_every_library_has_rows_of_a_known_commit():
    assert {row["library"] for row in STORED["rows"]} == set(LIBRARIES)
    assert set(STORED["commits"]) == set(LIBRARIES)


def test_what_is_counted_as_a_repair_is_one():
    repairs = {row["repair"] for row in STORED["rows"] if row["repair"]}
    assert [each for each in repairs if each.lower().startswith(("no ", "none"))] == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_rows_say_what_the_adapter_says(name):
    library = find_library(name)
    if library.version() is None:
        pytest.skip(f"{name} is not installed")
    said = [(each.name, each.claim, each.place, each.repair, each.note) for each in library.settings()]
    keys = ("option", "claim", "place", "repair", "note")
    assert [tuple(row[key] for key in keys) for row in STORED["rows"] if row["library"] == name] == said
