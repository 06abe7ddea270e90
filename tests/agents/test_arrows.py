"""Inside the agents, too, no two files need one another: imports, those for types included, have an order."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "agents/llm_mdp_agents"


def modules() -> dict[str, str]:
    """The source of every module by its dotted name."""
    return {
        ".".join(["llm_mdp_agents", *path.relative_to(PACKAGE).with_suffix("").parts]): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def order(sources: dict[str, str]) -> list[str]:
    """The modules, each after all that it imports.

    Raises:
        CycleError: naming those that import one another.
    """
    arrows = {}
    for module, source in sources.items():
        froms = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
        pairs = [(node.module, alias.name) for node in froms for alias in node.names]
        names = {name for package, part in pairs for name in (package, f"{package}.{part}")}
        arrows[module] = names & sources.keys()
    return list(TopologicalSorter(arrows).static_order())


def test_the_files_of_the_agents_have_an_order():
    sources = modules()
    found = order(sources)
    assert set(found) == set(sources) and len(found) > 30
    assert found.index("llm_mdp_agents.lm.generation") < found.index("llm_mdp_agents.lm.policy")


def test_a_circle_is_seen():
    sources = modules()
    back = "if TYPE_CHECKING:\n    from llm_mdp_agents.lm.policy import LanguageModelPolicy\n"
    sources["llm_mdp_agents.lm.generation"] += back
    with pytest.raises(CycleError, match=r"llm_mdp_agents\.lm\.generation"):
        order(sources)
