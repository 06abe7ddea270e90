"""Cells of a study that need a task: who hears how far they are."""

from pathlib import Path

import pytest

from llm_mdp.variance.grid import Grid
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.study import FEW, MANY, PROMPTS_AT_ONCE, Subject, measure_cell, task_plan, telling

TABLE = Subject("Tabular", {"horizon": 2, "vocab_size": 2})
GRID = Grid((2,), (1,), (1,))


def test_a_task_tells_how_many_prompts_are_done_while_somebody_listens():
    (cell,) = task_plan(TABLE, ["rloo"], GRID, PROMPTS_AT_ONCE + 4, 0).cells
    heard: list[int] = []
    with telling(heard.append):
        told = measure_cell(cell)
    assert heard == [PROMPTS_AT_ONCE, PROMPTS_AT_ONCE + 4]
    silent = measure_cell(cell)
    assert len(heard) == 2 and told["facts"]["J"] == pytest.approx(silent["facts"]["J"])


def test_language_models_are_asked_fewer_prompts(tmp_path: Path):
    """An hour or a minute: only where nobody says how many."""

    def prompts(asked: int | None, model: str) -> int:
        return task_plan(Subject("Tabular", model=ModelConfig(model)), ["rloo"], GRID, asked, 0).cells[0]["prompts"]

    assert [prompts(None, "auto"), prompts(None, "small"), prompts(5, "auto")] == [MANY, MANY, 5]
    assert (prompts(None, str(tmp_path)), prompts(7, str(tmp_path))) == (FEW, 7)
