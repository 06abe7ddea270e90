"""Imports run one way: llm_mdp <- llm_mdp_envs <- llm_mdp_agents <- llm_mdp.cli.__main__."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "llm_mdp": {"llm_mdp_envs", "llm_mdp_agents"},
    "envs/llm_mdp_envs": {"llm_mdp_agents"},
    "agents/llm_mdp_agents": set(),
}
COMPOSITION_ROOT = ROOT / "llm_mdp" / "cli.py"


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0] for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    }


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = [file for file in (ROOT / package).rglob("*.py") if file != COMPOSITION_ROOT]
    assert files
    wrong = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in imported(file.read_text()) & FORBIDDEN[package]
    }
    assert not wrong


def test_an_import_inside_a_function_is_seen():
    source = "def f():\n    from llm_mdp_agents.lm.policy import x\n    import llm_mdp_envs.math as m"
    assert imported(source) == {"llm_mdp_agents", "llm_mdp_envs"}
