"""Responses as tables in TensorBoard, wandb and trackio."""

import html
import re
import sys

import pytest

from llm_mdp_agents.training.loggers import CHARACTERS, RESPONSES, markdown_table
from llm_mdp_agents.training.records import Records

ROWS = [
    {"prompt": "1+1=", "response": "2 | <b>no</b>\n# not *a* title", "reward": 1.0, "part/right": 1.0},
    {"prompt": "a\ud800\x1b[31m", "response": "", "reward": 0.25, "detail/verdict": None},
]


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table as a browser shows them."""
    lines = [[html.unescape(cell.strip()) for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_a_table_shows_what_was_said_letter_by_letter():
    table = markdown_table(ROWS)
    head, first, second = cells(table)
    assert head == ["prompt", "response", "reward", "part/right", "detail/verdict"]
    assert first == ["1+1=", "2 | <b>no</b><br># not *a* title", "1", "1", ""]
    assert second[1:] == ["", "0.25", "", ""]
    assert not re.search(r"<(?!br>)|\*|`|\x1b|\[", table.replace("| --- ", "")), "nothing of it is markup"
    table.encode()


def test_long_texts_are_cut():
    (_, row) = cells(markdown_table([{"response": "x" * (CHARACTERS + 1)}]))
    assert row == ["x" * CHARACTERS + " …"]


def test_tensorboard_shows_the_table(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Records(tmp_path) as records:
        records.samples(3, ROWS)
        records.samples(4, [])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors(f"{RESPONSES}/text_summary")
    assert event.step == 3 and cells(event.tensor_proto.string_val[0].decode())[1][0] == "1+1="


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_hosted_loggers_get_a_table(name, tmp_path, monkeypatch):
    """Their module is the network's edge: one that notes what it is told stands in for it."""
    package = tmp_path / "packages" / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "told = []\n"
        "def init(**options): pass\n"
        "def finish(): pass\n"
        "def log(values, step): told.append((step, values))\n"
        "class Table:\n"
        "    def __init__(self, columns=None, data=None): self.columns, self.data = columns, data\n"
    )
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    folder = tmp_path / "run"
    folder.mkdir()
    with Records(folder, loggers=(name,)) as records:
        records.samples(3, ROWS)
    ((step, values),) = sys.modules.pop(name).told
    table = values[RESPONSES]
    rows = [dict(zip(table.columns, row)) if table.columns else row for row in table.data]
    assert step == 3 and [row["response"] for row in rows] == [row["response"] for row in ROWS]
    assert rows[0]["part/right"] == 1.0 and rows[1].get("part/right") is None
